"""Messages and progress bars: where they go, and the form of each line."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from seedbed.benchmark import progress
from seedbed.benchmark.parallel import map_in_order
from seedbed.benchmark.progress import log_to_console, log_to_file, progress_bar

logger = logging.getLogger("seedbed.benchmark.some.module")


def report() -> None:
    """Log a message and a warning, and show a loop."""
    logger.info("begins at 100 %")
    logger.warning("a folder is full")
    with progress_bar("TrainCam", 3) as bar:
        bar.retotal(4)
        bar.show(2, "loss 0.5")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """Write a line at each step of a loop."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)


def test_a_command_prints_messages_as_they_are_and_says_of_warnings_that_they_are(capsys):
    with log_to_console():
        report()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.sub(r"\d+ s left", "0 s left", printed.err) == (
        "begins at 100 %\nwarning: a folder is full\nTrainCam: 2/4, 0 s left loss 0.5\n"
    )


def test_a_quiet_command_prints_warnings_alone(capsys):
    with log_to_console(quiet=True):
        report()
    assert capsys.readouterr().err == "warning: a folder is full\n"


def test_a_terminal_shows_a_bar_that_a_quiet_command_does_not_draw(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with log_to_console():
        report()
    shown = capsys.readouterr().err
    assert "━" in shown
    assert "2/4" in shown
    assert "loss 0.5" in shown
    assert "s left" not in shown
    with log_to_console(quiet=True):
        report()
    assert "━" not in capsys.readouterr().err


def test_a_log_file_has_the_time_of_each_line(tmp_path, capsys):
    log = tmp_path / "log.txt"
    with log_to_file(log):
        assert not log.exists()
        report()
    stamped = [line.split(" ", 2) for line in log.read_text().splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", f"{day} {time}") for day, time, _ in stamped)
    lines = [line for *_, line in stamped]
    assert lines == ["begins at 100 %", "warning: a folder is full", "  TrainCam: step 2 loss 0.5"]
    assert capsys.readouterr().err == ""


def test_each_of_several_trials_in_one_process_has_its_own_log(tmp_path):
    before = list(logging.getLogger("seedbed").handlers)
    for number in range(3):
        with contextlib.suppress(ZeroDivisionError), log_to_file(tmp_path / f"{number}.txt"):
            logger.info(f"trial {number}")
            raise ZeroDivisionError
    for number in range(3):
        (line,) = (tmp_path / f"{number}.txt").read_text().splitlines()
        assert line.endswith(f" trial {number}")
    assert logging.getLogger("seedbed").handlers == before


def test_a_handler_of_the_root_logger_does_not_print_messages_again(capsys):
    root, other = logging.getLogger(), logging.StreamHandler(sys.stderr)
    root.addHandler(other)
    try:
        with log_to_console():
            logger.info("begins")
        assert capsys.readouterr().err == "begins\n"
        logger.info("ends")
        assert capsys.readouterr().err == "ends\n"
    finally:
        root.removeHandler(other)


def test_output_that_cannot_be_written_is_an_error(tmp_path):
    with log_to_file(tmp_path / "missing" / "log.txt"), pytest.raises(FileNotFoundError):
        logger.info("begins")


def log_item(item: int) -> int:
    """Log in a process of its own, where nothing is set up."""
    logger.info(f"item {item}")
    return item


def test_worker_processes_neither_write_nor_keep_the_log(tmp_path):
    with log_to_file(tmp_path / "log.txt"):
        assert list(map_in_order(log_item, range(4), processes=2)) == [0, 1, 2, 3]
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(log_item, 4).result() == 4
    assert not (tmp_path / "log.txt").exists()


def test_a_library_shows_warnings_alone_and_imports_no_rich():
    program = (
        "import sys, logging; import seedbed; from seedbed.benchmark.progress import progress_bar;"
        "log = logging.getLogger('seedbed.x'); log.info('begins'); log.warning('is full');"
        "progress_bar('a', 2).__enter__().advance(); print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "is full\n")
