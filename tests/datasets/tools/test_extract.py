"""Extracting archives: only what is wanted, all or nothing, and never outside the folder."""

from __future__ import annotations

import io
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from seedbed.benchmark.errors import DataError
from seedbed.datasets.tools import extract as extracting
from seedbed.datasets.tools.extract import extract
from tests.conftest import CHECKOUT

FILES = {"set/a.txt": b"a", "set/deep/b.txt": b"b" * 5000, "other/c.txt": b"c"}
FORMS = ("tar", "tgz", "zip")


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive of the form that its suffix says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive: Path, message: str, targets: tuple[str, ...] = ("set",)) -> None:
    """Check that an archive is refused, and that nothing but it is in its folder or beside that."""
    around = set(archive.parent.parent.rglob("*"))
    with pytest.raises(DataError, match=message):
        extract(archive, targets)
    assert set(archive.parent.parent.rglob("*")) == around


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize("form", FORMS)
def test_only_the_targets_are_extracted(root, form):
    archive = pack(root / f"set.{form}", FILES)
    extract(archive, ("set",))
    archive.unlink()
    assert files_below(root) == {name: FILES[name] for name in ("set/a.txt", "set/deep/b.txt")}
    assert [path.name for path in root.iterdir()] == ["set"]


@pytest.mark.parametrize("form", FORMS)
def test_a_target_may_be_a_file_and_what_is_there_is_kept(root, form):
    archive = pack(root / f"set.{form}", FILES | {"settle/d.txt": b"d"})
    (root / "set").mkdir()
    (root / "set/a.txt").write_bytes(b"mine")
    extract(archive, ("set/a.txt", "set/deep"))
    archive.unlink()
    assert files_below(root) == {"set/a.txt": b"mine", "set/deep/b.txt": b"b" * 5000}


def test_names_may_begin_with_the_folder_itself(root):
    archive = pack(root / "set.tar", {f"./{name}": content for name, content in FILES.items()})
    extract(archive, ("other",))
    assert (root / "other/c.txt").read_bytes() == b"c"


OUTSIDE = ("../evil.txt", "/tmp/evil-seedbed.txt", "set/../../evil.txt", "C:\\evil.txt", "..\\evil.txt", "set/..")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leads_out_is_refused(root, form, name):
    archive = pack(root / f"set.{form}", FILES | {name: b"evil"})
    refused(archive, rf"set\.{form}: .*evil.* leads out of the folder" if "evil" in name else "leads out")
    assert not Path("/tmp/evil-seedbed.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_a_tar_are_refused(root, kind):
    archive = root / "set.tar"
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("set/link")
        link.type, link.linkname = kind, ".."
        tar.addfile(link)
        through = tarfile.TarInfo("set/link/evil.txt")
        tar.addfile(through)
    refused(archive, r"set\.tar: 'set/link' is a link or a device; nothing was extracted")


def test_links_of_a_zip_are_refused(root):
    archive = pack(root / "set.zip", FILES)
    with zipfile.ZipFile(archive, "a") as file:
        link = zipfile.ZipInfo("set/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "..")
        file.writestr("set/link/evil.txt", "evil")
    refused(archive, r"set\.zip: 'set/link' is a link or a device; nothing was extracted")


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_without_a_target_is_refused(root, form):
    refused(pack(root / f"set.{form}", FILES), "has no set/e.txt", ("set/a.txt", "set/e.txt"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_a_cut_archive_is_refused(root, form, share):
    archive = pack(root / f"set.{form}", FILES)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    refused(archive, rf"set\.{form}: (cannot be extracted|has no set)", ("set/deep/b.txt",))


def test_a_damaged_file_in_a_zip_is_refused(root):
    archive = root / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("set/a.txt", b"aaaaaaaa")
    archive.write_bytes(archive.read_bytes().replace(b"aaaaaaaa", b"aaaabaaa"))
    refused(archive, "cannot be extracted .*CRC")


@pytest.mark.parametrize("form", FORMS)
def test_a_process_that_is_killed_leaves_nothing_that_looks_finished(root, form):
    archive = pack(root / f"set.{form}", FILES)
    program = (
        "import os, shutil\nfrom pathlib import Path\nfrom seedbed.datasets.tools.extract import extract\n"
        "copy, done = shutil.copyfileobj, []\n"
        "def kill(source, target):\n"
        "    copy(source, target)\n"
        "    done.append(target.flush())\n"
        "    if len(done) == 2: os.kill(os.getpid(), 9)\n"
        f"shutil.copyfileobj = kill\nextract(Path({str(archive)!r}), ('set',))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=False).returncode == -9
    left = extracting._unfinished(archive)
    assert sorted(root.iterdir()) == sorted([archive, left])
    assert len(files_below(left)) == 2
    (left / "set/damaged.txt").write_text("of an earlier version")
    extract(archive, ("set",))
    assert sorted(root.iterdir()) == sorted([archive, root / "set"])
    assert sorted(files_below(root / "set")) == ["a.txt", "deep/b.txt"]
