"""AdvCAM: the image climbs towards a higher score of a class, and the maps of all its steps are added up.

Paper: Lee et al., "Anti-Adversarially Manipulated Attributions for Weakly and Semi-Supervised Semantic
Segmentation", CVPR 2021, arXiv 2103.08896; the authors' code (PyTorch). Nothing is trained: the classifier is that
of CAM, Mixup-CAM or SC-CAM (`AdvCam.classifier`).

For each class c of an image x⁰ = x, y_k the logit of class k and CAM the map of c:

    x^t = x^(t−1) + ξ ∇L                                                        (Equation 3: L = y_c)
    A = Σ_{t=0..T} CAM(x^t) / max Σ_{t=0..T} CAM(x^t)                           (Equation 4)
    L = y_c − Σ_{k≠c} y_k − λ ‖M ⊙ |CAM(x^(t−1)) − CAM(x⁰)|‖₁                   (Section 3.3)
    M = 1(CAM(x^(t−1)) > τ), CAM divided by its maximum                         (Section 3.3)

The second term keeps other classes from growing, the third what M has already found. M and x⁰'s map are constants
for the gradient.

Choices where paper and code differ, each a setting of `InferAdvCam` (docs/methods.md, AdvCAM):
- `gradient`: the code divides the gradient by its largest absolute value and steps by 0.08, the paper's equation
  has the gradient itself and its text a step of 0.008. Default: the code.
- `logits`: the code's logit is the mean of ReLU over locations, the paper's the classifier's. Default: the code.
- `mask_map`: the third term compares maps of Grad-CAM in the code, which are smaller than CAM's by the number of
  positive weights of the class (about a thousand in ResNet-50), and λ was chosen for them. Default: the code.
- `steps`: T is 27; the code adds up 27 maps, which is T = 26. Default: the paper.
- `small_share`: the code climbs half as many steps at scale 0.5; the paper does not say. Default: the code.

Only in the code: an image and its mirror image climb together (their logits and maps are added, the gradient is
divided by the maximum of both), in the normalised colours that the network's first convolution sees, and stay
between the lowest and the highest value of the step before.

Departures:
- The maps that are added up are CAM's, as in Equation 4; the code adds up Grad-CAM's, which weigh the two mirror
  images by their number of positive locations. With T = 0 the maps are those of CAM.
- Maps are kept at stride 4 in float16 (`InferCam.cell`), as those of CAM.
- `tiny` climbs at two scales, by few large steps, with a smaller λ (methods/backbones/tiny.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor

from seedbed.benchmark.evaluation.maps import MapReader, MapWriter, ScoreMaps
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.training.checkpoint import load_network
from seedbed.benchmark.training.inference import PIXELS_A_BATCH, one_value_per, padded_images, resize_image
from seedbed.benchmark.training.precision import INFERENCE_LAYOUT, autocast
from seedbed.datasets.base import Dataset, SplitView
from seedbed.methods.cam import METHOD as CAM
from seedbed.methods.cam import CamNetwork, InferCam, normalised_maps
from seedbed.methods.common.recipes import recipe_of
from seedbed.methods.mixup_cam import METHOD as MIXUP_CAM
from seedbed.methods.sc_cam import METHOD as SC_CAM

IMAGES_A_PART = 64
"""Images whose maps are saved together: what a kill loses, at most."""


@dataclass(frozen=True, kw_only=True)
class InferAdvCam(InferCam):
    """Localisation maps of a CAM classifier, added up while the image climbs, for the tags of each image."""

    version = 1

    steps: int = hp(
        27, IntDistribution(2, 40), low=0, high=1000, source="Section 4.1: T; the code: 26; 0: the maps of CAM"
    )
    step_size: float = hp(
        0.08,
        FloatDistribution(8e-3, 0.8, log=True),
        low=0,
        high=100,
        source="authors' code, in normalised colours; Section 4.1: ξ = 0.008",
    )
    gradient: Literal["normalised", "raw"] = hp(
        "normalised", source="authors' code: divided by its largest absolute value; raw: Equation 3"
    )
    logits: Literal["rectified", "plain"] = hp(
        "rectified", source="authors' code: mean of ReLU over locations; plain: the classifier's logit"
    )
    other_classes: bool = hp(True, source="Section 3.3: the logits of other classes are subtracted")
    mask_weight: float = hp(
        7.0, FloatDistribution(0.7, 70.0, log=True), low=0, high=1e6, source="Section 4.1: λ; 0: no mask"
    )
    mask_threshold: float = hp(0.5, FloatDistribution(0.2, 0.8), low=0, high=1, source="Section 4.1: τ")
    mask_map: Literal["grad_cam", "cam"] = hp(
        "grad_cam", source="authors' code: Grad-CAM; cam: the map that is added up, Section 3.3"
    )
    small_share: float = hp(
        0.5, low=0, high=1, source="authors' code: share of the steps at scale 0.5; here at all scales below 1"
    )

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the maps of the context's split; after a kill, continue with the images that are not saved yet."""
        network = cast(CamNetwork, load_network(inputs[Kind.CHECKPOINT], ctx.device).requires_grad_(False))
        view = data.split(ctx.split)
        parts = sorted(ctx.scratch.glob("part*"))
        saved = {image_id for part in parts for image_id in MapReader(part).ids}
        rest = replace(view, ids=tuple(image_id for image_id in view.ids if image_id not in saved))
        found = self.maps(network, rest, ctx)
        while some := list(islice(found, IMAGES_A_PART)):
            unfinished = ctx.scratch / "unfinished"
            unfinished.mkdir(exist_ok=True)
            write_maps(unfinished, some)
            parts.append(unfinished.rename(ctx.scratch / f"part{len(parts):06}"))
        readers = [MapReader(part) for part in parts]
        write_maps(out, ((image_id, reader.read(image_id)) for reader in readers for image_id in reader.ids))

    def maps(self, network: CamNetwork, view: SplitView, ctx: Context) -> Iterator[tuple[str, ScoreMaps]]:
        """Yield the id and the maps of each image."""
        for image_id, image, _ in padded_images(view, self.long_side, 1, 1, ctx, type(self).__name__):
            tags = view.tags(image_id)
            fused = self.fused(network, image, [tag - 1 for tag in tags], ctx)
            yield image_id, normalised_maps(fused, tags, view.size(image_id))

    def fused(self, network: CamNetwork, image: Tensor, classes: Sequence[int], ctx: Context) -> Tensor:
        """Return the mean map over steps, scales and flips, float32 (C, h, w), of an image (1, 3, H, W).

        `classes` are indices 0..C−1; the maps of other classes are 0.
        """
        height, width = image.shape[-2:]
        pixels = image[0].to("cpu", torch.uint8)
        grid = one_value_per(self.cell)("", height, width)
        fused = torch.zeros(network.classifier.out_channels, *grid, device=image.device)
        count = 0
        for scale in self.scales:
            scaled = resize_image(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))
            views = scaled[None].to(image.device).float()
            if self.flip:
                views = torch.cat([views, views.flip(-1)])
            steps = self.steps if scale >= 1 else int(self.small_share * self.steps)
            count += len(views) * (steps + 1)
            at_once = a_batch(views, ctx)
            for first in range(0, len(classes), at_once):
                some = torch.tensor(classes[first : first + at_once], device=image.device)
                maps = self.climb(network, views, some, steps, ctx)
                maps = F.interpolate(maps, grid, mode="bilinear", align_corners=False)
                fused[some] += unflipped(maps).sum(1)
        return fused / count

    def climb(self, network: CamNetwork, views: Tensor, classes: Tensor, steps: int, ctx: Context) -> Tensor:
        """Return Σ CAM(x^t) over t = 0..`steps` of each class, float32 (K, V, h, w) (Equations 3 and 4).

        `views` is (V, 3, H, W), RGB in 0..255: an image, and its mirror image if V is 2. `classes` is (K,).
        """
        start = network.backbone.normalise(views)
        colours = 255 * network.backbone.normalise.std
        positive_weights = (network.classifier.weight[classes, :, 0, 0] > 0).sum(1)
        # What the climbing adds to the normalised colours.
        change = start.new_zeros(len(classes), *views.shape)

        def class_logits() -> Tensor:
            images = (views + colours * change).flatten(0, 1).contiguous(memory_format=INFERENCE_LAYOUT)
            with autocast(ctx):
                found = network.locations(images)
            return found.float().unflatten(0, (len(classes), len(views)))

        total: Tensor | float = 0.0
        first: Tensor | None = None
        for _ in range(steps):
            change.requires_grad_()
            found = class_logits()
            maps = of_class(found, classes).relu()
            total = total + self.added(maps.detach())
            compared = grad_cam(maps, positive_weights) if self.mask_map == "grad_cam" else maps
            compared = unflipped(compared).sum(1)
            first = compared.detach() if first is None else first
            (gradient,) = torch.autograd.grad(self.objective(found, classes, compared, first).sum(), change)
            change = self.step(start + change.detach(), gradient) - start
        with torch.no_grad():
            return total + self.added(of_class(class_logits(), classes).relu())

    def added(self, maps: Tensor) -> Tensor:
        """Return the maps as they are added up."""
        return maps.sqrt() if self.square_root else maps

    def objective(self, logits: Tensor, classes: Tensor, maps: Tensor, first: Tensor) -> Tensor:
        """Return L for each class (K,) (Section 3.3), summed over the views.

        `logits` is (K, V, C, h, w); `maps` (K, h, w) the map of the class at this step, `first` that of step 0.
        """
        pooled = (logits.relu() if self.logits == "rectified" else logits).mean((3, 4)).sum(1)
        own = (pooled * F.one_hot(classes, pooled.shape[1])).sum(1)
        others = pooled.sum(1) - own if self.other_classes else 0.0
        return own - others - self.mask_weight * masked_change(maps, first, self.mask_threshold)

    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Return images (K, V, 3, H, W) in normalised colours after one step up the gradient (Equation 3)."""
        all_but_first = tuple(range(1, images.ndim))
        if self.gradient == "normalised":
            gradient = gradient / (gradient.abs().amax(all_but_first, keepdim=True) + 1e-12)
        low, high = (bound(images, all_but_first, keepdim=True) for bound in (torch.amin, torch.amax))
        return (images + self.step_size * gradient).clamp(low, high)


def write_maps(folder: Path, maps: Iterable[tuple[str, ScoreMaps]]) -> None:
    """Write the maps of images, by id, to a folder."""
    with MapWriter(folder) as writer:
        for image_id, each in maps:
            writer.write(image_id, each)


def a_batch(views: Tensor, ctx: Context) -> int:
    """Return how many classes climb at once."""
    pixels = views.numel() // views.shape[1]
    # The gradient needs what all layers compute; inference without it keeps the output of one layer.
    return max(1, PIXELS_A_BATCH[ctx.device.partition(":")[0]] // (4 * pixels))


def of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the logits (K, V, h, w) of the K-th class from logits (K, V, C, h, w)."""
    return logits[torch.arange(len(classes), device=logits.device), :, classes]


