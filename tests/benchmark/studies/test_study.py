"""Studies as declared: every table of the papers has one, and what is wrong in a file is refused by name."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.per_image import Ratios, ratios_of
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.studies.intervals import (
    difference_over_images,
    difference_over_seeds,
    over_images,
    over_seeds,
)
from seedbed.benchmark.studies.reported import papers, table
from seedbed.benchmark.studies.result import StudyCell, study_of
from seedbed.benchmark.studies.run import StudyRequest, sweep_of, verdict
from seedbed.benchmark.studies.study import FOLDER, measure_of, read_study, study_names
from seedbed.leaderboard.tables.study import as_csv, as_latex, as_markdown, as_text, cell_text, claim_text
from tests.conftest import CHECKOUT
from tests.helpers.command_line import seedbed


def test_every_table_of_the_papers_has_a_study_and_every_study_a_table():
    assert study_names() == sorted(table.id for paper in papers() for table in paper.tables)
    wanted = {"svm": 7, "icd": 8, "rrm": 5, "esol": 6}
    for paper, count in wanted.items():
        assert {f"{paper}_t{number}" for number in range(1, count + 1)} <= {*study_names()}
    assert {f"mixup_t2_{n}" for n in (1, 2, 3)} | {f"mixup_f2_5{p}" for p in "abc"} <= {*study_names()}
    assert {f"sccam_t3_{n}" for n in (1, 2, 3, 4)} | {"sccam_f3_4", "advcam_t1"} <= {*study_names()}


@pytest.mark.parametrize("name", study_names())
def test_a_study_is_about_its_papers_method_and_measures_all_rows_that_are_not_cited(name):
    study = read_study(name)
    assert study.table.id == name
    own = {row.label for row in study.table.rows if row.own != "cited"}
    # Two tables have rows that nobody can repeat: other papers' maps, and rows that cannot be read.
    unknown = {label for label in own if "mask generation" in label or "unreadable" in label}
    assert own - unknown <= {*study.rows}
    for claim in study.claims:
        printed = [study.table.value(*place) for place in (claim.higher, claim.lower)]
        assert None in printed or printed[0] > printed[1], claim.text


def test_reported_numbers_are_the_papers():
    _, reported = table("svm_t2")
    assert reported.value("w/ Inter, mSoft_rec", "beta_50") == 49.15
    assert reported.value("w/ Inter, mSoft_rec", "beta_7") is None
    assert table("rrm_t1")[1].unit == "fraction"
    assert table("sccam_f3_4")[1].value("SC-CAM", "10") == 49.6
    with pytest.raises(ConfigError, match="unknown table 'svm_t99'"):
        table("svm_t99")


def test_reported_rows_say_whose_they_are_and_means_agree_with_their_classes():
    for paper in papers():
        for each in paper.tables:
            assert len({row.label for row in each.rows}) == len(each.rows)
            for row in each.rows:
                assert row.own in ("own", "baseline", "cited")
                assert {*row.values} == {*each.columns}
                if "background" in each.columns:
                    classes = [row.values[c] for c in each.columns if c != "mIoU"]
                    assert np.mean(classes) == pytest.approx(row.values["mIoU"], abs=0.06)


SMALL = {
    "title": "a small one",
    "table": "icd_t1",
    "base": {"method": "icd"},
    "rows": {"CAM": {"measure": "a/b"}, "ICD": {"measure": "{which}/b", "words": {"which": "c"}}},
    "columns": {"mAP": {}},
    "claims": [{"text": "so", "higher": ["ICD", "mAP"], "lower": ["CAM", "mAP"]}],
}


def written(tmp_path: Path, **changes: object) -> str:
    content = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_study_of_ones_own_is_one_file(tmp_path):
    study = read_study(written(tmp_path))
    assert (study.name, study.rows, study.columns) == ("mine", ("CAM", "ICD"), ("mAP",))
    # Both rows are one trial, of which two records are read.
    assert [*study.variants] == ["CAM, mAP"]
    assert study.spots["ICD", "mAP"].measure == "c/b"
    assert study.claims[0].higher == ("ICD", "mAP")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titel": 1}, "unknown key 'titel'. Did you mean 'title'?"),
        ({"rows": None}, "a study needs rows"),
        ({"table": "icd_t11"}, "unknown table 'icd_t11'"),
        ({"base": {"metod": "icd"}}, "unknown key of base 'metod'. Did you mean 'method'?"),
        ({"base": {}}, "CAM, mAP: needs method"),
        ({"rows": {"CAM": {}}}, "CAM, mAP: needs measure"),
        ({"rows": {"CAN": {}}}, "unknown row of icd_t1 'CAN'. Did you mean 'CAM'?"),
        ({"columns": {"map": {}}}, "unknown column of icd_t1 'map'"),
        ({"rows": {"CAM": {"setings": {}}}}, "unknown key of rows.CAM 'setings'"),
        ({"rows": {"CAM": {"settings": 3}}}, "rows.CAM.settings: expected a table"),
        ({"rows": {"CAM": {"measure": "{x}/b"}}}, "no word for 'x'"),
        ({"claims": [{"text": "so", "higher": ["ICD", "a"], "lower": ["CAM", "mAP"]}]}, "is not a [row, column]"),
        ({"claims": [{"text": "so", "higher": ["ICD"], "lower": ["CAM", "mAP"]}]}, "= ['ICD']: expected 2 values"),
        ({"claims": [{"txt": "so"}]}, "unknown key of claims 'txt'"),
        ({"claims": 3}, "claims: expected a table. Valid: text"),
        ({"claims": [3]}, "claims: expected a table"),
        (
            {"claims": [{"text": "so", "higher": [["ICD"], "mAP"], "lower": ["CAM", "mAP"]}]},
            "claims.higher = ['ICD']: expected text",
        ),
        ({"title": 3}, "title = 3: expected text"),
        ({"table": ["icd_t1"]}, "table = ['icd_t1']: expected text"),
        ({"backbone": 16}, "backbone = 16: expected text"),
        ({"notes": [3]}, "notes = 3: expected text"),
        ({"maps_on": "test"}, "maps_on = 'test': expected one of 'train', 'val'"),
        ({"rows": {"CAM": {"segment": "yes"}}}, "rows.CAM.segment = 'yes': expected true or false"),
        ({"rows": {"CAM": {"method": 3}}}, "rows.CAM.method = 3: expected text"),
        ({"rows": {"CAM": {"words": 3}}}, "rows.CAM.words: expected a table"),
        (
            {"rows": {"CAM": {"settings": {"TrainCam": {"lr": 1}}}}},
            "TrainCam is a table; write TrainCam.lr: value",
        ),
        ({"rows": [1]}, "rows: expected a table"),
    ],
)
def test_what_is_wrong_in_a_study_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ConfigError) as caught:
        read_study(written(tmp_path, **changes))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_study_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown study 'svm_t22'\. Did you mean 'svm_t2'\?"):
        read_study("svm_t22")


def test_columns_that_are_classes_have_records_of_classes():
    study = read_study("rrm_t3")
    spot = study.spots["Ours-RRM (one-step)", "mIoU"]
    assert measure_of(study, spot, "mIoU") == "one_step.val/mIoU"
    assert measure_of(study, spot, "cat") == "one_step.val/IoU_cat"


@pytest.fixture
def request_of(tmp_path):
    from seedbed.datasets.chimera import generate

    generate(tmp_path / "small", layout="voc", images=20, size=48, seed=3)
    generate(tmp_path / "large", layout="voc", images=20, size=160, seed=3)

    def make(size: str, **changes: object) -> StudyRequest:
        return StudyRequest(dataset="chimera-voc", root=tmp_path / size, **changes)  # type: ignore[arg-type]

    return make


def test_a_study_is_a_sweep_of_its_variants(request_of, tmp_path):
    work = WorkFolder(tmp_path / "work")
    study = read_study("svm_t2")
    settings = sweep_of(study, request_of("large", seeds=(4,)), work)
    assert (settings.name, settings.trials, settings.seeds) == ("svm_t2-chimera-voc", 0, (4,))
    assert (settings.backbone, settings.maps_on) == ("vgg16", ("val",))
    assert len(settings.cells()) == 8
    assert settings.variants["w/ Inter, mSoft_pre, beta_50"].settings == {
        "TrainSplittingMerging.beta": 50,
        "TrainSplittingMerging.intersection": True,
    }
    # Small images get the small backbone, as everywhere.
    assert sweep_of(study, request_of("small"), work).backbone is None
    assert sweep_of(study, request_of("small", backbone="squeezenet"), work).backbone == "squeezenet"
    networks = {name: v.segmentation_backbone for name, v in read_study("rrm_t5").variants.items()}
    large = sweep_of(read_study("rrm_t5"), request_of("large"), work)
    assert {name: v.segmentation_backbone for name, v in large.variants.items()} == networks
    small = sweep_of(read_study("rrm_t5"), request_of("small"), work)
    assert {v.segmentation_backbone for v in small.variants.values()} == {None}


def test_what_a_study_varies_cannot_be_set(request_of, tmp_path):
    request = request_of("small", settings={"TrainSplittingMerging.beta": 3})
    with pytest.raises(ConfigError, match=r"svm_t2 varies TrainSplittingMerging\.beta, so you cannot set it"):
        sweep_of(read_study("svm_t2"), request, WorkFolder(tmp_path / "work"))


def test_the_commands_list_and_forecast(tmp_path):
    listed = seedbed(CHECKOUT, "studies").stdout
    assert all(name in listed for name in study_names())
    words = ["study", "icd_t5", "--dataset", "chimera-voc", "--dry-run", "--work", tmp_path, "--quiet"]
    told = seedbed(CHECKOUT, *words).stdout
    assert "trials: 24, cells: 8" in told
    assert "TrainIcd" in told


def test_the_files_of_the_studies_are_all_here():
    assert all(yaml.safe_load(path.read_text())["table"] == path.stem for path in FOLDER.glob("*.yaml"))


def ratios(top: list[list[float]], bottom: list[list[float]]) -> Ratios:
    return Ratios(tuple(map(str, range(len(top)))), np.array(top, float), np.array(bottom, float))


def test_parts_of_a_number_by_hand():
    """Class 0: (1 + 3) / (2 + 4); class 1: 1 / 2; class 2 has nothing to count."""
    parts = ratios([[1, 0, 0], [3, 1, 0]], [[2, 0, 0], [4, 2, 0]])
    assert parts.value() == pytest.approx((4 / 6 + 1 / 2) / 2)
    assert math.isnan(ratios([[0]], [[0]]).value())


def test_parts_of_masks_by_hand(tmp_path):
    """Image a: 3 right cats, 1 cat taken for background; image b: 2 background pixels taken for cats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from seedbed.benchmark.evaluation.scoring import MASK_SCHEMA

    rows = {"id": ["a", "a", "b"], "truth": [1, 1, 0], "predicted": [1, 0, 1], "pixels": [3, 1, 2]}
    pq.write_table(pa.table(rows, MASK_SCHEMA), tmp_path / "pseudo_mask.train_tuned.parquet")
    found = ratios_of(tmp_path, "pseudo_mask.train/mIoU_tuned", ("cat",), {})
    assert found is not None
    assert found.ids == ("a", "b")
    assert found.top.tolist() == [[0, 3], [0, 0]]
    assert found.bottom.tolist() == [[1, 4], [2, 2]]
    assert found.value() == pytest.approx((0 / 3 + 3 / 6) / 2)
    scores = ratios_of(tmp_path, "pseudo_mask.train/mF_tuned", ("cat",), {})
    assert scores is not None
    assert scores.value() == pytest.approx((0 + 2 * 3 / (4 + 5)) / 2)
    assert ratios_of(tmp_path, "pseudo_mask.train/IoU_cat_tuned", ("cat",), {}).value() == pytest.approx(3 / 6)
    assert ratios_of(tmp_path, "pseudo_mask.train/IoU_dog_tuned", ("cat",), {}) is None


