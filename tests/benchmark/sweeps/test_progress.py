"""What a sweep reports to the user and to listeners, during the run and at its end, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.cli.sweep import INCOMPLETE
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.records import Record, write_records
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps import driver
from seedbed.benchmark.sweeps.plan import plan_sweep
from seedbed.benchmark.sweeps.progress import SweepProgress, SweepResult, duration, ranked_number, time_left
from seedbed.benchmark.sweeps.settings import Cell
from seedbed.benchmark.sweeps.trial_files import ERROR, Outcome
from tests.helpers.sweeping import end, run_to_its_end, scheduler_of, small

CAM, IRN = Cell("cam", "none", "voc2012"), Cell("cam", "irn", "voc2012")


def test_what_is_left_is_estimated_by_cell_and_phase():
    known = {(CAM, "search"): [10.0, 20.0], (IRN, "search"): [100.0], (CAM, "confirm"): [600.0]}
    remaining = {(CAM, "search"): 2, (IRN, "search"): 3, (CAM, "confirm"): 1, (IRN, "confirm"): 2}
    # 2 × 15 + 3 × 100 + 600, and IRN's confirming trials as long as CAM's.
    assert time_left(remaining, known) == (2 * 15 + 3 * 100 + 600 + 2 * 600, 0)


def test_search_trials_say_nothing_of_confirming_ones():
    """The trap: an estimate of 3 minutes that becomes 36 when the first confirming trial ends."""
    known = {(CAM, "search"): [10.0]}
    assert time_left({(CAM, "search"): 2, (CAM, "confirm"): 6}, known) == (20, 6)
    assert time_left({(CAM, "search"): 0, (CAM, "confirm"): 0}, known) == (0, 0)


def test_durations_are_in_words():
    assert [duration(seconds) for seconds in (3.4, 89, 90, 3600)] == ["3 s", "89 s", "2 min", "60 min"]


def record(level, split, value, selection="none"):
    return Record(level, split, "mIoU", selection, None, value, None)


@pytest.mark.parametrize(
    ("records", "shown"),
    [
        ([("pseudo_mask", "train", 0.5, "tuned"), ("segmentation", "val", 0.4123)], "  val mIoU 41.23"),
        (
            [("pseudo_mask", "train", 0.6, "oracle"), ("pseudo_mask", "train", 0.5, "tuned")],
            "  pseudo-mask mIoU 50.00",
        ),
        ([("pseudo_mask", "tune", 0.9, "tuned"), ("pseudo_mask", "train", 0.25)], "  pseudo-mask mIoU 25.00"),
        ([("seed", "train", 0.5, "tuned")], ""),
    ],
)
def test_a_confirming_trial_shows_the_number_that_the_table_ranks_by(tmp_path, records, shown):
    write_records(tmp_path / "records.parquet", [record(*values) for values in records])
    assert ranked_number(tmp_path) == shown


def test_without_records_there_is_no_number(tmp_path):
    assert ranked_number(tmp_path) == ""


class NoUploader:
    """Stands in for MLflow."""

    left = 0

    def __init__(self, *_: object) -> None: ...

    def sweep_started(self, folder: Path) -> None: ...

    def trial_started(self, trial: Path) -> None: ...

    def trial_ended(self, trial: Path) -> None: ...

    def sweep_stopped(self, finished: bool) -> None: ...


def test_lines_tell_numbers_reasons_logs_and_time(chimera_root, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    scheduler = scheduler_of(small(chimera_root, refiners=["none"], trials=2, seeds=[0]), tmp_path)
    progress = SweepProgress(scheduler, {"CPU": 1.0, "GPU": 0.0})

    def ended(**outcome) -> None:
        spec = scheduler.next_trial()
        if spec.phase == "confirm":
            write_records(scheduler.folder(spec) / "records.parquet", [record("segmentation", "val", 0.31)])
        end(scheduler, spec, started=0.0, finished=120.0, computed=1.0, **outcome)
        progress.ended(*scheduler.ended[-1])

    ended(objective=0.25)
    ended(objective=None, status="failed", reason="a NaN")
    ended()
    ended()
    cell = "cam × none × chimera-voc"
    folders = [scheduler.plan.folder / "trials" / spec.key for spec, _ in scheduler.ended]
    assert caplog.messages == [
        f"[1/4] {cell}: search 0  tune mIoU 25.00 (best 25.00)  120 s; about 60 s left, and the 2 confirming "
        "trials, which are not timed yet",
        f"[2/4] {cell}: search 1  failed: a NaN ({folders[1]})  120 s",
        f"[3/4] {cell}: default, seed 0  val mIoU 31.00  120 s; about 60 s left",
        f"[4/4] {cell}: best, seed 0  val mIoU 31.00  120 s",
    ]


def result(scheduler, seconds=30.0) -> SweepResult:
    return SweepResult("small", scheduler.plan.folder, scheduler.plan.expected(), scheduler.ended, seconds)


def test_the_last_lines_count_failures_by_reason_and_say_what_resume_does(chimera_root, tmp_path):
    scheduler = scheduler_of(small(chimera_root, refiners=["none"], trials=2, seeds=[0, 1]), tmp_path)
    while (spec := scheduler.next_trial()) is not None:
        failed = spec.number == 1 or spec.phase == "confirm"
        write_text(scheduler.folder(spec) / ERROR, "Traceback")
        how = {"status": "failed", "reason": "a NaN" if spec.number else "no space"} if failed else {}
        end(scheduler, spec, None if failed else 0.5, **how)
    what = result(scheduler)
    specs = [spec for spec, _ in scheduler.ended]
    first = next(spec for spec in specs if spec.phase == "confirm")
    assert (what.finished, what.whole, what.confirmed) == (1, False, False)
    assert list(what.lines(" --work here")) == [
        "sweep small: 1 of 6 trials finished, 5 failed  (30 s)",
        "  4 failed: no space",
        f"    first: {first.label}; log: {scheduler.folder(first) / ERROR}",
        "  1 failed: a NaN",
        f"    first: {specs[1].label}; log: {scheduler.folder(specs[1]) / ERROR}",
        "`seedbed sweep --resume small --work here` runs 4 trials again; the 1 failed search trials stay failed, "
        "since later ones were chosen knowing them",
    ]


def test_of_many_reasons_the_commonest_are_told(chimera_root, tmp_path):
    scheduler = scheduler_of(small(chimera_root, refiners=["none"], trials=0, seeds=[*range(8)]), tmp_path)
    while (spec := scheduler.next_trial()) is not None:
        end(scheduler, spec, status="failed", reason=f"reason {min(spec.trial.seed, 6)}")
    lines = list(result(scheduler).lines())
    assert lines[1] == "  2 failed: reason 6"
    assert lines[-2] == "  and 2 other reasons; each is in error.txt of its trial's folder"


@pytest.fixture
def seedbed(tmp_path, monkeypatch):
    """Return a function that runs `seedbed` in this process on the test's work folder, without MLflow."""
    monkeypatch.setattr("seedbed.benchmark.tracking.uploader.MlflowUploader", NoUploader)

    def run(*words: str):
        return CliRunner().invoke(app, [*words, "--work", str(tmp_path)])

    return run


