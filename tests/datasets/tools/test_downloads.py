"""`seedbed data download` from a server on this machine: VOC, SBD and COCO in miniature, whole and disturbed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from seedbed.datasets.base import Split
from seedbed.datasets.io.images import decode_mask
from seedbed.datasets.tools import downloads, extract, fetch
from seedbed.datasets.voc2012 import DATASET as VOC
from tests.datasets.tools.releases import Fault, Server, make_releases, serving, table_of
from tests.helpers.command_line import seedbed
from tests.helpers.voc_folder import EXTRA, TRAIN, VAL, mask_of

TAR, TGZ = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"
ZIPS = ("annotations_trainval2014.zip", "val2014.zip", "train2014.zip")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture
def server(files, monkeypatch: pytest.MonkeyPatch):
    """Serve the releases at their official paths and on a mirror; the table has their sizes and checksums."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "WAITS", (0.0, 0.0))
    with serving() as server:
        server.files = {f"/{place}/{name}": c for place in ("official", "mirror") for name, c in files.items()}
        monkeypatch.setattr(downloads, "ARCHIVES", table_of(files, server.url))
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Callable:
    """Return a function that runs `seedbed data download` with `--root data`."""
    return lambda *words, check=True: seedbed(
        tmp_path, "data", "download", *words, "--root", "data", "--workers", "0", check=check
    )


def asked(server: Server) -> list[str]:
    """Return the paths of the requests so far, and forget them."""
    paths = [path for path, _ in server.requests]
    server.requests.clear()
    return paths


def test_the_table_is_of_whole_official_archives():
    archives = {archive.name: archive for row in downloads.ARCHIVES.values() for archive in row}
    assert sorted(archives) == sorted([TAR, TGZ, *ZIPS])
    for archive in archives.values():
        assert re.fullmatch(r"[\da-f]{32}", archive.md5)
        assert re.fullmatch(r"https?://[\w.-]+/[\w./-]+", archive.url)
        assert archive.size > 10**8 < archive.room
    assert sum(archive.size for archive in downloads.ARCHIVES["coco2014"]) == 20_408_459_804


def test_voc_is_downloaded_prepared_and_checked(server, run, tmp_path):
    done = run("voc2012")
    assert asked(server) == [f"/official/{TAR}", f"/official/{TGZ}"]
    root = tmp_path / "data"
    assert sorted(path.name for path in root.iterdir() if path.name[0] != ".") == sorted(
        [TAR, TGZ, "VOCdevkit", "benchmark_RELEASE"]
    )
    # SBD's images are VOC's, and nothing reads them.
    assert sorted(path.name for path in (root / "benchmark_RELEASE/dataset").iterdir()) == [
        "cls",
        "train.txt",
        "val.txt",
    ]
    data = VOC.open(root)
    assert data.ids(Split.WEAK) == (*TRAIN, *EXTRA)
    assert data.ids(Split.VAL) == VAL
    assert (decode_mask(data.mask_path(EXTRA[0])) == mask_of((3, 20))).all()
    note, masks, *problems, end = done.stdout.splitlines()
    assert note == (
        "note: everything is extracted; these archives are no longer needed: "
        f"{Path('data', TAR)}, {Path('data', TGZ)}"
    )
    assert masks == "3 masks"
    assert all(problem.startswith("warning: ") for problem in problems)
    assert re.fullmatch(r"0 errors, \d+ warnings", end)


def test_coco_is_downloaded_prepared_and_checked_from_a_mirror(server, run, tmp_path):
    done = run("coco2014", "--mirror", f"{server.url}/mirror/")
    assert asked(server) == [f"/mirror/{name}" for name in ZIPS]
    root = tmp_path / "data"
    # Captions are not extracted.
    assert sorted(path.name for path in (root / "annotations").iterdir()) == [
        "instances_train2014.json",
        "instances_val2014.json",
    ]
    assert "\n20 masks\n" in done.stdout
    assert re.search(r"^0 errors, \d+ warnings$", done.stdout, re.M)


def test_nothing_is_fetched_twice_with_the_archives_or_without(server, run, tmp_path):
    first = run("voc2012")
    asked(server)
    again = run("voc2012")
    assert again.stdout == first.stdout
    assert "VOCdevkit/VOC2012: already in data" in again.stderr
    for name in (TAR, TGZ):
        (tmp_path / "data" / name).unlink()
    assert run("voc2012").stdout == first.stdout.partition("\n")[2]
    assert asked(server) == []


def test_archives_that_the_user_put_there_are_checked_and_extracted(server, run, tmp_path, files):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / TAR).write_bytes(files[TAR])
    run("voc2012")
    assert asked(server) == [f"/official/{TGZ}"]
    shutil.rmtree(tmp_path / "data/VOCdevkit")
    (tmp_path / "data" / TAR).write_bytes(files[TAR][::-1])
    assert "move this file away" in run("voc2012", check=False).stderr
    assert asked(server) == []


