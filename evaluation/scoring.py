"""Scores of systems, with bootstrap intervals of the scores and of their differences."""

from pathlib import Path

import evaluate
import numpy as np
from nltk.tokenize import NLTKWordTokenizer
from tqdm.auto import tqdm

from evaluation.attributes import METRICS, Attributes
from evaluation.intervals import draw_clips, mean_score
from evaluation.systems import System, keys_of_rows
from reporting.results import METRIC_TITLES, ItemScores, Resamples, SystemResult

METEOR_TIMEOUT = 600  # seconds per system
RULE_DESCRIPTIONS = {
    "paper": "rule paper: lower case, Unicode punctuation and symbols deleted, white space collapsed; NLTK word tokens",
    "music": "rule music: lower case, punctuation deleted but for that of C#, R&B, 4/4 and don't; NLTK word tokens",
}


def load_metric(name: str) -> evaluate.EvaluationModule:
    """A metric of the folder `metrics/`."""
    return evaluate.load(str(Path(__file__).parent.parent / "metrics" / name))


def score_systems(
    systems: dict[str, System],
    references: list[list[str]],
    training_captions: list[str],
    meteor: bool,
    samples: int,
    seed: int,
    other_scores: dict[str, dict] | None = None,
    metric: evaluate.EvaluationModule | None = None,
    normalization: str = "paper",
    attributes: Attributes | None = None,
) -> tuple[dict[str, SystemResult], ItemScores, dict[str, str], Resamples]:
    """
    Scores systems on the same clips, with intervals of the scores and of RGMC's difference from each other system.

    Systems that share a row, as those of several checkpoints do, make one result: the mean of their scores. RGMC's
    difference from another system is then a mean, too, over pairs of the same checkpoint.

    Args:
        systems (`dict[str, System]`): `"gold"` and `"rgmc"` are among them.
        references (`list[list[str]]`): One or more for each clip.
        training_captions (`list[str]`): A caption that is not among these is novel.
        meteor (`bool`): Whether METEOR is computed.
        samples (`int`): Resamples of the clips, the same for all systems; 0 for no intervals.
        seed (`int`): Seed of the resamples.
        other_scores (`dict[str, dict]`, *optional*):
            For each system scores by other models: what the metric `clap_score` returns with `per_item=True`.
        metric (`EvaluationModule`, *optional*):
            A loaded `caption_metrics`, which remembers METEOR's scores of captions that it has seen.
        normalization (`str`, *optional*, defaults to `"paper"`): Rule by which the captions are normalised.
        attributes ([`Attributes`], *optional*): What is true of each clip, for the attribute scores.

    Returns:
        `tuple`: for each row its [`SystemResult`], for each system and metric the scores of the clips, for each metric
        that cannot be computed the reason, and for each row and metric the scores of the resamples.

    Raises:
        `RuntimeError`: If the gold captions do not score what they must against themselves.
    """
    metric = metric or load_metric("caption_metrics")
    training_captions = set(training_captions)
    n = len(references)
    draws = draw_clips(n, samples, seed)
    scores, resamples, item_scores, truncated, unavailable = {}, {}, {}, {}, {}
    if meteor:
        said = [(caption, own) for system in systems.values() for caption, own in zip(system.captions, references)]
        try:
            metric.prepare_meteor(*zip(*said), normalization, meteor_timeout=METEOR_TIMEOUT * len(systems))
        except RuntimeError as error:
            unavailable["meteor_1.5"] = str(error)
    for key, system in tqdm(systems.items(), desc="Scoring", unit="system"):
        options = {"per_item": True, "bootstrap": samples, "seed": seed, "meteor": meteor and not unavailable}
        options |= {"normalization": normalization}
        found = score_captions(metric, system.captions, references, options)
        scores[key] = {name: found[name] for name in METRIC_TITLES if name in found}
        if meteor:
            scores[key].setdefault("meteor_1.5", None)
        resamples[key] = found.get("resamples", {})
        items = {
            "copy": [100.0 * (caption == other) for caption, other in zip(system.captions, system.candidates)],
            "novel": [100.0 * (caption not in training_captions) for caption in system.captions],
            "words": [float(len(caption.split())) for caption in system.captions],
        }
        if other_scores is not None:
            others = other_scores[key]
            scores[key].update(dict.fromkeys(others.get("unavailable", {})))
            items.update(others.get("per_item", {}))
            truncated[key] = others.get("truncated_texts", 0)
        for name, values in items.items():
            scores[key][name] = float(np.mean(values))
            if samples:
                resamples[key][name] = (draws @ np.array(values) / n).tolist()
        # No interval: a resample repeats clips, so its share of distinct captions means nothing.
        scores[key]["distinct"] = 100 * len(set(system.captions)) / n
        item_scores[key] = {**found["per_item"], **items}
        if attributes and not attributes.problem:
            of_attributes, resampled = attributes.score(system.captions, draws if samples else None)
            scores[key].update(of_attributes)
            resamples[key].update(resampled)
    if attributes and attributes.problem:
        unavailable.update(dict.fromkeys(METRICS, attributes.problem))
    for others in (other_scores or {}).values():
        unavailable.update(others.get("unavailable", {}))
    check_gold(scores["gold"], references)

    rows = keys_of_rows(systems)
    described, resamples_of_rows = {}, {}
    for row, keys in rows.items():
        described[row] = SystemResult(
            systems[row].title,
            systems[row].source,
            {name: mean_score([(scores[key][name], resamples[key].get(name)) for key in keys]) for name in scores[row]},
            max((truncated[key] for key in keys), default=None) if truncated else None,
        )
        resamples_of_rows[row] = {
            name: np.mean([resamples[key][name] for key in keys], axis=0) for name in resamples[row]
        }
        if row != "rgmc":
            pairs = [(own, keys[seed % len(keys)]) for seed, own in enumerate(rows["rgmc"])]
            described[row].difference = {
                name: mean_score(
                    [
                        (scores[own][name] - scores[key][name], np.subtract(resamples[own][name], resamples[key][name]))
                        for own, key in pairs
                    ]
                )
                for name in resamples[row]
                if name in resamples["rgmc"]
            }
    return described, item_scores, unavailable, resamples_of_rows


