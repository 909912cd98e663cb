"""Rows of csv, jsonl and parquet files as they stand there; a row that cannot be read is a line of its own."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet

TABLES = (".csv", ".jsonl", ".parquet")
BATCH_ROWS = 256  # of parquet, which may hold sounds


def read_rows(path: Path, reject: Callable[[str], None]) -> tuple[list[str], Iterator[dict]]:
    """
    Column names and rows of a csv (all columns as text), jsonl or parquet file.

    Args:
        path (`Path`): The file. Text is UTF-8, with or without a byte order mark.
        reject (`Callable[[str], None]`): Told the reason for each row of a csv or jsonl file that cannot be read.

    Raises:
        `ValueError`: for a file that is none of these, or is broken as a whole.
    """
    try:
        if path.suffix.lower() == ".csv":
            return _read_csv(path, reject)
        if path.suffix.lower() == ".jsonl":
            return _read_jsonl(path, reject)
        if path.suffix.lower() == ".parquet":
            table = pyarrow.parquet.ParquetFile(path)
            batches = table.iter_batches(BATCH_ROWS)
            return table.schema_arrow.names, (row for batch in batches for row in batch.to_pylist())
    except (ValueError, csv.Error, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    raise ValueError(f"{path} is not a table: expected a file that ends in {', '.join(TABLES)}")


def _read_csv(path: Path, reject: Callable[[str], None]) -> tuple[list[str], Iterator[dict]]:
    csv.field_size_limit(sys.maxsize)
    rows = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        header = next(lines, [])
        while True:
            start = lines.line_num + 1
            try:
                cells = next(lines)
            except StopIteration:
                return header, iter(rows)
            except csv.Error as error:
                if "end of data" in str(error):
                    raise ValueError(f"the quotation mark of line {start} is never closed") from error
                reject(f"line {start} of {path}: {error}")
                continue
            if len(cells) == len(header):
                rows.append(dict(zip(header, cells)))
            elif cells:
                reject(f"line {start} of {path} has {len(cells)} cells; expected {len(header)}")


def _read_jsonl(path: Path, reject: Callable[[str], None]) -> tuple[list[str], Iterator[dict]]:
    rows, columns = [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = read_json(line)
        except ValueError as error:
            reject(f"line {number} of {path}: {error}")
            continue
        columns |= dict.fromkeys(row)
        rows.append(row)
    return list(columns), iter(rows)


def read_json(text: str) -> dict:
    """An object whose text can be written again. `ValueError` where it is none."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}; expected an object")
    if "\\u" in text:
        json.dumps(content, ensure_ascii=False).encode()  # half a character ("\ud83d") could not be
    return content
