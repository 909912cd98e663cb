"""Composes and synthesises a small corpus of music and captions, so that the demo needs no download.

    python -m corpora.demo --output_dir data/demo --clips 800 --seed 0

A clip is ten seconds of a tune over a chord progression. It has one lead instrument, a style (chords, bass, drums), a
mood (major or minor, with matching register, touch and brightness) and a tempo. Its caption says what is heard. The
layout is the `audiofolder` of datasets: `train`, `validation` and `test`, each with FLAC files and `metadata.csv`.

Clip i only depends on (seed, i). Each split owns the tunes and captions whose checksum falls into its share, and a clip
is drawn again until its tune and caption belong to its split, so that no tune and no caption is in two splits.
"""

import argparse
import csv
import functools
import json
import multiprocessing
import os
import re
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
from tqdm import tqdm

GENERATOR_VERSION = 2  # raise it when the same seed gives another corpus
SAMPLE_RATE, SAMPLES = 32_000, 320_000  # Hz; ten seconds
SPLITS = ("train", "validation", "test")
SPLIT_OF_SLOT = [SPLITS[int(digit)] for digit in "00020100200020100000"]  # 75 %, 10 %, 15 % of every 20 in a row
TEMPOS = {"slow": (60, 76), "medium": (92, 108), "fast": (126, 148)}  # beats a minute
KEYS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = {"major": ("0453", "0340", "0534", "0304", "0140"), "minor": ("0526", "0340", "0654", "0304", "0534")}


@dataclass(frozen=True)
class Timbre:
    partials: tuple  # (frequency over the fundamental, amplitude)
    register: int = 60  # MIDI pitch near the tonic; the pitch of a drum
    decay: tuple = (0, 0)  # 1/s, plus 1/s per kHz of the partial; (0, 0) is held like a bow or a breath
    envelope: tuple = (0.004, 0.06)  # attack and release in s
    waver: tuple = (0, 0)  # vibrato in cents and depth of the tremolo
    formant: tuple = (1000, 0)  # a resonance of the body: Hz and gain
    drive: float = 0.0  # distortion
    noise: tuple = ()  # of breath, pick or drum: (level, decay in 1/s, lowest and highest Hz)


@dataclass(frozen=True)
class Style:
    names: tuple  # what captions call it
    tempos: tuple
    backings: tuple
    chords: str  # pattern of the backing, which divides a bar evenly: `x` starts a note, `-` holds it, `.` is a rest
    bass: str  # pattern of the bass
    cells: tuple  # patterns of the tune
    drums: tuple = ()  # (drum, gain, pattern)
    drum_names: tuple = ("no drums",)
    drum_chance: float = 1.0
    voicings: tuple = ((0, 2, 4),)  # what the backing plays in turn, in steps of the scale above the root
    walk: tuple = ((0,),)  # the same for the bass
    touch: float = 1.0  # length of a chord relative to the time to the next one
    swing: float = 0.0  # delay of the off-beat eighth, in beats
    room: float = 0.08  # level of the reverberation
    beats: int = 4  # in a bar


def _harmonics(count: int, slope: float, pluck: float = 0.0, copies: tuple = (1,)) -> tuple:
    """Harmonics of level k ** -slope, filtered like a string plucked at `pluck` of its length; detuned copies."""
    level = {k: k**-slope * (abs(np.sin(np.pi * k * pluck)) if pluck else 1) for k in range(1, count + 1)}
    return tuple((k * copy, level[k]) for copy in copies for k in level)


