"""The gallery: the same images for every method, with their maps, pseudo-masks and predictions.

All photographs of a data set are below `gallery/`, so that the folder can be removed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seedbed.benchmark.errors import SeedbedError
from seedbed.benchmark.evaluation.maps import FILE as MAPS
from seedbed.benchmark.evaluation.maps import MapReader, ScoreMaps
from seedbed.benchmark.evaluation.records import RecordName, first_value
from seedbed.benchmark.paths import slug
from seedbed.benchmark.pipeline.work_folder import DatasetSpec, WorkFolder
from seedbed.datasets.base import IGNORE_INDEX, SplitView
from seedbed.datasets.io.images import decode_mask, palette
from seedbed.leaderboard.analysis.grouping import rows_by_scope
from seedbed.leaderboard.data.snapshot import Run

FOLDER = "gallery"
LONG_SIDE = 320
"""Longer side of pictures, in pixels."""
MAP_SIDE = 160
"""Longer side of maps, which are embedded in the page, in pixels."""
OPACITY = 0.6
"""Opacity of the class's colour over the photograph."""
Predict = Callable[[Path, Sequence[str]], Path | None]
"""Given the folder of a trial and ids of `train`, returns the folder of the predicted masks, or None."""


@dataclass(frozen=True)
class GalleryRun:
    """The results of one run for one image; paths are relative to the gallery's folder, None without a picture."""

    method: str
    refiner: str
    settings: str
    threshold: float
    """The chosen threshold, in [0, 1], that the map's picture shows."""
    map: str | None
    """The map as a `data:` address of an 8-bit grey PNG, 255 for a score of 1."""
    overlay: str | None
    mask: str | None
    prediction: str | None

    @property
    def name(self) -> str:
        """Return how a caption names the run."""
        return f"{self.method} + {self.refiner}, {self.settings}"


@dataclass(frozen=True)
class GalleryImage:
    """One image with the results of all runs."""

    id: str
    label: str
    """The class whose maps are shown."""
    colour: str
    """Colour of that class, as #rrggbb."""
    others: tuple[str, ...]
    """The image's other classes."""
    image: str
    truth: str
    runs: tuple[GalleryRun, ...]


@dataclass(frozen=True)
class DatasetGallery:
    """The images of one data set."""

    dataset: str
    seed: int
    """Random seed of the runs."""
    images: tuple[GalleryImage, ...]
    legend: tuple[tuple[str, str], ...] = ()
    """Name and colour (#rrggbb) of each label that a picture shows."""
    missing: str = ""
    """Why there are no images; empty if there are some."""


@dataclass(frozen=True)
class GalleryTrial:
    """A confirming trial in a sweep, with the content of its files."""

    folder: Path
    run: Run
    settings: str
    """Settings of its row: `default`, `best` or `default = best`."""
    dataset_spec: Mapping[str, Any]
    artifacts: Mapping[str, Path]


def choose(view: SplitView, count: int) -> list[tuple[str, int]]:
    """Return up to `count` ids of a split, each with the label that it is shown for, labels 1..C.

    Ids are sorted by their sha256, and classes take turns: a class repeats only after every other class with
    images left. Images without a tag are skipped.
    """
    ordered = sorted(view.ids, key=lambda image_id: hashlib.sha256(image_id.encode()).hexdigest())
    tags = {image_id: view.tags(image_id) for image_id in ordered}
    turns = dict.fromkeys(range(1, len(view.classes) + 1), 0)
    chosen: list[tuple[str, int]] = []
    while len(chosen) < min(count, len(ordered)):
        taken = {image_id for image_id, _ in chosen}
        left = [(i, label) for i in ordered if i not in taken for label in tags[i]]
        if not left:
            break
        # `min` returns the first id among equal turns.
        image_id, label = min(left, key=lambda pair: turns[pair[1]])
        turns[label] += 1
        chosen.append((image_id, label))
    return chosen


