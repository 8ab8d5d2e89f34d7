"""SEAM: maps of an image and of its rescaled copy must agree, and the correlation of pixels refines them.

Paper: Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation",
CVPR 2020; the authors' code (PyTorch).

One network sees the image I and its copy A(I), A rescaling by 0.3. With z the class logits, l the tags, ŷ the
CAM, y the refined CAM, and ′ for what the network makes of A(I) (Sections 3.2 and 3.4):

    L     = L_cls + L_ER + L_ECR
    L_cls = ½ (ℓ(z, l) + ℓ(z′, l)), ℓ the multi-label soft margin
    L_ER  = ‖A(ŷ) − ŷ′‖₁
    L_ECR = ‖A(y) − ŷ′‖₁ + ‖A(ŷ) − y′‖₁, of the largest 20 % of the differences

The pixel correlation module (PCM, Section 3.3) has neither a softmax nor a residual connection:

    y_i = Σ_j w_ij ŷ_j / Σ_j w_ij,  w_ij = ReLU(θ_i · θ_j / (‖θ_i‖ ‖θ_j‖))

θ: a 1×1 convolution of the image and of two earlier feature maps, each reduced by a 1×1 convolution.
ŷ has a background channel, 1 − max_c ŷ_c. Where PCM and L_ECR read it, a location keeps only its best class.

What the code adds or decides, and Seedbed follows:
- Another loss: the mean of the lowest quarter of y's maximum over classes (`min_pooling_weight`; 0: the paper).
- Gradients: ŷ and the features are constants for PCM, ŷ is one in L_ECR. So L_cls and L_ER train backbone and
  classifier, L_ECR and the minimum pooling train only PCM.
- ‖·‖₁ is a mean: L_ER's over all classes, though absent ones are 0 on both sides, L_ECR's over background too. The
  hard 20 % are values of a location and a class, of each image.
- The losses read maps enlarged to their image: ReLU, less the minimum, divided by the range, absent classes 0, and
  resized to the copy. z is the mean of the enlarged logits. PCM reads ReLU(ŷ) divided by the maximum, of all
  classes, on the grid of the features.
- Inference: y, enlarged to the image at each scale, the mean over scales and flips, less its minimum, divided by
  its range. The threshold, 0.26, is that of the code's script.
- A only rescales; in the paper it is an affine transformation.

Departures, all of them settings:
- Backbones other than the published ResNet-38 train by CAM's recipe. `tiny` has a larger copy and a smaller weight
  of L_ER: of images of 64 pixels a copy at 0.3 has 2 × 2 cells, and from random weights L_ER wins over L_cls.
- PCM reads the two feature maps that PSA's affinity network reads first (ResNet-38: the activated inputs of b5 and
  b6, as in the code), resized to the grid of the CAM.
- Crop and image sizes are scaled down on smaller images. Maps are stored in cells of 4 pixels (`InferSeam.cell`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from seedbed.benchmark.evaluation.maps import MapWriter, ScoreMaps
from seedbed.benchmark.evaluation.records import Record, write_records
from seedbed.benchmark.evaluation.stages import RECORDS_FILE
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.training.checkpoint import load_network
from seedbed.benchmark.training.inference import multi_scale, one_value_per
from seedbed.benchmark.training.loop import Batch
from seedbed.datasets.base import Dataset
from seedbed.methods.cam import CamNetwork, TrainCam, classifier_settings, multi_label_soft_margin
from seedbed.methods.common.recipes import recipe_of

WIDTHS = (64, 128)
"""Channels of the two reduced feature maps (code); θ has their sum."""
AFFINITIES = 2**27
"""Number of affinities that are computed at once: 512 MiB in float32."""


class Branch(NamedTuple):
    """What the network makes of images (B, 3, H, W), enlarged to their size."""

    logits: Tensor
    """(B, C, H, W), before ReLU."""
    refined: Tensor | None
    """y, background first, (B, 1 + C, H, W), at least 0; None without PCM."""


class SeamNetwork(CamNetwork):
    """CAM's network with the pixel correlation module, or without it."""

    def __init__(
        self, backbone: str, classes: int, stride: int, dropout: float, pretrained: bool, pcm: bool
    ) -> None:
        super().__init__(backbone, classes, stride, dropout, pretrained)
        self.arguments["pcm"] = pcm
        self.pcm = pcm
        if not pcm:
            return
        self.taps = self.backbone.affinity_taps()[: len(WIDTHS)]
        if BACKBONES.load(backbone).fc6:
            # The affinity network dilates fc6, a CAM classifier does not.
            cast(Any, self.backbone).dilate_fc6(1)
        self.reduce = nn.ModuleList(
            nn.Conv2d(tap.channels, width, 1, bias=False) for tap, width in zip(self.taps, WIDTHS, strict=True)
        )
        self.embed = nn.Conv2d(3 + sum(WIDTHS), sum(WIDTHS), 1, bias=False)
        for layer in self.reduce:
            nn.init.kaiming_normal_(cast(nn.Conv2d, layer).weight)
        nn.init.xavier_uniform_(self.embed.weight, gain=4)

    def branch(self, images: Tensor) -> Branch:
        """Return logits and refined maps of images (B, 3, H, W), RGB in 0..255."""
        outputs = self.backbone.outputs(images)
        logits = self.classifier(self.dropout([*outputs.values()][-1]))
        size = (images.shape[-2], images.shape[-1])
        refined = resized(self.refine(images, outputs, logits), size) if self.pcm else None
        return Branch(resized(logits, size), refined)

    def refine(self, images: Tensor, outputs: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """Return y (B, 1 + C, h, w), whose gradient reaches only the convolutions of PCM."""
        grid = (logits.shape[-2], logits.shape[-1])
        seen = [resized(self.backbone.normalise(images), grid)]
        for tap, reduce in zip(self.taps, self.reduce, strict=True):
            features = tap.activation(outputs[tap.block]).detach()
            seen.append(resized(reduce(features).relu(), grid))
        return correlate(best_classes(peak_normalised(logits.detach())), self.embed(torch.cat(seen, 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C) of images (B, 3, H, W), RGB in 0..255."""
        return resized(self.locations(images), (images.shape[-2], images.shape[-1])).mean((2, 3))

    def maps(self, images: Tensor) -> Tensor:
        """Return localisation maps (B, C, H, W), unnormalised, at least 0: y, or without PCM ŷ."""
        branch = self.branch(images)
        return branch.logits.relu() if branch.refined is None else branch.refined[:, 1:]


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, K, h, w) at another size, bilinear, outermost pixels on outermost pixels, in float32.

    float64 stays.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def rescaled(images: Tensor, factor: float) -> Tensor:
    """Return A(I): images (B, 3, H, W) at ⌊factor · side⌋ pixels, at least 1."""
    height, width = (max(1, math.floor(side * factor)) for side in images.shape[-2:])
    return resized(images, (height, width))


def correlate(maps: Tensor, features: Tensor) -> Tensor:
    """Return the maps (B, K, h, w), each location the mean of all, weighted by ReLU of the cosine (Section 3.3).

    The cosine is that of the features (B, D, h, w) of two locations; 1e-5 is added to norms and sums of weights.
    Computes `AFFINITIES` weights at once, in float32, also under autocast, or in float64 if `features` are.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        values = maps.to(dtype).flatten(2)
        vectors = features.to(dtype).flatten(2)
        vectors = vectors / (torch.linalg.vector_norm(vectors, dim=1, keepdim=True) + 1e-5)
        images, _, cells = vectors.shape
        means = []
        for some in vectors.split(max(1, AFFINITIES // (images * cells)), 2):
            affinities = (vectors.mT @ some).relu()
            means.append(values @ (affinities / (affinities.sum(1, keepdim=True) + 1e-5)))
        return torch.cat(means, 2).unflatten(2, maps.shape[-2:])


def best_classes(foreground: Tensor) -> Tensor:
    """Return background 1 − max_c and the classes (B, 1 + C, h, w) of maps in [0, 1]; 0 but for the best class."""
    best = foreground.amax(1, keepdim=True)
    return torch.cat([1 - best, foreground * (foreground == best)], 1)


def peak_normalised(logits: Tensor) -> Tensor:
    """Return ŷ as PCM reads it: ReLU, divided by the maximum of the image and class, with 1e-5 as in the code."""
    maps = logits.to(torch.promote_types(logits.dtype, torch.float32)).relu()
    return (maps - 1e-5).relu() / (maps.amax((2, 3), keepdim=True) + 1e-5)


def range_normalised(maps: Tensor) -> Tensor:
    """Return maps (…, h, w) in [0, 1): ReLU, less the minimum and 1e-5, divided by the range + 1e-5 (code)."""
    maps = maps.relu()
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low - 1e-5).relu() / (high - low + 1e-5)


def compared(maps: Tensor, size: tuple[int, int], tags: Tensor) -> Tensor:
    """Return maps (B, K, H, W) as L_ER and L_ECR compare them: normalised, resized, 0 where tags (B, K) are."""
    return resized(range_normalised(maps), size) * tags[:, :, None, None]


def cross_loss(refined: Tensor, other: Tensor, share: float) -> Tensor:
    """Return one term of L_ECR: y (B, 1 + C, h, w) against ŷ (B, C, h, w) of the other branch, a constant.

    The mean of the largest `share` of the absolute differences of each image.
    """
    differences = (best_classes(other.detach()) - refined).abs().flatten(1)
    return differences.topk(max(1, int(differences.shape[1] * share))).values.mean()


def min_pooling_loss(refined: Tensor, tags: Tensor) -> Tensor:
    """Return the mean of the lowest quarter of max_c y over tagged classes (code), of y (B, 1 + C, H, W)."""
    highest = (refined[:, 1:] * tags[:, :, None, None]).amax(1).flatten(1)
    return highest.topk(max(1, highest.shape[1] // 4), largest=False).values.mean()


@dataclass(frozen=True, kw_only=True)
class TrainSeam(TrainCam):
    """Train classifier and PCM on the tags of `weak`, on each image and its rescaled copy."""

    version = 1

    epochs: int = hp(8, low=1, high=10_000, source="authors' code")
    batch: int = hp(8, low=1, high=4096, source="authors' code")
    lr: float = hp(0.01, FloatDistribution(1e-5, 1.0, log=True), low=0, high=100, source="authors' code")
    long_side_low: int = hp(448, low=8, high=4096, source="authors' code, in pixels of a 500-pixel image")
    long_side_high: int = hp(768, low=8, high=4096, source="authors' code, in pixels of a 500-pixel image")
    rescale: float = hp(0.3, FloatDistribution(0.2, 0.8), low=0.05, high=1, source="authors' code: A")
    equivariance_weight: float = hp(
        1.0, FloatDistribution(0.1, 10.0, log=True), low=0, high=1000, source="Section 3.4; 0: without ER"
    )
    pcm: bool = hp(True, source="Section 3.3; false: neither PCM nor L_ECR, the maps are CAMs")
    cross_weight: float = hp(
        1.0,
        FloatDistribution(0.1, 10.0, log=True),
        low=0,
        high=1000,
        when=("pcm", True),
        source="Section 3.4",
    )
    hard_share: float = hp(
        0.2,
        FloatDistribution(0.05, 1.0),
        low=0.001,
        high=1,
        when=("pcm", True),
        source="Section 3.4: 20 %; 1: without hard example mining",
    )
    min_pooling_weight: float = hp(
        1.0, FloatDistribution(0.0, 2.0), low=0, high=1000, when=("pcm", True), source="authors' code; paper: 0"
    )

    def network(self, classes: int, inputs: Mapping[Kind, Path]) -> CamNetwork:
        """Return a SeamNetwork."""
        return SeamNetwork(self.backbone, classes, self.stride, self.dropout, self.weights != "none", self.pcm)

    def losses(self, network: CamNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return L_cls, and L_ER, L_ECR and the minimum pooling with their weights."""
        images, tags = batch["image"], batch["tags"]
        smaller = rescaled(images, self.rescale)
        size = (smaller.shape[-2], smaller.shape[-1])
        first, second = (cast(SeamNetwork, network).branch(seen) for seen in (images, smaller))
        cams = [compared(branch.logits, size, tags) for branch in (first, second)]
        classification = [multi_label_soft_margin(branch.logits.mean((2, 3)), tags) for branch in (first, second)]
        losses = {"classification": torch.stack(classification).mean()}
        if self.equivariance_weight > 0:
            losses["equivariance"] = self.equivariance_weight * (cams[0] - cams[1]).abs().mean()
        if first.refined is None or second.refined is None:
            return losses
        if self.cross_weight > 0:
            known = torch.cat([torch.ones_like(tags[:, :1]), tags], 1)
            cross = [
                cross_loss(compared(refined, size, known), other, self.hard_share)
                for refined, other in ((first.refined, cams[1]), (second.refined, cams[0]))
            ]
            losses["cross"] = self.cross_weight * torch.stack(cross).sum()
        if self.min_pooling_weight > 0:
            lowest = [min_pooling_loss(refined, tags) for refined in (first.refined, second.refined)]
            losses["min_pooling"] = self.min_pooling_weight * torch.stack(lowest).mean()
        return losses


@dataclass(frozen=True, kw_only=True)
class InferSeam(Stage):
    """Localisation maps of a SeamNetwork, for the tags of each image."""

    version = 1
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.SCORES
    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels at scale 1; 0 is the image's own")
    scales: tuple[float, ...] = hp(
        (0.5, 1.0, 1.5, 2.0), low=0.1, high=4, source="authors' code", report_as="multi_scale"
    )
    flip: bool = hp(True, source="authors' code")
    cell: int = hp(4, low=1, high=64, source="pixels of the image to a cell of the stored maps; authors' code: 1")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the maps of the context's split."""
        network = cast(SeamNetwork, load_network(inputs[Kind.CHECKPOINT], ctx.device))
        view = data.split(ctx.split)
        with MapWriter(out) as writer:
            for image_id, maps in multi_scale(
                network.maps,
                view,
                scales=self.scales,
                flip=self.flip,
                long_side=self.long_side,
                grid=one_value_per(self.cell),
                ctx=ctx,
                label="InferSeam",
            ):
                tags = view.tags(image_id)
                scores = range_normalised(maps[[tag - 1 for tag in tags]]).cpu().numpy()
                writer.write(image_id, ScoreMaps(np.array(tags, np.int16), scores, view.size(image_id)))


@dataclass(frozen=True, kw_only=True)
class MeasureEquivariance(Stage):
    """Measure how far the maps of an image and of its rescaled copy are apart, which L_ER lowers."""

    version = 1
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.RECORDS
    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels; 0 is the image's own")
    rescale: float = hp(0.3, low=0.05, high=1, source="TrainSeam.rescale")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write `equivariance_error`: the mean absolute difference of the normalised maps of an image's classes.

        The maps are those of inference, at one scale, in cells of 4 pixels; the mean is over images with a tag.
        """
        network = cast(SeamNetwork, load_network(inputs[Kind.CHECKPOINT], ctx.device))
        view = data.split(ctx.split)

        def both(images: Tensor) -> Tensor:
            copies = network.maps(rescaled(images, self.rescale))
            return torch.cat([network.maps(images), resized(copies, (images.shape[-2], images.shape[-1]))], 1)

        errors = []
        for image_id, maps in multi_scale(
            both,
            view,
            scales=(1.0,),
            flip=False,
            long_side=self.long_side,
            grid=one_value_per(4),
            ctx=ctx,
            label="MeasureEquivariance",
        ):
            if tags := view.tags(image_id):
                pair = range_normalised(maps.unflatten(0, (2, -1))[:, [tag - 1 for tag in tags]])
                errors.append(float((pair[0] - pair[1]).abs().mean()))
        error = math.fsum(errors) / len(errors)
        record = Record("seed", str(ctx.split), "equivariance_error", "none", None, error, len(errors))
        write_records(out / RECORDS_FILE, [record])


def training_settings(meta: Meta) -> dict[str, Any]:
    """Return the settings of the training for a backbone: its recipe of SEAM, else that of CAM."""
    like_cam = {"epochs": TrainCam.epochs, "batch": TrainCam.batch, "lr": TrainCam.lr}
    return {**like_cam, **classifier_settings(meta, TrainSeam)}


@dataclass(frozen=True)
class Seam(Method):
    """Equivariant maps, refined by the correlation of pixels."""

    name: str = "seam"
    paper: str = "Wang et al., CVPR 2020"
    one_step: bool = False
    fixed_threshold: float = 0.26

    def localise(self, meta: Meta) -> list[Stage]:
        """Train the network, then infer its maps."""
        return [TrainSeam(**training_settings(meta)), InferSeam(long_side=meta.size)]

    def measurements(self, meta: Meta) -> list[Stage]:
        """Measure the equivariance of the maps."""
        recipe = recipe_of(MeasureEquivariance, meta.backbone)
        return [MeasureEquivariance(long_side=meta.size, **recipe)]


METHOD = Seam()