# fmt: off
PICK, ORGAN = (1.6, 150, 600, 6000), ((0.5, 0.8), (1, 1), (1.5, 0.5), (2, 0.9), (3, 0.5), (4, 0.6), (6, 0.3), (8, 0.4))
LEADS = {
    "piano": Timbre(((0.5, 0.7), *_harmonics(12, 1.1, 0.12)), 67, (1.2, 1), (0.004, 0.2)),
    "acoustic guitar": Timbre(_harmonics(32, 0.3, 0.15), 56, (1.5, 4), formant=(220, 6), noise=PICK),
    "electric guitar": Timbre(((1, 1), (1.5, 0.7), (2, 0.5), (3, 0.4)), 60, (0.5, 0), waver=(25, 0), drive=9),
    "violin": Timbre(_harmonics(18, 0.9), 76, (0, 0), (0.09, 0.12), (45, 0), (2800, 8)),
    "flute": Timbre(((1, 1), (2, 0.25), (3, 0.06)), 75, (0, 0), (0.07, 0.1), (0, 0.25), noise=(0.16, 0, 1500, 9000)),
    "trumpet": Timbre(_harmonics(16, 0.2), 67, (0, 0), (0.035, 0.05), (10, 0), (1300, 15)),
    "organ": Timbre(ORGAN, 65, envelope=(0.006, 0.03), waver=(0, 0.35)),
    "music box": Timbre(((1, 1), (2, 0.15), (5.4, 0.5), (8.9, 0.2)), 86, (2.2, 0.2), (0.004, 0.5)),
    "marimba": Timbre(((1, 1), (3.93, 0.45), (9.2, 0.2)), 62, (7, 5), noise=PICK),
    "synth": Timbre(_harmonics(40, 0.6, copies=(1, 1.01)), 69, envelope=(0.003, 0.03)),
}
BACKINGS = {
    "strings": Timbre(_harmonics(8, 1.5, copies=(1, 1.005)), envelope=(0.2, 0.25)),
    "synth pads": Timbre(_harmonics(6, 1.2, copies=(1, 1.008)), envelope=(0.8, 0.8)),
    "piano chords": Timbre(_harmonics(8, 1.5, 0.12), 60, (2, 2), (0.004, 0.1)),
    "electric piano": Timbre(((1, 1), (2, 0.3), (7, 0.12)), 60, (1.2, 3), (0.004, 0.2), (0, 0.3)),
    "strummed guitar": Timbre(_harmonics(14, 0.9, 0.2), 60, (3, 4)),
    "rhythm guitar": Timbre(((1, 1), (1.5, 0.8), (2, 0.6)), 45, (5, 0), drive=5),
    "brass chords": Timbre(_harmonics(9, 0.9), 53, envelope=(0.03, 0.06), formant=(700, 8)),
    "synth stabs": Timbre(_harmonics(16, 0.8, copies=(1, 1.007)), 60, (5, 3)),
    "organ chords": Timbre(((1, 1), (2, 0.7), (3, 0.4), (4, 0.3)), 60, (1, 0)),
}
BASS = Timbre(_harmonics(6, 1.3), 36, (1.5, 8), (0.008, 0.06))
DRUMS = {
    "kick": Timbre(((1, 1), (1.7, 0.7), (2.6, 0.4)), 31, (5, 120), noise=(0.3, 200, 1000, 5000)),
    "snare": Timbre(((1, 0.7), (1.6, 0.5)), 54, (25, 0), (0.001, 0.06), noise=(0.7, 18, 900, 9000)),
    "hat": Timbre(((1, 1),), 122, (90, 0), (0.001, 0.06), noise=(1, 60, 8000, 15000)),
    "ride": Timbre(((1, 1), (1.37, 1)), 110, (20, 0), (0.001, 0.06), noise=(1, 9, 5000, 13000)),
    "tambourine": Timbre(((1, 1), (1.2, 1)), 118, (30, 0), (0.001, 0.06), noise=(1, 16, 6500, 12000)),
    "rim": Timbre(((1, 1), (2.1, 0.8)), 80, (70, 0), (0.001, 0.06)),
}
ROOT_FIFTH, ARPEGGIO = ((0,), (4,)), ((0,), (2,), (4,), (7,), (4,), (2,), (4,), (2,))
STYLES = {
    "ballad": Style(("ballad",), ("slow",), ("piano chords", "strings"), "xxxxxxxx", "xx",
        ("x-x-xxx-", "x--xx-x-", "x-xxx-x-", "xxx-x-x-"), (("kick", 0.5, "xx"), ("rim", 0.4, "-x-x")),
        ("soft drums",), 0.4, ARPEGGIO, ROOT_FIFTH, touch=2, room=0.15),
    "rock": Style(("rock song", "rock track"), ("medium", "fast"), ("rhythm guitar",), "xxxxxxxx", "xxxxxxxx",
        ("x-xxx-x-", "xxx-x---", "x--xx-x-", "x-x-xxx-"),
        (("kick", 1.0, "x---xx--"), ("snare", 1.2, "-x-x"), ("hat", 0.7, "xxxxxxxx")),
        ("driving drums", "loud drums"), voicings=((0,),), touch=0.8),
    "house": Style(("house track", "dance track"), ("fast",), ("synth stabs",), "x--x--x---x--x--", "-x-x-x-x",
        ("x--x--x-", "x-xxx--x", ".xxxx-x-", "x---x--x"),
        (("kick", 1.3, "xxxx"), ("snare", 0.6, "-x-x"), ("hat", 1.0, "-x-x-x-x")),
        ("four on the floor drums", "a pounding kick"), touch=0.6),
    "jazz": Style(("jazz tune", "jazz piece"), ("medium", "fast"), ("piano chords",), "x--x---x", "xxxx",
        ("xxxxx-..", "x-xxx--x", ".xxxxxx-", "x--xxxx-"), (("ride", 1.0, "x-xxx-xx"), ("hat", 0.8, "-x-x")),
        ("swinging cymbals",), 1.0, ((0, 2, 4, 6),), ((0,), (2,), (4,), (2,)), touch=0.4, swing=1 / 6),
    "waltz": Style(("waltz",), ("medium", "fast"), ("strings", "piano chords"), "-xx", "x--",
        ("x---x-", "x-x-x-", "x-xxx-", "x--xx-", "x-x-xx"), (("kick", 0.6, "x--"), ("hat", 0.6, "-xx")),
        ("light drums",), 0.3, touch=0.5, room=0.12, beats=3),
    "march": Style(("march",), ("medium", "fast"), ("brass chords",), "-x-x", "xx",
        ("x-x-x-x-", "x--xx-x-", "x-xxx---", "x--xx--x"), (("kick", 0.9, "xx"), ("snare", 0.9, "x-xxx-x-x-xxxxxx")),
        ("a marching snare", "snare drum rolls"), walk=ROOT_FIFTH, touch=0.5),
    "ambient": Style(("ambient piece", "ambient soundscape"), ("slow",), ("synth pads",), "x", ".",
        ("x-x-x---", "x---x-x-", "x--x--x-", "..x-x-x-"), touch=1.2, room=0.35),
    "folk": Style(("folk tune", "folk song"), ("medium", "fast"), ("strummed guitar",), "x-xx-xxx", "xx",
        ("xxxxx-x-", "x-x-xxx-", "x-xxx-x-", "x--xxxx-"), (("tambourine", 1.0, "--x---xx"),),
        ("a tambourine",), 0.5, walk=ROOT_FIFTH),
    "hip hop": Style(("hip hop beat", "hip hop track"), ("slow", "medium"), ("electric piano",), "x----x--",
        "x--x------x-----", ("xxx-..x-", "x--x--x-", "x-.xx-x-", "..x-xxx-"),
        (("kick", 1.4, "x--x------x-----"), ("snare", 1.2, "-x-x"), ("hat", 0.6, "x-xxx-x-x-x-x-xx")),
        ("a heavy beat", "boom bap drums"), swing=0.08),
    "reggae": Style(("reggae song", "reggae groove"), ("slow", "medium"), ("organ chords",), "-x-x-x-x", "x--xx-x-",
        ("x-xxx-..", "x--xx---", ".xx-x-x-", "xxx-x--."), (("kick", 1.2, "-x"), ("rim", 1.0, "----x--x")),
        ("one drop drums", "laid back drums"), walk=((0,), (4,), (2,)), touch=0.3),
}
TEMPLATES = (
    "a {mood} {style} with {lead}", "a {mood} {style} led by a {lead}", "{mood} {style} with a {lead} melody",
    "a {lead} plays a {mood} {style}", "a {lead} plays a {mood} {style} over {backing}",
    "a {tempo} {mood} {style} featuring {lead}", "{tempo} {style} led by a {lead} in a {mode} key",
    "a {mood} {style} of {lead} and {backing}", "{mood} {style} with {lead} and {drums}",
    "{tempo} {mood} {style} with {lead} and {drums}",
)
# fmt: on
MOODS = {"major": ("happy", "cheerful", "joyful"), "minor": ("sad", "melancholic", "sorrowful")}
TEMPO_NAMES = {"slow": ("slow", "unhurried"), "medium": ("mid tempo", "medium tempo"), "fast": ("fast", "fast paced")}


