"""A site for tests: two methods, one of which has a hostile name, a study, printed numbers, figures, a gallery."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from seedbed.benchmark.evaluation.maps import MapWriter, ScoreMaps
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.studies.reported import ReportedPaper, ReportedRow, ReportedTable
from seedbed.benchmark.studies.result import StudyResult, read_studies
from seedbed.datasets.io.images import write_mask
from seedbed.leaderboard.analysis.ranking import board_of
from seedbed.leaderboard.analysis.result import Analysis, AverageRank, Comparison, GroupAnalysis
from seedbed.leaderboard.data.snapshot import Run, runs_of, table_of
from seedbed.leaderboard.figures.style import Figure
from seedbed.leaderboard.site.content import Content
from seedbed.leaderboard.site.gallery import draw_gallery
from seedbed.leaderboard.site.write import write_site
from tests.leaderboard.tables.test_leaderboard import DEFAULT

HOSTILE = "<script>alert(1)</script>\"'&\u202eevil"
"""Markup, both quotes, and a sign that turns the direction of the text."""
MEANS = {"cam": 0.50, HOSTILE: 0.40, "sc_cam": 0.45, "broken": None}
"""mIoU on val of each method; the seeds are 0.01 around it."""
CLASSES = ("background", "griffin", HOSTILE)


def runs(dataset: str = "chimera") -> list[Run]:
    """Return three seeds of each method, at default settings; one method failed."""
    found = []
    for method, mean in MEANS.items():
        for seed in range(3):
            value = 0.0 if mean is None else mean + (seed - 1) / 100
            metrics = {
                "val/mIoU": value,
                "seed.train/mIoU_fixed": 0.2,
                "seed.train/mIoU_tuned": 0.3,
                "seed.train/threshold_tuned": 0.25,
                "pseudo_mask.train/mIoU_tuned": 1 - value,
            }
            metrics |= {f"val/IoU_{name}": value for name in CLASSES}
            run = replace(DEFAULT, method=method, dataset=dataset, seed=seed, metrics=metrics)
            if mean is None:
                run = replace(run, metrics={}, status="failed", reason=f"broke at {HOSTILE}")
            found.append(replace(run, key=f"{list(MEANS).index(method)}-{seed}"))
    return found


def study(**changes: Any) -> dict[str, Any]:
    """Return the content of a study's `table.json`."""
    empty = {"ours": None, "std": None, "low": None, "high": None, "paper": None, "difference": None}
    cell = {"ours": 50.5, "std": 1.25, "low": 48.0, "high": 52.0, "seeds": 3, "paper": 55.25, "difference": -4.75}
    return {
        "study": "svm_t2",
        "title": f"Table 2 {HOSTILE}",
        "paper": "Zhang et al.",
        "method": "sc_cam",
        "dataset": "chimera",
        "unit": "%",
        "columns": ["overlap"],
        "rows": [
            {"label": "β = 20", "cells": [cell | {"missing": ""}]},
            {"label": "β = 0", "cells": [empty | {"seeds": 0, "missing": "was not run"}]},
        ],
        "protocol": {"ours": {"backbone": "tiny"}, "paper": {"backbone": "VGG-16", "images": "10,582"}},
        "claims": [
            {"text": "20 beats 0", "verdict": "holds", "difference": 1.5, "low": 0.5, "high": 2.5, "p": 0.01}
        ],
        "notes": [f"a note {HOSTILE}"],
        "command": "seedbed study svm_t2",
        "code": "abc",
        "seeds": [0, 1, 2],
        **changes,
    }


