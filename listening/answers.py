"""The answers of raters: their exports, who is excluded, and the votes on each pair of systems."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from listening.design import GOLD, Study, Trial

CHOICES = ("left", "right", "tie")
TIE = "tie"


@dataclass(frozen=True)
class Answer:
    """
    What a rater answered to a trial.

    Args:
        choices (`tuple[str, ...]`): `"left"`, `"right"` or `"tie"` for each criterion.
        seconds (`float`): How long it took.
        plays (`int`): How often the sound was played.
    """

    choices: tuple[str, ...]
    seconds: float
    plays: int


@dataclass
class Rater:
    """
    What a rater's answers are worth.

    Args:
        code (`str`)
        answered, asked (`int`): Trials.
        checks_passed, checks (`int`): Attention checks, of those that are answered.
        same (`dict[str, int]`), repeats (`int`):
            Repeated trials that are answered, and in how many the answer is the same, by criterion.
        first (`float`, *optional*): Share of the votes for one side that go to the first caption, ties left out.
        seconds (`float`): Median time of a trial.
        excluded (`str`, *optional*): The rule that excludes the rater.
    """

    code: str
    answered: int
    asked: int
    checks_passed: int
    checks: int
    same: dict[str, int]
    repeats: int
    first: float | None
    seconds: float
    excluded: str | None


@dataclass
class Vote:
    """A rater's choice between the captions of two systems of a song: `choice` is one of them, or `"tie"`."""

    rater: str
    song: str
    first: str
    second: str
    criterion: str
    choice: str


def read_answers(files: Sequence[str | Path], study: Study) -> dict[str, dict[str, Answer]]:
    """
    Reads the files that the page exports, JSON or CSV. Several of one rater are joined.

    Returns:
        `dict[str, dict[str, Answer]]`: the answers by rater and trial.

    Raises:
        `ValueError`: If a file is none of these, is of another test, or contradicts another one of its rater.
    """
    found: dict[str, dict[str, Answer]] = {}
    source: dict[tuple[str, str], str | Path] = {}
    for file in files:
        for rater, trial, answer in _read_export(Path(file), study):
            earlier = found.setdefault(rater, {}).setdefault(trial, answer)
            if earlier != answer:
                raise ValueError(
                    f"{file}: rater {rater} answers {trial} otherwise than in {source[rater, trial]}: "
                    "each rater needs a code of their own; leave out the wrong file"
                )
            source[rater, trial] = file
    return found


def _read_export(path: Path, study: Study) -> list[tuple[str, str, Answer]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            export = json.loads(text)
            rows = [{"study": export["study"], "rater": export["rater"], **row} for row in export["answers"]]
        read = []
        for row in rows:
            answer = Answer(tuple(row[name] for name in study.criteria), float(row["seconds"]), int(row["plays"]))
            read.append((row["study"], row["rater"], row["trial"], answer))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not an export of the page ({type(error).__name__}: {error}): expected what it saves, "
            "JSON or CSV"
        ) from error
    known = {(code, trial.id) for code, trials in study.raters.items() for trial in trials}
    for of, rater, trial, answer in read:
        if of != study.id:
            raise ValueError(f"{path} is of the test {of}, and the key of {study.id}: give the key.json of that page")
        if (rater, trial) not in known or not {*answer.choices} <= {*CHOICES}:
            raise ValueError(
                f"{path}: rater {rater}, trial {trial}: {' '.join(answer.choices)}: expected a trial of that rater, "
                f"and {', '.join(CHOICES)}"
            )
    return [(rater, trial, answer) for _, rater, trial, answer in read]


def judge_raters(answers: dict[str, dict[str, Answer]], study: Study) -> list[Rater]:
    """Describes each rater who sent answers, and applies the rules of the study."""
    raters = []
    for code, trials in study.raters.items():
        given = answers.get(code)
        if not given:
            continue
        done = [trial for trial in trials if trial.id in given]
        checks = [trial for trial in done if trial.kind == "check"]
        passed = sum(chosen(trial, given[trial.id].choices[0]) == GOLD for trial in checks)
        by_id = {trial.id: trial for trial in done}
        twice = [(trial, by_id[trial.repeats]) for trial in done if trial.repeats in by_id]
        same = {
            name: sum(
                chosen(trial, given[trial.id].choices[i]) == chosen(first, given[first.id].choices[i])
                for trial, first in twice
            )
            for i, name in enumerate(study.criteria)
        }
        sides = Counter(choice for trial in done if trial.kind != "check" for choice in given[trial.id].choices)
        sided = sides["left"] + sides["right"]
        failed, share = len(checks) - passed, len(done) / len(trials)
        excluded = None
        if failed > study.rules["max_failed_checks"]:
            excluded = f"failed {failed} of {len(checks)} attention checks"
        elif share < study.rules["min_answered"]:
            excluded = f"answered {len(done)} of {len(trials)} trials"
        raters.append(
            Rater(
                code=code,
                answered=len(done),
                asked=len(trials),
                checks_passed=passed,
                checks=len(checks),
                same=same,
                repeats=len(twice),
                first=sides["left"] / sided if sided else None,
                seconds=float(np.median([answer.seconds for answer in given.values()])),
                excluded=excluded,
            )
        )
    return raters


def chosen(trial: Trial, choice: str) -> str:
    """The system that a choice of a side is for, or `"tie"`."""
    return {"left": trial.left, "right": trial.right, "tie": TIE}[choice]


def collect_votes(answers: dict[str, dict[str, Answer]], study: Study, raters: list[Rater]) -> list[Vote]:
    """The votes of the raters who are not excluded; attention checks and repeated trials have no vote."""
    votes = []
    for rater in raters:
        if rater.excluded:
            continue
        given = answers[rater.code]
        for trial in study.raters[rater.code]:
            if trial.kind == "song" and trial.id in given:
                first, second = (name for name in study.systems if name in (trial.left, trial.right))
                for name, choice in zip(study.criteria, given[trial.id].choices):
                    votes.append(Vote(rater.code, trial.song, first, second, name, chosen(trial, choice)))
    return votes


def count_votes(votes: list[Vote], study: Study, criterion: str) -> np.ndarray:
    """Counts the votes: `(N, P, 3)` of `N` songs and `P` pairs, for the first system, the second, and ties."""
    counts = np.zeros((len(study.songs), len(study.pairs), 3), int)
    songs = {song: row for row, song in enumerate(study.songs)}
    pairs = {pair: row for row, pair in enumerate(study.pairs)}
    for vote in votes:
        if vote.criterion == criterion:
            column = (vote.first, vote.second, TIE).index(vote.choice)
            counts[songs[vote.song], pairs[vote.first, vote.second], column] += 1
    return counts
