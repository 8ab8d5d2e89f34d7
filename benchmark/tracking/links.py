"""Addresses of MLflow's pages that show the runs of a sweep side by side."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlencode

from seedbed.benchmark.tracking.store import EXPERIMENT

NEWEST = 5
"""Number of sweeps that get a link."""
CHARTS = {"orderByKey": "attributes.start_time", "orderByAsc": "false", "compareRunsMode": "CHART"}


def chart_links(address: str, database: Path) -> Iterator[tuple[str, str]]:
    """Yield what each link shows, and the link: the trials of the newest sweeps, and those of `seedbed run`.

    `address` is that of the MLflow server, which has a local `database`.
    """
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        query = """select runs.experiment_id, tags.value, count(*) from tags join runs using (run_uuid)
            join experiments on experiments.experiment_id = runs.experiment_id
            where experiments.name = ? and runs.lifecycle_stage = 'active' and tags.key = 'seedbed.sweep'
            and runs.run_uuid in (select run_uuid from tags where key = 'seedbed.kind' and value = 'trial')
            group by tags.value order by max(start_time) desc"""
        found = connection.execute(query, [EXPERIMENT]).fetchall()
    for experiment, sweep, count in found[:NEWEST]:
        runs = f"tags.`seedbed.kind` = 'trial' and tags.`seedbed.sweep` = '{sweep}'"
        query = urlencode({"searchFilter": runs, **CHARTS}, quote_via=quote)
        what = f"the sweep {sweep}" if sweep else "`seedbed run`"
        yield f"{what}, {count} trials", f"{address}#/experiments/{experiment}/runs?{query}"
