"""The rows of captioned files as JSONL, CSV or Parquet: the same rows in each."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from clips.outputs import replaced_whole

FORMATS = (".jsonl", ".csv", ".parquet")
TEXT, NUMBER = pyarrow.string(), pyarrow.float64()
CANDIDATE = {"text": TEXT, "id": TEXT, "similarity": NUMBER, "source": TEXT, "license": TEXT}
ALTERNATIVE = {"caption": TEXT, "score": NUMBER}
CHECKPOINT = {"name": TEXT, "revision": TEXT, "fingerprint": TEXT}
SCHEMA = pyarrow.schema(
    {
        "path": TEXT,
        "duration": NUMBER,
        "start": NUMBER,
        "caption": TEXT,
        "score": NUMBER,
        "flags": pyarrow.list_(TEXT),
        "candidates": pyarrow.list_(pyarrow.struct(CANDIDATE)),
        "alternatives": pyarrow.list_(pyarrow.struct(ALTERNATIVE)),
        "audio": TEXT,
        "checkpoint": pyarrow.struct(CHECKPOINT),
        "key": TEXT,
    }
)
EXPLANATION = "explanation"  # a further column of JSONL, after a run with --explain
SAID = ("caption", "score", "candidates", "alternatives")  # what is the same for the same audio
# What spreadsheets run as a formula at the start of a cell. In a CSV such a text has an apostrophe before it.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# In a CSV a list is JSON in its cell, and an empty cell is None.
CELLS = dict.fromkeys(("duration", "start", "score"), float)
CELLS |= dict.fromkeys(("flags", "candidates", "alternatives", "checkpoint"), json.loads)


def check_format(output: str, formats: tuple[str, ...] = FORMATS, option: str = "--output"):
    """Raises `ValueError` for a file whose ending is not that of a format."""
    if Path(output).suffix.lower() not in formats:
        raise ValueError(f"{option} {output}: expected a file that ends in {', '.join(formats)}")


def read_captions(path: Path) -> list[dict[str, Any]]:
    """
    Reads the rows that [`write_captions`] wrote.

    Raises:
        `ValueError`: If the file is damaged, or another program wrote it.
    """
    try:
        if path.suffix.lower() == ".parquet":
            rows = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                rows = [
                    {name: CELLS.get(name, _text)(cell) if cell else None for name, cell in row.items()}
                    for row in csv.DictReader(file, strict=True)
                ]
        else:
            # Not `splitlines`: it also splits at characters that JSON leaves as they are.
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, TypeError, csv.Error, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}): {OTHER_FILE}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or [name for name in row if name != EXPLANATION] != SCHEMA.names:
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{path}, row {number} is not a caption of this command (found {columns}): {OTHER_FILE}")
    return rows


OTHER_FILE = "choose another --output, or --existing overwrite"


def write_captions(path: Path, rows: Iterable[dict[str, Any]]):
    """Writes rows with the columns of `SCHEMA`, in this order; the file appears whole or not at all."""
    with replaced_whole(path) as unfinished:
        if path.suffix.lower() == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), SCHEMA), unfinished)
            return
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".csv":
                writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # also a "\r"
                writer.writerow(SCHEMA.names)
                writer.writerows([_cell(row[name]) for name in SCHEMA.names] for row in rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip("'").startswith(FORMULA):
        return f"'{value}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _text(cell: Any) -> Any:
    """The inverse of [`_cell`] for a text."""
    if isinstance(cell, list):  # what a row, not one of ours, has beyond its columns
        return cell
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell
