"""
MusCaps (Manco et al., "MusCaps: Generating Captions for Music Audio", IJCNN 2021): a harmonic CNN (Won et al.,
"Data-driven Harmonic Filters for Audio Representation Learning", ICASSP 2020) on chunks of 5 s, and two LSTM cells with
attention over the chunks. Written from the papers; docs/baselines.md lists what differs from the original.

Shape letters as in `baseline_rgmc.py`; `H` harmonics, `M` bands of each.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GenerationConfig

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

LOWEST_NOTE, HIGHEST_NOTE = 24, 88  # MIDI: C1, and the note whose sixth harmonic is still below 8 kHz


@strict
class MusCapsConfig(BaselineConfig):
    """
    Configuration of a [`MusCapsModel`]. The defaults are the paper's, with a vocabulary of 10,000 words.

    Args:
        num_harmonics (`int`, defaults to 6):
            Harmonics `H` of each note that the filters are at.
        num_channels (`int`, defaults to 128):
            Channels of the first four layers of the CNN; the others have twice as many, which is the width `C`.
        hidden_size (`int`, defaults to 256):
            Width of the LSTM cells and of the attention.
        embedding_size (`int`, defaults to 300):
            Width of a word.
        dropout (`float`, defaults to 0.25):
            Of words and of the decoder's outputs.
    """

    model_type = "muscaps"
    title = "MusCaps"
    about = (
        "A MusCaps ([Manco et al., 2021](https://arxiv.org/abs/2104.11984)), trained as a baseline for RGMC: "
        "a harmonic CNN and an LSTM with attention. It is not the authors' own code or model."
    )

    num_harmonics: int = 6
    num_channels: int = 128
    hidden_size: int = 256
    embedding_size: int = 300
    dropout: float = 0.25


class MusCapsFeatureExtractor(RGMCFeatureExtractor):
    """
    Turns a sound into the power spectrograms, in dB, of the 5 s chunks of its middle 10 s, one after the other:
    `input_features` `(B, 1, 626, 257)`. The filters on them are learned, so they are part of the model.

    Args:
        chunk_duration (`float`, defaults to 5.0):
            Seconds of a chunk.
        feature_size, sampling_rate, duration, hop_length, fft_window_size, kwargs:
            As in [`RGMCFeatureExtractor`]; `feature_size` is the number of bins of the FFT.
    """

    _auto_class = None

    def __init__(
        self,
        feature_size: int = 257,
        sampling_rate: int = 16_000,
        duration: float = 10.0,
        hop_length: int = 256,
        fft_window_size: int = 512,
        chunk_duration: float = 5.0,
        **kwargs,
    ):
        super().__init__(feature_size, sampling_rate, duration, hop_length, fft_window_size, **kwargs)
        self.chunk_duration = chunk_duration

    @property
    def further_settings(self) -> list:
        return ["muscaps", self.chunk_duration]

    def compute(self, waveforms, device="cpu") -> torch.Tensor:
        waveforms = torch.as_tensor(waveforms, device=device)
        chunks = waveforms.split(round(self.chunk_duration * self.sampling_rate), dim=1)
        spectra = [spectrum(chunk, self.fft_window_size, self.hop_length) for chunk in chunks]
        return to_decibel(torch.cat(spectra, dim=1).abs().square()).float()


class MusCapsProcessor(BaselineProcessor):
    """Prepares audio and captions for a [`MusCapsModel`]; its tokens are words."""

    feature_extractor_class = MusCapsFeatureExtractor


class HarmonicFilters(nn.Module):
    """
    Triangular bands at the first `H` harmonics of `M` = 128 notes, two in a semitone. A band at `f` Hz is
    `(0.1079 f + 24.7) / Q` Hz wide, and `Q` is learned.
    """

    def __init__(self, config: MusCapsConfig):
        super().__init__()
        self.num_harmonics = config.num_harmonics
        self.q = nn.Parameter(torch.ones(()))

    def reset_parameters(self):
        nn.init.ones_(self.q)

    def filters(self, bins: int, nyquist: float = 8000.0) -> torch.Tensor:
        """The weight `(F, H * M)` of each bin of the FFT in each band."""
        device = self.q.device
        notes = torch.arange(LOWEST_NOTE, HIGHEST_NOTE, 0.5, device=device)
        lowest = 440 * 2 ** ((notes - 69) / 12)  # (M,), in Hz
        harmonics = torch.arange(1, self.num_harmonics + 1, device=device)
        centers = torch.outer(harmonics, lowest).flatten()  # (H * M,)
        widths = (0.1079 * centers + 24.7) / self.q
        frequencies = torch.linspace(0, nyquist, bins, device=device)
        return (1 - 2 * (frequencies[:, None] - centers).abs() / widths).clamp(min=0)

    def forward(self, power: torch.Tensor) -> torch.Tensor:
        """Power spectrograms `(B, T, F)` to bands in dB `(B, H, M, T)`."""
        bands = power @ self.filters(power.shape[-1])
        return to_decibel(bands).unflatten(-1, (self.num_harmonics, -1)).permute(0, 2, 3, 1)


def convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out))


class Layer(nn.Module):
    """A convolution, or a residual block of two where `is_residual`, and max pooling."""

    def __init__(self, channels_in: int, channels_out: int, pool: int | tuple[int, int], is_residual: bool = True):
        super().__init__()
        self.convolutions = convolution(channels_in, channels_out)
        if is_residual:
            second = convolution(channels_out, channels_out)
            self.convolutions = nn.Sequential(self.convolutions, nn.ReLU(), second)
        self.is_residual, self.pool = is_residual, pool

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        found = self.convolutions(hidden)
        return nn.functional.max_pool2d(found + hidden if self.is_residual else found, self.pool).relu()


class HarmonicCNN(nn.Module):
    """Embeds chunks: power spectrograms `(B, T, F)` to `(B, C)`."""

    def __init__(self, config: MusCapsConfig):
        super().__init__()
        width, wide = config.num_channels, 2 * config.num_channels
        self.filters = HarmonicFilters(config)
        self.norm = nn.BatchNorm2d(config.num_harmonics)
        self.layers = nn.Sequential(
            Layer(config.num_harmonics, width, 2, is_residual=False),
            *(Layer(width, width, 2) for _ in range(3)),
            Layer(width, wide, 2, is_residual=False),
            *(Layer(wide, wide, (2, 3)) for _ in range(2)),
        )

    def forward(self, power: torch.Tensor) -> torch.Tensor:
        with torch.autocast(power.device.type, enabled=False):  # quiet bands need float32
            bands = self.filters(power)
        return self.layers(self.norm(bands)).amax(dim=(2, 3))


class WeightNormLinear(nn.Linear):
    """A linear layer whose weights are a direction and a length, learned apart (Salimans and Kingma, 2016)."""

    def __init__(self, features_in: int, features_out: int):
        super().__init__(features_in, features_out)
        self.length = nn.Parameter(self.weight.detach().norm(dim=1))

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "length"):
            self.length.data.copy_(self.weight.detach().norm(dim=1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self.length[:, None] * nn.functional.normalize(self.weight, dim=1)
        return nn.functional.linear(hidden, weight, self.bias)


class MusCapsDecoder(nn.Module):
    """Writes captions of clips whose chunks are embedded."""

    def __init__(self, config: MusCapsConfig):
        super().__init__()
        audio, hidden = 2 * config.num_channels, config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.initial = nn.Linear(audio, hidden)
        self.initial_norm = nn.BatchNorm1d(hidden)
        self.cell1 = nn.LSTMCell(config.embedding_size + audio + hidden, hidden)
        self.attention_audio = nn.Linear(audio, hidden)
        self.attention_hidden = nn.Linear(hidden, hidden)
        self.attention_score = nn.Linear(hidden, 1)
        self.cell2 = nn.LSTMCell(audio + hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.head = WeightNormLinear(hidden, config.vocab_size)

    def forward(self, audio_embeds: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        pooled = audio_embeds.mean(1)  # (B, C)
        hidden1 = hidden2 = memory1 = memory2 = self._normalize(self.initial(pooled)).relu()
        keys = self.attention_audio(audio_embeds)
        outputs = []
        for words in self.dropout(self.embedding(input_ids)).unbind(1):
            hidden1, memory1 = self.cell1(torch.cat([words, pooled, hidden2], dim=1), (hidden1, memory1))
            scores = self.attention_score((keys + self.attention_hidden(hidden1)[:, None]).tanh())  # (B, S, 1)
            attended = (scores.softmax(1) * audio_embeds).sum(1)
            hidden2, memory2 = self.cell2(torch.cat([attended, hidden1], dim=1), (hidden2, memory2))
            outputs.append(hidden2)
        return self.head(self.dropout(torch.stack(outputs, dim=1)))  # (B, L, V)

    def _normalize(self, hidden: torch.Tensor) -> torch.Tensor:
        norm = self.initial_norm
        if norm.training and len(hidden) == 1:  # has no variance of its own
            return nn.functional.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return norm(hidden)


class MusCapsModel(BaselineModel):
    """
    Captions music from two chunks of sound. `audio_tower` is the harmonic CNN, `text_model` the decoder. Greedy search
    unless the generation configuration says otherwise.
    """

    config: MusCapsConfig
    config_class = MusCapsConfig

    def __init__(self, config: MusCapsConfig):
        super().__init__(config)
        self.audio_tower = HarmonicCNN(config)
        self.text_model = MusCapsDecoder(config)
        self.post_init()
        # `use_cache`: the cells have a state, not keys and values. A caption of 22 words is computed again at each.
        tokens = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        self.generation_config = GenerationConfig(num_beams=1, max_new_tokens=22, use_cache=False, **tokens)

    def embed_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        if input_features.ndim != 4 or input_features.shape[1] != 1 or input_features.shape[2] % 2:
            raise ValueError(
                f"`input_features` must be two chunks, (B, 1, T, F) with an even T, got {tuple(input_features.shape)}: "
                "the processor makes them from files and waveforms"
            )
        power = 10 ** (input_features[:, 0].to(self.device) / 10)  # (B, T, F)
        chunks = power.unflatten(1, (2, -1))  # (B, S, T / S, F)
        return self.audio_tower(chunks.flatten(0, 1)).unflatten(0, chunks.shape[:2])

    def decode(self, audio_embeds: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        return self.text_model(audio_embeds, input_ids)

    def write(self, audio_embeds: torch.Tensor, **kwargs) -> torch.Tensor:
        input_ids, attention_mask = self.prompt_ids(audio_embeds)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "audio_embeds": audio_embeds}
        return super(BaselineModel, self).generate(**inputs, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, audio_embeds=None, **kwargs) -> dict:
        return {"input_ids": input_ids, "audio_embeds": audio_embeds}
