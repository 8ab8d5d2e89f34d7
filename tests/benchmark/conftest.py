"""Fixtures of an object store, for the artifact store and for sweeps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmark.pipeline.remote.s3_server import CREDENTIALS, new_bucket, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Return `HOST:PORT` of a running S3 server."""
    with s3_server() as running:
        yield running


@pytest.fixture
def address(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an address in a new bucket of `server`, with credentials in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return new_bucket(server)
