"""Configuration of RGMC, Retrieval Guided Music Captioning (Srivatsan et al., IJCAI 2024)."""

from typing import Any, Literal

import transformers
from transformers.utils import logging

TESTED_TRANSFORMERS = ("5.6", "5.24")  # the oldest and the newest version that the tests have passed with


def check_transformers(version: str):
    """
    Checks the version of transformers and warns once when it is newer than the tested ones.

    Raises:
        `RuntimeError`: If it is older. (An `ImportError` would start a search for this module elsewhere.)
    """
    oldest, newest = TESTED_TRANSFORMERS
    major, minor = newest.split(".")
    mend = f"pip install 'transformers>={oldest},<{major}.{int(minor) + 1}'"
    number, first, last = (tuple(map(int, text.split(".")[:2])) for text in (version, oldest, newest))
    if number < first:
        raise RuntimeError(f"RGMC needs transformers {oldest} or newer, but this is {version}: `{mend}`")
    if number > last:
        logging.get_logger("rgmc").warning_once(  # one name for the copies of this code in several checkpoints
            f"RGMC was tested with transformers {oldest} to {newest}; this is {version}. If something fails: `{mend}`"
        )


check_transformers(transformers.__version__)  # before the imports that an older version lacks

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers import AutoConfig, PreTrainedConfig  # noqa: E402

try:
    from .captions_rgmc import SIMILARITY_TOKENS, separator_token_id
except ImportError:
    from captions_rgmc import SIMILARITY_TOKENS, separator_token_id

# HTS-AT base with CLAP's projection, 68.6 M parameters: the size of the music checkpoint that the paper starts from
HTSAT_BASE = {
    "model_type": "clap_audio_model",
    "patch_embeds_hidden_size": 128,
    "depths": [2, 2, 12, 2],
    "num_attention_heads": [4, 8, 16, 32],
    "hidden_size": 1024,
    "projection_dim": 512,
}
GPT2_SMALL = {"model_type": "gpt2"}


