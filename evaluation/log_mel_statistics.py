"""
Statistics of log-mels: what tells two songs apart without anything learned, to compare trained encoders with.

Shape letters: `B` clips of a batch, `N` clips, `T` mel frames, `F` mel bins, `S` statistics of a clip.
"""

import numpy as np
import scipy.fft
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from clips.embedding import gather_rows
from clips.features import ClipFeatures

LAGS = slice(10, 200)  # frames: 0.1 to 2 s between onsets, at a hop of 10 ms
LEAST_DEVIATION = 1e-4  # a statistic that varies less between songs tells none apart
BATCH_SIZE = 16


def summarize(log_mels: np.ndarray) -> np.ndarray:
    """
    Computes the statistics of clips.

    Args:
        log_mels (`np.ndarray` of shape `(B, 1, T, F)`): In dB, float32.

    Returns:
        `np.ndarray` of shape `(B, S)`: For each mel bin the mean over time, the deviation, the mean rise from frame to
        frame and the 90th percentile; then the autocorrelation of the onset envelope, the mean rise of all bins, from
        which the tempo can be read.
    """
    bins = np.ascontiguousarray(log_mels[:, 0].transpose(0, 2, 1))  # (B, F, T)
    rise = np.diff(bins).clip(min=0)
    onsets = rise.mean(axis=1)
    onsets -= onsets.mean(axis=1, keepdims=True)  # (B, T - 1)
    # Padded to twice the length, so that the end does not correlate with the beginning.
    length = 2 * bins.shape[2]
    power = np.abs(scipy.fft.rfft(onsets, length)) ** 2
    energy = np.square(onsets).sum(axis=1, keepdims=True)
    correlation = scipy.fft.irfft(power, length)[:, LAGS] / (energy + 1e-6)
    percentile = np.quantile(bins, 0.9, axis=2)
    statistics = [bins.mean(axis=2), bins.std(axis=2), rise.mean(axis=2), percentile, correlation]
    return np.concatenate(statistics, axis=1).astype(np.float32)


def summarize_rows(features: ClipFeatures, accelerator: Accelerator, description: str) -> np.ndarray:
    """Computes the statistics of all clips, each process its share, and returns `(N, S)` on every process."""
    own = list(range(accelerator.process_index, len(features), accelerator.num_processes))
    found = [summarize(features.read([0]).numpy())[:0]]  # a process without clips gathers rows of the right length
    show = {"unit": "clip", "leave": False, "disable": not accelerator.is_main_process}
    with tqdm(total=len(own), desc=description, **show) as progress:
        for start in range(0, len(own), BATCH_SIZE):
            rows = own[start : start + BATCH_SIZE]
            found.append(summarize(features.read(rows).numpy()))
            progress.update(len(rows))
    statistics = torch.from_numpy(np.concatenate(found)).to(accelerator.device)
    return gather_rows(statistics, len(features), accelerator)


def embed_statistics(songs: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Turns statistics into unit vectors that can be compared by dot product.

    Args:
        songs (`np.ndarray` of shape `(N, S)`): Those of the training songs. Their mean and deviation standardise both.
        clips (`np.ndarray` of shape `(B, S)`): Those of the clips to retrieve for.

    Returns:
        `tuple`: The vectors of both, float32 `(N, S)` and `(B, S)`.
    """
    mean = songs.mean(axis=0, dtype=np.float64).astype(np.float32)
    songs, clips = songs - mean, clips - mean
    deviation = np.sqrt(np.square(songs).mean(axis=0, dtype=np.float64)).astype(np.float32)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > LEAST_DEVIATION)
    return _unit_vectors(songs * scale), _unit_vectors(clips * scale)


def _unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Normalises vectors in place. One of zeros has no direction and takes that of all ones."""
    vectors[~vectors.any(axis=1)] = 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
