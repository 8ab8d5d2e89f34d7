"""How a network begins: `none`, `imagenet`, `coco`, or a state-dict file, which its digest names."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.paths import expanded
from seedbed.benchmark.pipeline.registry import BACKBONES

NAMES = ("none", "imagenet", "coco")
"""The initialisations that are not files."""


def is_file(weights: str | None) -> bool:
    """Return whether weights that a user gave are a file."""
    return weights is not None and weights not in NAMES


def method_weights(given: str | None, backbone: str) -> tuple[str, Mapping[str, Path]]:
    """Return the name of a method's initialisation, `sha256:…` for a file, and the file by that name.

    `given` None: `imagenet` if the backbone has it, else `none`. Raises ConfigError for a file that is not
    there, for weights that the backbone does not have, and for `coco`.
    """
    if given == "coco":
        raise ConfigError(
            "--weights coco: they have seen masks, which a method must not; the segmentation network may begin "
            "so, for a marked row (--segmentation-weights coco). Valid: none, imagenet, or a state-dict file"
        )
    return _resolve("--weights", given, backbone, "none, imagenet")


def segmentation_weights(given: str | None, backbone: str) -> tuple[str, Mapping[str, Path]]:
    """Return what `method_weights` does, for a segmentation network, which may begin from `coco` too."""
    return _resolve("--segmentation-weights", given, backbone, "none, imagenet, coco")


def _resolve(option: str, given: str | None, backbone: str, valid: str) -> tuple[str, Mapping[str, Path]]:
    family = BACKBONES.load(backbone)
    if given is None:
        return "imagenet" if family.imagenet else "none", {}
    if given in NAMES:
        if given != "none":
            family.published(given)
        return given, {}
    path = expanded(given)
    if not path.is_file():
        raise ConfigError(f"{option} {given}: no such file. Valid: {valid}, or a state-dict file")
    name = _digest(path.resolve(), path.stat().st_size, path.stat().st_mtime_ns)
    return name, {name: path}


def check_weights(needed: Iterable[tuple[str, str]], files: Mapping[str, Path]) -> None:
    """Read the weights of (backbone, initialisation) pairs before anything runs, so that none fails hours later.

    `files` are the files of the `sha256:…` initialisations. Raises ConfigError if weights cannot be read or
    downloaded, or do not fit their backbone.
    """
    for backbone, weights in sorted(needed):
        BACKBONES.load(backbone).check_weights(weights, files)


@functools.lru_cache(maxsize=8)
def _digest(path: Path, size: int, changed: int) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
