"""Subtitle files: cues written as VTT, SRT, TTML, text or JSON, read from VTT and SRT, and put among others."""

import codecs
import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from captions.rendering import Cue
from clips.tables import read_text

TIMING = re.compile(r"(?:(\d+):)?([0-5]\d):([0-5]\d)[.,](\d{3})")
TIMINGS = re.compile(rf"{TIMING.pattern}[ \t]+-->[ \t]+{TIMING.pattern}")
ARROW = re.compile(r"\s*(\S+)\s+-->\s+(\S+)(?:[ \t]+(.*?))?\s*")
TAGS = {"vtt": re.compile(r"<[^<>]*>"), "srt": re.compile(r"< */? *[a-zA-Z][^<>]*>")}


def format_time(time: int, separator: str = ".") -> str:
    """Milliseconds as `01:02:03.004`."""
    seconds, rest = divmod(time, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{separator}{rest:03}"


# -- writing ----------------------------------------------------------------------------------------------------------


def vtt_block(cue: Cue) -> str:
    """A cue as VTT, without the empty line that ends it."""
    text = "\n".join(html.escape(line, quote=False) for line in cue.lines)
    return f"{format_time(cue.start)} --> {format_time(cue.end)}\n{text}\n"


def srt_block(cue: Cue, number: int) -> str:
    """A cue as SRT, without the empty line that ends it."""
    # SRT has no way to write what players take for a tag or a style. An invisible character keeps "<" from being one.
    text = re.sub(r"<(?= */? *[a-zA-Z])", "<\u2060", "\n".join(cue.lines)).replace("{", "(").replace("}", ")")
    return f"{number}\n{format_time(cue.start, ',')} --> {format_time(cue.end, ',')}\n{text}\n"


def as_vtt(cues: Sequence[Cue]) -> str:
    return "".join(["WEBVTT\n", *(f"\n{vtt_block(cue)}" for cue in cues)])


def as_srt(cues: Sequence[Cue]) -> str:
    return "\n".join(srt_block(cue, number) for number, cue in enumerate(cues, 1))


def as_ttml(cues: Sequence[Cue]) -> str:
    """TTML 1, in English, at the bottom of the picture."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<tt xmlns="http://www.w3.org/ns/ttml" xmlns:tts="http://www.w3.org/ns/ttml#styling" xml:lang="en">',
        "  <head>",
        "    <layout>",
        '      <region xml:id="bottom" tts:displayAlign="after" tts:textAlign="center"/>',
        "    </layout>",
        "  </head>",
        '  <body region="bottom">',
        "    <div>",
    ]
    for cue in cues:
        begin, end = quoteattr(format_time(cue.start)), quoteattr(format_time(cue.end))
        lines.append(f"      <p begin={begin} end={end}>{'<br/>'.join(map(escape, cue.lines))}</p>")
    return "\n".join([*lines, "    </div>", "  </body>", "</tt>", ""])


def as_text(cues: Sequence[Cue]) -> str:
    """One cue a line, after the time when it begins."""
    return "".join(f"{format_time(cue.start)[:-4]}  {cue.text}\n" for cue in cues)


def as_json(cues: Sequence[Cue]) -> str:
    """What each cue was made of."""
    rows = [
        {"start": cue.start / 1000, "end": cue.end / 1000, "text": "\n".join(cue.lines)}
        | ({} if cue.caption is None else {"caption": cue.caption})
        | ({"shortened": True} if cue.shortened else {})
        for cue in cues
    ]
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


WRITERS: dict[str, Callable[[Sequence[Cue]], str]] = {
    "vtt": as_vtt,
    "srt": as_srt,
    "ttml": as_ttml,
    "txt": as_text,
    "json": as_json,
}


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass
class Block:
    """Lines of a subtitle file between empty lines, with their line breaks, and the cue that they are, if any."""

    lines: list[str] = field(default_factory=list)
    cue: Cue | None = None


@dataclass
class SubtitleFile:
    """
    A VTT or SRT file, of which nothing is lost.

    Args:
        kind (`str`): `"vtt"` or `"srt"`.
        blocks (`list[Block]`): All lines; also those of empty lines are blocks.
        newline (`str`): The line break that the file uses.
        mark (`str`): Its byte order mark, or nothing.
    """

    kind: str
    blocks: list[Block]
    newline: str
    mark: str

    @property
    def cues(self) -> list[Cue]:
        """The cues, in the order of the file; tags and settings are left out."""
        return [block.cue for block in self.blocks if block.cue]


def read_subtitles(path: Path) -> SubtitleFile:
    """
    Reads a VTT or SRT file.

    Raises:
        `ValueError`: If it is neither, or a time cannot be read; with the line.
    """
    mark = "\ufeff" if path.read_bytes().startswith(codecs.BOM_UTF8) else ""
    lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", read_text(path).removeprefix(mark))
    kind = "vtt" if re.match(r"WEBVTT(?:\s|$)", lines[0] if lines else "") else "srt"
    if kind == "srt" and (path.suffix.lower() == ".vtt" or (lines and not any("-->" in line for line in lines))):
        expected = "the first line WEBVTT" if path.suffix.lower() == ".vtt" else "a VTT or SRT file"
        raise ValueError(f"{path} is not subtitles: expected {expected}")
    newline = next((line[len(line.rstrip("\r\n")) :] for line in lines if line.endswith(("\r", "\n"))), "\n")
    blocks: list[Block] = []
    for number, line in enumerate(lines, 1):
        empty = not line.strip("\r\n")
        if empty or not blocks or not blocks[-1].lines[0].strip("\r\n"):
            blocks.append(Block())
        if blocks[-1].cue and TIMINGS.match(line):  # no empty line before it
            block = Block()
            if kind == "srt" and blocks[-1].lines[-1].strip().isdecimal():
                block.lines.append(blocks[-1].lines.pop())
                blocks[-1].cue.lines = blocks[-1].cue.lines[:-1]
            blocks.append(block)
        blocks[-1].lines.append(line)
        if "-->" in line and not empty and not blocks[-1].cue and not _is_comment(blocks[-1], kind):
            blocks[-1].cue = _read_timing(line, path, number)
        elif blocks[-1].cue and not empty:
            plain = TAGS[kind].sub("", line.strip("\r\n"))
            blocks[-1].cue.lines.append(html.unescape(plain) if kind == "vtt" else plain)
    return SubtitleFile(kind, blocks, newline, mark)


def _is_comment(block: Block, kind: str) -> bool:
    return kind == "vtt" and re.match(r"(?:NOTE|STYLE|REGION)(?:\s|$)", block.lines[0]) is not None


def _read_timing(line: str, path: Path, number: int) -> Cue:
    found = ARROW.fullmatch(line)
    times = [TIMING.fullmatch(part) for part in found.groups()[:2]] if found else [None]
    if not all(times):
        raise ValueError(
            f"{path}, line {number}: {line.strip()!r}: expected times such as 00:01:02.500 --> 00:01:05.000"
        )
    start, end = (
        ((int(hours or 0) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(rest)
        for hours, minutes, seconds, rest in (time.groups() for time in times)
    )
    return Cue(start=start, end=end, lines=[])


# -- merging ----------------------------------------------------------------------------------------------------------


def merge(others: SubtitleFile, cues: Sequence[Cue]) -> str:
    """
    A subtitle file with more cues. Each stands after the cues of the file that begin before it. The lines of the file
    stay as they are; only the numbers of an SRT file go on counting.
    """
    blocks, newline = others.blocks, others.newline
    places = [place for place, block in enumerate(blocks) if block.cue]
    new: dict[int, list[Cue]] = {}
    for cue in cues:
        earlier = [place for place in places if blocks[place].cue.start <= cue.start]
        later = [place for place in places if not earlier or place > earlier[-1]]
        new.setdefault(_with_comments(blocks, later[0]) if later else len(blocks), []).append(cue)
    number = 0
    parts = [others.mark]
    for place in range(len(blocks) + 1):
        for cue in new.get(place, ()):
            number += 1
            text = (srt_block(cue, number) if others.kind == "srt" else vtt_block(cue)).replace("\n", newline)
            if place < len(blocks):
                dense = place > 0 and blocks[place - 1].lines[0].strip("\r\n") and parts[-1] != newline
                parts += [newline if dense else "", text, newline]
            else:
                whole = not any(parts) or parts[-1].endswith(("\r", "\n"))
                parts += ["" if whole else newline, newline if any(parts) else "", text]
        if place < len(blocks):
            lines = list(blocks[place].lines)
            if blocks[place].cue and others.kind == "srt":
                number += 1
                lines[0] = re.sub(r"^\d+(?=\s*$)", str(number), lines[0])
            parts.append("".join(lines))
    return "".join(parts)


def _with_comments(blocks: list[Block], place: int) -> int:
    """Where a cue and the comments on it begin."""
    begin = place
    while place > 0 and (not blocks[place - 1].lines[0].strip("\r\n") or blocks[place - 1].lines[0].startswith("NOTE")):
        place -= 1
        if blocks[place].lines[0].strip("\r\n"):
            begin = place
    return begin
