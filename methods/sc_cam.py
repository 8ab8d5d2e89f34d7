"""SC-CAM: classes are split into sub-categories by clustering, and a classifier of both makes better maps.

Paper: Chang et al., "Weakly-Supervised Semantic Segmentation via Sub-category Exploration", CVPR 2020; chapter 3
of Yu-Ting Chang's thesis, whose numbering is used here; the authors' code (PyTorch).

Each round: (1) features of all images of `weak` from the previous round's network (round 0 is CAM), the mean
over positions of its last features; (2) k-means over the images of each class, with K clusters, which gives every
image one sub-category for each of its classes (Equation 3.2); (3) a network with two classifiers, for
classes and for sub-categories, trained on both (Equation 3.3: L_p + λ L_s, each mean over its own classes). The
maps are those of the classes' classifier.

Choices where paper and code differ (docs/methods.md, SC-CAM):
- The code trains by SGD with 0.01, the paper says Adam with 1e-3: `optimiser=adam`, `lr=0.001`.
- No 3×3 convolution of 512 channels, as in the code.
- Each round begins with ImageNet weights, as in the code; Algorithm 1 may also mean the last round's weights.
- The code's rounds take the networks of epochs 31, 41 and 51 of 61, for which no reason is known
  (`TrainSubcategories.stop_at`; `none`: the last epoch). On other backbones than ResNet-38: the last epoch.
- The maps are saved in full; the code's files hold them cut at 0.15.

Departures, all of them settings:
- A class with fewer images than K has as many clusters as images.
- Backbones other than the published ResNet-38 train by CAM's recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from PIL import Image
from torch import Tensor, nn

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.records import Record, write_records
from seedbed.benchmark.evaluation.stages import RECORDS_FILE
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.pipeline.store import reading
from seedbed.benchmark.training.checkpoint import load_network
from seedbed.benchmark.training.examples import Examples
from seedbed.benchmark.training.inference import multi_scale
from seedbed.benchmark.training.loop import Batch
from seedbed.datasets.base import Dataset, Split, SplitView
from seedbed.datasets.classes import class_key
from seedbed.methods.cam import (
    CamNetwork,
    InferCam,
    TrainCam,
    classifier_settings,
    inference_settings,
    multi_label_soft_margin,
)

FILE = "subcategories.parquet"
SCHEMA = pa.schema(
    [("id", pa.string()), ("label", pa.int16()), ("cluster", pa.int16()), ("distance", pa.float32())]
)
"""One row per image and class: the image's id, the class's label 1..C, its cluster 0..K−1, and how far the image's
feature is from the cluster's centre. The metadata `clusters` is K."""


@dataclass(frozen=True)
class Subcategories:
    """The clusters of all images of `weak`."""

    clusters: int
    """K, the same for all classes."""
    rows: list[tuple[str, int, int, float]]
    """Image id, label, cluster, distance."""

    def write(self, folder: Path) -> None:
        """Write `subcategories.parquet`."""
        rows = [dict(zip(SCHEMA.names, row, strict=True)) for row in self.rows]
        schema = SCHEMA.with_metadata({"clusters": str(self.clusters)})
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Subcategories:
        """Read what `write` wrote."""
        with reading(folder / FILE) as path:
            table = pq.read_table(path)
            return cls(
                int(table.schema.metadata[b"clusters"]), list(zip(*table.to_pydict().values(), strict=True))
            )

    def table(self, ids: Sequence[str], classes: int) -> Tensor:
        """Return the sub-category tags of images, float32 (N, C · K) of 0 and 1."""
        place = {image_id: row for row, image_id in enumerate(ids)}
        tags = torch.zeros(len(ids), classes * self.clusters)
        for image_id, label, cluster, _ in self.rows:
            tags[place[image_id], (label - 1) * self.clusters + cluster] = 1
        return tags


