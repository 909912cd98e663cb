"""
Compares two evaluations of the same clips: the difference of each metric with its paired interval.

    python -m evaluation.compare outputs/a/eval outputs/b/eval
    python -m evaluation.compare outputs/a/eval outputs/b/eval --metric cider_d rouge_l
    python -m evaluation.compare outputs/a/eval outputs/a/eval --system rgmc_random_candidate rgmc_audio_only

Each evaluation may be one of several checkpoints that differ by seed (`eval.py --model a b c`).
"""

import json
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clips.options import OptionParser, check_folder, did_you_mean, user_errors
from evaluation.intervals import with_interval
from evaluation.resamples import read_resamples
from reporting.results import LISTENING_TITLES, Checkpoint, EvaluationResults, Resamples, Score, SystemResult
from reporting.tables import ATTRIBUTE_METRICS, format_score, metric_stem, public_name


@dataclass
class Evaluation:
    """
    What `eval.py` wrote to a folder.

    Args:
        folder (`Path`)
        results ([`EvaluationResults`]): From `results.json`.
        resamples (`Resamples`): From `resamples.parquet`.
        clips (`list[tuple[str, list[str]]]`): Id and references of each clip, in order.
    """

    folder: Path
    results: EvaluationResults
    resamples: Resamples
    clips: list[tuple[str, list[str]]]

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """Raises `ValueError` if the folder is not one of `eval.py`, or its evaluation drew no resamples."""
        try:
            results = EvaluationResults.from_dict(json.loads((folder / "results.json").read_text(encoding="utf-8")))
            # Not splitlines, which also splits at characters that a caption may have.
            lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
            clips = [(line["id"], line["references"]) for line in map(json.loads, filter(None, lines))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} is not an evaluation ({type(error).__name__}: {error}): expected the --output_dir of eval.py"
            ) from error
        if not results.bootstrap["samples"]:
            raise ValueError(f"{folder} has no resamples: run eval.py again without --bootstrap 0")
        return cls(folder, results, read_resamples(folder), clips)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return self.results.checkpoints or [self.results.checkpoint]

    @property
    def digests(self) -> list[dict[str, str]]:
        return [checkpoint["sha256"] for checkpoint in self.checkpoints]

    @property
    def systems(self) -> dict[str, SystemResult]:
        """The rows of the tables, and those that only listening was measured of."""
        listening = self.results.listening
        return {**(listening.systems if listening else {}), **self.results.systems}

    def scores(self, system: str) -> dict[str, Score]:
        """All scores of a system, by metric: those of the tables, of listening and of retrieval."""
        results = self.results
        found = dict(results.systems[system].scores) if system in results.systems else {}
        if results.listening and system in results.listening.systems:
            found |= results.listening.systems[system].scores
        if results.retrieval and system in results.retrieval.encoders:
            recall = results.retrieval.encoders[system].recall
            found |= {f"recall@{k}": score for k, score in recall.items()}
        return found

    def metric_title(self, metric: str) -> str:
        if metric.startswith("recall@"):
            return f"{metric.capitalize()} %"
        return LISTENING_TITLES.get(metric) or self.results.metrics[metric]

    def title(self, system: str) -> str:
        names = ", ".join(public_name(checkpoint["name"]) for checkpoint in self.checkpoints)
        return f"{self.systems[system].title}, {self.folder} ({names})"


@dataclass
class Comparison:
    """
    A metric of two systems.

    Args:
        title (`str`): Of the metric.
        a, b ([`Score`]): As in the two evaluations.
        difference ([`Score`]): Of a - b, with the paired interval over clips and the deviation over seeds.
    """

    title: str
    a: Score
    b: Score
    difference: Score

    @property
    def verdict(self) -> str:
        """What the interval shows, in the two decimals that are printed."""
        if self.difference.low is None:
            return "no interval"
        if round(self.difference.low, 2) <= 0 <= round(self.difference.high, 2):
            return "no difference shown"
        return "A is higher" if self.difference.value > 0 else "B is higher"


