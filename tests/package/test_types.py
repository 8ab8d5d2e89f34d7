"""The static types of the packages and the tests, checked beside the other tests: alone it would idle a core."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT


@pytest.mark.slow(300)
def test_mypy_finds_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