def cluster(features: NDArray[np.floating], clusters: int, restarts: int = 10) -> tuple[NDArray, NDArray]:
    """Return cluster int (N,) and distance from its centre (N,) of features (N, F), by k-means.

    k-means++ with `restarts` restarts, at most 300 iterations, a fixed seed, and one thread, so that the order of
    sums does not depend on the number of cores. At most N clusters.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        means = KMeans(min(clusters, len(features)), n_init=restarts, max_iter=300, random_state=0)
        distances = means.fit_transform(features.astype(np.float64))
    return distances.argmin(1), distances.min(1)


@dataclass(frozen=True, kw_only=True)
class ClusterSubcategories(Stage):
    """Split each class of `weak` into clusters of the network's features."""

    version = 3
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.TAGS
    seeded = False

    clusters: int = hp(
        10, CategoricalDistribution((5, 10, 20, 50)), low=1, high=1000, source="Section 3.3.3: K = 10; Figure 3.4"
    )
    restarts: int = hp(10, low=1, high=1000, source="authors' code: scikit-learn's default of that time")
    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels; 0 is the image's own (code)")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the Subcategories. Raises DataError if no image has a tag."""
        view = data.split(Split.WEAK)
        features = self.features(view, inputs[Kind.CHECKPOINT], ctx)
        rows: list[tuple[str, int, int, float]] = []
        for label in range(1, len(view.classes) + 1):
            ids = [image_id for image_id in view.ids if label in view.tags(image_id)]
            if ids:
                found, distances = cluster(np.stack([features[i] for i in ids]), self.clusters, self.restarts)
                rows += [(i, label, int(c), float(d)) for i, c, d in zip(ids, found, distances, strict=True)]
        if not rows:
            raise DataError(f"{data.display_name}: no image of `weak` has a tag; there is nothing to cluster")
        Subcategories(self.clusters, rows).write(out)

    def features(self, view: SplitView, checkpoint: Path, ctx: Context) -> dict[str, NDArray[np.float32]]:
        """Return the features (F,) of each image at scale 1, averaged over positions."""
        network = cast(CamNetwork, load_network(checkpoint, ctx.device))
        pooled = multi_scale(
            lambda images: network.backbone(images).mean((2, 3), keepdim=True),
            view,
            scales=(1.0,),
            flip=False,
            long_side=self.long_side,
            grid=lambda *_: (1, 1),
            ctx=ctx,
            label="ClusterSubcategories",
        )
        return {image_id: feature[:, 0, 0].cpu().numpy() for image_id, feature in pooled}


