"""
Divides a track or the sound of a film into spans, and captions those of music.

    captioner = pipeline("music-captioning", model=checkpoint, trust_remote_code=True)
    spans = captioner("film.mp4", spans=True)  # [{"start": 0.0, "end": 12.5, "kind": "music", "caption": …}, …]

The file is decoded three times, a second at a time, so that the memory does not depend on its length. The level of
short frames says where there is silence. Where the log-mel spectrogram after a moment differs from that before, the
music has changed; the states of the audio encoder can be compared instead. Then the middle 10 seconds of each span are
captioned.

Shape letters: `B` clips, `N` samples, `S` steps of 0.3125 s, `C` numbers of a state, `T` mel frames, `F` mel bins.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

try:
    from .audio_rgmc import Source, repeat_pad, stream_audio
    from .noise_rgmc import SEGMENT, find_noise, measure_spectrum, runs
    from .span_settings_rgmc import SpanSettings
except ImportError:
    from audio_rgmc import Source, repeat_pad, stream_audio
    from noise_rgmc import SEGMENT, find_noise, measure_spectrum, runs
    from span_settings_rgmc import SpanSettings

FRAME = 0.02  # seconds, of which the level is measured
HYSTERESIS = 6.0  # dB by which sound after silence is louder than the level of silence
SHORTEST = 0.5  # seconds of sound; what is shorter, such as a click, belongs to the silence around it
ALTERNATIVES = 3  # captions of a span, the best one included
SLIVER = 0.1  # seconds; a shorter part belongs to its neighbour
STEPS = 32  # of a window


# -- silence and noise ------------------------------------------------------------------------------------------------


@dataclass
class Levels:
    """
    What is measured of a track without the model.

    Args:
        decibels (`np.ndarray` of shape `(frames,)`): The level of each frame of 20 ms, in dB of full scale.
        samples (`int`): Length of the track.
        spectrum (`tuple[np.ndarray, np.ndarray]`): As [`measure_spectrum`] returns it, of the whole track.
    """

    decibels: np.ndarray
    samples: int
    spectrum: tuple[np.ndarray, np.ndarray]


def measure_levels(source: Source, sampling_rate: int = 48_000) -> Levels:
    """Measures the levels and the spectrum of a file."""
    size, segment = round(FRAME * sampling_rate), round(SEGMENT * sampling_rate)
    powers, spectra, rest, samples = [], [], np.zeros(0, np.float32), 0
    for block in stream_audio(source, sampling_rate):
        samples += len(block)
        rest = np.concatenate([rest, block])
        whole = len(rest) // segment * segment  # and so of frames, too
        powers.append(np.square(rest[:whole].reshape(-1, size), dtype=np.float64).mean(axis=1))
        spectra.append(measure_spectrum(rest[:whole], sampling_rate))
        rest = rest[whole:]
    for first in range(0, len(rest), size):
        powers.append(np.square(rest[first : first + size], dtype=np.float64).mean(keepdims=True))
    levels, flatness = map(np.concatenate, zip(*spectra))
    return Levels(10 * np.log10(np.maximum(np.concatenate(powers), 1e-20)), samples, (levels, flatness))


def find_silences(decibels: np.ndarray, level: float, min_length: float) -> list[tuple[float, float]]:
    """
    Finds the silences, in seconds. One begins with a frame below `level`, and ends where the sound is louder than that
    by 6 dB for half a second; it lasts `min_length` seconds or more.
    """
    silences: list[tuple[int, int]] = []
    for first, end in runs(decibels < level + HYSTERESIS):
        below = np.flatnonzero(decibels[first:end] < level)
        if len(below):
            first += int(below[0])
            if silences and first - silences[-1][1] < round(SHORTEST / FRAME):
                first = silences.pop()[0]
            silences.append((first, end))
    return [(first * FRAME, end * FRAME) for first, end in silences if (end - first) * FRAME >= min_length - 1e-9]


def find_music(
    spectrum: tuple[np.ndarray, np.ndarray], duration: float, silences: list[tuple[float, float]]
) -> list[tuple[float, float]]:
    """
    What of a track is not steady noise, in seconds. Noise of 3 s and more is found, to a quarter of a second; half a
    second of other sound between noise, such as a click, belongs to it.
    """
    segments = SEGMENT * np.arange(len(spectrum[1]))
    audible = np.ones(len(segments), bool)
    for start, end in silences:
        audible &= (segments < start) | (segments + SEGMENT > end)
    noises = find_noise(*spectrum, audible)
    if not noises:
        return [(0.0, duration)]
    places = [0.0, duration, *itertools.chain(*silences)]
    edges = [0.0, *itertools.chain(*noises), duration]
    for number, edge in enumerate(edges):  # noise ends with the silence or the track beside it, and not a segment away
        nearest = min(places, key=lambda place: abs(place - edge))
        edges[number] = nearest if abs(nearest - edge) < SEGMENT else edge
    return [(start, end) for start, end in zip(edges[::2], edges[1::2]) if end - start >= SHORTEST]


# -- changes ----------------------------------------------------------------------------------------------------------


def cut(blocks: Iterable[np.ndarray], parts: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Cuts parts (first sample, end), whose first samples ascend, from a sound that comes block by block."""
    blocks, held, position = iter(blocks), np.zeros(0, np.float32), 0
    for first, end in parts:
        while position + len(held) < end and (block := next(blocks, None)) is not None:
            held = np.concatenate([held, block])
            drop = min(max(first - position, 0), len(held))
            held, position = held[drop:], position + drop
        yield held[first - position : end - position].copy()


