"""A second build is spared if nothing has changed; otherwise the folder has what a new one has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.datasets.io.digest import file_digest
from seedbed.leaderboard import build as module
from seedbed.leaderboard import inputs
from seedbed.leaderboard.build import Sources, build
from seedbed.leaderboard.data.collect import SweepReader, collect
from seedbed.leaderboard.data.snapshot import runs_of
from seedbed.leaderboard.last_build import FILE
from tests.helpers.board_with_images import confirmed, confusions
from tests.helpers.site_content import predict_nothing, ramp, write_study, write_trial
from tests.helpers.tracker import Tracker, cells_of, record


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Return a store with three sweeps; each test starts with a build."""
    tracker = Tracker(tmp_path_factory.mktemp("mlflow"))
    for sweep, method in (("first", "cam"), ("second", "b"), ("changing", "c")):
        record(tracker, sweep, {0.8: confirmed(0.8, seeds=[0, 1], method=method)}, [0, 1])
    return tracker


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return the folder to build into."""
    return tmp_path / "site"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Write few pages, from the same files as the real ones; return the folders that they are written to."""
    folders: list[Path] = []

    def write(folder: Path, sources: Sources | None) -> str:
        folders.append(folder)
        digests = [file_digest(folder / name) for name in (module.SNAPSHOT, module.IMAGES)]
        for name in (module.INDEX, *module.FORMATS, "methods/cam.html"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"{name} of {digests}")
        return f"the table of {digests}"

    monkeypatch.setattr(module, "_write", write)
    return folders


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stamps(folder: Path) -> dict[Path, int]:
    """Return when the folder, and each file and folder in it, was last written to."""
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def run_of(tracker: Tracker, key: str) -> str:
    """Return the id of a run that is not deleted."""
    (run,) = tracker.client.search_runs([tracker.experiment], f"tags.`seedbed.key` = '{key}'")
    return str(run.info.run_id)


def tag(tracker: Tracker, key: str, text: str) -> None:
    tracker.client.set_tag(run_of(tracker, key), "hardware", text)


def measure(tracker: Tracker) -> None:
    tracker.client.log_metric(run_of(tracker, "changing000"), "val/mIoU", 0.25, step=1)


def deliver_again(tracker: Tracker) -> None:
    """Delete a run, and deliver it with other results."""
    old = tracker.client.get_run(run_of(tracker, "changing001"))
    tracker.client.delete_run(old.info.run_id)
    new = tracker.trial("parent", old.data.tags, old.data.metrics | {"val/mIoU": 0.5})
    path = tracker.database.with_name("segmentation.val.parquet")
    pq.write_table(cells_of(confusions(0.3, 7)), path)
    tracker.client.log_artifact(new, str(path), "per_image")


def measure_images(tracker: Tracker) -> None:
    """Write another artifact, which does not change the database."""
    folder = tracker.database.parent / "artifacts" / run_of(tracker, "changing000") / "artifacts" / "per_image"
    pq.write_table(cells_of(confusions(0.6, 2)), folder / "segmentation.val.parquet")


CHANGES: tuple[Callable[[Tracker], object], ...] = (
    lambda tracker: tag(tracker, "changing000", "another"),
    measure,
    deliver_again,
    measure_images,
    lambda tracker: tracker.client.delete_run(run_of(tracker, "changing001")),
)


def test_after_any_change_of_the_runs_the_folder_has_what_a_new_one_has(tracker, written, site):
    old: dict[str, bytes] = {}
    for number, change in enumerate((lambda tracker: None, *CHANGES)):
        change(tracker)
        new = site.with_name(f"new{number}")
        made, fresh = build(tracker.uri, "changing", site), build(tracker.uri, "changing", new)
        assert content(site) == content(new) != old
        assert made.table == fresh.table
        assert [path.relative_to(site) for path in made.paths] == [path.relative_to(new) for path in fresh.paths]
        old = content(site)
    assert len(written) == 2 * (1 + len(CHANGES))


def test_pages_and_gallery_are_those_of_a_new_folder(tracker, site, chimera):
    work, view = WorkFolder(site.with_name("work")), chimera.split("train")
    (run, *_) = runs_of(collect(tracker.uri, "first"))
    write_trial(work, run, chimera.root, {i: ramp(view.tags(i), view.size(i)) for i in view.ids})
    sources = Sources(work, 2, predict_nothing)
    build(tracker.uri, "first", site, sources)
    tag(tracker, "first000", "a new machine")
    made = build(tracker.uri, "first", site, sources)
    before = stamps(site)
    assert made == build(tracker.uri, "first", site, sources)
    assert stamps(site) == before
    new = build(tracker.uri, "first", site.with_name("new"), sources)
    assert content(site) == content(site.with_name("new"))
    assert made.table == new.table
    assert "a new machine" in (site / "index.html").read_text("utf-8")
    assert [path.name for path in made.paths[:2]] == ["results.parquet", "index.html"]
    assert {*made.paths} == {path for path in site.rglob("*") if path.is_file()} - {site / FILE}
    assert str(site.parent) not in (site / FILE).read_text("utf-8")
    picture = next((site / "gallery").rglob("*.jpg"))
    picture.unlink()
    build(tracker.uri, "first", site, sources)
    assert content(site) == content(site.with_name("new"))


