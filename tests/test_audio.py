"""What the audio front end promises: the right seconds of any file, exactly 480,000 finite samples, CLAP's log-mel."""

import csv
import http.server
import io
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
from encoders import FORMATS, NO_XING_TAG, RATE, clap, encode_file, is_usable, music, stereo_noise, write_film
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import fftconvolve

from audio_rgmc import AudioError, AudioWarning, decode_audio, load_audio, prepare_waveform, stream_audio
from clips.isolation import SECONDS
from feature_extraction_rgmc import RGMCFeatureExtractor, log_mel_spectrogram

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
EXPECTED = SHARED / "bad_audio" / "expected.csv"
BAD_AUDIO = list(csv.DictReader(EXPECTED.open(encoding="utf-8"))) if EXPECTED.exists() else []


def lag(found: np.ndarray, wanted: np.ndarray) -> int:
    """Number of samples by which `found` is later than `wanted`."""
    found, wanted = found[:120_000], wanted[:120_000]
    return int(fftconvolve(found, wanted[::-1]).argmax()) - (len(wanted) - 1)


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


@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_is_the_whole_file_piece_by_piece(encoded, name):
    path, samples, rate = encoded(name)
    pieces = list(stream_audio(path))
    whole = np.concatenate(pieces)
    assert len(pieces) > 5 and max(map(len, pieces)) < 2 * 48_000 and whole.dtype == np.float32
    assert len(whole) / 48_000 == pytest.approx(decode_audio(path)[1], abs=0.001)
    wanted = prepare_waveform(samples, rate, 3.7)
    assert abs(lag(whole[round(3.7 * 48_000) :], wanted)) <= FORMATS[name][-1]
    if name in ("pcm.wav", "lossless.flac", "lossless.m4a"):
        np.testing.assert_allclose(whole, prepare_waveform(samples, rate, 0.0, samples.shape[1] / rate), atol=1e-4)


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
    clicks[:, random.integers(clicks.shape[1], size=200)] = 0.9  # libvorbis uses short blocks around them
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


def test_decoding_also_returns_the_length_of_the_whole_sound(wav, encoded):
    waveform, seconds = decode_audio(wav[0], 3.0)
    assert np.array_equal(waveform, load_audio(wav[0], 3.0)) and seconds == 20.0
    for name in ("lossless.flac", "opus.opus", "vbr_without_tag.mp3"):
        path, samples, rate = encoded(name)
        assert decode_audio(path)[1] == pytest.approx(samples.shape[1] / rate, abs=0.1)


def test_file_that_cannot_be_sought_is_read_from_its_beginning():
    file = io.BytesIO()
    soundfile.write(file, np.full(20 * 16_000, 0.5), 16_000, format="FLAC")  # FFmpeg finds no frame to seek to
    assert len(file.getvalue()) < 2_000
    np.testing.assert_allclose(load_audio(file)[1000:-1000], 0.5, atol=2e-3)  # a resampler rings at both ends


def test_frames_of_another_kind_in_between_are_left_out(tmp_path):
    for name, samples in {"stereo.mp3": stereo_noise(8.0).T, "mono.mp3": stereo_noise(4.0)[0]}.items():
        soundfile.write(tmp_path / name, samples, RATE)
    stereo, mono = [(tmp_path / name).read_bytes() for name in ("stereo.mp3", "mono.mp3")]
    assert is_usable(load_audio(stereo + mono + stereo))


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts", "opus.mkv"])
@pytest.mark.parametrize("delay", [0.0, 1.7])
def test_a_stream_of_sound_is_on_the_clock_of_the_film(tmp_path, name, delay):
    """A tone from 0.5 s of the sound on; the codec's own delay is no part of it."""
    sound = 0.5 * np.sin(2 * np.pi * 440 * np.arange(96_000) / 48_000) * (np.arange(96_000) >= 24_000)
    write_film(tmp_path / name, sound, "libopus" if "opus" in name else "aac", delay)
    heard = np.concatenate(list(stream_audio(tmp_path / name)))
    assert np.flatnonzero(np.abs(heard) > 0.25)[0] / 48_000 == pytest.approx(delay + 0.5, abs=0.05)
    assert len(heard) / 48_000 == pytest.approx(delay + 2, abs=0.1)


def write_film_of_two_streams(path: Path, default: int = 0) -> Path:
    """Writes 12 s of film with two audio streams, one constantly 0.25 and one constantly -0.5."""
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
        path = write_film_of_two_streams(tmp_path / f"{default}.mkv", default)
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
    """Writes a FLAC in which the named channels have these values and all others are silent."""
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
    sides = dict(zip(("FL", "FR"), stereo_noise(12.0, 48_000)))
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
    soundfile.write(file, stereo_noise(120.0).T, RATE, format="WAV")
    file.count = 0
    load_audio(file)
    assert file.count < 0.2 * len(file.getvalue())


def test_only_the_wanted_seconds_are_held_in_memory(tmp_path):
    encode_file(tmp_path / "short.mp3", "libmp3lame", "fltp", stereo_noise(20.0), RATE, NO_XING_TAG, b="64000")
    long = tmp_path / "two_hours.mp3"
    with long.open("wb") as file:
        for _ in range(360):
            file.write((tmp_path / "short.mp3").read_bytes())
    tracemalloc.start()
    try:
        assert is_usable(load_audio(long))
        assert tracemalloc.get_traced_memory()[1] < 50e6  # the whole file decodes to 2.5 GB
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
        samples = stereo_noise(1.0).T.copy()
        samples[100, 0] = value
        soundfile.write(tmp_path / name, samples, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "integers_as_floats.wav", stereo_noise(1.0).T * 32768, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "one_sample.wav", stereo_noise(1.0).T[:1], RATE)
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


def test_a_stream_refuses_what_cannot_be_used_by_name(tmp_path):
    (tmp_path / "text.mp3").write_text("no music")
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    for name, problem in {
        "text.mp3": "unreadable",
        "nan.wav": "NaN or infinite samples",
        "gone": "no such file",
    }.items():
        with pytest.raises(AudioError, match=rf"{name}'.*{problem}"):
            list(stream_audio(tmp_path / name))


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
