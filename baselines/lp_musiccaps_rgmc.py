"""
LP-MusicCaps, trained on true captions (Doh et al., "LP-MusicCaps: LLM-Based Pseudo Music Captioning", ISMIR 2023): six
convolutions over time on a log-mel spectrogram, and BART. docs/baselines.md lists what differs from the original.

Shape letters as in `baseline_rgmc.py`.
"""

from functools import lru_cache

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig, PreTrainedConfig
from transformers.audio_utils import mel_filter_bank

try:
    # From a local folder, transformers 5.6 copies only the files that are imported here, not those that they import.
    from .attribution_rgmc import ExplainsCaptions  # noqa: F401
    from .audio_rgmc import AudioError  # noqa: F401
    from .baseline_rgmc import BaselineConfig, BaselineModel, BaselineProcessor, spectrum, to_decibel
    from .captions_rgmc import normalize_caption  # noqa: F401
    from .configuration_rgmc import RGMCConfig  # noqa: F401
    from .feature_extraction_rgmc import RGMCFeatureExtractor
    from .generation_rgmc import generate_consensus  # noqa: F401
    from .hearing_rgmc import hear  # noqa: F401
    from .model_card_rgmc import model_card  # noqa: F401
    from .noise_rgmc import find_noise  # noqa: F401
    from .pipeline_rgmc import MusicCaptioningPipeline  # noqa: F401
    from .processing_rgmc import RGMCProcessor  # noqa: F401
    from .span_settings_rgmc import SpanSettings  # noqa: F401
    from .spans_rgmc import find_spans  # noqa: F401
except ImportError:
    from baselines.baseline_rgmc import BaselineConfig, BaselineModel, BaselineProcessor, spectrum, to_decibel
    from feature_extraction_rgmc import RGMCFeatureExtractor

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
BART_BASE = {
    "vocab_size": 50_265,
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
}


@strict
class LPMusicCapsConfig(BaselineConfig):
    """
    Configuration of an [`LPMusicCapsModel`]. The defaults are the paper's.

    Args:
        text_config (`BartConfig` or `dict`, defaults to BART base):
            The encoder and decoder. Fields missing in a `dict` take the values of BART base.
        num_mel_bins (`int`, defaults to 128):
            Mel bins `F` of a frame.
        num_downsamplings (`int`, defaults to 5):
            Convolutions of stride 2: 5 make 32 states, `S`, of 1001 frames.
        label_smoothing (`float`, defaults to 0.1):
            Of the cross entropy in training. The validation loss has none.
    """

    model_type = "lp-musiccaps"
    sub_configs = {"text_config": BartConfig}
    title = "LP-MusicCaps"
    about = (
        "An LP-MusicCaps ([Doh et al., 2023](https://arxiv.org/abs/2307.16372)), trained on true captions as a "
        "baseline for RGMC: convolutions and BART, from scratch. It is not the authors' own code or model."
    )

    text_config: dict | PreTrainedConfig | None = None
    vocab_size: int = 50_265
    num_mel_bins: int = 128
    num_downsamplings: int = 5
    label_smoothing: float = 0.1

    def __post_init__(self, **kwargs):
        if not isinstance(self.text_config, PreTrainedConfig):
            fields = {**BART_BASE, **(self.text_config or {})}
            fields |= {name: getattr(self, name) for name in ("vocab_size", *TOKENS)}
            fields |= {"decoder_start_token_id": self.bos_token_id, "forced_eos_token_id": None}
            fields.pop("model_type", None)
            self.text_config = BartConfig(**fields)
        super().__post_init__(**kwargs)