@pytest.mark.parametrize("place", ["data/VOCdevkit/VOC2012", "data/VOC2012", "data"])
def test_a_voc_folder_of_the_user_is_found_at_each_level(server, run, tmp_path, place):
    run("voc2012")
    kept = (tmp_path / "data/VOCdevkit/VOC2012").rename(tmp_path / "voc")
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(kept, tmp_path / place)
    asked(server)
    run("voc2012")
    assert asked(server) == [f"/official/{TGZ}"]


def test_sbd_alone_says_what_is_next_or_prepares_voc(server, run, tmp_path):
    done = run("sbd")
    assert asked(server) == [f"/official/{TGZ}"]
    command = "seedbed data prepare voc2012 --root FOLDER --sbd data"
    assert done.stdout.splitlines()[1:] == [f"next, for VOC in another folder: {command}"]
    run("voc2012")
    assert asked(server) == [f"/official/{TAR}"]
    shutil.rmtree(tmp_path / "data/benchmark_RELEASE")
    (tmp_path / "data" / TGZ).unlink()
    assert "3 masks\n" in run("sbd").stdout
    assert asked(server) == [f"/official/{TGZ}"]


def test_too_little_space_is_refused_before_the_first_byte(server, run, tmp_path, files, monkeypatch):
    needed = len(files[TAR]) + len(files[TGZ]) + 2 * 1000
    free = needed - 1
    monkeypatch.setattr(downloads, "GB", 1)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    done = run("voc2012", check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: data: {needed:.1f} GB are needed, {free:.1f} GB are free; nothing was downloaded. Free space "
        "there, or give another folder with --root\n"
    )
    assert asked(server) == []
    # What is there already needs no space, nor does what a killed call extracted.
    (tmp_path / "data" / f"{TAR}.part").write_bytes(files[TAR][:1])
    run("voc2012")


def test_a_full_disk_is_named(server, run, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{TAR}.part").symlink_to("/dev/full")
    done = run("voc2012", check=False)
    assert done.returncode == 1
    assert re.search(r"error: data\S*: cannot write \(No space left on device\); free space", done.stderr)
    assert not (tmp_path / "data" / TAR).exists()


def test_each_disturbance_ends_in_one_line_and_the_same_command_continues(server, run, tmp_path, files):
    server.always = Fault(drop=0)
    done = run("voc2012", check=False)
    assert done.returncode == 1
    assert re.search(r"^error: .*closed, 3 times in a row; run the command again to continue", done.stderr, re.M)
    server.files[f"/official/{TAR}"] = files[TAR][::-1]
    server.always = Fault(drop=len(files[TAR]) // 2 + 1)
    assert re.search(r"^error: .*has the MD5 ", run("voc2012", check=False).stderr, re.M)
    server.files[f"/official/{TAR}"] = files[TAR]
    server.files[f"/official/{TGZ}"] = files[TGZ] + b"?"
    done = run("voc2012", check=False)
    sizes = rf"has {len(files[TGZ]) + 1} bytes, expected {len(files[TGZ])}"
    assert re.search(rf"^error: {server.url}/official/{TGZ}: {sizes}", done.stderr, re.M)
    server.files[f"/official/{TGZ}"] = files[TGZ]
    asked(server)
    run("voc2012")
    assert set(asked(server)) == {f"/official/{TGZ}"}


def test_an_interrupted_extraction_is_done_again_without_a_request(server, run, tmp_path, monkeypatch):
    def interrupt(source, target) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr(extract.shutil, "copyfileobj", interrupt)
        stopped = run("voc2012", check=False)
    assert stopped.returncode == 130
    assert not (tmp_path / "data/VOCdevkit").exists()
    asked(server)
    run("voc2012")
    assert asked(server) == [f"/official/{TGZ}"]


def test_a_folder_that_is_not_complete_is_named(server, run, tmp_path):
    (tmp_path / "data/VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)
    done = run("voc2012", check=False)
    assert f"error: {Path('data/VOCdevkit/VOC2012')}: was there before and is not complete; move it" in done.stderr


def test_an_empty_folder_is_no_data_set(server, run, tmp_path):
    for name in ("train2014", "val2014"):
        (tmp_path / "data" / name).mkdir(parents=True)
    run("coco2014")
    assert asked(server) == [f"/official/{name}" for name in ZIPS]


def test_two_commands_do_not_write_to_one_folder(server, run, tmp_path):
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data/.download.lock"):
        done = run("voc2012", check=False)
    assert done.stderr == "error: data: another `seedbed data download` is writing there; wait for its end\n"
    assert asked(server) == []


@pytest.mark.parametrize(
    "mirror",
    ["data.example.org", "file:///data", "https://", "http://a b/c", "http://h:x/", "http://h/ü", "http://h/?q"],
)
def test_a_mirror_must_be_an_address(server, run, tmp_path, mirror):
    done = run("sbd", "--mirror", mirror, check=False)
    assert done.stderr == f"error: --mirror {mirror}: expected an address such as https://HOST/FOLDER\n"
    assert not (tmp_path / "data").exists()


def test_an_unknown_data_set_is_refused_with_the_valid_names(server, run):
    assert "Valid: coco2014, sbd, voc2012" in run("voc2007", check=False).stderr
