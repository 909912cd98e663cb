"""
Measures how well changes of music are found: spans of `caption.py --spans` against tracks with known sections.

    python -m benchmarks.boundaries --model outputs/demo --audio music/
    python -m benchmarks.boundaries --model outputs/demo --tracks albums/

prints a table for each folder and writes `benchmarks/results/boundaries.json`. From a folder of `--audio` it composes
tracks: 3 to 6 sections of 15 to 40 s, each from another file, which is repeated if it is too short, at the same level
and without gaps. A folder of `--tracks` holds tracks and a `sections.json`: lists of `{"start", "end", "label"}` in
seconds by file name, or such a list if there is one track. Neighbours with the same label are one section.

Scores are the precision, recall and F1 of `mir_eval.segment.detection` (trimmed: start and end of the track do not
count) within 0.5 s and 3 s, means over tracks. `log-mel` and `encoder` are the two choices of `--changes`; the floors
are no changes at all, windows of 10 s, equal parts as many as the default finds, and equal parts as many as there are.
Intervals are 95 %, from 2,000 resamples of the tracks; differences of the default to the others are paired.
"""

import itertools
import json
import tempfile
import time
import warnings
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import mir_eval
import numpy as np
import soundfile

from audio_rgmc import stream_audio
from benchmarks.train import machine
from captions.captioner import Captioner
from corpora.files import AUDIO
from evaluation.intervals import draw_clips, with_interval
from span_settings_rgmc import CHANGES, SpanSettings
from spans_rgmc import divide, find_silences, measure_levels, track_changes

RESULTS = Path(__file__).parent / "results"
RATE = 48_000
WINDOWS = {"0.5 s": 0.5, "3 s": 3.0}
SAMPLES = 2000

Track = tuple[Path, list[float]]  # and where it changes, in seconds


