"""What a sweep does with what an earlier driver left: damaged files, failures, and studies of other code."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from seedbed.benchmark.errors import ConfigError, DataError, StoreError
from seedbed.benchmark.files import write_text
from seedbed.benchmark.studies.run import measured
from seedbed.benchmark.sweeps import resume, search
from seedbed.benchmark.sweeps.resume import (
    check_same_sweep,
    describe,
    forget_damaged,
    forget_failures,
    naming_other_code,
    to_retry,
)
from seedbed.benchmark.sweeps.scheduler import Scheduler
from seedbed.benchmark.sweeps.search import CellStudy, named_errors, storage_at
from seedbed.benchmark.sweeps.settings import saved_settings
from seedbed.benchmark.sweeps.trial_files import RESULT, SPEC, Outcome, read_outcome, read_spec, write_outcome
from tests.helpers.sweeping import end, run_to_its_end, scheduler_of, small


@pytest.fixture
def settings(chimera_root):
    return small(chimera_root, refiners=["none"], trials=3, seeds=[0])


def killed(settings, work: Path, ended: int) -> Scheduler:
    """Return the scheduler of a sweep that was killed after a number of trials had ended."""
    scheduler = scheduler_of(settings, work)
    for _ in range(ended):
        spec = scheduler.next_trial()
        assert spec is not None
        end(scheduler, spec, 0.1 * (spec.number or 0))
    return scheduler


@pytest.mark.parametrize("name", [RESULT, SPEC, "config.json", "losses.json", "system.json", "records.parquet"])
@pytest.mark.parametrize("content", [b"", b'{"key": "a', b"\0\0\0\0"])
def test_a_trial_with_an_empty_or_cut_file_runs_again_and_no_other(settings, tmp_path, name, content, caplog):
    killed(settings, tmp_path, 2)
    folder = tmp_path / "sweeps" / "small"
    first, second = sorted((folder / "trials").iterdir())
    (first / "delivered.json").write_text("{}")
    (first / name).write_bytes(content)
    forget_damaged(folder)
    assert str(first / name) in caplog.messages[0]
    assert len(caplog.messages) == 1
    assert read_outcome(first) is None
    assert not (first / "delivered.json").exists()
    assert read_outcome(second) is not None
    again = scheduler_of(settings, tmp_path)
    started = {spec.key for spec in run_to_its_end(again)}
    assert first.name in started
    assert second.name not in started
    assert read_spec(first).key == first.name


def test_a_trial_of_which_every_file_is_empty_runs_again(settings, tmp_path):
    killed(settings, tmp_path, 1)
    folder = tmp_path / "sweeps" / "small"
    (trial,) = (folder / "trials").iterdir()
    (trial / "config.json").write_text("{}")
    for path in trial.glob("*.json"):
        path.write_bytes(bytes(path.stat().st_size))
    forget_damaged(folder)
    assert not (trial / SPEC).exists()
    assert trial.name in {spec.key for spec in run_to_its_end(scheduler_of(settings, tmp_path))}


@pytest.mark.parametrize("content", [b"", bytes(300)])
def test_settings_that_were_lost_come_with_the_way_out(settings, tmp_path, content):
    path = tmp_path / "small" / "sweep.yaml"
    path.parent.mkdir()
    path.write_bytes(content)
    (path.parent / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"sweep\.yaml: empty.* Remove it and run"):
        saved_settings(tmp_path, "small")
    with pytest.raises(ConfigError, match=r"sweep\.yaml: empty"):
        check_same_sweep(path.parent, settings)
    path.unlink()
    check_same_sweep(path.parent, settings)


def test_a_damaged_result_has_not_ended_and_a_damaged_trial_is_named(settings, tmp_path):
    killed(settings, tmp_path, 1)
    (trial,) = (tmp_path / "sweeps" / "small" / "trials").iterdir()
    for content in ("", "{", "[]", '{"unknown": 1}'):
        (trial / RESULT).write_text(content)
        assert read_outcome(trial) is None
        (trial / SPEC).write_text(content)
        with pytest.raises(DataError, match=rf"{trial / SPEC}: .*seedbed sweep --resume small"):
            read_spec(trial)


def test_damaged_records_leave_a_study_its_other_cells(settings, tmp_path):
    scheduler = killed(settings, tmp_path, 0)
    run_to_its_end(scheduler)
    for trial in (scheduler.plan.folder / "trials").iterdir():
        (trial / "records.parquet").write_bytes(b"")
    found = measured(scheduler.plan.work, "small")
    assert all("records.parquet: not a file of records" in trial.failure for trial in found.values())


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    happened: list[str] = []
    flush, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append("flush"), flush(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (happened.append("rename"), rename(a, b))[1])
    write_text(tmp_path / "a.json", "ä")
    write_outcome(tmp_path, Outcome("k", "complete"))
    small(tmp_path).save(tmp_path / "sweep.yaml")
    assert happened == ["flush", "rename"] * 3
    assert (tmp_path / "a.json").read_bytes() == "ä".encode()


def test_an_empty_description_is_written_again(settings, tmp_path, caplog):
    plan = killed(settings, tmp_path, 0).plan
    describe(plan.folder, plan)
    before = json.loads((plan.folder / "sweep.json").read_text())
    describe(plan.folder, plan)
    assert json.loads((plan.folder / "sweep.json").read_text()) == before
    (plan.folder / "sweep.json").write_bytes(b"")
    describe(plan.folder, plan)
    assert "sweep.json is empty or cut off" in caplog.messages[0]
    after = json.loads((plan.folder / "sweep.json").read_text())
    assert {**after, "id": ""} == {**before, "id": ""}


def test_cells_that_this_code_does_not_have_are_named(settings, tmp_path):
    plan = killed(settings, tmp_path, 0).plan
    describe(plan.folder, plan)
    path = plan.folder / "sweep.json"
    content = json.loads(path.read_text())
    content["cells"][0]["refiner"] = "crf"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"cam × crf × chimera-voc is not a cell .* new name"):
        describe(plan.folder, plan)


def test_a_setting_that_other_code_had_comes_with_the_way_out(tmp_path):
    def refused() -> None:
        with naming_other_code(tmp_path):
            raise ConfigError("unknown setting of TrainCam 'old'")

    with pytest.raises(ConfigError, match=r"'old'$"):
        refused()
    write_text(tmp_path / "sweep.json", json.dumps({"cells": [], "id": "x", "code": "0123456789abcdef"}))
    with pytest.raises(ConfigError, match=r"'old'\. The sweep began with other code \(0123456789ab\).*new name"):
        refused()


def outcome(spec, status):
    return spec, Outcome(spec.key, status, "" if status == "complete" else "broken")


def test_resuming_runs_failed_confirmations_again_and_a_search_only_if_all_of_it_failed(settings, tmp_path):
    specs = run_to_its_end(scheduler_of(settings, tmp_path))
    search = [spec for spec in specs if spec.phase == "search"]
    default, best = (
        next(j for j in specs if j.phase == "confirm" and j.settings == s) for s in ("default", "best")
    )
    one_failed = [outcome(search[0], "complete"), *(outcome(spec, "failed") for spec in [*search[1:], default])]
    assert to_retry([*one_failed, outcome(best, "complete")]) == [default]
    all_failed = [outcome(spec, "failed") for spec in search]
    assert to_retry([*all_failed, outcome(default, "complete"), outcome(best, "complete")]) == [*search, best]
    assert to_retry([outcome(search[0], "pruned"), outcome(search[1], "failed")]) == []


def test_a_search_of_which_all_failed_begins_again(settings, tmp_path):
    scheduler = scheduler_of(settings, tmp_path)
    specs = run_to_its_end(scheduler)
    folder = scheduler.plan.folder
    for spec in specs:
        if spec.phase == "search":
            write_outcome(folder / "trials" / spec.key, Outcome(spec.key, "failed", "broken"))
    assert forget_failures(folder) == 4
    again = scheduler_of(settings, tmp_path)
    started = run_to_its_end(again, objective=lambda spec: 0.1 * (spec.number or 0))
    assert [spec.phase for spec in started] == ["search"] * 3 + ["confirm"]
    assert started[-1].settings == "best"
    assert again.best(started[-1]) == pytest.approx(0.2)


def test_a_lost_studies_file_is_made_again_from_what_was_started(settings, tmp_path, monkeypatch):
    first = killed(settings, tmp_path, 3)
    state = first._cells[0]
    drawn = [state.study.begin(number) for number in range(3)]
    (first.plan.folder / "studies.db").unlink()
    # Other code may suggest something else; the results belong to what was drawn then.
    monkeypatch.setattr(
        CellStudy, "suggest", lambda study, number: drawn[0] if number == 0 else pytest.fail("drawn again")
    )
    second = scheduler_of(settings, tmp_path)
    second.refresh()
    assert [second._cells[0].study.begin(number) for number in range(3)] == drawn
    assert [second._cells[0].study.value(number) for number in range(3)] == pytest.approx([0.0, 0.1, 0.2])


def test_a_damaged_studies_file_is_named(settings, tmp_path):
    folder = killed(settings, tmp_path, 1).plan.folder
    (folder / "studies.db").write_bytes(b"no database" * 100)
    with pytest.raises(
        StoreError, match=r"studies\.db: damaged \(.*\); remove it: .* seedbed sweep --resume small"
    ):
        scheduler_of(settings, tmp_path)


def test_a_studies_file_that_stays_locked_is_named(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "PATIENCE", 0)
    scheduler = killed(settings, tmp_path, 1)
    spec = scheduler.next_trial()
    lock = sqlite3.connect(scheduler.plan.folder / "studies.db", isolation_level=None)
    lock.execute("begin exclusive")
    for act in (lambda: end(scheduler, spec), lambda: scheduler_of(settings, tmp_path)):
        with pytest.raises(StoreError, match=r"studies\.db: locked by another program .*--resume small"):
            act()
    lock.execute("rollback")
    lock.close()
    # The result was written first, so nothing is lost.
    again = scheduler_of(settings, tmp_path)
    again.refresh()
    assert again.finished == 2


def test_studies_wait_longer_than_a_look_with_another_program_takes():
    assert search.PATIENCE >= 600


def test_other_errors_pass(tmp_path):
    with pytest.raises(ZeroDivisionError), named_errors(tmp_path):
        raise ZeroDivisionError


def space_of(scheduler: Scheduler) -> dict:
    return dict(scheduler.plan.cells[0].space)


@pytest.fixture
def upgraded(settings, tmp_path, monkeypatch):
    """Return a function that resumes a killed sweep with code whose search space is another one."""
    old = space_of(killed(settings, tmp_path, 2))

    def resumed(**changes) -> Scheduler:
        new = {key: value for key, value in {**old, **changes}.items() if value is not None}
        monkeypatch.setattr("seedbed.benchmark.sweeps.plan.search_space", lambda *_: new)
        scheduler = scheduler_of(settings, tmp_path)
        scheduler.refresh()
        return scheduler

    return resumed


def test_a_search_goes_on_with_the_bounds_that_it_began_with(upgraded, tmp_path):
    scheduler = upgraded(**{"TrainCam.lr": (FloatDistribution(0.5, 0.6), 0.55)})
    (note,) = scheduler.changes()
    assert note == (
        "cam × none × chimera-voc: TrainCam.lr: searched from 1e-05 to 1, logarithmically, as when the sweep "
        "began, not from 0.5 to 0.6"
    )
    run_to_its_end(scheduler)
    storage = storage_at(scheduler.plan.folder / "studies.db")
    study = optuna.load_study(storage=storage, study_name="cam × none × chimera-voc")
    assert len({str(trial.distributions["TrainCam.lr"]) for trial in study.trials}) == 1
    assert study.metric_names == ["pseudo_mask.tune/mIoU"]


def test_a_setting_that_came_later_is_not_searched_and_one_that_left_the_space_is(upgraded):
    scheduler = upgraded(**{"TrainCam.power": (FloatDistribution(0.5, 1), 0.9), "TrainCam.dropout": None})
    assert [note.partition("voc: ")[2] for note in scheduler.changes()] == [
        "TrainCam.power: not searched, as when the sweep began",
        "TrainCam.dropout: searched from 0 to 0.7, as when the sweep began",
    ]
    last = [spec for spec in run_to_its_end(scheduler) if spec.phase == "search"][-1]
    assert "TrainCam.dropout" in last.trial.settings
    assert "TrainCam.power" not in last.trial.settings


def test_what_this_code_cannot_run_is_refused_with_setting_and_way_out(upgraded, monkeypatch):
    from seedbed.benchmark.pipeline import hparams

    scheduler = upgraded(**{"TrainCam.dropout": None})
    declared = hparams.declared
    monkeypatch.setattr(
        hparams, "hints", lambda stage: {name: float for name in declared(stage) if name != "dropout"}
    )
    with pytest.raises(
        ConfigError,
        match=r"cannot continue with TrainCam\.dropout \(unknown setting of TrainCam 'dropout'.*new name",
    ):
        scheduler.changes()


def test_a_search_that_is_done_does_not_mind_other_code(upgraded):
    scheduler = upgraded(**{"TrainCam.lr": (CategoricalDistribution((0.1, 0.2)), 0.1)})
    assert scheduler.changes()
    run_to_its_end(scheduler)
    done = upgraded(**{"Gone.lr": (CategoricalDistribution((0.1, 0.2)), 0.1)})
    assert done.done
    assert done.changes() == []


def test_other_choices_do_not_stop_a_search(tmp_path):
    """The trap: Optuna refuses another set of choices within a study."""

    def study(choices) -> CellStudy:
        space = {"A.k": (CategoricalDistribution(choices), choices[0])}
        return CellStudy(storage_at(tmp_path / "s.db"), "cell", space, seed=1, trials=6, window=1)

    first = study((5, 10, 20, 50))
    for number in range(3):
        first.begin(number)
        first.finish(number, "complete", 0.1 * number, [])
    second = study((5, 10, 30))
    assert second.notes == ["A.k: searched among 5, 10, 20, 50, as when the sweep began, not among 5, 10, 30"]
    for number in range(3, 6):
        assert second.begin(number)["A.k"] in (5, 10, 20, 50)
        second.finish(number, "complete", 0.1, [])
    assert resume.to_retry([]) == []
