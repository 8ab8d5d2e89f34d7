"""Plug-ins are found by their file, listed without being imported, and refused by name when unknown."""

from __future__ import annotations

import subprocess
import sys

import pytest

import seedbed
from seedbed.benchmark import plugins
from seedbed.benchmark.errors import ConfigError, SeedbedError
from seedbed.benchmark.pipeline.registry import BACKBONES, DATASETS, METHODS, REFINERS


@pytest.mark.parametrize("family", [METHODS, REFINERS, BACKBONES, DATASETS], ids=lambda family: family.constant)
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


def test_a_member_of_a_collection_is_found_by_both_names_and_is_not_listed():
    assert BACKBONES.collections() == ("timm:NAME",)
    assert METHODS.collections() == ()
    assert not any("timm" in name for name in BACKBONES.names())
    plugin = BACKBONES.plugin("timm:resnet18")
    assert (plugin.constant, plugin.module) == ("BACKBONE_COLLECTION", "seedbed.methods.backbones.timm")
    assert BACKBONES.find("timm") is None
    assert BACKBONES.find("resnet18:resnet18") is None
    assert METHODS.find("timm:resnet18") is None
    with pytest.raises(ConfigError, match=r"unknown backbone 'tim:resnet18'\. .*Valid: .*, timm:NAME, "):
        BACKBONES.load("tim:resnet18")
    with pytest.raises(ConfigError, match=r"unknown backbone 'timm'\. .*Valid: .*, timm:NAME, "):
        BACKBONES.load("timm")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a folder `grown` that stands for `methods`, an importable package."""
    package = tmp_path / "seedbed" / "grown"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setitem(plugins.PACKAGES, "METHOD", "seedbed.grown")
    monkeypatch.setattr(plugins, "ROOT", tmp_path / "seedbed")
    monkeypatch.setattr(seedbed, "__path__", [*seedbed.__path__, str(tmp_path / "seedbed")])
    plugins._in_checkout.cache_clear()
    yield package
    plugins._in_checkout.cache_clear()
    for name in [name for name in sys.modules if name.startswith("seedbed.grown")]:
        del sys.modules[name]


def test_a_new_method_is_one_new_file(checkout):
    (checkout / "helper.py").write_text("'''Not a plug-in: it only mentions METHOD.'''\nx = 1\n")
    (checkout / "mine.py").write_text("'''My method.'''\nclass M:\n    name = 'mine'\nMETHOD = M()\n")
    (checkout / "typed.py").write_text("'''Typed.'''\nclass M:\n    name = 'other'\nMETHOD: M = M()\n")
    assert METHODS.names() == ("mine", "typed")
    assert METHODS.summary("mine") == "My method."
    assert "seedbed.grown.mine" not in sys.modules
    assert METHODS.load("mine").name == "mine"
    with pytest.raises(SeedbedError, match=r"typed.py: METHOD.name is 'other'"):
        METHODS.load("typed")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere_at_all", r"mine\.py, line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("from seedbed.grown import helper", r"helper\.py, line 2: invalid syntax"),
        ("x = 1 / 0", r"mine\.py, line 1: ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(code, message, checkout):
    (checkout / "helper.py").write_text("x = 1\ny = * 2 2\n")
    (checkout / "mine.py").write_text(f"{code}\nMETHOD = 1\n")
    with pytest.raises(SeedbedError, match=rf"grown/mine\.py: cannot be imported \(.*{message}") as raised:
        METHODS.load("mine")
    assert "\n" not in str(raised.value)


def test_listing_imports_no_heavy_library():
    program = (
        "import sys; from seedbed.benchmark.pipeline.registry import METHODS;"
        "METHODS.names(); METHODS.summary('cam');"
        "print(*[m for m in ('torch', 'optuna', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_description_is_the_whole_docstring_and_a_summary_its_first_line():
    description = METHODS.description("sc_cam")
    assert METHODS.summary("sc_cam") == description.splitlines()[0]
    assert "CVPR 2020" in description
