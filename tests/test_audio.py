"""What the audio front end promises: the right seconds of any file, exactly 480,000 finite samples, CLAP's log-mel."""

import csv
import http.server
import io
import json
import pickle
import threading
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
import torch
from av.stream import Disposition
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, fftconvolve, sosfilt
from transformers import AutoFeatureExtractor, ClapFeatureExtractor

from audio_rgmc import AudioError, AudioWarning, load_audio, prepare_waveform
from feature_extraction_rgmc import RGMCFeatureExtractor, log_mel_spectrogram

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
REAL_AUDIO = sorted((SHARED / "real_audio").glob("*/*.*"))
EXPECTED = SHARED / "bad_audio" / "expected.csv"
BAD_AUDIO = list(csv.DictReader(EXPECTED.open(encoding="utf-8"))) if EXPECTED.exists() else []
RATE = 44_100
SECONDS = 25.3


def noise(seconds: float = SECONDS, rate: int = RATE, channels: int = 2) -> np.ndarray:
    """`(channels, samples)` of correlated noise below 6 kHz: lossy codecs keep it, and each moment of it is unique."""
    samples = np.random.default_rng(0).standard_normal((channels, round(seconds * rate)))
    samples[1:] = 0.5 * (samples[1:] + samples[:1])
    return (0.2 * sosfilt(butter(4, 6000, fs=rate, output="sos"), samples)).astype(np.float32)


def music(seconds: float = 10.0, rate: int = 48_000) -> np.ndarray:
    """`(samples,)` of decaying chords with a little noise."""
    t = np.arange(round(seconds * rate)) / rate
    chord = sum(np.sin(2 * np.pi * f * t) / k for k, f in enumerate([110, 220, 277.2, 329.6, 1108.7, 4434.9], start=1))
    hiss = np.random.default_rng(0).standard_normal(len(t))
    return (0.2 * chord * np.exp(-4 * (t % 0.5)) + 0.003 * hiss).astype(np.float32)


