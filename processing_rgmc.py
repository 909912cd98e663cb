"""Processor of RGMC: audio to log-mel spectrograms, candidate captions to decoder prompts, tokens to captions."""

import os
from collections.abc import Iterable

from transformers import (
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging

try:
    # Of a local folder, transformers 5.6 copies what is imported here, and not what that imports in its turn.
    from .audio_rgmc import AudioError  # noqa: F401
    from .captions_rgmc import (
        NORMALIZATIONS,
        join_candidates,
        left_pad,
        list_captions,
        normalize_caption,
        separator_token_id,
    )
    from .configuration_rgmc import RGMCConfig  # noqa: F401
    from .feature_extraction_rgmc import RGMCFeatureExtractor
    from .model_card_rgmc import PushesCheckpoint
except ImportError:
    from captions_rgmc import (
        NORMALIZATIONS,
        join_candidates,
        left_pad,
        list_captions,
        normalize_caption,
        separator_token_id,
    )
    from feature_extraction_rgmc import RGMCFeatureExtractor
    from model_card_rgmc import PushesCheckpoint

logger = logging.get_logger(__name__)


class RGMCProcessor(PushesCheckpoint, ProcessorMixin):
    """
    Prepares audio and, where wanted, candidate captions for [`RGMCModel`].

    Args:
        feature_extractor ([`RGMCFeatureExtractor`]): From a file or waveform to the log-mel of its middle 10 s.
        tokenizer (`PreTrainedTokenizerBase`): The decoder's tokenizer. Its pad token becomes its EOS where it has none.
        max_candidate_length (`int`, defaults to 128): Longest candidate in tokens; a longer one is cut, announced once.
        max_caption_length (`int`, defaults to 128): Longest caption in tokens, with its EOS, that is trained on.
        text_model_id (`str`, *optional*): Hub id of the tokenizer, for a folder that holds no tokenizer of its own.
        caption_normalization (`str`, defaults to `"paper"`): Rule of [`normalize_caption`] for captions and candidates.
    """

    def __init__(
        self,
        feature_extractor: RGMCFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        max_candidate_length: int = 128,
        max_caption_length: int = 128,
        text_model_id: str | None = None,
        caption_normalization: str = "paper",
        **kwargs,
    ):
        if caption_normalization not in NORMALIZATIONS:
            raise ValueError(f"caption_normalization {caption_normalization!r}: expected one of {NORMALIZATIONS}")
        if tokenizer.eos_token_id is None:
            raise ValueError(f"The tokenizer '{tokenizer.name_or_path}' has no EOS token, so captions could not end")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        for name in ("is_local", "local_files_only", "dtype"):  # how it was loaded, which would be saved with it
            tokenizer.init_kwargs.pop(name, None)
        super().__init__(feature_extractor, tokenizer, **kwargs)
        self.max_candidate_length = max_candidate_length
        self.max_caption_length = max_caption_length
        self.caption_normalization = caption_normalization
        self.text_model_id = None  # loaded now, and saved beside the rest

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "RGMCProcessor":
        """
        Loads the processor of a checkpoint.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Hub id or folder.
            kwargs: `revision`, `token`, `cache_dir` … of the Hub; others take the place of what was saved.
        """
        settings, changes = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        # Our own classes: the Auto classes would ask for trust in the checkpoint's copy of this very code.
        feature_extractor = RGMCFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        text_model_id = settings.get("text_model_id")
        if text_model_id:
            kwargs = {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
        else:  # or it looks into config.json, and asks for trust again
            kwargs = {**kwargs, "config": PreTrainedConfig()}
        tokenizer = AutoTokenizer.from_pretrained(text_model_id or pretrained_model_name_or_path, **kwargs)
        return cls.from_args_and_dict([feature_extractor, tokenizer], settings, **changes)

    @property
    def separator_token_id(self) -> int:
        """Token that ends a candidate and starts the caption."""
        return separator_token_id(self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)

    def __call__(
        self,
        audio=None,
        candidates: list[str] | list[list[str]] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            audio: One clip or a list of clips: paths, bytes, file objects, or waveforms (`(samples,)` or `(channels,
            samples)`).
            candidates (`list[str]` or `list[list[str]]`, *optional*):
                One caption, or a list of captions, per clip, instead of those that the model would retrieve.
            sampling_rate (`int`, *optional*): Of the waveforms, in Hz; files carry their own.
            return_tensors (`str`, defaults to `"pt"`)
            kwargs: Further arguments of [`RGMCFeatureExtractor`].

        Returns:
            `BatchFeature` with `input_features` `(B, 1, T, F)` and, with candidates, left-padded `input_ids` and
            `attention_mask` `(B, L)`.

        Raises:
            `AudioError`: for audio that cannot be used; `ValueError`: when there is not one entry of candidates per
            clip, or one is no text.
        """
        if return_tensors != "pt":
            raise ValueError(f"RGMCProcessor makes PyTorch tensors (return_tensors='pt'), got {return_tensors!r}")
        if audio is None and candidates is None:
            raise ValueError("Nothing to process: pass `audio=` (paths, bytes or waveforms), `candidates=`, or both")
        inputs = {}
        if audio is not None:
            inputs.update(self.feature_extractor(audio, sampling_rate=sampling_rate, **kwargs))
        if candidates is not None:
            one = isinstance(candidates, str) or not isinstance(candidates, Iterable)
            entries: Iterable = [candidates] if one else candidates
            prompts = [self.encode_prompt(list_captions(entry)) for entry in entries]
            if audio is not None and len(prompts) != len(inputs["input_features"]):
                raise ValueError(
                    f"Got {len(inputs['input_features'])} clips but candidates for {len(prompts)}: they must match 1:1"
                )
            inputs["input_ids"], inputs["attention_mask"] = left_pad(prompts, self.tokenizer.pad_token_id)
        return BatchFeature(inputs)

    def encode_candidate(self, caption: str) -> list[int]:
        """Token ids of a candidate caption, normalised, without a separator."""
        token_ids = self._encode(caption)
        if len(token_ids) > self.max_candidate_length:
            logger.warning_once(
                f"Candidates longer than {self.max_candidate_length} tokens are cut (`max_candidate_length`)."
            )
        return token_ids[: self.max_candidate_length]

    def encode_prompt(self, candidates: list[str]) -> list[int]:
        """Token ids of the decoder's prompt: the candidates, each followed by a separator."""
        return join_candidates([self.encode_candidate(caption) for caption in candidates], self.separator_token_id)

    def encode_caption(self, caption: str) -> list[int]:
        """Token ids of a caption to be learned, normalised, with its EOS; a caption that is cut gets none."""
        token_ids = [*self._encode(caption), self.tokenizer.eos_token_id]
        if len(token_ids) > self.max_caption_length:
            logger.warning_once(
                f"Captions longer than {self.max_caption_length} tokens are cut (`max_caption_length`)."
            )
        return token_ids[: self.max_caption_length]

    def normalize(self, caption: str) -> str:
        """A caption by the rule of this processor."""
        return normalize_caption(caption, self.caption_normalization)

    def _encode(self, caption: str) -> list[int]:
        return self.tokenizer(self.normalize(caption), add_special_tokens=False)["input_ids"]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_features", "input_ids", "attention_mask"]


RGMCProcessor.register_for_auto_class()
