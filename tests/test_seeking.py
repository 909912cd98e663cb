"""
What a crop promises: the same seconds as in a decoding of the whole file, in every container and codec that PyAV's
FFmpeg can write. `pytest -n 0 -s tests/test_seeking.py` prints how far off each is.
"""

import io
import warnings
from collections.abc import Iterator

import av
import numpy as np
import pytest
from encoders import COMMON, WITH_OPTIONS, decode_whole, encode, noise, possible_pairs, readable
from scipy.signal import fftconvolve

from audio_rgmc import FROM_THE_START, AudioWarning, load_audio

START = {"start": 0, "middle": None, "end": -10}
LARGEST_ERROR = 0.05  # s


def find(part: np.ndarray, whole: np.ndarray, expected: int, near: int) -> int:
    """Finds the sample of `whole` at which `part` begins."""
    part = part[: min(len(part), 16_000)]
    for begin, end in ((max(expected - near, 0), expected + near + len(part)), (0, None)):
        region = whole[begin:end]
        match = fftconvolve(region, part[::-1])
        lag = int(match.argmax()) - (len(part) - 1)
        shared = region[max(lag, 0) : lag + len(part)]
        if match.max() > 0.7 * np.linalg.norm(shared) * np.linalg.norm(part):
            return begin + lag
    return -(10**12)  # nowhere


def offsets(content: bytes, whole: np.ndarray, rate: int) -> dict[str, float]:
    """
    Measures by how many ms the crops at the start, middle and end are off from the `whole` sound, which has `rate` Hz,
    and whether a warning was given.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = {}
        for name, start in START.items():
            expected = max((len(whole) - 10 * rate) // 2, 0) if start is None else max(len(whole) + start * rate, 0)
            expected = 0 if start == 0 else expected
            crop = load_audio(content, None if start is None else expected / rate, 10.0, rate)
            found[name] = (find(crop, whole, expected, round(LARGEST_ERROR * rate)) - expected) / rate * 1000
    announced = [caution.message.kind for caution in caught if isinstance(caution.message, AudioWarning)]
    found["from its start"] = FROM_THE_START in announced
    return found


def check_table(rows: Iterator[tuple[str, str, int, str, dict]], lengths: list[float]):
    print(f"\n{'encoder':18}{'muxer':22}{'Hz':>6}{'s':>6}{'start':>10}{'middle':>10}{'end':>10} ms")
    wrong, count = [], 0
    for codec, muxer, rate, layout, options in rows:
        for seconds in lengths:
            try:
                content = encode(codec, muxer, rate, layout, noise(seconds, rate), options)
                whole, decoded_rate, _ = decode_whole(content)
            except (OSError, av.FFmpegError):  # FFmpeg cannot write so much: GXF does not support such a length
                continue
            if len(whole) < seconds / 2 * rate:
                continue
            found, count = offsets(content, whole, decoded_rate), count + 1
            name = f"{codec:18}{muxer + '*' * bool(options):22}{rate:6}{seconds:6.0f}"
            print(name + "".join(f"{found[place]:10.2f}" for place in START), "counted" * found["from its start"])
            if any(abs(found[place]) > LARGEST_ERROR * 1000 for place in START):
                wrong.append((codec, muxer, seconds, found))
    assert not wrong
    return count


def test_crop_lies_where_a_full_decode_has_it_in_common_containers():
    assert check_table(readable(COMMON + WITH_OPTIONS), [12, 140]) >= 2 * 50


@pytest.mark.slow
def test_crop_lies_where_a_full_decode_has_it_in_every_container_and_codec():
    assert check_table(readable(possible_pairs()), [12, 140]) > 600


def test_a_large_tag_and_joined_files_do_not_move_the_crop():
    samples = noise(70.0, 8_000)
    mp3 = encode("libmp3lame", "mp3", 8_000, "mono", samples, {"write_xing": "0", "id3v2_version": "0"})
    size = 3_000_000
    tag = b"ID3\4\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)
    ogg = [encode("vorbis", "ogg", 8_000, "stereo", half) for half in np.split(samples, 2)]
    for content in (tag + mp3, b"".join(ogg)):
        whole, rate, _ = decode_whole(content)
        assert len(whole) > 69 * 8_000
        found = offsets(content, whole, rate)
        assert max(abs(found[place]) for place in START) <= LARGEST_ERROR * 1000


@pytest.mark.parametrize(("seconds", "times"), [(140, 1), (9, 0)])
def test_decoding_from_the_start_is_announced_where_it_costs(recwarn, seconds, times):
    load_audio(encode("adpcm_ima_wav", "wav", 8_000, "mono", noise(seconds, 8_000)))
    load_audio(encode("pcm_s16le", "wav", 8_000, "mono", noise(140, 8_000)))
    announced = [str(warning.message) for warning in recwarn if FROM_THE_START in str(warning.message)]
    assert announced == [f"<bytes>: {FROM_THE_START} (140 s)"] * times


def test_times_that_do_not_agree_with_the_samples_are_not_believed():
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(encode("pcm_s16le", "matroska", 8_000, "mono", noise(140, 8_000)))) as source,
        av.open(file, "w", format="matroska") as target,
    ):
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = 2 * packet.pts, 2 * packet.dts, stream
                target.mux(packet)
    whole, decoded_rate, _ = decode_whole(file.getvalue())
    found = offsets(file.getvalue(), whole, decoded_rate)
    assert found == {"start": 0, "middle": 0, "end": 0, "from its start": True}
