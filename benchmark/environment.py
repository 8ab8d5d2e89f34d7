"""What a result was computed with: code version, packages, machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from seedbed.benchmark.errors import ConfigError

PACKAGES = (
    "seedbed",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "pydensecrf2",
    "scikit-learn",
    "scikit-image",
)
CODE_VARIABLE = "SEEDBED_CODE"
SOCKET_FOLDER = 39
"""Longest path of a temporary folder: the sockets that Ray makes below it may have 107 characters."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def shorten_temporary_folder() -> None:
    """Replace a temporary folder whose path is too long for the sockets of Ray and of worker processes.

    Clusters set TMPDIR to the folder of a job. Raises ConfigError if there is no other folder to write to.
    """
    long = len(os.fsencode(tempfile.gettempdir())) > SOCKET_FOLDER
    if not long and len(os.fsencode(os.environ.get("RAY_TMPDIR", ""))) <= SOCKET_FOLDER:
        return
    for parent in SHORT_FOLDERS:
        folder = Path(parent, f"seedbed-{os.getuid()}")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        # In a folder that all users share, another one may have taken the name.
        if folder.is_dir() and not folder.is_symlink() and os.access(folder, os.W_OK | os.X_OK):
            os.environ.pop("RAY_TMPDIR", None)
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            return
    raise ConfigError(
        f"TMPDIR={tempfile.gettempdir()}: too long for sockets, and {', '.join(SHORT_FOLDERS)} cannot be written "
        f"to; set TMPDIR to a folder whose path has at most {SOCKET_FOLDER} characters"
    )


@functools.cache
def environment() -> dict[str, Any]:
    """Return code version, package versions and hardware as plain JSON values."""
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": _gpu(),
    }


@functools.cache
def code_version() -> str:
    """Return the commit of the git checkout (`+dirty` if files differ), else the package's version.

    On a node to which the code was sent without its history, what the sender says.
    """
    if sent := os.environ.get(CODE_VARIABLE):
        return sent
    folder = Path(__file__).resolve().parent.parent
    try:
        if not (folder / ".git").exists():
            return f"seedbed {_version('seedbed')}"
        commit = _git(folder, "rev-parse", "HEAD").strip()
        dirty = _git(folder, "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.CalledProcessError):
        return f"seedbed {_version('seedbed')}"
    return commit + ("+dirty" if dirty else "")


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _gpu() -> str | None:
    # Only a process that already works with torch is asked: importing it here would cost seconds.
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