def encode(
    path: Path,
    codec: str,
    sample_format: str,
    samples: np.ndarray,
    rate: int,
    muxer: dict | None = None,
    **codec_options,
):
    """Write a file with the codecs and muxers that PyAV carries."""
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
    # Without a tag nobody knows the encoder's delay (25 ms). The middle by the duration FFmpeg guesses is seconds off.
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


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A function from a name in `FORMATS` to the path of that file and the samples in it."""
    folder = tmp_path_factory.mktemp("encoded")

    def get(name: str) -> tuple[Path, np.ndarray, int]:
        codec, sample_format, rate, codec_options, muxer, _ = FORMATS[name]
        samples = noise(rate=rate)
        if not (folder / name).exists():
            encode(folder / name, codec, sample_format, samples, rate, muxer, **codec_options)
        return folder / name, samples, rate

    return get


@pytest.fixture
def wav(tmp_path):
    """A 20 s stereo WAV and its samples as they are stored."""
    path = tmp_path / "sound.wav"
    soundfile.write(path, noise(20.0).T, RATE, subtype="FLOAT")
    return path, noise(20.0)


def clap(waveform: np.ndarray) -> np.ndarray:
    extractor = ClapFeatureExtractor(
        frequency_min=50, frequency_max=14_000, truncation="rand_trunc", padding="repeatpad"
    )
    return extractor(waveform, sampling_rate=48_000, return_tensors="np")["input_features"][0, 0]


def lag(found: np.ndarray, wanted: np.ndarray) -> int:
    """By how many samples `found` comes after `wanted`."""
    found, wanted = found[:120_000], wanted[:120_000]
    return int(fftconvolve(found, wanted[::-1]).argmax()) - (len(wanted) - 1)


def is_usable(waveform: np.ndarray) -> bool:
    return waveform.shape == (480_000,) and waveform.dtype == np.float32 and bool(np.isfinite(waveform).all())


# --- the right seconds of a file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("start", [None, 0.0, 3.7, 15.2])
def test_crop_has_the_content_of_its_place_in_every_format(encoded, name, start):
    path, samples, rate = encoded(name)
    wanted = prepare_waveform(samples, rate, start)
    assert abs(lag(load_audio(path, start), wanted)) <= FORMATS[name][-1]


@pytest.mark.parametrize("name", ["pcm.wav", "lossless.flac", "lossless.m4a"])
def test_lossless_crop_equals_the_array(encoded, name):
    path, samples, rate = encoded(name)
    np.testing.assert_allclose(load_audio(path), prepare_waveform(samples, rate), atol=1e-4)  # 16 bit


@pytest.mark.parametrize("name", ["lossless.flac", "cbr.mp3", "vorbis.ogg", "opus.opus", "vbr_without_tag.mp3"])
def test_seeking_gives_the_samples_of_a_full_decode(encoded, name):
    path, _, rate = encoded(name)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    if frames[0].dtype == np.int16:
        whole = np.concatenate(frames, axis=1).reshape(-1, 2).T
    else:
        whole = np.concatenate(frames, axis=1)
        whole = whole.reshape(-1, 2).T if whole.shape[0] == 1 else whole
    np.testing.assert_allclose(load_audio(path), prepare_waveform(whole, rate), atol=1e-4)


@pytest.mark.parametrize("rate", [22_050, 44_100])
def test_seeking_in_vorbis_with_short_blocks_gives_the_samples_of_a_full_decode(tmp_path, rate):
    random = np.random.default_rng(0)
    clicks = 0.01 * random.standard_normal((2, 30 * rate)).astype(np.float32)
    clicks[:, random.integers(clicks.shape[1], size=200)] = 0.9  # libvorbis takes short blocks around them
    path = tmp_path / "clicks.ogg"
    soundfile.write(path, clicks.T, rate)
    with av.open(str(path)) as container:
        whole = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    for start in [None, *random.uniform(0.5, 19.0, size=20)]:
        np.testing.assert_allclose(load_audio(path, start), prepare_waveform(whole, rate, start), atol=1e-4)


def test_middle_of_truncated_file_is_that_of_what_is_left(tmp_path, encoded):
    path, samples, rate = encoded("cbr.mp3")
    cut = tmp_path / "cut.mp3"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])  # its tag still says 25.3 s
    left = samples[:, : round(SECONDS * 4 / 5 * rate)]
    assert abs(lag(load_audio(cut), prepare_waveform(left, rate))) < 0.05 * 48_000


def test_streamed_wav_without_length_has_its_middle(wav):
    path, samples = wav
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff" * 4
    data = content.index(b"data")
    content[data + 4 : data + 8] = b"\xff" * 4
    np.testing.assert_array_equal(load_audio(bytes(content)), prepare_waveform(samples, RATE))


def test_file_that_cannot_be_sought_is_read_from_its_beginning():
    file = io.BytesIO()
    soundfile.write(file, np.full(20 * 16_000, 0.5), 16_000, format="FLAC")  # FFmpeg finds no frame to seek to
    assert len(file.getvalue()) < 2_000
    np.testing.assert_allclose(load_audio(file)[1000:-1000], 0.5, atol=2e-3)  # a resampler rings at both ends


def test_frames_of_another_kind_in_between_are_left_out(tmp_path):
    for name, samples in {"stereo.mp3": noise(8.0).T, "mono.mp3": noise(4.0)[0]}.items():
        soundfile.write(tmp_path / name, samples, RATE)
    stereo, mono = [(tmp_path / name).read_bytes() for name in ("stereo.mp3", "mono.mp3")]
    assert is_usable(load_audio(stereo + mono + stereo))


def write_film(path: Path, default: int = 0) -> Path:
    """12 s of film with two audio streams: 0.25 all the time, and -0.5 all the time."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p")
        sound = [container.add_stream("pcm_s16le", rate=48_000, layout="mono") for _ in range(2)]
        sound[default].disposition = Disposition.default
        for second in range(12):
            for _ in range(10):
                container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
            for stream, level in zip(sound, (8192, -16384)):
                frame = av.AudioFrame.from_ndarray(np.full((1, 48_000), level, np.int16), format="s16", layout="mono")
                frame.sample_rate, frame.pts = 48_000, second * 48_000
                container.mux(stream.encode(frame))
        for stream in (video, *sound):
            container.mux(stream.encode(None))
    return path


