"""Localisation maps on disk: what is written is read, faults are named, resizing is torch's."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.maps import (
    FILE,
    IMAGES_A_BATCH,
    MapReader,
    MapWriter,
    ScoreMaps,
    resize_bilinear,
)


def maps_of(seed: int, labels: tuple[int, ...] = (1, 7), cells=(5, 4), size=(20, 16)) -> ScoreMaps:
    scores = np.random.default_rng(seed).random((len(labels), *cells)).astype(np.float16)
    return ScoreMaps(np.array(labels, np.int16), scores, size)


def write(folder, **images: ScoreMaps) -> MapReader:
    with MapWriter(folder) as writer:
        for image_id, maps in images.items():
            writer.write(image_id, maps)
    return MapReader(folder)


def test_what_is_written_is_read(tmp_path):
    written = {
        f"image{i}": maps_of(i, labels, cells)
        for i, (labels, cells) in enumerate(
            [((1, 7), (5, 4)), ((0, 2, 20), (1, 1)), ((), (5, 4)), ((3,), (2, 9))] * IMAGES_A_BATCH
        )
    }
    reader = write(tmp_path, **written)
    assert reader.ids == tuple(written)
    assert "image3" in reader
    assert "image" not in reader
    for image_id, maps in written.items():
        read = reader.read(image_id)
        assert read.size == maps.size
        assert read.labels.dtype == np.int16
        np.testing.assert_array_equal(read.labels, maps.labels)
        np.testing.assert_array_equal(read.scores, maps.scores)


def test_scores_are_stored_as_float16_in_c_order(tmp_path):
    scores = np.arange(1, 13, dtype=np.float64).reshape(3, 2, 2).transpose(1, 2, 0)[:1]
    read = write(tmp_path, one=ScoreMaps(np.array([4], np.int16), scores + 1e-4, (2, 3))).read("one")
    assert read.scores.dtype == np.float16
    np.testing.assert_array_equal(read.scores, scores)


def test_the_same_maps_give_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name, x=maps_of(1), y=maps_of(2, (0, 5)))
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_a_reader_travels_to_another_process_without_the_maps(tmp_path):
    reader = write(tmp_path, **{f"i{n}": maps_of(n, cells=(60, 60)) for n in range(20)})
    sent = pickle.dumps(reader)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).read("i7").scores, reader.read("i7").scores)


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    write(tmp_path, old=maps_of(1)).read("old")
    (tmp_path / FILE).unlink()
    write(tmp_path, new=maps_of(2), newer=maps_of(3))
    assert MapReader(tmp_path).ids == ("new", "newer")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_scores_that_are_not_finite_in_float16_are_refused(tmp_path, value):
    maps = ScoreMaps(np.array([1], np.int16), np.full((1, 2, 2), value), (2, 2))
    with MapWriter(tmp_path) as writer, pytest.raises(ValueError, match=r"bird_3.*not finite"):
        writer.write("bird_3", maps)


def test_an_id_cannot_be_written_twice(tmp_path):
    with MapWriter(tmp_path) as writer:
        writer.write("bird_3", maps_of(1))
        with pytest.raises(ValueError, match="bird_3"):
            writer.write("bird_3", maps_of(2))


def test_an_error_leaves_no_file(tmp_path):
    def interrupted() -> None:
        with MapWriter(tmp_path) as writer:
            writer.write("one", maps_of(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        ([2, 1], (2, 3, 3)),
        ([1, 1], (2, 3, 3)),
        ([-1], (1, 3, 3)),
        ([1], (2, 3, 3)),
        ([1], (3, 3)),
        ([1], (1, 0, 3)),
    ],
)
def test_maps_whose_fields_do_not_fit_are_refused(labels, shape):
    with pytest.raises(ValueError, match=r"label|maps"):
        ScoreMaps(np.array(labels, np.int16), np.zeros(shape, np.float32), (3, 3))


def test_faults_of_a_file_are_named(tmp_path):
    with pytest.raises(DataError, match=rf"{FILE}: no such file"):
        MapReader(tmp_path)
    reader = write(tmp_path, one=maps_of(1))
    with pytest.raises(DataError, match=rf"{FILE}: no maps of the image 'two'"):
        reader.read("two")
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{FILE}: broken"):
        MapReader(tmp_path)
    with pa.ipc.new_file(str(tmp_path / FILE), pa.schema([("other", pa.int8())])):
        pass
    with pytest.raises(DataError, match="other"):
        MapReader(tmp_path)


def test_bilinear_by_hand():
    maps = np.array([[[0.0, 1.0]]], np.float32)
    # Centres of four cells over two: at −¼, ¼, ¾, 1¼ of the input, clamped to 0 … 1.
    np.testing.assert_allclose(resize_bilinear(maps, (1, 4))[0, 0], [0, 0.25, 0.75, 1], atol=1e-7)
    np.testing.assert_array_equal(resize_bilinear(maps[:, :, :1] + 3, (5, 2)), np.full((1, 5, 2), 3))
    assert resize_bilinear(np.zeros((0, 4, 4), np.float32), (9, 8)).shape == (0, 9, 8)


@pytest.mark.parametrize(
    ("cells", "size"),
    [((94, 125), (375, 500)), ((63, 94), (500, 333)), ((3, 5), (2, 3)), ((1, 1), (5, 7)), ((41, 41), (41, 80))],
)
def test_bilinear_equals_torch(cells, size):
    import torch
    import torch.nn.functional as F

    maps = np.random.default_rng(0).random((3, *cells), dtype=np.float32)
    before = maps.copy()
    reference = F.interpolate(torch.tensor(maps)[None], size=size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resize_bilinear(maps, size), reference.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(maps, before)


def test_maps_of_the_images_size_are_not_changed():
    maps = maps_of(1, cells=(20, 16))
    full = maps.at_full_size()
    assert full.dtype == np.float32
    np.testing.assert_array_equal(full, maps.scores)
