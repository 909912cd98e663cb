"""Captions files in batches: processes of their own decode the next files while the model works."""

import functools
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from audio_rgmc import OPPOSITE_PHASE, AudioError, AudioWarning, decode_audio, stream_audio
from clips.isolation import run_isolated
from feature_extraction_rgmc import RGMCFeatureExtractor
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor
from span_settings_rgmc import SpanSettings
from spans_rgmc import Levels, find_spans, measure_levels

SILENCE = -70.0  # dB of full scale, root mean square: more than 16-bit dither, less than quiet music
DIGITS = 4  # of scores and similarities: further ones depend on the batch and on the number of threads


@dataclass
class Heard:
    """
    What is heard of a file.

    Args:
        log_mel (`np.ndarray` of shape `(T, F)`): Of the seconds that the model hears, in dB.
        duration (`float`): Of the whole sound, in s.
        flags (`list[str]`):
            `"silence"` below -70 dB of full scale, `"opposite phase"` where the channels cancel each other out, and
            `"short"` for less sound than the model hears, which is then repeated.
    """

    log_mel: np.ndarray
    duration: float
    flags: list[str]


def hear(path: str, feature_extractor: RGMCFeatureExtractor, start: float | None = None) -> Heard | str:
    """Decodes a file, from `start` in s or in its middle; returns the reason if it cannot be used."""
    torch.set_num_threads(1)  # one process per core already
    wanted = feature_extractor.duration
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            waveform, duration = decode_audio(path, start, wanted, feature_extractor.sampling_rate)
        except AudioError as error:
            return _reason(path, error)
        log_mel = feature_extractor(waveform, sampling_rate=feature_extractor.sampling_rate)["input_features"][0, 0]
    kinds = {warning.message.kind for warning in caught if isinstance(warning.message, AudioWarning)}
    level = 20 * math.log10(max(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))), 1e-10))
    flags = {
        "silence": level < SILENCE,
        "opposite phase": OPPOSITE_PHASE in kinds,
        "short": duration - (start or 0.0) < wanted,
    }
    return Heard(log_mel.numpy(), round(duration, 3), [name for name, holds in flags.items() if holds])


