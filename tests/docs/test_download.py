"""docs/download.md, followed literally, with the releases in miniature on servers of this machine."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seedbed.datasets.tools import downloads, fetch
from tests.datasets.tools.releases import make_releases, serving, table_of
from tests.docs.extending import commands, page
from tests.helpers.command_line import seedbed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"no server at port {port}")


def test_the_addresses_and_sizes_of_the_page_are_those_of_the_table():
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \| ([\d.]+) GB \| ([\d.]+) GB \|$", page("download.md"), re.M)
    archives = (*downloads.ARCHIVES["voc2012"], *downloads.ARCHIVES["coco2014"])
    assert rows == [
        (a.name, a.url.removesuffix(a.name), f"{a.size / 1e9:.1f}", f"{a.room / 1e9:.1f}") for a in archives
    ]
    assert f"nothing arrives for {fetch.TIMEOUT:.0f} seconds" in page("download.md")
    assert len(fetch.WAITS) + 1 == 6  # "six attempts"


def test_every_command_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # Worker processes take seconds to start.
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    releases = tmp_path / "releases"
    files = make_releases(releases)
    (releases / "VOCdevkit").rename(tmp_path / "VOCdevkit")
    (tmp_path / "archives").mkdir()
    for name, content in files.items():
        (tmp_path / "archives" / name).write_bytes(content)
    port = free_port()
    lines = [line.replace("8000", str(port)) for line in commands(page("download.md"))]
    printed, mirrors = {}, []
    with serving() as server:
        server.files = {f"/official/{name}": content for name, content in files.items()}
        monkeypatch.setattr(downloads, "ARCHIVES", table_of(files, server.url))
        try:
            for line in lines:
                program, *words = shlex.split(line)
                if program == "python":
                    mirrors.append(
                        subprocess.Popen(
                            [sys.executable, *words],
                            cwd=tmp_path,
                            stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL,
                        )
                    )
                    wait_for(port)
                else:
                    printed[line] = seedbed(tmp_path, *words).stdout
        finally:
            for mirror in mirrors:
                mirror.kill()
                mirror.wait()
        assert len(server.requests) == 2 + 1 + 3
    assert len(mirrors) == 1
    voc, voc_stats, sbd, prepared, checked, coco, coco_stats, mirrored = printed.values()
    for text in (voc, checked, coco, mirrored):
        assert re.search(r"^0 errors, \d+ warnings$", text, re.M)
    assert "\n3 masks\n" in voc
    assert prepared == "3 masks\n"
    assert "next, for VOC in another folder: seedbed data prepare voc2012 --root FOLDER --sbd data/sbd" in sbd
    assert re.search(r"^weak +3 ", voc_stats, re.M)
    assert mirrored.replace("mirrored", "data") == coco
    assert re.search(r"^val +[1-9]\d* ", coco_stats, re.M)
    assert (tmp_path / "data/voc/VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt").exists()
    assert sorted(p.name for p in (tmp_path / "data/coco").iterdir() if p.is_dir()) == [
        *("SegmentationMasks", "annotations", "train2014", "val2014")
    ]
