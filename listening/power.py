"""How many songs a listening test needs, before it is run: the exact two-sided sign test, with the song as the unit."""

import numpy as np
from scipy.stats import binom

MOST_SONGS = 2_000
BEYOND = 200  # songs; the power of the exact test rises and falls within fewer


def power_of(songs: int, preference: float, alpha: float = 0.05, undecided: float = 0.0) -> float:
    """
    How probable it is that the sign test finds a preference.

    Args:
        songs (`int`): Songs of the test.
        preference (`float`): Share of the songs with a winner that the better system wins.
        alpha (`float`, defaults to 0.05): Level of the two-sided test.
        undecided (`float`, defaults to 0.0): Share of the songs without a winner, which the test leaves out.
    """
    decided = np.arange(songs + 1)
    return float(binom.pmf(decided, songs, 1 - undecided) @ _power_if_decided(decided, preference, alpha))


def _power_if_decided(songs: np.ndarray, preference: float, alpha: float) -> np.ndarray:
    most = binom.isf(alpha / 2, songs, 0.5)  # more wins than this are significant
    return binom.sf(most, songs, preference) + binom.cdf(songs - most - 1, songs, preference)


def songs_needed(
    preference: float, power: float = 0.8, alpha: float = 0.05, undecided: float = 0.0
) -> tuple[int, int] | None:
    """
    The fewest songs that reach a power, and the number from which on every number does.

    They differ because the test counts whole songs: one song more may raise the number of wins that it asks for.

    Returns:
        `tuple[int, int]`, or None if more than 2,000 songs are needed.
    """
    songs = np.arange(MOST_SONGS + BEYOND)
    powers = _power_if_decided(songs, preference, alpha)
    if undecided:
        powers = np.array([binom.pmf(songs[: n + 1], n, 1 - undecided) @ powers[: n + 1] for n in songs])
    missed = np.flatnonzero(powers < power)
    if missed[-1] >= MOST_SONGS:
        return None
    return int(np.flatnonzero(powers >= power)[0]), int(missed[-1]) + 1


def preference_needed(songs: int, power: float = 0.8, alpha: float = 0.05, undecided: float = 0.0) -> float | None:
    """The smallest preference, in whole percent, that so many songs find with this power; None if none is enough."""
    found = (percent / 100 for percent in range(51, 101))
    return next((share for share in found if power_of(songs, share, alpha, undecided) >= power), None)