class Captioner:
    """
    Captions files with a checkpoint.

    Args:
        name (`str`):
            Folder or Hub id.
        device (`str` or `torch.device`, defaults to `"cpu"`):
            Where the model runs. Files are decoded on the CPU.
        start (`float`, *optional*):
            Where in a file the seconds that are heard begin, in s; by default they are its middle.
        generate_kwargs:
            Arguments of `generate`, such as `selection="consensus"`.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu", start: float | None = None, **generate_kwargs):
        self.name, self.device, self.start, self.generate_kwargs = name, device, start, generate_kwargs
        self.processor = RGMCProcessor.from_pretrained(name)

    @cached_property
    def pipeline(self) -> MusicCaptioningPipeline:
        model = RGMCModel.from_pretrained(self.name).eval()
        return MusicCaptioningPipeline(model=model, processor=self.processor, device=self.device)

    def caption(self, batches: list[list[str]], num_proc: int = 1) -> Iterator[tuple[list[dict], dict[str, str]]]:
        """
        Captions files.

        Args:
            batches (`list[list[str]]`):
                Paths of the files that go through the model together.
            num_proc (`int`, defaults to 1):
                Processes that decode. A file that ends or blocks its process only costs itself.

        Yields:
            `tuple[list[dict], dict[str, str]]`: For each batch, as they become ready, the rows of its files and the
            reasons of those that cannot be used, by path. A row holds `path`, `duration` (s), `caption`, `score`,
            `flags` and `candidates`; `caption` and `score` are None for silence.
        """
        paths = [path for batch in batches for path in batch]
        batch_of = [number for number, batch in enumerate(batches) for _ in batch]
        left = [len(batch) for batch in batches]
        heard: list[dict[str, Heard | str]] = [{} for _ in batches]
        listen = functools.partial(hear, feature_extractor=self.processor.feature_extractor, start=self.start)
        ahead = 2 * max(left, default=0)
        for number, found, problem in read_ahead(run_isolated(listen, paths, num_proc), ahead):
            batch = batch_of[number]
            heard[batch][paths[number]] = problem if found is None else found
            left[batch] -= 1
            if not left[batch]:
                yield self._caption_batch({path: heard[batch][path] for path in batches[batch]})
                heard[batch] = {}

    def spans(
        self,
        paths: list[str],
        settings: SpanSettings | None = None,
        music: dict[str, list[tuple[float, float]]] | None = None,
        detector: Callable[..., Iterable[tuple[float, float]]] | None = None,
        batch_size: int = 16,
        num_proc: int = 1,
        advance: Callable[[str, float], None] = lambda path, share: None,
    ) -> Iterator[tuple[list[dict], dict[str, str]]]:
        """
        Divides files into spans and captions those of music, by [`find_spans`].

        Args:
            paths (`list[str]`):
                The files.
            settings ([`SpanSettings`], *optional*):
                How they are divided.
            music (`dict[str, list[tuple[float, float]]]`, *optional*):
                Starts and ends of what is music, in s, by path; by default all sound is.
            detector (`Callable`, *optional*):
                Called with an iterator over the waveform, float32 arrays of about a second, and its rate in Hz; returns
                such starts and ends.
            batch_size (`int`, defaults to 16):
                Windows or spans that go through the model together.
            num_proc (`int`, defaults to 1):
                Processes that look for silence. A file that ends or blocks its process only costs itself.
            advance (`Callable[[str, float], None]`, *optional*):
                Called with a path and the share of it that has been heard.

        Yields:
            `tuple[list[dict], dict[str, str]]`: For each file, as it becomes ready, its row or the reason why it cannot
            be used. A row holds `path`, `duration` (s) and `spans`.
        """
        measure = functools.partial(_measure, sampling_rate=self.processor.feature_extractor.sampling_rate)
        for number, levels, problem in read_ahead(run_isolated(measure, paths, num_proc), num_proc):
            path, problem = paths[number], levels if isinstance(levels, str) else problem
            if problem is None:
                try:
                    yield [self._file_spans(path, levels, settings, music, detector, batch_size, advance)], {}
                except AudioError as error:
                    problem = _reason(path, error)
            if problem is not None:
                yield [], {path: problem}

    def _file_spans(self, path: str, levels: Levels, settings, music, detector, batch_size, advance) -> dict[str, Any]:
        rate = self.processor.feature_extractor.sampling_rate
        duration = levels.samples / rate
        if detector:
            musical = [(float(start), float(end)) for start, end in detector(stream_audio(path, rate), rate)]
        else:
            musical = music.get(path, []) if music is not None else None
        options = {"levels": levels, "music": musical, "batch_size": batch_size, **self.generate_kwargs}
        spans = find_spans(
            self.pipeline, path, settings, advance=lambda seconds: advance(path, seconds / duration), **options
        )
        for span in spans:
            score = span["score"]
            span |= {"score": score and round(score, DIGITS), "candidates": _candidates(span["candidates"])}
        return {"path": path, "duration": round(duration, 3), "spans": spans}

    def _caption_batch(self, batch: dict[str, Heard | str]) -> tuple[list[dict], dict[str, str]]:
        problems = {path: found for path, found in batch.items() if isinstance(found, str)}
        sounds = {path: found for path, found in batch.items() if isinstance(found, Heard)}
        audible = [path for path, sound in sounds.items() if "silence" not in sound.flags]
        captions: dict[str, dict[str, Any]] = {}
        if audible:
            log_mels = torch.from_numpy(np.stack([sounds[path].log_mel for path in audible]))[:, None]  # (B, 1, T, F)
            outputs = self.pipeline.forward({"input_features": log_mels}, **self.generate_kwargs)
            captions = dict(zip(audible, outputs["clips"], strict=True))
        return [_row(path, sound, captions.get(path)) for path, sound in sounds.items()], problems


def _row(path: str, sound: Heard, said: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "path": path,
        "duration": sound.duration,
        "caption": said["caption"] if said else None,
        "score": round(said["score"], DIGITS) if said else None,
        "flags": sound.flags,
        "candidates": _candidates(said["candidates"] if said else ()),
    }


def _candidates(shown: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: candidate[name] for name in ("text", "id", "similarity", "source", "license")}
        | {"similarity": round(candidate["similarity"], DIGITS)}
        for candidate in shown
    ]


def _measure(path: str, sampling_rate: int) -> Levels | str:
    try:
        return measure_levels(path, sampling_rate)
    except AudioError as error:
        return _reason(path, error)


def _reason(path: str, error: AudioError) -> str:
    return str(error).removeprefix(f"{path!r}: ")


def read_ahead(items: Iterable, size: int) -> Iterator:
    """Yields the items of a generator, up to `size` of which a thread takes from it in advance."""
    items, end = iter(items), object()
    first = next(items, end)  # in this thread: here processes are forked before the model is loaded
    if first is end:
        return
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(size))
        try:
            while first is not end:
                yield first
                first = waiting.popleft().result()
                waiting.append(thread.submit(next, items, end))
        finally:
            for future in waiting:
                future.cancel()
            thread.submit(items.close)
