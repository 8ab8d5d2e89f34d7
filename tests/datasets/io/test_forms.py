"""Masks, lists and tags as people's tools write them: read right, or refused by file; never misread."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.benchmark.errors import DataError
from seedbed.datasets.base import Split
from seedbed.datasets.io.images import decode_image, decode_mask, palette, write_mask
from seedbed.datasets.io.tags import tag_table, xml_names
from seedbed.datasets.voc2012 import CLASSES, DATASET, LISTS, read_list
from tests.helpers.voc_folder import EXTRA, LABELS, TRAIN, VAL, make_voc, mask_of

MASK = np.array([[0, 0, 1, 1], [15, 15, 255, 0]], np.uint8)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "VOC2012")


# --- masks


def with_palette(path: Path, mask: np.ndarray, colours: bytes) -> Path:
    picture = Image.fromarray(mask)
    picture.putpalette(colours)
    picture.save(path)
    return path


def changed(*entries: tuple[int, tuple[int, int, int]]) -> bytes:
    """Return VOC's palette with some other colours."""
    colours = bytearray(palette())
    for label, colour in entries:
        colours[3 * label : 3 * label + 3] = bytes(colour)
    return bytes(colours)


RAMP = bytes(value for label in range(256) for value in [label] * 3)
FAITHFUL = {
    "voc": palette(),
    "grey ramp": RAMP,
    "21 colours": palette()[:63],
    "21 colours, then black": palette()[:63] + bytes(768 - 63),
    "white for 255": changed((255, (255, 255, 255))),
    "others where no label is": changed((2, (1, 2, 3)), (254, (9, 9, 9))),
}
MISLEADING = {
    "two exchanged": changed((1, (192, 128, 128)), (15, (128, 0, 0))),
    "foreign": changed((1, (220, 20, 60))),
    "scaled grey": bytes(min(255, 12 * label) for label in range(256) for _ in range(3)),
    "white background": changed((0, (255, 255, 255))),
}


@pytest.mark.parametrize("kind", FAITHFUL)
def test_a_palette_that_agrees_with_the_indices_is_read_by_index(tmp_path: Path, kind):
    np.testing.assert_array_equal(decode_mask(with_palette(tmp_path / "m.png", MASK, FAITHFUL[kind])), MASK)


@pytest.mark.parametrize("kind", MISLEADING)
def test_a_palette_that_contradicts_the_indices_is_refused(tmp_path: Path, kind):
    with pytest.raises(DataError, match=r"m\.png: its palette gives index"):
        decode_mask(with_palette(tmp_path / "m.png", MASK, MISLEADING[kind]))


def test_a_mask_that_an_image_tool_saved_again_is_refused(tmp_path: Path):
    """Pillow's `quantize` numbers the colours anew; the picture looks the same."""
    write_mask(tmp_path / "m.png", MASK)
    with Image.open(tmp_path / "m.png") as picture:
        picture.convert("RGB").quantize(4).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="palette"):
        decode_mask(tmp_path / "m.png")


def low_bit_png(values: np.ndarray, bits: int, colour_type: int = 0) -> bytes:
    """Return a PNG of 1, 2, 4 bits a pixel, as pypng and MATLAB write labels."""
    per = 8 // bits
    rows = b""
    for row in values:
        padded = np.zeros(-(-len(row) // per) * per, np.uint8)
        padded[: len(row)] = row
        packed = np.zeros(len(padded) // per, np.uint8)
        for place in range(per):
            packed |= padded[place::per] << (8 - bits * (place + 1))
        rows += b"\0" + packed.tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour_type, 0, 0, 0)
    colours = chunk(b"PLTE", palette()[: 3 * 2**bits]) if colour_type == 3 else b""
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "colour_type"), [(2, 0), (4, 0), (1, 3), (2, 3), (4, 3)])
def test_masks_of_few_bits_are_not_scaled(tmp_path: Path, bits, colour_type):
    values = np.array([[0, 1, 2**bits - 1], [1, 0, 1]], np.uint8)
    (tmp_path / "m.png").write_bytes(low_bit_png(values, bits, colour_type))
    np.testing.assert_array_equal(decode_mask(tmp_path / "m.png"), values)


def test_other_pictures_are_no_masks(tmp_path: Path):
    path = tmp_path / "m.png"
    path.write_bytes(low_bit_png(np.array([[0, 1]], np.uint8), 1))
    with pytest.raises(DataError, match=r"m\.png: a picture of mode 1"):
        decode_mask(path)
    Image.fromarray(MASK.astype(np.uint16)).save(path)
    with pytest.raises(DataError, match=r"m\.png: a picture of mode I"):
        decode_mask(path)
    Image.fromarray(MASK).save(path, format="JPEG")
    with pytest.raises(DataError, match=r"m\.png: a JPEG picture"):
        decode_mask(path)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_grey_images_of_more_than_8_bits_are_refused_and_not_clipped(tmp_path: Path, kind):
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((2, 3), 40_000, kind)).save(path)
    with pytest.raises(DataError, match=r"a\.tif: grey values of more than 8 bits"):
        decode_image(path)


