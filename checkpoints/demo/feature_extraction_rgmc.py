"""
Computes the log-mel spectrogram of the middle 10 seconds of a sound, the input of RGMC's audio encoder.

    features = RGMCFeatureExtractor()(["song.mp3", "video.mp4"]).input_features  # (2, 1, 1001, 64)

Nothing here is random: a sound always gives the same numbers, alone or in a batch. They agree with those of CLAP's
checkpoints without fusion: `ClapFeatureExtractor(frequency_min=50, frequency_max=14000, truncation="rand_trunc",
padding="repeatpad")`.

Shape letters: `B` clips, `C` channels, `N` samples, `T` mel frames, `F` mel bins, `W` samples in a frame.
"""

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank

try:
    from .audio_rgmc import Array, AudioError, is_one_sound, load_audio, prepare_waveform
except ImportError:
    from audio_rgmc import Array, AudioError, is_one_sound, load_audio, prepare_waveform

FRAMES_PER_BLOCK = 64  # mel frames computed at once on a CPU: 1 MB stays in its cache and is twice as fast
CLIPS_PER_BLOCK = 32  # clips computed at once on a GPU: about 1 GB


@torch.no_grad()
def log_mel_spectrogram(
    waveform: Array,
    device: str | torch.device | None = None,
    *,
    sampling_rate: int = 48_000,
    feature_size: int = 64,
    hop_length: int = 480,
    fft_window_size: int = 1024,
    frequency_min: float = 50.0,
    frequency_max: float = 14_000.0,
) -> torch.Tensor:
    """
    Computes the log-mel spectrogram in dB as CLAP's unfused front end does: periodic Hann window, centred frames with
    reflected ends, mel filters of slaney scale and norm, `10 * log10(max(power, 1e-10))`.

    The defaults are CLAP's.

    Args:
        waveform (`np.ndarray` or `torch.Tensor` of shape `(N,)` or `(B, N)`):
            Mono samples.
        device (`str` or `torch.device`, *optional*):
            Where to compute. By default where `waveform` is.
        sampling_rate (`int`, defaults to 48000):
            Rate of `waveform` in Hz.
        feature_size (`int`, defaults to 64):
            Number of mel bins `F`.
        hop_length (`int`, defaults to 480), fft_window_size (`int`, defaults to 1024):
            Samples between two frames, and samples in a frame.
        frequency_min (`float`, defaults to 50.0), frequency_max (`float`, defaults to 14000.0):
            Range of the mel bins in Hz.

    Returns:
        `torch.FloatTensor` of shape `(T, F)` or `(B, T, F)` with `T = 1 + N // hop_length`: `(1001, 64)` for 10 s.

    Raises:
        `ValueError`: If the shape is another one, or if there are too few samples to reflect.
    """
    waveform = torch.as_tensor(waveform, dtype=torch.float32, device=device)
    if waveform.ndim not in (1, 2) or waveform.shape[0] == 0 or waveform.shape[-1] <= fft_window_size // 2:
        shape = tuple(waveform.shape)
        raise ValueError(f"waveform of shape {shape}; expected (N,) or (B, N) with N > {fft_window_size // 2} samples")
    filters = _mel_filters(sampling_rate, feature_size, fft_window_size, frequency_min, frequency_max)
    clips = torch.atleast_2d(waveform)
    if clips.device.type == "cpu":  # clip by clip is faster there, and no clip can depend on its batch
        filters = filters.float()  # only here: a GPU might compute float32 as TF32
        with _one_thread(), torch.autocast("cpu", enabled=False):
            blocks = [_log_mel(clip[None], filters, hop_length, fft_window_size, FRAMES_PER_BLOCK) for clip in clips]
            log_mel = torch.cat(blocks)  # (B, T, F)
    else:
        blocks = [_log_mel(block, filters, hop_length, fft_window_size) for block in clips.split(CLIPS_PER_BLOCK)]
        log_mel = torch.cat(blocks)
    return log_mel if waveform.ndim == 2 else log_mel[0]