def check_same_clips(a: Evaluation, b: Evaluation):
    """
    Checks that two evaluations can be paired clip by clip.

    Raises:
        `ValueError`: If they are about other clips or references, normalise captions by different rules, or drew other
            resamples.
    """
    ids_a, ids_b = ([row_id for row_id, _ in evaluation.clips] for evaluation in (a, b))
    if ids_a != ids_b:
        raise ValueError(
            f"{a.folder} and {b.folder} are not about the same clips in the same order: {len(ids_a)} and {len(ids_b)}, "
            f"{len({*ids_a} & {*ids_b})} of them in both; evaluate both on the same split"
        )
    for (row_id, references), (_, other) in zip(a.clips, b.clips):
        if references != other:
            raise ValueError(
                f"{a.folder} and {b.folder} have different references for {row_id}: {references} and {other}; "
                "evaluate both on the same corpus"
            )
    rules = [evaluation.results.caption_normalization for evaluation in (a, b)]
    if rules[0] != rules[1]:
        raise ValueError(
            f"{a.folder} and {b.folder} normalise captions by the rules '{rules[0]}' and '{rules[1]}': "
            "their scores cannot be compared"
        )
    drawn = [(evaluation.results.seed, evaluation.results.bootstrap["samples"]) for evaluation in (a, b)]
    words = [evaluation.resamples["gold"]["words"] for evaluation in (a, b)]
    # The gold captions are the same, so their resampled lengths are the same unless other clips were drawn.
    if drawn[0] != drawn[1] or not np.allclose(*words):
        raise ValueError(
            f"{a.folder} and {b.folder} drew different resamples, with (--seed, --bootstrap) {drawn[0]} and "
            f"{drawn[1]}: run eval.py again with the same values and the same version of numpy"
        )


def incomparable(a: Evaluation, b: Evaluation) -> dict[str, str]:
    """Metrics that the evaluations measure in different ways, with the difference."""
    found = {}
    if a.digests != b.digests:
        found["choice_nearest"] = "the encoder of each model chooses its own captions"
    attributes = [own for own in (a.results.attributes, b.results.attributes) if own]
    facts = [(Path(own.file).name, own.sources, own.concepts["gold"]) for own in attributes]
    if len(facts) == 2 and facts[0] != facts[1]:
        found |= dict.fromkeys(ATTRIBUTE_METRICS, "other --attributes or --attribute_columns")
    retrieval = [own for own in (a.results.retrieval, b.results.retrieval) if own]
    if len(retrieval) == 2 and retrieval[0].threshold != retrieval[1].threshold:
        thresholds = " and ".join(f"{own.threshold:g}" for own in retrieval)
        ks = {k for own in retrieval for encoder in own.encoders.values() for k in encoder.recall}
        found |= {f"recall@{k}": f"other --recall_threshold: {thresholds}" for k in sorted(ks, key=int)}
    return found


def compare(a: Evaluation, b: Evaluation, system_a: str, system_b: str, metrics: list[str]) -> list[Comparison]:
    """
    Compares a system of one evaluation with a system of another one of the same clips.

    Args:
        a, b ([`Evaluation`])
        system_a, system_b (`str`): Keys of the systems, such as `"rgmc"`.
        metrics (`list[str]`): Keys of the metrics, with or without the checkpoint in brackets; all that both have
            if empty.

    Raises:
        `ValueError`: If the evaluations cannot be paired, or lack a system or a metric.
    """
    check_same_clips(a, b)
    for evaluation, system in ((a, system_a), (b, system_b)):
        if system not in evaluation.systems:
            known = evaluation.systems
            raise ValueError(
                f"--system {system} is not in {evaluation.folder}: expected one of {', '.join(known)}"
                + did_you_mean(system, known)
            )
    scores_a, scores_b, different = a.scores(system_a), b.scores(system_b), incomparable(a, b)
    shared = [
        key
        for key in [*a.results.metrics, *(name for name in scores_a if name not in a.results.metrics)]
        if key in scores_a and key in scores_b and None not in (scores_a[key].value, scores_b[key].value)
        if key not in different
    ]
    for metric in metrics:
        if metric in different:
            raise ValueError(f"--metric {metric} cannot be compared: {different[metric]}")
        if metric not in {*shared, *map(metric_stem, shared)}:
            raise ValueError(
                f"--metric {metric} is not in both evaluations: expected some of {', '.join(shared)}"
                + did_you_mean(metric, shared)
            )
    resamples_a, resamples_b = a.resamples.get(system_a, {}), b.resamples.get(system_b, {})
    found = []
    for key in shared:
        if not metrics or {key, metric_stem(key)} & {*metrics}:
            drawn = None
            if key in resamples_a and key in resamples_b:
                drawn = resamples_a[key].astype(float) - resamples_b[key]
            difference = with_interval(scores_a[key].value - scores_b[key].value, drawn)
            difference.deviation = deviation_of_difference(scores_a[key], scores_b[key], a.digests == b.digests)
            found.append(Comparison(a.metric_title(key), scores_a[key], scores_b[key], difference))
    return found


