"""Where data sets are: by name alone, by seedbed.toml, by a root; and what a worker gets of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.pipeline import work_folder as workfolder
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.pipeline.work_folder import DatasetSpec, WorkFolder
from seedbed.benchmark.trials.plan import plan_trial
from seedbed.benchmark.trials.trial import Trial


@pytest.mark.parametrize(("name", "file"), [("chimera-voc", "Annotations"), ("chimera-coco", "annotations")])
def test_the_generated_data_sets_need_no_root(name, file, tmp_path, monkeypatch):
    monkeypatch.setattr(workfolder, "DEMO_IMAGES", 20)
    monkeypatch.setattr(workfolder, "DEMO_SIZE", 48)
    monkeypatch.chdir(tmp_path)
    place = WorkFolder(tmp_path / "work").locate(name, None)
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
    place = WorkFolder(tmp_path).locate("mine", None)
    # A worker's current folder is another one.
    assert place == DatasetSpec("mine", "chimera", str(tmp_path / "here"), {"saliency": str(tmp_path / "there")})
    other = WorkFolder(tmp_path).locate("mine", tmp_path, {"saliency": Path("elsewhere")})
    assert other == DatasetSpec("mine", "chimera", str(tmp_path), {"saliency": str(tmp_path / "elsewhere")})


def test_a_data_set_that_is_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = WorkFolder(tmp_path)
    with pytest.raises(ConfigError, match="unknown data set 'vock2012'"):
        work.locate("vock2012", None)
    with pytest.raises(ConfigError, match=r"where is voc2012\? Give --root"):
        work.locate("voc2012", None)
    with pytest.raises(ConfigError, match="away: no such folder"):
        work.locate("voc2012", tmp_path / "away")


@pytest.mark.parametrize(
    "text",
    [
        b'[datasets]\nvoc2012 = "voc"\n',
        b'\xef\xbb\xbf[datasets]\r\nvoc2012 = "voc"\r\n',
        b'[datasets]\nvoc2012 = "~/voc"\n',
        b'[datasets]\nvoc2012 = "$HOME/voc"\n',
        b'[datasets]\nvoc2012 = "${HOME}/voc"\n',
        b"[datasets.voc2012]\nroot = 'voc'\n",
    ],
)
def test_a_folder_may_be_written_in_many_ways(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "voc").mkdir()
    (tmp_path / "seedbed.toml").write_bytes(text)
    assert WorkFolder(tmp_path).locate("voc2012", None).root == str(tmp_path / "voc")


def test_a_configuration_that_is_a_folder_or_names_no_loader_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seedbed.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        WorkFolder(tmp_path).locate("voc2012", tmp_path)
    (tmp_path / "seedbed.toml").rmdir()
    (tmp_path / "seedbed.toml").write_text("[datasets.mine]\nroot = '.'\n")
    with pytest.raises(ConfigError, match=r"unknown loader of mine .*'mine'.*Valid: chimera"):
        WorkFolder(tmp_path).locate("mine", None)


def test_a_name_of_ones_own_is_kept_and_shares_the_store(chimera_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seedbed.toml").write_text(
        f"[datasets.'my/../own']\ndataset = 'chimera'\nroot = '{chimera_root}'\n"
    )
    work = WorkFolder(tmp_path / "work")
    plans = []
    for name, root in (("my/../own", None), ("chimera-voc", chimera_root)):
        data = work.open(name, root)
        plans.append(plan_trial(Trial(dataset=name, weights="none"), data, work, Machine()))
    own, usual = plans
    assert own.digest == usual.digest
    assert own.steps().keys() == usual.steps().keys()
    assert own.describe()["data"]["name"] == own.describe()["trial"]["dataset"] == "my/../own"
    assert usual.run_id().startswith("cam-none-chimera-voc-seed0-")
    # A run is a folder of its own, below `runs`.
    assert own.run_id().startswith("cam-none-my-own-")
    assert "/" not in own.run_id()


def test_data_of_an_earlier_trial_is_found_again_by_its_content(chimera_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = WorkFolder(tmp_path / "work")
    recorded = DatasetSpec("mine", "chimera", str(tmp_path / "gone"), {})
    digest = DatasetSpec("mine", "chimera", str(chimera_root), {}).open().digest()
    with pytest.raises(ConfigError, match="unknown data set 'mine'"):
        work.current(recorded, digest)
    (tmp_path / "seedbed.toml").write_text(f"[datasets.mine]\ndataset = 'chimera'\nroot = '{chimera_root}'\n")
    assert work.current(recorded, digest).root == str(chimera_root)
    with pytest.raises(DataError, match="not the content that mine had"):
        work.current(recorded, "0" * 64)
    # Generated data moves with the work folder, and is never generated again for this.
    generated = DatasetSpec("chimera-voc", "chimera", "/old/work/data/chimera-voc", {})
    with pytest.raises(ConfigError, match="no such folder"):
        work.current(generated, digest)
    (work.root / "data").mkdir()
    (work.root / "data/chimera-voc").symlink_to(chimera_root)
    assert work.current(generated, digest).root == str(chimera_root)


def test_the_object_store_of_the_configuration_is_used(tmp_path, monkeypatch):
    from seedbed.benchmark.cli.options import work_folder
    from seedbed.benchmark.pipeline.remote.cached_store import CachedStore, StoreLocation

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    assert type(work_folder(tmp_path / "work").store) is Store
    (tmp_path / "seedbed.toml").write_text('[store]\naddress = "s3://bucket/folder?region=eu-central-1"\n')
    store = work_folder(tmp_path / "work").store
    assert isinstance(store, CachedStore)
    assert store.root == tmp_path / "work" / "store"
    assert store.address == "s3://bucket/folder?region=eu-central-1"
    assert work_folder(tmp_path / "work").store is store
    (tmp_path / "seedbed.toml").write_text('[store]\naddress = "gs://bucket"\ncache = "$SCRATCH/store"\n')
    work = work_folder(tmp_path / "work")
    assert work.location == StoreLocation("gs://bucket", f"{tmp_path}/scratch/store")
    assert work.store.root == tmp_path / "scratch" / "store"