def test_default_audio_stream_of_a_video_is_used_or_the_one_asked_for(tmp_path):
    first, second = np.full((2, 480_000), [[0.25], [-0.5]], np.float32)
    for default, expected in enumerate((first, second)):
        path = write_film(tmp_path / f"{default}.mkv", default)
        np.testing.assert_array_equal(load_audio(path), expected)
        np.testing.assert_array_equal(load_audio(path, stream=0), first)
        np.testing.assert_array_equal(load_audio(path, stream=1), second)
        features = RGMCFeatureExtractor()([path], stream=1)["input_features"]
        assert torch.equal(features[0, 0], log_mel_spectrogram(second))
        for wrong in (2, -1):
            with pytest.raises(AudioError, match=f"mkv': stream={wrong}, but it has 2 audio streams, counted from 0"):
                load_audio(path, stream=wrong)


def test_cover_art_does_not_matter(tmp_path):
    for name, art in (("plain.mp4", False), ("with_art.mp4", True)):
        with av.open(str(tmp_path / name), "w") as container:
            if art:
                picture = container.add_stream("mjpeg", rate=1, width=64, height=64, pix_fmt="yuvj420p")
                picture.disposition = Disposition.attached_pic
            stream = container.add_stream("alac", rate=48_000, layout="mono")
            if art:
                container.mux(picture.encode(av.VideoFrame(64, 64, "yuvj420p")))
                container.mux(picture.encode(None))
            frame = av.AudioFrame.from_ndarray((music(30.0)[None] * 2**15).astype(np.int16), "s16p", "mono")
            frame.sample_rate, frame.pts = 48_000, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with av.open(str(tmp_path / "with_art.mp4")) as container:
        assert len(container.streams.video) == 1
    np.testing.assert_array_equal(load_audio(tmp_path / "with_art.mp4"), load_audio(tmp_path / "plain.mp4"))


def write_surround(path: Path, layout: str, channels: dict[str, np.ndarray]) -> Path:
    """A FLAC of these channels; those that are not named are silent."""
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    samples = np.stack([channels.get(name, np.zeros(12 * 48_000, np.float32)) for name in names])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=48_000, layout=layout)
        for first in range(0, samples.shape[1], 4096):
            block = np.round(samples[:, first : first + 4096].T.reshape(1, -1) * 2**15).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "s16", layout)
            frame.sample_rate, frame.pts = 48_000, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("layout", ["5.1", "5.1(side)", "7.1", "quad", "3.0"])
def test_stereo_stored_as_surround_is_as_loud_as_the_stereo_file(tmp_path, layout):
    sides = dict(zip(("FL", "FR"), noise(12.0, 48_000)))
    stereo = write_surround(tmp_path / "stereo.flac", "stereo", sides)
    surround = write_surround(tmp_path / "surround.flac", layout, sides)
    found, wanted = (RGMCFeatureExtractor()(path)["input_features"] for path in (surround, stereo))
    assert (found - wanted).abs().max() < 0.1


@pytest.mark.filterwarnings("ignore::audio_rgmc.AudioWarning")
@pytest.mark.parametrize(
    ("layout", "name", "gain"),
    [("5.1", "FL", 0.5), ("5.1", "FC", 0.7071), ("5.1", "BR", 0.3536), ("5.1", "LFE", 0.0), ("7.1", "SL", 0.3536)],
)
def test_surround_is_mixed_as_the_itu_says(tmp_path, layout, name, gain):
    sound = music(12.0)
    path = write_surround(tmp_path / "surround.flac", layout, {name: sound})
    np.testing.assert_allclose(load_audio(path), gain * sound[48_000:528_000], atol=1e-4)


def test_only_the_wanted_part_of_a_file_is_read():
    class CountingFile(io.BytesIO):
        count = 0

        def read(self, size=-1):
            content = super().read(size)
            self.count += len(content)
            return content

    file = CountingFile()
    soundfile.write(file, noise(120.0).T, RATE, format="WAV")
    file.count = 0
    load_audio(file)
    assert file.count < 0.2 * len(file.getvalue())