def deviation_of_difference(a: Score, b: Score, paired: bool) -> float | None:
    """
    The standard deviation of a - b over seeds: of the differences where both scores are by the same checkpoints,
    otherwise of a run of each, drawn independently. None where a score is by one checkpoint.
    """
    if a.by_checkpoint is None or b.by_checkpoint is None:
        return None
    if paired:
        return float(np.std(np.subtract(a.by_checkpoint, b.by_checkpoint), ddof=1))
    return float(np.hypot(a.deviation, b.deviation))


def format_comparisons(found: list[Comparison]) -> str:
    """Aligned lines: metric, A, B, A - B with its interval, and what that shows."""
    rows = [["", "A", "B", "A - B", ""]]
    for each in found:
        difference = format_score(each.difference, True, "+.2f")
        rows.append([each.title, format_score(each.a, False), format_score(each.b, False), difference, each.verdict])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:4], widths[1:4]), row[4]]).rstrip() for row in rows
    )


def parse_options(argv: list[str]) -> Namespace:
    parser = OptionParser(
        prog="python -m evaluation.compare",
        description="Compares two evaluations of the same clips, with paired intervals.",
    )
    parser.add_argument("a", type=Path, help="--output_dir of an eval.py")
    parser.add_argument("b", type=Path, help="--output_dir of another eval.py of the same clips, or the same folder")
    parser.add_argument(
        "--metric", nargs="+", default=[], help="keys of metrics in results.json, such as cider_d; all if not given"
    )
    parser.add_argument(
        "--system",
        nargs="+",
        default=["rgmc"],
        help="key of the system in results.json, or of one in A and one in B (default: rgmc)",
    )
    options = parser.parse_args(argv)
    if len(options.system) > 2:
        parser.error(f"--system {' '.join(options.system)}: expected one key, or one of A and one of B")
    return options


def main(argv: list[str]):
    options = parse_options(argv)
    for name in ("a", "b"):
        check_folder(name, str(getattr(options, name)), "the --output_dir of eval.py")
    a, b = Evaluation.read(options.a), Evaluation.read(options.b)
    system_a, system_b = options.system[0], options.system[-1]
    found = compare(a, b, system_a, system_b, options.metric)
    bootstrap = a.results.bootstrap
    print(f"A: {a.title(system_a)}\nB: {b.title(system_b)}\n{a.results.n} clips")
    print(format_comparisons(found))
    for metric, reason in incomparable(a, b).items():
        if not options.metric and metric in a.scores(system_a).keys() & b.scores(system_b).keys():
            print(f"{a.metric_title(metric)}: left out: {reason}")
    print(f"[low, high]: paired {100 * bootstrap['level']:g} % interval, {bootstrap['samples']} samples of the clips")
    if any(each.a.by_checkpoint or each.b.by_checkpoint for each in found):
        print("±: standard deviation over checkpoints that differ by seed; the intervals do not cover it")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
