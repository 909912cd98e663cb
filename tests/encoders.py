"""Audio files of every container and codec that PyAV's FFmpeg can write."""

import functools
import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from scipy.signal import butter, sosfilt
from transformers import ClapFeatureExtractor

# Devices, protocols, playlists and checksums, which FFmpeg cannot read back as one file.
NO_FILES = {"alsa", "crc", "dash", "fbdev", "fifo", "framecrc", "framehash", "framemd5", "hash", "hds", "hls", "image2"}
NO_FILES |= {"md5", "null", "oss", "rtp", "rtp_mpegts", "rtsp", "sap", "segment", "smoothstreaming", "streamhash"}
NO_FILES |= {"stream_segment,ssegment", "tee", "uncodedframecrc", "video4linux2,v4l2", "webm_chunk", "whip"}
NO_FILES |= {"webm_dash_manifest"}
NO_SOUND = {"anull", "comfortnoise"}  # encoders that discard their input
RATES = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000]  # the lowest available one is the fastest
ASKED_FOR = {11_025, 16_000, 48_000}  # that some containers require
BIT_RATES = {"aac": "32000", "g723_1": "6300", "wmav1": "32000", "wmav2": "32000"}
FAST = {"aac": {"aac_coder": "fast"}, "libmp3lame": {"compression_level": "9"}, "libopus": {"compression_level": "0"}}
# Formats that people have, and some in which FFmpeg seeks wrongly.
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


@functools.lru_cache(maxsize=8)
def noise(seconds: float, rate: int) -> np.ndarray:
    return 0.2 * np.random.default_rng(0).standard_normal(round(seconds * rate), np.float32)


def encode(codec: str, muxer: str, rate: int, layout: str, samples: np.ndarray, options: dict | None = None) -> bytes:
    file = io.BytesIO()
    sample_format = (av.Codec(codec, "w").audio_formats or [av.AudioFormat("s16")])[0].name
    with av.open(file, "w", format=muxer, options=options or {}) as container:
        codec_options = {"strict": "-2", **FAST.get(codec, {})} | (
            {"b": BIT_RATES[codec]} if codec in BIT_RATES else {}
        )
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
    """Decodes the whole file with FFmpeg: its first channel, its rate, and the names of demuxer and decoder."""
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


@functools.cache
def choices(codec: str) -> list[tuple[int, str]]:
    """Lists rates and layouts of an encoder: the lowest, which is the fastest, and some that containers require."""
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
    Lists encoder, muxer, rate, layout and muxer options, one for each available pair of demuxer and decoder.
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
            if len(whole) > found_rate:  # FFmpeg cannot read back everything it writes
                if (*names, *options) not in seen:
                    seen.add((*names, *options))
                    yield codec, muxer, rate, layout, options
                break


# -- a few formats, and a sound that they all keep

RATE = 44_100
SECONDS = 25.3


def stereo_noise(seconds: float = SECONDS, rate: int = RATE, channels: int = 2) -> np.ndarray:
    """Correlated noise below 6 kHz, `(channels, samples)`: lossy codecs keep it, and every moment of it is unique."""
    samples = np.random.default_rng(0).standard_normal((channels, round(seconds * rate)))
    samples[1:] = 0.5 * (samples[1:] + samples[:1])
    return (0.2 * sosfilt(butter(4, 6000, fs=rate, output="sos"), samples)).astype(np.float32)


def music(seconds: float = 10.0, rate: int = 48_000) -> np.ndarray:
    """Decaying chords with a little noise, `(samples,)`."""
    t = np.arange(round(seconds * rate)) / rate
    chord = sum(np.sin(2 * np.pi * f * t) / k for k, f in enumerate([110, 220, 277.2, 329.6, 1108.7, 4434.9], start=1))
    hiss = np.random.default_rng(0).standard_normal(len(t))
    return (0.2 * chord * np.exp(-4 * (t % 0.5)) + 0.003 * hiss).astype(np.float32)


def encode_file(
    path: Path,
    codec: str,
    sample_format: str,
    samples: np.ndarray,
    rate: int,
    muxer: dict | None = None,
    **codec_options,
):
    """Writes a file with the codecs and muxers of PyAV."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo", options=codec_options)
        resampler = av.AudioResampler(format=sample_format, layout="stereo", rate=rate)
        for first in range(0, samples.shape[1], 4096):
            block = np.ascontiguousarray(samples[:, first : first + 4096])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, first
            for converted in resampler.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))


NO_XING_TAG = {"write_xing": "0", "id3v2_version": "0"}
# name: (codec, sample format, rate, codec options, muxer options, offset the format itself causes, in 48 kHz samples)
FORMATS = {
    "pcm.wav": ("pcm_s16le", "s16", RATE, {}, {}, 0),
    "float.wav": ("pcm_f32le", "flt", RATE, {}, {}, 0),
    "lossless.flac": ("flac", "s16", RATE, {}, {}, 0),
    "cbr.mp3": ("libmp3lame", "fltp", RATE, {"b": "128000"}, {}, 1),
    # Without a tag the encoder's delay (25 ms) is unknown. The middle by FFmpeg's guess of the duration is seconds off.
    "vbr_without_tag.mp3": ("libmp3lame", "fltp", RATE, {"flags": "+qscale", "global_quality": "0"}, NO_XING_TAG, 1300),
    "padded_at_its_end.m4a": ("aac", "fltp", RATE, {"b": "160000"}, {}, 600),
    "adts_without_delay.aac": ("aac", "fltp", RATE, {"b": "160000"}, {}, 1200),
    "vorbis.ogg": ("vorbis", "fltp", RATE, {"strict": "-2"}, {}, 600),
    "opus.opus": ("libopus", "flt", 48_000, {"b": "128000"}, {}, 1),
    "clock_of_1_ms.webm": ("libopus", "flt", 48_000, {"b": "128000"}, {}, 48),
    "no_index_no_duration.webm": ("libopus", "flt", 48_000, {"b": "128000"}, {"live": "1"}, 48),
    "lossless.mka": ("flac", "s16", RATE, {}, {}, 48),
    "transport_stream.ts": ("aac", "fltp", RATE, {"b": "160000"}, {}, 1200),
    "lossless.m4a": ("alac", "s16p", RATE, {}, {}, 0),
}


def write_film(path: Path, sound: np.ndarray, codec: str = "aac", delay: float = 0.0):
    """Writes a film whose mono sound at 48 kHz starts `delay` seconds after its picture."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        for _ in range(round(5 * (delay + len(sound) / 48_000))):
            container.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, round(48_000 * delay), Fraction(1, 48_000)
        resampler = av.AudioResampler(stream.format, "mono", 48_000, stream.frame_size)
        for piece in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(piece))


def clap(waveform: np.ndarray) -> np.ndarray:
    extractor = ClapFeatureExtractor(
        frequency_min=50, frequency_max=14_000, truncation="rand_trunc", padding="repeatpad"
    )
    return extractor(waveform, sampling_rate=48_000, return_tensors="np")["input_features"][0, 0]


def is_usable(waveform: np.ndarray) -> bool:
    return waveform.shape == (480_000,) and waveform.dtype == np.float32 and bool(np.isfinite(waveform).all())
