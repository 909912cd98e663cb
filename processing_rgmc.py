"""The processor: audio to log-mel spectrograms, candidate captions to decoder prompts, tokens to captions."""

import os
from collections.abc import Iterable, Sequence
from itertools import repeat

from transformers import (
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging

try:
    # From a local folder, transformers 5.6 copies only the files that are imported here, not those that they import.
    from .audio_rgmc import AudioError  # noqa: F401
    from .captions_rgmc import (
        NORMALIZATIONS,
        SIMILARITY_TOKENS,
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
        SIMILARITY_TOKENS,
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
    Prepares audio and, optionally, candidate captions for [`RGMCModel`].

    Args:
        feature_extractor ([`RGMCFeatureExtractor`]):
            Turns a file or waveform into the log-mel of its middle 10 s.
        tokenizer (`PreTrainedTokenizerBase`):
            The decoder's tokenizer. If it has no pad token, its EOS serves as one.
        max_candidate_length (`int`, defaults to 128):
            Longest candidate in tokens. Longer ones are cut, with one warning.
        max_caption_length (`int`, defaults to 128):
            Longest caption in tokens, with its EOS, that is trained on. Longer ones are cut, with one warning.
        text_model_id (`str`, *optional*):
            Hub id of the tokenizer, for a folder without a tokenizer of its own.
        caption_normalization (`str`, defaults to `"paper"`):
            Rule of [`normalize_caption`] for captions and candidates.

    Raises:
        `ValueError`: If there is no such rule, or if the tokenizer has no EOS token.
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
        for name in ("is_local", "local_files_only", "dtype"):  # how it was loaded; it would be saved, too
            tokenizer.init_kwargs.pop(name, None)
        super().__init__(feature_extractor, tokenizer, **kwargs)
        self.max_candidate_length = max_candidate_length
        self.max_caption_length = max_caption_length
        self.caption_normalization = caption_normalization
        self.text_model_id = None  # the tokenizer is saved with the rest from now on

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "RGMCProcessor":
        """
        Loads the processor of a checkpoint.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Hub id or folder.
            kwargs:
                `revision`, `token`, `cache_dir` … of the Hub; any others replace what was saved.
        """
        settings, changes = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        # Our own class: an Auto class would ask for trust in the checkpoint's copy of this code.
        feature_extractor = RGMCFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        text_model_id = settings.get("text_model_id")
        if text_model_id:
            kwargs = {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
        else:  # without a configuration it reads config.json and asks for trust again
            kwargs = {**kwargs, "config": PreTrainedConfig()}
        tokenizer = AutoTokenizer.from_pretrained(text_model_id or pretrained_model_name_or_path, **kwargs)
        return cls.from_args_and_dict([feature_extractor, tokenizer], settings, **changes)

    @property
    def separator_token_id(self) -> int:
        """The token that ends a candidate and starts the caption."""
        return separator_token_id(self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)

    def __call__(
        self,
        audio=None,
        candidates: list[str] | list[list[str]] | None = None,
        similarities: list[list[float]] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        **kwargs,
    ) -> BatchFeature:
        """
        Prepares clips, candidates or both.

        Args:
            audio (`Any` or `list`, *optional*):
                One clip or a list of clips: paths, bytes, file objects, or waveforms of shape `(samples,)` or
                `(channels, samples)`.
            candidates (`list[str]` or `list[list[str]]`, *optional*):
                One caption or a list of captions per clip, in place of those that the model would retrieve.
            similarities (`list[list[float]]`, defaults to 1 for each candidate):
                How similar their songs are to the clips, for a model with `candidate_similarity`: at 1, a candidate is
                taken as a caption of the clip itself.
            sampling_rate (`int`, *optional*):
                Rate of the waveforms in Hz. Files state their own.
            return_tensors (`str`, defaults to `"pt"`):
                Only `"pt"`.
            kwargs:
                Further arguments of [`RGMCFeatureExtractor`].

        Returns:
            `BatchFeature` with `input_features` `(B, 1, T, F)` in dB and, if there are candidates, left-padded
            `input_ids` and `attention_mask`, each `(B, L)`.

        Raises:
            `AudioError`: If audio cannot be used.
            `ValueError`: If clips and entries of candidates do not match 1:1, if a candidate is not a text, or if there
            is nothing to process.
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
            listed = [list_captions(entry) for entry in entries]
            prompts = [
                self.encode_prompt(captions, scores) for captions, scores in zip(listed, similarities or repeat(None))
            ]
            if audio is not None and len(prompts) != len(inputs["input_features"]):
                raise ValueError(
                    f"Got {len(inputs['input_features'])} clips but candidates for {len(prompts)}: they must match 1:1"
                )
            inputs["input_ids"], inputs["attention_mask"] = left_pad(prompts, self.tokenizer.pad_token_id)
        return BatchFeature(inputs)

    def encode_candidate(self, caption: str) -> list[int]:
        """Normalises and tokenizes a candidate caption, without a separator."""
        token_ids = self._encode(caption)
        if len(token_ids) > self.max_candidate_length:
            logger.warning_once(
                f"Candidates longer than {self.max_candidate_length} tokens are cut (`max_candidate_length`)"
            )
        return token_ids[: self.max_candidate_length]

    def encode_prompt(self, candidates: list[str], similarities: Sequence[float] | None = None) -> list[int]:
        """
        Tokenizes the decoder's prompt: the candidates, each followed by a separator and, for a model with
        `candidate_similarity`, after the token of its song's similarity (1 by default).
        """
        token_ids = [self.encode_candidate(caption) for caption in candidates]
        similarities = [1.0] * len(candidates) if similarities is None else similarities
        return join_candidates(token_ids, self.separator_token_id, similarities, self.similarity_token_ids)

    @property
    def similarity_token_ids(self) -> list[int]:
        """The ids of `SIMILARITY_TOKENS`, or none where the tokenizer does not have them."""
        known = self.tokenizer.get_added_vocab()
        return [known[token] for token in SIMILARITY_TOKENS if token in known]

    def encode_caption(self, caption: str) -> list[int]:
        """Normalises and tokenizes a caption to be learned, with its EOS; a caption that is cut has none."""
        token_ids = [*self._encode(caption), self.tokenizer.eos_token_id]
        if len(token_ids) > self.max_caption_length:
            logger.warning_once(f"Captions longer than {self.max_caption_length} tokens are cut (`max_caption_length`)")
        return token_ids[: self.max_caption_length]

    def normalize(self, caption: str) -> str:
        """Normalises a caption by the rule of this processor."""
        return normalize_caption(caption, self.caption_normalization)

    def _encode(self, caption: str) -> list[int]:
        return self.tokenizer(self.normalize(caption), add_special_tokens=False)["input_ids"]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_features", "input_ids", "attention_mask"]


RGMCProcessor.register_for_auto_class()
