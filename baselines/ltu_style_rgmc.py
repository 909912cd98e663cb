"""
An LTU-style captioner, after "Listen, Think, and Understand" (Gong et al., ICLR 2024): a causal language model
continues 32 states of the audio encoder over time. Encoder, decoder and training are those of RGMC, so this is not LTU.
With `--lora_r` the decoder learns by LoRA, as in LTU.
"""

import os

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

try:
    # From a local folder, transformers 5.6 copies only the files that are imported here, not those that they import.
    from .attribution_rgmc import ExplainsCaptions  # noqa: F401
    from .audio_rgmc import AudioError  # noqa: F401
    from .baseline_rgmc import auto_map, save_code
    from .captions_rgmc import normalize_caption  # noqa: F401
    from .configuration_rgmc import RGMCConfig
    from .feature_extraction_rgmc import RGMCFeatureExtractor  # noqa: F401
    from .generation_rgmc import generate_consensus  # noqa: F401
    from .hearing_rgmc import hear  # noqa: F401
    from .layers_rgmc import RGMCMapper  # noqa: F401
    from .model_card_rgmc import model_card  # noqa: F401
    from .modeling_rgmc import RGMCModel
    from .noise_rgmc import find_noise  # noqa: F401
    from .pipeline_rgmc import MusicCaptioningPipeline  # noqa: F401
    from .pretrained_rgmc import load_clap_audio  # noqa: F401
    from .processing_rgmc import RGMCProcessor  # noqa: F401
    from .retrieval_rgmc import CaptionDatastore  # noqa: F401
    from .search_rgmc import EmbeddingIndex  # noqa: F401
    from .songs_rgmc import make_rows  # noqa: F401
    from .span_settings_rgmc import SpanSettings  # noqa: F401
    from .spans_rgmc import find_spans  # noqa: F401
    from .statistics_rgmc import RGMCAudioStatistics  # noqa: F401
except ImportError:
    from baselines.baseline_rgmc import auto_map, save_code
    from configuration_rgmc import RGMCConfig
    from modeling_rgmc import RGMCModel


@strict
class LTUStyleConfig(RGMCConfig):
    """
    Configuration of an [`LTUStyleModel`]: that of an RGMC of `conditioning="audio"`, with other defaults.

    Args:
        prefix_length (`int`, defaults to 32):
            Vectors that the states over time are pooled to.
        mapper_hidden_size (`int`, defaults to 768):
            Width between the states and the decoder.
        conditioning (`str`, defaults to `"audio"`):
            No other is possible.
    """

    model_type = "ltu-style"
    title = "LTU-style"
    about = (
        "An LTU-style captioner, trained as a baseline for RGMC: a causal language model continues 32 states of the "
        "audio encoder. It is not LTU ([Gong et al., 2024](https://arxiv.org/abs/2305.10790))."
    )
    _auto_class = None  # `save_code` and `auto_map` do what it would

    prefix_length: int = 32
    mapper_hidden_size: int | None = 768
    conditioning: str = "audio"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.auto_map = auto_map(self, AutoConfig="LTUStyleConfig", AutoModel="LTUStyleModel")

    def validate_conditioning(self):
        if self.conditioning != "audio" or self.audio_statistics:
            raise ValueError("an ltu-style has the sound's states alone: `conditioning` 'audio', no `audio_statistics`")


class StateMapper(nn.Module):
    """Pools the states `(B, S, C)` to `P` steps and maps each to a prefix vector: `(B, P, D)`."""

    def __init__(self, config: LTUStyleConfig):
        super().__init__()
        audio = config.audio_config
        steps = audio.spec_size // audio.patch_stride[0] // 2 ** (len(audio.depths) - 1)  # a square, cut into bands
        bands = steps * audio.num_mel_bins // audio.spec_size
        self.prefix_length = config.prefix_length
        self.linear1 = nn.Linear(audio.hidden_size * bands, config.mapper_hidden_size)
        self.linear2 = nn.Linear(config.mapper_hidden_size, config.text_config.hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool1d(states.mT, self.prefix_length).mT
        return self.linear2(nn.functional.gelu(self.linear1(pooled)))


class LTUStyleModel(RGMCModel):
    """An [`RGMCModel`] without candidates and datastore, whose prefix is made of the encoder's states over time."""

    config: LTUStyleConfig
    config_class = LTUStyleConfig
    datastore_class = None
    _auto_class = None

    def __init__(self, config: LTUStyleConfig):
        super().__init__(config)
        self.mapper = StateMapper(config)
        # It makes the embedding, which has no use here, and several processes would wait for its gradients.
        self.audio_tower.audio_projection.requires_grad_(False)

    def embed_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """The states `(B, S, C)` that [`~RGMCModel.embed_steps`] returns; the prefix is made of them."""
        return self.embed_steps(input_features)[1]

    def set_datastore(self, datastore: None):
        if datastore is not None:
            raise ValueError("an ltu-style does not retrieve: it takes no datastore")

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        os.makedirs(save_directory, exist_ok=True)
        if kwargs.get("is_main_process", True):
            save_code(self, save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)
