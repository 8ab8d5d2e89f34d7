"""Merging SBD's masks into VOC's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from seedbed.benchmark.errors import DataError
from seedbed.datasets.base import Split
from seedbed.datasets.io.images import decode_mask, write_mask
from seedbed.datasets.tools.sbd import merge_sbd, read_sbd_mask
from seedbed.datasets.voc2012 import DATASET, LISTS
from tests.datasets.tools.releases import write_mat
from tests.helpers.voc_folder import SHAPE, TRAIN, VAL, make_voc, mask_of

SBD_ONLY = "2010_000007"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = make_voc(tmp_path / "VOC2012")
    (root / LISTS / "train_aug.txt").unlink()
    for path in (root / "SegmentationClassAug").iterdir():
        path.unlink()
    return root


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    """Return an SBD release of one image of VOC's train, one of VOC's val and one of its own."""
    dataset = tmp_path / "benchmark_RELEASE" / "dataset"
    (dataset / "cls").mkdir(parents=True)
    (dataset / "train.txt").write_text(f"{SBD_ONLY}\n{VAL[0]}\n")
    (dataset / "val.txt").write_text(f"{TRAIN[0]}\n")
    for image_id in (SBD_ONLY, TRAIN[0], VAL[0]):
        write_mat(dataset / "cls" / f"{image_id}.mat", np.full(SHAPE, 9, np.uint8))
    return tmp_path


def test_union_less_val_with_vocs_masks_first(voc: Path, sbd: Path):
    shown: list[tuple[int, int]] = []
    assert merge_sbd(sbd, voc, lambda done, total: shown.append((done, total))) == 3
    assert shown == [(1, 3), (2, 3), (3, 3)]
    listed = (voc / LISTS / "train_aug.txt").read_text().split()
    assert listed == [*TRAIN, SBD_ONLY]
    masks = {p.stem: decode_mask(p) for p in (voc / "SegmentationClassAug").iterdir()}
    assert sorted(masks) == listed
    np.testing.assert_array_equal(masks[SBD_ONLY], np.full(SHAPE, 9))
    np.testing.assert_array_equal(masks[TRAIN[0]], mask_of((1, 15)))
    np.testing.assert_array_equal(masks[TRAIN[1]], mask_of((2,)))
    assert DATASET.open(voc).ids(Split.WEAK) == tuple(listed)


def test_the_release_is_found_at_each_level(voc: Path, sbd: Path):
    assert merge_sbd(sbd / "benchmark_RELEASE", voc) == merge_sbd(sbd / "benchmark_RELEASE" / "dataset", voc) == 3
    with pytest.raises(DataError, match="no SBD release here"):
        merge_sbd(voc, voc)


def test_an_interrupted_call_is_gone_on_with(voc: Path, sbd: Path):
    def interrupt(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_sbd(sbd, voc, interrupt)
    assert not (voc / LISTS / "train_aug.txt").exists()
    kept = voc / "SegmentationClassAug" / f"{TRAIN[0]}.png"
    write_mask(kept, mask_of((5,)))
    merge_sbd(sbd, voc)
    np.testing.assert_array_equal(decode_mask(kept), mask_of((5,)))
    assert len([*(voc / "SegmentationClassAug").iterdir()]) == 3


def test_another_list_is_not_overwritten(voc: Path, sbd: Path):
    path = voc / LISTS / "train_aug.txt"
    path.write_text(f"{TRAIN[0]}\n")
    with pytest.raises(DataError, match=r"train_aug\.txt: is another list"):
        merge_sbd(sbd, voc)
    assert path.read_text() == f"{TRAIN[0]}\n"
    assert not [*(voc / "SegmentationClassAug").iterdir()]


def test_missing_and_broken_files_are_named(voc: Path, sbd: Path):
    dataset = sbd / "benchmark_RELEASE" / "dataset"
    mat = dataset / "cls" / f"{SBD_ONLY}.mat"
    content = mat.read_bytes()
    for broken in (b"", b"MATLAB", content[:150], content[: len(content) // 2]):
        mat.write_bytes(broken)
        with pytest.raises(DataError, match=rf"{SBD_ONLY}\.mat: not a readable SBD file"):
            merge_sbd(sbd, voc)
    savemat(mat, {"other": np.zeros(3)})
    with pytest.raises(DataError, match=rf"{SBD_ONLY}\.mat: not a readable SBD file"):
        read_sbd_mask(mat)
    write_mat(mat, np.full(SHAPE, 300))
    with pytest.raises(DataError, match=r"in 0\.\.255"):
        read_sbd_mask(mat)
    mat.unlink()
    with pytest.raises(DataError, match=rf"{SBD_ONLY}\.mat: no such file"):
        merge_sbd(sbd, voc)
    (dataset / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt: no such list"):
        merge_sbd(sbd, voc)