@pytest.mark.parametrize(("status", "code"), [("complete", 0), ("pruned", 0), ("failed", INCOMPLETE)])
def test_the_exit_code_tells_whether_all_trials_finished(chimera_root, tmp_path, seedbed, status, code):
    settings = small(chimera_root, refiners=["none"], trials=0, seeds=[0, 1])
    scheduler = scheduler_of(settings, tmp_path)
    for reason in ("", "a NaN"):
        spec = scheduler.next_trial()
        end(scheduler, spec, status=status if reason else "complete", reason=reason)
    settings.save(tmp_path / "small.yaml")
    ran = seedbed("sweep", str(tmp_path / "small.yaml"))
    assert ran.exit_code == code, ran.output
    assert ("1 of 2 trials finished, 1 failed" in ran.output) == (code != 0)
    assert "next: seedbed leaderboard --sweep small" in ran.output


def test_a_sweep_of_which_nothing_finished_proposes_no_leaderboard(chimera_root, tmp_path, seedbed):
    settings = small(chimera_root, refiners=["none"], trials=0, seeds=[0])
    scheduler = scheduler_of(settings, tmp_path)
    end(scheduler, scheduler.next_trial(), status="failed", reason="broken.jpg: cut off")
    settings.save(tmp_path / "small.yaml")
    ran = seedbed("sweep", str(tmp_path / "small.yaml"))
    assert ran.exit_code == INCOMPLETE
    assert "0 of 1 trials finished, 1 failed" in ran.output
    assert "  1 failed: broken.jpg: cut off" in ran.output
    assert f"`seedbed sweep --resume small --work {tmp_path}` runs 1 trials again" in ran.output
    assert "leaderboard" not in ran.output


