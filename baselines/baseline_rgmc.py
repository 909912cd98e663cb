"""
What the baselines share: a configuration, a processor and a model that training, pipeline and evaluation take as they
take an RGMC of `conditioning="audio"`, with an audio encoder and a decoder, but without a datastore.

Shape letters: `B` clips, `N` samples, `T` frames, `F` bins of a frame, `S` states of a clip, `C` their width, `L`
tokens, `V` words or tokens of the vocabulary.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoTokenizer, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_imports
from transformers.modeling_outputs import CausalLMOutput

try:
    from .captions_rgmc import left_pad
    from .feature_extraction_rgmc import RGMCFeatureExtractor
    from .model_card_rgmc import PushesCheckpoint
    from .pipeline_rgmc import MusicCaptioningPipeline
    from .processing_rgmc import RGMCProcessor
except ImportError:
    from captions_rgmc import left_pad
    from feature_extraction_rgmc import RGMCFeatureExtractor
    from model_card_rgmc import PushesCheckpoint
    from pipeline_rgmc import MusicCaptioningPipeline
    from processing_rgmc import RGMCProcessor


def spectrum(waveforms: torch.Tensor, fft_window_size: int, hop_length: int) -> torch.Tensor:
    """The complex spectrum, float64 `(B, T, F)`, of samples `(B, N)`: periodic Hann window, centred, reflected ends."""
    window = torch.hann_window(fft_window_size, dtype=torch.float64, device=waveforms.device)
    waveforms = waveforms.double()
    return torch.stft(waveforms, fft_window_size, hop_length, window=window, return_complex=True).mT


def to_decibel(power: torch.Tensor) -> torch.Tensor:
    return 10 * power.clamp(min=1e-10).log10()


def save_code(part: Any, folder: str | os.PathLike):
    """
    Copies the file of a class, and those that it imports, from this folder and the root of the repository into the
    folder of a checkpoint. transformers' own copy would look for all of them in this folder.
    """
    home = Path(sys.modules[type(part).__module__].__file__)
    places = (home.parent, Path(sys.modules[RGMCProcessor.__module__].__file__).parent)
    found, left = set(), {home.stem, MusicCaptioningPipeline.__module__.split(".")[-1]}
    while left:
        name = left.pop()
        path = next(place / f"{name}.py" for place in places if (place / f"{name}.py").is_file())
        if (target := Path(folder, path.name)) != path:
            shutil.copyfile(path, target)
        found.add(name)
        left |= {*get_relative_imports(path)} - found


def auto_map(part: Any, **classes: str) -> dict[str, str]:
    """The names by which the Auto classes find the classes of a checkpoint: `{"AutoModel": "file.class"}`."""
    module = type(part).__module__.split(".")[-1]
    return {auto_class: f"{module}.{name}" for auto_class, name in classes.items()}


@strict
class BaselineConfig(PreTrainedConfig):
    """
    What the configurations of all baselines have.

    Args:
        vocab_size (`int`):
            Words or tokens, `V`.
        caption_normalization (`str`, defaults to `"paper"`):
            Rule of [`normalize_caption`] that the model's captions follow.
        bos_token_id, eos_token_id, pad_token_id (`int`):
            Tokens that start and end a caption, and that fill a batch.
    """

    vocab_size: int = 10_000
    caption_normalization: Literal["paper", "music"] = "paper"
    bos_token_id: int = 0
    eos_token_id: int = 2
    pad_token_id: int = 1

    # As the RGMCConfig of a model without candidates.
    conditioning = "audio"
    selection = "best"
    uses_audio = True
    uses_candidate = False
    num_candidates = 1
    words = audio_model_source = text_model_source = None
    title = about = ""  # for the model card

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        kind = type(self).__name__.removesuffix("Config")
        self.auto_map = auto_map(self, AutoConfig=f"{kind}Config", AutoModel=f"{kind}Model")
        impl = "pipeline_rgmc.MusicCaptioningPipeline"
        self.custom_pipelines = {"music-captioning": {"impl": impl, "pt": ["AutoModel"]}}


class BaselineProcessor(RGMCProcessor):
    """
    As [`RGMCProcessor`], with the front end of a baseline, `feature_extractor_class`. It is saved with its code.
    """

    feature_extractor_class: type[RGMCFeatureExtractor]
    _auto_class = None  # `save_code` and `auto_map` do what it would

    def __init__(self, feature_extractor, tokenizer, **kwargs):
        super().__init__(feature_extractor, tokenizer, **kwargs)
        self.auto_map = auto_map(self, AutoProcessor=type(self).__name__)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "BaselineProcessor":
        """Loads the processor of a checkpoint, as [`RGMCProcessor.from_pretrained`] does."""
        settings, changes = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        feature_extractor = cls.feature_extractor_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
        kwargs = {**kwargs, "config": PreTrainedConfig()}
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls.from_args_and_dict([feature_extractor, tokenizer], settings, **changes)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        os.makedirs(save_directory, exist_ok=True)
        save_code(self, save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)


class BaselineModel(PushesCheckpoint, PreTrainedModel, GenerationMixin):
    """
    A model that captions from sound alone. A subclass makes `audio_tower` and `text_model`, and gives the methods
    `embed_audio`, `decode` and `write`.
    """

    base_model_prefix = ""
    main_input_name = "input_features"
    input_modalities = ("audio", "text")
    label_smoothing = 0.0
    datastore = datastore_class = None
    mapper = word_head = None
    retrieves = False

    def _init_weights(self, module: nn.Module):
        # Older versions of transformers call this for loaded weights, too, and protect only what torch.nn.init
        # fills: the statistics of a batch norm would start anew.
        is_loaded = any(getattr(weight, "_is_hf_initialized", False) for weight in module.parameters(recurse=False))
        if hasattr(module, "reset_parameters") and not is_loaded:
            module.reset_parameters()

    # -- a subclass has these -----------------------------------------------------------------------------------------

    def embed_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """Turns what the feature extractor makes, `(B, 1, T, F)`, into the states `(B, S, C)` that captions are of."""
        raise NotImplementedError

    def decode(self, audio_embeds: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Computes the logits `(B, L, V)` of the tokens that follow each of `input_ids` `(B, L)`."""
        raise NotImplementedError

    def write(self, audio_embeds: torch.Tensor, **kwargs) -> torch.Tensor:
        """Generates captions from the states, each with its BOS: `(B, 1 + L)`; `kwargs` are those of `generate`."""
        raise NotImplementedError

    # -- as an RGMC without candidates --------------------------------------------------------------------------------

    def set_datastore(self, datastore: None):
        if datastore is not None:
            raise ValueError(f"a {self.config.model_type} does not retrieve: it takes no datastore")

    def prompt_ids(self, audio_embeds: torch.Tensor, found=None) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that captions begin with, BOS alone, and their attention mask, each `(B, 1)`."""
        input_ids, attention_mask = left_pad([[self.config.bos_token_id]] * len(audio_embeds), self.config.pad_token_id)
        return input_ids.to(self.device), attention_mask.to(self.device)

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: float | torch.Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> CausalLMOutput:
        """
        Computes the probabilities and the loss of captions.

        Args:
            input_features (`torch.FloatTensor` of shape `(B, 1, T, F)`, *optional*):
                What the feature extractor makes. Not needed with `audio_embeds`.
            input_ids (`torch.LongTensor` of shape `(B, L)`):
                BOS, the caption and its EOS, padded on the right.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*):
                Not used: a token sees only what comes before it, and padding comes last.
            audio_embeds (`torch.FloatTensor` of shape `(B, S, C)`, *optional*):
                What [`~BaselineModel.embed_audio`] returns.
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*):
                `input_ids` where a token is to be learned, -100 elsewhere.
            num_items_in_batch (`float` or `torch.Tensor`, *optional*):
                Divisor of the summed cross entropy. By default the number of labels that are not -100.
            logits_to_keep (`int`, defaults to 0):
                How many of the last positions have logits; 0 for all.
            kwargs:
                What an RGMC takes beyond that, ignored.

        Returns:
            `CausalLMOutput` with `loss` (when `labels` are given) and `logits` `(B, L, V)`.
        """
        audio_embeds = self.embed_audio(input_features) if audio_embeds is None else audio_embeds
        logits = self.decode(audio_embeds, input_ids)
        loss = None
        if labels is not None:
            labels = labels[:, 1:]
            loss = nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2).float(),
                labels,
                reduction="sum",
                label_smoothing=self.label_smoothing if self.training else 0.0,
            )
            loss = loss / (labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutput(loss=loss, logits=logits[:, -logits_to_keep:])

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        selection: str | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Captions clips, unless `kwargs` say otherwise as the generation configuration says.

        Args:
            input_features (`torch.FloatTensor` of shape `(B, 1, T, F)`, *optional*):
                What the feature extractor makes. Not needed with `audio_embeds`.
            input_ids, attention_mask (`torch.LongTensor` of shape `(B, 1)`, *optional*):
                What [`~BaselineModel.prompt_ids`] returns, which is added anyway.
            audio_embeds (`torch.FloatTensor` of shape `(B, S, C)`, *optional*):
                What [`~BaselineModel.embed_audio`] returns.
            selection (`str`, *optional*):
                Only `"best"`: consensus decoding needs candidates.
            kwargs:
                Anything that `GenerationMixin.generate` takes, but `return_dict_in_generate`.

        Returns:
            `torch.LongTensor` of shape `(B, L)` with the tokens of the captions.

        Raises:
            `ValueError`: For another `selection`.
        """
        if selection not in (None, "best"):
            raise ValueError(f"selection {selection!r}: a {self.config.model_type} has no candidates, expected 'best'")
        audio_embeds = self.embed_audio(input_features) if audio_embeds is None else audio_embeds
        return self.write(audio_embeds.to(self.device), **kwargs)[:, 1:]

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        os.makedirs(save_directory, exist_ok=True)
        if kwargs.get("is_main_process", True):
            save_code(self, save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)