def write_study(work: Path, **changes: Any) -> Path:
    """Write a study into a work folder; return its file."""
    content = study(**changes)
    path = work / "studies" / content["study"] / content["dataset"] / "table.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_trial(work: WorkFolder, run: Run, root: Path, maps: dict[str, ScoreMaps]) -> None:
    """Write the folder of a trial and its artifacts: the maps, and masks that are 1 everywhere."""
    folder = work.sweeps / run.sweep / "trials" / run.key
    folder.mkdir(parents=True)
    place = {"name": run.dataset, "loader": "chimera", "root": str(root), "options": {}}
    keys = {"scores": f"aa{run.key}", "masks": f"bb{run.key}"}
    (folder / "job.json").write_text(json.dumps({"place": place}))
    (folder / "config.json").write_text(json.dumps({"artifacts": keys}))
    for key in keys.values():
        work.store.path(key).mkdir(parents=True)
    with MapWriter(work.store.path(keys["scores"])) as writer:
        for image_id, image_maps in maps.items():
            writer.write(image_id, image_maps)
    for image_id, image_maps in maps.items():
        write_mask(work.store.path(keys["masks"]) / f"{image_id}.png", np.ones(image_maps.size, np.uint8))


def ramp(labels: Sequence[int], size: tuple[int, int]) -> ScoreMaps:
    """Return maps whose scores rise from 0 at the left to 1 at the right, the same for each label."""
    row = np.linspace(0, 1, size[1], dtype=np.float32)
    scores = np.broadcast_to(row, (len(labels), *size)).copy()
    return ScoreMaps(np.array(labels, np.int16), scores, size)


def predict_nothing(folder: Path, ids: Sequence[str]) -> Path | None:
    """Predict as a trial without a network does."""
    return None


def analysis_of(board: Any) -> Analysis:
    """Return an analysis with something of each kind."""
    comparison = Comparison(0, 1, 0.05, 0.01, 0.09, 0.02, None, None, None, together=False)
    group = GroupAnalysis({0: (0.4812, 0.5187)}, (comparison,), {0: (1, 2)})
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M0 0h9" stroke="currentColor"/></svg>'
    )
    figures = (
        Figure("intervals", "Intervals", "Of all <rows>.", svg, "row,low\ncam,0.48\n", (), "chimera"),
        Figure("importance", "Importance", "Of `lr`.", svg.replace("h9", "h8"), "lr\n1\n", ("cam",)),
    )
    ranks = (AverageRank("cam", "none", 1.0, 1.0, 1.5, 2),)
    return Analysis(tuple(group for _ in board.groups), ranks, (f"cam beats {HOSTILE}.",), figures)


def paper() -> ReportedPaper:
    """Return a printed table."""
    row = ReportedRow("ours <b>", "own", {"mIoU": 66.6, "other": None}, f"note {HOSTILE}")
    cited = ReportedRow("CAM", "cited", {"mIoU": 48.0, "other": 1.5}, "")
    table = ReportedTable("t1", "Table 1", "Seeds", "%", {"split": "train"}, ("mIoU", "other"), (row, cited), "")
    return ReportedPaper("sc_cam", "Sub-category Exploration", "Chang et al.", "sc_cam", (table,))


def studies(folder: Path) -> tuple[StudyResult, ...]:
    """Return the study of `write_study`, read from a folder."""
    write_study(folder)
    return read_studies(folder / "studies")


def build_site(folder: Path, root: Path) -> tuple[Path, Content]:
    """Write the site of all this into a folder, with the images of the Chimera at `root`; return its folder."""
    from seedbed.datasets.chimera import DATASET

    found, board = tuple(runs()), board_of(runs_of(table_of(runs())))
    work = WorkFolder(folder / "work")
    view = DATASET.open(root).split("train")
    maps = {image_id: ramp(view.tags(image_id), view.size(image_id)) for image_id in view.ids}
    for run in found:
        if run.seed == 0 and run.status == "complete":
            write_trial(work, run, root, maps)
    galleries = draw_gallery(found, work, folder / "site", 3, predict_nothing)
    content = Content(board, found, analysis_of(board), studies(folder / "work"), (paper(),), galleries)
    write_site(folder / "site", content)
    for name in ("leaderboard.md", "leaderboard.tex", "leaderboard.csv", "results.parquet"):
        (folder / "site" / name).touch()
    return folder / "site", content