def compose(files: list[Path], target: Path, generator: np.random.Generator) -> list[float]:
    """Writes a track of sections of different files, and returns where they change."""
    pieces, changes = [], []
    for index in generator.permutation(len(files))[: generator.integers(3, 7)]:
        sound = np.concatenate(list(stream_audio(files[index], RATE)))
        length = round(generator.uniform(15, 40) * RATE)
        first = int(generator.integers(max(len(sound) - length, 0) + 1))
        piece = np.resize(sound[first : first + length], length)
        piece *= 0.1 / max(np.sqrt(np.mean(np.square(piece))), 1e-6)
        fade = np.linspace(0, 1, RATE // 50, dtype=np.float32)  # against clicks
        piece[: len(fade)] *= fade
        piece[-len(fade) :] *= fade[::-1]
        pieces.append(piece.clip(-1, 1))
        changes.append(sum(map(len, pieces)) / RATE)
    soundfile.write(target, np.concatenate(pieces), RATE)
    return changes[:-1]


def read_sections(folder: Path) -> list[Track]:
    """Reads the tracks of a folder with a `sections.json`."""
    content = json.loads((folder / "sections.json").read_text(encoding="utf-8"))
    if isinstance(content, dict) and "tracks" in content:
        content = {track["file_name"]: track["sections"] for track in content["tracks"]}
    if isinstance(content, list):
        content = {path.name: content for path in folder.iterdir() if path.suffix.lower() in AUDIO}
        if len(content) != 1:
            raise SystemExit(f"{folder}/sections.json is one list, but there are {len(content)} tracks: list by file")
    return [
        (
            folder / name,
            [
                later["start"]
                for former, later in itertools.pairwise(sections)
                if former.get("label") is None or former["label"] != later.get("label")
            ],
        )
        for name, sections in content.items()
    ]


def estimates(captioner: Captioner, track: Track, settings: SpanSettings) -> tuple[float, dict[str, list[float]]]:
    """The track's length in seconds, and where it changes by each method."""
    path, changes = track
    levels = measure_levels(path, RATE)
    duration = levels.samples / RATE
    parts = divide(duration, find_silences(levels.decibels, settings.silence, settings.min_silence))
    inner = [end for _, end, _ in parts[:-1]]
    tracking = (captioner.pipeline, path, levels.samples, parts)
    found = {name: sorted([*inner, *track_changes(*tracking, replace(settings, changes=name))]) for name in CHANGES}

    def equal(count: int) -> list[float]:
        return [duration * (part + 1) / (count + 1) for part in range(count)]

    return duration, {
        **found,
        "no changes": [],
        "windows of 10 s": [float(time) for time in np.arange(10, duration - 1, 10)],
        "equal parts, as many as found": equal(len(found[settings.changes])),
        "equal parts, as many as there are": equal(len(changes)),
    }


def score(changes: list[float], found: list[float], duration: float) -> dict[str, tuple[float, float, float]]:
    """Precision, recall and F1 within each window."""
    true, estimated = (np.array([*itertools.pairwise([0.0, *times, duration])]) for times in (changes, found))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no changes to compare
        return {
            name: mir_eval.segment.detection(true, estimated, window=window, trim=True)
            for name, window in WINDOWS.items()
        }


def evaluate(captioner: Captioner, tracks: list[Track], settings: SpanSettings, seed: int) -> dict:
    """The scores of each method over some tracks, and how much better the default is than each other method."""
    begun, seconds = time.perf_counter(), 0.0
    scores: dict[str, list[dict]] = {}
    for track in tracks:
        duration, found = estimates(captioner, track, settings)
        seconds += duration
        for method, times in found.items():
            scores.setdefault(method, []).append(score(track[1], times, duration))
    draws = draw_clips(len(tracks), SAMPLES, seed) / len(tracks)  # (samples, tracks)
    result: dict = {"tracks": len(tracks), "changes": sum(len(changes) for _, changes in tracks)}
    result |= {"seconds": round(seconds), "times_real_time": seconds / (time.perf_counter() - begun), "methods": {}}
    for method in scores:
        result["methods"][method] = {}
        for window in WINDOWS:
            values, own = (
                np.array([of_track[window] for of_track in scores[name]]) for name in (method, settings.changes)
            )
            f1 = with_interval(float(values[:, 2].mean()), draws @ values[:, 2])
            gain = with_interval(float((own - values)[:, 2].mean()), draws @ (own - values)[:, 2])
            result["methods"][method][window] = {
                "precision": float(values[:, 0].mean()),
                "recall": float(values[:, 1].mean()),
                "f1": [f1.value, f1.low, f1.high],
                "default_minus_this": [gain.value, gain.low, gain.high],
            }
    return result


def show(name: str, result: dict, default: str):
    print(f"\n{name}: {result['tracks']} tracks, {result['changes']} changes, {result['seconds'] / 60:.0f} min")
    for method, windows in result["methods"].items():
        parts = []
        for window, found in windows.items():
            value, low, high = found["f1"]
            gain, least, most = found["default_minus_this"]
            parts.append(f"{window}: F1 {value:.2f} [{low:.2f}, {high:.2f}]")
            if method != default:
                parts.append(f"{default} {gain:+.2f} [{least:+.2f}, {most:+.2f}]")
        print(f"  {method:34} {'  '.join(parts)}")


def main():
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--audio", nargs="*", default=[], help="folders to compose tracks from")
    parser.add_argument("--tracks", nargs="*", default=[], help="folders of tracks with a sections.json")
    parser.add_argument("--composed", type=int, default=24, help="tracks composed from each folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    captioner, settings = Captioner(args.model), SpanSettings()
    folders = {"/".join(Path(name).parts[-2:]): Path(name) for name in (*args.audio, *args.tracks)}
    results = {}
    for name, folder in folders.items():
        with tempfile.TemporaryDirectory() as place:
            if str(folder) in map(str, map(Path, args.audio)):
                files = sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO)
                generator = np.random.default_rng(args.seed)
                targets = [Path(place, f"{number}.flac") for number in range(args.composed)]
                tracks = [(target, compose(files, target, generator)) for target in targets]
            else:
                tracks = read_sections(folder)
            results[name] = evaluate(captioner, tracks, settings, args.seed)
        show(name, results[name], settings.changes)
    written = {
        "command": "python -m benchmarks.boundaries",
        "model": Path(args.model).name,
        "settings": vars(settings),
        "seed": args.seed,
        "machine": machine("cpu"),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "boundaries.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
