"""Spans of files: what a user says is music, a detector of music, the rows of a file, and its lines on the screen."""

import csv
import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from captions.ledger import Ledger
from captions.span_rows import Span, read_spans, write_spans
from clips.options import check_file
from clips.tables import read_text
from span_settings_rgmc import SpanSettings

Pairs = list[tuple[float, float]]  # start and end in seconds
COLUMNS = "expected the columns start and end, in seconds, and path if there are several files"


@dataclass(kw_only=True)
class SpanArguments(SpanSettings):
    """Options of spans, beside those of [`SpanSettings`]."""

    group = "tracks and films"

    spans: bool = field(
        default=False, metadata={"help": "Divide whole files into spans of music and silence, and caption each."}
    )
    music_spans: str | None = field(
        default=None, metadata={"help": "Where there is music: a csv or json file with start, end and path."}
    )
    music_detector: str | None = field(
        default=None, metadata={"help": "What finds the music instead: module:function, as docs/captioning.md says."}
    )

    def check_spans(self):
        """Raises `ValueError` or `FileNotFoundError` for options that do not go together or name nothing."""
        if self.music_spans and self.music_detector:
            raise ValueError("--music_spans and --music_detector: expected one")
        check_file("--music_spans", self.music_spans, "a csv or json file of start and end in seconds")
        if self.music_detector and not all(self.music_detector.partition(":")):
            raise ValueError(f"--music_detector {self.music_detector}: expected module:function")

    def settings(self) -> SpanSettings:
        return SpanSettings(**{item.name: getattr(self, item.name) for item in fields(SpanSettings)})


# -- where there is music ---------------------------------------------------------------------------------------------


def read_music_spans(name: str, paths: Iterable[str]) -> dict[str, Pairs]:
    """
    Reads where there is music.

    Args:
        name (`str`):
            A csv file, or a json file with a list of objects. Each row has `start` and `end` in seconds, and `path`,
            as it is given or relative to the file; without `path` the rows are about the only file.
        paths (`Iterable[str]`):
            The files to caption.

    Returns:
        `dict[str, list[tuple[float, float]]]`: Starts and ends by path, in order; files without a row have no music.

    Raises:
        `ValueError`: For a row that is none, with its number, or one of a file that is not among `paths`.
    """
    folder = Path(name).parent
    known = {os.path.realpath(path): path for path in paths}
    found: dict[str, Pairs] = {path: [] for path in known.values()}
    for number, row in enumerate(_rows(Path(name)), 1):
        try:
            start, end = float(row["start"]), float(row["end"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}, row {number}: {row} has no times; {COLUMNS}") from error
        if not (0 <= start < end and math.isfinite(end)):
            raise ValueError(f"{name}, row {number}: from {start:g} to {end:g} s; expected 0 <= start < end")
        path = row.get("path") or None  # an empty cell
        if path is not None and not isinstance(path, str):
            raise ValueError(f"{name}, row {number}: path is {path!r}; expected text")
        if path is None and len(known) != 1:
            raise ValueError(f"{name}, row {number}: no path, but there are {len(known)} files; {COLUMNS}")
        places = [os.path.realpath(place) for place in (path, folder / path)] if path else [*known]
        place = next((place for place in places if place in known), None)
        if place:  # rows of other files do no harm
            found[known[place]].append((start, end))
    return {path: sorted(pairs) for path, pairs in found.items()}


def _rows(path: Path) -> list[dict[str, Any]]:
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        return list(csv.DictReader(text.splitlines()))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is neither csv nor json ({error}); {COLUMNS}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of objects with start, end and path")
    return rows


def load_detector(name: str) -> Callable[..., Iterable[tuple[float, float]]]:
    """
    Imports the function that `module:function` names.

    Raises:
        `ValueError`: If there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ValueError(f"--music_detector {name}: {error}; a module on PYTHONPATH is found") from error
    if not callable(found):
        raise ValueError(f"--music_detector {name}: {module} has no function {function}")
    return found


# -- rows -------------------------------------------------------------------------------------------------------------


class SpanLedger(Ledger):
    """
    A ledger whose rows hold the spans of a file; the output has a line for each span.

    Raises:
        `FileExistsError`: For `"append"`, if `output` holds spans of one of the files: it has them once.
    """

    def __post_init__(self):
        super().__post_init__()
        twice = {row["path"] for row in self.rows} & {*self.todo} if self.existing == "append" else ()
        if twice:
            raise FileExistsError(
                f"--output {self.output} holds spans of {min(twice)}, and a file of spans has each file once: "
                "add --existing skip to divide only what is new or changed, or overwrite to replace them"
            )

    def read(self) -> list[dict[str, Any]]:
        groups = groupby(read_spans(self.output), key=lambda span: span.path)
        rows = ((path, [asdict(span) for span in spans]) for path, spans in groups)
        return [{"path": path, "key": spans[0]["settings"].get("key"), "spans": spans} for path, spans in rows]

    def write(self, rows: list[dict[str, Any]]):
        write_spans(self.output, spans_of(rows))

    def new(self, rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        found = self.done | {row["path"]: row for row in rows}
        return {path: found[path] for path in self.todo if path in found}


def spans_of(rows: Iterable[dict[str, Any]]) -> Iterator[Span]:
    """All spans of the rows of files."""
    return (Span(**span) for row in rows for span in row["spans"])


def show(row: dict[str, Any]) -> list[str]:
    """A line for each span of a file's row: `0:00.0 - 0:12.5`, a tab, and the caption or the kind in brackets."""
    return [
        f"{_clock(span['start'])} - {_clock(span['end'])}\t{_one_line(span['caption']) or '[' + span['kind'] + ']'}"
        for span in row["spans"]
    ]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _clock(seconds: float) -> str:
    tenths = round(10 * seconds)
    hours, minutes = divmod(tenths // 600, 60)
    return f"{f'{hours}:{minutes:02}' if hours else minutes}:{tenths // 10 % 60:02}.{tenths % 10}"
