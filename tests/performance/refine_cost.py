"""What the refiners cost: seconds, memory, images a second.

    python -m tests.performance.refine_cost               the random walk, sparse against dense, on a small image

At the size of a VOC image, 500 × 375 pixels:

    python -m tests.performance.refine_cost walk          the random walk, sparse against dense (slow)
    python -m tests.performance.refine_cost crf           dense CRF, by preset
    python -m tests.performance.refine_cost inference     network and walk of PSA and IRN, by backbone
    python -m tests.performance.refine_cost training      steps of PSA's and IRN's training, by backbone

Networks have random weights, images and maps are noise and smooth blobs: neither changes the work. On a GPU where
there is one, but for the CRF.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedbed.benchmark.evaluation.maps import ScoreMaps
from seedbed.benchmark.pipeline.stage import Meta
from seedbed.methods.refine.crf import PRESETS, dense_crf, label_unary
from seedbed.methods.refine.irn import REFINER as IRN
from seedbed.methods.refine.irn import TrainIrn, WalkIrn, edges
from seedbed.methods.refine.irn.network import EdgeNetwork
from seedbed.methods.refine.psa import REFINER as PSA
from seedbed.methods.refine.psa import TrainPsa, WalkPsa
from seedbed.methods.refine.psa.network import AffinityNetwork
from seedbed.methods.refine.random_walk import pair_offsets, transition_matrix, walk
from tests.helpers.measurement import Row, print_table

HEIGHT, WIDTH, CLASSES = 375, 500, 3
GRID = -(-HEIGHT // 4), -(-WIDTH // 4)
SMALL_GRID = GRID[0] // 2, GRID[1] // 2
POWER, STEPS = 10.0, 256
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Inputs = tuple[Tensor, Tensor]


def walk_inputs(grid: tuple[int, int]) -> Inputs:
    """Return scores (K, h, w) and affinities (34, h, w)."""
    generator = torch.Generator().manual_seed(0)
    affinities = torch.rand(len(pair_offsets(5)), *grid, generator=generator)
    return torch.rand(CLASSES, *grid, generator=generator).to(DEVICE), affinities.to(DEVICE)


def sparse(scores: Tensor, affinities: Tensor) -> Tensor:
    """Return the walk of methods/refine/random_walk.py."""
    return walk(scores, transition_matrix(affinities, pair_offsets(5), POWER), STEPS)


def dense(scores: Tensor, affinities: Tensor) -> Tensor:
    """Return the walk as the codes have it: T, squared eight times, then one product."""
    matrix = transition_matrix(affinities, pair_offsets(5), POWER).to_dense()
    for _ in range(8):
        matrix = matrix @ matrix
    return (matrix @ scores.flatten(1).T).T.reshape(scores.shape)


def memory() -> float:
    """Return the most memory so far, in MiB: of the GPU, or of this process."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(form: str, grid: tuple[int, int], threads: int, answers: Any) -> None:
    """Measure one form of the walk in a process of its own, whose memory it is."""
    torch.set_num_threads(threads)
    chosen = {"sparse": sparse, "dense": dense}[form]
    inputs = walk_inputs(grid)
    small = inputs[0][:, :8, :8], inputs[1][:, :8, :8]
    chosen(*small)  # loads what there is to load
    before, start = memory(), time.perf_counter()
    result = chosen(*inputs).cpu().numpy()
    answers.put((time.perf_counter() - start, memory() - before, result))


def rows(grid: tuple[int, int] = SMALL_GRID) -> Iterator[Row]:
    """Measure seconds and peak memory of both forms of the walk. Raises AssertionError if their scores differ."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for form in ("sparse", "dense"):
        answers = context.Queue()
        process = context.Process(target=in_a_process, args=(form, grid, torch.get_num_threads(), answers))
        process.start()
        found[form] = answers.get()
        process.join()
    np.testing.assert_allclose(found["sparse"][2], found["dense"][2], rtol=0, atol=1e-3)
    for index, unit in enumerate(("s", "MiB")):
        what = f"Random walk, {grid[0]} × {grid[1]} cells, sparse products"
        yield Row(what, unit, found["sparse"][index], "dense squares, as PSA and IRN", found["dense"][index])


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    """Return the mean seconds of a call, after one that does not count."""
    work()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def blobs(labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image uint8 (H, W, 3) of bright discs on noise, and the mask of the discs."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 100, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for label in range(1, labels):
        inside = (rows - 190) ** 2 + (columns - 480 * label // labels) ** 2 < 60**2
        mask[inside], image[inside] = label, image[inside] + 40 * label
    return image, mask


def measure_crf() -> None:
    """Print the seconds of each preset for two and four labels, of one process."""
    for labels in (2, 4):
        image, mask = blobs(labels)
        for preset, kernels in PRESETS.items():
            seconds = seconds_of(partial(dense_crf, image, label_unary(mask, labels), kernels), 3)
            print(f"crf, {preset:9} {labels} labels: {seconds:6.2f} s an image", flush=True)


def meta(backbone: str) -> Meta:
    """Return what a run on VOC with this backbone and pretrained weights tells a refiner."""
    return Meta(classes=20, long_side=500, backbone=backbone, weights="imagenet")


def _walk(network: AffinityNetwork, image: torch.Tensor, maps: ScoreMaps) -> None:
    """Run PSA's network and walk on one image."""
    with torch.inference_mode():
        affinities = network.affinities(image)[0]
    WalkPsa().walked(affinities, network.radius, maps, (HEIGHT, WIDTH))


