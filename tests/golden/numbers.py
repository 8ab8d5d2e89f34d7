"""One number per stage on the tiny Chimera, which guards `Stage.version`.

    python -m tests.golden      records the numbers of today's code in golden.json

A number that moves while the version stays the same means that old entries of a store are silently wrong. Then
raise the stage's version, and record the numbers again.

Processors differ in the order in which they add floats, and a k-means on few images turns that noise into other
clusters. So the numbers are measured in a process whose libraries all use one plain instruction set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from seedbed.benchmark.evaluation.maps import MapReader
from seedbed.benchmark.pipeline.pipeline import Pipeline
from seedbed.benchmark.pipeline.registry import METHODS, REFINERS
from seedbed.benchmark.pipeline.stage import Kind, Machine, Stage
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.training.loop import TrainingStage
from seedbed.datasets.base import Dataset, Split
from seedbed.datasets.io.images import decode_mask
from seedbed.methods.segmentation.stages import segmentation_stages
from tests.contracts.test_contracts import META, tiny

CHECKOUT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).with_name("golden.json")
ONE_INSTRUCTION_SET = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Haswell",
}
"""What makes torch, oneDNN, MKL and numpy's OpenBLAS compute alike on every x86-64 processor with AVX2."""


def short(stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages with the trainings of the recorded numbers, whatever those of the contracts are."""
    return tiny(stages, batch=8, esol_epochs=3)


def chains() -> Iterator[tuple[str, list[Stage]]]:
    """Yield every method with each refiner and the segmentation network, and the upper bound, by name.

    Refiners that train a network are run on the maps of CAM alone.
    """
    for name in METHODS.names():
        method = METHODS.load(name)
        for refiner in REFINERS.names() if not method.one_step else ("none",):
            refine = [] if method.one_step else REFINERS.load(refiner).refine(META, method.fixed_threshold)
            if name != "cam" and any(isinstance(stage, TrainingStage) for stage in refine):
                continue
            refine += method.on_masks(META)
            yield f"{name}/{refiner}", short([*method.localise(META), *refine, *segmentation_stages(META)])
    yield "supervised", short(segmentation_stages(META, "full"))


def measure(data: Dataset, work: Path) -> dict[str, dict[str, float | int]]:
    """Return version and number by "chain: position stage" for every stage of every chain."""
    numbers = {}
    for name, stages in chains():
        run = Pipeline(stages, data, data.digest(), 0, Store(work), Machine())
        for position, stage in enumerate(stages):
            folder = run.compute(run.step(position, Split.TRAIN)).path
            key = f"{name}: {position} {type(stage).__name__}"
            numbers[key] = {"version": stage.version, "number": summary(stage.produces, folder)}
    return numbers


def summary(kind: Kind, folder: Path) -> float:
    """Return one number that moves with the content of an artifact."""
    if kind is Kind.CHECKPOINT:
        history = json.loads((folder / "training.json").read_text())["history"]
        return float(sum(history[-1].values()))
    if kind is Kind.SCORES:
        reader = MapReader(folder)
        return float(sum(reader.read(i).scores.astype(np.float64).sum() for i in reader.ids))
    if kind is Kind.MASKS:
        return float(
            np.mean([decode_mask(path).astype(np.float64).mean() for path in sorted(folder.glob("*.png"))])
        )
    if kind is Kind.CONFIDENT_LABELS:
        total = 0.0
        for path in sorted(folder.iterdir()):
            if path.suffix == ".png":
                total += float(decode_mask(path).astype(np.float64).mean())
            elif path.suffix == ".npz":
                with np.load(path) as arrays:
                    total += sum(float(arrays[name].astype(np.float64).mean()) for name in sorted(arrays))
        return total
    if kind is Kind.THRESHOLD:
        return float(json.loads((folder / "threshold.json").read_text())["threshold"])
    files = sorted(p for p in folder.iterdir() if p.name != "entry.json")
    return float(sum(path.stat().st_size for path in files))


def measure_alone() -> dict[str, dict[str, float | int]]:
    """Return the numbers of today's code, measured in a process of its own (see `ONE_INSTRUCTION_SET`)."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.golden", "--measure"],
        env={**os.environ, **ONE_INSTRUCTION_SET},
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    """Record the numbers of today's code, or print them (`--measure`) as the process that computes them."""
    from seedbed.datasets.chimera import DATASET, generate

    if "--measure" not in sys.argv:
        RECORDED.write_text(json.dumps(measure_alone(), indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "chimera"
        generate(root, layout="voc", images=48, size=64, seed=3)
        print(json.dumps(measure(DATASET.open(root), Path(folder) / "store")))