def overlapping_starts(samples: int, size: int, hop: int) -> list[int]:
    """First samples of windows that cover a track; the last one ends with it."""
    last = max(samples - size, 0)
    return [*range(0, last, hop), last]


def average_states(
    windows: Iterable[tuple[float, np.ndarray]], step: float, steps: int
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Averages the states of overlapping windows on the track's own time axis.

    Args:
        windows (`Iterable`): Where each window begins, in seconds and in order, and its states `(S, C)`.
        step (`float`): Length of a step in seconds.
        steps (`int`): Number of steps of the track.

    Yields:
        `tuple[int, np.ndarray]`: Number of the first step, and states `(n, C)`: the parts of the time axis that windows
        cover, in order and without overlap.
    """
    sums = counts = None
    begin = 0  # the step that `sums` begins with
    for start, states in windows:
        first = max(math.ceil(start / step - 0.5), 0)  # steps whose middle lies in the window
        end = min(math.ceil(start / step + len(states) - 0.5), steps)
        if sums is not None and first > begin:  # later windows do not cover these steps
            done = min(first - begin, len(sums))
            yield begin, sums[:done] / counts[:done]
            sums, counts, begin = sums[done:], counts[done:], first
        if sums is None:
            sums, counts, begin = np.zeros((0, states.shape[1])), np.zeros((0, 1)), first
        more = max(end - begin - len(sums), 0)
        sums, counts = np.pad(sums, ((0, more), (0, 0))), np.pad(counts, ((0, more), (0, 0)))
        places = np.clip(np.arange(first, end) - start / step, 0, len(states) - 1)
        below = np.minimum(places.astype(int), len(states) - 2)
        share = (places - below)[:, None]
        sums[first - begin : end - begin] += (1 - share) * states[below] + share * states[below + 1]
        counts[first - begin : end - begin] += 1
    if sums is not None:
        yield begin, sums / counts


def novelty(parts: Iterable[tuple[int, np.ndarray]], sections: np.ndarray, half: int) -> np.ndarray:
    """
    Measures how much the music changes at each step: Foote's checkerboard kernel with a Gaussian taper, which for dot
    products is the squared distance between the mean states after and before the step, here divided by the variance.

    Args:
        parts (`Iterable`): As [`average_states`] yields them.
        sections (`np.ndarray` of shape `(steps,)`): Only steps of the same number are compared; -1 for none.
        half (`int`): Steps before and after that are compared.

    Returns:
        `np.ndarray` of shape `(steps,)`: 0 where there is nothing to compare.
    """
    values = np.zeros(len(sections))
    held, begin, done = None, 0, 0
    for first, states in parts:
        if held is None or first > begin + len(held):
            if held is not None:
                _compare(values, held, begin, done, begin + len(held), sections, half)
            held, begin, done = states[:0], first, first
        held = np.concatenate([held, states])
        ready = begin + len(held) - half
        if ready > done:
            _compare(values, held, begin, done, ready, sections, half)
            drop = max(ready - half - begin, 0)
            held, begin, done = held[drop:], begin + drop, ready
    if held is not None:
        _compare(values, held, begin, done, begin + len(held), sections, half)
    return values


def _compare(values: np.ndarray, held: np.ndarray, begin: int, first: int, end: int, sections: np.ndarray, half: int):
    """Sets the novelty of the steps from `first` to `end`, from the states of the steps from `begin` on."""
    at, other = np.arange(first, end)[:, None], np.arange(begin, begin + len(held))[None]
    distance = other - at + 0.5  # from the beginning of a step to the middle of the other
    weights = np.exp(-2 * np.square(distance / half)) * (np.abs(distance) < half)
    weights *= (sections[at] == sections[other]) & (sections[at] >= 0)
    means, variances = [], []
    squares = np.square(held).sum(axis=1)
    for side in (weights * (distance < 0), weights * (distance > 0)):
        side = side / np.maximum(side.sum(axis=1, keepdims=True), 1e-12)
        mean = side @ held
        means.append(mean)
        variances.append(side @ squares - np.square(mean).sum(axis=1))
    compared = np.logical_and(*((weights * sign > 0).any(axis=1) for sign in (distance < 0, distance > 0)))
    gap = np.square(means[1] - means[0]).sum(axis=1)
    values[first:end] = np.where(compared, gap / np.maximum(sum(variances), 1e-9), 0.0)


def find_changes(values: np.ndarray, sections: np.ndarray, threshold: float, least: int) -> list[int]:
    """
    Finds the steps with which the music changes: the peaks of `values` above `threshold`. Changes are at least `least`
    steps apart, and as far from the ends of their section.
    """
    inner = np.full(len(values) + 2 * least, -1)
    inner[least : least + len(sections)] = sections
    near = np.lib.stride_tricks.sliding_window_view(inner, 2 * least)[: len(values)]  # of `least` steps on either side
    allowed = np.where((near == sections[:, None]).all(axis=1) & (sections >= 0), values, 0.0)
    peaks: list[int] = []
    for step in np.flatnonzero(allowed > threshold):
        around = allowed[max(step - least, 0) : step + least]
        if allowed[step] == around.max() and (not peaks or step - peaks[-1] >= least):
            peaks.append(int(step))
    return peaks


# -- spans ------------------------------------------------------------------------------------------------------------


def divide(
    duration: float, silences: list[tuple[float, float]], music: list[tuple[float, float]] | None = None
) -> list[tuple[float, float, str]]:
    """
    Divides a track into `"silence"`, `"music"` and `"other"`: start and end in seconds, and kind, from 0 to `duration`.

    Args:
        duration (`float`): In seconds.
        silences (`list[tuple[float, float]]`): Start and end of each silence, in order.
        music (`list[tuple[float, float]]`, *optional*): Where there is music; by default wherever there is sound.
    """
    music = [(0.0, duration)] if music is None else music
    edges = {0.0, duration, *(time for pair in (*silences, *music) for time in pair if 0 < time < duration)}
    parts: list[tuple[float, float, str]] = []
    for start, end in itertools.pairwise(sorted(edges)):
        middle = (start + end) / 2
        silent, musical = (any(first <= middle < last for first, last in pairs) for pairs in (silences, music))
        kind = "silence" if silent else "music" if musical else "other"
        if parts and (parts[-1][2] == kind or end - start < SLIVER):
            parts[-1] = (parts[-1][0], end, parts[-1][2])
        elif parts and parts[-1][1] - parts[-1][0] < SLIVER:  # the first
            parts[-1] = (parts[-1][0], end, kind)
        else:
            parts.append((start, end, kind))
    return parts


def find_spans(
    captioner: Any,
    source: Source,
    settings: SpanSettings | None = None,
    *,
    levels: Levels | None = None,
    music: list[tuple[float, float]] | None = None,
    batch_size: int = 16,
    advance: Callable[[float], None] = lambda share: None,
    **generate_kwargs,
) -> list[dict[str, Any]]:
    """
    Divides a file into spans and captions those of music.

    Args:
        captioner ([`MusicCaptioningPipeline`]):
            Brings the model and the processor.
        source (`str`, `os.PathLike`, `bytes` or `BinaryIO`):
            As in [`load_audio`].
        settings ([`SpanSettings`], *optional*):
            How the file is divided.
        levels ([`Levels`], *optional*):
            As [`measure_levels`] returns them, if they are known.
        music (`list[tuple[float, float]]`, *optional*):
            Start and end in seconds of what is music; by default all sound that is not steady noise.
        batch_size (`int`, defaults to 16):
            Clips per forward pass.
        advance (`Callable[[float], None]`, *optional*):
            Called with the seconds of the file that the encoder has passed.
        generate_kwargs:
            Arguments of `generate`, such as `selection="consensus"`. `num_return_sequences` is 3 by default.

    Returns:
        `list[dict]`: Spans in order, from 0 to the duration without gaps: `start` and `end` (s), `kind` (`"music"`,
        `"silence"` or `"other"`), `caption`, `alternatives` (further captions, the best first), `score` and
        `candidates` as the pipeline returns them. Spans other than music have none. Neighbours with the same caption
        are one span.

    Raises:
        `AudioError`: If the file cannot be used.
    """
    settings = settings or SpanSettings()
    extractor = captioner.processor.feature_extractor
    levels = levels or measure_levels(source, extractor.sampling_rate)
    duration = levels.samples / extractor.sampling_rate
    silences = find_silences(levels.decibels, settings.silence, settings.min_silence)
    parts = divide(duration, silences, find_music(levels.spectrum, duration, silences) if music is None else music)
    changes = track_changes(captioner, source, levels.samples, parts, settings, batch_size, advance)
    spans = []
    for start, end, kind in parts:
        edges = [start, *(time for time in changes if kind == "music" and start < time < end), end]
        spans += [_span(*pair, kind) for pair in itertools.pairwise(edges)]
    caption_spans(captioner, source, spans, batch_size, **generate_kwargs)
    return merge_equal(spans)


def _span(start: float, end: float, kind: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"caption": None, "alternatives": [], "score": None, "candidates": []}
    return {"start": round(start, 3), "end": round(end, 3), "kind": kind} | nothing


def track_changes(
    captioner: Any,
    source: Source,
    samples: int,
    parts: list[tuple[float, float, str]],
    settings: SpanSettings,
    batch_size: int = 16,
    advance: Callable[[float], None] = lambda share: None,
) -> list[float]:
    """
    Finds where the music changes within the `parts` of music that [`divide`] returns, in seconds; the other arguments
    are those of [`find_spans`].
    """
    extractor = captioner.processor.feature_extractor
    rate, length = extractor.sampling_rate, extractor.duration
    size = round(length * rate)
    hop = round(settings.hop * rate) if settings.changes == "encoder" else size
    sounding = [part[:2] for part in parts if part[2] == "music" and part[1] - part[0] >= 2 * settings.min_span]
    starts = [
        first
        for first in overlapping_starts(samples, size, hop)
        if any(start * rate < first + size and first < end * rate for start, end in sounding)
    ]
    if not starts:
        return []

    def windows() -> Iterator[tuple[float, np.ndarray]]:
        clips = zip(starts, cut(stream_audio(source, rate), ((first, first + size) for first in starts)))
        while batch := list(itertools.islice(clips, batch_size)):
            log_mels = extractor([repeat_pad(clip, size) for _, clip in batch], sampling_rate=rate)["input_features"]
            if settings.changes == "encoder":
                with torch.no_grad():
                    _, states = captioner.model.embed_steps(log_mels)
            else:
                states = torch.nn.functional.adaptive_avg_pool2d(log_mels[:, 0], (STEPS, log_mels.shape[-1]))
            yield from ((first / rate, of_clip) for (first, _), of_clip in zip(batch, states.cpu().numpy()))
            advance(batch[-1][0] / rate)

    found = windows()
    first = next(found)
    step = length / len(first[1])
    steps = max(math.ceil(samples / rate / step - 0.5), 1)  # those whose middle lies in the track
    middles = (np.arange(steps) + 0.5) * step
    sections = np.full(steps, -1)
    for number, (start, end) in enumerate(sounding):
        sections[(start <= middles) & (middles < end)] = number
    averaged = average_states(itertools.chain([first], found), step, steps)
    values = novelty(averaged, sections, round(settings.kernel / step))
    least = round(settings.min_span / step)
    return [number * step for number in find_changes(values, sections, settings.change_threshold, least)]


def caption_spans(captioner: Any, source: Source, spans: list[dict[str, Any]], batch_size: int, **generate_kwargs):
    """Captions the spans of music in place: each by its middle 10 s, or by all of it, repeated, if it is shorter."""
    extractor = captioner.processor.feature_extractor
    rate, size = extractor.sampling_rate, round(extractor.duration * extractor.sampling_rate)
    musical = [span for span in spans if span["kind"] == "music"]
    if not musical:
        return
    crops = []
    for span in musical:
        first, end = round(span["start"] * rate), round(span["end"] * rate)
        spare = max(end - first - size, 0)
        crops.append((first + spare // 2, end - (spare - spare // 2)))
    clips = zip(musical, cut(stream_audio(source, rate), crops))
    beams = generate_kwargs.get("num_beams") or captioner.model.generation_config.num_beams or 1
    several = {"num_return_sequences": min(ALTERNATIVES, beams)}
    while batch := list(itertools.islice(clips, batch_size)):
        log_mels = extractor([repeat_pad(clip, size) for _, clip in batch], sampling_rate=rate)["input_features"]
        about = [{"path": None, "duration": None, "flags": [], "error": None, "starts": [0.0]} for _ in batch]
        inputs = {"input_features": log_mels, "about": about}
        for (span, _), clip in zip(batch, captioner.forward(inputs, **{**several, **generate_kwargs})["clips"]):
            caption = clip["caption"].strip() or None
            others = dict.fromkeys(other["caption"].strip() for other in clip["alternatives"])
            span |= {"caption": caption, "alternatives": [text for text in others if text and text != caption]}
            span |= {"score": clip["score"], "candidates": clip["candidates"]}


def merge_equal(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins neighbours of music with the same caption; what else is known of the longer one is kept."""
    merged: list[dict[str, Any]] = []
    for span in spans:
        last = merged[-1] if merged else None
        if last and last["kind"] == span["kind"] == "music" and last["caption"] == span["caption"]:
            longer = max(last, span, key=lambda one: one["end"] - one["start"])
            merged[-1] = longer | {"start": last["start"], "end": span["end"]}
        else:
            merged.append(span)
    return merged
