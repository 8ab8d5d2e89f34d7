"""Fetches one large file by HTTP into `FILE.part`, which is `FILE` once its size and its checksum are right."""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.progress import progress_bar

MB = 1_000_000
BLOCK = 1 << 20
"""Bytes that are read at once, at most."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as lost."""
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before the next attempts after one that brought nothing new; after the last the command ends."""
TEMPORARY = (408, 429, 500, 502, 503, 504)
"""Codes of HTTP that another attempt may not meet."""

logger = logging.getLogger(__name__)


def fetch(url: str, path: Path, size: int, md5: str) -> None:
    """Fetch the file at `url`, of `size` bytes and this MD5 (hexadecimal), unless it is at `path` already.

    A connection that is lost is opened again, and continues where the last one stopped if the server knows byte
    ranges, else from the beginning. What a killed call had received is kept in `PATH.part`, and used by the next.
    A file at `path` is checked, too.

    Raises DataError if the server refuses, has a file of another size, or fails several times in a row; if what
    was received is another file, which is then removed; and if the file at `path` is another one, which stays.
    """
    if path.exists():
        if (fault := _fault(path, size, md5)) is not None:
            raise DataError(f"{path}: {fault}; move this file away, and it is downloaded")
        return
    part = path.with_name(f"{path.name}.part")
    if _bytes(part) > size:
        part.unlink()
    _receive(url, part, size)
    if (fault := _fault(part, size, md5)) is not None:
        part.unlink()
        raise DataError(
            f"{path}: {fault}, and was removed; run the command again, or, if {url} always has another file, give "
            "another address with --mirror URL"
        )
    part.replace(path)


class _LostError(Exception):
    """A connection that failed; another one may not."""


def _receive(url: str, part: Path, size: int) -> None:
    """Append to `part` until it has `size` bytes."""
    name = url.rpartition("/")[2]
    most, waits = _bytes(part), iter(WAITS)
    with progress_bar(f"{name}, MB", size // MB) as bar:
        bar.start_at(most // MB)
        while (held := _bytes(part)) < size:
            bar.show(held // MB)
            try:
                with _answer(url, held, size) as response:
                    # 206 is the answer to a range. Any other brings the file from its first byte on.
                    mode = "ab" if response.status == http.client.PARTIAL_CONTENT else "wb"
                    with part.open(mode) as file:
                        while (left := size - file.tell()) > 0:
                            file.write(_block(response, min(left, BLOCK)))
                            bar.show(file.tell() // MB)
            except _LostError as lost:
                if _bytes(part) > most:
                    most, waits = _bytes(part), iter(WAITS)
                if (wait := next(waits, None)) is None:
                    raise DataError(
                        f"{url}: {lost}, {len(WAITS) + 1} times in a row; run the command again to continue "
                        f"({_bytes(part)} of {size} bytes are there), or give another address with --mirror URL"
                    ) from None
                logger.info(f"{name}: {lost}; next attempt in {wait:g} s")
                time.sleep(wait)


def _answer(url: str, held: int, size: int) -> http.client.HTTPResponse:
    """Open a connection for the bytes from `held` on, or for all. Raises DataError if it is another file."""
    headers = {"User-Agent": "seedbed", "Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={held}-"
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in TEMPORARY:
            raise _LostError(f"HTTP {error.code} {error.reason}") from None
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _other_file(url, f"has at most {held} bytes", size) from None
        raise DataError(
            f"{url}: HTTP {error.code} {error.reason}; give another address with --mirror URL"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(_reason(error)) from None
    length, span = response.headers.get("Content-Length"), response.headers.get("Content-Range", "")
    if response.status == http.client.PARTIAL_CONTENT:
        if not re.fullmatch(rf"bytes {held}-\d+/({size}|\*)", span):
            response.close()
            raise _other_file(url, f"answers the bytes from {held} on with {span!r}", size)
    elif length not in (None, str(size)):
        response.close()
        raise _other_file(url, f"has {length} bytes", size)
    return response


def _block(response: http.client.HTTPResponse, most: int) -> bytes:
    try:
        block = response.read1(most)
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(_reason(error)) from None
    if not block:
        raise _LostError("the connection was closed")
    return block


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _other_file(url: str, found: str, size: int) -> DataError:
    return DataError(
        f"{url}: {found}, expected {size}: another file, or a web page; give another address with --mirror URL"
    )


def _fault(path: Path, size: int, md5: str) -> str | None:
    """Return how a file differs from what is expected; None if it does not."""
    found = _bytes(path)
    if found != size:
        return f"has {found} bytes, expected {size}"
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, progress_bar(f"checking {path.name}, MB", size // MB) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.show(file.tell() // MB)
    found_md5 = digest.hexdigest()
    return None if found_md5 == md5 else f"has the MD5 {found_md5}, expected {md5}"


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