def split_of(number: int) -> str:
    """Returns the split that owns an index or a checksum."""
    return SPLIT_OF_SLOT[number % len(SPLIT_OF_SLOT)]


def draw_caption(truth: dict, rng: np.random.Generator) -> str:
    """Draws one of the many true captions of a clip: 5 to 14 words of a-z."""
    style = STYLES[truth["style"]]
    words = {"style": style.names, "mood": MOODS[truth["mode"]], "tempo": TEMPO_NAMES[truth["tempo"]]}
    words["drums"] = ("no drums",) if truth["drums"] == "no drums" else style.drum_names
    words = {slot: _draw_word(options, rng) for slot, options in words.items()}
    return re.sub(r"\ba (?=[aeiou])", "an ", _draw_word(TEMPLATES, rng).format(**truth | words))


def _draw_word(options: tuple, rng: np.random.Generator) -> str:
    """Draws a word as people choose theirs: the k-th option 1/k times as often as the first (Zipf)."""
    weights = 1 / np.arange(1, len(options) + 1)
    return str(rng.choice(options, p=weights / weights.sum()))


def _onsets(pattern: str, beats: int) -> list[tuple[float, float]]:
    """Start and length, in beats, of each note in a pattern that fills a bar."""
    marks, unit = [i for i, mark in enumerate(pattern) if mark != "-"], beats / len(pattern)
    return [(i * unit, (after - i) * unit) for i, after in zip(marks, [*marks[1:], len(pattern)]) if pattern[i] == "x"]


