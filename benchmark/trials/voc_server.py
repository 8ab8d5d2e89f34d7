"""The masks of VOC's test images, as the evaluation server takes them (`seedbed export voc-test`).

OUT/results/VOC2012/Segmentation/comp6_test_cls/ID.png    palette PNGs of the images' own size
OUT/results.tgz                                           the same files under the same names, to be uploaded
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.files import atomic
from seedbed.benchmark.pipeline.stage import Context, Machine
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.trials.run import network_of, read_run, recorded_prediction
from seedbed.datasets.base import Dataset, Split, SplitView
from seedbed.datasets.io.images import BROKEN
from seedbed.datasets.subset import ClassSubset
from seedbed.datasets.voc2012 import VocDataset
from seedbed.methods.segmentation.stages import predict_masks

# comp5 is for training on VOC's images only; our networks start from ImageNet weights.
MASKS = Path("results/VOC2012/Segmentation/comp6_test_cls")
TAR = "results.tgz"
NAMED = 10
"""Maximum number of missing images to name; the others are counted."""


def export_test_masks(work: WorkFolder, run: str, data: Dataset, out: Path, machine: Machine) -> Path:
    """Predict `test` with the network of a finished run, check the masks, and return the tar for the server.

    Trains nothing, and overwrites earlier masks in `out`. Raises ConfigError if the run or its network does not
    exist or does not fit the data set; DataError, without writing a tar, if test images are missing or the server
    would refuse the submission.
    """
    description = read_run(work, run)
    network, stage = network_of(work, run), recorded_prediction(description)
    if tuple(description["data"]["classes"]) != data.classes:
        raise ConfigError(f"{data.root}: {data.name} has other classes than the data of {run}; see --dataset")
    view = images_of_test(data)
    folder, tar = out / MASKS, out / TAR
    folder.mkdir(parents=True, exist_ok=True)
    # An earlier tar must not lie beside masks that it does not contain.
    tar.unlink(missing_ok=True)
    trial = description["trial"]
    context = Context(trial["seed"], Split.TEST, folder, trial.get("precision", "fp32"), **vars(machine))
    predict_masks(stage, network, view, folder, context)
    if problems := check_submission(folder, view):
        raise DataError(f"{folder}: not what the server takes, so no {TAR} was written\n" + "\n".join(problems))
    write_tar(tar, folder)
    return tar


def images_of_test(data: Dataset) -> SplitView:
    """Return the split `test` with all of its images.

    Raises ConfigError if the data set is not in VOC's layout, DataError if images are missing.
    """
    if isinstance(data, ClassSubset):
        raise ConfigError(f"{data.display_name}: the server scores all classes of VOC, so a subset has no archive")
    if not isinstance(data, VocDataset):
        raise ConfigError(f"{data.root}: {data.name} is not in VOC's layout; the server takes VOC's test images")
    listed, images = data.list_file(Split.TEST), data.root / "JPEGImages"
    ids = data.ids(Split.TEST)
    if not ids:
        raise DataError(
            f"{data.root}: has no test images. They are a separate download, from VOC's evaluation server: "
            f"the images go to {images}, their list to {listed}"
        )
    missing = [image_id for image_id in ids if not data.image_path(image_id).is_file()]
    if missing:
        named = ", ".join(missing[:NAMED]) + (", …" if len(missing) > NAMED else "")
        raise DataError(f"{images}: {len(missing)} of the {len(ids)} images of {listed} are missing: {named}")
    return data.split(Split.TEST)


def check_submission(folder: Path, view: SplitView) -> list[str]:
    """Return all problems of the masks ID.png in `folder`, each with its file.

    There must be one palette PNG per image of `view`, of the image's size, with labels 0..C, and nothing else.
    Raises DataError if the size of an image cannot be read.
    """
    expected = {folder / f"{image_id}.png": view.size(image_id) for image_id in view.ids}
    problems = [text for path, size in expected.items() for text in _look(path, size, len(view.classes))]
    # macOS writes .DS_Store and ._NAME; the tar leaves them out.
    extra = sorted(path for path in folder.glob("[!.]*") if path not in expected)
    return [*problems, *(f"{path}: not in the test list; remove it" for path in extra)]


def _look(path: Path, size: tuple[int, int], classes: int) -> Iterator[str]:
    if not path.is_file():
        yield f"{path}: missing"
        return
    try:
        with Image.open(path) as picture:
            form, mask = (picture.format, picture.mode), np.asarray(picture)
    except BROKEN as error:
        yield f"{path}: no readable picture ({error})"
        return
    height, width = mask.shape[:2]
    if (height, width) != size:
        yield f"{path}: is {width}x{height} pixels, its image {size[1]}x{size[0]}"
    if form != ("PNG", "P"):
        yield f"{path}: a {form[0]} of mode {form[1]}, expected a palette PNG"
    elif unknown := np.unique(mask[mask > classes]).tolist():
        yield f"{path}: labels {unknown} are outside 0..{classes}"


def write_tar(path: Path, folder: Path) -> None:
    """Write the PNGs in `folder` to a gzipped tar under the server's names; the same masks give the same bytes."""
    with (
        atomic(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for mask in sorted(folder.glob("[!.]*.png")):
            content = mask.read_bytes()
            # A bare TarInfo has no time and no owner.
            member = tarfile.TarInfo(str(MASKS / mask.name))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
