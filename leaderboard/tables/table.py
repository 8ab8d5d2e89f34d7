"""A table: a pandas DataFrame of the texts to show, and a description of each column.

The modules `markdown`, `latex`, `csv` and `terminal` render it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """One column; neighbours with the same section share a heading. Numbers are aligned to the right."""

    title: str
    meaning: str = ""
    section: str = ""
    number: bool = False


@dataclass(frozen=True)
class TableCell:
    """One cell: its text, the number of columns that it spans, and how to show it."""

    text: str
    number: bool
    marked: bool
    missing: bool
    """Whether the text says why there is no number."""
    width: int = 1


@dataclass(frozen=True)
class Table:
    """Texts with one row per row and one column per description; titles of columns may repeat."""

    columns: Sequence[Column]
    texts: pd.DataFrame
    title: str = ""
    marked: frozenset[tuple[int, int]] = frozenset()
    """Positions (row, column) of the cells in bold."""
    missing: frozenset[tuple[int, int]] = frozenset()
    """Positions (row, column) of the cells that say why there is no number."""
    apart: int = 0
    """Number of rows at the end that are set apart from the others."""

    @property
    def titles(self) -> list[str]:
        """Return the title of each column."""
        return [column.title for column in self.columns]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Return the texts row by row."""
        return list(self.texts.itertuples(index=False, name=None))

    @property
    def cells(self) -> Iterator[list[TableCell]]:
        """Yield the cells of each row; neighbours that are missing for the same reason are one wide cell."""
        for row, texts in enumerate(self.rows):
            reasons = [text if (row, index) in self.missing else None for index, text in enumerate(texts)]
            cells: list[TableCell] = []
            for reason, same in groupby(range(len(texts)), reasons.__getitem__):
                if reason is not None:
                    cells.append(TableCell(reason, False, False, missing=True, width=len(list(same))))
                else:
                    cells += [
                        TableCell(texts[index], self.columns[index].number, (row, index) in self.marked, False)
                        for index in same
                    ]
            yield cells


def text_table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    title: str = "",
    marked: Iterable[tuple[int, int]] = (),
    missing: Iterable[tuple[int, int]] = (),
    apart: int = 0,
) -> Table:
    """Return the table of rows of texts, each as long as `columns`."""
    import pandas as pd

    texts = pd.DataFrame(list(rows), columns=[column.title for column in columns], dtype=object)
    return Table(columns, texts, title, frozenset(marked), frozenset(missing), apart)


def text_columns(first: str, *numbers: str) -> list[Column]:
    """Return a column of text and columns of numbers with these titles."""
    return [Column(first), *(Column(title, number=True) for title in numbers)]


def sections(columns: Sequence[Column]) -> Iterator[tuple[str, int]]:
    """Yield the title of each section of columns, and how many columns it spans."""
    for section, same in groupby(columns, lambda column: column.section):
        yield section, len(list(same))


def unrounded(header: Sequence[str], rows: Iterable[Sequence[object] | Mapping[str, object]]) -> str:
    """Return values as CSV with unrounded numbers; None, and what a mapping does not have, is an empty cell.

    Raises ValueError if a row has values that the header has no column for.
    """
    import pandas as pd

    records = [dict(row) if isinstance(row, Mapping) else dict(zip(header, row, strict=True)) for row in rows]
    if extra := {name for record in records for name in record} - {*header}:
        raise ValueError(f"no column for {', '.join(sorted(extra))}")
    # Objects, so that a column of whole numbers with a gap stays a column of whole numbers.
    frame = pd.DataFrame([[r.get(name) for name in header] for r in records], columns=list(header), dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")
