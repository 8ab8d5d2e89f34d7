"""IRN (semantic part): a network learns where classes end, and its random walk does not cross those edges.

Paper: Ahn, Cho & Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR
2019, and the authors' code (docs/methods.md, IRN).

Labels: the maps cut at 0.30 and at 0.05, each after a dense CRF (preset `irn`); foreground of the first is
foreground, background of both is background, the rest is 255. Network: methods/refine/irn/network.py; two cells
belong together if no edge lies between them. Walk at stride 4: v·T^256 of the maps times (1 − edge), T from
affinities in radius 5 to the power 10. The result is enlarged, divided by its maximum over all classes, and cut at
0.25.

The code reaches 64.9 to 66.0 mIoU on `train`; the paper's 66.5 also has a dense CRF, several scales and flips,
according to the author. This refiner is the code, `irn_crf` adds the CRF.

Departures:
- The displacement branch, which shares no weights with the edges and finds instances, is left out.
- Published for ResNet-50 with frozen ImageNet weights. Other backbones are read after every block, except VGG-16's
  fc6 and fc7; blocks finer than stride 4 are averaged; ResNet-38 has stride 8. Without pretrained weights the
  backbone learns too (`TrainIrn.freeze_backbone`).
- `tiny` and `squeezenet` use AdamW. The recipe and thresholds of `tiny` were found by trial on Chimera with the
  maps of CAM, whose best threshold there is 0.57, not 0.15. It walks 16 steps: 256 spread scores all over the 24 ×
  24 cells of its images. The recipe of `squeezenet` is a first guess.
- Images are scaled from the data set's median size, in the code from their own size; VOC's have one size.
- Maps are stored in cells of 4 pixels (`WalkIrn.cell`), which take 1/16 of the space of the code's full size
  (`WalkIrn.cell=1`). They are divided by the maximum at full size, as in the code.
- `WalkIrn.mirrored=canvas` flips images after they are padded. The code flips before, so the mirror image's cells
  lie up to three pixels off unless the width is a multiple of 4.
- Crop and radius of the training shrink with the data set's images (or `--size`).
- A method's own background channel is used only for the labels, if it exceeds the constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor

from seedbed.benchmark.evaluation.maps import MapReader, MapWriter, ScoreMaps, opened
from seedbed.benchmark.evaluation.threshold import SelectThreshold
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Stage
from seedbed.benchmark.training.augmentation import segmentation
from seedbed.benchmark.training.checkpoint import load_network, save_network
from seedbed.benchmark.training.examples import Examples
from seedbed.benchmark.training.inference import pad, padded_images
from seedbed.benchmark.training.loop import Batch, ParameterGroup, TrainingStage, fit, parameter_groups
from seedbed.benchmark.training.precision import autocast
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import IGNORE_INDEX, Dataset, Split, SplitView
from seedbed.datasets.io.images import write_mask
from seedbed.methods.backbones.base import initialise
from seedbed.methods.common.recipes import recipe_of, training_recipe
from seedbed.methods.refine.affinity import (
    ClassScores,
    affinity_losses,
    check_grid,
    fitting_radius,
    on_image,
    stored_scores,
)
from seedbed.methods.refine.crf import PRESETS, dense_crfs, label_unary
from seedbed.methods.refine.irn.network import CELL, STRIDE, EdgeNetwork, affinities, path_affinities
from seedbed.methods.refine.none import ThresholdMasks
from seedbed.methods.refine.random_walk import pair_offsets, transition_matrix, walk
from seedbed.methods.segmentation.stages import PseudoMasks

Mirrored = Literal["image", "canvas"]


@dataclass(frozen=True, kw_only=True)
class IrnLabels(Stage):
    """Labels of the pixels whose class is sure, else 255; one palette PNG per image."""

    version = 1
    consumes = (Kind.SCORES,)
    produces = Kind.CONFIDENT_LABELS
    seeded = False

    foreground_threshold: float = hp(
        0.30, FloatDistribution(0.15, 0.6), low=0, high=1, on_request=True, source="IRN code"
    )
    background_threshold: float = hp(
        0.05, FloatDistribution(0.0, 0.3), low=0, high=1, on_request=True, source="IRN code"
    )
    iterations: int = hp(10, low=1, high=100, source="IRN code")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the labels of every image of `weak`."""
        view = data.split(ctx.split)
        ctx.for_each_image(partial(self.label, view, inputs[Kind.SCORES], out), view.ids, "IrnLabels")

    def label(self, view: SplitView, maps: Path, out: Path, image_id: str) -> None:
        """Make and write the labels of one image."""
        scores = ClassScores.of(opened(maps).read(image_id))
        labels = np.array([0, *scores.labels], np.uint8)
        seeds = [cut(scores, threshold) for threshold in (self.foreground_threshold, self.background_threshold)]
        unaries = [label_unary(seed, len(labels)) for seed in seeds]
        marginals = dense_crfs(view.image(image_id), unaries, PRESETS["irn"], self.iterations)
        foreground, background = (labels[stack.argmax(0)] for stack in marginals)
        confident = foreground.copy()
        confident[foreground == 0] = IGNORE_INDEX
        confident[(foreground == 0) & (background == 0)] = 0
        write_mask(out / f"{image_id}.png", confident)


def cut(scores: ClassScores, threshold: float) -> NDArray[np.uint8]:
    """Return positions uint8 (H, W): 1 + that of the best class if it exceeds the constant, else 0.

    It must also exceed the method's own background channel, if there is one.
    """
    constant = np.full((1, *scores.scores.shape[1:]), threshold, np.float32)
    if scores.own_background is not None:
        constant = np.maximum(constant, scores.own_background)
    return np.concatenate([constant, scores.scores]).argmax(0).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class TrainIrn(TrainingStage):
    """Train the edges on the confident labels of `weak`."""

    version = 3
    consumes = (Kind.CONFIDENT_LABELS,)
    produces = Kind.CHECKPOINT

    epochs: int = hp(3, low=1, high=10_000, source="IRN code")
    batch: int = hp(32, low=1, high=4096, source="IRN code")
    weight_decay: float = hp(1e-4, FloatDistribution(1e-6, 1e-2, log=True), low=0, high=1, source="IRN code")
    head_multiplier: float = hp(1.0, low=0, high=1000, source="IRN code: 0.1 for the edges")
    backbone: str = hp("resnet50", source="--backbone")
    weights: str = hp("imagenet", source="--weights; IRN code: ImageNet's, not the classifier's")
    freeze_backbone: bool = hp(True, source="IRN code")
    radius: int = hp(10, low=2, high=20, source="IRN, section 5.1: γ; cells")
    long_side: int = hp(500, low=8, high=4096, source="longer image side in pixels at scale 1")
    scale_low: float = hp(0.5, low=0.1, high=4, source="IRN code")
    scale_high: float = hp(1.5, low=0.1, high=4, source="IRN code")
    crop: int = hp(512, low=8, high=4096, source="IRN code")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_grid("TrainIrn", self.crop, CELL, self.radius, multiple=STRIDE)

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the trained EdgeNetwork."""
        torch.manual_seed(derive_seed(ctx.seed, "TrainIrn", "initialisation"))
        network = EdgeNetwork(self.backbone, self.weights != "none", self.freeze_backbone)
        initialise(network.backbone, self.backbone, self.weights, ctx)

        def losses(batch: Batch, _: float) -> dict[str, Tensor]:
            return self.losses(network, batch)

        scale = self.scale_low, self.scale_high
        transform = segmentation(scale, self.long_side, self.crop, resampling="bicubic")
        labels = PseudoMasks(inputs[Kind.CONFIDENT_LABELS])
        examples = Examples(data.split(Split.WEAK), transform, seed=ctx.seed, masks=labels)
        fit(network, losses, examples, self.groups(network), self, out, ctx)
        save_network(out, network)

    def groups(self, network: EdgeNetwork) -> list[ParameterGroup]:
        """Return the layers that learn: the edge branch, and the backbone unless frozen."""
        return parameter_groups(network.backbone, [network.reduce, network.combine], self)

    def losses(self, network: EdgeNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return the three parts of the affinity loss of a batch of `image` and `mask`, by name."""
        edges = network(batch["image"]).float().sigmoid()
        # IRN code: Pillow's nearest takes the pixel at a cell's centre, 4i + 2.
        masks = batch["mask"][:, None].float()
        labels = F.interpolate(masks, edges.shape[-2:], mode="nearest-exact")[:, 0].long()
        margin = self.radius - 1
        pairs = path_affinities(edges, self.radius, margin)
        return affinity_losses(pairs, labels, pair_offsets(self.radius), margin)


