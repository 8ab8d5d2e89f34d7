"""The digest of what the pages are made from changes with each of these things, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seedbed.benchmark import plugins
from seedbed.benchmark.pipeline.remote.cached_store import CachedStore
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.leaderboard import inputs
from seedbed.leaderboard.data.snapshot import table_of, write_snapshot
from seedbed.leaderboard.inputs import inputs_digest
from tests.helpers.site_content import ramp, runs, write_study, write_trial


class Folder:
    """A folder with everything that pages are made from; its gallery's data set is a copy of the tiny Chimera."""

    def __init__(self, root: Path, chimera_root: Path) -> None:
        self.data, self.work = root / "data", WorkFolder(root / "work")
        self.snapshot, self.images = root / "results.parquet", root / "per_image.parquet"
        shutil.copytree(chimera_root, self.data)
        self.search = replace(runs()[0], phase="search", settings="suggested", number="1", key="search")
        write_snapshot(self.snapshot, table_of([*runs(), self.search]))
        self.images.write_bytes(b"statistics")
        write_study(self.work.root)
        (self.run,) = (run for run in runs() if (run.method, run.refiner, run.seed) == ("cam", "none", 0))
        write_trial(self.work, self.run, self.data, {"i": ramp([1], (4, 4))})
        self.entry = self.work.store.path(f"aa{self.run.key}") / "entry.json"
        self.entry.write_text("{}")

    @property
    def trial(self) -> Path:
        return self.work.sweeps / self.run.sweep / "trials" / self.run.key

    def digest(self, pictures: int = 3) -> str:
        return inputs_digest(self.snapshot, self.images, self.work, pictures)


@pytest.fixture
def folder(tmp_path: Path, chimera_root: Path, no_plugins: None) -> Folder:
    """Return a new folder."""
    return Folder(tmp_path, chimera_root)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" ")


def touch(path: Path) -> None:
    """Give a file another time of modification, and the same content."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def image(folder: Folder) -> Path:
    return min((folder.data / "JPEGImages").iterdir())


def store_elsewhere(folder: Folder) -> None:
    """Keep the images in another folder, to which a link leads, as for data on another disk."""
    (folder.data / "JPEGImages").rename(folder.data.with_name("images"))
    (folder.data / "JPEGImages").symlink_to(folder.data.with_name("images"))


CHANGES: dict[str, Callable[[Folder], object]] = {
    "snapshot": lambda folder: write_snapshot(folder.snapshot, table_of(runs())),
    "images": lambda folder: append(folder.images),
    "study": lambda folder: write_study(folder.work.root, title="another"),
    "another study": lambda folder: write_study(folder.work.root, dataset="another"),
    "no study": lambda folder: shutil.rmtree(folder.work.root / "studies"),
    "settings of a trial": lambda folder: (folder.trial / "config.json").write_text('{"artifacts": {}, "a": 1}'),
    "no trial": lambda folder: shutil.rmtree(folder.trial),
    "entry computed again": lambda folder: append(folder.entry),
    "no entry": lambda folder: shutil.rmtree(folder.entry.parent),
    "file of the data set": lambda folder: append(image(folder)),
    "time of a file of the data set": lambda folder: touch(image(folder)),
    "file less in the data set": lambda folder: image(folder).unlink(),
    "no data set": lambda folder: shutil.rmtree(folder.data),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_digest_changes_with(folder, change):
    before = folder.digest()
    assert folder.digest() == before
    change(folder)
    assert folder.digest() != before


def test_an_entry_in_an_object_store_counts_like_its_local_copy(tmp_path):
    address, identity = f"file://{tmp_path}/objects", {"stage": "Count", "seed": 0}
    entry, _ = CachedStore(tmp_path / "a", address).get_or_run(identity, lambda out, scratch: None)
    other = CachedStore(tmp_path / "b", address)
    before = inputs._record(other, entry.key)
    assert not other.path(entry.key).exists()
    assert before == inputs._record(CachedStore(tmp_path / "a", address), entry.key)
    other.use(entry.key)
    assert inputs._record(other, entry.key) == before


def test_files_behind_a_link_count_and_a_link_to_nothing_does_not_matter(folder):
    store_elsewhere(folder)
    (folder.data / "nowhere").symlink_to(folder.data / "nothing")
    before = folder.digest()
    append(image(folder))
    assert folder.digest() != before


def test_the_digest_does_not_change_with_anything_else(folder):
    before = folder.digest()
    shutil.copytree(folder.trial, folder.trial.with_name(folder.search.key))
    append(folder.trial / "log.txt")
    append(folder.work.root / "studies" / "notes.txt")
    np.save(folder.entry.with_name("more.npy"), np.zeros(2))
    assert folder.digest() == before


def test_without_a_gallery_its_files_do_not_count(folder):
    before, with_one = folder.digest(pictures=0), folder.digest(pictures=1)
    shutil.rmtree(folder.trial)
    assert folder.digest(pictures=0) == before
    assert len({before, with_one, folder.digest(pictures=2), folder.digest(pictures=1)}) == 4
    assert inputs_digest(folder.snapshot, folder.images, None, 0) != before


def test_code_counts_except_its_compiled_form(folder, tmp_path, monkeypatch):
    root = tmp_path / "code"
    for package in inputs.PACKAGES:
        (root / package / "__pycache__").mkdir(parents=True)
        (root / package / "a.py").write_text("a = 1")
    (root / "leaderboard" / "page.html").write_text("page")
    monkeypatch.setattr(plugins, "ROOT", root)

    def digest() -> str:
        inputs._code.cache_clear()
        return folder.digest()

    before = digest()
    (root / "methods" / "__pycache__" / "a.pyc").write_text("compiled")
    assert digest() == before
    for path in (root / "methods" / "a.py", root / "leaderboard" / "page.html"):
        append(path)
        assert digest() != before
        before = digest()
    inputs._code.cache_clear()


def test_plugins_and_installed_distributions_count(folder, tmp_path, monkeypatch):
    before = folder.digest()
    plugin = tmp_path / "mine.py"
    plugin.write_text('"""A method."""\nMETHOD = 1\n')
    plugins.add(plugin)
    added = folder.digest()
    assert added != before
    plugin.write_text('"""Another method."""\nMETHOD = 1\n')
    # As in another process, which reads the file anew.
    inputs._code.cache_clear()
    changed = folder.digest()
    assert changed not in (before, added)
    (tmp_path / "path" / "numpy-99.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "path")
    inputs._code.cache_clear()
    assert folder.digest() not in (before, added, changed)
    inputs._code.cache_clear()


def test_the_record_of_a_trial_is_what_the_gallery_reads(folder):
    """A trial whose data set is described otherwise may show other images."""
    before = folder.digest()
    job = json.loads((folder.trial / "job.json").read_text())
    job["place"]["options"] = {"tags": "masks"}
    (folder.trial / "job.json").write_text(json.dumps(job))
    assert folder.digest() != before
