"""The losses of ICD and the superpixel refinement of its scores (methods/icd/), as functions of tensors.

B images, C classes; maps are (B, C, h, w), tags float (B, C) of 0 and 1. Sums and means over images in the
paper are means over the batch here.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SUPERPIXELS = 256
"""Superpixels are numbered 0..254, padding is 255."""
BottomUpForm = Literal["squared", "absolute", "sigmoid"]
Refinement = Literal["vote", "mean", "none"]


def cam_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Return sigmoid cross entropy of class logits (B, C), summed over classes (authors' code)."""
    return F.binary_cross_entropy_with_logits(logits.float(), tags, reduction="none").sum(1).mean()


def bottom_up_loss(projections: Tensor, tags: Tensor, form: BottomUpForm) -> Tensor:
    """Return L_bu (Eq. 1), L_abs (Eq. 8) or L_sig (Eq. 10) over the images that have exactly one class.

    Other images count as 0 in the mean. With the pseudo-label Y = [x > 0], L_sig of a projection x is
    −log σ(|x|).
    """
    single = tags * (tags.sum(1, keepdim=True) == 1)
    size = projections.float().abs()
    if form == "squared":
        gain = size.square()
    elif form == "absolute":
        gain = size
    else:
        gain = F.logsigmoid(size)
    return -(gain.mean((2, 3)) * single).sum(1).mean()


def top_down_loss(logits: Tensor, refined: Tensor, tags: Tensor, band: float) -> Tensor:
    """Return L_td (section 4.3): sigmoid cross entropy against [refined > 0], summed over the present classes.

    A pixel counts as 0 in the mean if its refined score, divided by the image's greatest or least score, is within
    `band` of 0 (authors' code). With `band` 0 all pixels are compared (paper).
    """
    scaled = extremes_to_one(refined)
    losses = F.binary_cross_entropy_with_logits(logits.float(), (scaled > 0).float(), reduction="none")
    if band > 0:
        losses = losses * (scaled.abs() > band)
    return (losses.mean((2, 3)) * tags).sum(1).mean()


def extremes_to_one(scores: Tensor) -> Tensor:
    """Return maps (…, h, w) with positive values divided by the map's maximum, negative ones by |minimum|."""
    high = scores.amax((-2, -1), keepdim=True).clamp(min=1e-5)
    low = (-scores.amin((-2, -1), keepdim=True)).clamp(min=1e-5)
    return torch.where(scores > 0, scores / high, scores / low)


def warm_up(time: float, epochs: float) -> float:
    """Return the weight of L_td after `time` epochs: exp(−10(1 − u)) as u rises from 0 to 1, then 1."""
    done = min(1.0, time / epochs) if epochs > 0 else 1.0
    return math.exp(-10 * (1 - done))


def membership(superpixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the share of each superpixel in each cell of a grid, float32 (B, 256, h·w); a cell's sum is 1.

    Equals the one-hot maps of superpixels int64 (B, H, W), resized to `size` = (h, w) as by MXNet's
    BilinearResize2D (authors' code): bilinear with aligned corners, without antialiasing. Cell i takes pixel
    i·(H − 1)/(h − 1), so 321 pixels and 41 cells give pixel 8i, and no cell lies in two superpixels. Only the
    four pixels around that position contribute, so the one-hot maps are never built.
    """
    rows, columns = (_around(*lengths, superpixels) for lengths in zip(superpixels.shape[1:], size, strict=True))
    numbers = torch.arange(SUPERPIXELS, device=superpixels.device)[:, None, None]
    parts = torch.zeros((), device=superpixels.device)
    for row, across in rows:
        for column, along in columns:
            corner = superpixels[:, row[:, None], column]
            parts = parts + (corner[:, None] == numbers) * (across[:, None] * along)
    return parts.flatten(2)


def _around(source: int, target: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the two inputs around each output of a linear interpolation with aligned corners.

    Each is (index, weight), both (target,).
    """
    position = torch.arange(target, device=like.device) * (source - 1) / max(1, target - 1)
    first = position.long()
    second = (first + 1).clamp(max=source - 1)
    return [(first, 1 - (position - first)), (second, position - first)]


@torch.no_grad()
def refine(scores: Tensor, tags: Tensor, members: Tensor, form: Refinement) -> Tensor:
    """Return signed scores smoothed over superpixels (`membership`), 0 for absent classes.

    `mean` (paper): the mean over each superpixel. `vote` (authors' code): a superpixel is foreground if for
    some class more of it is positive than negative. It goes to the class whose positive scores, as shares of the
    pixel's greatest score, have the highest mean, and gets the mean of these scores. For every other class, and in
    the background, it gets the mean of the negative scores. `none`: unchanged. A cell gets the mean of its
    superpixels' values, weighted by their shares.
    """
    present = scores.float() * tags[:, :, None, None]
    if form == "none":
        return present
    flat = present.flatten(2)
    with torch.autocast(scores.device.type, enabled=False):
        means = (members / members.sum(2, keepdim=True).clamp(min=1e-5)).transpose(1, 2)  # (B, h·w, 256)
        if form == "mean":
            values = flat @ means
        else:
            foreground = (flat.sign() @ members.transpose(1, 2)).amax(1, keepdim=True) > 1e-5
            positive, negative = flat.clamp(min=0), flat.clamp(max=0)
            strength = (positive / flat.amax(1, keepdim=True).clamp(min=1e-5)) @ means
            takes = F.one_hot(strength.argmax(1), flat.shape[1]).transpose(1, 2) * tags[:, :, None] > 0
            values = torch.where(foreground & takes, positive @ means, negative @ means)
        return (values @ members).view_as(scores)
