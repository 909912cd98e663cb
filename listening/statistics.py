"""
The statistics of a listening test. The unit is the song: the votes on one song are not independent of each other.

Votes on two captions are counts `(N, 3)` of `N` songs: for the first system, for the second, and ties. Functions that
take `weights` `(..., N)` count each song so many times; rows of `draw_clips` give resamples.

Kappa and alpha are a few lines of numpy each, and the intervals need them for all resamples at once. The tests compare
them with statsmodels and krippendorff.
"""

import numpy as np
from scipy import stats

from evaluation.intervals import LEVEL
from reporting.results import Score

PRIOR = 5.0  # standard deviation; keeps the strength of a system finite that wins all votes


def with_interval(value: float, resamples: np.ndarray, songs: int) -> Score:
    """
    A value with its 95 % interval over songs.

    Percentiles of resamples are too narrow for few songs, because they lack the factor n / (n - 1) and the heavier
    tails of t. They are taken further out by as much (expanded percentiles: Hesterberg, 2015).
    """
    resamples = resamples[np.isfinite(resamples)]
    if songs < 2 or not len(resamples) or not np.isfinite(value):
        return Score(float(value) if np.isfinite(value) else None)
    quantile = stats.t.ppf(0.5 + LEVEL / 2, songs - 1)
    tail = stats.norm.cdf(-np.sqrt(songs / (songs - 1)) * quantile)
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return Score(float(value), float(low), float(high))


def vote_shares(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the votes for the first, the second, and ties: `(..., 3)`."""
    votes = weights @ counts
    return votes / votes.sum(axis=-1, keepdims=True)


def unanimity(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the songs whose raters all agree, of those with two votes or more: `(...)`."""
    several = counts.sum(axis=1) > 1
    agreed = several & (counts.max(axis=1) == counts.sum(axis=1))
    with np.errstate(invalid="ignore"):
        return (weights @ agreed) / (weights @ several)


def chance_unanimity(counts: np.ndarray) -> list[float]:
    """
    Unanimity of random votes: each answer a third of the time, and as often as all raters together chose it. NaN if no
    song has two votes.
    """
    sizes = counts.sum(axis=1)
    sizes = sizes[sizes > 1]
    marginal = counts.sum(axis=0) / counts.sum()
    chances = [(shares ** sizes[:, None]).sum(axis=1) for shares in (np.full(3, 1 / 3), marginal)]
    return [float(chance.mean()) if len(sizes) else float("nan") for chance in chances]


def pairwise_agreement(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over songs of the share of pairs of raters who agree: `(...)`."""
    sizes = counts.sum(axis=1)
    several = sizes > 1
    agreed = np.zeros(len(counts))
    agreed[several] = ((counts**2).sum(axis=1) - sizes)[several] / (sizes * (sizes - 1))[several]
    with np.errstate(invalid="ignore"):
        return (weights @ agreed) / (weights @ several)


def fleiss_kappa(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fleiss' kappa, `(...)`; songs may have different numbers of votes. NaN where all votes are the same."""
    expected = (vote_shares(counts, weights) ** 2).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (pairwise_agreement(counts, weights) - expected) / (1 - expected)


def krippendorff_alpha(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha of nominal answers, `(...)`, by songs of two votes or more. NaN if all votes agree."""
    sizes = counts.sum(axis=1)
    pairable = counts * (sizes > 1)[:, None]
    disagreed = (sizes**2 - (counts**2).sum(axis=1)) / np.maximum(sizes - 1, 1)
    votes = weights @ pairable
    total = votes.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = (weights @ disagreed) / total
        expected = (total**2 - (votes**2).sum(axis=-1)) / (total * (total - 1))
        return 1 - observed / expected


def sign_test(first: int, second: int) -> float:
    """p of the two-sided exact sign test; ties are left out."""
    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(p_values: list[float]) -> list[float]:
    """p values for several tests at once (Holm, 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def bradley_terry(counts: np.ndarray, pairs: list[tuple[int, int]], systems: int) -> np.ndarray:
    """
    The strengths of systems by Davidson's model (1970), which is that of Bradley and Terry with ties.

    For strengths θ, the first and the second system and a tie have the weights exp(θ₁), exp(θ₂) and
    exp(τ + (θ₁ + θ₂) / 2). Fitted by Newton's method under a weak normal prior.

    Args:
        counts (`np.ndarray` of shape `(..., P, 3)`): Votes on each pair.
        pairs (`list[tuple[int, int]]`): The two systems of each pair.
        systems (`int`): Number of systems `K`.

    Returns:
        `np.ndarray` of shape `(..., K)`: θ, with a mean of 0.
    """
    terms = np.zeros((len(pairs), 3, systems + 1))  # (P, 3, K + 1); the last column is that of τ
    for row, (first, second) in enumerate(pairs):
        terms[row, 0, first] = terms[row, 1, second] = terms[row, 2, -1] = 1
        terms[row, 2, [first, second]] = 0.5
    totals = counts.sum(axis=-1, keepdims=True)  # (..., P, 1)
    found = np.zeros((*counts.shape[:-2], systems + 1))
    for _ in range(100):
        logits = np.einsum("...k,pck->...pc", found, terms)
        expected = np.exp(logits - logits.max(axis=-1, keepdims=True))
        expected *= totals / expected.sum(axis=-1, keepdims=True)
        slope = np.einsum("...pc,pck->...k", counts - expected, terms) - found / PRIOR**2
        sums = np.einsum("...pc,pck->...pk", expected, terms)
        curvature = np.einsum("...pc,pck,pcl->...kl", expected, terms, terms) + np.eye(systems + 1) / PRIOR**2
        curvature -= np.einsum("...pk,...pl->...kl", sums, sums / np.maximum(totals, 1))
        step = np.clip(np.linalg.solve(curvature, slope[..., None])[..., 0], -1, 1)
        found += step
        if np.abs(step).max(initial=0) < 1e-10:
            break
    return found[..., :-1] - found[..., :-1].mean(axis=-1, keepdims=True)
