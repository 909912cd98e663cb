"""Captions files in batches: processes of their own decode the next files while the model works."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch

from audio_rgmc import AudioError, stream_audio
from captions.formats import EXPLANATION, SAID, SCHEMA
from clips.int8 import quantize_decoder
from clips.isolation import run_isolated
from feature_extraction_rgmc import RGMCFeatureExtractor
from hearing_rgmc import Heard, hear
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor
from span_settings_rgmc import SpanSettings
from spans_rgmc import Levels, find_spans, measure_levels

DIGITS = 4  # of scores and similarities: further ones depend on the batch and on the number of threads


def listen(
    path: str, feature_extractor: RGMCFeatureExtractor, start: float | None = None, where: str | int = "middle"
) -> Heard | str:
    """Decodes a file as [`hear`] does; returns the reason if it cannot be used."""
    torch.set_num_threads(1)  # one process per core already
    try:
        return hear(path, feature_extractor, start, where)
    except AudioError as error:
        return _reason(path, error)


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
        where (`str` or `int`, defaults to `"middle"`):
            What is heard of a file, as in [`hear`].
        int8 (`bool`, defaults to `False`):
            Whether the decoder is quantised, as [`quantize_decoder`] does.
        generate_kwargs:
            Arguments of `generate`, such as `selection="consensus"`; `explain=True` adds explanations to the rows.
    """

    def __init__(
        self,
        name: str,
        device: str | torch.device = "cpu",
        start: float | None = None,
        where: str | int = "middle",
        int8: bool = False,
        **generate_kwargs,
    ):
        self.name, self.device, self.int8, self.generate_kwargs = name, device, int8, generate_kwargs
        self.start, self.where = start, where
        self.said: dict[str, dict[str, Any]] = {}
        self.processor = RGMCProcessor.from_pretrained(name)

    @cached_property
    def pipeline(self) -> MusicCaptioningPipeline:
        model = RGMCModel.from_pretrained(self.name).eval()
        if self.int8:
            quantize_decoder(model)
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
            reasons of those that cannot be used, by path. A row holds `path`, `duration` (s), `start` (s), `caption`,
            `score`, `flags`, `candidates`, `alternatives` and `audio`, the digest of what was heard; `start`, `caption`
            and `score` are None for silence and for steady noise. The same audio is captioned once.
        """
        paths = [path for batch in batches for path in batch]
        batch_of = [number for number, batch in enumerate(batches) for _ in batch]
        left = [len(batch) for batch in batches]
        heard: list[dict[str, Heard | str]] = [{} for _ in batches]
        settings = {"start": self.start, "where": self.where}
        decode = functools.partial(listen, feature_extractor=self.processor.feature_extractor, **settings)
        ahead = 2 * max(left, default=0)
        for number, found, problem in read_ahead(run_isolated(decode, paths, num_proc), ahead):
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
                Starts and ends of what is music, in s, by path; by default all sound but steady noise is.
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
        new = {sound.digest: sound for sound in sounds.values() if len(sound.starts) and sound.digest not in self.said}
        if new:
            log_mels = torch.from_numpy(np.concatenate([sound.log_mels for sound in new.values()]))[:, None]
            about = [{"path": None, **_about(sound), "error": None, "starts": sound.starts} for sound in new.values()]
            outputs = self.pipeline.forward({"input_features": log_mels, "about": about}, **self.generate_kwargs)
            self.said |= zip(new, map(_rounded, outputs["clips"]), strict=True)
        return [_row(path, sound, self.said.get(sound.digest)) for path, sound in sounds.items()], problems

    def remember(self, rows: Iterable[dict[str, Any]]):
        """Takes the captions of rows for the same audio as theirs, if they have the explanation that is asked for."""
        names = ("start", *SAID, *([EXPLANATION] if self.generate_kwargs.get("explain") else []))
        self.said |= {
            row["audio"]: {name: row[name] for name in names}
            for row in rows
            if row["caption"] is not None and {*names} <= {*row}
        }


def _about(sound: Heard) -> dict[str, Any]:
    return {"duration": sound.duration, "flags": sound.flags}


def _rounded(result: dict[str, Any]) -> dict[str, Any]:
    alternatives = [other | {"score": round(other["score"], DIGITS)} for other in result["alternatives"]]
    score = round(result["score"], DIGITS)
    return {name: result[name] for name in ("start", *SAID)} | {
        "score": score,
        "candidates": _candidates(result["candidates"]),
        "alternatives": alternatives,
        **({EXPLANATION: _round_all(result[EXPLANATION])} if EXPLANATION in result else {}),
    }


def _round_all(value: Any) -> Any:
    """Rounds all numbers in dicts and lists."""
    if isinstance(value, dict):
        return {name: _round_all(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [*map(_round_all, value)]
    return round(value, DIGITS) if isinstance(value, float) else value


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


NOTHING = {"start": None, "caption": None, "score": None, "candidates": [], "alternatives": []}


def _row(path: str, sound: Heard, said: dict[str, Any] | None) -> dict[str, Any]:
    start = {"start": sound.starts[0]} if len(sound.starts) == 1 else {}  # its own, in a longer file of the same audio
    row = {"path": path, **_about(sound), **(said or NOTHING), **start, "audio": sound.digest}
    return {name: row[name] for name in (*SCHEMA.names, EXPLANATION) if name in row}


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
