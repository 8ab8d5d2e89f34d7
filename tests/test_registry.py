"""Plug-ins are found by their file, listed without being imported, and refused by name when unknown."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmark.errors import ConfigError, SeedbedError
from benchmark.registry import BACKBONES, DATASETS, METHODS, REFINERS, Family


@pytest.mark.parametrize("family", [METHODS, REFINERS, BACKBONES, DATASETS], ids=lambda family: family.package)
def test_every_plugin_loads_under_the_name_of_its_file_and_says_what_it_is(family):
    assert family.names()
    for name in family.names():
        assert family.load(name).name == name
        assert family.summary(name)


def test_the_first_plugins_are_there():
    assert "cam" in METHODS.names()
    assert {"none", "crf"} <= set(REFINERS.names())
    assert {"tiny", "squeezenet", "resnet50", "resnet101", "vgg16"} <= set(BACKBONES.names())
    assert {"voc2012", "coco2014", "chimera"} <= set(DATASETS.names())


def test_an_unknown_name_is_refused_with_the_closest_match():
    with pytest.raises(ConfigError, match=r"unknown backbone 'resnet5'. Did you mean 'resnet50'\? Valid: "):
        BACKBONES.load("resnet5")


def test_a_new_method_is_one_new_file(tmp_path, monkeypatch):
    package = tmp_path / "grown"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("'''Not a plug-in: it only mentions METHOD.'''\nx = 1\n")
    (package / "mine.py").write_text("'''My method.'''\nclass M:\n    name = 'mine'\nMETHOD = M()\n")
    (package / "typed.py").write_text("'''Typed.'''\nclass M:\n    name = 'other'\nMETHOD: M = M()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    family = Family("method", "grown", "METHOD")
    assert family.names() == ("mine", "typed")
    assert family.summary("mine") == "My method."
    assert "grown.mine" not in sys.modules
    assert family.load("mine").name == "mine"
    with pytest.raises(SeedbedError, match=r"typed.py: METHOD.name is 'other'"):
        family.load("typed")


def test_listing_imports_no_heavy_library():
    program = (
        "import sys; from benchmark.registry import METHODS; METHODS.names(); METHODS.summary('cam');"
        "print(*[m for m in ('torch', 'optuna', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_description_is_the_whole_docstring_and_a_summary_its_first_line():
    description = METHODS.description("sc_cam")
    assert METHODS.summary("sc_cam") == description.splitlines()[0]
    assert "CVPR 2020" in description