# --- file names


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".JPEG", ".png"])
def test_images_are_found_under_other_suffixes(voc: Path, suffix):
    for path in (voc / "JPEGImages").iterdir():
        path.rename(path.with_suffix(suffix))
    data = DATASET.open(voc)
    assert data.image_path(VAL[0]).name == VAL[0] + suffix
    assert data.split("val").image(VAL[0]).shape == (12, 16, 3)
    assert data.ids(Split.TEST)
    assert list(data.layout_problems()) == []


def test_the_usual_suffix_wins_and_two_unusual_files_of_one_id_are_an_error(voc: Path):
    images = voc / "JPEGImages"
    shutil.copy(images / f"{VAL[0]}.jpg", images / f"{VAL[0]}.png")
    data = DATASET.open(voc)
    assert data.image_path(VAL[0]).name == f"{VAL[0]}.jpg"
    (problem,) = data.layout_problems()
    assert (problem.severity, problem.file.name) == ("warning", f"{VAL[0]}.png")
    assert "the .jpg is read" in problem.message
    (images / f"{VAL[0]}.jpg").rename(images / f"{VAL[0]}.JPEG")
    (problem,) = DATASET.open(voc).layout_problems()
    assert problem.severity == "error"
    assert f"{VAL[0]}.JPEG, {VAL[0]}.png" in problem.message


def test_masks_annotations_and_saliency_maps_are_found_in_upper_case(voc: Path, tmp_path: Path):
    saliency = tmp_path / "saliency"
    shutil.copytree(voc / "SegmentationClass", saliency)
    for folder in (voc / "SegmentationClass", voc / "Annotations", saliency):
        for path in folder.iterdir():
            path.rename(path.with_suffix(path.suffix.upper()))
    data = DATASET.open(voc, saliency=saliency)
    assert data.mask_path(VAL[0]) == voc / "SegmentationClass" / f"{VAL[0]}.PNG"
    assert {i: data.tags(i) for i in LABELS} == LABELS
    assert data.saliency_path(VAL[0]) == saliency / f"{VAL[0]}.PNG"


def test_hidden_files_are_no_data(voc: Path):
    (voc / LISTS / "train_aug.txt").unlink()
    for image_id in EXTRA:
        (voc / "SegmentationClassAug" / f"._{image_id}.png").write_bytes(b"Mac")
    (voc / "SegmentationClassAug" / "Thumbs.db").write_bytes(b"Windows")
    for image_id in TRAIN:
        write_mask(voc / "SegmentationClassAug" / f"{image_id}.png", mask_of((1,)))
    assert DATASET.open(voc).ids(Split.WEAK) == (*TRAIN, *EXTRA)
    shutil.rmtree(voc / "Annotations")
    (voc / "Annotations").mkdir()
    (voc / "Annotations" / f"._{VAL[0]}.xml").write_bytes(b"Mac")
    assert DATASET.open(voc).tag_source == "masks"


# --- lists

LISTED = {
    "plain": "{i}\n",
    "pairs": "/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n",
    "backslashes": "JPEGImages\\{i}.jpg SegmentationClassAug\\{i}.png\r\n",
    "carriage returns": "{i}\r",
    "blank lines": "\n {i}  \t\r\n\n",
    "suffixes": "{i}.JPG {i}.png\n",
    "commas": "{i}.jpg,{i}.png\n",
    "quotes": '"{i}"\n',
    "joined files": "\ufeff{i}\n",
    "copied from a page": "\u200b{i}\n",
}


@pytest.mark.parametrize("form", LISTED)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists(tmp_path: Path, form, encoding):
    ids = ("2007_000032", "2007.v2", "img-3")
    path = tmp_path / "val.txt"
    path.write_bytes("".join(LISTED[form].format(i=i) for i in ids).encode(encoding))
    assert read_list(path) == ids


@pytest.mark.parametrize("content", ["a\n".encode("utf-16-le"), b"\xff\xfe\xfd", "é\n".encode("latin-1")])
def test_lists_of_other_encodings_are_refused(tmp_path: Path, content):
    (tmp_path / "val.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"val\.txt: not a readable text file"):
        read_list(tmp_path / "val.txt")


# --- tags

OBJECT = "<object><name>Dog</name><part><name>x</name></part></object>"
XML = "<annotation{space}><folder>图</folder>" + OBJECT + "</annotation>"
DECLARED = '<?xml version="1.0" encoding="{}"?>\n'


@pytest.mark.parametrize(
    "content",
    [
        (DECLARED.format("GBK") + XML.format(space="")).encode("gbk"),
        (DECLARED.format("gb2312") + XML.format(space="")).encode("gb2312"),
        (DECLARED.format("Big5") + XML.format(space="").replace("图", "圖")).encode("big5"),
        (DECLARED.format("utf-8") + XML.format(space="")).encode("gbk"),
        (DECLARED.format("nonsense") + XML.format(space="")).encode(),
        (DECLARED.format("utf-16") + XML.format(space="")).encode(),
        (DECLARED.format("utf-16") + XML.format(space="")).encode("utf-16"),
        XML.format(space="").encode("gbk"),
        XML.format(space="").encode("utf-8-sig"),
        ("\n" + DECLARED.format("utf-8") + XML.format(space="")).encode(),
        XML.format(space=' xmlns="http://example.org/voc"').encode(),
    ],
)
def test_xml_in_every_encoding_and_with_a_namespace(voc: Path, content):
    path = voc / "Annotations" / f"{VAL[0]}.xml"
    path.write_bytes(content)
    assert xml_names(path) == ["Dog"]
    assert DATASET.open(voc).tags(VAL[0]) == (12,)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("<html><object><name>dog</name></object></html>", "not a VOC annotation, its root is <html>"),
        ("<annotation><object><pose/></object></annotation>", "object 1 has no name"),
        ("<annotation><object><name>dog</name></object><object><name> </name></object></annotation>", "object 2"),
        ("", "broken XML"),
    ],
)
def test_xml_that_would_lose_tags_is_refused(tmp_path: Path, content, fault):
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(DataError, match=rf"a\.xml: .*{fault}"):
        xml_names(tmp_path / "a.xml")


