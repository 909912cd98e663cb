"""
Cues from spans: which caption is shown, when and for how long, by the rules of a profile.

A cue says what was captioned or less, and never anything else: the first of the caption and its alternatives that fits,
or the caption cut at the end of a phrase, or only that there is music. Times are whole milliseconds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from captions.phrases import break_lines, clean, decorate, is_finished, length, shorten
from captions.profiles import Profile
from captions.span_rows import Span

MARKER = 2000  # ms for which a cue that only says that music stops or continues is shown, where there is room
LATE = 2000  # ms after which it is not said any more that music has stopped

Interval = tuple[int, int]  # in ms


@dataclass(kw_only=True)
class Cue:
    """
    A text and when it is shown.

    Args:
        start, end (`int`): In ms.
        lines (`list[str]`): The text.
        caption (`str`, *optional*): The caption that it is made of; None for others' cues and for "music stops".
        shortened (`bool`, defaults to `False`): Whether it says less than the caption.
    """

    start: int
    end: int
    lines: list[str]
    caption: str | None = None
    shortened: bool = False

    @property
    def text(self) -> str:
        """The text in one line."""
        return " ".join(self.lines)


@dataclass
class Counts:
    """What became of the captions: `shown` as they are, `alternatives`, `shortened`, `unsure`, `unfit`, `dropped`."""

    shown: int = 0
    alternatives: int = 0  # shown instead, whole
    shortened: int = 0
    unsure: int = 0  # only "music": the score is below the threshold, or there is no caption
    unfit: int = 0  # only "music": no phrase fits
    dropped: int = 0  # no cue: the music is too short, or there is no room

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values())))


@dataclass
class Timeline:
    """
    Where cues can be, within the spans of a file.

    Args:
        profile (`Profile`): The rules.
        duration (`int`): Length of the file in ms.
        busy (`Sequence[Interval]`): When others' cues are shown.
    """

    profile: Profile
    duration: int
    busy: Sequence[Interval] = ()
    cues: list[Cue] = field(default_factory=list)

    def __post_init__(self):
        self.gap = math.ceil(1000 * self.profile.gap_seconds)
        self.shortest = math.ceil(1000 * (self.profile.min_duration or 0.001))
        self.longest = math.floor(1000 * (self.profile.max_duration or 1e9))
        self.free: list[Interval] = []
        begin = 0
        for start, end in sorted(self.busy):
            self.free.append((begin, start - self.gap))
            begin = max(begin, end + self.gap)
        self.free.append((begin, self.duration))

    def reading_time(self, text: str) -> int:
        """Ms that a reader needs for a text, by the profile."""
        rate, words = self.profile.characters_per_second, self.profile.words_per_minute
        seconds = max(length(text) / rate if rate else 0, 60 * len(text.split()) / words if words else 0)
        return max(self.shortest, math.ceil(1000 * seconds))

    def place(self, words: list[str], start: int, end: int, show: int | None = None) -> Cue | None:
        """
        Adds a cue in the first gap between `start` and `end` in which the words can be read. It is shown as long as
        possible, or for `show` ms. None if there is no such gap.
        """
        lines = break_lines(words, self.profile)
        if lines is None:
            return None
        needed = self.reading_time(" ".join(words))
        if self.cues:
            start = max(start, self.cues[-1].end + self.gap)
        for begin, stop in self.free:
            begin, stop = max(begin, start), min(stop, end)
            if needed <= min(stop - begin, self.longest):
                stop = min(stop, begin + self.longest, begin + max(needed, show or self.longest))
                cue = Cue(start=begin, end=stop, lines=lines)
                self.cues.append(cue)
                return cue
        return None


def make_cues(
    spans: Sequence[Span],
    profile: Profile,
    busy: Sequence[Interval] = (),
    remind: float | None = None,
    score_threshold: float | None = None,
) -> tuple[list[Cue], Counts]:
    """
    Makes the cues of a file.

    Args:
        spans (`Sequence[Span]`):
            All spans of the file, in order.
        profile (`Profile`):
            The rules that each cue keeps to.
        busy (`Sequence[tuple[int, int]]`, *optional*):
            When others' cues are shown, in ms. None of ours is shown then.
        remind (`float`, *optional*):
            Seconds after which a cue says that the music continues, again and again.
        score_threshold (`float`, *optional*, defaults to the profile's, or that of the span's settings):
            Captions with a lower score are not shown. Without any threshold all are.

    Returns:
        `tuple[list[Cue], Counts]`: The cues in order, and what became of the captions.
    """
    counts = Counts()
    timeline = Timeline(profile, _ms(spans[0].duration) if spans else 0, busy)
    music = [span for span in spans if span.kind == "music"]
    said = False  # whether a cue has told of the music that plays
    for number, span in enumerate(music):
        following = music[number + 1] if number + 1 < len(music) else None
        start, end = _ms(span.start), _ms(span.end)
        limit = _ms(following.start) - timeline.gap if following else timeline.duration
        cue = _describe(span, timeline, min(max(end, start + timeline.shortest), limit), score_threshold, counts)
        said |= cue is not None
        if cue and remind:
            _remind(timeline, cue.start, min(end, limit), _ms(remind))
        if not (following and following.start == span.end):
            if said and end < timeline.duration:
                timeline.place(profile.music_stops.split(), end, min(limit, end + LATE + MARKER), show=MARKER)
            said = False
    return timeline.cues, counts


def _describe(span: Span, timeline: Timeline, end: int, threshold: float | None, counts: Counts) -> Cue | None:
    """Adds the cue of a span, which begins in it and ends at `end` at the latest."""
    for words, outcome in _texts(span, timeline.profile, threshold):
        cue = timeline.place(words, _ms(span.start), end)
        if cue:
            cue.caption, cue.shortened = span.caption, outcome in ("shortened", "unfit")
            setattr(counts, outcome, getattr(counts, outcome) + 1)
            return cue
    counts.dropped += 1
    return None


def _texts(span: Span, profile: Profile, threshold: float | None) -> Iterator[tuple[list[str], str]]:
    """The words of what could be said of a span, the best first, and how it is counted."""
    caption = clean(span.caption or "")
    for limit in (threshold, profile.score_threshold, span.settings.get("score_threshold")):
        if limit is not None:
            break
    if not caption or (limit is not None and span.score is not None and span.score < limit):
        yield profile.music.split(), "unsure"
        return
    if is_finished(caption):
        yield decorate(caption, profile), "shown"
    for alternative in filter(None, map(clean, span.alternatives)):
        if is_finished(alternative):
            yield decorate(alternative, profile), "alternatives"
    for phrase in shorten(caption):
        yield decorate(phrase, profile), "shortened"
    yield profile.music.split(), "unfit"


def _remind(timeline: Timeline, start: int, end: int, every: int):
    for due in range(start + every, end, every):
        timeline.place(timeline.profile.music_continues.split(), due, min(end, due + every), show=MARKER)


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
