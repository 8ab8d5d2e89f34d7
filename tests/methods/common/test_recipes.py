"""A backbone file that no method knows is trained by safe settings, with a note, at a stride that it has."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from seedbed.benchmark import plugins
from seedbed.benchmark.cli import main as cli
from seedbed.benchmark.errors import ConfigError, UntunedWarning
from seedbed.benchmark.pipeline.hparams import declared
from seedbed.benchmark.pipeline.registry import BACKBONES, METHODS, REFINERS
from seedbed.benchmark.pipeline.stage import Meta, Stage
from seedbed.benchmark.training.loop import TrainingStage
from seedbed.methods.cam import TrainCam
from seedbed.methods.common.recipes import Recipe
from seedbed.methods.refine.psa import TrainPsa
from seedbed.methods.segmentation import stages as segment

META = Meta(classes=6, long_side=64, backbone="toy", weights="none")


TOY = """\"A toy.\"
from dataclasses import replace
from seedbed.methods.backbones import tiny
BACKBONE = replace(tiny.BACKBONE, name="toy", strides={strides})
"""


@pytest.fixture
def toy(no_plugins, tmp_path):
    """Return what adds a backbone `toy` with some strides, as a plug-in."""

    def add(*strides):
        (tmp_path / "toy.py").write_text(TOY.format(strides=strides))
        plugins.add(tmp_path / "toy.py")

    return add


def stages(meta):
    """Return the stages of every method with each refiner, and of the segmentation network."""
    found = [*segment.segmentation_stages(meta), *segment.segmentation_stages(meta, "full")]
    for method in map(METHODS.load, METHODS.names()):
        found += method.localise(meta)
    for refiner in map(REFINERS.load, REFINERS.names()):
        found += refiner.refine(meta, 0.15)
    return found


@pytest.mark.filterwarnings("ignore::seedbed.benchmark.errors.UntunedWarning")
@pytest.mark.parametrize("weights", ["none", "sha256:x"])
@pytest.mark.parametrize("strides", [(8, 16), (16, 8), (8,)])
def test_every_training_of_an_unknown_backbone_is_safe(toy, strides, weights):
    """AdamW at 1e-3 for new layers, which all are without weights, and at 1e-4 for pretrained ones."""
    toy(*strides)
    meta = replace(META, weights=weights)
    trainings = {type(s).__name__: s for s in stages(meta) if isinstance(s, TrainingStage)}
    # These train offsets only, on the features of a finished classifier, with ESOL's own rates.
    offsets = {trainings.pop(name).optimiser for name in ("Expand", "Shrink")}
    assert offsets == {"sgd"}
    assert {"TrainCam", "TrainRrm", "TrainIcd", "TrainPsa", "TrainIrn", "TrainSegmentation"} <= trainings.keys()
    for name, stage in trainings.items():
        assert stage.optimiser == "adamw", name
        assert stage.lr * stage.head_multiplier == 1e-3, name
        assert stage.lr == (1e-3 if weights == "none" or name == "TrainIrn" else 1e-4), name
        assert stage.weight_decay == 1e-4, name
        assert getattr(stage, "stride", strides[0]) in strides, name


def test_a_backbones_file_alone_sets_every_stage(toy):
    """Sizes of the recipe shrink with the images; a subclass of a stage follows both recipes, its own last."""
    recipes = {
        "TrainCam": Recipe("A paper", epochs=7, lr=0.3, crop=400),
        "TrainSubcategories": Recipe("Another paper", epochs=9),
        "TrainSegmentation": Recipe("A paper", epochs=4),
        "WalkPsa": Recipe("A paper", steps=11),
    }
    toy(8)
    BACKBONES.module("toy").RECIPES = recipes
    meta = replace(META, long_side=400)
    with pytest.warns(UntunedWarning) as notes:
        found = {type(stage).__name__: stage for stage in stages(meta)}
    assert (found["TrainCam"].epochs, found["TrainCam"].lr, found["TrainCam"].crop) == (7, 0.3, 320)
    assert (found["TrainSubcategories"].epochs, found["TrainSubcategories"].lr) == (9, 0.3)
    assert found["TrainSegmentation"].epochs == found["TrainSupervised"].epochs == 4
    assert found["WalkPsa"].steps == 11
    untuned = {str(note.message).partition(" ")[0] for note in notes}
    assert untuned == {"TrainIcd", "TrainRrm", "TrainSplittingMerging", "TrainPsa", "TrainIrn"}


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_recipes_name_stages_and_settings_that_exist(backbone):
    """A misspelt name would have no effect."""
    stages(replace(META, backbone=backbone))
    known, classes = {}, [Stage]
    for kind in classes:
        classes += kind.__subclasses__()
        known[kind.__name__] = kind
    for name, recipe in getattr(BACKBONES.module(backbone), "RECIPES", {}).items():
        assert recipe.settings.keys() <= declared(known[name]).keys(), name
        assert recipe.source


@pytest.mark.parametrize("backbone", [name for name in BACKBONES.names() if name != "toy"])
def test_the_backbones_that_come_with_seedbed_have_recipes(backbone):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntunedWarning)
        stages(replace(META, backbone=backbone))


def test_the_note_names_the_stage_and_what_to_do(toy):
    toy(8)
    with pytest.warns(
        UntunedWarning, match=r"TrainCam has no recipe for the backbone 'toy' .* --set TrainCam\.lr="
    ):
        METHODS.load("cam").localise(META)
    with pytest.warns(UntunedWarning, match="TrainSegmentation has no recipe"):
        segment.segmentation_stages(META)


def test_the_command_line_prints_it_as_a_note(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    cli._print_own_warnings_as_notes()
    assert warnings.formatwarning("no recipe", UntunedWarning, "file.py", 1) == "note: no recipe\n"
    assert "file.py:1: UserWarning" in warnings.formatwarning("other", UserWarning, "file.py", 1, "")


@pytest.mark.parametrize("stage", [TrainCam, segment.TrainSegmentation])
def test_a_stride_that_a_backbone_does_not_have_is_refused_at_once(toy, stage):
    toy(16)
    with pytest.raises(
        ConfigError, match=rf"{stage.__name__}.stride = 8: backbone 'toy' has no stride 8. Valid: 16"
    ):
        stage(backbone="toy", stride=8)
    assert stage(backbone="toy", stride=16).stride == 16


def test_psa_is_refused_at_once_on_a_backbone_without_stride_8(toy):
    toy(16)
    with pytest.raises(ConfigError, match="backbone 'toy' has no stride 8"):
        TrainPsa(backbone="toy")
