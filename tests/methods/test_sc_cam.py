"""SC-CAM: the clusters, the two losses, the chain of rounds, what learns, and the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.pipeline.hparams import override
from seedbed.benchmark.pipeline.pipeline import Pipeline
from seedbed.benchmark.pipeline.stage import Context, Kind, Machine, Meta
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.training.checkpoint import save_network
from seedbed.datasets.base import Split
from seedbed.methods.cam import TrainCam, multi_label_soft_margin
from seedbed.methods.sc_cam import (
    METHOD,
    ClusterSubcategories,
    ScCam,
    ShowSubcategories,
    Subcategories,
    SubcategoryNetwork,
    TrainSubcategories,
    cluster,
)
from tests.helpers.fakes import FolderDataset, random_scene

META = Meta(classes=6, long_side=64, backbone="tiny", weights="none")
VOC = Meta(classes=20, long_side=500, backbone="resnet38", weights="sha256:x")
ROWS = [("a", 1, 1, 0.5), ("a", 3, 0, 0.0), ("b", 3, 1, 0.25)]


@pytest.fixture(scope="module")
def clustered(chimera, tmp_path_factory) -> Pipeline:
    """Return the pipeline of one round up to its clusters, with short trainings."""
    short = {"epochs": 1, "batch": 8}
    changes = {"TrainCam": short, "ClusterSubcategories": {"clusters": 3}, "TrainSubcategories": short}
    settings = {f"{stage}.{name}": value for stage, values in changes.items() for name, value in values.items()}
    stages = override([*ScCam(rounds=1).localise(META)], settings)
    store = Store(tmp_path_factory.mktemp("store"))
    run = Pipeline(stages, chimera, chimera.digest(), 0, store, Machine())
    run.latest(Kind.TAGS, Split.WEAK)
    return run


def test_the_published_recipe():
    """docs/methods.md, SC-CAM."""
    stages = METHOD.localise(VOC)
    names = [type(stage).__name__ for stage in stages]
    assert names == ["TrainCam", *["ClusterSubcategories", "TrainSubcategories"] * 3, "InferCam"]
    trainings = [stage for stage in stages if isinstance(stage, TrainSubcategories)]
    assert [stage.stop_after for stage in trainings] == [31, 41, 51]
    for stage in trainings:
        assert (stage.epochs, stage.batch, stage.lr, stage.head_multiplier) == (61, 16, 0.01, 10.0)
        assert (stage.optimiser, stage.momentum, stage.weight_decay, stage.biases) == ("sgd", 0.0, 5e-4, "psa")
        assert (stage.long_side_low, stage.long_side_high, stage.crop) == (256, 512, 224)
        assert (stage.subcategory_weight, stage.dropout) == (5.0, 0.5)
    first = stages[1]
    assert isinstance(first, ClusterSubcategories)
    assert (first.clusters, first.restarts, first.long_side) == (10, 10, 0)


def test_other_backbones_train_to_the_last_epoch():
    trainings = [stage for stage in METHOD.localise(META) if isinstance(stage, TrainSubcategories)]
    assert all(stage.stop_after == stage.epochs == 12 for stage in trainings)
    assert TrainSubcategories(epochs=5, stop_at=9).stop_after == 5


def test_no_rounds_are_plain_cam_and_fewer_rounds_are_the_beginning_of_more(chimera, tmp_path):
    from seedbed.methods.cam import METHOD as CAM

    assert ScCam(rounds=0).localise(META) == CAM.localise(META)
    assert ScCam(rounds=0).measurements(META) == []

    def keys(rounds: int) -> list[str]:
        stages = ScCam(rounds=rounds).localise(META)
        run = Pipeline(stages, chimera, "digest", 0, Store(tmp_path), Machine())
        return [run.step(position, Split.WEAK).key for position in range(1 + 2 * rounds)]

    assert keys(3)[:5] == keys(2)
    assert keys(2)[:3] == keys(1)
    assert len(set(keys(3))) == 7


def test_too_many_rounds_are_refused():
    with pytest.raises(ConfigError, match=r"ScCam\.rounds = 11: outside 0 … 10"):
        override([METHOD], {"ScCam.rounds": 11})


def test_clusters_are_found_with_the_distance_from_their_centre():
    features = np.array([[0.0, 0], [0, 2], [10, 0], [10, 2], [10, 1]], np.float32)
    found, distances = cluster(features, 2)
    assert found[0] == found[1] != found[2] == found[3] == found[4]
    np.testing.assert_allclose(distances, [1, 1, 1, 1, 0], atol=1e-9)
    assert set(cluster(features[:2], 10)[0]) == {0, 1}
    again = cluster(features, 2)
    assert np.array_equal(found, again[0])
    assert np.array_equal(distances, again[1])


def test_tags_of_subcategories_by_hand(tmp_path):
    Subcategories(2, ROWS).write(tmp_path)
    read = Subcategories.read(tmp_path)
    assert read == Subcategories(2, ROWS)
    assert read.table(("b", "a"), classes=3).tolist() == [[0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]]


def test_every_image_has_exactly_one_subcategory_for_each_of_its_classes(clustered, chimera):
    found = Subcategories.read(clustered.latest(Kind.TAGS, Split.WEAK))
    view = chimera.split(Split.WEAK)
    classes = len(view.classes)
    tags = found.table(view.ids, classes).unflatten(1, (classes, found.clusters)).sum(2)
    wanted = torch.zeros(len(view), classes)
    for row, image_id in enumerate(view.ids):
        wanted[row, [label - 1 for label in view.tags(image_id)]] = 1
    assert torch.equal(tags, wanted)


def test_a_training_sees_the_subcategories_of_its_image(clustered, chimera, tmp_path):
    from seedbed.benchmark.pipeline.stage import Context

    stage = clustered.stages[2]
    assert isinstance(stage, TrainSubcategories)
    folder = clustered.latest(Kind.TAGS, Split.WEAK)
    context = Context(seed=0, split=Split.WEAK, scratch=tmp_path)
    examples = stage.examples(chimera, {Kind.TAGS: folder}, context)
    plain = TrainCam.examples(stage, chimera, {}, context)
    view = chimera.split(Split.WEAK)
    table = Subcategories.read(folder).table(view.ids, len(view.classes))
    assert torch.equal(examples[0, 5]["subcategories"], table[5])
    assert torch.equal(examples[0, 5]["image"], plain[0, 5]["image"])
    assert len(examples) == len(plain)


def test_the_loss_is_equation_3_3_term_by_term():
    torch.manual_seed(0)
    logits, sub = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    tags, sub_tags = torch.randint(0, 2, (4, 3)).double(), torch.randint(0, 2, (4, 6)).double()

    def literal(x: torch.Tensor, y: torch.Tensor) -> float:
        total = 0.0
        for image in range(len(x)):
            for c in range(x.shape[1]):
                p = 1 / (1 + np.exp(-float(x[image, c])))
                total -= np.log(p) if y[image, c] else np.log(1 - p)
        return total / x.numel()

    class Fixed(SubcategoryNetwork):
        def both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return logits, sub

    network = Fixed("tiny", 3, 8, 0.0, False, clusters=2)
    batch = {"image": torch.zeros(4, 3, 16, 16), "tags": tags, "subcategories": sub_tags}
    losses = TrainSubcategories(subcategory_weight=5.0).losses(network, batch)
    assert float(losses["classification"]) == pytest.approx(literal(logits, tags), rel=1e-5)
    assert float(losses["subcategories"]) == pytest.approx(5 * literal(sub, sub_tags), rel=1e-5)
    assert float(losses["classification"]) == pytest.approx(float(multi_label_soft_margin(logits, tags)))


@pytest.mark.parametrize(("name", "head"), [("classification", "classifier"), ("subcategories", "subcategories")])
def test_each_loss_reaches_the_backbone_and_its_own_head(name, head):
    """docs/methods.md, gradients: backbone but its early layers, and heads."""
    network = SubcategoryNetwork("squeezenet", 3, 16, 0.0, True, clusters=2).train()
    frozen = {n for n, _ in network.backbone.named_parameters() if n.startswith("features.0.")}
    network.backbone.features[0].requires_grad_(False)
    batch = {"image": 255 * torch.rand(2, 3, 64, 64), "tags": torch.eye(3)[:2], "subcategories": torch.eye(6)[:2]}
    TrainSubcategories().losses(network, batch)[name].backward()
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    wanted = {f"backbone.{n}" for n, _ in network.backbone.named_parameters() if n not in frozen}
    assert reached == wanted | {f"{head}.weight"}


def test_forward_and_maps_are_those_of_the_classes():
    torch.manual_seed(0)
    network = SubcategoryNetwork("tiny", 3, 8, 0.0, False, clusters=4).eval()
    images = 255 * torch.rand(2, 3, 32, 32)
    classes, subcategories = network.both(images)
    torch.testing.assert_close(network(images), classes)
    assert network.maps(images).shape == (2, 3, 4, 4)
    assert subcategories.shape == (2, 12)
    assert network.arguments["clusters"] == 4


def test_contact_sheets_shares_and_the_weights_in_a_plane(clustered, chimera, tmp_path):
    show = ShowSubcategories(tsne=True, sheets=2, columns=4)
    run = Pipeline([*clustered.stages[:3], show], chimera, chimera.digest(), 0, clustered.store, Machine())
    folder = run.compute(run.step(3, Split.TRAIN)).path
    records = read_records(folder / "records.parquet")
    by_class: dict[str, float] = {}
    for record in records:
        assert record.label is not None
        assert record.value is not None
        name = record.label.partition(".")[0]
        by_class[name] = by_class.get(name, 0.0) + record.value
    assert by_class == pytest.approx(dict.fromkeys(by_class, 1.0))
    sheets = sorted(path.name for path in Path(folder).glob("clusters_*.png"))
    assert len(sheets) == 2
    sheet = np.asarray(Image.open(folder / sheets[0]))
    assert sheet.shape == (3 * 66, 4 * 66, 3)
    # The first thumbnail is the image nearest to the centre of the first cluster.
    label = chimera.classes.index(sheets[0].removeprefix("clusters_").removesuffix(".png")) + 1
    rows = Subcategories.read(run.latest(Kind.TAGS, Split.WEAK)).rows
    nearest = min((d, i) for i, of, number, d in rows if (of, number) == (label, 0))[1]
    np.testing.assert_array_equal(sheet[:64, :64], chimera.split(Split.WEAK).image(nearest))
    assert Image.open(folder / "tsne.png").size[0] > 300


def test_class_names_may_hold_any_character(tmp_path):
    """Pictures come after all trainings, so a name must not stop them."""
    names = ["cabinet/shelf", "tv & <co>", "a $b_{$", "_x", "größe"]
    images = {f"i{n}": random_scene(n, 16, 16, [1])[0] for n in range(len(names))}
    masks = {f"i{n}": np.full((16, 16), n + 1, np.uint8) for n in range(len(names))}
    data = FolderDataset(tmp_path / "data", images, masks, names)
    for folder in ("tags", "checkpoint", "out"):
        (tmp_path / folder).mkdir()
    rows = [(image_id, label, 0, 0.0) for label, image_id in enumerate(images, start=1)]
    Subcategories(2, rows).write(tmp_path / "tags")
    network = SubcategoryNetwork("tiny", len(names), 8, 0.0, False, clusters=2)
    save_network(tmp_path / "checkpoint", network)
    inputs = {Kind.TAGS: tmp_path / "tags", Kind.CHECKPOINT: tmp_path / "checkpoint"}
    context = Context(seed=0, split=Split.TRAIN, scratch=tmp_path)
    ShowSubcategories(tsne=True).run(data, inputs, tmp_path / "out", context)
    found = {path.name for path in (tmp_path / "out").glob("*.png")}
    written = ("cabinet_shelf", "tv _ _co_", "a _b___", "_x", "größe")
    assert found == {"tsne.png", *(f"clusters_{name}.png" for name in written)}
    shown = read_records(tmp_path / "out" / "records.parquet")
    assert [record.label for record in shown] == [f"{name}.0" for name in names]