def test_only_the_wanted_seconds_are_held_in_memory(tmp_path):
    encode(tmp_path / "short.mp3", "libmp3lame", "fltp", noise(20.0), RATE, NO_XING_TAG, b="64000")
    long = tmp_path / "two_hours.mp3"
    with long.open("wb") as file:
        for _ in range(360):
            file.write((tmp_path / "short.mp3").read_bytes())
    tracemalloc.start()
    try:
        assert is_usable(load_audio(long))
        assert tracemalloc.get_traced_memory()[1] < 50e6  # decoded as a whole it is 2.5 GB
    finally:
        tracemalloc.stop()


# --- sources ----------------------------------------------------------------------------------------------------------


def test_path_bytes_file_object_and_datasets_dict_give_the_same_samples(wav):
    path, _ = wav
    wanted, content = load_audio(path), path.read_bytes()
    with path.open("rb") as file:
        file.seek(1000)
        sources = [str(path), content, file, file, io.BytesIO(content), {"path": str(path), "bytes": None}]
        sources += [{"path": "elsewhere.mp3", "bytes": content}, {"path": None, "bytes": content}]
        for source in sources:
            np.testing.assert_array_equal(load_audio(source), wanted)
        assert not file.closed


@pytest.mark.parametrize("name", ["-i", "with space.wav", "名前_ünïcödé.wav", "a%20b#c?.wav", "lies.mp3", "http:x.wav"])
def test_name_of_a_file_does_not_matter(wav, tmp_path, monkeypatch, name):
    path, _ = wav
    (tmp_path / name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(load_audio(name), load_audio(path))


def test_addresses_and_playlists_do_not_reach_the_network(tmp_path):
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/sound.ts"
    playlist = tmp_path / "playlist.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n")
    concat = tmp_path / "list.ffconcat"
    concat.write_text(f"ffconcat version 1.0\nfile '{url}'\n")
    try:
        for source in (url, f"async:{url}", f"file:{playlist}", playlist, playlist.read_bytes(), concat):
            with pytest.raises(AudioError):
                load_audio(source)
    finally:
        server.shutdown()
        server.server_close()
    assert requests == []


# --- broken files -----------------------------------------------------------------------------------------------------


