"""
Statistics of log-mels: what tells two songs apart without anything learned, to compare trained encoders with.

Shape letters: `B` clips of a batch, `N` clips, `T` mel frames, `F` mel bins, `S` statistics of a clip.
"""

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from clips.embedding import gather_rows
from clips.features import ClipFeatures

LAGS = slice(10, 200)  # frames: 0.1 to 2 s between onsets, at a hop of 10 ms
LEAST_DEVIATION = 1e-4  # a statistic that varies less between songs tells none apart
BATCH_SIZE = 16


def summarize(log_mels: torch.Tensor) -> torch.Tensor:
    """
    Computes the statistics of clips.

    Args:
        log_mels (`torch.FloatTensor` of shape `(B, 1, T, F)`): In dB.

    Returns:
        `torch.FloatTensor` of shape `(B, S)`: For each mel bin the mean over time, the deviation, the mean rise from
        frame to frame and the 90th percentile; then the autocorrelation of the onset envelope, the mean rise of all
        bins, from which the tempo can be read.
    """
    log_mels = log_mels[:, 0]  # (B, T, F)
    rise = log_mels.diff(dim=1).clamp(min=0)
    onsets = rise.mean(dim=2)
    onsets = onsets - onsets.mean(dim=1, keepdim=True)  # (B, T - 1)
    # Padded to twice the length, so that the end does not correlate with the beginning.
    power = torch.fft.rfft(onsets, n=2 * log_mels.shape[1]).abs().square()
    correlation = torch.fft.irfft(power)[:, LAGS] / (onsets.square().sum(dim=1, keepdim=True) + 1e-6)
    percentile = log_mels.quantile(0.9, dim=1)
    return torch.cat([log_mels.mean(dim=1), log_mels.std(dim=1), rise.mean(dim=1), percentile, correlation], dim=1)


def summarize_rows(features: ClipFeatures, accelerator: Accelerator, description: str) -> np.ndarray:
    """Computes the statistics of all clips, each process its share, and returns `(N, S)` on every process."""
    own = list(range(accelerator.process_index, len(features), accelerator.num_processes))
    found = []
    with tqdm(
        total=len(own), desc=description, unit="clip", leave=False, disable=not accelerator.is_main_process
    ) as progress:
        # At least one batch, so that a process without clips of its own gathers rows of the right length.
        for start in range(0, max(len(own), 1), BATCH_SIZE):
            rows = own[start : start + BATCH_SIZE]
            statistics = summarize(features.read(rows or [0]).to(accelerator.device))
            found.append(statistics[: len(rows)])
            progress.update(len(rows))
    return gather_rows(torch.cat(found), len(features), accelerator)


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