def score_captions(
    metric: evaluate.EvaluationModule, captions: list[str], references: list[list[str]], options: dict
) -> dict:
    """As `metric.compute`, but a system whose captions are all empty scores 0, where the metric raises an error."""
    if any(captions):
        return metric.compute(predictions=captions, references=references, **options)
    zeros = metric.compute(predictions=["nothing", *captions[1:]], references=references, **options)
    for values in (zeros, zeros["per_item"], zeros.get("resamples", {})):
        values.update({name: np.multiply(values[name], 0).tolist() for name in METRIC_TITLES if name in values})
    return zeros


def check_gold(scores: dict[str, float | None], references: list[list[str]]):
    """
    Checks that references score perfectly against themselves: 100, and 1000 CIDEr-D where every clip has one reference
    of four words or more (Table 3).

    Raises:
        `RuntimeError`: If they do not. Then no number of this run can be trusted.
    """
    words = [NLTKWordTokenizer().tokenize(captions[0]) for captions in references]
    lengths = np.array(list(map(len, words)))
    expected = {f"bleu_{n}": 100.0 for n in range(1, 5) if (lengths >= n).any()}
    expected.update({"rouge_l": 100.0, "meteor_1.5": 100.0})
    if all(len(captions) == 1 for captions in references):
        expected["cider_d"] = gold_cider_d(words)
    for name, value in expected.items():
        if scores.get(name) is not None and abs(scores[name] - value) > 1e-4:
            raise RuntimeError(
                f"{METRIC_TITLES[name]} of the gold captions against themselves is {scores[name]:.4f} and must be "
                f"{value:.4f}: the metrics do not work on this machine or with the installed packages"
            )


def gold_cider_d(captions: list[list[str]]) -> float:
    """
    The CIDEr-D that captions, as lists of words, must score against themselves.

    A caption gets 250 for each n from 1 to 4 for which it has an n-gram with a weight: one that some captions lack.
    """
    shares = []
    for n in range(1, 5):
        grams = [{tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in captions]
        everywhere = set.intersection(*grams)
        shares.append(np.mean([bool(own - everywhere) for own in grams]))
    return 1000 * float(np.mean(shares))
