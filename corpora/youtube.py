"""Matches files to YouTube clips, by the names that downloaders give them."""

import re
from collections.abc import Iterable
from pathlib import Path

YTID = r"[A-Za-z0-9_-]{11}"
NUMBER = r"\d+(?:\.\d+)?"
TIMES = rf"\[?(?P<start>{NUMBER})(?:[-_](?P<end>{NUMBER}))?\]?"
NAMES = [  # the surest pattern first
    re.compile(rf"(?P<ytid>{YTID})"),
    re.compile(rf"\[(?P<ytid>{YTID})\][-_ ]{TIMES}"),  # MusicCaps' own: [ytid]-[30-40]
    re.compile(rf"(?P<ytid>{YTID})[-_]{TIMES}"),  # ytid_30_40, ytid_30; AudioSet's ytid_30000_40000 and ytid_30.000
    re.compile(rf"Y(?P<ytid>{YTID})(?:[-_]{TIMES})?"),  # AudioSet's and AudioCaps': Yytid, Yytid_30.000_40.000
    re.compile(rf".*\[(?P<ytid>{YTID})\]"),  # yt-dlp: Title [ytid]
    re.compile(rf".*-(?P<ytid>{YTID})"),  # youtube-dl: Title-ytid
]


def find_clips(files: Iterable[str], starts: dict[str, float]) -> tuple[dict[str, str], dict[str, str]]:
    """
    Finds the file of each YouTube clip.

    Args:
        files (`Iterable[str]`):
            Paths.
        starts (`dict[str, float]`):
            Where the wanted clip of each YouTube id begins in its video, in s.

    Returns:
        `tuple[dict[str, str], dict[str, str]]`: The file of each id that has one, and the reason why each other file is
        not used: its name has no known id or names another part of the video (in s or ms), or a better match was found.
    """
    found: dict[str, tuple[int, str]] = {}
    others = {}
    for file in sorted(files):
        rank, ytid, reason = _read_name(Path(file).stem, starts)
        if ytid is None:
            others[file] = reason
        elif ytid in found and found[ytid][0] <= rank:
            others[file] = f"{found[ytid][1]} is used for {ytid}"
        else:
            if ytid in found:
                others[found[ytid][1]] = f"{file} is used for {ytid}"
            found[ytid] = (rank, file)
    return {ytid: file for ytid, (_, file) in found.items()}, others


def _read_name(stem: str, starts: dict[str, float]) -> tuple[int, str | None, str]:
    reason = "its name has no YouTube id of the corpus"
    for rank, pattern in enumerate(NAMES):
        match = pattern.fullmatch(stem)
        if not match or match["ytid"] not in starts:
            continue
        ytid = match["ytid"]
        begins = match.groupdict().get("start")
        if begins is None or float(begins) in (starts[ytid], 1000 * starts[ytid]):
            return rank, ytid, ""
        reason = f"its name says that it begins at {begins}, but the clip of {ytid} begins at {starts[ytid]:g} s"
    return len(NAMES), None, reason
