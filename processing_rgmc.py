"""
Processor of RGMC: audio to log-mel spectrograms, candidate captions to decoder prompts, tokens to captions; and the
`music-captioning` pipeline, from files to captions.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    AutoTokenizer,
    BatchFeature,
    Pipeline,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging

try:
    # Of a local folder, transformers 5.6 copies what is imported here, and not what that imports in its turn.
    from .configuration_rgmc import RGMCConfig  # noqa: F401
    from .feature_extraction_rgmc import RGMCFeatureExtractor, is_one_sound
    from .model_card_rgmc import HUB_ARGUMENTS, PushesCheckpoint, model_card
    from .retrieval_rgmc import join_candidates, left_pad
except ImportError:
    from feature_extraction_rgmc import RGMCFeatureExtractor, is_one_sound
    from model_card_rgmc import HUB_ARGUMENTS, PushesCheckpoint, model_card
    from retrieval_rgmc import join_candidates, left_pad

logger = logging.get_logger(__name__)


NORMALIZATIONS = ("paper", "music")
MUSICAL = "/&#♭'"  # what `music` keeps in its place
SPELLINGS = str.maketrans({**dict.fromkeys("`\u00b4\u2018\u2019\u02bc\u2032\uff07", "'"), "♯": "#"})  # of one character


def normalize_caption(caption: str, normalization: str = "paper") -> str:
    """
    The one form of a caption for training, retrieval and scoring: lower case, without punctuation and symbols (the
    Unicode categories P and S), white space collapsed. An accented letter is one character (NFC), however it was typed.
    What cannot be seen (category Cf: zero-width and bidirectional marks, soft hyphens; variation selectors) is removed,
    also the zero-width joiners of Persian and Indic spelling: with them, one word would be two to the tokenizer.

    Args:
        caption (`str`)
        normalization (`str`, defaults to `"paper"`):
            - `"paper"` (section 5) deletes all punctuation: `"Mid-range, 90's R&B in C#, 4/4!"` becomes `"midrange 90s
              rb in c 44"`.
            - `"music"` keeps what musicians write: `"mid range 90's r&b in c# 4/4"`. Hyphens, dashes and slashes are
              spaces, but for a slash between digits; `&` and the apostrophe, whichever was typed, stay within a word;
              `#` and ♯ stay after a note's letter that begins a word, and ♭ is a `b` there. All else is deleted.

    Returns:
        `str`; normalised again it stays what it is.

    Raises:
        `ValueError`: for another rule.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization {normalization!r}: expected one of {', '.join(NORMALIZATIONS)}")
    letters = "".join(character for character in caption.lower() if not _is_invisible(character))
    letters = unicodedata.normalize("NFC", letters)
    kept = MUSICAL if normalization == "music" else ""
    if normalization == "music":
        letters = letters.translate(SPELLINGS)
        letters = "".join(" " if unicodedata.category(letter) == "Pd" else letter for letter in letters)
    letters = "".join(letter for letter in letters if letter in kept or unicodedata.category(letter)[0] not in "PS")
    letters = unicodedata.normalize("NFC", letters)
    if normalization == "music":
        letters = re.sub(r"(?<!\d)/|/(?!\d)", " ", letters)
        letters = re.sub(r"(?<!\w)[&']|[&'](?!\w)", "", letters)
        letters = re.sub(r"(?<=(?<!\S)[a-g])♭", "b", letters)
        letters = re.sub(r"(?<!(?<!\S)[a-g])#|♭", "", letters)
    return " ".join(unicodedata.normalize("NFC", letters).split())


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def list_captions(entry: str | Iterable[str]) -> list[str]:
    """A clip's candidates, one or several, as a list."""
    captions = [entry] if isinstance(entry, str) or not isinstance(entry, Iterable) else list(entry)
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"The candidates of a clip are a caption or a list of captions, got {entry!r}")
    return captions


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
        """Token that ends a candidate and starts the caption: BOS, or EOS where the tokenizer has no BOS."""
        bos_token_id = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos_token_id is None else bos_token_id

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
            prompts = [self.encode_prompt(list_captions(entry)) for entry in ([candidates] if one else candidates)]
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


CANDIDATE = ("id", "text", "similarity", "source", "license")


@dataclass
class Clip:
    """A sound, and the captions that the decoder is shown with it."""

    audio: Any
    candidates: str | list[str]


class Stream(IterableDataset):
    """Clips one by one, as they come: of a generator, transformers 5.6 would collect them all first."""

    def __init__(self, clips: Iterable):
        self.clips = clips

    def __iter__(self):
        return iter(self.clips)


class MusicCaptioningPipeline(PushesCheckpoint, Pipeline):
    """
    Captions music: `pipeline("music-captioning", model=checkpoint, trust_remote_code=True)`.

    Every argument of `generate` can be given to `pipeline(...)`, or to a call, which wins. What is given in neither is
    as the checkpoint's own generation configuration says.
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __call__(
        self, inputs: Any, candidates: str | list[str] | Iterable[str | list[str]] | None = None, **kwargs
    ) -> dict[str, Any] | Iterable[dict[str, Any]]:
        """
        Args:
            inputs:
                One clip, as [`RGMCFeatureExtractor`] takes it (a local path, bytes, a file, an array, a dict), or a
                list, generator, or dataset of clips. URLs are not fetched.
            candidates (*optional*):
                Captions for the decoder in place of those that it would retrieve: a caption or a list of captions for
                one clip; for several clips, one entry of this kind for each.
            sampling_rate (`int`, *optional*): Of arrays, in Hz.
            batch_size (`int`, defaults to 1): Clips that are captioned at once.
            generate_kwargs (`dict`, *optional*): Arguments of `generate`, which may also be given directly.

        Returns:
            For a clip a dict, for a list a list of dicts, else an iterator over dicts:

            - `caption` (`str`);
            - `score` (`float`): the mean log probability of the caption's tokens, its end included, given the sound and
              the candidates; after a beam search this is the `sequences_scores` of `generate`;
            - `candidates` (`list[dict]`): the captions that the decoder was shown, the most similar first, as `text`,
              with `id`, `similarity` (dot product, -1 to 1), `source` and `license` in the datastore; all but `text`
              are `None` where they were given, the last two also where the datastore does not know them.

        Raises:
            `AudioError`: for audio that cannot be used; `ValueError`: when there is not one entry of candidates per
            clip.
        """
        listed = isinstance(inputs, (list, tuple))
        one = is_one_sound(inputs) and not isinstance(inputs, Dataset)
        if candidates is not None:
            if not self.model.config.uses_candidate:
                raise ValueError("This model captions from the audio alone: it was not trained to read `candidates`")
            if one:
                return super().__call__(Clip(inputs, candidates), **kwargs)
            entries = [candidates] if isinstance(candidates, str) else candidates
            if isinstance(inputs, Sized) and isinstance(entries, Sized) and len(inputs) != len(entries):
                raise ValueError(f"Got {len(inputs)} clips but candidates for {len(entries)}: they must match 1:1")
            inputs = (Clip(audio, entry) for audio, entry in zip(inputs, entries, strict=True))
        if listed:
            inputs = list(inputs)
            return super().__call__(inputs, **kwargs) if inputs else []
        if not one and not isinstance(inputs, Dataset):
            inputs = Stream(inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, sampling_rate=None, generate_kwargs=None, **kwargs):
        preprocess = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
        return preprocess, {**(generate_kwargs or {}), **kwargs}, {}

    def preprocess(self, clip: Any, sampling_rate: int | None = None) -> dict[str, Any]:
        if not isinstance(clip, Clip):
            return dict(self.processor(audio=[clip], sampling_rate=sampling_rate))
        given = tuple(list_captions(clip.candidates))
        inputs = self.processor(audio=[clip.audio], candidates=[given], sampling_rate=sampling_rate)
        return {**inputs, "candidates": given}

    def _forward(self, inputs: dict[str, Any], **generate_kwargs) -> dict[str, list[dict[str, Any]]]:
        model = self.model
        audio_embeds = model.embed_audio(inputs["input_features"])
        if "candidates" in inputs:
            given = inputs["candidates"]
            given = [given] if isinstance(given, tuple) else given  # of one clip, or of a batch
            shown = [[dict.fromkeys(CANDIDATE) | {"text": text} for text in texts] for texts in given]
            prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        else:
            found = model.retrieve(audio_embeds) if model.retrieves else None
            shown = [[] for _ in audio_embeds]
            if found:
                fields = zip(found.ids, found.captions, found.similarities, found.sources, found.licenses)
                shown = [[dict(zip(CANDIDATE, candidate)) for candidate in zip(*of_clip)] for of_clip in fields]
            prompt = dict(zip(("input_ids", "attention_mask"), model.prompt_ids(audio_embeds, found)))
        tokens = model.generate(audio_embeds=audio_embeds, **prompt, **generate_kwargs)
        if len(tokens) != len(audio_embeds):
            raise ValueError(
                f"`generate` made {len(tokens)} captions of {len(audio_embeds)} clips, but the pipeline returns one of "
                "each: leave out `num_return_sequences`"
            )
        scores = self._score(tokens, audio_embeds, **prompt)
        captions = self.processor.batch_decode(tokens, skip_special_tokens=True)
        clips = zip(captions, scores.tolist(), shown)
        return {
            "clips": [{"caption": text, "score": score, "candidates": candidates} for text, score, candidates in clips]
        }

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        clips = outputs["clips"]
        return clips[0] if isinstance(clips, list) else clips  # transformers takes batches apart

    def _score(
        self, tokens: torch.Tensor, audio_embeds: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """
        Mean log probability `(B,)` of each caption's tokens `(B, L)` up to its EOS, in one pass: `generate` would keep
        the scores of every word in every beam at every step.
        """
        ends = torch.isin(tokens, torch.tensor(self.model.generation_config.eos_token_id, device=tokens.device))
        kept = (ends.cumsum(1) - ends.long() == 0).long()  # padding comes after the first EOS
        logits = self.model(
            input_ids=torch.cat([input_ids, tokens], dim=1),
            attention_mask=torch.cat([attention_mask, kept], dim=1),
            audio_embeds=audio_embeds,
            logits_to_keep=tokens.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]  # (B, L, vocabulary)
        chosen = logits.float().log_softmax(-1).gather(2, tokens.unsqueeze(2)).squeeze(2)  # (B, L)
        return (chosen * kept).sum(1) / kept.sum(1)

    def save_pretrained(self, save_directory: str, push_to_hub: bool = False, **kwargs):
        """
        Writes the whole checkpoint: model, datastore, processor, code, and a card where the folder has none. With
        `push_to_hub` it is pushed, too, as [`~PushesCheckpoint.push_to_hub`] does it; without a `repo_id` it takes the
        name of the folder.
        """
        hub_kwargs = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        name = os.path.basename(os.path.normpath(save_directory))
        card = os.path.join(save_directory, "README.md")
        if not os.path.exists(card):
            with open(card, "w", encoding="utf-8") as file:
                file.write(model_card(name, self.model.config))
        if push_to_hub:
            self.push_to_hub(**{"repo_id": name, **hub_kwargs})
