"""
Measures how fast a library is captioned: the way of `caption.py` against captioning one file after the other.

    python -m benchmarks.captioning --model outputs/demo --music my_music

prints a table and writes `benchmarks/results/captioning.json`. (a) is the loop that captioners come with: decode the
whole file, resample it, cut out its middle 10 s, compute the log-mel, and search with beams; one file at a time. (b) is
`captions.captioner.Captioner`, which `caption.py` runs: other processes decode the next files while the model captions
a batch. Both have loaded the same checkpoint, use its generation settings and all CPUs, and take turns; the median of
the rounds counts. (b) is also run with other batches and processes, and all captions are compared.

Name a folder of whole tracks, as people have them: for short clips there is less to save.

    python -m benchmarks.captioning --model outputs/demo --music my_music --memory

measures instead how much memory `caption.py --spans` takes at most for 10 minutes and for 2 hours of the same music,
each in a process of its own, with the process that decodes; `benchmarks/results/captioning-memory.json`.
"""

from clips import threads  # noqa: F401

# isort: split
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
import torch

from audio_rgmc import stream_audio
from captions.captioner import Captioner
from captions.inputs import find_inputs
from clips.options import available_cpus

RESULTS = Path(__file__).parent / "results" / "captioning.json"
MEMORY = RESULTS.with_name("captioning-memory.json")
LENGTHS = {"10 min": 600, "2 h": 7200}  # s
RATE = 48_000
Captions = dict[str, str | None]


def load_whole(path: str, sampling_rate: int, seconds: float) -> np.ndarray:
    """Decodes and resamples a whole file, and cuts out its middle: mono samples of up to `seconds`."""
    with av.open(path, metadata_errors="ignore") as container:
        rate = container.streams.audio[0].rate
        resampler = av.AudioResampler(format="fltp")
        frames = (frame for decoded in container.decode(audio=0) for frame in resampler.resample(decoded))
        samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1).mean(0)
    samples = soxr.resample(samples, rate, sampling_rate, "HQ")
    first = max(0, (len(samples) - round(seconds * sampling_rate)) // 2)
    return samples[first:][: round(seconds * sampling_rate)]


def one_by_one(captioner: Captioner, paths: list[str]) -> Captions:
    extractor = captioner.processor.feature_extractor
    rate, seconds = extractor.sampling_rate, extractor.duration
    captions = {}
    for path in paths:
        captions[path] = captioner.pipeline(load_whole(path, rate, seconds), sampling_rate=rate)["caption"]
    return captions


def as_a_library(captioner: Captioner, paths: list[str], batch_size: int, num_proc: int) -> Captions:
    captioner.said = {}  # what it has heard in an earlier round
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    rows = [row for found, _ in captioner.caption(batches, num_proc) for row in found]
    return {row["path"]: row["caption"] for row in rows}


def timed(function: Callable[..., Captions], *args) -> tuple[float, Captions]:
    begun = time.perf_counter()
    captions = function(*args)
    return time.perf_counter() - begun, captions


def write_music(paths: list[str], target: Path, seconds: float):
    """Writes the files after one another, again and again, as one of the given length."""
    left = round(seconds * RATE)
    with soundfile.SoundFile(target, "w", RATE, 1) as file:
        while left:
            for block in (block for path in paths for block in stream_audio(path, RATE)):
                file.write(block[:left])
                left -= len(block[:left])


def peak_of_spans(model: str, path: str) -> float:
    """The largest resident memory in MiB, of this process and of its child, while a file is divided and captioned."""
    list(Captioner(model).spans([path]))
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def measure_memory(args):
    paths = [*find_inputs([args.music]).files]
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in LENGTHS.items():
            target = Path(folder, "music.wav")
            write_music(paths, target, seconds)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                peaks[name] = alone.submit(peak_of_spans, args.model, str(target)).result()
            print(f"{name:<8}{peaks[name]:8.0f} MiB", flush=True)
    short, long = peaks.values()
    print(f"ratio {long / short:.3f}")
    results = {"model": Path(args.model).name, "peak_mib": peaks, "ratio": round(long / short, 3)}
    results |= {"versions": {name: version(name) for name in ("torch", "transformers", "av", "soxr")}}
    MEMORY.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def main():
    parser = ArgumentParser(description="Measures how fast a library is captioned.")
    parser.add_argument("--model", default="outputs/demo", help="Checkpoint: folder or Hub id.")
    parser.add_argument("--music", required=True, help="Folder of music.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_proc", type=int, default=available_cpus(), help="Processes that decode.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--memory", action="store_true", help="Measure memory of spans, not speed.")
    args = parser.parse_args()
    if args.memory:
        return measure_memory(args)

    captioner = Captioner(args.model)
    found = as_a_library(captioner, [*find_inputs([args.music]).files], args.batch_size, args.num_proc)  # warms up
    paths = [path for path, caption in found.items() if caption is not None]
    rows = [row for batch, _ in captioner.caption([paths]) for row in batch]
    music = sum(row["duration"] for row in rows)
    one_by_one(captioner, paths[:1])

    times: dict[str, list[float]] = {"one by one": [], "library": []}
    for _ in range(args.rounds):
        seconds, alone = timed(one_by_one, captioner, paths)
        times["one by one"].append(seconds)
        seconds, together = timed(as_a_library, captioner, paths, args.batch_size, args.num_proc)
        times["library"].append(seconds)
    others = [as_a_library(captioner, paths, size, count) for size, count in ((1, 1), (5, args.num_proc))]
    changed = sum(any(other[path] != together[path] for other in others) for path in paths)
    differing = sum(alone[path] != together[path] for path in paths)
    medians = {name: statistics.median(values) for name, values in times.items()}
    results = {
        "model": args.model if not os.path.isabs(args.model) else Path(args.model).name,
        "files": len(paths),
        "seconds_of_music": round(music, 1),
        "cpus": available_cpus(),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "av", "soxr")},
        "batch_size": args.batch_size,
        "num_proc": args.num_proc,
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "seconds": {name: [round(value, 2) for value in values] for name, values in times.items()},
        "times_real_time": {name: round(music / value, 1) for name, value in medians.items()},
        "ratio": round(medians["one by one"] / medians["library"], 2),
        "captions_that_differ_from_one_by_one": differing,
        "captions_that_batches_or_processes_change": changed,
    }
    print(
        f"{len(paths)} files, {music / 60:.1f} min of music, {available_cpus()} CPUs, median of {args.rounds} rounds\n"
    )
    for name, seconds in medians.items():
        print(f"{name:<12}{seconds:8.1f} s {len(paths) / seconds:8.2f} files/s {music / seconds:8.0f} x real time")
    print(
        f"\nratio {results['ratio']}; {changed} captions changed by batches or processes, {differing} by the front end"
    )
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
