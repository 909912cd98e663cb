"""The `music-captioning` pipeline: from files to captions."""

import os
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

try:
    from .attribution_rgmc import caption_log_probs, caption_mask
    from .audio_rgmc import AudioError, is_one_sound
    from .captions_rgmc import list_captions, most_central, normalize_caption, present_caption
    from .configuration_rgmc import RGMCConfig  # noqa: F401
    from .feature_extraction_rgmc import RGMCFeatureExtractor  # noqa: F401
    from .generation_rgmc import prompt_of_neighbor  # noqa: F401
    from .hearing_rgmc import hear, path_of
    from .model_card_rgmc import HUB_ARGUMENTS, PushesCheckpoint, model_card
    from .noise_rgmc import find_noise  # noqa: F401
    from .span_settings_rgmc import SpanSettings
    from .spans_rgmc import find_spans
except ImportError:
    from attribution_rgmc import caption_log_probs, caption_mask
    from audio_rgmc import AudioError, is_one_sound
    from captions_rgmc import list_captions, most_central, normalize_caption, present_caption
    from hearing_rgmc import hear, path_of
    from model_card_rgmc import HUB_ARGUMENTS, PushesCheckpoint, model_card
    from span_settings_rgmc import SpanSettings
    from spans_rgmc import find_spans

TASK = "music-captioning"
CANDIDATE = ("id", "text", "similarity", "source", "license")
PROMPT = ("input_ids", "attention_mask")
WINDOWS = 32  # that go through the model together, or one for each clip of a larger batch


@dataclass
class Clip:
    """A sound and the captions that the decoder is given with it."""

    audio: Any
    candidates: Any  # a caption or an iterable of captions, which `list_captions` checks


class Stream(IterableDataset):
    """Yields clips one by one: from a generator, transformers 5.6 would collect them all first."""

    def __init__(self, clips: Iterable):
        self.clips = clips

    def __iter__(self):
        return iter(self.clips)


