"""
Measures the audio front end: the plain route against RGMC's, the cache against a memmap, and memory on long files.

    python -m benchmarks.audio

prints three tables and writes `benchmarks/results/audio.json`. All data is generated; nothing is downloaded.

(a) decodes the whole track as `datasets.Audio(sampling_rate=48000)` does (with torchcodec, or with PyAV and soxr if
torchcodec does not load), cuts out the middle 10 s, and runs `ClapFeatureExtractor`. (b) is `RGMCFeatureExtractor`.
Times are CPU times of all threads together, which is the wall time on one core. (a) and (b) take turns, and the median
of the rounds counts.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # the time of spinning threads would count

import json
import platform
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import av
import datasets
import numpy as np
import soundfile
import soxr
import torch
from transformers import AutoConfig, ClapFeatureExtractor

from clips.features import compute_features
from configuration_rgmc import RGMCConfig
from feature_extraction_rgmc import RGMCFeatureExtractor
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from training.building import train_tokenizer

RESULTS = Path(__file__).parent / "results" / "audio.json"
SECONDS, RATE = 160, 44_100  # a track's duration and sampling rate in Hz
# name: (codec, sample format, rate, codec options); ogg and wav are written by soundfile
CODECS = {
    "mp3": ("libmp3lame", "fltp", RATE, {"b": "128000"}),
    "flac": ("flac", "s16", RATE, {}),
    "m4a": ("aac", "fltp", RATE, {"b": "160000"}),
    "opus": ("libopus", "flt", 48_000, {"b": "128000"}),
}
FORMATS = ["mp3", "ogg", "flac", "wav", "m4a", "opus"]
HTSAT_BASE = {
    "patch_embeds_hidden_size": 128,
    "hidden_size": 1024,
    "depths": [2, 2, 12, 2],
    "num_attention_heads": [4, 8, 16, 32],
}


# -- sound ------------------------------------------------------------------------------------------------------------


def music(seconds: float, rate: int) -> np.ndarray:
    """Synthesises stereo chords that change every half second, with noise on the beat: `(2, samples)`."""
    random = np.random.default_rng(0)
    t = np.arange(round(seconds * rate)) / rate
    beat = (2 * t).astype(int)
    roots = 55 * 2 ** (random.integers(0, 24, beat[-1] + 1) / 12)
    left, right = (
        sum(np.sin(2 * np.pi * k * roots[beat] * detune * t) / k for k in range(1, 7)) for detune in (1.0, 1.003)
    )
    drums = random.standard_normal(len(t)) * np.exp(-20 * (t % 0.5))
    return (0.15 * np.stack([left + drums, right + drums])).astype(np.float32)


def write_track(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    if path.suffix in (".wav", ".ogg"):
        with soundfile.SoundFile(path, "w", rate, channels=2) as file:
            for first in range(0, samples.shape[1], rate):  # libsndfile crashes when it writes minutes of ogg at once
                file.write(samples[:, first : first + rate].T)
        return path
    codec, sample_format, codec_rate, options = CODECS[path.suffix[1:]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=codec_rate, layout="stereo", options=options)
        resampler = av.AudioResampler(format=sample_format, layout="stereo", rate=codec_rate)
        for first in range(0, samples.shape[1], 4096):
            block = np.ascontiguousarray(samples[:, first : first + 4096])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, first
            for converted in resampler.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path


# -- 1. decoding and log-mel ------------------------------------------------------------------------------------------


def whole_track_by_torchcodec(path: Path) -> np.ndarray:
    audio = datasets.Audio(sampling_rate=48_000)
    return audio.decode_example({"path": str(path), "bytes": None})["array"]


def whole_track_by_pyav(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = [
            frame.to_ndarray() if frame.format.is_planar else frame.to_ndarray().reshape(-1, stream.channels).T
            for frame in container.decode(stream)
        ]
    samples = np.concatenate(frames, axis=1)
    scale = np.iinfo(samples.dtype).max + 1 if samples.dtype.kind == "i" else 1
    mono = (samples[0] + samples[1].astype(np.float32)) / np.float32(2 * scale)
    return soxr.resample(mono, stream.rate, 48_000, quality="HQ")


def plain_route(path: Path) -> tuple[str, Callable]:
    try:
        whole_track_by_torchcodec(path)
        name, decode = "datasets.Audio", whole_track_by_torchcodec
    except (ImportError, OSError, RuntimeError):
        name, decode = "PyAV", whole_track_by_pyav
    clap = ClapFeatureExtractor(frequency_min=50, frequency_max=14_000, truncation="rand_trunc", padding="repeatpad")

    def extract(path: Path) -> np.ndarray:
        waveform = decode(path)
        start = (len(waveform) - 480_000) // 2
        clip = waveform[start : start + 480_000]
        return clap(clip, sampling_rate=48_000, return_tensors="np")["input_features"][0, 0]

    return name, extract


def cpu_seconds(function: Callable, *arguments) -> float:
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def measure_front_end(folder: Path, rounds: int) -> dict:
    samples = music(SECONDS, RATE)
    tracks = [write_track(folder / f"track.{name}", samples) for name in FORMATS]
    route, plain = plain_route(tracks[0])
    extractor = RGMCFeatureExtractor()

    def ours(path: Path) -> np.ndarray:
        return extractor(path, return_tensors="np")["input_features"][0, 0]

    print(f"CPU time per 10 s clip of a {SECONDS} s track; (a) whole track by {route}, ClapFeatureExtractor; (b) RGMC")
    print(f"{'':6}{'(a) ms':>10}{'(b) ms':>10}{'ratio':>8}{'mean difference, dB':>22}")
    results = {}
    for path in tracks:
        difference = float(np.abs(plain(path) - ours(path)).mean())  # also warms both up
        times = np.array([(cpu_seconds(plain, path), cpu_seconds(ours, path)) for _ in range(rounds)])
        a, b = np.median(times, axis=0) * 1000
        ratio = float(np.median(times[:, 0] / times[:, 1]))
        print(f"{path.suffix[1:]:6}{a:10.1f}{b:10.1f}{ratio:8.1f}{difference:22.4f}")
        results[path.suffix[1:]] = {"plain_ms": a, "rgmc_ms": b, "ratio": ratio, "mean_difference_db": difference}
    return {"route": route, "rounds": rounds, "formats": results}


# -- 2. the cache -----------------------------------------------------------------------------------------------------


def measure_cache(folder: Path, rounds: int, clips: int) -> dict:
    """Builds the cache of `clips` files, then reads it in shuffled batches of 32."""
    content = folder / "clip.wav"
    soundfile.write(content, music(10, 16_000).mean(0), 16_000)
    files = [folder / f"{row}.wav" for row in range(clips)]
    for file in files:
        os.link(content, file)
    rows = datasets.Dataset.from_dict(
        {
            "id": [file.stem for file in files],
            "audio": [{"path": str(file), "bytes": None} for file in files],
            "captions": [["a caption"]] * clips,
        }
    )
    results = {"clips": clips, "rounds": rounds}
    print(f"\nThe cache of {clips} clips, read in shuffled batches of 32 as float32 tensors, clips/s of one core")
    print(f"{'':10}{'build':>10}{'read':>10}{'memmap':>10}{'ratio':>8}{'MB per 1,000 clips':>22}")
    for dtype in ("float16", "float32"):
        cache = folder / dtype
        arguments = (rows, RGMCFeatureExtractor(), "the benchmark", folder / "skipped.jsonl", 0.0, str(cache), dtype)
        building = cpu_seconds(compute_features, *arguments)
        features = compute_features(*arguments)
        stored = sum(file.stat().st_size for file in cache.rglob("*.arrow"))
        shape = (clips, *features.read([0]).shape[2:])
        memmap = np.memmap(folder / f"{dtype}.bin", dtype, "w+", shape=shape)
        for start in range(0, clips, 256):
            part = list(range(start, min(start + 256, clips)))
            memmap[part] = features.read(part)[:, 0].numpy()

        def read_memmap(batch: np.ndarray, memmap: np.ndarray = memmap) -> torch.Tensor:
            return torch.from_numpy(memmap[batch]).float().unsqueeze(1)

        order = np.random.default_rng(0).permutation(clips)
        batches = [order[start : start + 32] for start in range(0, clips, 32)]
        if not all(torch.equal(features.read(batch.tolist()), read_memmap(batch)) for batch in batches):
            raise RuntimeError("The cache and the memmap hold different numbers")
        readers = (lambda batch, features=features: features.read(batch.tolist()), read_memmap)
        times = np.array(
            [[sum(cpu_seconds(reader, batch) for batch in batches) for reader in readers] for _ in range(rounds)]
        )
        read, raw = clips / np.median(times, axis=0)
        ratio = float(np.median(times[:, 1] / times[:, 0]))
        megabytes = stored / clips * 1000 / 1e6
        print(f"{dtype:10}{clips / building:10.0f}{read:10.0f}{raw:10.0f}{ratio:8.2f}{megabytes:22.1f}")
        results[dtype] = {
            "build_clips_per_s": clips / building,
            "read_clips_per_s": read,
            "memmap_clips_per_s": raw,
            "ratio": ratio,
            "megabytes_per_1000_clips": megabytes,
        }
    return results


# -- 3. memory on long files ------------------------------------------------------------------------------------------


def write_two_hours(path: Path) -> Path:
    """Writes the same minute 120 times, as an mp3 or as an mp4 with video."""
    short = path.with_name(f"minute{path.suffix}")
    if path.suffix == ".mp3":
        write_track(short, music(60, RATE))
        with path.open("wb") as file:
            for _ in range(120):
                file.write(short.read_bytes())
        return path
    with av.open(str(short), "w") as container:
        video = container.add_stream("mpeg4", rate=10, width=320, height=240, pix_fmt="yuv420p")
        audio = container.add_stream("aac", rate=RATE, layout="stereo")
        picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
        for second, block in enumerate(np.split(music(60, RATE), 60, axis=1)):
            for _ in range(10):
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.roll(picture, second, axis=1))))
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = RATE, second * RATE
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    with av.open(str(path), "w") as container:
        streams = {}
        for minute in range(120):
            with av.open(str(short)) as source:
                for stream in source.streams if minute == 0 else ():
                    streams[stream.index] = container.add_stream_from_template(stream)
                for packet in source.demux():
                    if packet.dts is not None:
                        shift = round(61 * minute / packet.time_base)  # the encoded minute is a little longer
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = streams[packet.stream_index]
                        container.mux(packet)
    return path


def caption_and_print_memory(path: str):
    """Captions one file with five beams, in its own process, with random weights of the paper's size."""
    tokenizer = train_tokenizer(["a sad ballad of piano and strings", "a happy waltz for flute"], 300)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    config = RGMCConfig(
        audio_config=AutoConfig.for_model("clap_audio_model", **HTSAT_BASE).to_dict(),
        text_config=AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), **special).to_dict(),
    )
    model, processor = RGMCModel(config).eval(), RGMCProcessor(RGMCFeatureExtractor(), tokenizer)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    before = memory_mb("VmRSS")
    model.generate(**processor(audio=[path], candidates=["a slow waltz of strings"]), max_new_tokens=32)
    print(json.dumps({"before_mb": before, "peak_above_mb": memory_mb("VmHWM") - before}))


def memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def measure_memory(folder: Path) -> dict:
    print("\nCaptioning with a model of the paper's size: peak memory above that of the loaded model")
    files = [write_track(folder / "short.wav", music(10, RATE))]
    files += [write_two_hours(folder / name) for name in ("two_hours.mp3", "two_hours.mp4")]
    results = {}
    for path in files:
        command = [sys.executable, "-m", "benchmarks.audio", "--caption", str(path)]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[path.name] = json.loads(child.stdout.splitlines()[-1]) | {"file_mb": path.stat().st_size / 1e6}
        print(f"{path.name:16}{results[path.name]['peak_above_mb']:8.0f} MB (file: {path.stat().st_size / 1e6:.0f} MB)")
    return results


# -- main -------------------------------------------------------------------------------------------------------------


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=2000, help="Clips in the cache.")
    parser.add_argument("--caption", help="Only caption this file, and print the memory it took.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.caption:
        caption_and_print_memory(args.caption)
        return
    datasets.disable_progress_bars()
    results = {"command": "python -m benchmarks.audio", "machine": machine()}
    for name, measure in {
        "front_end": lambda folder: measure_front_end(folder, args.rounds),
        "cache": lambda folder: measure_cache(folder, args.rounds, args.clips),
        "memory": measure_memory,
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(Path(folder))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def machine() -> dict:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    packages = ("torch", "transformers", "datasets", "av", "soxr", "soundfile", "numpy")
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


if __name__ == "__main__":
    main()
