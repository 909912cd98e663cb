"""
What a crop promises: the seconds that a decoding of the whole file has there, in every container and codec that PyAV's
FFmpeg can write. `pytest -n 0 -s tests/test_seeking.py` prints by how much each is off.
"""

import io
import warnings
from collections.abc import Iterable, Iterator

import av
import numpy as np
import pytest
from scipy.signal import fftconvolve

from audio_rgmc import FROM_THE_START, AudioWarning, load_audio

# Devices, protocols, playlists and checksums: nothing that FFmpeg could read back as one file.
NO_FILES = {"alsa", "crc", "dash", "fbdev", "fifo", "framecrc", "framehash", "framemd5", "hash", "hds", "hls", "image2"}
NO_FILES |= {"md5", "null", "oss", "rtp", "rtp_mpegts", "rtsp", "sap", "segment", "smoothstreaming", "streamhash"}
NO_FILES |= {"stream_segment,ssegment", "tee", "uncodedframecrc", "video4linux2,v4l2", "webm_chunk", "whip"}
NO_FILES |= {"webm_dash_manifest"}
NO_SOUND = {"anull", "comfortnoise"}  # encoders that keep nothing of what they are given
RATES = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000]  # the lowest that can be had is the fastest
ASKED_FOR = {11_025, 16_000, 48_000}  # by some containers
BIT_RATES = {"g723_1": "6300", "wmav1": "32000", "wmav2": "32000"}
# What people have, and what FFmpeg seeks in wrongly.
COMMON = [(codec, "wav") for codec in ("pcm_s16le", "pcm_alaw", "pcm_mulaw", "adpcm_ima_wav", "adpcm_ms", "adpcm_swf")]
COMMON += [(codec, "wav") for codec in ("adpcm_yamaha", "g722", "g726", "libmp3lame", "libopencore_amrnb")]
COMMON += [(codec, "avi") for codec in ("pcm_s16le", "libmp3lame", "dfpwm", "g722", "libopencore_amrnb")]
COMMON += [(codec, "ogg") for codec in ("vorbis", "libopus", "flac")]
COMMON += [(codec, "matroska") for codec in ("vorbis", "libopus", "flac", "aac")]
COMMON += [("aac", "mp4"), ("alac", "ipod"), ("pcm_s16le", "mov"), ("libmp3lame", "flv"), ("pcm_s16le", "flv")]
COMMON += [("libmp3lame", "mp3"), ("flac", "flac"), ("aac", "adts"), ("ac3", "ac3"), ("mp2", "mp2"), ("mp2", "mpeg")]
COMMON += [("mp2", "mpegts"), ("aac", "mpegts"), ("wavpack", "wv"), ("tta", "tta"), ("libopencore_amrnb", "amr")]
COMMON += [("adpcm_ms", "w64"), ("pcm_s16be", "aiff"), ("adpcm_ima_ws", "aiff"), ("pcm_mulaw", "au"), ("alac", "caf")]
COMMON += [("wmav2", "asf"), ("flac", "asf"), ("flac", "wtv")]
WITH_OPTIONS = [
    ("aac", "mp4", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "1000000"}),
    ("libopus", "matroska", {"live": "1"}),
    ("libmp3lame", "mp3", {"write_xing": "0"}),
]
START = {"start": 0, "middle": None, "end": -10}
LARGEST_ERROR = 0.05  # s


def noise(seconds: float, rate: int) -> np.ndarray:
    return 0.2 * np.random.default_rng(0).standard_normal(round(seconds * rate), np.float32)


