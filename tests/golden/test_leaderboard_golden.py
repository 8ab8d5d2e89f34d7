"""The runs in golden_leaderboard/ must give the tables there, byte for byte.

    python -m tests.golden.test_leaderboard_golden      records the tables of today's code

`sweep.json` is the plan of a small sweep, `runs.csv` has a row a run: its cell (whose conditions are in the plan),
its other tags, its stages as KEY:SECONDS, and its metrics.
"""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seedbed.leaderboard.analysis.ranking import board_of
from seedbed.leaderboard.build import FORMATS, INDEX, write_leaderboard
from seedbed.leaderboard.data.collect import run_of
from seedbed.leaderboard.data.expected import ExpectedTrials
from seedbed.leaderboard.data.snapshot import Run, runs_of, table_of
from seedbed.leaderboard.tables.compact import leaderboard as terminal

GOLDEN = Path(__file__).with_name("leaderboard")
TABLES = (INDEX, *FORMATS)
PLAN: dict[str, Any] = json.loads((GOLDEN / "sweep.json").read_text())


def tracked() -> list[tuple[dict[str, str], dict[str, float]]]:
    """Return tags and metrics of each run, as the tracker holds them."""
    cells = {(cell["dataset"], cell["method"], cell["refiner"]): cell for cell in PLAN["cells"]}
    found = []
    for row in csv.DictReader((GOLDEN / "runs.csv").open(newline="")):
        metrics = {name: float(row.pop(name)) for name in list(row) if "/" in name and row[name]}
        tags = {name: text for name, text in row.items() if "/" not in name}
        pairs = [pair.split(":") for pair in tags["stages"].split()]
        tags["stages"] = json.dumps({key: float(seconds) for key, seconds in pairs})
        cell = cells[row["dataset"], row["method"], row["refiner"]]
        tags |= {name: str(value) for name, value in cell.items() if name not in ("segment", "seeds")}
        place = (tags[name] for name in ("dataset", "method", "refiner", "phase", "settings", "number", "seed"))
        tags |= {
            "selection": "tuned",
            "seedbed.kind": "trial",
            "seedbed.sweep": PLAN["name"],
            "seedbed.key": "/".join(place),
        }
        found.append((tags, metrics))
    return found


def runs() -> list[Run]:
    """Return all runs of the golden sweep, missing ones included."""
    plan = ExpectedTrials.parse(PLAN)
    found = [run_of(tags, metrics, plan) for tags, metrics in tracked()]
    return [*found, *plan.missing(found)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Write the golden leaderboard from runs in another order."""
    shuffled = runs()
    random.Random(1).shuffle(shuffled)
    folder = tmp_path_factory.mktemp("golden") / "out"
    return folder, write_leaderboard(table_of(shuffled), folder).table


@pytest.fixture(scope="module")
def written(made: tuple[Path, str]) -> Path:
    """Return the folder of the golden leaderboard."""
    return made[0]


def without_figures(path: Path) -> bytes:
    """Return a file without what is drawn in it: matplotlib's versions draw the same figure in other words."""
    return re.sub(rb"<svg.*?</svg>", b"<svg/>", path.read_bytes(), flags=re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_the_recorded_ones(written, name):
    assert without_figures(written / name) == (GOLDEN / name).read_bytes()


def test_the_terminal_table_is_the_recorded_one(made):
    assert made[1] == (GOLDEN / "terminal.txt").read_text("utf-8")


def test_a_written_snapshot_gives_the_same_bytes_again(written, tmp_path):
    paths = write_leaderboard(written / "results.parquet", tmp_path).paths
    assert [path.name for path in paths][: 1 + len(TABLES)] == ["results.parquet", *TABLES]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(paths)
    for path in paths:
        assert path.read_bytes() == (written / path.relative_to(tmp_path)).read_bytes()


def test_the_pages_load_nothing_from_elsewhere_and_no_file_names_a_path(written):
    texts = {path: path.read_text("utf-8") for path in written.rglob("*.*") if path.suffix != ".parquet"}
    assert {path.suffix for path in texts} >= {".html", ".css", ".js", ".md", ".tex", ".csv"}
    for path, text in texts.items():
        assert str(written) not in text
        if path.suffix in (".html", ".css", ".js"):
            # Names of namespaces and pictures that lie in the page are no addresses elsewhere; what comes after #
            # is a part of the same figure.
            inside = r'xmlns(:\w+)?="[^"]*"|^ *// .*|"data:image/png;base64,[^"]*"'
            own = re.sub(inside, "", text, flags=re.MULTILINE)
            assert not re.search(r"https?:|//|@import|url\((?!#)|fetch\(|import\(", own), path


def test_the_terminal_table_is_at_most_120_columns_wide():
    named = [replace(run, method=run.method.replace("sc_cam", "splitting_merging")) for run in runs()]
    assert max(map(len, terminal(board_of(runs_of(table_of(named)))).splitlines())) <= 120


@pytest.mark.slow
def test_pdflatex_compiles_the_document(written, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    shutil.copy(written / "leaderboard.tex", tmp_path)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "leaderboard.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def main() -> None:
    """Record the tables of today's code."""
    table = table_of(runs())
    with tempfile.TemporaryDirectory() as folder:
        text = write_leaderboard(table, Path(folder)).table
        for name in TABLES:
            (GOLDEN / name).write_bytes(without_figures(Path(folder) / name))
    (GOLDEN / "terminal.txt").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
