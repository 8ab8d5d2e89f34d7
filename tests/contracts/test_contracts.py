"""The contracts that every method, refiner and data set keeps, found by discovery.

A new method is covered by being there: nothing in this file names one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from seedbed.benchmark.errors import ConfigError, MaskForbiddenError, SeedbedError
from seedbed.benchmark.evaluation.maps import MapReader, MapWriter, ScoreMaps
from seedbed.benchmark.parallel import map_in_order
from seedbed.benchmark.pipeline.hparams import declared
from seedbed.benchmark.pipeline.pipeline import Pipeline, check_chain
from seedbed.benchmark.pipeline.registry import DATASETS, METHODS, REFINERS
from seedbed.benchmark.pipeline.stage import Kind, Machine, Meta, Precision, Stage
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.training.loop import TrainingStage
from seedbed.datasets.base import Dataset, Split, SplitView
from seedbed.datasets.io.images import decode_mask
from seedbed.methods.segmentation.stages import segmentation_stages
from tests.helpers.fakes import FolderDataset, random_scene
from tests.helpers.own_folder import make_own
from tests.helpers.voc_folder import LABELS, make_voc

META = Meta(classes=6, long_side=64, backbone="tiny", weights="none")


def tiny(stages: Sequence[Stage], batch: int = 4, esol_epochs: int = 6) -> list[Stage]:
    """Return the stages with as little training, and as few climbing steps, as there can be."""
    # After fewer epochs ESOL's classifier has no positive map on any image: nothing would be compared.
    epochs = {"TrainEsolClassifier": esol_epochs}
    return [
        replace(cast(Any, stage), epochs=epochs.get(type(stage).__name__, 2), batch=batch)
        if isinstance(stage, TrainingStage)
        else replace(cast(Any, stage), steps=2)
        if type(stage).__name__ == "InferAdvCam"
        else stage
        for stage in stages
    ]


def pipeline(
    stages: Sequence[Stage], data: Dataset, store: Path, seed: int = 0, precision: Precision = "fp32"
) -> Pipeline:
    scope = {Kind.SCORES: Split.TRAIN}
    return Pipeline(stages, data, data.digest(), seed, Store(store), Machine(), precision, scope=scope)


def contents(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file but `entry.json`, which tells times."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "entry.json")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module", autouse=True)
def loaders_pickle() -> Iterator[None]:
    """Pickle all that a loader would send to worker processes; `fork` alone would hide that it cannot be."""
    import torch

    class PicklingLoader(torch.utils.data.DataLoader[Any]):
        def __init__(self, dataset: Any, *arguments: Any, **options: Any) -> None:
            pickle.dumps((dataset, options.get("collate_fn"), options.get("worker_init_fn")))
            super().__init__(dataset, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data, "DataLoader", PicklingLoader)
        yield


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a Chimera of few images."""
    from seedbed.datasets.chimera import DATASET, generate

    root = tmp_path_factory.mktemp("few") / "voc"
    generate(root, layout="voc", images=24, size=64, seed=3)
    return DATASET.open(root)


@pytest.fixture(scope="module", params=METHODS.names())
def method(request: pytest.FixtureRequest) -> Any:
    """Return each method."""
    return METHODS.load(request.param)