class RGMCFeatureExtractor(SequenceFeatureExtractor):
    """
    Turns files and arrays into the log-mel spectrograms that RGMC's audio encoder takes.

    Args:
        feature_size (`int`, defaults to 64):
            Number of mel bins `F`.
        sampling_rate (`int`, defaults to 48000):
            Rate in Hz that every sound is resampled to.
        duration (`float`, defaults to 10.0):
            Seconds taken from the middle of the sound (section 3).
        hop_length (`int`, defaults to 480), fft_window_size (`int`, defaults to 1024):
            Samples between two frames, and samples in a frame.
        frequency_min (`float`, defaults to 50.0), frequency_max (`float`, defaults to 14000.0):
            Range of the mel bins in Hz.
        padding_side (`str`, defaults to `"left"`), padding_value (`float`, defaults to 0.0):
            Not used, because all clips have the same length. Kept for code that reads them from any feature extractor.
    """

    model_input_names = ["input_features"]
    further_settings: list[Any] = []  # of another front end: what determines its numbers beside the arguments here

    def __init__(
        self,
        feature_size: int = 64,
        sampling_rate: int = 48_000,
        duration: float = 10.0,
        hop_length: int = 480,
        fft_window_size: int = 1024,
        frequency_min: float = 50.0,
        frequency_max: float = 14_000.0,
        padding_side: str = "left",
        padding_value: float = 0.0,
        **kwargs,
    ):
        kwargs = {"padding_side": padding_side, "return_attention_mask": False} | kwargs
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.duration = duration
        self.hop_length = hop_length
        self.fft_window_size = fft_window_size
        self.frequency_min = frequency_min
        self.frequency_max = frequency_max

    def __call__(
        self,
        audio: Any,
        sampling_rate: float | None = None,
        return_tensors: str | None = "pt",
        device: str | torch.device = "cpu",
        stream: int | None = None,
    ) -> BatchFeature:
        """
        Computes the log-mel spectrograms of one or several sounds.

        Args:
            audio (`Any` or `list`):
                A sound, or a list of sounds of any kinds. A sound is what [`load_audio`] takes, an array or tensor of
                shape `(N,)` or `(C, N)`, or a dict `{"array": ..., "sampling_rate": ...}`. As in transformers'
                pipelines, `"raw"` may replace `"array"`.
            sampling_rate (`float`, *optional*):
                Rate of the arrays in Hz. Required for arrays; files state their own.
            return_tensors (`str`, defaults to `"pt"`):
                `"pt"` or `"np"`.
            device (`str` or `torch.device`, defaults to `"cpu"`):
                Where the spectrograms are computed and returned. Decoding is done on the CPU.
            stream (`int`, *optional*):
                Number of the audio stream in each file, as in [`load_audio`].

        Returns:
            `BatchFeature` with `input_features`: float32 `(B, 1, T, F)`, `(B, 1, 1001, 64)` with the defaults.

        Raises:
            `AudioError`: If a sound cannot be used (the message gives its place in the list) or the list is empty.
        """
        sounds = [audio] if is_one_sound(audio) else list(audio)
        if not sounds:
            raise AudioError("an empty list of audio; expected at least one path, bytes, file object, dict or array")
        waveforms = []
        for i, sound in enumerate(sounds, start=1):
            try:
                waveforms.append(self._waveform(sound, sampling_rate, stream))
            except AudioError as error:
                place = f"audio {i} of {len(sounds)}: " if len(sounds) > 1 else ""
                raise AudioError(f"{place}{error}") from error
        features = self.compute(np.stack(waveforms), device)[:, None]  # (B, 1, T, F)
        features = features.cpu() if return_tensors == "np" else features
        return BatchFeature({"input_features": features}, tensor_type=return_tensors)

    def compute(self, waveforms: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
        """Computes the log-mels `(B, T, F)` of samples `(B, N)`. Another front end overrides it."""
        return log_mel_spectrogram(
            waveforms,
            device,
            sampling_rate=self.sampling_rate,
            feature_size=self.feature_size,
            hop_length=self.hop_length,
            fft_window_size=self.fft_window_size,
            frequency_min=self.frequency_min,
            frequency_max=self.frequency_max,
        )

    def _waveform(self, sound: Any, sampling_rate: float | None, stream: int | None) -> np.ndarray:
        for key in ("array", "raw"):
            if isinstance(sound, dict) and sound.get(key) is not None:
                sound, sampling_rate = np.asarray(sound[key]), sound.get("sampling_rate", sampling_rate)
        if isinstance(sound, (np.ndarray, torch.Tensor)):
            return prepare_waveform(sound, sampling_rate, None, self.duration, self.sampling_rate)
        return load_audio(sound, None, self.duration, self.sampling_rate, stream)


@lru_cache(maxsize=8)
def _mel_filters(
    sampling_rate: int, feature_size: int, fft_window_size: int, frequency_min: float, frequency_max: float
) -> torch.Tensor:
    """Mel filters `(FFT bins, F)`, float64, without the FFT bins above `frequency_max`, whose weights are 0."""
    filters = mel_filter_bank(
        num_frequency_bins=fft_window_size // 2 + 1,
        num_mel_filters=feature_size,
        min_frequency=frequency_min,
        max_frequency=frequency_max,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    bins = np.flatnonzero(filters.any(axis=1)).max() + 1
    return torch.tensor(filters[:bins], dtype=torch.float64)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """
    Runs PyTorch on one thread. The blocks are too small to share: a second thread gains little, and on a busy machine
    it makes them take 100 times longer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _log_mel(
    clips: torch.Tensor,
    filters: torch.Tensor,
    hop_length: int,
    fft_window_size: int,
    frames_per_block: int | None = None,
) -> torch.Tensor:
    """
    Turns samples `(B, N)` into log-mels `(B, T, F)` in dB.

    The spectrum is in double precision, as in `ClapFeatureExtractor`: in float32 the quiet bins of loud music are up to
    0.07 dB off. The mel filters are applied in the type of `filters`.
    """
    half = fft_window_size // 2
    window = torch.hann_window(fft_window_size, dtype=torch.float64, device=clips.device)
    filters = filters.to(clips.device)
    padded = torch.nn.functional.pad(clips, (half, half), mode="reflect")
    frames = padded.unfold(-1, fft_window_size, hop_length)  # (B, T, W), a view
    mel = []
    for block in frames.split(frames_per_block or frames.shape[1], dim=1):
        spectrum = torch.fft.rfft(block * window)[..., : len(filters)]  # (B, t, FFT bins), complex128
        power = torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)
        mel.append(power.to(filters.dtype) @ filters)
    return 10 * torch.cat(mel, dim=1).float().clamp(min=1e-10).log10()  # (B, T, F)


RGMCFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
