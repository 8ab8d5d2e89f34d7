"""The dense energy loss of RRM: pixels that look alike and lie close should get the same label.

Paper: Zhang et al., "Reliability Does Matter: An End-to-End Weakly Supervised Semantic Segmentation Approach",
AAAI 2020, Equations 10–14; docs/methods.md, RRM. The lattice: Adams, Baek & Davis, "Fast High-Dimensional
Filtering Using the Permutohedral Lattice", Eurographics 2010.

With probabilities P, s = P · ROI, the gate g of Equation 14 (a constant) and K(i, j) = exp(−½‖f_i − f_j‖²) on
features f of position and colour, the loss of a batch of B images is

    −1/B Σ_images Σ_c Σ_i g_i s_ic (K s_c)_i

This is Equation 13 without the term Σ_i g_i (K 1)_i, which has no gradient, so the value is negative.

If the authors' code differs from the paper, we follow the code:
- R2: σ is 15 for colour and 100 for position; the paper prints them the other way round.
- R7: K is not normalised and includes i = j. `kernel` chooses between the lattice of the code, whose response
  is about half of that (`PermutohedralLattice`), and every pair of pixels.
- R8: the backward pass gates both halves of the sum by i, which is the derivative only if the gate is constant.
  `gradient` chooses between that and the derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.datasets.base import IGNORE_INDEX

Kernel = Literal["lattice", "exact"]
Gradient = Literal["as_coded", "exact"]


def dense_energy_loss(
    probabilities: Tensor,
    images: Tensor,
    labels: Tensor,
    roi: Tensor,
    *,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale: float = 0.5,
    kernel: Kernel = "lattice",
    gradient: Gradient = "as_coded",
) -> Tensor:
    """Return the loss, a scalar at most 0: the sum over pixels and classes, the mean over images.

    `probabilities` (B, L, H, W) sum to 1 over L; `images` (B, 3, H, W) are RGB in [0, 255]; `labels` are int64
    (B, H, W), 255 for none; `roi` (B, H, W) is 1 inside the image and 0 in padding. `sigma_rgb` is in
    units of colour, `sigma_xy` in pixels of that size. All are first resized by `scale`, probabilities
    bilinearly, the others by nearest neighbour. The caller applies the weight, 1e-7 in the authors' code.

    The gate is max(0, ROI − max_c P) for labelled pixels and 1 for others, including padding, for which s is 0.
    With `gradient="as_coded"` the gradient of P is −2/B · g (K s) · ROI; `exact` gives −1/B (g (K s) + Kᵀ(g s)) ·
    ROI.

    Computes in float32, also under autocast, or in float64 if `probabilities` are. Only they get a gradient.
    Raises ValueError if `kernel` is "lattice" and `sigma_rgb` or `sigma_xy` is so small that its keys overflow.
    """
    dtype = torch.promote_types(probabilities.dtype, torch.float32)
    with torch.autocast(probabilities.device.type, enabled=False):
        resize = partial(F.interpolate, scale_factor=scale, recompute_scale_factor=True)
        scores: Tensor = resize(probabilities.to(dtype), mode="bilinear")
        inside: Tensor = resize(roi[:, None].to(dtype))
        labelled: Tensor = resize((labels != IGNORE_INDEX)[:, None].to(dtype)) > 0
        inputs = scores * inside
        with torch.no_grad():
            gate = torch.where(labelled, (inside - scores.amax(1, keepdim=True)).clamp(min=0), 1)
            features = pixel_features(resize(images.to(dtype)), sigma_rgb, sigma_xy * scale)
            rows = inputs.flatten(2).mT.contiguous()
            gates = gate.flatten(2).mT
            slopes = torch.stack(
                [_slope(*example, kernel, gradient) for example in zip(features, rows, gates, strict=True)]
            )
            slope = slopes.mT.reshape(inputs.shape)
        # A quadratic form is half of its gradient times its input; both gradients give the same value.
        doubled = (inputs * slope).sum() / len(inputs)
        return doubled.detach() / 2 - doubled


def _slope(features: Tensor, inputs: Tensor, gate: Tensor, kernel: Kernel, gradient: Gradient) -> Tensor:
    """Return g (K s) + g (K s), or the derivative g (K s) + Kᵀ(g s), of one image's pixels (N, L)."""
    forward: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]
    if kernel == "exact":
        forward = transposed = partial(gaussian_filter_exact, features)
    else:
        lattice = PermutohedralLattice(features)
        forward, transposed = lattice.filter, partial(lattice.filter, transposed=True)
    gated = gate * forward(inputs)
    return gated + (gated if gradient == "as_coded" else transposed(gate * inputs))


