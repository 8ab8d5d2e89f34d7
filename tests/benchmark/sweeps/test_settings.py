"""The settings of a sweep: typed, refused by name, the same from a file and from the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from seedbed.benchmark.cli.sweep import SpacedLists
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.sweeps.resume import check_same_sweep
from seedbed.benchmark.sweeps.settings import Cell, change, read_settings, saved_settings, settings_of

MINIMAL = {"name": "try", "datasets": ["chimera-voc"]}


def test_defaults_are_the_protocols():
    settings = settings_of(MINIMAL)
    assert (settings.trials, settings.seeds, settings.search_seed) == (8, (0, 1, 2), 1000)
    assert settings.methods == settings.refiners == settings.tune == ("all",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trails": 3}, "unknown key 'trails'. Did you mean 'trials'?"),
        ({"trials": "many"}, "trials = 'many': expected whole number"),
        ({"trials": -1}, "trials = -1: at least 0"),
        ({"seeds": [0, 1000]}, "search_seed = 1000 is one of the seeds"),
        ({"seeds": [1, 1]}, "seeds: 1, 1 contains a duplicate"),
        ({"seeds": []}, "seeds: give at least one"),
        ({"name": "a/b"}, "name = 'a/b'"),
        *(
            ({"name": name}, f"name = {name!r}: expected up to 200 letters")
            for name in ("", "..", "-x", "my sweep")
        ),
        *(
            ({"name": name}, f"name = {name!r}: expected up to 200 letters")
            for name in ("größe", "a\nb", ".hidden")
        ),
        ({"name": "x" * 201}, "name = 'xxx"),
        ({"name": 2012}, "name = 2012: expected text; put it in quotes"),
        ({"refiners": False}, "refiners = False: expected text; put it in quotes"),
        ({"refiners": None}, "refiners = None: expected"),
        ({"datasets": {"voc2012": "x"}}, "datasets = {'voc2012': 'x'}: expected"),
        ({"seeds": [0, 1.5]}, "seeds = 1.5: expected whole number"),
        ({"seeds": [True]}, "seeds = True: expected whole number"),
        ({"seeds": [-1]}, "seeds = -1: at least 0"),
        ({"settings": {"TrainCam": {"lr": 0.1}}}, "settings: TrainCam is a table; write TrainCam.lr: value"),
        ({"settings": {1: 2}}, "settings: 1 is no setting; write Stage.field: value"),
        ({"settings": {"lr": 2}}, "settings: 'lr' is no setting; write Stage.field: value"),
        ({"settings": ["TrainCam.lr=0.1"]}, "settings: expected a table"),
        ({"variants": {"a": {"settings": {"TrainCam": {"lr": 1}}, "method": "cam"}}}, "TrainCam is a table"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial = 1.5: at most 1, or a whole number"),
        ({"gpus_per_trial": float("inf")}, "gpus_per_trial = inf"),
        ({"selections": ["best"]}, "expected one of 'fixed', 'tuned', 'oracle'"),
        ({"gpus_per_trial": -0.5}, "gpus_per_trial = -0.5: at least 0"),
        ({"gpus_per_trial": float("nan")}, "gpus_per_trial = nan: at least 0"),
        ({"datasets": ["a=x", "a=y"]}, "each needs its own name"),
        ({"datasets": ["=x"]}, "each needs its own name"),
        ({"methods": ["all", "cam"]}, "methods: 'all' cannot be combined with other names"),
        ({"window": 0}, "window = 0: at least 1"),
        ({"settings": 3}, "settings: expected a table"),
        ({"maps_on": ["test"]}, "expected one of 'train', 'val'"),
        ({"variants": 3}, "variants: expected a table"),
        ({"variants": {"a": 3}}, "variants.a: expected a table. Valid: method"),
        ({"variants": {"a": {"metod": "cam"}}}, "unknown key of variants.a 'metod'. Did you mean 'method'?"),
        ({"variants": {"a": {"segment": "yes", "method": "cam"}}}, "variants.a.segment = 'yes'"),
        ({"variants": {"a": {"settings": 3, "method": "cam"}}}, "variants.a.settings: expected a table"),
        ({"variants": {"a": {}}}, "variants.a needs method"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        settings_of({**MINIMAL, **changes})
    assert message in str(caught.value)


@pytest.mark.parametrize("missing", ["name", "datasets"])
def test_what_a_sweep_needs_is_named(missing):
    with pytest.raises(ConfigError, match=f"needs {missing}"):
        settings_of({key: value for key, value in MINIMAL.items() if key != missing})


def test_unknown_methods_and_refiners_are_refused():
    with pytest.raises(ConfigError, match=r"unknown method 'camm'.*'cam'"):
        settings_of({**MINIMAL, "methods": ["camm"]}).cells()
    with pytest.raises(ConfigError, match="unknown refiner"):
        settings_of({**MINIMAL, "refiners": ["crv"]}).cells()


def test_cells_are_methods_times_refiners_times_data_sets():
    settings = settings_of({**MINIMAL, "methods": ["cam"], "refiners": ["none", "crf"], "datasets": ["a=x", "b"]})
    expected = [Cell("cam", r, d) for d in ("a", "b") for r in ("none", "crf")]
    assert settings.cells() == expected
    assert settings.root_of("a") == Path("x").resolve()
    assert settings.root_of("b") is None


def test_a_one_step_method_has_one_cell_a_data_set(monkeypatch):
    from seedbed.benchmark.pipeline import registry

    class OneStep:
        one_step = True

    monkeypatch.setattr(registry.Family, "load", lambda family, name: OneStep())
    cells = settings_of({**MINIMAL, "methods": ["cam"], "refiners": ["none", "crf"]}).cells()
    assert cells == [Cell("cam", "none", "chimera-voc")]


def test_later_methods_do_not_join_a_sweep_that_began_with_all():
    from seedbed.benchmark.pipeline.registry import METHODS, REFINERS

    settings = settings_of(MINIMAL).resolved()
    assert (settings.methods, settings.refiners) == (METHODS.names(), REFINERS.names())
    assert settings.resolved() == settings


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gpus_per_trial": 0}, "fp32 of cpu"),
        ({"gpus_per_trial": 0.5}, "fp32 of cuda"),
        ({"gpus_per_trial": 1, "precision": "bf16"}, "bf16"),
        ({"address": "auto"}, "fp32"),
        ({"address": "auto", "precision": "bf16"}, "bf16"),
        ({"address": "auto", "gpus_per_trial": 0}, "fp32 of cpu"),
    ],
)
def test_all_trials_of_a_sweep_have_one_precision(changes, expected, monkeypatch):
    """`auto` is decided by the device of the trials; without a known device it is the authors' precision."""
    from seedbed.benchmark.training import precision

    monkeypatch.setattr(precision, "fastest", lambda device: f"fp32 of {device}")
    settings = settings_of({**MINIMAL, **changes})
    assert settings.precision == changes.get("precision", "auto")
    monkeypatch.setattr(type(settings), "__post_init__", lambda self: None)
    assert settings.resolved().precision == expected