EXPECTED = {"2007_000032": (1, 15), "2007_000033": ()}
CSV = "image_id,classes\n2007_000032,aeroplane person\n2007_000033,\n"


@pytest.mark.parametrize(
    "content",
    [
        CSV.encode(),
        CSV.encode("utf-8-sig"),
        CSV.encode("utf-16"),
        CSV.replace("\n", "\r\n").encode(),
        CSV.replace(",", ";").encode(),
        CSV.replace("classes", " Classes ").replace(",", " , ").encode(),
        CSV.replace("032,", "032.jpg,").encode(),
        CSV.replace("2007_000032", "JPEGImages/2007_000032.jpg").encode(),
        CSV.replace("aeroplane person", "Aeroplane  PERSON ").encode(),
        CSV.replace("aeroplane person", '"aeroplane, person"').encode(),
        CSV.replace("aeroplane person", "aeroplane;person").encode(),
        (CSV + "\n \n").encode(),
    ],
)
def test_csv_tags_as_spreadsheets_write_them(tmp_path: Path, content):
    (tmp_path / "tags.csv").write_bytes(content)
    assert tag_table(tmp_path / "tags.csv", CLASSES) == EXPECTED


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("2007_000032,cat", r"tags\.csv, line 4: the image 2007_000032 again"),
        ("a,cat,dog", r"tags\.csv, line 4: 3 columns"),
        ("a", r"tags\.csv, line 4: 1 columns"),
        (",cat", r"tags\.csv, line 4: no image id"),
        ("a,cta", r"tags\.csv, line 4: unknown class 'cta'. Did you mean 'cat'"),
    ],
)
def test_csv_rows_that_would_lose_tags_are_refused_by_line(tmp_path: Path, row, fault):
    (tmp_path / "tags.csv").write_text(f"{CSV}{row}\n")
    with pytest.raises(DataError, match=fault):
        tag_table(tmp_path / "tags.csv", CLASSES)


ROW = np.isin(np.arange(1, 21), (1, 15))


@pytest.mark.parametrize("row", [ROW, ROW.astype(np.uint8), ROW.astype(np.float32), ROW.astype(int).tolist()])
@pytest.mark.parametrize("key", ["2007_000032", 2007000032, np.int64(2007000032), b"2007_000032"])
def test_npy_tags_of_every_type(tmp_path: Path, row, key):
    np.save(tmp_path / "cls_labels.npy", {key: row})  # type: ignore[arg-type]
    assert tag_table(tmp_path / "cls_labels.npy", CLASSES) == {"2007_000032": (1, 15)}


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"a": np.where(ROW, 1, -1)}, "the tags of a are -1; expected only 0 and 1"),
        ({"a": np.where(ROW, 0.97, 0.03)}, "the tags of a are 0.97, 0.03"),
        ({"a": np.where(ROW, 1, np.nan)}, "the tags of a are nan"),
        ({"a": np.concatenate([[True], ROW])}, r"the tags of a have shape \(21,\)"),
        ({"a": ROW[None]}, r"the tags of a have shape \(1, 20\)"),
        ({"a": [1, 15]}, r"the tags of a have shape \(2,\)"),
        ({"a": [[1], [1, 15]]}, "the tags of a are not an array"),
        ({"a": ["cat"] * 20}, "the tags of a are cat"),
        ({"a.jpg": ROW}, "its keys are file names such as a.jpg"),
        ({"2007_000032": ROW, 2007000032: ROW}, "the image 2007_000032 again"),
        (np.stack([ROW, ROW]), "expected a dictionary from image ids to arrays, found ndarray"),
    ],
)
def test_npy_tags_that_mean_something_else_are_refused(tmp_path: Path, table, fault):
    np.save(tmp_path / "cls_labels.npy", table)
    with pytest.raises(DataError, match=rf"cls_labels\.npy: {fault}"):
        tag_table(tmp_path / "cls_labels.npy", CLASSES)
