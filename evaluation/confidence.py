"""
How sure a caption is beside those of validation clips, and what captioning only the surest clips would score.

Confidence here is a rank among validation clips. It is not the probability that a caption is true.
"""

from dataclasses import replace

import numpy as np
import torch

from clips.embedding import embed_rows
from clips.features import Split
from evaluation.captioning import Captioner
from evaluation.listening import pair_log_probs
from reporting.results import ConfidenceResults, CoveragePoint

NOTHING_SIMILAR = 0.02  # quantile of the similarity from which on down nothing similar is in the datastore
COVERAGES = tuple(share / 10 for share in range(1, 11))
TITLE = "Captioning the validation clips"


def measure_sureness(captioner: Captioner, captions: list[str], title: str) -> dict[str, np.ndarray]:
    """
    The mean log-probability per token of each clip's caption, and the similarity of its nearest song.

    Args:
        captioner ([`Captioner`]): The checkpoint and the clips, shared among the processes.
        captions (`list[str]`): One per clip.
        title (`str`): Title of the progress bar.

    Returns:
        `dict[str, np.ndarray]`: `log_prob` (nats) and `similarity` (-1 to 1; NaN without a song), each `(B,)`.
    """
    model, processor = captioner.model, captioner.processor
    embeds = embed_rows(model, captioner.features, captioner.accelerator, captioner.batch_size, "Embedding the clips")
    found = model.retrieve(torch.from_numpy(embeds), exclude_ids=captioner.own_ids)
    none: list[list] = [[]] * len(captions)
    shown, scores = (found.captions, found.similarities) if model.config.uses_candidate else (none, none)
    prompts = [*map(processor.encode_prompt, shown, scores)]
    pairs = [[(caption, row)] for row, caption in enumerate(captions)]
    log_probs = pair_log_probs(captioner, embeds, prompts, pairs, title)[:, 0]
    similarities = [next(iter(own), np.nan) for own in found.similarities]
    return {"log_prob": np.asarray(log_probs, float), "similarity": np.asarray(similarities, float)}


def measure_validation(captioner: Captioner, split: Split) -> dict[str, np.ndarray]:
    """Captions a validation split, and measures it as [`measure_sureness`] does."""
    features = split.features(captioner.processor, captioner.accelerator)
    other = replace(captioner, features=features, seconds={})
    lines = other.caption(TITLE)
    return measure_sureness(other, [line["prediction"] for line in lines], "Confidence of the validation captions")


def quantiles(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The share of the numbers in `among` that are below each of `values`; equal ones count half."""
    among = np.sort(among[np.isfinite(among)])
    below, up_to = (np.searchsorted(among, values, side) for side in ("left", "right"))
    return np.where(np.isfinite(values), (below + up_to) / (2 * max(len(among), 1)), 0.0)


def score_confidence(
    sureness: dict[str, np.ndarray], validation: dict[str, np.ndarray], scores: list[float], split: str
) -> ConfidenceResults:
    """
    Ranks the clips among validation clips, and scores the surest of them.

    Args:
        sureness, validation (`dict[str, np.ndarray]`): Of the clips and of the validation clips.
        scores (`list[float]`): CIDEr-D of each clip.
        split (`str`): Name of the validation split.
    """
    ranks = {name: quantiles(values, validation[name]) for name, values in sureness.items()}
    ranks["both"] = np.minimum(ranks["log_prob"], ranks["similarity"])  # the weaker of the two
    cider = np.asarray(scores, float)
    curves = {name: coverage_curve(rank, cider) for name, rank in ranks.items()}
    alone = ranks["similarity"] <= NOTHING_SIMILAR
    return ConfidenceResults(
        split=split,
        validation_clips=len(validation["log_prob"]),
        curves=curves,
        nothing_similar=int(alone.sum()),
        nothing_similar_cider_d=float(cider[alone].mean()) if alone.any() else None,
        quantiles={name: np.round(rank, 4).tolist() for name, rank in ranks.items()},
    )


def coverage_curve(ranks: np.ndarray, scores: np.ndarray) -> list[CoveragePoint]:
    """The mean score of the surest 10 %, 20 % and so on of the clips; of equally sure clips the mean counts."""
    order = np.argsort(-ranks, kind="stable")
    _, groups = np.unique(-ranks[order], return_inverse=True)
    means = np.bincount(groups, scores[order]) / np.bincount(groups)
    sorted_scores = means[groups]
    points = []
    for share in COVERAGES:
        count = max(1, round(share * len(scores)))
        points.append(CoveragePoint(share, count, float(sorted_scores[:count].mean())))
    return points
