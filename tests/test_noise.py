"""What is promised of steady noise: it has no caption, and music of no kind is taken for it."""

import numpy as np
import pytest
import soundfile
from helpers import SHARED

from audio_rgmc import load_audio
from benchmarks.noise import make_noise, through_codec
from feature_extraction_rgmc import RGMCFeatureExtractor
from hearing_rgmc import hear
from noise_rgmc import SEGMENT, find_noise, is_noise, measure_spectrum
from spans_rgmc import divide, find_music, find_silences, measure_levels

RATE = 48_000
KINDS = ("white", "pink", "brown", "room")


def notes(pitches: list[float], seconds: float, decay: float, harmonics: int = 4) -> np.ndarray:
    """Notes one after another, each with overtones and a decay per second."""
    time = np.arange(round(seconds * RATE)) / RATE
    return np.concatenate(
        [
            sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, harmonics + 1)) * np.exp(-decay * time)
            for pitch in pitches
        ]
    )


def music() -> dict[str, np.ndarray]:
    """Ten seconds of several kinds of music, some of which are near to noise."""
    generator = np.random.default_rng(0)
    time = np.arange(10 * RATE) / RATE
    melody = notes([*220 * 2 ** (generator.integers(0, 13, 40) / 12)], 0.25, 4)
    chord = sum(notes([pitch], 10, 0) for pitch in (220, 277, 330))
    beats = np.exp(-18 * (time % 0.25)) * generator.standard_normal(len(time))
    found = {
        "melody": melody,
        "slow bass": notes([55, 65.4, 49, 55], 2.5, 0.5),
        "drone": chord,
        "drums": beats,
        "brushes": (0.3 + np.exp(-6 * (time % 0.5))) * generator.standard_normal(len(time)),
        "melody over noise": melody / melody.std() + make_noise("pink", 10, 1) / 0.05,
        "drone over noise": chord / chord.std() + make_noise("pink", 10, 1) / 0.05,
        "hum": notes([50], 10, 0, 20),
    }
    return {name: (0.1 * sound / sound.std()).astype(np.float32) for name, sound in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_steady_noise_is_found_whole(kind):
    for seed, level in enumerate((1.0, 0.05)):  # -26 and -52 dB
        assert is_noise(level * make_noise(kind, 10, seed), RATE, -70.0)
    for rate in (16_000, 22_050):
        heard = hear(make_noise(kind, 10, 2, rate), RGMCFeatureExtractor(), sampling_rate=rate)
        assert heard.flags == ["no music"] and heard.starts == [] and len(heard.log_mels) == 0
    assert find_noise(*measure_spectrum(through_codec(make_noise(kind, 12, 3), "ogg")[RATE:-RATE], RATE))


@pytest.mark.parametrize("name", music())
def test_music_is_not_taken_for_noise(name):
    sound = music()[name]
    assert find_noise(*measure_spectrum(sound, RATE)) == []
    assert hear(sound, RGMCFeatureExtractor(), sampling_rate=RATE).flags == []


def test_noise_that_swells_or_has_tones_in_it_keeps_its_caption():
    swell = make_noise("white", 10, 0) * np.linspace(0.1, 1, 10 * RATE, dtype=np.float32)
    tones = make_noise("white", 10, 0) + 0.2 * music()["melody"]  # 8 dB below the noise
    assert not is_noise(swell, RATE, -70.0) and not is_noise(tones, RATE, -70.0)


def test_short_noise_is_judged_without_its_repetition():
    extractor = RGMCFeatureExtractor()
    four, two = (hear(make_noise("white", length, 0), extractor, sampling_rate=RATE) for length in (4, 2))
    assert four.flags == ["no music", "short"] and two.flags == ["short"]  # two seconds are too few to tell


def test_noise_beside_silence_is_no_music_and_beside_music_it_is():
    silence, noise = np.zeros(4 * RATE, np.float32), make_noise("room", 6, 0)
    melody = music()["melody"][: 4 * RATE]
    extractor = RGMCFeatureExtractor()
    assert hear(np.concatenate([silence, noise]), extractor, sampling_rate=RATE).flags == ["no music"]
    assert hear(np.concatenate([melody, noise]), extractor, sampling_rate=RATE).flags == []
    both = np.concatenate([noise, silence, melody, np.zeros(2 * RATE, np.float32)])
    windows = hear(np.concatenate([both, melody, noise[: 2 * RATE]]), extractor, where="whole", sampling_rate=RATE)
    assert windows.flags == [] and len(windows.starts) == 2  # of three


def test_spans_of_noise_begin_and_end_within_a_quarter_of_a_second(tmp_path):
    click = music()["hum"][: RATE // 5]
    parts = {
        "other": np.concatenate([make_noise("pink", 4.1, 0), click, make_noise("pink", 4.0, 0)]),
        "music": music()["melody"][: 5 * RATE],
        "other again": make_noise("pink", 5.37, 1),
        "silence": np.zeros(round(1.5 * RATE), np.float32),
        "other at last": make_noise("pink", 7.13, 2),
    }
    soundfile.write(tmp_path / "track.wav", np.concatenate([*parts.values()]), RATE)
    levels = measure_levels(tmp_path / "track.wav")
    duration = levels.samples / RATE
    silences = find_silences(levels.decibels, -60.0, 1.0)
    found = divide(duration, silences, find_music(levels.spectrum, duration, silences))
    assert [kind for _, _, kind in found] == ["other", "music", "other", "silence", "other"]
    ends = np.cumsum([len(sound) for sound in parts.values()]) / RATE
    assert [end for _, end, _ in found] == pytest.approx(ends, abs=SEGMENT)


@pytest.mark.filterwarnings("ignore:.*shorter than 10 s")
@pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings are not there")
def test_no_real_music_is_taken_for_noise():
    for path in sorted((SHARED / "real_audio" / "music").iterdir()):
        levels = measure_levels(path)
        duration = levels.samples / RATE
        assert find_music(levels.spectrum, duration, []) == [(0.0, duration)], path
        assert not is_noise(load_audio(path)[: levels.samples], RATE, -70.0), path
    for path in sorted((SHARED / "gmtunes-mini" / "test").glob("*.ogg"))[:30]:
        assert not is_noise(load_audio(path), RATE, -70.0), path