def test_an_interval_is_around_the_number_and_shrinks_with_more_images():
    random = np.random.default_rng(0)
    widths = []
    for images in (50, 800):
        hits = random.random((images, 3))
        parts = Ratios(tuple(map(str, range(images))), hits, np.ones((images, 3)))
        estimate = over_images({0: parts})
        assert estimate.low < parts.value() < estimate.high
        widths.append(estimate.high - estimate.low)
    # The standard error of a mean falls by √16.
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.2)


def test_equal_numbers_differ_by_nothing_and_a_planted_difference_is_found():
    random = np.random.default_rng(1)
    base = random.random((200, 2))
    one = Ratios(tuple(map(str, range(200))), base, np.ones((200, 2)))
    more = Ratios(one.ids, base + 0.05 + 0.1 * random.standard_normal((200, 2)), one.bottom)
    same = difference_over_images({0: one, 1: one}, {0: one, 1: one})
    assert (same.low, same.high, same.p) == (0, 0, 1)
    found = difference_over_images({0: more}, {0: one})
    assert found.low > 0
    assert found.p < 0.01


def test_intervals_over_seeds_are_students():
    """Of 1, 2, 3: mean 2, s/√3 = 1/√3, t(0.975, 2) = 4.303."""
    estimate = over_seeds([1, 2, 3])
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    paired = difference_over_seeds([2, 4, 6], [1, 2, 3])
    assert paired == estimate
    assert over_seeds([1]) is None
    assert over_seeds([0, 0]).p == 1


