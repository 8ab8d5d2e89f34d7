"""What the driver tells the listeners of a sweep."""

from __future__ import annotations

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps import driver
from tests.helpers.sweeping import end, run_to_its_end, scheduler_of, small


class Notes:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def sweep_started(self, folder) -> None:
        assert (folder / "sweep.json").exists()
        self.told.append(("started", folder))

    def trial_ended(self, trial) -> None:
        assert (trial / "result.json").exists()
        self.told.append(("ended", trial))

    def sweep_stopped(self, finished) -> None:
        self.told.append(("stopped", finished))


@pytest.fixture
def settings(chimera_root):
    return small(chimera_root, refiners=["none"], trials=0, seeds=[0, 1])


def test_a_finished_sweep_starts_and_stops(settings, tmp_path):
    run_to_its_end(scheduler_of(settings, tmp_path))
    notes = Notes()
    result = driver.run_sweep(settings, WorkFolder(tmp_path), [notes])
    assert notes.told == [("started", result.folder), ("stopped", True)]


def test_each_trial_is_told_and_a_sweep_that_breaks_is_not_finished(settings, tmp_path, monkeypatch):
    notes = Notes()

    def tune(plan, scheduler, listeners, *_):
        spec = scheduler.next_trial()
        end(scheduler, spec)
        for listener in listeners:
            listener.trial_ended(scheduler.folder(spec))
        raise ConfigError("Ray is gone")

    monkeypatch.setattr(driver, "_tune", tune)
    with pytest.raises(ConfigError, match="Ray is gone"):
        driver.run_sweep(settings, WorkFolder(tmp_path), [notes])
    assert [what for what, _ in notes.told] == ["started", "ended", "stopped"]
    assert notes.told[-1] == ("stopped", False)
