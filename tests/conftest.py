"""Data shared by the tests: a tiny Chimera in both layouts, and real images if environment variables name them."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seedbed.datasets.base import Dataset

if TYPE_CHECKING:
    from torch import Tensor

CHECKOUT = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")
REAL = {
    "VOC": "the root of VOC images with masks, in VOC's layout",
    "TAGS": "a CSV file with the tags of these images",
    "COCO": "the root of COCO images with their annotations, in COCO's layout",
    "WEIGHTS": "a folder with `squeezenet1_0_imagenet.pth`, torchvision's ImageNet weights of SqueezeNet 1.0",
    "LABELS": "a folder with `irn/cls_labels.npy` and `psa/cls_labels.npy`, as the two repositories publish them",
    "SBD": "a folder with `benchmark_RELEASE`, official files of SBD, some images suffice",
}
"""The environment variables SEEDBED_REAL_…, which say where real data lie, and what each is."""


def pytest_configure(config: pytest.Config) -> None:
    """Set what this process, its workers and the programs that tests start have in common."""
    os.environ["OMP_NUM_THREADS"] = "1"  # Processes share two cores, and results must not depend on the load.
    # Keep freed memory for the next tensor: the kernel clears new pages, a third of the time of large networks.
    os.environ["MALLOC_MMAP_MAX_"] = "0"
    os.environ["MALLOC_TRIM_THRESHOLD_"] = str(1 << 33)
    os.environ["SEEDBED_TRACK"] = "0"  # MLflow in each `seedbed run` would take most of the tests' time.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's 15 lets its trials wait for other tests.
    # Files in memory: creating and removing small ones on a disk takes a third of the time of many tests.
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    os.fsync = lambda handle: None  # type: ignore[assignment]  # No test cuts the power.
    # Compile the modules once, not in each of the processes that tests start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    gc.disable()  # Until everything is imported: searching the libraries for garbage takes a fifth of that time.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with most slow tests first: a file is the work of one process, and the last is waited for."""
    weights: Counter[Path] = Counter()
    for item in items:
        if mark := item.get_closest_marker("slow"):
            weights[item.path] += mark.args[0] if mark.args else 1
    items.sort(key=lambda item: -weights[item.path])


def pytest_collection_finish() -> None:
    """Collect garbage from here on, without looking at the libraries again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", params=["voc", "coco"])
def chimera_layout(request: pytest.FixtureRequest) -> str:
    """Return each layout in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def chimera_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Chimera of 48 images of 64 pixels in the VOC layout."""
    from seedbed.datasets.chimera import generate

    root = tmp_path_factory.mktemp("chimera") / "voc"
    generate(root, layout="voc", images=48, size=64, seed=3)
    return root


@pytest.fixture(scope="session")
def chimera(chimera_root: Path) -> Dataset:
    """Return the tiny Chimera, opened."""
    from seedbed.datasets.chimera import DATASET

    return DATASET.open(chimera_root)


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Start a test without plug-ins, and forget its own after it, before their files in `tmp_path` are gone."""
    from seedbed.benchmark import plugins
    from seedbed.benchmark.source.closure import forget

    monkeypatch.setenv(plugins.VARIABLE, "")
    forget()
    yield
    for name in [name for name in sys.modules if name.startswith("seedbed.")]:
        if plugins.plugin_file(name):
            del sys.modules[name]
    plugins.installed.cache_clear()
    plugins._given.cache_clear()
    forget()


@pytest.fixture
def quick_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make large networks quick: repeat one block of random weights, and save no state to resume from."""
    import torch

    from seedbed.benchmark.training import loop

    monkeypatch.setattr(loop, "save_tensors", lambda path, content: None)
    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, _repeated(getattr(torch.Tensor, name)))


def _repeated(draw: Callable[..., Tensor], block: int = 1 << 16) -> Callable[..., Tensor]:
    """Return what draws the first `block` values of a tensor, and copies them to the others."""

    def fill(tensor: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if tensor.numel() <= block or not tensor.is_contiguous():
            return draw(tensor, *arguments, **named)
        blocks = tensor.view(-1).split(block)
        draw(blocks[0], *arguments, **named)
        for other in blocks[1:]:
            other.copy_(blocks[0][: len(other)])
        return tensor

    return fill


def real(name: str, file: str = "") -> Path:
    """Return where real data lie; skip the test if the variable SEEDBED_REAL_`name` does not say it."""
    given = os.environ.get(f"SEEDBED_REAL_{name}")
    if not given:
        pytest.skip(f"SEEDBED_REAL_{name} is not set: {REAL[name]}")
    path = Path(given, file)
    if not path.exists():
        pytest.fail(f"SEEDBED_REAL_{name}={given}: {path} does not exist")
    return path


@pytest.fixture(scope="session")
def real_voc() -> Path:
    """Return the root of the real VOC images."""
    return real("VOC")


@pytest.fixture(scope="session")
def real_tags() -> Path:
    """Return a CSV file with tags of the real VOC images."""
    return real("TAGS")


@pytest.fixture(scope="session")
def real_coco() -> Path:
    """Return the root of the real COCO images."""
    return real("COCO")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Return the ImageNet weights of SqueezeNet 1.0."""
    return real("WEIGHTS", "squeezenet1_0_imagenet.pth")


@pytest.fixture(scope="session", params=["irn", "psa"])
def real_labels(request: pytest.FixtureRequest) -> Path:
    """Return the `cls_labels.npy` of IRN and of PSA in turn."""
    return real("LABELS", f"{request.param}/cls_labels.npy")


@pytest.fixture(scope="session")
def real_sbd() -> Path:
    """Return the folder of an official SBD release."""
    return real("SBD")
