"""
What decoding promises for damaged files: 480,000 finite samples or an AudioError, within 10 s and 500 MB, and no crash.

`RGMC_FUZZ_MUTATIONS=20000 pytest -n 0 tests/test_fuzz.py` tries more files than the 2,000 of a plain run.
"""

import functools
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from encoders import COMMON, WITH_OPTIONS, encode, noise, readable
from tqdm.auto import tqdm

from audio_rgmc import AudioError, load_audio
from clips.isolation import run_isolated

MUTATIONS = int(os.environ.get("RGMC_FUZZ_MUTATIONS", "2000"))
SECONDS = 10
MEMORY = 500e6  # bytes
EXTREMES = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80", b"\1\0\0\0"]


def mutate(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """Damages a file in one to three ways: cut, flip, copy, insert, drop, an extreme number, or another file's head."""
    for _ in range(random.integers(1, 4)):
        size = max(len(content), 2)
        at, length = int(random.integers(size)), int(random.integers(1, 2 + size // 4))
        place = int(random.integers(len(other)))
        kind = random.integers(8)
        if kind == 0:
            content = content[:at]
        elif kind in (1, 2):  # anywhere, or where the numbers are
            damaged = bytearray(content)
            for position in random.integers(size if kind == 1 else min(size, 256), size=random.integers(1, 20)):
                damaged[position : position + 1] = random.bytes(1)
            content = bytes(damaged)
        elif kind == 3:
            content = content[:at] + other[place : place + length] + content[at + length :]
        elif kind == 4:
            content = content[:at] + content[at : at + length] * 2 + content[at + length :]
        elif kind == 5:
            content = content[:at] + content[at + length :]
        elif kind == 6:
            at = at % 512
            content = content[:at] + EXTREMES[random.integers(len(EXTREMES))] + content[at + 4 :]
        else:
            head = int(random.integers(4, 512))
            content = other[:head] + content[head:]
    return content


def memory(field: str) -> int:
    """Memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def decode(content: bytes) -> str | None:
    """Decodes a file and returns what is wrong with the outcome, or None."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            waveform = load_audio(content)
        except AudioError:
            waveform = None
        except Exception as error:
            return repr(error)
    taken = memory("VmHWM") - before
    if taken > MEMORY:
        return f"{taken / 1e6:.0f} MB"
    if waveform is not None and not (waveform.shape == (480_000,) and np.isfinite(waveform).all()):
        return f"{waveform.shape}, finite: {np.isfinite(waveform).all()}"
    return None


def damage_and_decode(number: int, files: list[bytes]) -> str | None:
    random = np.random.default_rng(number)
    content, other = (files[row] for row in random.integers(len(files), size=2))
    return decode(mutate(content, other, random))


needs_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux alone does"
)


@needs_linux
def test_a_damaged_file_gives_a_waveform_or_an_audio_error():
    pairs = list(readable(COMMON + WITH_OPTIONS))
    files = [encode(*pair[:4], noise(3.0, pair[2]), pair[4]) for pair in pairs]
    assert len(files) >= 45
    check = functools.partial(damage_and_decode, files=files)
    results = tqdm(run_isolated(check, range(MUTATIONS), 2, SECONDS), desc="Damaged files", total=MUTATIONS)
    wrong = {number: outcome or problem for number, outcome, problem in results if outcome or problem}
    assert not wrong, f"{len(wrong)} of {MUTATIONS}: {dict(sorted(wrong.items())[:20])}"


@needs_linux
def test_a_text_that_says_it_is_long_takes_no_memory():
    wav = encode("pcm_s16le", "wav", 8_000, "mono", noise(3.0, 8_000))
    sizes = {wav.index(b"LIST") + 4: 710_000_000, wav.index(b"INFO") + 8: 700_000_000}  # of the list and its first text
    for at, size in sizes.items():
        wav = wav[:at] + size.to_bytes(4, "little") + wav[at + 4 :]
    assert decode(wav) is None


@needs_linux
def test_a_stream_that_appears_on_the_way_does_not_matter():
    content = encode("mp2", "mpegts", 16_000, "mono", noise(3.0, 16_000))
    packets = [bytearray(content[at : at + 188]) for at in range(0, len(content), 188)]
    begins = [packet for packet in packets if packet[1] & 0x41 == 0x41 and packet[2] == 0]  # those of stream 0x100
    assert len(begins) > 10
    begins[-5][2] = 0xAA
    assert decode(b"".join(packets)) is None
