"""Links to MLflow's charts of a sweep's trials."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest

from seedbed.benchmark.tracking.links import NEWEST, chart_links
from tests.helpers.tracker import Tracker


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return Tracker(tmp_path_factory.mktemp("mlflow"))


def test_the_newest_sweeps_and_single_runs_have_links_that_find_their_trials(tracker):
    assert list(chart_links("http://127.0.0.1:5000/", tracker.database)) == []
    for moment, sweep in enumerate(["old", *(f"s{n}" for n in range(NEWEST - 1)), ""]):
        for trial in range(2):
            tags = {"seedbed.kind": "trial", "seedbed.sweep": sweep}
            run = tracker.client.create_run(tracker.experiment, start_time=1000 * (moment + 1) + trial, tags=tags)
        tracker.client.create_run(tracker.experiment, tags={"seedbed.kind": "sweep", "seedbed.sweep": sweep})
    tracker.client.delete_run(run.info.run_id)
    links = dict(chart_links("http://127.0.0.1:5000/", tracker.database))
    assert [*links][:2] == ["`seedbed run`, 1 trials", f"the sweep s{NEWEST - 2}, 2 trials"]
    assert len(links) == NEWEST
    assert not any("old" in what for what in links)
    page, _, query = links["the sweep s0, 2 trials"].partition("?")
    assert page == f"http://127.0.0.1:5000/#/experiments/{tracker.experiment}/runs"
    condition = parse_qs(query)["searchFilter"][0]
    assert len(tracker.client.search_runs([tracker.experiment], condition)) == 2
    assert parse_qs(query)["compareRunsMode"] == ["CHART"]