def draw_tune(style: Style, mode: str, progression: list, bars: int, rng: np.random.Generator) -> list[tuple]:
    """
    Draws a tune as notes: start and length in beats, step of the scale, and whether it is on a strong beat.

    Two motifs, each the rhythm and contour of a bar, alternate as a a b a. Strong beats move to the nearest chord tone.
    """
    lean = (0.6, 0.4) if mode == "major" else (0.4, 0.6)
    moves = rng.choice((1, 1, 1, 2), (2, 8)) * rng.choice((1, -1), (2, 8), p=lean)
    motifs = [(style.cells[i], contour) for i, contour in zip(rng.permutation(len(style.cells)), moves.tolist())]
    tune, step = [], int(rng.choice((0, 2, 4)))
    for bar in range(bars):
        cell, contour = motifs[bar % 4 == 2]
        for (start, length), move in zip(_onsets(cell, style.beats), contour):
            step += move if -3 <= step + move <= 7 else -move
            if start % 2 == 0:
                step += next(shift for shift in (0, -1, 1) if (step + shift - progression[bar % 4]) % 7 in (0, 2, 4))
            tune.append((bar * style.beats + start, length, step, start % 2 == 0))
    return tune


def draw_clip(seed: int, index: int) -> tuple[dict, np.ndarray]:
    """Draws clip `index` of the corpus of `seed`: its row of `metadata.csv` and its int16 mono samples `(320000,)`."""
    rng, split = np.random.default_rng([seed, index]), split_of(index)
    pairs = [(lead, name) for lead in LEADS for name in STYLES]  # each hundred clips hold every pair once, shuffled
    order = np.random.default_rng([seed, index // len(pairs), 1]).permutation(len(pairs))
    lead, name = pairs[order[index % len(pairs)]]
    style = STYLES[name]
    while True:
        options = {"mode": SCALES, "key": KEYS, "tempo": style.tempos, "backing": style.backings}
        truth = {"lead": lead, "style": name} | {slot: str(rng.choice(list(options[slot]))) for slot in options}
        truth["bpm"] = int(rng.integers(*TEMPOS[truth["tempo"]], endpoint=True))
        truth["drums"] = style.drum_names[0] if rng.random() < style.drum_chance else "no drums"
        progression = [int(root) for root in str(rng.choice(PROGRESSIONS[truth["mode"]]))]
        tune = draw_tune(style, truth["mode"], progression, int(np.ceil(truth["bpm"] / 6 / style.beats)), rng)
        truth["tune"] = " ".join(f"{step}:{length:g}" for _, length, step, _ in tune)
        drawn = (draw_caption(truth, rng) for _ in range(100))
        caption = next((text for text in drawn if split_of(zlib.crc32(text.encode())) == split), None)
        if caption and split_of(zlib.crc32(truth["tune"].encode())) == split:
            row = {"file_name": f"demo-{index:05d}.flac", "id": f"demo-{index:05d}", "caption": caption}
            return row | truth, render_clip(truth, progression, tune, rng)


@functools.cache
def _noise(low: float, high: float) -> np.ndarray:
    """Six seconds of noise in a band (Hz), with RMS 1; always the same samples."""
    bandpass = scipy.signal.butter(2, (low, high), "bandpass", fs=SAMPLE_RATE, output="sos")
    noise = scipy.signal.sosfilt(bandpass, np.random.default_rng(0).standard_normal(6 * SAMPLE_RATE))
    return (noise / noise.std()).astype(np.float32)


def render_note(timbre: Timbre, pitch: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Renders a note of MIDI `pitch`, held for `seconds`, then released: float32 samples with RMS 1 at the onset."""
    ratios, amplitudes = np.array(timbre.partials, float).T
    hertz = 440 * 2 ** ((pitch - 69) / 12) * ratios
    (decay, damping), (attack, release), (vibrato, tremolo) = timbre.decay, timbre.envelope, timbre.waver
    amplitudes = amplitudes * (1 + timbre.formant[1] * np.exp(-1.5 * np.log2(hertz / timbre.formant[0]) ** 2))
    amplitudes = amplitudes * (hertz < 0.4 * SAMPLE_RATE) * np.exp(2j * np.pi * rng.random(len(hertz)))
    amplitudes /= np.linalg.norm(amplitudes) / 2**0.5
    count = int((seconds + release) * SAMPLE_RATE)
    t = np.arange(count, dtype=np.float32) / SAMPLE_RATE
    # Decaying sines as a product, exp(s (128 i + j)) = exp(128 s i) exp(s j), in parts too small for BLAS to thread.
    s = (2j * np.pi * hertz - decay - damping * hertz / 1000) / SAMPLE_RATE
    coarse = amplitudes * np.exp(np.outer(np.arange(0, -(-count // 2048) * 2048, 128), s))
    fine = np.exp(np.outer(s, np.arange(128)))
    left = np.hstack([coarse.real, coarse.imag]).astype(np.float32).reshape(-1, 16, 2 * len(s))
    note = (left @ np.vstack([fine.imag, fine.real]).astype(np.float32)).ravel()[:count]
    if vibrato or tremolo:  # both set in after the onset; vibrato reads the note at a wavering time
        wave = np.sin(2 * np.pi * 5.6 * t) * np.minimum(1, t / 0.25)
        note = np.interp(t + vibrato / 1200 * np.log(2) / (2 * np.pi * 5.6) * wave, t, note) * (1 + tremolo * wave)
    note = np.tanh(timbre.drive * note) if timbre.drive else note
    if timbre.noise:
        level, fading, *band = timbre.noise
        note = note + level * _noise(*band)[:count] * np.exp(-fading * t)
    return (note * np.minimum(1, t / attack) * np.minimum(1, (t[-1] - t) / release)).astype(np.float32)


def render_clip(truth: dict, progression: list, tune: list, rng: np.random.Generator) -> np.ndarray:
    """Plays the tune with chords, bass and drums: 10 s of int16 samples, limited to between -7 and -1 dB."""
    style, major, scale = STYLES[truth["style"]], truth["mode"] == "major", SCALES[truth["mode"]]
    beat, begin = 60 / truth["bpm"], rng.uniform(0, 0.2)
    lead, backing, bass, drums = np.zeros((4, SAMPLES), np.float32)

    def play(track: np.ndarray, sound: np.ndarray, beats: float, gain: float = 1.0) -> None:
        start = int((begin + beat * (beats + style.swing * (beats % 1 == 0.5))) * SAMPLE_RATE)
        sound = sound[: max(0, SAMPLES - start)]
        track[start : start + len(sound)] += gain * sound

    @functools.cache
    def sound(timbre: Timbre, register: int, steps: tuple, beats: float) -> np.ndarray:
        tonic = register - 6 + (KEYS[truth["key"]] - register + 6) % 12
        pitches = [tonic + scale[step % 7] + 12 * (step // 7) for step in steps]
        return sum(render_note(timbre, pitch, beats * beat, rng) for pitch in pitches)

    timbre, chords = LEADS[truth["lead"]], BACKINGS[truth["backing"]]
    for start, length, step, strong in tune:  # a happy tune is higher and more detached
        note = sound(timbre, timbre.register + (4 if major else -4), (step,), length * (0.7 if major else 0.98))
        play(lead, note, start, 1.0 if strong else 0.8)
    parts = (
        (backing, chords, chords.register + (2 if major else -3), style.chords, style.voicings, style.touch),
        (bass, BASS, BASS.register, style.bass, style.walk, 0.9),
    )
    for bar in range(int(np.ceil(10 / beat / style.beats))):
        for track, timbre, register, pattern, voicings, touch in parts:
            for (start, length), steps in zip(_onsets(pattern, style.beats), voicings * len(pattern)):
                steps = tuple((progression[bar % 4] + step) % 7 for step in steps)
                play(track, sound(timbre, register, steps, length * touch), bar * style.beats + start)
        for name, gain, pattern in style.drums if truth["drums"] != "no drums" else ():
            for start, _ in _onsets(pattern, style.beats):
                drum = render_note(DRUMS[name], DRUMS[name].register, 0.3, rng)
                play(drums, drum, bar * style.beats + start, gain * rng.uniform(0.85, 1.0))
    mix = 1.3 * drums
    for track, level in ((lead, 1.0), (backing, 0.26), (bass, 0.4)):
        mix += level * track / max(1e-6, float(np.sqrt(np.mean(track**2))))
    room = _noise(100, 9000)[:48000] * np.exp(-4 * np.linspace(0, 1.5, 48000, dtype=np.float32))
    mix += style.room / 30 * scipy.signal.oaconvolve(mix, room)[:SAMPLES]
    mix += (0.5 if major else -0.5) * (mix - scipy.signal.lfilter([0.2], [1, -0.8], mix))  # happy music is brighter
    return np.round(32767 * 10 ** (-rng.uniform(1, 7) / 20) * np.tanh(mix / (5 * mix.std()))).astype(np.int16)


def _write_clip(folder: Path, seed: int, index: int) -> dict:
    row, waveform = draw_clip(seed, index)
    soundfile.write(folder / split_of(index) / row["file_name"], waveform, SAMPLE_RATE, subtype="PCM_16")
    return row


def write_demo_corpus(output_dir: str | Path, clips: int = 800, seed: int = 0, num_proc: int | None = None) -> None:
    """
    Writes the corpus, or keeps the one in `output_dir` if it was made with the same settings.

    Args:
        output_dir (`str` or `Path`):
            Folder of the corpus, which only appears once the corpus is complete.
        clips (`int`, defaults to 800):
            Number of clips, at least 20: 75 % train, 10 % validation and 15 % test.
        seed (`int`, defaults to 0):
            Clip i only depends on (seed, i). With the same versions of the libraries its bytes are the same.
        num_proc (`int`, *optional*, defaults to one per core, at most 8):
            Number of processes. The corpus does not depend on it.

    Raises:
        `ValueError`: For fewer than 20 clips.
        `FileExistsError`: If `output_dir` holds anything else.
    """
    if clips < len(SPLIT_OF_SLOT):
        raise ValueError(f"clips is {clips}: expected at least {len(SPLIT_OF_SLOT)}, so that every split has some")
    output_dir = Path(output_dir).absolute()
    settings = {"generator": "corpora.demo", "version": GENERATOR_VERSION, "clips": clips, "seed": seed}
    if output_dir.exists() and (output_dir.is_file() or any(output_dir.iterdir())):
        about = output_dir / "corpus.json"
        found = json.loads(about.read_text()) if about.is_file() else "something else"
        if found == settings:
            print(f"{output_dir} already holds this corpus: nothing to do")
            return
        raise FileExistsError(f"{output_dir} holds {found}, not {settings}: remove it or choose another output_dir")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}.partial-", dir=output_dir.parent) as scratch:
        partial = Path(scratch, "corpus")
        for split in SPLITS:
            (partial / split).mkdir(parents=True)
        with multiprocessing.get_context("spawn").Pool(num_proc or min(8, os.cpu_count() or 1)) as pool:
            written = pool.imap(functools.partial(_write_clip, partial, seed), range(clips), chunksize=4)
            rows = list(tqdm(written, total=clips, desc="Composing", unit="clip"))
        for split in SPLITS:
            with open(partial / split / "metadata.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(row for index, row in enumerate(rows) if split_of(index) == split)
        (partial / "corpus.json").write_text(json.dumps(settings) + "\n")
        partial.replace(output_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description="Composes a small corpus of music and captions for the demo.")
    parser.add_argument("--output_dir", default="data/demo", help="folder to write (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=800, help="number of clips of 10 s (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn (default: %(default)s)")
    parser.add_argument("--num_proc", type=int, help="processes (default: one per core, at most 8)")
    write_demo_corpus(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