class SubcategoryNetwork(CamNetwork):
    """CAM's network with a second classifier, for K sub-categories of each class."""

    def __init__(
        self, backbone: str, classes: int, stride: int, dropout: float, pretrained: bool, clusters: int
    ) -> None:
        super().__init__(backbone, classes, stride, dropout, pretrained)
        self.arguments["clusters"] = clusters
        self.subcategories = nn.Conv2d(self.backbone.channels, classes * clusters, 1, bias=False)

    def classifiers(self) -> list[nn.Conv2d]:
        """Return the two classifiers."""
        return [self.classifier, self.subcategories]

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of classes (B, C) and of sub-categories (B, C · K)."""
        features = self.dropout(self.backbone(images)).mean((2, 3), keepdim=True)
        return self.classifier(features)[:, :, 0, 0], self.subcategories(features)[:, :, 0, 0]


@dataclass(frozen=True, kw_only=True)
class TrainSubcategories(TrainCam):
    """Train a fresh network on the tags of `weak` and on their sub-categories."""

    version = 3
    consumes: ClassVar[tuple[Kind, ...]] = (Kind.TAGS,)

    subcategory_weight: float = hp(5.0, low=0, high=1000, source="Section 3.3.3: λ = 5")
    stop_at: int | None = hp(
        None, low=1, high=10_000, source="authors' code: epoch 31, 41, 51 of 61; none: the last"
    )

    @property
    def stop_after(self) -> int:
        """Number of epochs to run."""
        return min(self.stop_at or self.epochs, self.epochs)

    def network(self, classes: int, inputs: Mapping[Kind, Path]) -> CamNetwork:
        """Return a network for the clusters' number of sub-categories."""
        clusters = Subcategories.read(inputs[Kind.TAGS]).clusters
        pretrained = self.weights != "none"
        return SubcategoryNetwork(self.backbone, classes, self.stride, self.dropout, pretrained, clusters)

    def losses(self, network: CamNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return the two terms of Equation 3.3, each a mean over its classes."""
        classes, subcategories = cast(SubcategoryNetwork, network).both(batch["image"])
        return {
            "classification": multi_label_soft_margin(classes, batch["tags"]),
            "subcategories": self.subcategory_weight
            * multi_label_soft_margin(subcategories, batch["subcategories"]),
        }

    def examples(self, data: Dataset, inputs: Mapping[Kind, Path], ctx: Context) -> Examples:
        """Return CAM's examples, each with the tags of its sub-categories."""
        view = data.split(Split.WEAK)
        tags = Subcategories.read(inputs[Kind.TAGS]).table(view.ids, len(view.classes))
        return SubcategoryExamples(super().examples(data, inputs, ctx), tags)


class SubcategoryExamples(Examples):
    """Examples with `subcategories` float32 (C · K)."""

    def __init__(self, examples: Examples, tags: Tensor) -> None:
        super().__init__(examples.view, examples.transform, examples.seed)
        self.subcategories = tags

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        return {**super().__getitem__(place), "subcategories": self.subcategories[place[1]]}


@dataclass(frozen=True, kw_only=True)
class ShowSubcategories(Stage):
    """Measure the sizes of the last round's clusters, and draw them (Figures 3.5, 3.6, 3.9–3.11).

    Records of level `subcategories`: `share`, the share of a class's images in its cluster `CLASS.k`.
    Pictures: a contact sheet `clusters_CLASS.png` for the classes with most images, one row per cluster, with the
    images nearest its centre first; and `tsne.png` if `tsne`.
    """

    version = 1
    consumes = (Kind.CHECKPOINT, Kind.TAGS)
    produces = Kind.RECORDS
    seeded = False

    sheets: int = hp(20, low=0, high=1000, source="how many classes get a contact sheet")
    columns: int = hp(8, low=1, high=100, source="images a cluster on a sheet")
    tsne: bool = hp(False, source="Figure 3.6: t-SNE of the weights of the sub-categories' classifier")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the records and the pictures."""
        view = data.split(Split.WEAK)
        subcategories = Subcategories.read(inputs[Kind.TAGS])
        members: dict[int, dict[int, list[tuple[float, str]]]] = {}
        for image_id, label, number, distance in subcategories.rows:
            members.setdefault(label, {}).setdefault(number, []).append((distance, image_id))
        sizes = {label: sum(map(len, clusters.values())) for label, clusters in members.items()}
        records = [
            Record(
                "subcategories",
                str(ctx.split),
                "share",
                "none",
                f"{view.classes[label - 1]}.{number}",
                len(found) / sizes[label],
                len(found),
            )
            for label, clusters in sorted(members.items())
            for number, found in sorted(clusters.items())
        ]
        write_records(out / RECORDS_FILE, records)
        for label in sorted(sizes, key=lambda label: (-sizes[label], label))[: self.sheets]:
            rows = [[i for _, i in sorted(found)[: self.columns]] for _, found in sorted(members[label].items())]
            contact_sheet(view, rows, self.columns).save(
                out / f"clusters_{class_key(view.classes[label - 1])}.png"
            )
        if self.tsne:
            network = cast(SubcategoryNetwork, load_network(inputs[Kind.CHECKPOINT]))
            draw_tsne(network.subcategories.weight[:, :, 0, 0].detach().numpy(), view.classes, out / "tsne.png")


def contact_sheet(view: SplitView, rows: Sequence[Sequence[str]], columns: int, side: int = 64) -> Image.Image:
    """Return a picture of one row of thumbnails for each list of image ids."""
    sheet = Image.new("RGB", (columns * (side + 2), len(rows) * (side + 2)), "white")
    for row, ids in enumerate(rows):
        for column, image_id in enumerate(ids):
            thumbnail = Image.fromarray(view.image(image_id))
            thumbnail.thumbnail((side, side))
            sheet.paste(thumbnail, (column * (side + 2), row * (side + 2)))
    return sheet


def draw_tsne(weights: NDArray[np.float32], classes: Sequence[str], path: Path) -> None:
    """Draw t-SNE of the weights (C · K, F) of the sub-categories' classifier, one colour per class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(weights) - 1) / 3)
    with threadpool_limits(1):
        places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(weights)
    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, group) in enumerate(zip(classes, np.split(places, len(classes)), strict=True)):
        marker = "osD^v<>ph*"[number // 10 % 10]
        # matplotlib reads text between two dollar signs as mathematics.
        text = name.replace("$", r"\$")
        axes.scatter(group[:, 0], group[:, 1], s=16, marker=marker, color=f"C{number % 10}", label=text)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(fontsize="small", ncols=1 + len(classes) // 25, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)


STOPS: dict[str, tuple[int, ...]] = {"resnet38": (31, 41, 51)}
"""Epochs after which the authors' code takes the networks of rounds 1, 2, 3; later rounds follow the last."""


@dataclass(frozen=True)
class ScCam(Method):
    """Rounds of clustering and of training on the clusters."""

    name: str = "sc_cam"
    paper: str = "Chang et al., CVPR 2020"
    one_step: bool = False
    fixed_threshold: float = 0.15
    rounds: int = hp(3, low=0, high=10, source="Algorithm 1 and Table 3.2: 3; 0 is CAM")

    def localise(self, meta: Meta) -> list[Stage]:
        """Train CAM's classifier, then cluster and train again in each round, then infer the last one's maps."""
        stages: list[Stage] = [TrainCam(**classifier_settings(meta))]
        settings = classifier_settings(meta, TrainSubcategories)
        stops = STOPS.get(meta.backbone, (None,))
        for number in range(self.rounds):
            stop = stops[min(number, len(stops) - 1)]
            stages += [
                ClusterSubcategories(long_side=meta.size),
                TrainSubcategories(**settings, stop_at=stop),
            ]
        return [*stages, InferCam(**inference_settings(meta))]

    def measurements(self, meta: Meta) -> list[Stage]:
        """Show the clusters."""
        return [ShowSubcategories()] if self.rounds else []


METHOD = ScCam()