def test_without_a_change_nothing_is_collected_and_nothing_is_written(tracker, written, site, monkeypatch):
    first = build(tracker.uri, "first", site)
    before = stamps(site)
    monkeypatch.setattr(module, "collect", None)
    assert build(tracker.uri, ["first"], site) == first
    assert stamps(site) == before


def test_a_change_elsewhere_in_the_store_is_collected_and_writes_no_page(tracker, written, site, monkeypatch):
    first = build(tracker.uri, "first", site)
    before = stamps(site)
    tag(tracker, "second000", "another")
    assert build(tracker.uri, "first", site) == first
    assert len(written) == 1
    assert {path for path, time in stamps(site).items() if before.get(path) != time} == {site, site / FILE}
    monkeypatch.setattr(module, "collect", None)
    assert build(tracker.uri, "first", site) == first


@pytest.mark.parametrize("changing", [False, True])
def test_a_store_of_unknown_state_is_collected_and_writes_no_page(tracker, written, site, monkeypatch, changing):
    """A server does not tell its state, and one that changes while it is read has no known one."""
    states = iter(map(str, range(100)))
    monkeypatch.setattr(SweepReader, "state", lambda self, sweeps: next(states) if changing else None)
    first = build(tracker.uri, "first", site)
    assert json.loads((site / FILE).read_text())["store"] is None
    assert build(tracker.uri, "first", site) == first
    assert len(written) == 1
    tag(tracker, "first001", f"machine {changing}")
    assert build(tracker.uri, "first", site) != first


def test_other_sweeps_are_another_leaderboard(tracker, written, site):
    one, both = (build(tracker.uri, sweeps, site).table for sweeps in ("first", ["first", "second"]))
    assert one != both
    assert build(tracker.uri, "first", site).table == one


def change_record(folder: Path, **changes: object) -> None:
    (folder / FILE).write_text(json.dumps({**json.loads((folder / FILE).read_text()), **changes}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a page is gone": lambda site: (site / "methods" / "cam.html").unlink(),
    "a page is edited": lambda site: (site / "index.html").write_text("edited"),
    "the snapshot is gone": lambda site: (site / "results.parquet").unlink(),
    "no record": lambda site: (site / FILE).unlink(),
    "half a record": lambda site: (site / FILE).write_text('{"store"'),
    "another record": lambda site: change_record(site, more=1),
    "a broken record": lambda site: change_record(site, files=3),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_file_that_was_edited_or_deleted_is_written_again(tracker, written, site, damage):
    build(tracker.uri, "first", site)
    before = content(site)
    damage(site)
    build(tracker.uri, "first", site)
    assert content(site) == before


def test_code_studies_and_the_gallery_count(tracker, written, site, monkeypatch):
    work = WorkFolder(site.with_name("work"))
    for number, sources in enumerate(
        (None, Sources(work, 0, predict_nothing), Sources(work, 3, predict_nothing)), 1
    ):
        build(tracker.uri, "first", site, sources)
        build(tracker.uri, "first", site, sources)
        assert len(written) == number
    write_study(work.root)
    build(tracker.uri, "first", site, sources)
    assert len(written) == 4
    monkeypatch.setattr(inputs, "_code", lambda given: "other")
    build(tracker.uri, "first", site, sources)
    assert len(written) == 5


def test_a_published_folder_joins_as_if_its_sweep_were_in_the_store(tracker, site):
    both = build(tracker.uri, ["first", "second"], site.with_name("both"))
    published = site.with_name("published")
    build(tracker.uri, "second", published)
    made = build(tracker.uri, "first", site, published=[published])
    assert made.table == both.table
    same = {name: text for name, text in content(site.with_name("both")).items() if name != FILE}
    assert {name: text for name, text in content(site).items() if name != FILE} == same
    # A second build is spared until the published folder changes.
    before = stamps(site)
    build(tracker.uri, "first", site, published=[published])
    assert stamps(site) == before
    tag(tracker, "second000", "another machine")
    build(tracker.uri, "second", published)
    build(tracker.uri, "first", site, published=[published])
    assert stamps(site) != before


def test_a_run_in_the_store_and_in_a_published_folder_counts_once_and_must_be_the_same(tracker, site):
    published = site.with_name("published")
    alone = build(tracker.uri, "first", published)
    assert build(tracker.uri, "first", site, published=[published]).table == alone.table
    (before,) = (run for run in runs_of(collect(tracker.uri, "first")) if run.key == "first000")
    metric = next(iter(before.metrics))
    tracker.client.log_metric(run_of(tracker, "first000"), metric, 0.125, step=1)
    with pytest.raises(DataError, match=r"two snapshots have other numbers for one trial of the sweep 'first'"):
        build(tracker.uri, "first", site, published=[published])


def test_a_folder_without_a_leaderboard_is_refused(tracker, site, tmp_path):
    with pytest.raises(DataError, match=r"results\.parquet: not a snapshot of results"):
        build(tracker.uri, "first", site, published=[tmp_path])
