"""The two filters of the dense energy loss: seconds and differences.

    python -m tests.performance.dense_energy                seconds
    python -m tests.performance.dense_energy differences

Photographs of scikit-image, cut or padded to the crop and halved as in the loss; smooth random probabilities; a
fifth of the pixels are labelled.

Differences: `factor` makes the lattice's K s most like the exact one; `raw` and `fitted` are their relative L2
differences without and with it; `value` is the ratio of the losses; `by P` and `logits` are those differences for
the gradients, each with its own best factor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from seedbed.methods.rrm.dense_energy import (
    Kernel,
    PermutohedralLattice,
    dense_energy_loss,
    gaussian_filter_exact,
    pixel_features,
)
from tests.helpers.measurement import Row, least_seconds, print_table

SIZES = (32, 112, 160)
CLASSES = 21
CASES = [
    *((name, 1.0, 4.0) for name in ("astronaut", "chelsea", "coffee", "rocket", "retina")),
    ("coffee", 0.25, 4.0),
    ("coffee", 1.0, 1.0),
]
"""Photograph, factor of its contrast, sharpness of the probabilities (standard deviation of the logits)."""


def photograph(name: str, size: int, contrast: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the middle of a photograph, float32 (1, 3, size, size), padded with 0, and its ROI (1, size, size).

    Large photographs are first made smaller, by a whole factor, to a shorter side of 400 to 800 pixels.
    """
    pixels = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1)[None].float()
    step = max(1, min(pixels.shape[2:]) // 400)
    pixels = pixels[..., ::step, ::step]
    pixels = (pixels - pixels.mean()) * contrast + pixels.mean()
    missing = [size - length for length in (pixels.shape[3], pixels.shape[2])]
    padding = [part for total in missing for part in (total // 2, total - total // 2)]
    return F.pad(pixels, padding), F.pad(torch.ones_like(pixels[:, 0]), padding)


def smooth_logits(size: int, sharpness: float) -> Tensor:
    """Return smooth random logits (1, CLASSES, size, size)."""
    cells = size // 32 + 1
    coarse = torch.randn(1, CLASSES, cells, cells, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse * sharpness, (size, size), mode="bicubic")


def rows() -> Iterator[Row]:
    """Measure both filters of one image of 21 classes at each half-resolution size."""
    for size in SIZES:
        image, _ = photograph("coffee", 2 * size)
        features = pixel_features(image[..., ::2, ::2], 15, 50)[0]
        values = torch.rand(len(features), CLASSES)
        tasks = {
            "lattice": lambda f=features, v=values: PermutohedralLattice(f).filter(v),
            "exact": lambda f=features, v=values: gaussian_filter_exact(f, v),
        }
        least = least_seconds(tasks)
        what = f"Filter of RRM's dense energy, {size} × {size} pixels, lattice made and used once"
        yield Row(what, "s", least["lattice"], "exact filter", least["exact"])


def difference(lattice: Tensor, exact: Tensor) -> tuple[float, float]:
    """Return the factor of `lattice` that brings it nearest to `exact`, and the relative L2 difference left."""
    factor = (lattice * exact).sum() / lattice.square().sum()
    return float(factor), float((factor * lattice - exact).norm() / exact.norm())


def loss_and_gradients(
    kernel: Kernel, image: Tensor, roi: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients of the probabilities and of the logits."""
    chosen = torch.rand(roi.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    labels = torch.where(chosen, 0, 255)
    logits = logits.clone().requires_grad_()
    probabilities = logits.softmax(1)
    loss = dense_energy_loss(probabilities, image, labels, roi, kernel=kernel)
    by_p, by_logits = torch.autograd.grad(loss, [probabilities, logits])
    return loss.detach(), by_p, by_logits


def print_differences() -> None:
    """Print how the lattice differs from the exact kernel."""
    print("side  photograph  contrast  sharpness  vertices/pixel  factor    raw  fitted  value   by P  logits")
    for size in SIZES:
        for name, contrast, sharpness in CASES:
            image, roi = photograph(name, 2 * size, contrast)
            logits = smooth_logits(2 * size, sharpness)
            features = pixel_features(image[..., ::2, ::2], 15, 50)[0]
            values = (logits.softmax(1) * roi)[0, :, ::2, ::2].flatten(1).mT.contiguous()
            lattice = PermutohedralLattice(features)
            fast, slow = lattice.filter(values), gaussian_filter_exact(features, values)
            factor, fitted = difference(fast, slow)
            raw = float((fast - slow).norm() / slow.norm())
            ours = loss_and_gradients("lattice", image, roi, logits)
            theirs = loss_and_gradients("exact", image, roi, logits)
            density, value = len(lattice.starts) / len(features), float(theirs[0] / ours[0])
            by_p, by_logits = difference(ours[1], theirs[1])[1], difference(ours[2], theirs[2])[1]
            print(
                f"{size:4}  {name:10}  {contrast:8}  {sharpness:9}  {density:14.2f}  {factor:6.2f}  {raw:5.3f}"
                f"  {fitted:6.3f}  {value:5.2f}  {by_p:5.3f}  {by_logits:6.3f}"
            )


if __name__ == "__main__":
    if sys.argv[1:] == ["differences"]:
        print_differences()
    else:
        print_table({"dense_energy": rows})
