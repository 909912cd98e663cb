"""
Spans: which part of a file is music, and its caption. A file of spans is JSONL, one span a line, in the order of the
files and of their times. The spans of a file follow each other without gaps, from 0 to its duration.

Subtitles are made from these rows alone; nothing here loads torch.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from clips.outputs import replaced_whole

KINDS = ("music", "silence", "other")
STEP = 0.001  # seconds, to which times are rounded
OTHER_FILE = "expected the file that caption.py --spans writes"


@dataclass(kw_only=True)
class Span:
    """
    A part of a file.

    Args:
        path (`str`): The file, as it was given.
        duration (`float`): Length of the whole file in seconds.
        start, end (`float`): Where the span begins and ends, in seconds.
        kind (`str`): `"music"`, `"silence"` or `"other"`, such as speech.
        caption (`str`, *optional*): The caption; None unless it is music, or if the model wrote nothing.
        alternatives (`list[str]`): Other captions, the best first.
        score (`float`, *optional*): Mean log probability of the caption's tokens; None unless it is music.
        candidates (`list[dict]`): The captions that the decoder was shown.
        checkpoint (`dict`): What identifies the checkpoint.
        settings (`dict`): What is needed to make the same spans again.

    Raises:
        `ValueError`: For a value that is none of these, with its name.
    """

    path: str
    duration: float
    start: float
    end: float
    kind: str
    caption: str | None = None
    alternatives: list[str] = field(default_factory=list)
    score: float | None = None
    candidates: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self._require("path", isinstance(self.path, str) and self.path, "text")
        for name in ("duration", "start", "end"):
            value = getattr(self, name)
            self._require(name, _is_number(value) and value >= 0, "seconds, 0 or more")
            setattr(self, name, round(float(value), 3))
        self._require("end", self.end > self.start, f"more than start, {self.start:.3f}")
        self._require("end", self.end <= self.duration + STEP / 2, f"at most the duration, {self.duration:.3f}")
        self._require("kind", self.kind in KINDS, f"one of {', '.join(KINDS)}")
        music = self.kind == "music"
        for name, fits, expected in (("caption", _is_text, "text"), ("score", _is_number, "a number")):
            value = getattr(self, name)
            self._require(name, value is None or (music and fits(value)), _given(expected, music))
        listed = isinstance(self.alternatives, list) and all(map(_is_text, self.alternatives))
        self._require("alternatives", listed and (music or not self.alternatives), _given("a list of texts", music))
        self._require("candidates", isinstance(self.candidates, list), "a list")
        for name in ("checkpoint", "settings"):
            self._require(name, isinstance(getattr(self, name), dict), "an object")

    def _require(self, name: str, right: Any, expected: str):
        if not right:
            raise ValueError(f"{name} is {getattr(self, name)!r}: expected {expected}")


def read_spans(path: Path) -> list[Span]:
    """
    Reads what [`write_spans`] wrote.

    Raises:
        `ValueError`: If a line is not a span, or if spans of a file leave a gap or overlap; with the file and the line.
    """
    spans: list[Span] = []
    last: dict[str, Span] = {}
    names = [item.name for item in fields(Span)]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): {OTHER_FILE}") from error
    # Not `splitlines`: it also splits at characters that JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or {*row} != {*names}:
                found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise ValueError(f"found {found}: expected {', '.join(names)}")
            span = Span(**row)
            _check_follows(span, last.get(span.path), spans[-1] if spans else None)
        except ValueError as error:
            problem = "it is not JSON" if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"{path}, line {number}: {problem}; {OTHER_FILE}") from error
        spans.append(span)
        last[span.path] = span
    for span in last.values():
        if abs(span.end - span.duration) > STEP:
            raise ValueError(
                f"{path}: the spans of {span.path} end at {span.end:.3f} s of {span.duration:.3f}: lines are missing"
            )
    return spans


def write_spans(path: Path, spans: Iterable[Span]):
    """Writes spans as JSONL; the file appears whole or not at all."""
    with replaced_whole(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        file.writelines(json.dumps(asdict(span), ensure_ascii=False, allow_nan=False) + "\n" for span in spans)


def _check_follows(span: Span, before: Span | None, latest: Span | None):
    """Raises `ValueError` unless `span` follows `before`, the last one of its file; `latest` is the last of any."""
    if before and before is not latest:
        raise ValueError(f"the spans of {span.path} are not together")
    expected = before.end if before else 0.0
    if abs(span.start - expected) > STEP:
        raise ValueError(f"start is {span.start:.3f}: expected {expected:.3f}, where the span before ends")
    if before and before.duration != span.duration:
        raise ValueError(f"duration is {span.duration:.3f}: the span before says {before.duration:.3f}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _given(expected: str, music: bool) -> str:
    return expected if music else "nothing, because the span is not music"
