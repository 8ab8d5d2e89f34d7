"""The reader of other people's .npy dictionaries: old and new files are read, code is not run."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seedbed.benchmark.errors import DataError
from seedbed.datasets.io.npy import load_npy

IRN = {"keys": np.array([2, 14]), "cam": np.arange(12, dtype=np.float32).reshape(2, 2, 3)}
PSA = {3: np.arange(6, dtype=np.float32).reshape(2, 3), 11: np.zeros((2, 3), np.float32)}


def write(path: Path, pickled: bytes, shape: str = "()") -> Path:
    """Write an object .npy file around a pickle."""
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + pickled)
    return path


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.flags.writeable
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


VALUES = [
    IRN,
    PSA,
    {"a": [1, 2.5, "x", None, True, (1, 2)], "b": {"c": np.float32(0.5), "d": np.int64(3)}},
    {"big endian": np.array([1, 2], ">i4"), "bool": np.array([True, False]), "text": np.array(["ab", "c"])},
    {"fortran": np.asfortranarray(np.arange(6).reshape(2, 3)), "empty": np.zeros((0, 4)), "scalar": np.array(7)},
]


@pytest.mark.parametrize("value", VALUES)
def test_what_numpy_saves_is_read(tmp_path: Path, value: Any):
    np.save(tmp_path / "x.npy", value)
    assert_same(load_npy(tmp_path / "x.npy"), value)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("protocol", [0, 1, 2, 3])
def test_files_of_numpy_1_are_read(tmp_path: Path, value: Any, protocol: int):
    """Protocols below 4 hold module names as lines, so numpy 2's can be replaced by numpy 1's."""
    content = pickle.dumps(np.array(value, object), protocol=protocol).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in content
    assert_same(load_npy(write(tmp_path / "x.npy", content)), value)


def test_a_file_of_python_2_is_read(tmp_path: Path):
    """Written out by hand: a dictionary with one array whose bytes are a Python 2 string."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\ntb"
    )
    path = write(tmp_path / "x.npy", b"(dS'cam'\n" + array + b"s.")
    assert_same(load_npy(path), {"cam": np.array([1, -2], np.float32)})


def test_plain_arrays_and_object_arrays_are_read(tmp_path: Path):
    np.save(tmp_path / "plain.npy", np.arange(4.0))
    assert_same(load_npy(tmp_path / "plain.npy"), np.arange(4.0))
    ragged = np.empty(2, object)
    ragged[:] = [np.arange(2), "x"]
    np.save(tmp_path / "ragged.npy", ragged)
    found = load_npy(tmp_path / "ragged.npy")
    assert isinstance(found, np.ndarray)
    assert_same(found[0], np.arange(2))


class _Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch MARK",), r"(posix|nt)\.system"),
        (eval, ("open('MARK', 'w')",), r"builtin(s|__)\.eval"),
        (getattr, ("x", "upper"), r"builtin(s|__)\.getattr"),
        (np.load, ("MARK",), r"numpy\.load"),
        (np.ndarray, ((2**20,),), "not a readable"),
        (Path, ("MARK",), r"pathlib"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_anything_else_is_refused_by_name_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any, arguments: tuple, named: str, protocol: int
):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.npy", pickle.dumps({"cam": _Runs(function, *arguments)}, protocol=protocol))
    with pytest.raises(DataError, match=rf"x\.npy.*{named}"):
        load_npy(path)
    assert not (tmp_path / "MARK").exists()


def test_other_codecs_are_refused(tmp_path: Path):
    path = write(tmp_path / "x.npy", b"c_codecs\nencode\n(VMARK\nVzip\ntR.")
    with pytest.raises(DataError, match="codec zip"):
        load_npy(path)


def test_an_array_cannot_claim_pointers(tmp_path: Path):
    """Raw bytes for a type `object` would be read as addresses by numpy's own `__setstate__`."""
    forged = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x41\\x41\\x41\\x41\\x41\\x41\\x41\\x41'\ntb."
    )
    with pytest.raises(DataError, match="does not fit its shape"):
        load_npy(write(tmp_path / "x.npy", forged))


def test_broken_files_are_data_errors(tmp_path: Path):
    path = tmp_path / "x.npy"
    with pytest.raises(DataError, match=r"x\.npy: cannot be read"):
        load_npy(path)
    buffer = io.BytesIO()
    np.save(buffer, IRN)  # type: ignore[arg-type]
    content = buffer.getvalue()
    for cut in (0, 5, 20, 100, 140, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"x\.npy"):
            load_npy(path)
    path.write_text("image_id,classes")
    with pytest.raises(DataError, match=r"x\.npy"):
        load_npy(path)


def test_the_tensors_in_irns_own_files_are_read_as_arrays(tmp_path):
    """IRN's make_cam.py saves `keys` and `cam` as torch tensors, `high_res` as an array."""
    import torch

    cam = torch.rand(2, 3, 4)
    np.save(
        tmp_path / "irn.npy", {"keys": torch.tensor([3, 7]), "cam": cam.transpose(1, 2), "high_res": cam.numpy()}
    )
    content = load_npy(tmp_path / "irn.npy")
    assert content["keys"].tolist() == [3, 7]
    np.testing.assert_array_equal(content["cam"], cam.transpose(1, 2).numpy())
    np.testing.assert_array_equal(content["high_res"], cam.numpy())


def test_tensors_that_were_saved_on_a_gpu_are_read(tmp_path, monkeypatch):
    """The bytes of a storage name its device; here they do so without a GPU."""
    import torch

    cam = torch.rand(2, 3)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    np.save(tmp_path / "gpu.npy", {"high_res": cam, "half": cam.bfloat16(), "parameter": torch.nn.Parameter(cam)})
    monkeypatch.undo()
    assert b"cuda:0" in (tmp_path / "gpu.npy").read_bytes()
    content = load_npy(tmp_path / "gpu.npy")
    np.testing.assert_array_equal(content["high_res"], cam.numpy())
    np.testing.assert_array_equal(content["half"], cam.bfloat16().float().numpy())
    np.testing.assert_array_equal(content["parameter"], cam.numpy())


def test_a_tensor_that_points_outside_its_storage_is_refused(tmp_path):
    import torch

    from seedbed.datasets.io import npy as safe_npy

    numbers = torch.arange(4.0).numpy()
    np.testing.assert_array_equal(safe_npy._tensor(numbers, 1, (3,), (1,)), [1, 2, 3])
    for offset, shape, stride in ((2, (3,), (1,)), (0, (3,), (2,)), (-1, (1,), (1,)), (0, (2,), (-1,))):
        with pytest.raises(ValueError, match="does not fit its storage"):
            safe_npy._tensor(numbers, offset, shape, stride)