def draw_gallery(
    runs: Iterable[Run], work: WorkFolder, out: Path, count: int, predict: Predict
) -> tuple[DatasetGallery, ...]:
    """Write the pictures of `count` images per data set below `out/gallery`; return the content of the pages.

    The gallery shows the complete confirming runs of the lowest seed whose trials are in the work folder. Results
    that are no longer in the store are skipped.
    """
    trials: dict[str, list[GalleryTrial]] = {}
    for trial in _trials(runs, work):
        trials.setdefault(trial.run.dataset, []).append(trial)
    return tuple(_draw(name, found, work, out / FOLDER, count, predict) for name, found in sorted(trials.items()))


def _trials(runs: Iterable[Run], work: WorkFolder) -> list[GalleryTrial]:
    confirmed = [
        (run, entry.settings)
        for lines in rows_by_scope(runs).values()
        for entry in lines
        for run in entry.confirm
        if run.status == "complete"
    ]
    lowest: dict[str, int] = {}
    for run, _ in confirmed:
        lowest[run.dataset] = min(run.seed, lowest.get(run.dataset, run.seed))
    found = []
    for run, settings in confirmed:
        folder = work.sweeps / run.sweep / "trials" / run.key
        if run.seed != lowest[run.dataset] or not (folder / "config.json").is_file():
            continue
        config, job = (json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "job.json"))
        paths = {name: work.store.folder(key) for name, key in config["artifacts"].items()}
        kept = {name: path for name, path in paths.items() if path.is_dir()}
        if {"scores", "masks"} & set(kept):
            found.append(GalleryTrial(folder, run, settings, job["place"], kept))
    return sorted(found, key=lambda trial: (trial.run.method, trial.run.refiner, trial.settings != "default"))


def _draw(
    name: str, trials: Sequence[GalleryTrial], work: WorkFolder, out: Path, count: int, predict: Predict
) -> DatasetGallery:
    try:
        first = trials[0]
        view = work.current(DatasetSpec(**first.dataset_spec), first.run.data_digest).open().split("train")
    except SeedbedError:
        missing = "The data set is no longer in the folder that the runs read."
        return DatasetGallery(name, trials[0].run.seed, (), missing=missing)
    chosen = choose(view, count)
    ids = [image_id for image_id, _ in chosen]
    predicted = [predict(trial.folder, ids) for trial in trials]
    images, labels = [], set[int]()
    for image_id, label in chosen:
        picture = view.image(image_id)
        files = _Files(out, f"{slug(name)}/{slug(image_id)}", labels)
        shown = [
            _shown(files, trial, number, folder, image_id, label, picture)
            for number, (trial, folder) in enumerate(zip(trials, predicted, strict=True), 1)
        ]
        images.append(
            GalleryImage(
                id=image_id,
                label=view.classes[label - 1],
                colour=_colour(label),
                others=tuple(view.classes[other - 1] for other in view.tags(image_id) if other != label),
                image=files.photograph("image", picture),
                truth=files.mask("truth", view.mask(image_id)),
                runs=tuple(shown),
            )
        )
    names = {0: "background", **dict(enumerate(view.classes, 1)), IGNORE_INDEX: "not counted"}
    legend = tuple((names.get(label, f"label {label}"), _colour(label)) for label in sorted(labels))
    return DatasetGallery(name, trials[0].run.seed, tuple(images), legend)


def _shown(
    files: _Files,
    trial: GalleryTrial,
    number: int,
    predicted: Path | None,
    image_id: str,
    label: int,
    picture: NDArray[np.uint8],
) -> GalleryRun:
    run, threshold = trial.run, threshold_of(trial.run)
    grey = None
    if "scores" in trial.artifacts and (trial.artifacts["scores"] / MAPS).is_file():
        grey = grey_map(MapReader(trial.artifacts["scores"]).read(image_id), label)
    masks = {"mask": trial.artifacts.get("masks"), "prediction": predicted}
    drawn = {
        what: None if folder is None else files.mask(f"{number}-{what}", decode_mask(folder / f"{image_id}.png"))
        for what, folder in masks.items()
    }
    return GalleryRun(
        method=run.method,
        refiner=run.refiner,
        settings=trial.settings,
        threshold=threshold,
        map=None if grey is None else _embedded(grey),
        overlay=None if grey is None else files.overlay(f"{number}-map", picture, grey, label, threshold),
        **drawn,
    )


