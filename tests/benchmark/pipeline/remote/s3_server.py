"""A real S3 server on this machine: moto's, in a thread of this process."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_EC2_METADATA_DISABLED": "true"}
"""The variables that a client needs; the server takes any credentials."""


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server, and give its `HOST:PORT`. Skips the test without moto."""
    server = pytest.importorskip("moto.server", reason="moto, a test dependency, is not installed: no S3 server")
    # It reports every request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        yield f"{host}:{port}"
    finally:
        running.stop()


def new_bucket(server: str) -> str:
    """Make a bucket of its own, and return an address in it. The environment must have CREDENTIALS."""
    from pyarrow import fs

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client = fs.S3FileSystem(
        endpoint_override=server, scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    client.create_dir(name)
    return f"s3://{name}/seedbed?endpoint_override={server}&scheme=http&region=us-east-1"
