"""
Statistics of log-mel spectrograms, and a linear layer that adds them to the audio embedding: what an encoder from
scratch would need many clips to find out. The paper has neither.

They are those that music classification used before deep learning: correlations of cepstra for the timbre (Mandel and
Ellis, ISMIR 2005), level statistics and modulation spectra of bands for the mix and the rhythm (Lidy and Rauber, ISMIR
2005), and the autocorrelation of onsets for the tempo.

Shape letters: `B` clips, `T` mel frames, `F` = 64 mel bins, `C` cepstra, `S` statistics of a clip, `E` numbers of an
audio embedding.
"""

import math
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import nn

FRAME_RATE, NUM_BINS = 100, 64  # Hz, of CLAP's front end
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.99)
LAGS = (1, 2, 3, 5, 8, 12)  # frames between which a bin is compared with itself
ATTACKS = 0.05  # share of frames with the strongest onsets
ONSET_LAGS = slice(10, 200)  # frames: 0.1 to 2 s between beats
NUM_CEPSTRA, MOVEMENT = 20, 12  # their changes are taken over 12 frames
BANDS, MODULATIONS = 16, (0.3, 0.7, 1.2, 1.8, 2.5, 3.5, 5, 7, 10, 15, 25, 50)  # limits in Hz
NUM_STATISTICS = (
    NUM_BINS * (4 + len(QUANTILES) + len(LAGS))
    + (ONSET_LAGS.stop - ONSET_LAGS.start)
    + NUM_CEPSTRA * (NUM_CEPSTRA - 1)
    + BANDS * (len(MODULATIONS) - 1)
)
LEAST_DEVIATION = 1e-3  # dB
DROPOUT, LIMIT = 0.5, 5.0  # deviations, beyond which a statistic is clipped


def summarize(log_mels: torch.Tensor) -> torch.Tensor:
    """
    Computes the statistics of clips.

    Args:
        log_mels (`torch.FloatTensor` of shape `(B, 1, T, F)`):
            In dB, 100 frames per second, at least 2 s.

    Returns:
        `torch.FloatTensor` of shape `(B, S)`: For each mel bin the mean over time, the deviation, quantiles, the mean
        rise from frame to frame, the level at the strongest onsets above the mean, and the autocorrelation at short
        lags; the autocorrelation of the onsets; the correlations between cepstra and between their changes; the power
        of the modulations of each band.
    """
    bins = log_mels[:, 0].float().transpose(1, 2)  # (B, F, T)
    frames = bins.shape[2]
    mean = bins.mean(2, keepdim=True)
    swing = bins - mean
    variance = swing.square().mean(2)
    ranked = bins.sort(dim=2).values
    quantiles = ranked[:, :, [int(share * (frames - 1)) for share in QUANTILES]]
    rise = bins.diff(dim=2).clamp(min=0)

    onsets = rise.mean(1)  # (B, T - 1)
    strongest = onsets.topk(int(ATTACKS * frames), dim=1).indices + 1
    attack = swing.gather(2, strongest[:, None].expand(-1, bins.shape[1], -1)).mean(2)
    onsets = onsets - onsets.mean(1, keepdim=True)
    power = torch.fft.rfft(onsets, 2 * frames).abs().square()  # padded, so that the end does not meet the beginning
    tempo = torch.fft.irfft(power, 2 * frames)[:, ONSET_LAGS] / (onsets.square().sum(1, keepdim=True) + 1e-6)

    cepstra = _cosines(bins.shape[1], bins.device) @ swing  # (B, C, T)
    timbre = _correlations(cepstra)
    movement = _correlations(cepstra[:, :, MOVEMENT:] - cepstra[:, :, :-MOVEMENT])

    scale = (variance.sqrt() + LEAST_DEVIATION).square()
    lags = [(swing[:, :, lag:] * swing[:, :, :-lag]).mean(2) / scale for lag in LAGS]
    bands = swing.unflatten(1, (BANDS, -1)).mean(2)  # (B, BANDS, T)
    power = torch.fft.rfft(bands).abs().square()
    limits = [math.ceil(rate * frames / FRAME_RATE) for rate in MODULATIONS]
    modulations = [power[:, :, low:high].mean(2) for low, high in pairwise(limits)]
    rhythm = torch.stack(modulations, 2).add(LEAST_DEVIATION).log()
    parts = [mean, variance.sqrt(), quantiles, rise.mean(2), attack, *lags, tempo, timbre, movement, rhythm]
    return torch.cat([part.flatten(1) for part in parts], dim=1)  # (B, S)


def _cosines(num_bins: int, device: torch.device) -> torch.Tensor:
    """The cosines `(C, F)` that turn mel bins into cepstra."""
    order = torch.arange(NUM_CEPSTRA, device=device)[:, None]
    return torch.cos(math.pi * order * (torch.arange(num_bins, device=device) + 0.5) / num_bins)


def _correlations(series: torch.Tensor) -> torch.Tensor:
    """The correlations of each two of `C` series `(B, C, T)` whose mean is 0: `(B, C * (C - 1) / 2)`."""
    covariance = series @ series.transpose(1, 2) / series.shape[2]
    deviation = covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt() + LEAST_DEVIATION
    row, column = torch.triu_indices(series.shape[1], series.shape[1], 1, device=series.device)
    return (covariance / deviation[:, :, None] / deviation[:, None])[:, row, column]


class RGMCAudioStatistics(nn.Module):
    """
    Embeds clips by their statistics. `mean` and `deviation` `(S,)`, those of training clips, standardise them.
    """

    def __init__(self, embedding_size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(NUM_STATISTICS))
        self.register_buffer("deviation", torch.ones(NUM_STATISTICS))
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(NUM_STATISTICS, embedding_size)

    def forward(self, log_mels: torch.Tensor) -> torch.Tensor:
        """Turns log-mels `(B, 1, T, F)` in dB into what is added to their embeddings, `(B, E)`."""
        device = log_mels.device.type
        # Correlations need float32. Autocast does not know the device "meta", on which operations are counted.
        exact = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with torch.no_grad(), exact:
            statistics = ((summarize(log_mels) - self.mean) / self.deviation).clamp(-LIMIT, LIMIT)
        return self.linear(self.dropout(statistics.to(self.linear.weight.dtype)))
