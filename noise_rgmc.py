"""
Finds steady noise, such as hiss, rain or an empty room, which has no music in it. It is told from two signs alone: the
spectrum is flat within each band, so no tone stands out, and the levels of the bands stay the same. Tones that do not
change, such as hum, are not found, nor is noise that swells or fades.

The limits lie between what was measured of noise and of music; `benchmarks/noise.py` measures both again.
"""

import numpy as np

SEGMENT = 0.24  # seconds
EDGES = np.concatenate([np.arange(100, 900, 200), np.geomspace(900, 14_000, 9)])  # of the bands, in Hz
FLOOR = 50.0  # dB below the loudest band and segment, below which levels do not count
FLATNESS = -6.0  # dB, of each segment at least
STEADINESS = 2.0  # dB, standard deviation of each band's level over the segments at most
SHORTEST = 3.0  # seconds


def measure_spectrum(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Measures segments of 0.24 s; a rest is left out.

    Args:
        samples (`np.ndarray` of shape `(N,)`): Mono.
        sampling_rate (`int`): In Hz. Bands above half of it are left out.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The level of each band in dB, `(segments, bands)`, and the spectral flatness of
        each segment in dB, `(segments,)`: the second lowest of all bands that are not silent. The lowest may be the
        band in which a codec ends.
    """
    size = round(SEGMENT * sampling_rate)
    segments = samples[: len(samples) // size * size].reshape(-1, size)
    powers = np.square(np.abs(np.fft.rfft(segments * np.hanning(size)))) + 1e-12  # (segments, bins)
    edges = np.round(EDGES * SEGMENT).astype(int)
    edges = edges[edges < powers.shape[1]]
    counts = np.diff(edges)
    levels = 10 * np.log10(np.add.reduceat(powers, edges, axis=1)[:, :-1] / counts)
    flatness = 10 * np.add.reduceat(np.log10(powers), edges, axis=1)[:, :-1] / counts - levels
    audible = levels > levels.max(axis=1, keepdims=True, initial=-np.inf) - FLOOR
    lowest = np.sort(np.where(audible, flatness, np.inf), axis=1)
    second = np.minimum(audible.sum(axis=1), 2)[:, None] - 1
    return levels, np.take_along_axis(lowest, second, axis=1)[:, 0]


def find_noise(
    levels: np.ndarray, flatness: np.ndarray, audible: np.ndarray | bool = True
) -> list[tuple[float, float]]:
    """
    Finds steady noise of 3 s and more: start and end in seconds.

    Args:
        levels (`np.ndarray` of shape `(segments, bands)`), flatness (`np.ndarray` of shape `(segments,)`):
            As [`measure_spectrum`] returns them.
        audible (`np.ndarray` of shape `(segments,)`, *optional*):
            Which segments are not silent.
    """
    found = []
    for first, end in runs((smooth(flatness) > FLATNESS) & audible):
        inner = levels[first + 1 : end - 1]  # the first and the last may be noise in part
        if (end - first) * SEGMENT >= SHORTEST and deviation(inner) <= STEADINESS:
            found.append((first * SEGMENT, end * SEGMENT))
    return found


def smooth(values: np.ndarray) -> np.ndarray:
    """The median of each segment and its two neighbours; the first axis is that of the segments."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.median(np.stack([padded[:-2], values, padded[2:]]), axis=0)


def deviation(levels: np.ndarray) -> float:
    """The largest standard deviation, over the segments, of a band's levels `(segments, bands)` in dB."""
    return float(np.maximum(smooth(levels), levels.max() - FLOOR).std(axis=0).max())


def is_noise(samples: np.ndarray, sampling_rate: int, silence: float) -> bool:
    """Whether there is steady noise in mono samples `(N,)` and, but for what is below `silence` dB, nothing else."""
    levels, flatness = measure_spectrum(samples, sampling_rate)
    size = round(SEGMENT * sampling_rate)
    powers = np.square(samples[: len(levels) * size].reshape(-1, size), dtype=np.float64).mean(axis=1)
    audible = powers >= 10 ** (silence / 10)
    covered = np.zeros(len(levels), bool)
    for start, end in find_noise(levels, flatness, audible):
        covered[round(start / SEGMENT) : round(end / SEGMENT)] = True
    return bool(covered.any() and (covered | ~audible).all())


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]