def test_a_verdict_needs_an_interval_on_one_side():
    assert verdict(0.1, 0.4) == "holds"
    assert verdict(-0.4, -0.1) == "does not hold"
    assert verdict(-0.1, 0.4) == verdict(float("nan"), 1) == "undecided"


CELL: dict[str, Any] = {
    "ours": 41.2,
    "std": 0.314,
    "low": 40.0,
    "high": 42.0,
    "seeds": 3,
    "paper": 48.3,
    "difference": -7.1,
    "missing": "",
}
RESULT = {
    "study": "mine",
    "title": "a <b>small</b> one",
    "paper": "Somebody, Table 1",
    "method": "icd",
    "dataset": "chimera",
    "unit": "%",
    "columns": ["m_IoU", "test"],
    "rows": [
        {
            "label": "A | B",
            "own": "own",
            "cells": [CELL, {**CELL, "ours": None, "missing": "secret"}],
        }
    ],
    "protocol": {"ours": {"seeds": "0, 1, 2"}, "paper": {"split": "val"}},
    "claims": [
        {
            "text": "it rises",
            "verdict": "holds",
            "difference": 1.0,
            "low": 0.5,
            "high": 1.5,
            "p": 0.01,
            "paper": 2.0,
        }
    ],
    "notes": ["a note"],
    "command": "seedbed study mine",
    "code": "abc",
    "seeds": [0, 1, 2],
}


