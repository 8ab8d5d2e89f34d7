"""Errors that a user can cause and fix. The command line prints their message without a traceback."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""File-system errors whose cause is the place, not the program."""
FULL = (
    "no space left on device",
    "disk quota exceeded",
    "read-only file system",
    "disk is full",
    "writing image file",
)
"""How libraries with their own errors report the same: pyarrow, SQLite, Pillow, and worker processes."""
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "unable to allocate")
"""How torch, numpy and the operating system report that memory ran out."""
LOST_PROCESS = ("terminated abruptly", "is killed by signal", "exited unexpectedly")
"""How Python's process pools and torch's data loaders report a worker process that was killed."""


class SeedbedError(Exception):
    """Base of all errors whose message says what is wrong and how to fix it."""

    def __str__(self) -> str:
        # A data loader's worker process puts its traceback before the message.
        return super().__str__().rpartition(f"{type(self).__module__}.{type(self).__name__}: ")[2].strip()


class ConfigError(SeedbedError):
    """A setting is unknown, of the wrong type, out of bounds, or impossible in this combination."""


class DataError(SeedbedError):
    """A file of a data set or of results is missing, damaged, or inconsistent with another one."""


class MaskForbiddenError(SeedbedError):
    """A mask was requested from a split whose masks the protocol hides (`weak`, `test`)."""


class StoreError(SeedbedError):
    """The artifact store cannot be read or written."""


class NonFiniteLossError(SeedbedError):
    """A training loss became NaN or infinite."""


def surroundings(error: OSError) -> str:
    """Return the operating system's message and the files it is about, in one line."""
    text = error.strerror or str(error) or type(error).__name__
    files = " -> ".join(str(file) for file in (error.filename, error.filename2) if file is not None)
    return f"{files}: {text}" if files else text


class UntunedWarning(UserWarning):
    """A backbone has no recipe and is trained with safe settings. The command line prints it as a note."""


def unknown_name(what: str, name: str, valid: Iterable[str]) -> ConfigError:
    """Return the error for an unknown name of a `what`, with the closest match and all valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names) if names else "(none)"
    return ConfigError(f"unknown {what} {name!r}.{hint} Valid: {listed}")


def unwritable(error: BaseException) -> str | None:
    """Return why a place is not writable, such as "No space left on device"; None for other errors.

    Also checks the causes of the error, because libraries wrap the system's error in their own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            return os.strerror(cause.errno)
        text = str(cause).lower()
        if any(words in text for words in FULL):
            return next(line.strip() for line in str(cause).splitlines() if any(w in line.lower() for w in FULL))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def out_of_memory(error: BaseException) -> str | None:
    """Return one line with a remedy if memory ran out or a worker process was killed; None for other errors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if any(words in first for words in LOST_PROCESS):
        return (
            f"the system killed a worker process, usually because memory ran out ({first}); "
            "reduce --workers and run the command again. Finished results are kept."
        )
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in MEMORY):
        return (
            f"memory ran out ({first}); give a smaller batch (--set STAGE.batch=N), a smaller --size or fewer "
            "--workers, and run the command again. Finished results are kept."
        )
    return None


def full_disk(error: BaseException) -> str | None:
    """Return the same as `unwritable`, but None if the user lacks permission."""
    reason = unwritable(error)
    return None if reason in (os.strerror(errno.EACCES), os.strerror(errno.EPERM)) else reason


def joined(head: str, problems: Sequence[str], most: int = 10) -> str:
    """Return one message about several problems: a single line if there is one, else one line per problem.

    It counts all problems and shows at most `most`.
    """
    if len(problems) == 1:
        return f"{head}{problems[0]}"
    more = [f"… and {len(problems) - most} more"] if len(problems) > most else []
    return "\n  ".join([f"{head}{len(problems)} problems", *problems[:most], *more])