def test_one_word_is_as_good_as_a_list_of_one():
    settings = settings_of({**MINIMAL, "methods": "all", "datasets": "chimera-voc", "seeds": 3})
    assert (settings.methods, settings.datasets, settings.seeds) == (("all",), ("chimera-voc",), (3,))


def test_a_file_gives_what_the_command_line_gives_and_is_read_back(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "seeds": [3, 4], "settings": {"TrainCam.lr": 0.01}}))
    settings = read_settings(path, {"trials": 2})
    assert settings == settings_of({**MINIMAL, "seeds": [3, 4], "trials": 2, "settings": {"TrainCam.lr": 0.01}})
    (tmp_path / "try").mkdir()
    settings.save(tmp_path / "try" / "sweep.yaml")
    assert saved_settings(tmp_path, "try") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a table"),
        ("a: [", "not YAML"),
        ("name: x\ndatasets: [a]\nseed: 3", "unknown key 'seed'"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(path, {})
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 300, "-x", "a\0b"])
def test_a_sweep_that_cannot_be_is_not_looked_for(tmp_path, name):
    with pytest.raises(ConfigError, match="name = "):
        saved_settings(tmp_path, name)


def test_an_unknown_sweep_names_those_there_are(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "sweep.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"no sweep 'new'\. Valid: old"):
        saved_settings(tmp_path, "new")


def test_a_resumed_sweep_may_change_machines_but_no_number():
    settings = settings_of(MINIMAL)
    assert change(settings, {"cpus_per_trial": 4, "address": "auto"}).cpus_per_trial == 4
    with pytest.raises(ConfigError, match=r"--trials cannot change"):
        change(settings, {"trials": 3})
    assert settings.differences(dataclasses.replace(settings, workers=3)) == []
    assert settings.differences(dataclasses.replace(settings, trials=3)) == ["trials"]


def test_a_resumed_sweep_may_be_told_where_its_data_and_weights_lie_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = settings_of({"name": "s", "datasets": ["a=old", "b"], "weights": "old.pth"})
    moved = change(settings, {"datasets": ["a=new"], "weights": "new.pth"})
    assert moved.datasets == (f"a={tmp_path / 'new'}", "b")
    assert moved.weights == str(tmp_path / "new.pth")
    assert settings.differences(moved) == []
    # By name alone: seedbed.toml says where it is.
    assert change(settings, {"datasets": ["a"]}).datasets == ("a", "b")
    with pytest.raises(ConfigError, match=r"unknown data set of this sweep 'c'. Valid: a, b"):
        change(settings, {"datasets": ["c=new"]})
    with pytest.raises(ConfigError, match="--weights cannot change"):
        change(settings, {"weights": "imagenet"})
    assert settings.differences(change(moved, {})) == []
    other = settings_of({"name": "s", "datasets": ["a=old", "c"], "weights": "none"})
    assert settings.differences(other) == ["datasets", "weights"]


def test_tilde_and_variables_are_expanded_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = settings_of({"name": "s", "datasets": ["a=~/x", "b=$HOME/y"], "weights": "~/w.pth"})
    assert settings.datasets == (f"a={tmp_path}/x", f"b={tmp_path}/y")
    assert settings.weights == f"{tmp_path}/w.pth"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.05", 0.05),
        ("5e-2", 0.05),
        ("1", 1.0),
        ("true", True),
        ("none", None),
        ("0.5,1.0", [0.5, 1]),
        ("adamw", "adamw"),
    ],
)
def test_a_setting_of_the_command_line_is_that_of_a_file(text, value):
    from_options, from_file = (settings_of({**MINIMAL, "settings": {"A.x": v}}) for v in (text, value))
    assert from_options.differences(from_file) == []
    assert change(from_file, {"settings": {"A.x": text}}) == from_file
    with pytest.raises(ConfigError, match="--set cannot change"):
        change(from_file, {"settings": {"A.x": "7"}})