def encode(codec: str, muxer: str, rate: int, layout: str, samples: np.ndarray, options: dict | None = None) -> bytes:
    file = io.BytesIO()
    sample_format = (av.Codec(codec, "w").audio_formats or [av.AudioFormat("s16")])[0].name
    with av.open(file, "w", format=muxer, options=options or {}) as container:
        codec_options = {"strict": "-2"} | ({"b": BIT_RATES[codec]} if codec in BIT_RATES else {})
        stream = container.add_stream(codec, rate=rate, layout=layout, options=codec_options)
        stream.codec_context.format = sample_format
        resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate)
        for first in range(0, len(samples), rate):
            frame = av.AudioFrame.from_ndarray(samples[None, first : first + rate], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, first
            for converted in resampler.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode_whole(content: bytes) -> tuple[np.ndarray, int, tuple[str, str]]:
    """The first channel of all that FFmpeg decodes of the file, its rate, and the names of demuxer and decoder."""
    pieces, rate = [], None
    with av.open(io.BytesIO(content), metadata_errors="ignore") as container:
        stream = container.streams.audio[0]
        names = container.format.name, stream.codec.name
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                samples = frame.to_ndarray()
                step = 1 if frame.format.is_planar else frame.layout.nb_channels
                rate = rate or frame.sample_rate
                pieces.append(samples[0, ::step])
    whole = np.concatenate(pieces)
    if whole.dtype.kind in "iu":
        half = 2.0 ** (8 * whole.dtype.itemsize - 1)
        whole = whole / np.float32(half) - np.float32(whole.dtype.kind == "u")
    return whole.astype(np.float32), rate, names


def choices(codec: str) -> list[tuple[int, str]]:
    """Rates and layouts that an encoder takes: the lowest, which is the fastest, and some that containers insist on."""
    found = []
    for layout in ("mono", "stereo", "5.1"):
        for rate in RATES:
            context = av.CodecContext.create(codec, "w")
            context.format = (av.Codec(codec, "w").audio_formats or [av.AudioFormat("s16")])[0].name
            context.rate, context.layout = rate, layout
            context.options = {"strict": "-2", "b": BIT_RATES.get(codec, "64000")}
            try:
                context.open()
            except (ValueError, OSError, av.FFmpegError):
                continue
            found.append((rate, layout))
    return [choice for choice in found if choice == found[0] or (choice[0] in ASKED_FOR and choice[1] == found[0][1])]


def possible_pairs() -> Iterator[tuple[str, str]]:
    for codec in sorted(av.codecs_available - NO_SOUND):
        try:
            if av.Codec(codec, "w").type == "audio":
                yield from ((codec, muxer) for muxer in sorted(av.formats_available - NO_FILES))
        except ValueError:
            continue


def readable(pairs: Iterable[tuple]) -> Iterator[tuple[str, str, int, str, dict]]:
    """
    Encoder, muxer, rate, layout and muxer options: one for each demuxer and decoder, of those pairs that can be had.
    """
    seen = set()
    for codec, muxer, *options in pairs:
        options = options[0] if options else {}
        for rate, layout in choices(codec):
            try:
                content = encode(codec, muxer, rate, layout, noise(2.0, rate), options)
                whole, found_rate, names = decode_whole(content)
            except (ValueError, IndexError, OSError, av.FFmpegError):
                continue
            if len(whole) > found_rate:  # FFmpeg cannot read back all that it writes
                if (*names, *options) not in seen:
                    seen.add((*names, *options))
                    yield codec, muxer, rate, layout, options
                break


def find(part: np.ndarray, whole: np.ndarray, expected: int, near: int) -> int:
    """The sample of `whole` that `part` begins with."""
    part = part[: min(len(part), 16_000)]
    for begin, end in ((max(expected - near, 0), expected + near + len(part)), (0, None)):
        region = whole[begin:end]
        match = fftconvolve(region, part[::-1])
        lag = int(match.argmax()) - (len(part) - 1)
        shared = region[max(lag, 0) : lag + len(part)]
        if match.max() > 0.7 * np.linalg.norm(shared) * np.linalg.norm(part):
            return begin + lag
    return -(10**12)  # nowhere


def offsets(content: bytes) -> dict[str, float]:
    """By how many ms the crops at the start, in the middle and at the end are off, and if one was announced."""
    whole, rate, _ = decode_whole(content)
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
                whole, _, _ = decode_whole(content)
            except (OSError, av.FFmpegError):  # FFmpeg cannot handle so much: GXF knows no such length
                continue
            if len(whole) < seconds / 2 * rate:
                continue
            found, count = offsets(content), count + 1
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


@pytest.mark.slow
def test_crop_of_an_hour_lies_where_a_full_decode_has_it():
    assert check_table(readable(COMMON + WITH_OPTIONS), [3600]) >= 50


def test_a_large_tag_and_joined_files_do_not_move_the_crop():
    samples = noise(70.0, 8_000)
    mp3 = encode("libmp3lame", "mp3", 8_000, "mono", samples, {"write_xing": "0", "id3v2_version": "0"})
    size = 3_000_000
    tag = b"ID3\4\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)
    ogg = [encode("vorbis", "ogg", 8_000, "stereo", half) for half in np.split(samples, 2)]
    for content in (tag + mp3, b"".join(ogg)):
        assert len(decode_whole(content)[0]) > 69 * 8_000
        found = offsets(content)
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
    found = offsets(file.getvalue())
    assert found == {"start": 0, "middle": 0, "end": 0, "from its start": True}
