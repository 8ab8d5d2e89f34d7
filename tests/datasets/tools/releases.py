"""Official releases in miniature, and a server on this machine that has them, with faults if a test wants."""

from __future__ import annotations

import hashlib
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from scipy.io import savemat

from seedbed.datasets.tools.downloads import ARCHIVES, Archive
from tests.helpers.voc_folder import EXTRA, TRAIN, VAL, make_voc, mask_of


@dataclass
class Fault:
    """How the answer to a request differs from a right one."""

    status: int | None = None
    """Answer with this code alone."""
    drop: int | None = None
    """Number of bytes after which the connection is closed."""
    stall: float = 0.0
    """Seconds without a byte after those of `drop`, before the connection is closed."""
    pause: float = 0.0
    """Seconds after each 1,000 bytes."""
    ranges: bool = True
    """Whether the server knows byte ranges."""
    length: int | None = None
    """The size of the whole file as the server tells it; 0: it tells none."""


@dataclass
class Server:
    """What a server gives out, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    """Of the next requests, in order."""
    always: Fault = field(default_factory=Fault)
    """Of the requests after these."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of each request."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving() -> Iterator[Server]:
    """Serve files on a free port of this machine meanwhile."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append((self.path, self.headers.get("Range")))
            fault = server.faults.pop(0) if server.faults else server.always
            # A client that refuses an answer closes the connection.
            with suppress(ConnectionError):
                _answer(self, server.files.get(self.path), fault)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def _answer(request: BaseHTTPRequestHandler, content: bytes | None, fault: Fault) -> None:
    if fault.status is not None or content is None:
        request.send_error(fault.status or 404)
        return
    start, told = 0, len(content) if fault.length is None else fault.length
    span = request.headers.get("Range") if fault.ranges else None
    if span is None:
        request.send_response(200)
    else:
        start = int(span.removeprefix("bytes=").removesuffix("-"))
        if start >= told:
            request.send_error(416)
            return
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {start}-{told - 1}/{told}")
    if told:
        request.send_header("Content-Length", str(told - start))
    request.end_headers()
    body = content[start:] if fault.drop is None else content[start : start + fault.drop]
    for place in range(0, len(body), 1000):
        request.wfile.write(body[place : place + 1000])
        time.sleep(fault.pause)
    time.sleep(fault.stall)


def write_mat(path: Path, mask: np.ndarray) -> None:
    """Write a mask as SBD does: a 1×1 struct array GTcls with the fields Segmentation, Boundaries, …."""
    fields = {"Segmentation": mask, "Boundaries": np.zeros((20, 1), object), "CategoriesPresent": np.unique(mask)}
    savemat(path, {"GTcls": fields})


def make_releases(folder: Path) -> dict[str, bytes]:
    """Return the five archives of `ARCHIVES` in miniature, by name: VOC without `train_aug`, SBD, COCO."""
    from seedbed.datasets.chimera import generate

    voc, sbd, coco = folder / "VOCdevkit/VOC2012", folder / "benchmark_RELEASE", folder / "coco"
    make_voc(voc)
    (voc / "ImageSets/Segmentation/train_aug.txt").unlink()
    (voc / "ImageSets/Segmentation/test.txt").unlink()
    for path in (*(voc / "SegmentationClassAug").iterdir(), voc / "SegmentationClassAug"):
        path.unlink() if path.is_file() else path.rmdir()
    for name in ("cls", "img"):
        (sbd / "dataset" / name).mkdir(parents=True)
    (sbd / "dataset/train.txt").write_text(f"{EXTRA[0]}\n{VAL[0]}\n")
    (sbd / "dataset/val.txt").write_text(f"{TRAIN[0]}\n")
    for image_id in (EXTRA[0], VAL[0], TRAIN[0]):
        write_mat(sbd / "dataset/cls" / f"{image_id}.mat", mask_of((3, 20)))
    (sbd / "dataset/img" / f"{EXTRA[0]}.jpg").write_bytes(b"the same image as VOC's")
    generate(coco, layout="coco", images=20, size=48, seed=3)
    (coco / "annotations/captions_val2014.json").write_text("{}")
    with tarfile.open(folder / "VOCtrainval_11-May-2012.tar", "w") as tar:
        tar.add(voc.parent, voc.parent.name)
    with tarfile.open(folder / "benchmark.tgz", "w:gz") as tar:
        tar.add(sbd, sbd.name)
    for top, name in (("train2014",) * 2, ("val2014",) * 2, ("annotations", "annotations_trainval2014")):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((coco / top).rglob("*")):
                archive.write(path, path.relative_to(coco))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def table_of(files: dict[str, bytes], address: str) -> dict[str, tuple[Archive, ...]]:
    """Return `ARCHIVES` with the sizes, checksums and addresses of other files of the same names."""
    return {
        name: tuple(
            replace(
                archive,
                url=f"{address}/official/{archive.name}",
                size=len(files[archive.name]),
                md5=hashlib.md5(files[archive.name]).hexdigest(),
                room=1000,
            )
            for archive in archives
        )
        for name, archives in ARCHIVES.items()
    }