def test_a_study_of_which_a_trial_failed_has_the_same_exit_code(chimera_root, tmp_path, seedbed, monkeypatch):
    from seedbed.benchmark.studies.run import StudyRequest, sweep_of
    from seedbed.benchmark.studies.study import read_study

    request = StudyRequest(dataset="chimera-voc", root=chimera_root, seeds=(0,))
    settings = sweep_of(read_study("esol_t4"), request, WorkFolder(tmp_path))
    scheduler = scheduler_of(settings, tmp_path)
    while (spec := scheduler.next_trial()) is not None:
        end(scheduler, spec, status="failed", reason="too little memory")
    monkeypatch.setattr("seedbed.benchmark.sweeps.resume.forget_failures", lambda folder: 0)
    monkeypatch.setattr("seedbed.benchmark.sweeps.driver.forget_failures", lambda folder: 0)
    options = ["--dataset", "chimera-voc", "--root", str(chimera_root), "--seeds", "0"]
    ran = seedbed("study", "esol_t4", *options)
    assert ran.exit_code == INCOMPLETE, ran.output
    assert "failed: too little memory" in ran.output


def test_settings_of_methods_that_are_not_in_the_sweep_are_ignored_with_a_note(chimera_root, tmp_path, caplog):
    extra = {
        "TrainSubcategories.lr": 0.1,
        "ScCam.rounds": 1,
        "TrainSegmentation.epochs": 1,
        "CrfMasks.preset": "psa",
    }
    settings = small(
        chimera_root,
        refiners=["none"],
        segment=False,
        settings={"TrainCam.epochs": 1, **extra},
        tune=["lr", "crf"],
    )
    plan = plan_sweep(settings, WorkFolder(tmp_path))
    assert plan.cells[0].fixed == {"TrainCam.epochs": 1}
    (note,) = [line for line in caplog.messages if line.startswith("note")]
    assert note.endswith(
        "are ignored: TrainSubcategories.lr, ScCam.rounds, TrainSegmentation.epochs, CrfMasks.preset, tune crf"
    )
    json.dumps([spec.to_json() for spec in [scheduler_of(settings, tmp_path).next_trial()]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"TrainSubcategories.lrr": 1}}, r"unknown setting of TrainSubcategories 'lrr'.*'lr'"),
        ({"settings": {"ScCam.round": 1}}, r"unknown setting of ScCam 'round'.*rounds"),
        ({"settings": {"TrainKamm.lr": 1}}, r"unknown stage 'TrainKamm'.*TrainCam"),
        ({"tune": ["lr", "crv"]}, "no searched setting matches 'crv'"),
        ({"tune": ["TrainSubcategories.lr"]}, "no searched setting matches 'TrainSubcategories.lr'"),
    ],
)
def test_what_no_method_has_is_still_refused(chimera_root, tmp_path, changes, message):
    from seedbed.benchmark.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        plan_sweep(small(chimera_root, refiners=["none"], **changes), WorkFolder(tmp_path))


def test_an_outcome_of_an_earlier_version_is_read(tmp_path):
    from seedbed.benchmark.sweeps.trial_files import read_outcome

    (tmp_path / "result.json").write_text('{"key": "k", "status": "complete"}')
    assert read_outcome(tmp_path) == Outcome("k", "complete")


# What the driver tells the listeners of a sweep


class Notes:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def sweep_started(self, folder) -> None:
        assert (folder / "sweep.json").exists()
        self.told.append(("started", folder))

    def trial_started(self, trial) -> None:
        assert (trial / "job.json").exists()
        self.told.append(("began", trial))

    def trial_ended(self, trial) -> None:
        assert (trial / "result.json").exists()
        self.told.append(("ended", trial))

    def sweep_stopped(self, finished) -> None:
        self.told.append(("stopped", finished))


@pytest.fixture
def two_seeds(chimera_root):
    return small(chimera_root, refiners=["none"], trials=0, seeds=[0, 1])


def test_a_finished_sweep_starts_and_stops(two_seeds, tmp_path):
    run_to_its_end(scheduler_of(two_seeds, tmp_path))
    notes = Notes()
    result = driver.run_sweep(two_seeds, WorkFolder(tmp_path), [notes])
    assert notes.told == [("started", result.folder), ("stopped", True)]


def test_each_trial_is_told_and_a_sweep_that_breaks_is_not_finished(two_seeds, tmp_path, monkeypatch):
    notes = Notes()

    def tune(plan, scheduler, listeners, *_):
        spec = scheduler.next_trial()
        end(scheduler, spec)
        for listener in listeners:
            listener.trial_ended(scheduler.folder(spec))
        raise ConfigError("Ray is gone")

    monkeypatch.setattr(driver, "_tune", tune)
    with pytest.raises(ConfigError, match="Ray is gone"):
        driver.run_sweep(two_seeds, WorkFolder(tmp_path), [notes])
    assert [what for what, _ in notes.told] == ["started", "ended", "stopped"]
    assert notes.told[-1] == ("stopped", False)
