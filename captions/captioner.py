"""Captions files in batches: processes of their own decode the next files while the model works."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch

from audio_rgmc import AudioError
from captions.formats import SAID, SCHEMA
from clips.isolation import run_isolated
from feature_extraction_rgmc import RGMCFeatureExtractor
from hearing_rgmc import Heard, hear
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor

DIGITS = 4  # of scores and similarities: further ones depend on the batch and on the number of threads


def listen(
    path: str, feature_extractor: RGMCFeatureExtractor, start: float | None = None, where: str | int = "middle"
) -> Heard | str:
    """Decodes a file as [`hear`] does; returns the reason if it cannot be used."""
    torch.set_num_threads(1)  # one process per core already
    try:
        return hear(path, feature_extractor, start, where)
    except AudioError as error:
        return str(error).removeprefix(f"{path!r}: ")


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
        generate_kwargs:
            Arguments of `generate`, such as `selection="consensus"`.
    """

    def __init__(
        self,
        name: str,
        device: str | torch.device = "cpu",
        start: float | None = None,
        where: str | int = "middle",
        **generate_kwargs,
    ):
        self.name, self.device, self.generate_kwargs = name, device, generate_kwargs
        self.start, self.where = start, where
        self.said: dict[str, dict[str, Any]] = {}
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
            reasons of those that cannot be used, by path. A row holds `path`, `duration` (s), `start` (s), `caption`,
            `score`, `flags`, `candidates`, `alternatives` and `audio`, the digest of what was heard; `start`, `caption`
            and `score` are None for silence. The same audio is captioned once.
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
        """Takes the captions of rows for the same audio as theirs."""
        self.said |= {
            row["audio"]: {name: row[name] for name in ("start", *SAID)} for row in rows if row["caption"] is not None
        }


def _about(sound: Heard) -> dict[str, Any]:
    return {"duration": sound.duration, "flags": sound.flags}


def _rounded(result: dict[str, Any]) -> dict[str, Any]:
    candidates = [
        {name: candidate[name] for name in ("text", "id", "similarity", "source", "license")}
        | {"similarity": round(candidate["similarity"], DIGITS)}
        for candidate in result["candidates"]
    ]
    alternatives = [other | {"score": round(other["score"], DIGITS)} for other in result["alternatives"]]
    score = round(result["score"], DIGITS)
    return {name: result[name] for name in ("start", *SAID)} | {
        "score": score,
        "candidates": candidates,
        "alternatives": alternatives,
    }


NOTHING = {"start": None, "caption": None, "score": None, "candidates": [], "alternatives": []}


def _row(path: str, sound: Heard, said: dict[str, Any] | None) -> dict[str, Any]:
    start = {"start": sound.starts[0]} if len(sound.starts) == 1 else {}  # its own, in a longer file of the same audio
    row = {"path": path, **_about(sound), **(said or NOTHING), **start, "audio": sound.digest}
    return {name: row[name] for name in SCHEMA.names if name in row}


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
