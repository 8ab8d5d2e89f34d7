"""The random walk of PSA and IRN: scores spread over cells with a high affinity.

Papers: Ahn & Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision", CVPR 2018, equations (4)
to (6); Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
equations (9) and (10).

The codes form T^n of the transition matrix T by squaring a dense matrix. Here v·T^n is n products with a sparse
matrix: the same up to rounding, and memory grows with the number of cells, not with its square.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Offset = tuple[int, int]
"""Rows down and columns to the right from a pair's first cell to its second."""


@functools.cache
def pair_offsets(radius: int) -> tuple[Offset, ...]:
    """Return the offsets of all pairs of cells closer than `radius`, each pair once: 34 for 5, 152 for 10."""
    ahead = [(0, x) for x in range(1, radius)]
    below = [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if x * x + y * y < radius**2]
    return (*ahead, *below)


def partners(grid: Tensor, offset: Offset, margin: int) -> Tensor:
    """Return the value at `offset` from each anchor of a grid (…, h, w): (…, h − margin, w − 2·margin).

    Anchors are the cells with all neighbours up to `margin` away below and at both sides: all except the last
    `margin` rows and the first and last `margin` columns. The offset (0, 0) gives the anchors themselves.
    """
    height, width = grid.shape[-2:]
    down, right = offset
    return grid[..., down : height - margin + down, margin + right : width - margin + right]


def transition_matrix(affinities: Tensor, offsets: tuple[Offset, ...], power: float) -> Tensor:
    """Return the transposed transition matrix Tᵀ, a sparse CSR float32 (N, N) over the N = h·w cells.

    `affinities` is (P, h, w) in [0, 1]: at (p, y, x) that of (y, x) and its neighbour at offset p; those of
    neighbours outside the grid are ignored. A has them at both positions of a pair and 1 on the diagonal;
    T is A to the elementwise `power`, each column divided by its sum, so every row of Tᵀ sums to 1.
    """
    _, height, width = affinities.shape
    cells = torch.arange(height * width, device=affinities.device).view(height, width)
    firsts, seconds, strengths = [], [], []
    for affinity, (down, right) in zip(affinities, offsets, strict=True):
        top = slice(0, max(0, height - down))
        left = slice(max(0, -right), max(0, width - max(0, right)))
        firsts.append(cells[top, left].flatten())
        seconds.append(firsts[-1] + down * width + right)
        strengths.append(affinity[top, left].flatten())
    first, second, every = torch.cat(firsts), torch.cat(seconds), cells.flatten()
    strength = torch.cat(strengths).float() ** power
    rows, columns = torch.cat([first, second, every]), torch.cat([second, first, every])
    values = torch.cat([strength, strength, strength.new_ones(len(every))])
    # Ordered by row, then column, each position once, so that sums always have the same order.
    order = torch.argsort(rows * len(every) + columns)
    rows, columns, values = rows[order], columns[order], values[order]
    starts = torch.searchsorted(rows, torch.arange(len(every) + 1, device=rows.device))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")
        size = (len(every), len(every))
        matrix = torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)
        sums = (matrix @ values.new_ones(len(every), 1))[:, 0]
        return torch.sparse_csr_tensor(starts, columns, values / sums[rows], size, check_invariants=False)


def walk(scores: Tensor, matrix: Tensor, steps: int) -> Tensor:
    """Return the scores float32 (K, h, w) after `steps` steps: v·T^steps for each class's map v.

    `matrix` is Tᵀ of the same grid, as `transition_matrix` returns it. All classes walk together.
    """
    vectors = scores.float().flatten(1).T.contiguous()
    # A GPU's sparse product may give other bytes every time.
    step = gathering(matrix) if matrix.is_cuda else matrix.__matmul__
    for _ in range(steps):
        vectors = step(vectors)
    return vectors.T.reshape(scores.shape)


def gathering(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the product of a sparse CSR matrix (N, N) with vectors (N, K), as sums over gathered neighbours.

    Shorter rows are padded with weights of 0.
    """
    starts, columns, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    lengths = starts.diff()
    places = starts[:-1, None] + torch.arange(int(lengths.max()), device=starts.device)
    inside = places < starts[1:, None]
    places = places.clamp(max=len(values) - 1)
    neighbours, weights = columns[places], (values[places] * inside)[..., None]
    return lambda vectors: (vectors[neighbours] * weights).sum(1)