def pixel_features(images: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Return features (B, H·W, 5) of images (B, 3, H, W): column, row, R, G, B, each divided by its σ."""
    batch, _, height, width = images.shape
    axes = [torch.arange(n, dtype=images.dtype, device=images.device) / sigma_xy for n in (width, height)]
    places = torch.stack(torch.meshgrid(*axes, indexing="xy")).expand(batch, -1, -1, -1)
    return torch.cat([places, images / sigma_rgb], 1).flatten(2).mT


@torch.no_grad()
def gaussian_filter_exact(features: Tensor, values: Tensor, block: int = 256) -> Tensor:
    """Return Σ_j exp(−½‖f_i − f_j‖²) v_j (N, C) of features (N, D) and values (N, C), j = i included.

    Computes `block` rows of the kernel at a time: time N² (D + C), memory `block` · N. Terms are at least e^−60,
    negligible beside the 1 of j = i: smaller ones would be denormal numbers, which CPUs multiply slowly.
    """
    centred = features - features.mean(0)  # Small norms lose the fewest digits in −½‖a‖² + a·b − ½‖b‖².
    norms = centred.square().sum(1, keepdim=True) / -2
    ones = torch.ones_like(norms)
    columns = torch.cat([centred, norms, ones], 1).T.contiguous()
    rows = torch.cat([centred, ones, norms], 1)
    result = torch.empty_like(values)
    kernel = features.new_empty(block, len(features))
    for part, out in zip(rows.split(block), result.split(block), strict=True):
        exponents = torch.mm(part, columns, out=kernel[: len(part)])
        torch.mm(exponents.clamp_(-60, 0).exp_(), values, out=out)
    return result


class PermutohedralLattice:
    """The Gaussian filter of dense CRFs and of RRM's code: linear in the number of points, and approximate.

    Points (N, D) in a space cut into simplices spread their values over the vertices around them (splat), each
    direction of the lattice is blurred by (½, 1, ½), and points read their vertices (slice). Only vertices that
    points touch exist. Divided by 1 + 2^−D, the response of a vertex to itself, as in Krähenbühl's code, whose
    numbers this gives to float32's precision (tests compare them with pydensecrf's).

    The kernel has the Gaussian's width but not its height. In five dimensions its integral is 0.71 of that of
    exp(−½‖Δ‖²), and mass that is blurred to missing vertices is lost. On photographs at a crop of 321, K s has to
    be multiplied by 1.6 to 1.8 to match the exact filter (crop 64: 1.5 to 2.2). With the best factor per image a
    relative L2 difference remains: 6 to 8 % in K s and in the loss's gradient of P (crop 64: 5 to 14 %), and 8 to
    12 % in that of the logits (5 to 16 %): `python -m tests.performance.dense_energy differences`. The lattice
    takes about a thirtieth of the exact filter's time at a crop of 321.

    Every sum has a fixed order, so a GPU gives the same bits again.
    """

    def __init__(self, features: Tensor) -> None:
        points, dimensions = features.shape
        vertices, self.weights = enclosing_simplices(features)
        # One int64 holds all coordinates but the last, which follows. Neighbours are up to D away.
        bits = 63 // dimensions
        spread = vertices.amax((0, 1)) - vertices.amin((0, 1))
        if int(spread.max()) + dimensions >= 2**bits:
            raise ValueError("a standard deviation is too small for the lattice: coordinates need too many bits")
        places = 2 ** (bits * torch.arange(dimensions, device=features.device))
        packed = (vertices[..., :-1] * places).sum(-1).flatten()
        keys, inverse, counts = packed.unique(return_inverse=True, return_counts=True)
        self.vertices = inverse.view(points, dimensions + 1)
        self.scale = 1 / (1 + 2.0**-dimensions)

        order = inverse.argsort(stable=True)
        self.sources, self.source_weights = order // (dimensions + 1), self.weights.flatten()[order]
        self.starts = counts.cumsum(0) - counts

        def find(wanted: Tensor) -> Tensor:
            place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            return torch.where(keys[place] == wanted, place, len(keys))

        # Direction k is D in coordinate k and −1 in the others. Packing is linear, so a step is one number.
        steps = torch.cat([(dimensions + 1) * places, places.new_zeros(1)]) - places.sum()
        self.neighbours = [(find(keys + step), find(keys - step)) for step in steps]

    def filter(self, values: Tensor, transposed: bool = False) -> Tensor:
        """Return the filtered values (N, C), of the lattice's dtype.

        Because vertices are missing, the blurs do not commute and the filter is not quite symmetric; `transposed`
        blurs in the opposite order.
        """
        return self.slice(self.blur(self.splat(values), transposed)) * self.scale

    def splat(self, values: Tensor) -> Tensor:
        """Return the weighted sums of points' values (N, C) at the vertices (M, C)."""
        return F.embedding_bag(
            self.sources, values, self.starts, mode="sum", per_sample_weights=self.source_weights
        )

    def blur(self, values: Tensor, transposed: bool = False) -> Tensor:
        """Return vertices' values (M, C) blurred by (½, 1, ½) in every direction, one after the other."""
        blurred = F.pad(values, (0, 0, 0, 1))  # Missing neighbours point to the last row, which stays 0.
        for after, before in reversed(self.neighbours) if transposed else self.neighbours:
            blurred[:-1] += (blurred[after] + blurred[before]) / 2
        return blurred[:-1]

    def slice(self, values: Tensor) -> Tensor:
        """Return the weighted sums of vertices' values (M, C) at the points (N, C): the transpose of `splat`."""
        return F.embedding_bag(self.vertices, values, mode="sum", per_sample_weights=self.weights)


