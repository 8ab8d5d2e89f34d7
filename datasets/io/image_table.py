"""CSV files of two columns: image ids, and one more."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from seedbed.benchmark.errors import DataError
from seedbed.datasets.io.images import image_id, read_text


def image_rows(path: Path, column: str) -> Iterator[tuple[str, str, str | DataError]]:
    """Yield file and line, image id, and the cell of `column` of each row; for a wrong row its error as the cell.

    The header is `image_id,COLUMN`, or `id,COLUMN`. The id is empty if the row has none. Blank lines are skipped.
    Raises DataError if the file cannot be read or has another header.
    """
    lines = read_text(path).splitlines()
    header = lines[0] if lines else ""
    # Spreadsheets of many countries write semicolons.
    delimiter = ";" if ";" in header else ","
    found = [name.strip().strip('"').lower() for name in header.split(delimiter)]
    if found not in (["image_id", column], ["id", column]):
        raise DataError(f"{path}: expected a CSV file with the header image_id,{column}, found {header[:80]!r}")
    reader = csv.reader(lines[1:], delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num + 1}"
            if not any(cell.strip() for cell in row):
                continue
            key = image_id(row[0].strip())
            if len(row) != 2:
                text = f"{place}: {len(row)} columns, expected image_id,{column}"
                yield place, key, DataError(text + ("; separate classes by spaces" if column == "classes" else ""))
            elif not key:
                yield place, key, DataError(f"{place}: no image id")
            else:
                yield place, key, row[1].strip()
    except csv.Error as error:
        place = f"{path}, line {reader.line_num + 1}"
        yield place, "", DataError(f"{place}: not CSV ({error})")
