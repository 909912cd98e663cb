"""What the votes of a listening test show: shares, agreement, tests, and the strengths of more than two systems."""

from dataclasses import dataclass

import numpy as np

from evaluation.intervals import LEVEL, draw_clips
from listening import statistics
from listening.answers import Rater, Vote, count_votes
from listening.design import Study
from reporting.results import Score


@dataclass
class PairResult:
    """
    The votes on two systems by one criterion.

    Args:
        first, second, criterion (`str`)
        songs, votes (`int`)
        shares (`dict[str, Score]`): Of the votes, x 100: `"first"`, `"second"`, `"tie"`, and `"difference"`.
        wins (`tuple[int, int, int]`): Songs of which the first, the second and neither has more votes.
        p_songs (`float`): Of the sign test of the songs.
        p_adjusted (`float`): `p_songs`, adjusted for all pairs of the criterion (Holm).
        p_votes (`float`): Of the sign test of the votes, as if each were independent.
        unanimous (`int`): Songs whose raters agree.
        unanimity ([`Score`]): Their share x 100, of the songs with several votes.
        chance (`list[Score]`): Unanimity x 100 of random votes: uniform, and with the shares of the votes.
        agreement, kappa, alpha ([`Score`]): Pairs of raters who agree x 100, Fleiss' kappa, Krippendorff's alpha.
    """

    first: str
    second: str
    criterion: str
    songs: int
    votes: int
    shares: dict[str, Score]
    wins: tuple[int, int, int]
    p_songs: float
    p_adjusted: float
    p_votes: float
    unanimous: int
    unanimity: Score
    chance: list[Score]
    agreement: Score
    kappa: Score
    alpha: Score


@dataclass
class TestResults:
    """
    What `results.json` holds.

    Args:
        study (`str`): Id of the test.
        variant (`str`)
        systems, criteria (`list[str]`)
        raters_per_song (`int`)
        rules (`dict[str, float]`): Rules of exclusion.
        raters (`list[Rater]`)
        pairs (`list[PairResult]`)
        strengths (`dict[str, dict[str, Score]]`): For more than two systems, by criterion and system.
        bootstrap (`dict`): Resamples, level and unit of the intervals, and the seed.
        facts (`dict[str, str]`)
    """

    __test__ = False  # it is not a test of pytest's

    study: str
    variant: str
    systems: list[str]
    criteria: list[str]
    raters_per_song: int
    rules: dict[str, float]
    raters: list[Rater]
    pairs: list[PairResult]
    strengths: dict[str, dict[str, Score]]
    bootstrap: dict[str, float | str]
    facts: dict[str, str]


def analyse(study: Study, raters: list[Rater], votes: list[Vote], samples: int = 1000, seed: int = 0) -> TestResults:
    """
    Computes all figures of the report.

    Args:
        study ([`Study`]), raters (`list[Rater]`), votes (`list[Vote]`)
        samples (`int`, defaults to 1000): Resamples of the songs for the intervals.
        seed (`int`, defaults to 0): Seed of the resamples.

    Raises:
        `ValueError`: If there is a pair without votes.
    """
    pairs, strengths = [], {}
    for criterion in study.criteria:
        counts = count_votes(votes, study, criterion)  # (N, P, 3)
        for row, (first, second) in enumerate(study.pairs):
            if not counts[:, row].any():
                excluded = sum(bool(rater.excluded) for rater in raters)
                raise ValueError(
                    f"no votes on {first} and {second}: {len(raters)} raters sent answers, {excluded} are excluded; "
                    "wait for more answers"
                )
            pairs.append(describe_pair(counts[:, row], first, second, criterion, samples, seed))
        of_criterion = pairs[-len(study.pairs) :]
        for pair, adjusted in zip(of_criterion, statistics.holm([pair.p_songs for pair in of_criterion])):
            pair.p_adjusted = adjusted
        if len(study.systems) > 2:
            strengths[criterion] = dict(zip(study.systems, rank_systems(counts, study, samples, seed)))
    return TestResults(
        study=study.id,
        variant=study.variant,
        systems=study.systems,
        criteria=study.criteria,
        raters_per_song=study.raters_per_song,
        rules=study.rules,
        raters=raters,
        pairs=pairs,
        strengths=strengths,
        bootstrap={"samples": samples, "level": LEVEL, "unit": "song", "seed": seed},
        facts=study.facts,
    )


def describe_pair(counts: np.ndarray, first: str, second: str, criterion: str, samples: int, seed: int) -> PairResult:
    """Describes the votes `(N, 3)` on two systems; songs without votes are left out."""
    counts = counts[counts.any(axis=1)]
    n, once = len(counts), np.ones(len(counts))
    draws = draw_clips(n, samples, seed).astype(float)  # products of floats are many times faster

    def score(statistic, scale: float = 1.0) -> Score:
        return statistics.with_interval(scale * statistic(counts, once), scale * statistic(counts, draws), n)

    def share(column: int):
        return lambda votes, weights: statistics.vote_shares(votes, weights)[..., column]

    shares = {name: score(share(column), 100) for column, name in enumerate(("first", "second", "tie"))}
    shares["difference"] = score(lambda *of: share(0)(*of) - share(1)(*of), 100)
    ahead = np.sign(counts[:, 0] - counts[:, 1])
    wins = tuple(int((ahead == sign).sum()) for sign in (1, -1, 0))
    several = counts.sum(axis=1) > 1
    p_songs = statistics.sign_test(wins[0], wins[1])
    return PairResult(
        first=first,
        second=second,
        criterion=criterion,
        songs=n,
        votes=int(counts.sum()),
        shares=shares,
        wins=wins,
        p_songs=p_songs,
        p_adjusted=p_songs,
        p_votes=statistics.sign_test(*map(int, counts.sum(axis=0)[:2])),
        unanimous=int((several & (counts.max(axis=1) == counts.sum(axis=1))).sum()),
        unanimity=score(statistics.unanimity, 100),
        chance=[
            statistics.with_interval(100 * chance, np.array([]), n) for chance in statistics.chance_unanimity(counts)
        ],
        agreement=score(statistics.pairwise_agreement, 100),
        kappa=score(statistics.fleiss_kappa),
        alpha=score(statistics.krippendorff_alpha),
    )


def rank_systems(counts: np.ndarray, study: Study, samples: int, seed: int) -> list[Score]:
    """The strength of each system from all pairs, votes `(N, P, 3)`, with intervals over songs."""
    index = {name: row for row, name in enumerate(study.systems)}
    pairs = [(index[first], index[second]) for first, second in study.pairs]
    draws = draw_clips(len(counts), samples, seed).astype(float)
    whole = statistics.bradley_terry(counts.sum(axis=0), pairs, len(index))
    resampled = statistics.bradley_terry(np.einsum("sn,npc->spc", draws, counts), pairs, len(index))
    return [statistics.with_interval(value, drawn, len(counts)) for value, drawn in zip(whole.tolist(), resampled.T)]