@pytest.fixture(scope="module")
def localised(method: Any, few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Return the pipeline of a method's stages, run on few images."""
    run = pipeline(tiny(method.localise(META)), few, tmp_path_factory.mktemp("store"))
    run.latest(Kind.MASKS if method.one_step else Kind.SCORES, Split.TRAIN)
    return run


def test_a_method_says_what_it_is(method):
    assert method.paper
    assert method.supervision in ("I", "I+S")
    assert 0 <= method.fixed_threshold <= 1


@pytest.mark.parametrize("refiner", REFINERS.names())
def test_the_chain_of_kinds_fits_with_every_refiner(method, refiner):
    stages = method.localise(META)
    if not method.one_step:
        stages = [*stages, *REFINERS.load(refiner).refine(META, method.fixed_threshold), *method.on_masks(META)]
    check_chain([*stages, *segmentation_stages(META)])
    assert stages[-1].produces is Kind.MASKS


def test_every_setting_has_a_source_and_stage_names_are_unique(method):
    stages = [*method.localise(META), *method.on_masks(META)]
    for refiner in REFINERS.names():
        stages += REFINERS.load(refiner).refine(META, method.fixed_threshold)
    for stage in stages:
        assert stage.version >= 1
        for name, parameter in declared(type(stage)).items():
            assert parameter.source, f"{type(stage).__name__}.{name} does not say where its default comes from"
    by_name: dict[str, type] = {}
    for stage in stages:
        assert by_name.setdefault(type(stage).__name__, type(stage)) is type(stage)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_weights")
@pytest.mark.parametrize("backbone", ["squeezenet", "resnet50", "vgg16"])
def test_every_method_trains_on_every_kind_of_backbone(method, backbone, tmp_path):
    """Strides and channels are read from it; two classes, no square image, another stride than `tiny`'s."""
    scenes = {f"i{n}": random_scene(n, 40, 56, (1 + n % 2,)) for n in range(4)}
    images, masks = ({i: scene[k] for i, scene in scenes.items()} for k in (0, 1))
    data = FolderDataset(tmp_path / "data", images, masks)
    meta = Meta(classes=2, long_side=64, backbone=backbone, weights="none")
    stages: list[Any] = list(method.localise(meta))
    for position, stage in enumerate(stages):
        # Kernels of 1 × 1: those of 3 × 3 would have more weights than a whole backbone.
        short = {"epochs": 1, "batch": 4, "scales": (1.0,), "steps": 2, "kernel": 1}
        stages[position] = replace(stage, **{k: v for k, v in short.items() if hasattr(stage, k)})
    run = pipeline(stages, data, tmp_path / "store")
    if method.one_step:
        masks_found = run.latest(Kind.MASKS, Split.TRAIN)
        assert decode_mask(masks_found / "i0.png").shape == (40, 56)
        return
    reader = MapReader(run.latest(Kind.SCORES, Split.TRAIN))
    assert set(reader.ids) == set(scenes)
    assert np.isfinite(reader.read("i0").scores).all()


def test_maps_have_the_right_shape_type_and_range_and_absent_classes_none(method, localised, few):
    if not any(stage.produces is Kind.SCORES for stage in localised.stages):
        pytest.skip("the method makes masks, not maps")
    assert max(peaks_of(MapReader(localised.latest(Kind.SCORES, Split.TRAIN)), few.split(Split.TRAIN))) > 0.9


def peaks_of(reader: MapReader, view: SplitView) -> list[float]:
    """Check shape, type, labels and range of the maps of all images, and return the highest score of each map."""
    assert set(view.ids) <= set(reader.ids)
    peaks = []
    for image_id in view.ids:
        maps = reader.read(image_id)
        assert maps.size == view.size(image_id)
        assert maps.scores.dtype == np.float16
        assert tuple(label for label in maps.labels if label != 0) == view.tags(image_id)
        assert maps.scores.min(initial=0) >= -1
        assert maps.scores.max(initial=0) <= 1
        peaks += maps.scores.max((1, 2)).tolist()
    return peaks


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the data type of each loss that a training has, by `Stage.loss`."""
    from seedbed.benchmark.training.loop import _Meter

    found: dict[str, str] = {}
    original = _Meter.add

    def add(meter: _Meter, named: Any, loss: Any) -> None:
        found.update({f"{meter.name}.{name}": str(value.dtype) for name, value in named.items()})
        original(meter, named, loss)

    monkeypatch.setattr(_Meter, "add", add)
    return found


@pytest.fixture(autouse=True)
def _images_reach_networks_normalised() -> Iterator[None]:
    """Fail if the first convolution of any network sees images that are not normalised, or normalised twice."""
    import torch

    def check(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            images = inputs[0].float()
            assert images.abs().max() < 3
            assert images.std() > 0.2

    handle = torch.nn.modules.module.register_module_forward_pre_hook(check)
    yield
    handle.remove()


@pytest.fixture
def convolutions() -> Iterator[dict[str, set[str]]]:
    """Return the data types of what convolutions give, in `training` and in `inference`."""
    import torch

    found: dict[str, set[str]] = {"training": set(), "inference": set()}

    def record(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):
            found["training" if torch.is_grad_enabled() else "inference"].add(str(output.dtype))

    handle = torch.nn.modules.module.register_module_forward_hook(record)
    yield found
    handle.remove()


@pytest.mark.slow
def test_in_bfloat16_the_maps_are_others_and_as_they_should_be(
    method, localised, losses, convolutions, few, tmp_path
):
    """On a machine without a GPU, this is what tests the mixed precision of GPUs."""
    kind = Kind.MASKS if method.one_step else Kind.SCORES
    found = pipeline(localised.stages, few, tmp_path, precision="bf16").latest(kind, Split.TRAIN)
    assert losses == dict.fromkeys(losses, "torch.float32") != {}
    assert all("torch.bfloat16" in types for types in convolutions.values()), convolutions
    assert contents(found) != contents(localised.latest(kind, Split.TRAIN))
    if not method.one_step:
        peaks_of(MapReader(found), few.split(Split.TRAIN))


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(method, localised, few, tmp_path):
    kind = Kind.MASKS if method.one_step else Kind.SCORES
    first = contents(localised.latest(kind, Split.TRAIN))
    again = pipeline(localised.stages, few, tmp_path / "again").latest(kind, Split.TRAIN)
    assert contents(again) == first
    other = pipeline(localised.stages, few, tmp_path / "other", seed=1).latest(kind, Split.TRAIN)
    assert contents(other) != first


def test_one_changed_setting_gives_another_key(method, few, tmp_path):
    def ends(chain: Sequence[Stage]) -> set[str]:
        """Return the keys of what no other stage takes: the maps, or masks and maps of a one-step method."""
        run = Pipeline(chain, few, "digest", 0, Store(tmp_path), Machine(), scope={Kind.SCORES: Split.TRAIN})
        steps = [run.step(position, Split.TRAIN) for position in range(len(chain))]
        taken = {needed.key for step in steps for needed in step.inputs.values()}
        return {step.key for step in steps} - taken

    stages = method.localise(META)
    before, changed = ends(stages), 0
    for position, stage in enumerate(stages):
        for field in fields(stage):
            value = getattr(stage, field.name)
            other: Any = None
            if isinstance(value, bool):
                other = not value
            elif isinstance(value, int | float):
                other = value * 2 or 1
            if other is None:
                continue
            try:
                variant = replace(cast(Any, stage), **{field.name: other})
            except ConfigError:
                continue
            chain = [*stages[:position], variant, *stages[position + 1 :]]
            assert ends(chain) != before, field.name
            changed += 1
    assert changed > 5


class _KillError(Exception):
    """Stands for the death of the process."""


def survive_kills(done: Pipeline, kind: Kind, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a chain again, and compare with the one that is done.

    Each training dies after its first epoch, each other stage before its end; then all goes on.
    """
    from seedbed.benchmark.pipeline.store import Store as Killed
    from seedbed.benchmark.training import checkpoint
    from seedbed.benchmark.training import loop as training

    saves = itertools.count()
    original_save, original_use = checkpoint.save_tensors, Killed._compute

    def save_and_die(path: Path, content: Any) -> None:
        original_save(path, content)
        if content["epoch"] == 1:
            next(saves)
            raise _KillError

    died: set[str] = set()

    def compute_and_die(store: Store, key: str, identity: Any, produce: Any, *others: Any) -> Any:
        def produce_and_die(out: Path, scratch: Path) -> None:
            produce(out, scratch)
            if key not in died:
                died.add(key)
                raise _KillError

        return original_use(store, key, identity, produce_and_die, *others)

    monkeypatch.setattr(training, "save_tensors", save_and_die)
    monkeypatch.setattr(Killed, "_compute", compute_and_die)
    run = pipeline(done.stages, done.data, store)
    for _ in range(10 * len(done.stages)):
        try:
            folder = run.latest(kind, Split.TRAIN)
            break
        except _KillError:
            continue
    else:
        pytest.fail("the chain never came to its end")
    # A one-step method's maps are measured; its masks are not made of them.
    needed: dict[str, Stage] = {}
    last = max(i for i, stage in enumerate(run.stages) if stage.produces is kind)
    run.walk(run.step(last, Split.TRAIN), lambda step: needed.update({step.key: step.stage}))
    assert died == set(needed)
    trainings = [stage for stage in needed.values() if isinstance(stage, TrainingStage)]
    assert next(saves) == len(trainings)
    assert contents(folder) == contents(done.latest(kind, Split.TRAIN))


@pytest.mark.slow
def test_a_kill_in_every_stage_of_a_method_changes_nothing(method, localised, tmp_path, monkeypatch):
    kind = Kind.MASKS if method.one_step else Kind.SCORES
    survive_kills(localised, kind, tmp_path, monkeypatch)


@dataclass(frozen=True, kw_only=True)
class GivenScores(Stage):
    """Copies maps that a test made."""

    version = 1
    produces = Kind.SCORES
    seeded = False
    folder: Path
    """No setting, so it is not in the key."""

    def run(self, data, inputs, out, ctx):
        (out / "maps.arrow").write_bytes((self.folder / "maps.arrow").read_bytes())


def write_truth(data: Dataset, folder: Path) -> None:
    """Write the true masks of `weak` at stride 4 as maps of the tagged classes."""
    view = data.split(Split.WEAK, supervision="full")
    with MapWriter(folder) as writer:
        for image_id in view.ids:
            mask, tags = view.mask(image_id), view.tags(image_id)
            maps = np.stack([(mask == tag).astype(np.float32)[::4, ::4] for tag in tags])
            writer.write(image_id, ScoreMaps(np.array(tags, np.int16), maps, view.size(image_id)))


@pytest.fixture(scope="module")
def truth(chimera: Dataset, tmp_path_factory: pytest.TempPathFactory) -> GivenScores:
    """Return a stage whose maps are the truth, a bit blurred."""
    folder = tmp_path_factory.mktemp("truth")
    write_truth(chimera, folder)
    return GivenScores(folder=folder)


@pytest.fixture(scope="module")
def few_true(few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> GivenScores:
    """Return the same of a few images."""
    folder = tmp_path_factory.mktemp("few_true")
    write_truth(few, folder)
    return GivenScores(folder=folder)


@pytest.fixture(scope="module")
def refined_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store for all refiners: those that have a training in common share it."""
    return tmp_path_factory.mktemp("refined")


@pytest.fixture(scope="module", params=REFINERS.names())
def refine(request: pytest.FixtureRequest) -> Any:
    """Return each refiner's `refine`."""
    return REFINERS.load(request.param).refine


def test_a_refiner_makes_masks_of_the_images_size_with_the_tags_alone(refine, truth, refined_store, chimera):
    """The masks keep the classes and stay good, with the refiner's own recipe."""
    run = pipeline([truth, *refine(META, 0.3)], chimera, refined_store)
    masks, view = run.latest(Kind.MASKS, Split.TRAIN), chimera.split(Split.TRAIN)
    right = []
    for image_id in view.ids:
        mask, truth = decode_mask(masks / f"{image_id}.png"), view.mask(image_id)
        assert mask.shape == truth.shape
        assert set(np.unique(mask).tolist()) <= {0, 255, *view.tags(image_id)}
        right.append((mask == truth)[truth != 255].mean())
    assert np.mean(right) > 0.85


def test_a_refiner_gives_the_same_bytes_again_and_for_any_number_of_processes(
    refine, few_true, refined_store, few, tmp_path
):
    first = pipeline([few_true, *tiny(refine(META, 0.3))], few, refined_store)
    second = pipeline(first.stages, few, tmp_path)
    second.machine = Machine(workers=2)
    for kind in {stage.produces for stage in first.stages}:
        assert contents(second.latest(kind, Split.TRAIN)) == contents(first.latest(kind, Split.TRAIN)), kind


@pytest.mark.slow
def test_a_refiner_works_in_bfloat16(refine, losses, convolutions, few_true, few, tmp_path):
    stages = [few_true, *tiny(refine(META, 0.3))]
    masks = pipeline(stages, few, tmp_path, precision="bf16").latest(Kind.MASKS, Split.TRAIN)
    assert losses == dict.fromkeys(losses, "torch.float32")
    # Without a network there is nothing to compute in bfloat16.
    assert not losses or all("torch.bfloat16" in types for types in convolutions.values()), convolutions
    view = few.split(Split.TRAIN)
    for image_id in view.ids:
        assert set(np.unique(decode_mask(masks / f"{image_id}.png")).tolist()) <= {0, 255, *view.tags(image_id)}


@pytest.mark.slow
def test_a_kill_in_every_stage_of_a_refiner_changes_nothing(
    refine, few_true, refined_store, few, tmp_path, monkeypatch
):
    done = pipeline([few_true, *tiny(refine(META, 0.3))], few, refined_store)
    done.latest(Kind.MASKS, Split.TRAIN)
    survive_kills(done, Kind.MASKS, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFINERS.names())
def test_every_refiner_takes_the_maps_of_every_method(method, localised, name, few):
    if method.one_step:
        pytest.skip("the method makes masks itself")
    stages = [*localised.stages, *tiny(REFINERS.load(name).refine(META, method.fixed_threshold))]
    run = replace(localised, stages=stages, scope={Kind.SCORES: Split.TRAIN}, on_weak=len(localised.stages))
    masks = run.latest(Kind.MASKS, Split.TRAIN)
    view = few.split(Split.TRAIN)
    for image_id in view.ids:
        assert set(np.unique(decode_mask(masks / f"{image_id}.png")).tolist()) <= {0, 255, *view.tags(image_id)}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_weights")
@pytest.mark.parametrize("backbone", ["squeezenet", "resnet50", "vgg16"])
def test_every_refiner_works_on_every_kind_of_backbone(refine, backbone, refined_store, tmp_path):
    """Strides and channels are read from it; no square image, and one without any class."""
    if not any(isinstance(stage, TrainingStage) for stage in refine(META, 0.3)):
        pytest.skip("the refiner trains no network")
    labels = {n: (1 + n % 2,) if n else () for n in range(4)}
    scenes = {f"i{n}": random_scene(n, 72, 88, labels[n]) for n in range(4)}
    images, masks = ({i: scene[k] for i, scene in scenes.items()} for k in (0, 1))
    data = FolderDataset(tmp_path / "data", images, masks)
    (tmp_path / "scores").mkdir()
    with MapWriter(tmp_path / "scores") as writer:
        for image_id, mask in masks.items():
            tags = data.tags(image_id)
            maps = np.array([(mask == tag)[::4, ::4] for tag in tags], np.float32).reshape(len(tags), 18, 22)
            writer.write(image_id, ScoreMaps(np.array(tags, np.int16), maps, mask.shape))
    meta = Meta(classes=2, long_side=88, backbone=backbone, weights="none")
    given = GivenScores(folder=tmp_path / "scores")
    stages: list[Any] = [given, *refine(meta, 0.3)]
    stages = [replace(s, epochs=1, batch=4) if isinstance(s, TrainingStage) else s for s in stages]
    found = pipeline(stages, data, refined_store).latest(Kind.MASKS, Split.TRAIN)
    assert not decode_mask(found / "i0.png").any()
    assert decode_mask(found / "i1.png").shape == (72, 88)


@pytest.mark.parametrize("name", DATASETS.names())
def test_a_data_set_says_what_is_missing_where_there_is_none(name, tmp_path):
    with pytest.raises(Exception, match=str(tmp_path)) as caught:
        DATASETS.load(name).open(tmp_path)
    assert type(caught.value).__name__ in ("DataError", "ConfigError")


def examples_of_data_sets(folder: Path) -> list[Path]:
    """Return one small data set in each layout; a data set in a new layout adds its own."""
    from seedbed.datasets.chimera import generate

    roots = [make_voc(folder / "voc"), make_own(folder / "own")]
    for layout in ("voc", "coco"):
        generate(folder / f"chimera-{layout}", layout=layout, images=20, size=48, seed=1)
        roots.append(folder / f"chimera-{layout}")
    return roots


def what_a_process_sees(view: SplitView) -> tuple[Any, ...]:
    """Return what a worker process reads of the first image."""
    image_id = view.ids[0]
    shown = view.mask(image_id).tobytes() if view.has_masks else b""
    return view.ids, view.tags(image_id), view.image(image_id).tobytes(), shown


def test_every_data_set_and_every_source_of_tags_works_in_worker_processes(tmp_path):
    opened: dict[str, list[Dataset]] = {name: [] for name in DATASETS.names()}
    for name, root in itertools.product(DATASETS.names(), examples_of_data_sets(tmp_path)):
        with contextlib.suppress(SeedbedError):
            data = DATASETS.load(name).open(root)
            # The classes are another data set's if its tags are unknown.
            data.tags(data.ids(Split.WEAK)[0])
            opened[name].append(data)
    assert all(opened.values()), "a data set opens none of the examples: add one to examples_of_data_sets"
    voc = DATASETS.load("voc2012")
    rows = {i: np.isin(np.arange(1, 21), labels).astype(np.float32) for i, labels in LABELS.items()}
    np.save(tmp_path / "text.npy", rows)
    np.save(tmp_path / "whole.npy", {int(i.replace("_", "")): row for i, row in rows.items()})
    (tmp_path / "tags.csv").write_text("image_id,classes\n" + "".join(f"{i},dog\n" for i in LABELS))
    sources = [voc.open(tmp_path / "voc", tags=tmp_path / f) for f in ("text.npy", "whole.npy", "tags.csv")]
    sources.append(voc.open(make_voc(tmp_path / "masks", xml=False)))
    datasets = [*itertools.chain(*opened.values()), *sources]
    assert {"Annotations/*.xml", "text.npy", "whole.npy", "tags.csv", "masks"} <= {d.tag_source for d in datasets}
    views = [data.split(split) for data in datasets for split in (Split.WEAK, Split.VAL)]
    assert list(map_in_order(what_a_process_sees, views, 2)) == [what_a_process_sees(view) for view in views]


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_a_data_set_keeps_the_protocol(layout, tmp_path):
    from seedbed.datasets.chimera import DATASET, generate

    root = tmp_path / layout
    generate(root, layout=layout, images=40, size=64, seed=1)
    data = DATASET.open(root)
    for split in (Split.WEAK, Split.TUNE, Split.TRAIN, Split.VAL):
        view = data.split(split)
        image_id = view.ids[0]
        image = view.image(image_id)
        assert image.dtype == np.uint8
        assert image.shape == (*view.size(image_id), 3)
        assert all(1 <= tag <= len(data.classes) for tag in view.tags(image_id))
        if split is Split.WEAK:
            with pytest.raises(MaskForbiddenError, match="'weak' shows no masks"):
                view.mask(image_id)
        else:
            assert view.mask(image_id).shape == view.size(image_id)
    assert set(data.ids(Split.TUNE)) <= set(data.ids(Split.TRAIN)) <= set(data.ids(Split.WEAK))
    assert not set(data.ids(Split.VAL)) & set(data.ids(Split.WEAK))
    assert data.split(Split.WEAK, supervision="full").mask(data.ids(Split.WEAK)[0]).dtype == np.uint8
    assert data.tag_source
    assert data.mask_source
    assert data.digest() == DATASET.open(root).digest()
