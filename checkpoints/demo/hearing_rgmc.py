"""What is heard of a sound: the log-mels of the seconds that the model is given, and what else can be said of it."""

import hashlib
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

try:
    from .audio_rgmc import FROM_THE_START, OPPOSITE_PHASE, AudioWarning, decode_audio, prepare_waveform
    from .feature_extraction_rgmc import RGMCFeatureExtractor
    from .noise_rgmc import is_noise
except ImportError:
    from audio_rgmc import FROM_THE_START, OPPOSITE_PHASE, AudioWarning, decode_audio, prepare_waveform
    from feature_extraction_rgmc import RGMCFeatureExtractor
    from noise_rgmc import is_noise

SILENCE = -70.0  # dB of full scale, root mean square: more than 16-bit dither, less than quiet music


@dataclass
class Heard:
    """
    What is heard of a sound, in `W` windows as long as the model hears.

    Args:
        log_mels (`np.ndarray` of shape `(W, T, F)`):
            Of the windows that may hold music, in dB.
        starts (`list[float]`):
            Where these windows begin, in s.
        duration (`float`):
            Of the whole sound, in s.
        flags (`list[str]`):
            `"silence"` if all windows are below -70 dB of full scale, `"no music"` if all are steady noise or silent,
            `"opposite phase"` where the channels cancel each other out, `"short"` for less sound than the model hears,
            which is then repeated, and `"decoded from its start"` for a file whose own times are not exact.
        digest (`str`):
            16 hexadecimal digits of a digest of the windows' samples.
    """

    log_mels: np.ndarray
    starts: list[float]
    duration: float
    flags: list[str]
    digest: str


def check_where(where: str | int, start: float | None = None):
    """Raises `ValueError` unless `where` is `"middle"`, `"whole"` or a number of windows, and fits `start`."""
    if where not in ("middle", "whole") and (isinstance(where, (str, bool)) or where < 1):
        raise ValueError(f"where={where!r}: expected 'middle', 'whole', or a number of windows from 1 up")
    if start is not None and where != "middle":
        raise ValueError(f"start={start:g} and where={where!r}: give one of the two")


def window_starts(duration: float, where: str | int, seconds: float) -> list[float]:
    """
    Where the windows of a sound begin, in s: each in the middle of one of `where` equal parts of the sound, or, for
    `"whole"`, of as many parts as it takes to leave nothing out.
    """
    parts = math.ceil(round(duration / seconds, 6)) if where == "whole" else int(where)
    last = max(duration - seconds, 0.0)
    return list(
        dict.fromkeys(min(max((part + 0.5) * duration / parts - seconds / 2, 0.0), last) for part in range(parts))
    )


def hear(
    sound: Any,
    feature_extractor: RGMCFeatureExtractor,
    start: float | None = None,
    where: str | int = "middle",
    sampling_rate: float | None = None,
) -> Heard:
    """
    Decodes a sound.

    Args:
        sound (`Any`):
            As [`RGMCFeatureExtractor`] takes it.
        feature_extractor ([`RGMCFeatureExtractor`]):
            Computes the log-mels, and says how long a window is.
        start (`float`, *optional*):
            Where the window begins, in s.
        where (`str` or `int`, defaults to `"middle"`):
            `"middle"` for one window in the middle; a number of windows, spread evenly; `"whole"` for as many as cover
            the sound.
        sampling_rate (`float`, *optional*):
            Rate of an array in Hz.

    Raises:
        `AudioError`: If the sound cannot be used.
        `ValueError`: For another `where`, or one beside `start`.
    """
    check_where(where, start)
    seconds, rate = feature_extractor.duration, feature_extractor.sampling_rate
    for key in ("array", "raw"):
        if isinstance(sound, dict) and sound.get(key) is not None:
            sound, sampling_rate = np.asarray(sound[key]), sound.get("sampling_rate", sampling_rate)

    def read(start: float | None) -> tuple[np.ndarray, float]:
        if isinstance(sound, (np.ndarray, torch.Tensor)):
            waveform = prepare_waveform(sound, sampling_rate, start, seconds, rate)
            return waveform, max(sound.shape) / sampling_rate
        return decode_audio(sound, start, seconds, rate)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        waveform, duration = read(start)
        starts = [max((duration - seconds) / 2, 0.0) if start is None else start]
        if where != "middle":
            starts = window_starts(duration, where, seconds)
        digest = hashlib.sha256()
        kept: list[float] = []
        has_noise = False
        log_mels: list[np.ndarray] = []
        for begin in starts:  # a long sound does not fit into memory
            samples = waveform if where == "middle" else read(begin)[0]
            digest.update(samples.tobytes())
            log_mel = feature_extractor(samples, sampling_rate=rate)["input_features"][0].numpy()  # (1, T, F)
            sound_itself = samples[: max(round((duration - begin) * rate), 0)]  # without what repeats it
            silent, noisy = _level(samples) < SILENCE, is_noise(sound_itself, rate, SILENCE)
            has_noise |= noisy
            log_mels.append(log_mel[:0] if silent or noisy else log_mel)
            kept += [] if silent or noisy else [round(begin, 3)]
    for warning in caught:
        if not isinstance(warning.message, AudioWarning):
            warnings.warn(warning.message, stacklevel=2)
    kinds = {warning.message.kind for warning in caught if isinstance(warning.message, AudioWarning)}
    flags = {
        "silence": not kept and not has_noise,
        "no music": not kept and has_noise,
        "opposite phase": OPPOSITE_PHASE in kinds,
        "short": duration - (start or 0.0) < seconds,
        "decoded from its start": FROM_THE_START in kinds,
    }
    return Heard(
        np.concatenate(log_mels),
        kept,
        round(duration, 3),
        [name for name, holds in flags.items() if holds],
        digest.hexdigest()[:16],
    )


def path_of(sound: Any) -> str | None:
    """The path of a sound that is a file."""
    path = sound.get("path") if isinstance(sound, dict) else sound
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else None


def _level(samples: np.ndarray) -> float:
    """The root mean square of samples, in dB of full scale."""
    return 20 * math.log10(max(np.sqrt(np.mean(np.square(samples, dtype=np.float64))), 1e-10))
