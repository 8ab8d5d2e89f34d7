"""Reading .npy files of dictionaries (IRN, PSA) without running the code that a pickle may carry.

A .npy file of a dictionary holds a pickle. It is read here with stand-ins for numpy's own types, so that nothing
is called that the file names: neither other people's functions nor numpy's unchecked `__setstate__`.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from seedbed.benchmark.errors import DataError

PLAIN_KINDS = "biufcSU"
"""Kinds of numpy types whose bytes are plain values."""


def load_npy(path: Path) -> object:
    """Return what `numpy.save` wrote: an array, or the dictionary (list, value) that it wrapped in one.

    Reads files of numpy 1 and 2 and of Python 2 and 3. Raises DataError, naming the file, if it is missing or
    broken, or if its pickle names anything but numpy arrays, torch tensors (IRN saves some; they are
    returned as arrays) and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if content.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: a pointer of Git LFS and not the file itself; run `git lfs pull`")
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"format version {version}")
        _, _, dtype = read_header[version](file)
        if not dtype.hasobject:
            file.seek(0)
            return np.load(file, allow_pickle=False)
        value = _resolve(_Unpickler(file, encoding="latin1").load())
    except _RefusedError as refused:
        raise DataError(
            f"{path}: its pickle names {refused}, which is neither a numpy array nor a plain value; "
            "files that may run code are not read"
        ) from None
    except Exception as error:  # a broken pickle can raise nearly anything
        raise DataError(f"{path}: not a readable .npy file ({type(error).__name__}: {error})") from None
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


class _RefusedError(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved `numpy.core` to `numpy._core`; Python 2 spells `builtins` otherwise.
        place = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        try:
            return _ADMITTED[place, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("an object of another program")


class _Dtype:
    """Stands for numpy.dtype: the same arguments and state, plain types and `object` only."""

    def __init__(self, text: str, align: bool = False, copy: bool = False) -> None:
        self.value = np.dtype(text)
        if self.value.kind not in PLAIN_KINDS + "O":
            raise ValueError(f"an array of type {text}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, sub-array, names, fields, …)
        if any(part is not None for part in state[2:5]):
            raise ValueError("an array of records")
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for an array between its creation and the state that fills it."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if dtype.value.kind == "O":
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise ValueError("an array whose content does not fit its shape")
            flat = np.empty(len(content), object)
            for place, element in enumerate(content):
                flat[place] = element
        else:
            flat = np.frombuffer(_bytes(content), dtype.value).copy()
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: object, shape: object, typecode: object) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, content: bytes | str) -> Any:
    if dtype.value.kind == "O":
        raise ValueError("a scalar of type object")
    return np.frombuffer(_bytes(content), dtype.value)[0]


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Any:
    """Stand for torch's way to build a tensor; the result is an array."""
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if min(offset, *shape, *stride, last, 0) < 0 or (0 not in shape and last >= len(storage)):
        raise ValueError("a tensor that does not fit its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


def _storage(content: bytes) -> np.ndarray:
    """Return the numbers of a torch storage, read by torch's own loader for files that are not trusted."""
    import torch

    # The content names the device that the tensor was on.
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # files of storages are what people have
        tensor = torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _parameter(data: Any, *_: object) -> Any:
    """Stand for torch's way to build a parameter."""
    return data


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise _RefusedError(f"the codec {encoding}")
    return text.encode("latin1")


def _bytes(content: bytes | str) -> bytes:
    return content.encode("latin1") if isinstance(content, str) else content


def _resolve(value: Any) -> Any:
    """Replace the stand-ins by the arrays that they hold."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without content")
        if value.value.dtype.kind == "O":
            for place in np.ndindex(value.value.shape):
                value.value[place] = _resolve(value.value[place])
        return value.value
    if isinstance(value, _Dtype):
        return value.value
    if isinstance(value, dict):
        return {key: _resolve(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolve(element) for element in value)
    return value


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): None,  # only ever handed to _reconstruct
    ("numpy", "dtype"): _Dtype,
    # IRN saves its `keys` and `cam` as tensors.
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): lambda: b"",  # how protocols below 3 say that an array is empty
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
}
