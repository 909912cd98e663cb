"""What the log-mel and its feature extractor promise: CLAP's numbers, and the same bits alone and in any batch."""

import json
import pickle

import numpy as np
import pytest
import torch
from encoders import RATE, clap, is_usable, music, stereo_noise
from helpers import SHARED
from transformers import AutoFeatureExtractor

from audio_rgmc import AudioError, load_audio, prepare_waveform
from feature_extraction_rgmc import RGMCFeatureExtractor, log_mel_spectrogram

REAL_AUDIO = sorted((SHARED / "real_audio").glob("*/*.*"))


@pytest.mark.skipif(not REAL_AUDIO, reason="the real recordings are not here")
def test_every_real_recording_decodes_and_has_the_log_mel_of_clap():
    for path in REAL_AUDIO:
        waveform = load_audio(path)
        assert is_usable(waveform), path
        if path.stat().st_size > 500_000:  # the larger half of the files: CLAP's extractor is slow
            continue
        np.testing.assert_allclose(log_mel_spectrogram(waveform), clap(waveform), atol=1e-3, err_msg=str(path))


def test_log_mel_equals_clap():
    for waveform in (music(), prepare_waveform(stereo_noise(), RATE), np.zeros(480_000, np.float32)):
        found = log_mel_spectrogram(waveform)
        assert found.shape == (1001, 64) and found.dtype == torch.float32
        np.testing.assert_allclose(found, clap(waveform), atol=1e-4)


def test_log_mel_of_loud_bass_and_faint_treble_equals_clap():
    t = np.arange(480_000) / 48_000
    waveform = np.sin(2 * np.pi * 60 * t) + 1e-5 * np.random.default_rng(0).standard_normal(len(t))
    found = log_mel_spectrogram(waveform.astype(np.float32))
    np.testing.assert_allclose(found, clap(waveform.astype(np.float32)), atol=1e-3)


def test_log_mel_is_the_same_bits_alone_and_in_any_batch():
    waveforms = np.stack([music(), prepare_waveform(stereo_noise(), RATE), 0.01 * music()[::-1]])
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


@pytest.mark.gpu
def test_log_mel_of_a_gpu_equals_that_of_the_cpu():
    waveforms = np.stack([music(), prepare_waveform(stereo_noise(), RATE)] * 20)
    found = log_mel_spectrogram(waveforms, device="cuda")
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), log_mel_spectrogram(waveforms), atol=1e-4, rtol=0)


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
