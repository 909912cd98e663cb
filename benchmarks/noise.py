"""
Measures what tells steady noise from music, and how often it fails.

    python -m benchmarks.noise --music my_music more_music

prints a table and writes `benchmarks/results/noise.json`. Of noise it makes 30 s of each colour, of a room (low-passed,
with weak resonances, its level swaying by 1 dB) and of each through codecs, and slides 3 s over it: the lowest flatness
of a segment and the highest deviation of a band decide what the limits of `noise_rgmc.py` can be. Of music it reports
files with noise anywhere in them, and files whose middle 10 s have no caption for it; and, of all stretches of 3 s and
more that are as flat as noise, the lowest deviation.
"""

import io
import json
from argparse import ArgumentParser
from pathlib import Path

import av
import numpy as np

from audio_rgmc import load_audio, stream_audio
from captions.inputs import find_inputs
from noise_rgmc import (
    FLATNESS,
    SEGMENT,
    SHORTEST,
    STEADINESS,
    deviation,
    find_noise,
    is_noise,
    measure_spectrum,
    runs,
    smooth,
)

RESULTS = Path(__file__).parent / "results" / "noise.json"
RATE = 48_000
SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}
CODECS = {"mp3": ("libmp3lame", 64_000), "ogg": ("libopus", 32_000), "mp4": ("aac", 96_000)}


def make_noise(kind: str, seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """White, pink, brown or room noise at -26 dB of full scale."""
    generator = np.random.default_rng(seed)
    count = round(seconds * rate)
    spectrum, frequencies = np.fft.rfft(generator.standard_normal(count)), np.fft.rfftfreq(count, 1 / rate)
    frequencies[0] = frequencies[1]
    if kind == "room":
        shape = frequencies**-0.5 / (1 + (frequencies / 1500) ** 2)
        for center in generator.uniform(100, 800, 4):  # resonances
            shape *= 1 + 1 / (1 + ((frequencies - center) / (0.2 * center)) ** 2)
    else:
        shape = frequencies ** -SLOPES[kind]
    noise = np.fft.irfft(spectrum * shape, count)
    if kind == "room":
        noise *= 10 ** (np.sin(2 * np.pi * np.arange(count) / rate / generator.uniform(6, 15)) / 20)
    return (0.05 * noise / noise.std()).astype(np.float32)


def through_codec(noise: np.ndarray, container: str) -> np.ndarray:
    codec, bit_rate = CODECS[container]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=RATE, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(noise[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.format, "mono", RATE, stream.frame_size)
        for piece in (*resampler.resample(frame), *resampler.resample(None), None):
            output.mux(stream.encode(piece))
    return np.concatenate(list(stream_audio(file.getvalue())))


def measure_noise() -> dict:
    least, most, missed = 0.0, 0.0, []
    width = round(SHORTEST / SEGMENT)
    for seed, kind in enumerate((*SLOPES, "room")):
        original = make_noise(kind, 30, seed)
        for name in ("pcm", *CODECS):
            levels, flatness = measure_spectrum(original if name == "pcm" else through_codec(original, name), RATE)
            levels, flatness = levels[1:-1], flatness[1:-1]  # the codec's beginning and end
            least = min(least, smooth(flatness).min())
            most = max(most, *(deviation(levels[at : at + width]) for at in range(len(levels) - width)))
            found = find_noise(levels, flatness)
            missed += [f"{kind}, {name}"] * (sum(end - start for start, end in found) < len(levels) * SEGMENT - 1e-6)
    return {"lowest_flatness": least, "highest_deviation": most, "missed": missed}


def measure_music(paths: list[str]) -> dict:
    found, middles, lowest, flat = [], [], np.inf, 0
    for path in paths:
        blocks = list(stream_audio(path, RATE))
        levels, flatness = measure_spectrum(np.concatenate(blocks), RATE)
        found += [path] * bool(find_noise(levels, flatness))
        middles += [path] * is_noise(load_audio(path)[: sum(map(len, blocks))], RATE, -70.0)
        for first, end in runs(smooth(flatness) > FLATNESS):
            if (end - first) * SEGMENT >= SHORTEST:
                flat, lowest = flat + 1, min(lowest, deviation(levels[first:end]))
    return {
        "files": len(paths),
        "files_with_noise": [Path(path).name for path in found],
        "files_without_caption": [Path(path).name for path in middles],
        "flat_stretches": flat,
        "lowest_deviation": lowest if flat else None,
    }


def main():
    parser = ArgumentParser(description="Measures what tells steady noise from music.")
    parser.add_argument("--music", nargs="+", required=True, help="Folders of music.")
    args = parser.parse_args()
    limits = {"flatness": FLATNESS, "deviation": STEADINESS, "seconds": SHORTEST}
    results: dict = {"limits": limits, "noise": measure_noise(), "music": {}}
    print(f"limits: flatness {FLATNESS:.1f} dB, deviation {STEADINESS:.1f} dB, {SHORTEST:g} s")
    noise = results["noise"]
    lowest, highest = noise["lowest_flatness"], noise["highest_deviation"]
    print(f"noise: flatness from {lowest:.1f} dB on, deviation up to {highest:.2f} dB,")
    print(f"       not found whole: {', '.join(noise['missed']) or 'none'}")
    for folder in args.music:
        music = measure_music([*find_inputs([folder]).files])
        results["music"]["/".join(Path(folder).parts[-2:])] = music
        with_noise, silent = len(music["files_with_noise"]), len(music["files_without_caption"])
        print(f"{folder}: {music['files']} files, {with_noise} with noise, {silent} without a caption;")
        print(
            f"       {music['flat_stretches']} stretches as flat as noise, lowest deviation {music['lowest_deviation']}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
