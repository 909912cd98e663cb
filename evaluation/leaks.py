"""Scores of a split without the clips that leak into it from the training split."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset

from corpora.leaks import FORMAT_VERSION, fingerprint
from evaluation.systems import System


@dataclass
class Leaks:
    """
    What leaks from the training split into another one.

    Args:
        kinds (`dict[str, list[str]]`): By id of a clip that leaks the kinds of its leaks.
        train_split (`str`), options (`dict`): Of the report: what the clips were compared with, and how.
    """

    kinds: dict[str, list[str]]
    train_split: str
    options: dict


def read_leaks(file: str, split: str, rows: Dataset) -> Leaks:
    """
    The leaks of a split in a `leakage.json`.

    Args:
        file (`str`)
        split (`str`), rows (`Dataset`): The split, as `load_captions` returns it.

    Raises:
        `ValueError`: when the file is no such report, or not about these rows.
    """
    try:
        report = json.loads(Path(file).read_text(encoding="utf-8"))
        version, splits, train = report["format_version"], report["splits"], report["train_split"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--leakage {file} is no report of leaks ({type(error).__name__}: {error}): expected the leakage.json of "
            "find_leaks.py or prepare.py"
        ) from error
    again = "make it again with find_leaks.py"
    if version != FORMAT_VERSION or train not in splits:
        raise ValueError(
            f"--leakage {file} has format version {version} and the splits {', '.join(splits)}: expected version "
            f"{FORMAT_VERSION} and the training split '{train}' among them; {again}"
        )
    own = fingerprint(rows["id"][:], rows["captions"][:])
    name = next((name for name, of in splits.items() if of["fingerprint"] == own and name != train), None)
    if name is None:
        known = ", ".join(f"{name} of {of['rows']} rows" for name, of in splits.items() if name != train)
        raise ValueError(
            f"--leakage {file} is about other clips or captions: split '{split}' has {len(rows)} rows, and is not what "
            f"the report compares with {train} ({known}); {again}"
        )
    kinds: dict[str, list[str]] = {row_id: [] for row_id in rows["id"][:]}
    (leak,) = (leak for leak in report["leaks"] if set(leak["splits"]) == {train, name})
    for kind, found in leak["kinds"].items():
        unknown = [row_id for row_id in found["rows"][name]["ids"] if row_id not in kinds]
        if unknown:
            raise ValueError(f"--leakage {file}: {len(unknown)} ids are none of '{split}': {unknown[:3]}; {again}")
        for row_id in found["rows"][name]["ids"]:
            kinds[row_id].append(kind)
    return Leaks({row_id: own for row_id, own in kinds.items() if own}, train, report["options"])


def score_without_leaks(
    leaks: Leaks,
    systems: dict[str, System],
    lines: list[dict],
    clap_scores: dict[str, dict] | None,
    score: Callable[..., tuple],
) -> dict:
    """
    The clips that do not leak, scored as a test split of their own: what they are captioned with stays.

    Args:
        leaks ([`Leaks`])
        systems (`dict[str, System]`)
        lines (`list[dict]`): Of `predictions.jsonl`; each gets the kinds of its clip's `leaks`.
        clap_scores (`dict`, *optional*): As in `score_systems`, of all clips.
        score: `score_systems`, given all but systems, references and `clap_scores`.

    Returns:
        `n` clips that are left, how many are left out by kind (one may be of several), what these were compared with,
        and the systems as `score_systems` describes them; no system where no clip is left.
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
        if clap_scores is not None:
            clap_scores = {
                key: {**found, "per_item": {name: take(values) for name, values in found.get("per_item", {}).items()}}
                for key, found in clap_scores.items()
            }
        described, *_ = score(systems, take([line["references"] for line in lines]), clap_scores=clap_scores)
    return {
        "n": len(kept),
        "left_out": dict(Counter(kind for line in lines for kind in line["leaks"])),
        "train_split": leaks.train_split,
        "options": leaks.options,
        "systems": described,
    }