class MusicCaptioningPipeline(PushesCheckpoint, Pipeline):
    """
    Captions music: `pipeline("music-captioning", model=checkpoint, trust_remote_code=True)`.

    Every argument of `generate` can be given to `pipeline(...)` or to a call; the call wins. By default the generation
    configuration of the checkpoint applies.
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __call__(
        self,
        inputs: Any,
        candidates: str | list[str] | Iterable[str | list[str]] | None = None,
        spans: bool | dict[str, Any] = False,
        **kwargs,
    ) -> dict[str, Any] | Iterable[dict[str, Any]] | list[list[dict[str, Any]]]:
        """
        Captions one or several clips.

        Args:
            inputs (`Any` or `Iterable`):
                One clip, as [`RGMCFeatureExtractor`] takes it (a local path, bytes, a file, an array, a dict), or a
                list, generator or dataset of clips. URLs are not fetched.
            candidates (`str`, `list[str]` or `Iterable`, *optional*):
                Captions for the decoder in place of those it would retrieve: for one clip a caption or a list of
                captions, for several clips one such entry each.
            spans (`bool` or `dict`, defaults to `False`):
                Whether to divide whole files into spans of music and silence and caption each; a dict holds fields of
                [`SpanSettings`].
            sampling_rate (`int`, *optional*):
                Rate of arrays in Hz.
            batch_size (`int`, defaults to 1):
                Clips that are captioned at once.
            start (`float`, *optional*):
                Second where the part that is heard begins.
            where (`str` or `int`, defaults to `"middle"`):
                What is heard instead of the middle 10 s: `"whole"`, or a number of windows of 10 s, spread evenly. Each
                window is captioned, and the caption that is most similar to the others is taken.
            errors (`str`, *optional*):
                `"raise"` to raise an error for a clip that cannot be used; `"return"` to return it as the clip's
                `error`. By default the error of a single clip is raised, and one of several is returned.
            explain (`bool`, defaults to `False`):
                Whether to say of each word what the sound and the candidates add to it.
            generate_kwargs (`dict`, *optional*):
                Arguments of `generate`, such as `selection="consensus"`. They can also be given directly.

        Returns:
            `dict` for a clip, `list[dict]` for a list, else an iterator over dicts:

            - `path` (`str`), `duration` (`float`, s), `start` (`float`, s): of the file, if it is one; of the whole
              sound; and where the window of the caption begins;
            - `caption` (`str`): as [`present_caption`] writes it, None for silence and for steady noise;
            - `score` (`float`): mean log probability of the caption's tokens and its end, given the sound and the
              candidates; after a beam search this equals the `sequences_scores` of `generate`; None without a caption;
            - `flags` (`list[str]`): `"silence"`, `"no music"`, `"opposite phase"`, `"short"` and `"decoded from its
              start"`, as [`Heard`] says;
            - `candidates` (`list[dict]`): the captions that the decoder was given, the most similar first, each with
              `text` (in the corpus's wording, where the datastore has it), `id`, `similarity` (dot product, -1 to 1),
              and the `source` and `license` of the datastore. All but `text` are `None` for candidates from the caller;
              `source` and `license` also if not known;
            - `alternatives` (`list[dict]`): with `num_return_sequences=n`, the n best captions and their scores, the
              caption itself first;
            - `explanation` (`dict`): with `explain`, what [`Explanation.to_dict`] returns; None for silence;
            - `error` (`str`): why the clip cannot be used; None for one that can.

            With `spans`, what [`find_spans`] returns for a file, or a list of it for several.

        Raises:
            `AudioError`: If audio cannot be used.
            `ValueError`: If clips and entries of candidates do not match 1:1, if the model reads no candidates, or for
            another `where` or `errors`.
        """
        if spans or isinstance(spans, dict):  # also {}: all fields have defaults
            if candidates is not None:
                raise ValueError("each span has candidates of its own: leave out `candidates` or `spans`")
            if unused := {"sampling_rate", "start", "where", "errors", "explain"} & kwargs.keys():
                raise ValueError(f"`spans` are of whole files: leave out {', '.join(sorted(unused))}")
            return self._spans(inputs, SpanSettings(**(spans if isinstance(spans, dict) else {})), **kwargs)
        listed = isinstance(inputs, (list, tuple))
        one = is_one_sound(inputs) and not isinstance(inputs, Dataset)
        if "errors" not in self._preprocess_params:
            kwargs.setdefault("errors", "raise" if one else "return")
        if candidates is not None:
            if not self.model.config.uses_candidate:
                raise ValueError("This model captions from the audio alone: leave out `candidates`")
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

    def _spans(
        self, files: Any, settings: SpanSettings, batch_size: int | None = None, **kwargs
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        generate_kwargs = {**self._forward_params, **self._sanitize_parameters(**kwargs)[1]}
        size = batch_size or self._batch_size or 1
        if is_one_sound(files):
            return find_spans(self, files, settings, batch_size=size, **generate_kwargs)
        return [find_spans(self, file, settings, batch_size=size, **generate_kwargs) for file in files]

    def _sanitize_parameters(self, generate_kwargs=None, **kwargs):
        names = ("sampling_rate", "start", "where", "errors")
        preprocess = {name: kwargs.pop(name) for name in names if name in kwargs}
        if preprocess.get("errors") not in (None, "raise", "return"):
            raise ValueError(f"errors={preprocess['errors']!r}: expected 'raise' or 'return'")
        return preprocess, {**(generate_kwargs or {}), **kwargs}, {}

    def preprocess(
        self,
        clip: Any,
        sampling_rate: float | None = None,
        start: float | None = None,
        where: str | int = "middle",
        errors: str = "raise",
    ) -> dict[str, Any]:
        inputs = {}
        if isinstance(clip, Clip):
            given = tuple(list_captions(clip.candidates))
            inputs = {**self.processor(candidates=[given]), "candidates": given}
            clip = clip.audio
        about: dict[str, Any] = {"path": path_of(clip), "duration": None, "flags": [], "error": None, "starts": []}
        extractor = self.processor.feature_extractor
        try:
            heard = hear(clip, extractor, start, where, sampling_rate)
        except AudioError as error:
            if errors == "raise":
                raise
            frames = 1 + round(extractor.duration * extractor.sampling_rate) // extractor.hop_length
            nothing = torch.empty(0, 1, frames, extractor.feature_size)
            return {"input_features": nothing, "about": about | {"error": str(error)}, **inputs}
        about |= {"duration": heard.duration, "flags": heard.flags, "starts": heard.starts}
        return {"input_features": torch.from_numpy(heard.log_mels)[:, None], "about": about, **inputs}

    def _forward(
        self, inputs: dict[str, Any], explain: bool = False, **generate_kwargs
    ) -> dict[str, list[dict[str, Any]]]:
        about = inputs["about"]
        about = [about] if isinstance(about, dict) else about  # one clip, or a batch
        counts = torch.tensor([len(clip["starts"]) for clip in about])  # windows of each clip
        given = inputs.get("candidates")
        given = [given] if isinstance(given, tuple) else given
        clip_of = torch.arange(len(about)).repeat_interleave(counts)
        said: list[dict[str, Any]] = []
        for windows in torch.arange(len(clip_of)).split(max(WINDOWS, len(about))) if len(clip_of) else ():
            prompt = {}
            if given is not None:
                clips = clip_of[windows]
                prompt = {name: inputs[name][clips.to(inputs[name].device)] for name in PROMPT}
                prompt["candidates"] = [given[clip] for clip in clips]
            said += self._caption(inputs["input_features"][windows], prompt, explain, generate_kwargs)
        clips = [_result(clip, list(windows)) for clip, windows in zip(about, _cut(said, counts.tolist()))]
        return {"clips": [{**clip, "explanation": clip.get("explanation")} for clip in clips] if explain else clips}

    def _caption(
        self, input_features: torch.Tensor, prompt: dict[str, Any], explain: bool, generate_kwargs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """
        Captions windows `(B, 1, T, F)`: for each a dict of `caption`, `score`, `candidates`, `alternatives` and, with
        `explain`, `explanation`.
        """
        model = self.model
        audio_embeds = model.embed_audio(input_features)
        if prompt:
            shown = [[dict.fromkeys(CANDIDATE) | {"text": text} for text in texts] for texts in prompt["candidates"]]
            ids = {name: prompt[name] for name in PROMPT}
        else:
            found = model.retrieve(audio_embeds) if model.retrieves else None
            shown = [[] for _ in audio_embeds]
            if found:
                texts = [
                    [original or text for original, text in zip(*both)] for both in zip(found.originals, found.captions)
                ]
                fields = zip(found.ids, texts, found.similarities, found.sources, found.licenses)
                shown = [[dict(zip(CANDIDATE, candidate)) for candidate in zip(*of_clip)] for of_clip in fields]
            ids = dict(zip(PROMPT, model.prompt_ids(audio_embeds, found)))
        consensus = (generate_kwargs.get("selection") or model.config.selection) == "consensus"
        traced = explain and consensus and not prompt  # to the song that each caption was written from
        further_options = {"tokenizer": self.processor.tokenizer, "return_neighbors": traced} if consensus else {}
        given_prompt = {} if consensus and not prompt else ids  # a consensus retrieves more songs
        tokens = model.generate(audio_embeds=audio_embeds, **given_prompt, **{**generate_kwargs, **further_options})
        tokens, neighbors = tokens if traced else (tokens, None)
        each = len(tokens) // len(audio_embeds)  # captions of a window: `num_return_sequences`
        further: list[dict[str, Any]] = [{} for _ in shown]
        if explain:
            told = {"neighbors": neighbors[::each]} if traced else ids
            explained = model.explain(audio_embeds=audio_embeds, tokens=tokens[::each], **told)
            further = [{"explanation": found.to_dict(self.processor.tokenizer)} for found in explained]
        ids = {name: rows.repeat_interleave(each, 0) for name, rows in ids.items()}
        scores = self._score(tokens, audio_embeds.repeat_interleave(each, 0), **ids).tolist()
        spellings = {} if model.datastore is None else model.datastore.spellings
        captions = [
            present_caption(text, spellings, self.processor.caption_normalization)
            for text in self.processor.batch_decode(tokens, skip_special_tokens=True)
        ]
        alternatives = [{"caption": text, "score": score} for text, score in zip(captions, scores)]
        return [
            {**best, "candidates": candidates, "alternatives": [best, *others] if others else [], **more}
            for (best, *others), candidates, more in zip(_cut(alternatives, [each] * len(shown)), shown, further)
        ]

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        clips = outputs["clips"]
        return clips[0] if isinstance(clips, list) else clips  # transformers splits batches

    def _score(
        self, tokens: torch.Tensor, audio_embeds: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """
        Computes the mean log probability `(B,)` of each caption's tokens `(B, L)` up to its EOS. One pass does it;
        `generate` would keep the scores of every word in every beam at every step.
        """
        log_probs = caption_log_probs(self.model, tokens, audio_embeds, input_ids, attention_mask)
        return log_probs.sum(1) / caption_mask(self.model, tokens).sum(1)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, push_to_hub: bool = False, **kwargs):
        """
        Saves the whole checkpoint: model, datastore, processor, code, and a card if the folder has none.

        Args:
            save_directory (`str`):
                Folder to write into; made if needed.
            push_to_hub (`bool`, defaults to `False`):
                Whether to push it as well, as [`~PushesCheckpoint.push_to_hub`] does.
            kwargs:
                Arguments of [`~PushesCheckpoint.push_to_hub`], where `repo_id` defaults to the name of the folder, and
                of `PreTrainedModel.save_pretrained`.
        """
        hub_kwargs = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        self.model.save_pretrained(save_directory, *args, **kwargs)
        self.processor.save_pretrained(save_directory)
        name = os.path.basename(os.path.normpath(save_directory))
        card = os.path.join(save_directory, "README.md")
        if not os.path.exists(card):
            with open(card, "w", encoding="utf-8") as file:
                file.write(model_card(name, self.model.config))
        if push_to_hub:
            self.push_to_hub(**{"repo_id": name, **hub_kwargs})


def _cut(items: list, sizes: list[int]) -> Iterator[list]:
    """Cuts a list into lists of these sizes."""
    left = iter(items)
    return (list(islice(left, size)) for size in sizes)


def _result(about: dict[str, Any], windows: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a clip: of its windows, the one whose caption is most similar to those of the others."""
    found = {"path": about["path"], "duration": about["duration"], "start": None, "caption": None, "score": None}
    found |= {"flags": about["flags"], "candidates": [], "alternatives": [], "error": about["error"]}
    if windows:
        chosen = most_central([normalize_caption(window["caption"]).split() for window in windows])
        found |= {"start": about["starts"][chosen], **windows[chosen]}
    return found


# For `pipeline("music-captioning", model=model, processor=processor)`. Each checkpoint brings a copy of this code; the
# one loaded last replaces the one before, without the warning of `register_pipeline`.
PIPELINE_REGISTRY.to_dict().pop(TASK, None)
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=MusicCaptioningPipeline, pt_model=AutoModel)