def test_broken_files_are_refused_by_name_and_without_noise(tmp_path, wav, capfd):
    whole = wav[0].read_bytes()
    bad = {
        "empty.mp3": b"",
        "text.wav": b"This is not music.\n" * 100,
        "random.flac": np.random.default_rng(0).bytes(20_000),
        "header_cut.wav": whole[:20],
        "header_only.wav": whole[: whole.index(b"data") + 8],
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    for name, value in {"nan.wav": np.nan, "infinite.wav": np.inf, "-infinite.wav": -np.inf}.items():
        samples = noise(1.0).T.copy()
        samples[100, 0] = value
        soundfile.write(tmp_path / name, samples, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "integers_as_floats.wav", noise(1.0).T * 32768, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "one_sample.wav", noise(1.0).T[:1], RATE)
    with av.open(str(tmp_path / "silent_film.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p")
        container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(video.encode(None))
    (tmp_path / "directory.wav").mkdir()
    for path in [*tmp_path.iterdir(), tmp_path / "missing.wav", Path("/dev/null"), "nul\0byte.wav"]:
        if path != wav[0]:
            with pytest.raises(AudioError, match=Path(path).name.replace("\0", ".*")):
                load_audio(path)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("source", [None, 3.5, io.StringIO("text"), {}, {"path": None, "bytes": None}, {"bytes": b""}])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(AudioError, match="expected"):
        load_audio(source)


@pytest.mark.parametrize("name", ["lossless.flac", "cbr.mp3", "vorbis.ogg", "pcm.wav", "padded_at_its_end.m4a"])
def test_damaged_files_give_usable_samples_or_an_error(encoded, name):
    content = encoded(name)[0].read_bytes()
    random = np.random.default_rng(0)
    for _ in range(6):
        damaged = bytearray(content[: random.integers(len(content))])
        for position in random.integers(len(damaged) + 1, size=3):
            damaged[position : position + 500] = random.bytes(500)
        try:
            assert is_usable(load_audio(bytes(damaged)))
        except AudioError as error:
            assert "<bytes>" in str(error)


@pytest.mark.skipif(not BAD_AUDIO, reason="the collection of odd files is not here")
@pytest.mark.parametrize("row", BAD_AUDIO, ids=lambda row: row["file"])
def test_odd_file_is_accepted_or_refused_as_expected(row):
    path = EXPECTED.parent / row["file"]
    try:
        waveform = load_audio(path)
    except AudioError as error:
        assert row["expect"] in ("refuse", "either")
        assert row["file"] in str(error).replace("\\'", "'")
    else:
        assert row["expect"] in ("accept", "either")
        assert is_usable(waveform)
        assert log_mel_spectrogram(waveform).isfinite().all()


@pytest.mark.skipif(not REAL_AUDIO, reason="the real recordings are not here")
def test_every_real_recording_decodes_and_has_the_log_mel_of_clap():
    for path in REAL_AUDIO:
        waveform = load_audio(path)
        assert is_usable(waveform), path
        if path.stat().st_size > 500_000:  # the larger half: CLAP's extractor is slow
            continue
        np.testing.assert_allclose(log_mel_spectrogram(waveform), clap(waveform), atol=1e-3, err_msg=str(path))


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_mono_is_the_mean_of_the_channels(wav):
    path, samples = wav
    mean = soxr.resample(samples[:, 5 * RATE : 15 * RATE].mean(axis=0), RATE, 48_000, quality="HQ")
    np.testing.assert_allclose(prepare_waveform(samples, RATE), mean, atol=1e-6)
    np.testing.assert_allclose(load_audio(path), mean, atol=1e-6)


def test_array_and_file_of_the_same_sound_are_equal(wav):
    path, samples = wav
    np.testing.assert_array_equal(load_audio(path), prepare_waveform(samples, RATE))
    np.testing.assert_array_equal(load_audio(path, 1.5), prepare_waveform(torch.from_numpy(samples), RATE, 1.5))


def test_integers_are_scaled_by_their_range():
    expected = np.float32([0.5, -0.5]).repeat(240_000)
    for dtype, half, centre in [(np.int8, 64, 0), (np.int16, 2**14, 0), (np.int32, 2**30, 0), (np.int64, 2**62, 0)]:
        np.testing.assert_array_equal(prepare_waveform((expected * 2 * half + centre).astype(dtype), 48_000), expected)
    np.testing.assert_array_equal(prepare_waveform((expected * 128 + 128).astype(np.uint8), 48_000), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        np.testing.assert_array_equal(prepare_waveform(torch.tensor(expected, dtype=dtype), 48_000), expected)


def test_short_sound_is_repeated_and_padded_as_clap_does_and_announced(tmp_path):
    path = tmp_path / "short.wav"
    sound = music(3.0)
    soundfile.write(path, sound, 48_000, subtype="FLOAT")
    with pytest.warns(AudioWarning) as caught:
        waveform = load_audio(path)
    np.testing.assert_array_equal(waveform, np.pad(np.tile(sound, 3), (0, 48_000)))
    np.testing.assert_allclose(log_mel_spectrogram(waveform), clap(sound), atol=1e-3)
    assert [str(warning.message) for warning in caught] == [
        f"'{path}': shorter than 10 s, repeated and zero-padded (3.00 s)"
    ]


def test_silence_and_opposite_phase_are_announced(tmp_path, recwarn):
    soundfile.write(tmp_path / "silence.wav", np.zeros((480_000, 2)), 48_000)
    soundfile.write(tmp_path / "opposite.wav", np.stack([music(), -music()], axis=1), 48_000)
    soundfile.write(tmp_path / "quiet.wav", 1e-4 * music(), 48_000, subtype="FLOAT")
    for name in ("silence.wav", "opposite.wav", "quiet.wav"):
        assert is_usable(load_audio(tmp_path / name))
    announced = [str(warning.message) for warning in recwarn if warning.category is AudioWarning]
    assert len(announced) == 2
    assert "silence.wav': digital silence" in announced[0]
    assert "opposite.wav': channels in opposite phase" in announced[1]


@pytest.mark.filterwarnings("error")
def test_exactly_ten_seconds_are_not_announced():
    for rate in (8_000, 11_025, 44_100, 96_000):
        assert is_usable(prepare_waveform(music(10.0, rate), rate))


@pytest.mark.parametrize("start", [-0.1, 20.0, 21.0, float("nan"), float("inf")])
def test_start_outside_the_sound_is_an_error(wav, start):
    for call in (lambda: load_audio(wav[0], start), lambda: prepare_waveform(wav[1], RATE, start)):
        with pytest.raises(AudioError, match=r"expected 0 <= start < 20\.00 s"):
            call()


def test_missing_sampling_rate_names_the_way_out():
    with pytest.raises(AudioError, match="expected sampling_rate="):
        RGMCFeatureExtractor()(music())


@pytest.mark.parametrize("shape", [(48_000, 2), (65, 48_000), (1, 2, 48_000), (0,), (0, 48_000), ()])
def test_wrong_shape_is_an_error_that_names_both(shape):
    with pytest.raises(AudioError) as error:
        prepare_waveform(np.zeros(shape, np.float32), 48_000)
    assert str(shape) in str(error.value) and "(channels, samples)" in str(error.value)


@pytest.mark.parametrize(
    "bad", [np.zeros(48_000, bool), np.zeros(48_000, complex), np.full(48_000, np.nan), np.full(48_000, 1e300)]
)
def test_values_that_are_no_samples_are_an_error(bad):
    with pytest.raises(AudioError, match=r"<array>.*expected"):
        prepare_waveform(bad, 48_000)


@pytest.mark.parametrize("rate", [0, -1, 10, 1e9, float("nan")])
def test_impossible_sampling_rate_is_an_error(rate):
    with pytest.raises(AudioError, match="sampling rate"):
        prepare_waveform(music(), rate)


@pytest.mark.filterwarnings("ignore::audio_rgmc.AudioWarning")
@settings(max_examples=40, deadline=None)
@given(
    rate=st.integers(4_000, 192_000),
    channels=st.integers(1, 8),
    seconds=st.floats(0, 40),
    dtype=st.sampled_from(["float16", "float32", "float64", "uint8", "int16", "int32"]),
    as_tensor=st.booleans(),
)
def test_any_array_gives_480_000_finite_samples_or_an_error(rate, channels, seconds, dtype, as_tensor):
    samples = min(round(seconds * rate), 4_000_000 // channels)  # keeps the test cheap
    sound = np.resize(music(0.1, rate), (channels, samples))
    sound = (sound * np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else sound).astype(dtype)
    try:
        assert is_usable(prepare_waveform(torch.from_numpy(sound) if as_tensor else sound, rate))
    except AudioError:
        assert samples / rate < 0.02


# --- log-mel ----------------------------------------------------------------------------------------------------------


def test_log_mel_equals_clap():
    for waveform in (music(), prepare_waveform(noise(), RATE), np.zeros(480_000, np.float32)):
        found = log_mel_spectrogram(waveform)
        assert found.shape == (1001, 64) and found.dtype == torch.float32
        np.testing.assert_allclose(found, clap(waveform), atol=1e-4)


def test_log_mel_of_loud_bass_and_faint_treble_equals_clap():
    t = np.arange(480_000) / 48_000
    waveform = np.sin(2 * np.pi * 60 * t) + 1e-5 * np.random.default_rng(0).standard_normal(len(t))
    found = log_mel_spectrogram(waveform.astype(np.float32))
    np.testing.assert_allclose(found, clap(waveform.astype(np.float32)), atol=1e-3)


def test_log_mel_is_the_same_bits_alone_and_in_any_batch():
    waveforms = np.stack([music(), prepare_waveform(noise(), RATE), 0.01 * music()[::-1]])
    batch = log_mel_spectrogram(torch.from_numpy(waveforms))
    assert batch.shape == (3, 1001, 64)
    for waveform, row in zip(waveforms, batch):
        assert torch.equal(log_mel_spectrogram(waveform), row)
    assert torch.equal(log_mel_spectrogram(waveforms[::-1].copy()), batch.flip(0))


def test_log_mel_is_the_same_bits_on_any_number_of_threads():
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(log_mel_spectrogram(music()))
        assert torch.get_num_threads() == number
    torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_log_mel_is_not_touched_by_autocast_or_gradients():
    waveform = torch.from_numpy(music()).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_mel_spectrogram(waveform)
    assert torch.equal(found, log_mel_spectrogram(music()))
    assert not found.requires_grad


@pytest.mark.parametrize("shape", [(), (0, 480_000), (512,), (1, 1, 480_000)])
def test_log_mel_of_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match="expected"):
        log_mel_spectrogram(torch.zeros(shape))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_log_mel_of_a_gpu_equals_that_of_the_cpu():
    waveforms = np.stack([music(), prepare_waveform(noise(), RATE)] * 20)
    found = log_mel_spectrogram(waveforms, device="cuda")
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), log_mel_spectrogram(waveforms), atol=1e-4, rtol=0)


# --- the feature extractor --------------------------------------------------------------------------------------------


def test_extractor_takes_mixed_kinds_and_gives_each_as_alone(wav, encoded):
    path, samples = wav
    mp3 = encoded("cbr.mp3")[0]
    sounds = [path, mp3.read_bytes(), samples, {"path": str(mp3), "bytes": None}, torch.from_numpy(samples[0])]
    sounds.append({"array": music(12.0, 22_050), "sampling_rate": 22_050})
    extractor = RGMCFeatureExtractor()
    batch = extractor(sounds, sampling_rate=RATE)
    assert list(batch) == ["input_features"]
    assert batch.input_features.shape == (6, 1, 1001, 64) and batch.input_features.dtype == torch.float32
    for sound, row in zip(sounds, batch.input_features):
        assert torch.equal(extractor(sound, sampling_rate=RATE).input_features[0], row)
    assert torch.equal(batch.input_features[0], batch.input_features[2])
    numpy_batch = extractor(iter(sounds), sampling_rate=RATE, return_tensors="np").input_features
    np.testing.assert_array_equal(numpy_batch, batch.input_features)


def test_extractor_says_which_sound_is_bad(wav):
    with pytest.raises(AudioError, match=r"audio 2 of 2: 'missing\.wav': no such file"):
        RGMCFeatureExtractor()([wav[0], "missing.wav"])


@pytest.mark.parametrize("audio", [[], (), 3.5, [0.1, 0.2], None])
def test_extractor_refuses_what_is_no_sound(audio):
    with pytest.raises(AudioError, match="expected"):
        RGMCFeatureExtractor()(audio)


def test_extractor_refuses_unknown_keywords(wav):
    with pytest.raises(TypeError, match="trunkation"):
        RGMCFeatureExtractor()(wav[0], trunkation=True)


def test_extractor_settings_are_used():
    extractor = RGMCFeatureExtractor(duration=5.0, sampling_rate=32_000, feature_size=32, hop_length=320)
    assert extractor(music(), sampling_rate=48_000).input_features.shape == (1, 1, 501, 32)


def test_extractor_survives_saving_nesting_and_pickling(tmp_path):
    extractor = RGMCFeatureExtractor(duration=5.0, frequency_max=12_000.0)
    extractor.save_pretrained(tmp_path / "alone")
    saved = json.loads((tmp_path / "alone" / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoFeatureExtractor": "feature_extraction_rgmc.RGMCFeatureExtractor"}
    assert not any(isinstance(value, list) for value in saved.values())  # no filter banks
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "processor_config.json").write_text(json.dumps({"feature_extractor": saved}))
    copies = [RGMCFeatureExtractor.from_pretrained(tmp_path / folder) for folder in ("alone", "nested")]
    copies.append(pickle.loads(pickle.dumps(extractor)))
    wanted = extractor(music(), sampling_rate=48_000).input_features
    for copy in copies:
        assert type(copy) is RGMCFeatureExtractor
        for field in ("duration", "frequency_max", "feature_size", "sampling_rate", "padding_side"):
            assert getattr(copy, field) == getattr(extractor, field)
        assert torch.equal(copy(music(), sampling_rate=48_000).input_features, wanted)


def test_saved_folder_loads_with_the_auto_class(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    RGMCFeatureExtractor().save_pretrained(tmp_path / "saved")
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert type(loaded).__name__ == "RGMCFeatureExtractor"
    assert loaded(music(), sampling_rate=48_000).input_features.shape == (1, 1, 1001, 64)