def enclosing_simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vertices of the simplex around each point, int64 (N, D + 1, D + 1), and their weights (N, D + 1).

    `features` (N, D) are mapped to the plane Σ y = 0 of D + 1 coordinates, enlarged so that splat, blur and slice
    together have the standard deviation 1 in features (Adams et al., Sections 3.1 and 3.2). Vertex k is congruent
    to k modulo D + 1 in every coordinate. Weights are barycentric: at least 0, of sum 1, and Σ_k w_k v_k = y.
    """
    dimensions = features.shape[1]
    count = dimensions + 1
    basis = torch.ones(dimensions, count, dtype=features.dtype, device=features.device).tril()
    basis.diagonal(1).copy_(-torch.arange(1, count))
    basis *= math.sqrt(2 / 3) * count / basis.norm(dim=1, keepdim=True)
    elevated = features @ basis

    nearest = (elevated / count).round().long()
    excess = nearest.sum(1, keepdim=True)
    origin = nearest * count
    rank = (elevated - origin).argsort(dim=1, descending=True, stable=True).argsort(dim=1) + excess
    # Rounding may leave the plane by `excess` steps: move the first or last coordinates back.
    wrap = ((rank < 0).long() - (rank >= count).long()) * count
    origin, rank = origin + wrap, rank + wrap

    falling = (elevated - origin).gather(1, rank.argsort(dim=1)) / count
    weights = torch.cat([1 - falling[:, :1] + falling[:, -1:], -falling.diff(dim=1).flip(1)], 1)
    remainder = torch.arange(count, device=features.device)
    canonical = remainder[:, None] - count * (remainder[None] >= count - remainder[:, None]).long()
    return origin[:, None] + canonical[:, rank].transpose(0, 1), weights