def unflipped(maps: Tensor) -> Tensor:
    """Return maps (K, V, h, w) of an image and its mirror image, both as the image lies."""
    return torch.cat([maps[:, :1], maps[:, 1:].flip(-1)], 1)


def grad_cam(maps: Tensor, positive_weights: Tensor) -> Tensor:
    """Return the maps of the code's Grad-CAM from CAM's maps (K, V, h, w) of a linear classifier.

    The gradient of Σ ReLU(w · f) is w at positive locations. The code sums it over locations and divides by the
    number of positive entries in both views: `positive_weights` (K,) times all positive locations. Only the maps
    have a gradient.
    """
    locations = (maps.detach() > 0).sum((2, 3), keepdim=True)
    entries = positive_weights[:, None, None, None] * locations.sum(1, keepdim=True)
    return maps * (locations / entries.clamp(min=1))


def masked_change(maps: Tensor, first: Tensor, threshold: float) -> Tensor:
    """Return ‖M ⊙ |maps − first|‖₁ (K,) of maps (K, h, w), M = 1(maps / max maps > threshold) (Section 3.3)."""
    constant = maps.detach()
    mask = constant > threshold * constant.amax((1, 2), keepdim=True)
    return ((maps - first).abs() * mask).sum((1, 2))


CLASSIFIERS: Mapping[str, Method] = {"cam": CAM, "mixup_cam": MIXUP_CAM, "sc_cam": SC_CAM}
"""Methods that train a CAM classifier and end in `InferCam`."""


@dataclass(frozen=True)
class AdvCam(Method):
    """Maps of a CAM classifier, added up while the image climbs to a higher score."""

    name: str = "advcam"
    paper: str = "Lee et al., CVPR 2021"
    one_step: bool = False
    fixed_threshold: float = 0.15

    classifier: Literal["cam", "mixup_cam", "sc_cam"] = hp(
        "cam", source="Section 4.1: that of IRN; Table 4 has SC-CAM's: the method that trains the classifier"
    )

    def localise(self, meta: Meta) -> list[Stage]:
        """Train the classifier as its method does, then climb."""
        trainings = CLASSIFIERS[self.classifier].localise(meta)[:-1]
        return [*trainings, InferAdvCam(long_side=meta.size, **recipe_of(InferAdvCam, meta.backbone))]


METHOD = AdvCam()
