"""The errors that a user can cause and mend. The command line prints their message without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SeedbedError(Exception):
    """Base of all errors whose message says what is wrong and what to do about it."""

    def __str__(self) -> str:
        # A loader's worker process puts its whole traceback before the message.
        return super().__str__().rpartition(f"{type(self).__module__}.{type(self).__name__}: ")[2].strip()


class ConfigError(SeedbedError):
    """A setting is unknown, of the wrong type, out of bounds, or impossible in this combination."""


class DataError(SeedbedError):
    """A file of a data set or of somebody's results is missing, broken, or disagrees with another one."""


class MaskForbiddenError(SeedbedError):
    """A mask was asked of a split whose masks the protocol does not show (`weak`, `test`)."""


class StoreError(SeedbedError):
    """The artifact store cannot be read or written."""


class NonFiniteLossError(SeedbedError):
    """A training loss became NaN or infinite."""


def unknown_name(what: str, name: str, valid: Iterable[str]) -> ConfigError:
    """Return the error for an unknown `name` of a `what`, with the closest match and all valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(names) if names else "(none)"
    return ConfigError(f"unknown {what} {name!r}.{hint} Valid: {listed}")
