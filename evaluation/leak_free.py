"""Scores of a split without the clips that leak into it from the training split."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset

from corpora.leaks import FORMAT_VERSION, fingerprint
from evaluation.attributes import Attributes
from evaluation.systems import System
from reporting.results import LeakFreeResults, Prediction


@dataclass
class Leaks:
    """
    What leaks from the training split into another split.

    Args:
        kinds (`dict[str, list[str]]`): The kinds of leaks of each clip that leaks, by its id.
        train_split (`str`), options (`dict`): What the clips were compared with, and how.
    """

    kinds: dict[str, list[str]]
    train_split: str
    options: dict


def read_leaks(file: str, split: str, rows: Dataset) -> Leaks:
    """
    Reads the leaks of a split from a `leakage.json`.

    Args:
        file (`str`): Path of the `leakage.json`.
        split (`str`): Name of the split.
        rows (`Dataset`): The split, as `load_captions` returns it.

    Raises:
        `ValueError`: If the file is not a `leakage.json`, or is about other rows.
    """
    try:
        report = json.loads(Path(file).read_text(encoding="utf-8"))
        version, splits, train = report["format_version"], report["splits"], report["train_split"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--leakage {file} is not a report of leaks ({type(error).__name__}: {error}): "
            "expected the leakage.json of find_leaks.py or prepare.py"
        ) from error
    again = "make it again with find_leaks.py"
    if version != FORMAT_VERSION or train not in splits:
        raise ValueError(
            f"--leakage {file} has format version {version} and the splits {', '.join(splits)}: "
            f"expected version {FORMAT_VERSION} and the training split '{train}' among the splits; {again}"
        )
    own = fingerprint(rows["id"][:], rows["captions"][:])
    name = next((name for name, of in splits.items() if of["fingerprint"] == own and name != train), None)
    if name is None:
        known = ", ".join(f"{name} of {of['rows']} rows" for name, of in splits.items() if name != train)
        raise ValueError(
            f"--leakage {file} is about other clips or captions: split '{split}' has {len(rows)} rows, "
            f"and none of the splits that the report compares with {train} is the same ({known}); {again}"
        )
    kinds: dict[str, list[str]] = {row_id: [] for row_id in rows["id"][:]}
    (leak,) = (leak for leak in report["leaks"] if set(leak["splits"]) == {train, name})
    for kind, found in leak["kinds"].items():
        unknown = [row_id for row_id in found["rows"][name]["ids"] if row_id not in kinds]
        if unknown:
            raise ValueError(f"--leakage {file}: {len(unknown)} ids are not in split '{split}': {unknown[:3]}; {again}")
        for row_id in found["rows"][name]["ids"]:
            kinds[row_id].append(kind)
    return Leaks({row_id: own for row_id, own in kinds.items() if own}, train, report["options"])


def score_without_leaks(
    leaks: Leaks,
    systems: dict[str, System],
    lines: list[Prediction],
    other_scores: dict[str, dict] | None,
    score: Callable[..., tuple],
    attributes: Attributes | None = None,
) -> LeakFreeResults:
    """
    Scores the clips that do not leak as if they were the whole split. Their captions stay the same.

    Args:
        leaks ([`Leaks`]): Which clips leak.
        systems (`dict[str, System]`): The captions of all clips.
        lines (`list[Prediction]`): One per clip; `leaks` is added to each.
        other_scores (`dict[str, dict]`, *optional*): Those of all clips, as in `score_systems`.
        score (`Callable`): `score_systems` with its other arguments already given.
        attributes ([`Attributes`], *optional*): Those of all clips, as in `score_systems`.
    """
    for line in lines:
        line["leaks"] = leaks.kinds.get(line["id"], [])
    kept = [row for row, line in enumerate(lines) if not line["leaks"]]

    def take(values: list) -> list:
        return [values[row] for row in kept]

    described = {}
    if kept:
        systems = {
            key: replace(system, captions=take(system.captions), candidates=take(system.candidates))
            for key, system in systems.items()
        }
        if other_scores is not None:
            other_scores = {
                key: {**found, "per_item": {name: take(values) for name, values in found.get("per_item", {}).items()}}
                for key, found in other_scores.items()
            }
        options = {"other_scores": other_scores, "attributes": attributes and attributes.select(kept)}
        described, *_ = score(systems, take([line["references"] for line in lines]), **options)
    left_out = dict(Counter(kind for line in lines for kind in line["leaks"]))
    return LeakFreeResults(len(kept), left_out, leaks.train_split, leaks.options, described)
