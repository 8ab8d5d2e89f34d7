"""Where data sets are: by name alone, by seedbed.toml, by a root; and what a worker gets of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import workfolder
from benchmark.errors import ConfigError
from benchmark.progress import Reporter
from benchmark.workfolder import Place, WorkFolder


@pytest.mark.parametrize(("name", "file"), [("chimera-voc", "Annotations"), ("chimera-coco", "annotations")])
def test_the_generated_data_sets_need_no_root(name, file, tmp_path, monkeypatch):
    monkeypatch.setattr(workfolder, "DEMO_IMAGES", 20)
    monkeypatch.setattr(workfolder, "DEMO_SIZE", 48)
    monkeypatch.chdir(tmp_path)
    place = WorkFolder(tmp_path / "work").locate(name, None, Reporter())
    assert (place.loader, place.root) == ("chimera", str(tmp_path / "work" / "data" / name))
    data = place.open()
    assert data.name == name
    assert (data.root / file).is_dir()


def test_the_configuration_names_loader_root_and_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "seedbed.toml").write_text(
        '[datasets.mine]\ndataset = "chimera"\nroot = "here"\nsaliency = "there"\n'
    )
    place = WorkFolder(tmp_path).locate("mine", None, Reporter())
    # A worker's current folder is another one.
    assert place == Place("mine", "chimera", str(tmp_path / "here"), {"saliency": str(tmp_path / "there")})
    other = WorkFolder(tmp_path).locate("mine", tmp_path, Reporter(), {"saliency": Path("elsewhere")})
    assert other == Place("mine", "chimera", str(tmp_path), {"saliency": str(tmp_path / "elsewhere")})


def test_a_data_set_that_is_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = WorkFolder(tmp_path)
    with pytest.raises(ConfigError, match="unknown data set 'vock2012'"):
        work.locate("vock2012", None, Reporter())
    with pytest.raises(ConfigError, match=r"where is voc2012\? Give --root"):
        work.locate("voc2012", None, Reporter())
    with pytest.raises(ConfigError, match="away: no such folder"):
        work.locate("voc2012", tmp_path / "away", Reporter())
