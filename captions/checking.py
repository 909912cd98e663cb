"""The checker: where the cues of a subtitle file break the rules of a profile."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from captions.phrases import length
from captions.profiles import Profile
from captions.rendering import Cue
from captions.subtitle_files import format_time

ROUNDING = 1  # ms; times of files are rounded to them
UNITS = {
    "order": "s",
    "min_duration": "s",
    "max_duration": "s",
    "gap": "s",
    "characters_per_line": "characters",
    "lines": "lines",
    "characters_per_second": "characters per second",
    "words_per_minute": "words per minute",
    "text": "characters",
}


@dataclass(frozen=True)
class Violation:
    """
    A rule that a cue breaks.

    Args:
        rule (`str`): A limit of the profile; `"order"` for a cue that does not end after it starts; `"text"` for one
            without text.
        cue (`int`): Its number in the file, from 1.
        time (`float`): When it starts, in seconds.
        value, limit (`float`): What it has, and what the profile allows: at most, or for durations and gaps at least.
            For `"gap"` the value is the time to the next cue, negative where they overlap.
    """

    rule: str
    cue: int
    time: float
    value: float
    limit: float

    def __str__(self) -> str:
        start = format_time(round(1000 * self.time))
        return f"cue {self.cue} at {start}: {self.rule} is {self.value:g} {UNITS[self.rule]}, limit {self.limit:g}"


def check_cues(cues: Sequence[Cue], profile: Profile) -> list[Violation]:
    """All violations of a profile, in the order of the cues."""
    found = []
    in_time = sorted(range(len(cues)), key=lambda number: cues[number].start)
    following = dict(pairwise(in_time))
    for number, cue in enumerate(cues):
        then = cues[following[number]] if number in following else None
        for rule, value, limit in _broken(cue, then, profile):
            found.append(Violation(rule, number + 1, cue.start / 1000, round(value, 3), round(limit, 3)))
    return found


def _broken(cue: Cue, following: Cue | None, profile: Profile) -> Iterator[tuple[str, float, float]]:
    duration = (cue.end - cue.start) / 1000
    slack = ROUNDING / 1000
    if duration <= 0:
        yield "order", duration, 0
        return
    if profile.min_duration is not None and duration < profile.min_duration - slack / 2:
        yield "min_duration", duration, profile.min_duration
    if profile.max_duration is not None and duration > profile.max_duration + slack / 2:
        yield "max_duration", duration, profile.max_duration
    if following:
        gap = (following.start - cue.end) / 1000
        if gap < profile.gap_seconds - slack and not (gap == 0 and profile.touching):
            yield "gap", gap, profile.gap_seconds
    if not cue.text.strip():
        yield "text", 0, 1
        return
    longest = max(map(length, cue.lines))
    if profile.characters_per_line is not None and longest > profile.characters_per_line:
        yield "characters_per_line", longest, profile.characters_per_line
    if profile.lines is not None and len(cue.lines) > profile.lines:
        yield "lines", len(cue.lines), profile.lines
    # A time that was rounded to milliseconds does not make a cue too fast.
    rate = length(cue.text) / (duration + slack)
    if profile.characters_per_second is not None and rate > profile.characters_per_second:
        yield "characters_per_second", length(cue.text) / duration, profile.characters_per_second
    words = 60 * len(cue.text.split()) / (duration + slack)
    if profile.words_per_minute is not None and words > profile.words_per_minute:
        yield "words_per_minute", 60 * len(cue.text.split()) / duration, profile.words_per_minute