def measure_inference() -> None:
    """Print the seconds an image of PSA's and IRN's network and walk."""
    generator = np.random.default_rng(0)
    scores = generator.random((CLASSES, *GRID), dtype=np.float32)
    maps = ScoreMaps(np.arange(1, CLASSES + 1).astype(np.int16), scores, (HEIGHT, WIDTH))
    for backbone in ("squeezenet", "vgg16", "resnet38", "resnet50"):
        network = AffinityNetwork(backbone, True, 5).eval().to(DEVICE)
        image = torch.randn(1, 3, 376, 504, device=DEVICE)
        seconds = seconds_of(partial(_walk, network, image, maps), 2)
        print(f"psa inference, {backbone:10}: {seconds:6.2f} s an image", flush=True)
    for backbone in ("squeezenet", "resnet50"):
        network_of_edges = EdgeNetwork(backbone, True, frozen=True).eval().to(DEVICE)
        image = torch.randn(1, 3, 512, 512, device=DEVICE)

        def both(n: EdgeNetwork = network_of_edges, i: Tensor = image) -> None:
            WalkIrn().walked(edges(n, i, (HEIGHT, WIDTH)), maps, (HEIGHT, WIDTH))

        print(f"irn inference, {backbone:10}: {seconds_of(both, 2):6.2f} s an image", flush=True)


def measure_training() -> None:
    """Print images a second of training steps at the published crops; on a CPU with batches of two."""
    for refiner, kind, cell, backbones in (
        (PSA, TrainPsa, 8, ("squeezenet", "vgg16", "resnet38")),
        (IRN, TrainIrn, 1, ("squeezenet", "resnet50")),
    ):
        for backbone in backbones:
            (stage,) = (s for s in refiner.refine(meta(backbone), 0.15) if isinstance(s, kind))
            batch = 2 if DEVICE == "cpu" else stage.batch
            network: Any = (
                AffinityNetwork(backbone, True, stage.radius)
                if isinstance(stage, TrainPsa)
                else EdgeNetwork(backbone, True, stage.freeze_backbone)
            )
            network = network.to(DEVICE).train()
            labels = torch.randint(0, 3, (batch, stage.crop // cell // 8 * 8, stage.crop // cell // 8 * 8))
            example = {"image": torch.randn(batch, 3, stage.crop, stage.crop), "mask": labels}
            example = {name: tensor.to(DEVICE) for name, tensor in example.items()}

            def step(s: Any = stage, n: Any = network, e: dict[str, Tensor] = example) -> None:
                with torch.autocast("cuda", torch.bfloat16, enabled=DEVICE != "cpu"):
                    loss = torch.stack([value.float() for value in s.losses(n, e).values()]).sum()
                loss.backward()

            rate = batch / seconds_of(step, 2)
            print(f"{refiner.name} training, {backbone:10} crop {stage.crop}: {rate:6.2f} images/s", flush=True)


def main() -> None:
    """Run the measurement that the command names."""
    known = {"crf": measure_crf, "inference": measure_inference, "training": measure_training}
    if len(sys.argv) == 2 and sys.argv[1] in known:
        device = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor() or platform.machine()
        print(f"{DEVICE} ({device}), {torch.get_num_threads()} threads, torch {torch.__version__}")
        known[sys.argv[1]]()
    elif sys.argv[1:] in ([], ["walk"]):
        print_table({"refine_cost": partial(rows, GRID if sys.argv[1:] else SMALL_GRID)})
    else:
        sys.exit(f"usage: python -m tests.performance.refine_cost [walk|{'|'.join(known)}]")


if __name__ == "__main__":
    main()