class LPMusicCapsFeatureExtractor(RGMCFeatureExtractor):
    """
    Turns a sound into the log-mel spectrogram, in dB, of its middle 10 s at 16 kHz: mel filters of the HTK scale, not
    normalised. `input_features` are `(B, 1, 1001, 128)`.

    Args:
        real_part (`bool`, defaults to `False`):
            Whether the square of the spectrum's real part takes the place of the power, as in the original.
        feature_size, sampling_rate, duration, hop_length, fft_window_size, frequency_min, frequency_max, kwargs:
            As in [`RGMCFeatureExtractor`].
    """

    _auto_class = None

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16_000,
        duration: float = 10.0,
        hop_length: int = 160,
        fft_window_size: int = 1024,
        frequency_min: float = 0.0,
        frequency_max: float = 8000.0,
        real_part: bool = False,
        **kwargs,
    ):
        sizes = (feature_size, sampling_rate, duration, hop_length, fft_window_size, frequency_min, frequency_max)
        super().__init__(*sizes, **kwargs)
        self.real_part = real_part

    @property
    def further_settings(self) -> list:
        return ["lp-musiccaps", self.real_part]

    def compute(self, waveforms, device="cpu") -> torch.Tensor:
        found = spectrum(torch.as_tensor(waveforms, device=device), self.fft_window_size, self.hop_length)
        power = found.real.square() if self.real_part else found.abs().square()
        filters = _mel_filters(
            self.fft_window_size, self.feature_size, self.frequency_min, self.frequency_max, self.sampling_rate
        )
        return to_decibel(power @ filters.to(device)).float()


@lru_cache(maxsize=8)
def _mel_filters(window: int, bins: int, lowest: float, highest: float, rate: int) -> torch.Tensor:
    """Mel filters `(FFT bins, F)`, float64."""
    return torch.from_numpy(mel_filter_bank(window // 2 + 1, bins, lowest, highest, rate, norm=None, mel_scale="htk"))


class LPMusicCapsProcessor(BaselineProcessor):
    """Prepares audio and captions for an [`LPMusicCapsModel`]."""

    feature_extractor_class = LPMusicCapsFeatureExtractor


class ConvolutionStack(nn.Module):
    """Log-mels `(B, T, F)` to states `(B, S, C)` with sinusoidal positions."""

    def __init__(self, config: LPMusicCapsConfig):
        super().__init__()
        width = config.text_config.d_model
        self.convolutions = nn.ModuleList([nn.Conv1d(config.num_mel_bins, width, 3, padding=1)])
        for _ in range(config.num_downsamplings):
            self.convolutions.append(nn.Conv1d(width, width, 3, stride=2, padding=1))

    def forward(self, log_mels: torch.Tensor) -> torch.Tensor:
        hidden = log_mels.mT
        for convolution in self.convolutions:
            hidden = nn.functional.gelu(convolution(hidden))
        return hidden.mT + sinusoids(hidden.shape[2], hidden.shape[1], hidden.device)


def sinusoids(length: int, width: int, device: torch.device) -> torch.Tensor:
    """Positions `(length, width)`: sines, then cosines, of wavelengths from 2 pi to 10,000 times that."""
    rates = 10_000 ** (-torch.arange(width // 2, device=device) / (width // 2 - 1))
    angles = torch.outer(torch.arange(length, device=device), rates)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class LPMusicCapsModel(BaselineModel):
    """
    Captions music from a log-mel spectrogram. `audio_tower` is the stack of convolutions, `text_model` BART. It decodes
    with 5 beams unless the generation configuration says otherwise.
    """

    config: LPMusicCapsConfig
    config_class = LPMusicCapsConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: LPMusicCapsConfig):
        super().__init__(config)
        self.audio_tower = ConvolutionStack(config)
        self.text_model = BartForConditionalGeneration(config.text_config)
        self.label_smoothing = config.label_smoothing
        self.post_init()
        tokens = {name: getattr(config, name) for name in TOKENS}
        self.generation_config = GenerationConfig(
            num_beams=5, max_new_tokens=128, decoder_start_token_id=config.bos_token_id, **tokens
        )

    def embed_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        bins = self.config.num_mel_bins
        if input_features.ndim != 4 or (input_features.shape[1], input_features.shape[3]) != (1, bins):
            raise ValueError(
                f"`input_features` must be log-mels of shape (B, 1, T, {bins}), got {tuple(input_features.shape)}: "
                "the processor makes them from files and waveforms"
            )
        return self.audio_tower(input_features[:, 0].to(self.device))

    def decode(self, audio_embeds: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        return self.text_model(inputs_embeds=audio_embeds, decoder_input_ids=input_ids, use_cache=False).logits

    def write(self, audio_embeds: torch.Tensor, **kwargs) -> torch.Tensor:
        self.text_model.generation_config = self.generation_config
        return self.text_model.generate(inputs_embeds=audio_embeds, **kwargs)