@strict
class RGMCConfig(PreTrainedConfig):
    """
    Configuration of an [`RGMCModel`]. The defaults are the paper's model (sections 3 and 4).

    Args:
        audio_config (`ClapAudioConfig` or `dict`, defaults to HTS-AT base):
            The audio encoder `f`: CLAP's HTS-AT and its projection to `projection_dim` = 512 numbers (section 3.1).
            Fields missing in a `dict` take the defaults of `ClapAudioConfig`, those of HTS-AT tiny.
        text_config (`PreTrainedConfig` or `dict`, defaults to GPT-2 small):
            The decoder: any causal language model of transformers. A `dict` names its `model_type`.
        prefix_length (`int`, defaults to 10):
            Number of vectors `P` that the mapper `g` makes from one audio embedding (section 3.1).
        mapper_hidden_size (`int`, *optional*):
            Width of the hidden layer of the two-layer mapper. By default half of its output,
            `prefix_length * text_config.hidden_size // 2`, as in ClipCap, whose mapper the paper uses.
        conditioning (`str`, defaults to `"audio+candidate"`):
            What the decoder sees: `"audio+candidate"` is RGMC, `"audio"` and `"candidate"` are the paper's "audio only"
            and "text only" models (section 6.1). With `"candidate"` the encoder only retrieves and is not trained.
        num_candidates (`int`, defaults to 1):
            Number of captions `K` of similar songs that are retrieved (section 3.2: one).
        candidate_similarity (`bool`, defaults to `False`):
            Whether the decoder is told how similar the song of each candidate is, by a token before it: the last tokens
            of its vocabulary are then `SIMILARITY_TOKENS`. The paper has none.
        spec_augment (`bool`, defaults to `True`):
            Whether to mask two stripes of frames and two of mel bins of each clip while the encoder is trained. LAION's
            HTS-AT, the one that the paper trains, does so in training mode; that of transformers does not.
        audio_statistics (`bool`, defaults to `False`):
            Whether the encoder also reads statistics of the log-mels, by which one from scratch learns from far fewer
            clips: [`RGMCAudioStatistics`] is then part of `audio_tower`. The paper has none.
        caption_normalization (`str`, defaults to `"paper"`):
            Rule of [`normalize_caption`] that the model's captions follow: `"paper"` or `"music"`. Its datastore and
            its processor follow the same rule.
        selection (`str`, defaults to `"best"`):
            How `generate` chooses a caption unless it is told otherwise: `"best"` is the paper's beam search,
            `"consensus"` that of [`generate_consensus`].
        score_threshold (`float`, *optional*):
            Score below which timed captions say only that there is music, in mean log probability of a token.
        words (`list[str]`, *optional*):
            Words of captions that a word head predicts from the audio embedding while the encoder is trained. The paper
            has none.
        candidate_dropout, prefix_dropout, both_dropout (`float`, defaults to 0):
            Shares of the training clips that were given no candidate, none of their sound, and neither. They change
            nothing here: [`~RGMCModel.explain`] says with them what the model has learned to do without.
        datastore_rows (`int`, defaults to 0):
            Number of captions in the datastore of the checkpoint. It is stored so that a datastore that cannot be found
            is an error, not a model that silently captions without candidates.
        audio_model_source, text_model_source (`dict`, *optional*):
            The pretrained parts that training started from, as [`~RGMCModel.from_audio_text_pretrained`] records them:
            `name` (a Hub id, `repo_id/file`, or the last part of a local path), `revision` (the commit on the Hub, or
            `None`), `sha256` (of each file of weights) and `conversion` (the version of the mapping of LAION's names,
            or `None`).

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: If a field has the wrong type, here or whenever it is set, or
        if the values here cannot make a model.
    """

    model_type = "rgmc"
    sub_configs = {"audio_config": AutoConfig, "text_config": AutoConfig}

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    prefix_length: int = 10
    mapper_hidden_size: int | None = None
    conditioning: Literal["audio+candidate", "audio", "candidate"] = "audio+candidate"
    num_candidates: int = 1
    candidate_similarity: bool = False
    spec_augment: bool = True
    audio_statistics: bool = False
    caption_normalization: Literal["paper", "music"] = "paper"
    selection: Literal["best", "consensus"] = "best"
    score_threshold: float | None = None
    words: list[str] | None = None
    candidate_dropout: float = 0.0
    prefix_dropout: float = 0.0
    both_dropout: float = 0.0
    datastore_rows: int = 0
    audio_model_source: dict | None = None
    text_model_source: dict | None = None

    def __post_init__(self, **kwargs):
        self.audio_config = _build_config(self.audio_config, HTSAT_BASE)
        self.text_config = _build_config(self.text_config, GPT2_SMALL)
        super().__post_init__(**kwargs)
        # `pipeline("music-captioning", ...)` looks for this in `config.json`.
        impl = "pipeline_rgmc.MusicCaptioningPipeline"
        self.custom_pipelines = {"music-captioning": {"impl": impl, "pt": ["AutoModel"]}}

    def validate_sizes(self):
        for name in ("prefix_length", "num_candidates", "mapper_hidden_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")

    def validate_words(self):
        if self.words is not None and not (self.words and self.uses_audio):
            raise ValueError(
                "`words` are predicted from audio: expected at least one, and a model that is not text only"
            )

    def validate_audio_config(self):
        audio = self.audio_config
        if audio.model_type != "clap_audio_model":
            raise ValueError(
                "`audio_config` must be a ClapAudioConfig (model_type 'clap_audio_model'), "
                f"got model_type '{audio.model_type}'"
            )
        width = audio.patch_embeds_hidden_size * 2 ** (len(audio.depths) - 1)
        if audio.hidden_size != width:
            raise ValueError(
                f"`audio_config.hidden_size` must be {width}, got {audio.hidden_size}: "
                f"the {len(audio.depths)} stages start at `patch_embeds_hidden_size` {audio.patch_embeds_hidden_size}, "
                "and each doubles the one before"
            )
        if audio.num_mel_bins != 64:
            raise ValueError(
                f"`audio_config.num_mel_bins` must be 64, the number of CLAP's front end, got {audio.num_mel_bins}"
            )
        if audio.enable_fusion:
            raise ValueError(
                "`audio_config.enable_fusion` is True, but RGMC reads one 10 s clip and needs a CLAP without fusion, "
                "such as laion/larger_clap_music or laion/clap-htsat-unfused"
            )

    def validate_text_config(self):
        if self.text_config.is_encoder_decoder:
            raise ValueError(
                "`text_config` must be a decoder-only language model, "
                f"got the encoder-decoder '{self.text_config.model_type}'"
            )

    @property
    def separator_token_id(self) -> int:
        """The token that ends a candidate and starts the caption."""
        text_config: Any = self.text_config
        token_id = separator_token_id(text_config.bos_token_id, text_config.eos_token_id)
        if token_id is None:
            raise ValueError(
                "`text_config` has neither `bos_token_id` nor `eos_token_id`: captions could not start or end"
            )
        return token_id

    @property
    def similarity_token_ids(self) -> list[int]:
        """The ids of `SIMILARITY_TOKENS`, or none without `candidate_similarity`."""
        text_config: Any = self.text_config
        end = text_config.vocab_size
        return [*range(end - len(SIMILARITY_TOKENS), end)] if self.candidate_similarity else []

    @property
    def uses_audio(self) -> bool:
        return "audio" in self.conditioning

    @property
    def uses_candidate(self) -> bool:
        return "candidate" in self.conditioning


def _build_config(config: dict | PreTrainedConfig | None, default: dict) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    fields = dict(default if config is None else config)
    return AutoConfig.for_model(fields.pop("model_type", default["model_type"]), **fields)


RGMCConfig.register_for_auto_class()