def threshold_of(run: Run) -> float:
    """Return the threshold of a run's maps: tuned, else the paper's, else 0; clipped to [0, 1]."""
    names = [RecordName("seed", "train", "threshold", "tuned"), RecordName("seed", "train", "threshold", "fixed")]
    return min(max(first_value(names, run.metrics) or 0.0, 0.0), 1.0)


def grey_map(maps: ScoreMaps, label: int) -> NDArray[np.uint8]:
    """Return the map of a label as uint8 (h, w), scores [0, 1] as 0 to 255, clipped; zeros without a map.

    It has the image's proportions, and its longer side is at most MAP_SIDE.
    """
    channel = np.flatnonzero(maps.labels == label)
    full = maps.at_full_size()[channel[0]] if len(channel) else np.zeros(maps.size, np.float32)
    small = Image.fromarray(full).resize(_fitted(full.shape[1], full.shape[0], MAP_SIDE), Image.Resampling.BOX)
    return np.rint(255 * np.clip(np.asarray(small), 0, 1)).astype(np.uint8)


def above(grey: NDArray[np.uint8], threshold: float) -> NDArray[np.bool_]:
    """Return where a grey map is greater than a threshold in [0, 1], as the page's slider shows it."""
    return np.asarray(grey > 255 * threshold)


@dataclass(frozen=True)
class _Files:
    """Writes the pictures of one image below the gallery's folder, and returns their relative paths."""

    out: Path
    prefix: str
    labels: set[int]
    """The labels of all masks that were written."""

    def photograph(self, what: str, picture: NDArray[np.uint8]) -> str:
        """Write an image (H, W, 3) as JPEG."""
        return self._save(f"{what}.jpg", _smaller(Image.fromarray(picture), Image.Resampling.LANCZOS))

    def mask(self, what: str, labels: NDArray[np.uint8]) -> str:
        """Write labels (H, W) as a PNG with VOC's palette (255 is cream)."""
        self.labels.update(np.unique(labels).tolist())
        picture = _smaller(Image.fromarray(labels), Image.Resampling.NEAREST)
        picture.putpalette(palette())
        return self._save(f"{what}.png", picture)

    def overlay(
        self, what: str, picture: NDArray[np.uint8], grey: NDArray[np.uint8], label: int, threshold: float
    ) -> str:
        """Write the image with the class's colour where the map is above a threshold, as JPEG."""
        small = _smaller(Image.fromarray(picture), Image.Resampling.LANCZOS)
        where = Image.fromarray(above(grey, threshold)).resize(small.size, Image.Resampling.NEAREST)
        mixed = Image.blend(small, Image.new("RGB", small.size, tuple(map(int, _colours()[label]))), OPACITY)
        return self._save(f"{what}.jpg", Image.composite(mixed, small, where))

    def _save(self, name: str, picture: Image.Image) -> str:
        path = self.out / self.prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # `quality` affects only JPEG.
        picture.save(path, quality=85, optimize=True)
        return f"{self.prefix}/{name}"


def _smaller(picture: Image.Image, filtering: Image.Resampling) -> Image.Image:
    return picture.resize(_fitted(*picture.size, LONG_SIDE), filtering)


def _fitted(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Return the size with a longer side of at most `long_side`, never enlarged."""
    scale = min(1.0, long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _embedded(grey: NDArray[np.uint8]) -> str:
    """Return a picture as a `data:` address: a page opened from disk cannot read the pixels of other files."""
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _colour(label: int) -> str:
    """Return a label's colour as #rrggbb."""
    return "#" + bytes(_colours()[label]).hex()


def _colours() -> NDArray[np.uint8]:
    """Return the colour of each label, uint8 (256, 3)."""
    return np.frombuffer(palette(), np.uint8).reshape(256, 3)
