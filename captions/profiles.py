"""Profiles of subtitles, as `profiles.yaml` describes them: what a guide for captions asks for."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from clips.options import did_you_mean, near_path

OWN = Path(__file__).with_name("profiles.yaml")
CASES = ("keep", "phrase", "upper")
SHORTEST_LINE = 16  # which holds "[music stops]"


def _is_number(value: Any, kinds: type | tuple = (int, float)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_text(value: Any) -> bool:
    return _is_line(value) and bool(value.strip())


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: _is_number(value, int) and value >= least


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prefix": (_is_line, "text in one line"),
    "suffix": (_is_line, "text in one line"),
    "music": (_is_text, "text in one line"),
    "music_stops": (_is_text, "text in one line"),
    "music_continues": (_is_text, "text in one line"),
    "case": (lambda value: value in CASES, f"one of {', '.join(CASES)}"),
    "gap": (_at_least(0), "a whole number of frames, 0 or more"),
    "touching": (lambda value: isinstance(value, bool), "true or false"),
    "frame_rate": (_is_positive, "a number above 0"),
}
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {  # and null
    "min_duration": (_is_positive, "seconds above 0"),
    "max_duration": (_is_positive, "seconds above 0"),
    "characters_per_line": (_at_least(SHORTEST_LINE), f"a whole number, {SHORTEST_LINE} or more"),
    "lines": (_at_least(1), "a whole number, 1 or more"),
    "characters_per_second": (_is_positive, "a number above 0"),
    "words_per_minute": (_is_positive, "a number above 0"),
    "score_threshold": (_is_number, "a number"),
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """
    What a cue may be. `profiles.yaml` says what each field means; None is no limit.

    Raises:
        `ValueError`: For a value that a field does not take, with its name.
    """

    prefix: str
    suffix: str
    music: str
    music_stops: str
    music_continues: str
    case: str
    min_duration: float | None
    max_duration: float | None
    gap: int
    touching: bool
    frame_rate: float
    characters_per_line: int | None
    lines: int | None
    characters_per_second: float | None
    words_per_minute: float | None
    score_threshold: float | None

    def __post_init__(self):
        for name, (fits, expected) in (CHECKS | LIMITS).items():
            value = getattr(self, name)
            if not fits(value) and not (value is None and name in LIMITS):
                raise ValueError(f"{name} is {value!r}: expected {expected}{', or null' if name in LIMITS else ''}")
        if self.min_duration and self.max_duration and self.min_duration > self.max_duration:
            raise ValueError(f"min_duration is {self.min_duration}: expected at most {self.max_duration}, max_duration")

    @property
    def gap_seconds(self) -> float:
        """`gap` in seconds."""
        return self.gap / self.frame_rate


def profile_names() -> list[str]:
    """The profiles of `profiles.yaml`."""
    return [*yaml.safe_load(OWN.read_text(encoding="utf-8"))]


def load_profile(name: str) -> Profile:
    """
    Loads a profile of `profiles.yaml` by its name, or one of the user's by its path.

    Raises:
        `FileNotFoundError`: If `name` is neither.
        `ValueError`: If the file is not a profile; with the key that is wrong.
    """
    own = yaml.safe_load(OWN.read_text(encoding="utf-8"))
    values = own[name] if name in own else _read(name, own)
    known = [item.name for item in fields(Profile)]
    merged: dict[str, Any] = {}
    while True:
        for key in values:
            if key not in (*known, "like"):
                raise ValueError(f"--profile {name}: unknown key {key}{did_you_mean(str(key), [*known, 'like'])}")
        merged = values | merged
        like = values.get("like")
        if like is None:
            break
        if like not in own:
            raise ValueError(f"--profile {name}: like is {like!r}: expected one of {', '.join(own)}")
        values = own[like]
    missing = [key for key in known if key not in merged]
    if missing:
        raise ValueError(f"--profile {name} lacks {', '.join(missing)}; `like: netflix` takes them from there")
    try:
        return Profile(**{key: merged[key] for key in known})
    except ValueError as error:
        raise ValueError(f"--profile {name}: {error}") from error


def _read(name: str, own: dict[str, Any]) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        hint = did_you_mean(name, own) or near_path(name)
        raise FileNotFoundError(f"--profile {name}: expected {', '.join(own)}, or a yaml file of your own{hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--profile {name} cannot be read as yaml: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--profile {name} holds a {type(values).__name__}: expected a line `key: value` for each key")
    return values
