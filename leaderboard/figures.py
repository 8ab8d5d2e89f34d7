"""The figures of the leaderboard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure, with the numbers that it shows."""

    name: str
    title: str
    caption: str
    svg: str
    """A whole <svg> element that uses currentColor."""
    csv: str
    """The numbers under it."""
    methods: tuple[str, ...] = ()
    dataset: str = ""
