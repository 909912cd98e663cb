"""The demo corpus: music that captions can be learned from, the same every time, without leaks between splits."""

import csv
import hashlib
import json
import re
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
import soundfile

from corpora import demo


def read_split(folder, split):
    with open(folder / split / "metadata.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def audio_hash(folder, split, row):
    return hashlib.sha256((folder / split / row["file_name"]).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    demo.write_demo_corpus(folder, clips=200, seed=0, num_proc=2)
    return folder


@pytest.fixture(scope="module")
def rows(corpus):
    return {split: read_split(corpus, split) for split in demo.SPLITS}


def test_layout_is_the_audiofolder_of_datasets(corpus, rows):
    assert {split: len(rows[split]) for split in rows} == {"train": 150, "validation": 20, "test": 30}
    for split in rows:
        assert list(rows[split][0])[:3] == ["file_name", "id", "caption"]
        found = {path.name for path in (corpus / split).iterdir()}
        assert found == {"metadata.csv", *(row["file_name"] for row in rows[split])}
    assert sorted(row["id"] for split in rows for row in rows[split]) == [f"demo-{i:05d}" for i in range(200)]


def test_clip_depends_on_seed_and_index_alone(corpus, rows, tmp_path):
    demo.write_demo_corpus(tmp_path / "few", clips=20, seed=0, num_proc=1)
    for split in demo.SPLITS:
        few = read_split(tmp_path / "few", split)
        assert few == rows[split][: len(few)]
        for row in few:
            assert audio_hash(tmp_path / "few", split, row) == audio_hash(corpus, split, row)


def test_another_seed_gives_another_corpus():
    for index in range(3):
        (row, waveform), (other_row, other_waveform) = demo.draw_clip(0, index), demo.draw_clip(1, index)
        assert row["id"] == other_row["id"] and row["tune"] != other_row["tune"]
        assert not np.array_equal(waveform, other_waveform)


def test_splits_share_no_id_caption_tune_or_audio(corpus, rows):
    for column in ("id", "file_name", "caption", "tune"):
        values = [{row[column] for row in rows[split]} for split in rows]
        assert len(set.union(*values)) == sum(map(len, values)), column
    for split in rows:  # this separates the splits of a corpus of any size
        for row in rows[split]:
            assert demo.split_of(zlib.crc32(row["caption"].encode())) == split
            assert demo.split_of(zlib.crc32(row["tune"].encode())) == split
    hashes = [{audio_hash(corpus, split, row) for row in rows[split]} for split in rows]
    assert len(set.union(*hashes)) == sum(map(len, hashes)) == 200


def test_clips_last_ten_seconds_without_clipping_or_silence(corpus, rows):
    for split in rows:
        for row in rows[split]:
            waveform, sample_rate = soundfile.read(corpus / split / row["file_name"], dtype="int16")
            assert sample_rate == 32_000 and waveform.shape == (320_000,)
            peak = np.abs(waveform.astype(int)).max()
            assert 0.2 * 32_767 < peak < 0.9 * 32_767
            loudness = np.sqrt(np.mean(waveform.reshape(10, -1).astype(float) ** 2, axis=1))
            assert loudness.min() > 0.01 * peak, f"{row['id']} falls silent for a second"


def test_captions_are_normalised_and_true(rows):
    every = [row for split in rows for row in rows[split]]
    for row in every:
        caption = row["caption"]
        assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", caption) and 5 <= len(caption.split()) <= 14
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)
        assert row["lead"] in caption
        assert any(name in caption for name in demo.STYLES[row["style"]].names)
        other = "minor" if row["mode"] == "major" else "major"
        assert any(word in caption.split() for word in (*demo.MOODS[row["mode"]], row["mode"]))
        assert not any(word in caption.split() for word in (*demo.MOODS[other], other))
        assert ("no drums" not in caption) or row["drums"] == "no drums"
        low, high = demo.TEMPOS[row["tempo"]]
        assert low <= int(row["bpm"]) <= high
    assert len({row["caption"] for row in every}) > 150  # repeats are rare


def test_lead_cannot_be_guessed_from_the_style(rows):
    pairs = Counter((row["lead"], row["style"]) for split in rows for row in rows[split])
    assert len(pairs) == len(demo.LEADS) * len(demo.STYLES) and set(pairs.values()) == {2}


def test_every_style_is_written_for_whole_bars():
    for name, style in demo.STYLES.items():
        assert {len(cell) for cell in style.cells} == {2 * style.beats}, name  # eighths
        for pattern in (style.chords, style.bass, *(pattern for _, _, pattern in style.drums)):
            assert (4 * style.beats) % len(pattern) == 0 and set(pattern) <= set("x-."), (name, pattern)
        assert set(style.backings) <= set(demo.BACKINGS) and {drum for drum, _, _ in style.drums} <= set(demo.DRUMS)


def test_notes_are_in_tune():
    rng = np.random.default_rng(0)
    for lead, timbre in demo.LEADS.items():
        note = demo.render_note(replace(timbre, waver=(0, 0)), timbre.register, 1.0, rng)
        spectrum = np.abs(np.fft.rfft(note * np.hanning(len(note)), 2**17))
        fundamental = 440 * 2 ** ((timbre.register - 69) / 12)
        near = np.arange(int(fundamental * 0.95 * 2**17 / 32_000), int(fundamental * 1.05 * 2**17 / 32_000))
        cents = 1200 * np.log2(near[spectrum[near].argmax()] * 32_000 / 2**17 / fundamental)
        assert abs(cents) < 10, lead


def test_interrupted_run_leaves_no_corpus(tmp_path, monkeypatch):
    def interrupted(clips, **options):
        yield next(iter(clips))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "tqdm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.write_demo_corpus(tmp_path / "corpus", clips=20, num_proc=1)
    assert list(tmp_path.iterdir()) == []


def test_same_settings_keep_the_corpus_and_others_are_refused(corpus, monkeypatch):
    monkeypatch.setattr(demo, "draw_clip", None)  # composing anything now fails
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    demo.write_demo_corpus(corpus, clips=200, seed=0, num_proc=1)
    for settings in ({"clips": 200, "seed": 1}, {"clips": 220, "seed": 0}):
        with pytest.raises(FileExistsError, match="choose another output_dir"):
            demo.write_demo_corpus(corpus, **settings)
    monkeypatch.setattr(demo, "GENERATOR_VERSION", demo.GENERATOR_VERSION + 1)
    with pytest.raises(FileExistsError, match="choose another output_dir"):
        demo.write_demo_corpus(corpus, clips=200, seed=0)
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert json.loads((corpus / "corpus.json").read_text())["clips"] == 200


def test_foreign_folder_and_too_few_clips_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        demo.write_demo_corpus(tmp_path)
    with pytest.raises(ValueError, match="at least 20"):
        demo.write_demo_corpus(tmp_path / "corpus", clips=19)


def mel_statistics(waveform, bins=48):
    """Mean and standard deviation of each bin of a log-mel spectrogram, `(2 * bins,)`."""
    frames = waveform.astype(np.float32)[: len(waveform) // 1024 * 1024].reshape(-1, 1024)[::2]
    power = np.abs(scipy.fft.rfft(frames * np.hanning(1024).astype(np.float32))).T ** 2
    hertz = np.linspace(0, 16_000, len(power))
    edges = 700 * (10 ** (np.linspace(np.log10(1 + 50 / 700), np.log10(1 + 14_000 / 700), bins + 2)) - 1)
    rise = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    log_mel = np.log10(np.clip(np.minimum(rise, fall), 0, None) @ power + 1e4)
    return np.concatenate([log_mel.mean(1), log_mel.std(1)])


def test_lead_style_and_mood_can_be_heard_by_a_linear_classifier(corpus, rows):
    features = {
        split: np.stack(
            [mel_statistics(soundfile.read(corpus / split / r["file_name"], dtype="int16")[0]) for r in part]
        )
        for split, part in rows.items()
    }
    mean, deviation = features["train"].mean(0), features["train"].std(0) + 1e-6
    train = (features["train"] - mean) / deviation
    held_out = (np.concatenate([features["validation"], features["test"]]) - mean) / deviation
    accuracy = {}
    for column in ("lead", "style", "mode"):
        names = sorted({row[column] for row in rows["train"]})
        targets = np.array([[row[column] == name for name in names] for row in rows["train"]], float)
        ridge = np.linalg.solve(train.T @ train + 10 * np.eye(train.shape[1]), train.T @ (targets - targets.mean(0)))
        guesses = (held_out @ ridge + targets.mean(0)).argmax(1)
        truth = [names.index(row[column]) for row in rows["validation"] + rows["test"]]
        accuracy[column] = float(np.mean(guesses == truth))
    print(accuracy)
    assert accuracy["lead"] > 0.4 and accuracy["style"] > 0.4 and accuracy["mode"] > 0.65, accuracy  # chance: .1 .1 .5