@pytest.mark.parametrize(("began", "again"), [("5e-2", 0.05), (0.05, "0.05"), ("0.05", "0.050")])
def test_a_sweep_goes_on_with_text_for_a_number_and_a_number_for_text(began, again, tmp_path):
    def settings(value, **variant):
        variants = {"low": {"method": "cam", "settings": {"TrainCam.wd": variant.get("wd", value)}}}
        return settings_of({**MINIMAL, "settings": {"TrainCam.lr": value}, "variants": variants})

    (tmp_path / "try").mkdir()
    (tmp_path / "try" / "sweep.json").write_text("{}")
    settings(began).save(tmp_path / "try" / "sweep.yaml")
    saved = saved_settings(tmp_path, "try")
    assert saved.settings == {"TrainCam.lr": began}
    assert change(saved, {"settings": {"TrainCam.lr": again}}) == saved
    check_same_sweep(tmp_path / "try", settings(again))
    for other in (settings(0.06), settings(again, wd=0.06)):
        with pytest.raises(ConfigError, match="a sweep of this name has other settings"):
            check_same_sweep(tmp_path / "try", other)


def test_what_is_the_same_may_be_said_again_when_a_sweep_is_resumed():
    settings = settings_of({**MINIMAL, "trials": 3, "settings": {"A.x": 1, "A.y": "sgd"}})
    assert change(settings, {"trials": 3, "settings": {"A.x": "1"}, "datasets": ["chimera-voc"]}) == settings


def test_a_table_without_lines_is_an_empty_one():
    assert settings_of({**MINIMAL, "settings": None, "variants": None}) == settings_of(MINIMAL)


def test_paths_are_absolute_from_the_beginning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = settings_of({**MINIMAL, "datasets": ["voc2012=here", "chimera-voc"], "weights": "w.pth"})
    assert settings.datasets == (f"voc2012={tmp_path}/here", "chimera-voc")
    assert settings.weights == f"{tmp_path}/w.pth"
    assert settings_of({**MINIMAL, "weights": "imagenet"}).weights == "imagenet"
    own = settings_of({**MINIMAL, "segmentation_backbone": "vgg16", "segmentation_weights": "w.pth"})
    assert (own.segmentation_backbone, own.segmentation_weights) == ("vgg16", f"{tmp_path}/w.pth")
    for key in ("weights", "segmentation_weights"):
        # Only by its name can `coco` be refused where it must not be.
        assert getattr(settings_of({**MINIMAL, key: "coco"}), key) == "coco"


def test_options_take_several_words(monkeypatch):
    seen = []
    monkeypatch.setattr("typer.core.TyperCommand.parse_args", lambda self, context, words: seen.extend(words))
    words = ["x.yaml", "--seeds", "-1", "0", "1", "--name", "n", "--datasets", "a", "b", "--dry-run"]
    SpacedLists("sweep").parse_args(None, words)
    expected = "x.yaml --seeds -1 --seeds 0 --seeds 1 --name n --datasets a --datasets b --dry-run"
    assert seen == expected.split()


def test_variants_are_the_cells_and_survive_a_file(tmp_path):
    variants = {"low": {"method": "cam", "settings": {"TrainCam.lr": 0.01}}, "rrm": {"method": "rrm"}}
    settings = settings_of({**MINIMAL, "variants": variants, "settings": {"TrainCam.epochs": 1}})
    low, rrm = settings.cells()
    assert (low, rrm) == (Cell("cam", "none", "chimera-voc", "low"), Cell("rrm", "none", "chimera-voc", "rrm"))
    assert str(low) == "cam × none × chimera-voc × low"
    assert settings.settings_of(low) == {"TrainCam.epochs": 1, "TrainCam.lr": 0.01}
    assert settings.settings_of(rrm) == {"TrainCam.epochs": 1}
    settings.save(tmp_path / "sweep.yaml")
    assert read_settings(tmp_path / "sweep.yaml", {}) == settings
    with pytest.raises(ConfigError, match="unknown method 'camm'"):
        settings_of({**MINIMAL, "variants": {"a": {"method": "camm"}}}).resolved()
    with pytest.raises(ConfigError, match="unknown refiner 'crv'"):
        settings_of({**MINIMAL, "variants": {"a": {"method": "cam", "refiner": "crv"}}}).resolved()