def test_a_table_tells_ours_the_papers_and_the_difference():
    assert cell_text(StudyCell(**CELL), 2) == "41.20 ± 0.31 (48.30, −7.10)"
    assert cell_text(StudyCell(**{**CELL, "ours": None}), 2) == "– (48.30)"
    assert cell_text(StudyCell(**{**CELL, "paper": None, "difference": None, "std": None}), 2) == "41.20 (–)"
    fraction = StudyCell(**{**CELL, "ours": 0.6, "std": None, "paper": 0.55, "difference": 0.05})
    assert cell_text(fraction, 3) == "0.600 (0.550, +0.050)"
    told = claim_text(study_of(RESULT).claims[0], 2)
    assert told == "holds: it rises (+1.00, 95 % interval +0.50 to +1.50, p = 0.01; the paper has +2.00)"


def test_the_forms_of_a_table_escape_what_a_user_named():
    page = as_markdown(study_of(RESULT))
    chosen = study_of({**RESULT, "protocol": {"ours": {"classes": "2 of 6 classes: cat, cow"}, "paper": {}}})
    for text_of in (as_markdown, as_latex, as_csv, as_text):
        assert f"{chosen.dataset} (2 of 6 classes: cat, cow)" in text_of(chosen), text_of.__name__
    assert "A \\| B" in page
    assert "\\<b\\>small" in page
    assert "| 41.20 ± 0.31 (48.30, −7.10) |" in page
    assert "- A \\| B, test: secret" in page
    assert "m\\_IoU" in as_latex(study_of(RESULT))
    rows = list(csv.DictReader(io.StringIO(as_csv(study_of(RESULT)))))
    assert [row["column"] for row in rows] == ["m_IoU", "test"]
    assert (rows[0]["ours"], rows[1]["missing"]) == ("41.2", "secret")
    assert "holds: it rises" in as_text(study_of(RESULT))
    assert json.loads(json.dumps(RESULT)) == RESULT