@dataclass(frozen=True, kw_only=True)
class WalkIrn(Stage):
    """Maps after the random walk, divided by their maximum over all classes and pixels of the image."""

    version = 4
    consumes = (Kind.SCORES, Kind.CHECKPOINT)
    produces = Kind.SCORES
    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels; 0 is the image's own")
    padded: int = hp(512, low=8, high=4096, source="IRN code: images are padded to so many pixels, both sides")
    mirrored: Mirrored = hp(
        "image", source="IRN code: images are flipped, then padded; canvas: padded, then flipped"
    )
    cell: int = hp(4, low=1, high=64, source="pixels of the image to a cell of the stored maps; IRN code: 1")
    radius: int = hp(5, low=2, high=20, source="IRN code: cells")
    power: float = hp(10.0, FloatDistribution(2, 20), low=1, high=100, source="IRN, section 5.1: β")
    steps: int = hp(256, IntDistribution(8, 512, log=True), low=1, high=10_000, source="IRN, section 5.1: t")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the maps of the context's split."""
        network = cast(EdgeNetwork, load_network(inputs[Kind.CHECKPOINT], ctx.device))
        maps, view = MapReader(inputs[Kind.SCORES]), data.split(ctx.split)
        images = padded_images(view, self.long_side, self.padded, STRIDE, ctx, "WalkIrn")
        with MapWriter(out) as writer:
            for image_id, image, size in images:
                with autocast(ctx):
                    found = edges(network, image, size, self.mirrored)
                writer.write(image_id, self.walked(found, maps.read(image_id), size))

    @torch.inference_mode()
    def walked(self, found: Tensor, maps: ScoreMaps, size: tuple[int, int]) -> ScoreMaps:
        """Return the maps after the walk; `found` are the edges (h, w) of the image at `size` pixels."""
        labels, stored = maps.labels[maps.labels != 0], stored_scores(maps)
        if len(labels) == 0:
            return ScoreMaps(labels, np.zeros((0, 1, 1), np.float32), maps.size)
        start = torch.from_numpy(stored).to(found.device)
        if start.shape[1:] != found.shape:
            start = F.interpolate(start[None], found.shape, mode="bilinear", antialias=True)[0]
        matrix = transition_matrix(affinities(found, self.radius), pair_offsets(self.radius), self.power)
        ended = walk(start * (1 - found), matrix, self.steps)
        # The maximum of the enlarged maps, which is lower than that of the cells.
        enlarged = F.interpolate(ended[None], scale_factor=CELL, mode="bilinear", align_corners=False)[0]
        greatest = enlarged[:, : size[0], : size[1]].max().clamp(min=torch.finfo(torch.float32).tiny)
        spacing = (CELL * maps.size[0] / size[0], CELL * maps.size[1] / size[1])
        return ScoreMaps(labels, on_image(ended / greatest, spacing, maps.size, self.cell), maps.size)


@torch.inference_mode()
def edges(network: EdgeNetwork, image: Tensor, size: tuple[int, int], mirrored: Mirrored = "image") -> Tensor:
    """Return the edges float32 (⌈h/4⌉, ⌈w/4⌉) in [0, 1] of an image (1, 3, H', W') that shows `size` = (h, w).

    The mean of the logits of the image and of its mirror image, each padded with the mean colour at the bottom and
    right. With `mirrored="canvas"` the padded image is mirrored as a whole: its padding is at the left, and its
    cells lie on those of the image exactly; else they are up to three pixels off unless w is a multiple of 4.
    """
    height, width = size
    rows, columns = -(-height // CELL), -(-width // CELL)
    flipped = image.flip(-1)
    if mirrored == "image":
        flipped = pad(image[..., :width].flip(-1), *image.shape[-2:])
    logits = network(torch.cat([image, flipped])).float()
    back = logits[1, :, :columns].flip(-1) if mirrored == "image" else logits[1].flip(-1)[:, :columns]
    return ((logits[0, :, :columns] + back) / 2).sigmoid()[:rows]


@dataclass(frozen=True)
class Irn:
    """IRN's labels, training and walk; then a threshold."""

    name: str = "irn"
    paper: str = "Ahn et al., CVPR 2019"

    def refine(self, meta: Meta, fixed_threshold: float) -> list[Stage]:
        """Label, train, walk, and cut at IRN's own threshold."""
        return [*walked_stages(meta), SelectThreshold(value=0.25), ThresholdMasks()]


def walked_stages(meta: Meta) -> list[Stage]:
    """Return the stages from a method's maps to the walked maps."""
    crop = meta.scaled(512, multiple=STRIDE)
    settings: dict[str, Any] = {
        "backbone": meta.backbone,
        "weights": meta.weights,
        "freeze_backbone": meta.weights != "none",
        "long_side": meta.size or meta.long_side,
        "crop": crop,
        "radius": fitting_radius(10, crop, CELL),
        # All layers that learn are new, with any weights.
        **training_recipe(TrainIrn, replace(meta, weights="none")),
    }
    return [
        IrnLabels(**recipe_of(IrnLabels, meta.backbone)),
        TrainIrn(**settings),
        WalkIrn(long_side=meta.size, padded=crop, **recipe_of(WalkIrn, meta.backbone)),
    ]


REFINER = Irn()
