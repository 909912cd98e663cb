"""Intervals of scores, from resamples of the clips, and means over checkpoints that differ by seed."""

from collections.abc import Sequence

import numpy as np

from reporting.results import Score

LEVEL = 0.95


def draw_clips(n: int, samples: int, seed: int) -> np.ndarray:
    """Draws resamples of `n` clips, as the metric does: how often each has each clip, `(samples, n)`."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), samples)


def with_interval(value: float | None, resamples: list[float] | np.ndarray | None) -> Score:
    """A score with the interval of its resamples, from the 2.5th to the 97.5th percentile."""
    if resamples is None:
        return Score(value)
    low, high = np.percentile(resamples, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Score(value, float(low), float(high))


def mean_score(seeds: Sequence[tuple[float | None, list[float] | np.ndarray | None]]) -> Score:
    """
    The mean of a score over checkpoints, with the interval of the mean and the deviation of a single checkpoint.

    Args:
        seeds (`Sequence[tuple]`): The score by each checkpoint and its resamples, or None where there are none.

    Returns:
        [`Score`]: That of a single checkpoint has no deviation; one that some checkpoint lacks has no value.
    """
    if len(seeds) == 1:
        return with_interval(*seeds[0])
    values, resamples = zip(*seeds)
    if None in values:
        return Score(None)
    score = with_interval(float(np.mean(values)), None if resamples[0] is None else np.mean(resamples, axis=0))
    score.deviation, score.by_checkpoint = float(np.std(values, ddof=1)), list(values)
    return score


def mean_share(seeds: Sequence[np.ndarray], draws: np.ndarray) -> tuple[Score, np.ndarray | None]:
    """
    The mean over checkpoints of a share of the clips.

    Args:
        seeds (`Sequence[np.ndarray]`): For each checkpoint what each clip counts, `(n,)` from 0 to 1.
        draws (`np.ndarray` of shape `(samples, n)`): As `draw_clips` returns them.

    Returns:
        `tuple`: the [`Score`] x 100, and that of each resample, `(samples,)`; None where there are none.
    """
    percents = [100.0 * counted for counted in seeds]
    resamples = [draws @ percent / len(percent) if len(draws) else None for percent in percents]
    score = mean_score([(float(percent.mean()), drawn) for percent, drawn in zip(percents, resamples)])
    return score, np.mean(resamples, axis=0) if len(draws) else None
