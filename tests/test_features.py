"""What the cache of log-mels promises: each clip is decoded once, an interruption loses little, nothing is mixed up."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from helpers import Script, write_corpus, write_tone
from torch.nn.functional import normalize
from transformers import ClapAudioConfig, ClapAudioModelWithProjection

import clips.features
from clips.features import ClipFeatures, compute_features
from clips.rows import load_captions
from feature_extraction_rgmc import RGMCFeatureExtractor

CLIPS = 9


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus", {"train": [f"tone {row}" for row in range(CLIPS)]})


@pytest.fixture
def compute(corpus, tmp_path):
    """Computes the features of the corpus in a cache of its own."""

    def call(rows: Dataset | None = None, split: str = "train", **options) -> ClipFeatures:
        rows = load_captions(str(corpus), "train") if rows is None else rows
        options = {"skipped_file": tmp_path / "skipped.jsonl", "cache_dir": str(tmp_path / "cache"), **options}
        return compute_features(rows, RGMCFeatureExtractor(), split, **options)

    return call


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that this process has decoded since the list was cleared."""
    names = []
    call = RGMCFeatureExtractor.__call__

    def counting_call(self, audio, **kwargs):
        if isinstance(audio, dict):  # a row of a dataset; `direct` gives a list
            names.append(Path(audio["path"]).name)
        return call(self, audio, **kwargs)

    monkeypatch.setattr(RGMCFeatureExtractor, "__call__", counting_call)
    return names


@pytest.fixture
def messages(monkeypatch):
    found = []
    monkeypatch.setattr("clips.features.logger.warning", found.append)
    return found


def read_all(features: ClipFeatures) -> torch.Tensor:
    return features.read(list(range(len(features))))


def direct(corpus: Path) -> torch.Tensor:
    """Computes log-mels without the cache."""
    files = [corpus / "train" / f"{row}.wav" for row in range(CLIPS)]
    return RGMCFeatureExtractor()(files)["input_features"]


def test_cached_log_mels_are_those_of_the_feature_extractor(compute, corpus):
    features = compute(dtype="float32")
    assert features.ids == [f"train-{row}" for row in range(CLIPS)]
    assert features.captions == [[f"tone {row}"] for row in range(CLIPS)]
    assert torch.equal(read_all(features), direct(corpus))
    rows = [7, 0, 7, 3]
    assert torch.equal(features.read(rows), direct(corpus)[rows])


def test_float16_and_float32_are_kept_apart(compute, corpus):
    half, single = compute(), compute(dtype="float32")
    assert half.log_mels.features["log_mel"].dtype == "float16"
    assert read_all(half).dtype == read_all(single).dtype == torch.float32
    assert torch.equal(read_all(half), direct(corpus).half().float())
    assert torch.equal(read_all(single), direct(corpus))
    with pytest.raises(ValueError, match="int8: expected float16 or float32"):
        compute(dtype="int8")


def test_float16_leaves_the_embedding_where_it_is(compute, tmp_path):
    random = np.random.default_rng(0)
    time = np.arange(480_000) / 48_000
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (110, 220, 277.2, 329.6, 1108.7)) * np.exp(-4 * time % 2)
    sounds = [chord + 0.01 * random.standard_normal(480_000), chord * random.standard_normal(480_000), chord[::-1]]
    for row, sound in enumerate(sounds):
        soundfile.write(tmp_path / f"{row}.wav", 0.1 * sound, 48_000)
    rows = Dataset.from_dict(
        {
            "id": ["0", "1", "2"],
            "audio": [{"path": str(tmp_path / f"{row}.wav"), "bytes": None} for row in range(3)],
            "captions": [["x"]] * 3,
        }
    )
    exact, half = read_all(compute(rows, dtype="float32")), read_all(compute(rows))

    torch.manual_seed(0)
    encoder = ClapAudioModelWithProjection(ClapAudioConfig()).eval()  # HTSAT-tiny in full size
    norm = encoder.audio_model.audio_encoder.batch_norm
    norm.running_mean.copy_(exact.mean((0, 1, 2)))
    norm.running_var.copy_(exact.var((0, 1, 2)))
    with torch.no_grad():
        reference, found, coarser = (
            normalize(encoder(input_features=log_mels).audio_embeds.double(), dim=-1)
            for log_mels in (exact, half, exact.bfloat16().float())
        )
    assert (1 - (found * reference).sum(-1)).max() < 5e-7
    assert (1 - (coarser * reference).sum(-1)).max() > 5e-7  # a coarser type would fail
    assert (1 - reference @ reference.T)[0, 1:].min() > 1e-3  # so would another clip


def test_a_clip_is_decoded_once(compute, decoded, corpus):
    compute()
    assert sorted(decoded) == [f"{row}.wav" for row in range(CLIPS)]
    features = compute(split="again")
    (corpus / "train" / "metadata.csv").write_text("file_name,id,caption\n3.wav,x,New words!\n3.wav,y,one\n")
    other = compute(load_captions(str(corpus), "train"), split="other words of the same clip")
    assert len(decoded) == CLIPS
    assert (other.ids, other.captions) == (["x", "y"], [["new words"], ["one"]])
    assert torch.equal(read_all(other), features.read([3, 3]))


def test_a_changed_file_alone_is_decoded_anew(compute, decoded, corpus):
    before = read_all(compute())
    decoded.clear()
    write_tone(corpus / "train" / "4.wav", 1234.5)
    after = read_all(compute())
    assert decoded == ["4.wav"]
    assert torch.equal(after, direct(corpus).half().float())
    assert not torch.allclose(after[4], before[4], atol=1)


def test_a_checkpoints_extractor_finds_what_the_training_cached(compute, decoded, corpus, tmp_path, processor):
    compute()
    processor.save_pretrained(tmp_path / "saved")
    extractor = type(processor).from_pretrained(tmp_path / "saved").feature_extractor
    rows = load_captions(str(corpus), "train")
    compute_features(rows, extractor, "train", tmp_path / "skipped.jsonl", cache_dir=str(tmp_path / "cache"))
    assert len(decoded) == CLIPS


def test_other_settings_of_the_front_end_do_not_share_a_cache(compute, decoded, corpus, tmp_path):
    compute()
    rows = load_captions(str(corpus), "train")
    extractor = RGMCFeatureExtractor(duration=5.0, frequency_max=12_000.0)
    features = compute_features(rows, extractor, "train", tmp_path / "skipped.jsonl", cache_dir=str(tmp_path / "cache"))
    assert len(decoded) == 2 * CLIPS
    assert features.read([0]).shape == (1, 1, 501, 64)


def test_clips_held_by_a_dataset_are_known_by_their_content(compute, decoded, corpus):
    files = [corpus / "train" / f"{row}.wav" for row in (2, 5)]
    audio = [{"path": "one-name-for-all.wav", "bytes": file.read_bytes()} for file in files]
    rows = Dataset.from_dict({"id": ["a", "b"], "audio": audio, "captions": [["x"], ["y"]]})
    for _ in range(2):
        assert torch.equal(read_all(compute(rows)), direct(corpus)[[2, 5]].half().float())
    assert decoded.count("one-name-for-all.wav") == 2


def test_several_processes_give_the_features_of_one(compute, monkeypatch, tmp_path):
    monkeypatch.setattr(clips.features, "CLIPS_PER_PROCESS", 2)
    one, two = compute(), compute(num_proc=2, cache_dir=str(tmp_path / "another"))
    assert one.ids == two.ids
    assert torch.equal(read_all(one), read_all(two))


KILLED_AT_CLIP_6 = """
import os, signal, sys
os.setsid()
import clips.features, clips.rows
from feature_extraction_rgmc import RGMCFeatureExtractor

clips.features.CLIPS_PER_PROCESS = 2
call = RGMCFeatureExtractor.__call__

def killing_call(self, audio, **kwargs):
    if audio["path"].endswith("6.wav"):
        os.killpg(0, signal.SIGKILL)
    return call(self, audio, **kwargs)

RGMCFeatureExtractor.__call__ = killing_call
corpus, cache, num_proc = sys.argv[1:]
rows = clips.rows.load_captions(corpus, "train")
skipped = cache + "/skipped.jsonl"
clips.features.compute_features(rows, RGMCFeatureExtractor(), "train", skipped, cache_dir=cache, num_proc=int(num_proc))
"""


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_killed_run_goes_on_where_it_was(compute, decoded, corpus, tmp_path, num_proc):
    (tmp_path / "driver.py").write_text(KILLED_AT_CLIP_6)
    arguments = [str(corpus), str(tmp_path / "cache"), str(num_proc)]
    killed = Script(str(tmp_path / "driver.py"), *arguments, output=tmp_path / "log").wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    features = compute()
    finished = 6 // (2 * num_proc) * 2 * num_proc
    assert decoded == [f"{row}.wav" for row in range(finished, CLIPS)]
    assert torch.equal(read_all(features), direct(corpus).half().float())


def test_a_damaged_cache_file_is_computed_anew(compute, decoded, corpus, tmp_path, messages):
    compute()
    (file,) = (tmp_path / "cache").rglob("*.arrow")
    file.write_bytes(file.read_bytes()[:1000])
    decoded.clear()
    assert torch.equal(read_all(compute()), direct(corpus).half().float())
    assert len(decoded) == CLIPS
    assert len(messages) == 1 and str(file) in messages[0]


def test_doubtful_sounds_are_counted_and_announced_once(compute, corpus, messages, recwarn):
    write_tone(corpus / "train" / "2.wav", 440, seconds=3)
    write_tone(corpus / "train" / "5.wav", 440, seconds=4)
    soundfile.write(corpus / "train" / "7.wav", np.zeros(80_000), 8_000)
    expected = [
        "2 of 9 clips of train: shorter than 10 s, repeated and zero-padded; the first is 'train-2'",
        "1 of 9 clips of train: digital silence; the first is 'train-7'",
    ]
    for _ in range(2):  # a second run, which decodes nothing, announces it too
        compute()
        assert messages == expected
        messages.clear()
    assert not [warning for warning in recwarn if "wav" in str(warning.message)]


def test_unusable_rows_are_skipped_announced_and_listed(compute, corpus, tmp_path, messages, decoded):
    skipped_file = tmp_path / "skipped.jsonl"
    skipped_file.write_text(json.dumps({"split": "validation", "id": "kept"}) + "\n")
    whole = (corpus / "train" / "3.wav").read_bytes()
    (corpus / "train" / "3.wav").write_bytes(b"no sound")
    (corpus / "train" / "5.wav").unlink()
    metadata = corpus / "train" / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("tone 8", "?!"))

    features = compute(max_skipped=0.5)
    assert features.ids == [f"train-{row}" for row in range(CLIPS) if row not in (3, 5, 8)]
    lines = [json.loads(line) for line in skipped_file.read_text().splitlines()]
    assert lines[0] == {"split": "validation", "id": "kept"}
    found = [(line["split"], line["row"], line["id"], Path(line["file"]).name) for line in lines[1:]]
    assert found == [("train", row, f"train-{row}", f"{row}.wav") for row in (3, 5, 8)]
    assert [line["reason"].split(":")[-1].split(";")[0] for line in lines[1:]][1:] == [" no such file", " ['?!']"]
    assert len(messages) == 1 and "3 of 9 rows of train" in messages[0] and str(skipped_file) in messages[0]
    with pytest.raises(ValueError, match=r"More than 33\.0% is an error: repair them, or raise --max_skipped"):
        compute(max_skipped=0.33)

    (corpus / "train" / "3.wav").write_bytes(whole)
    write_tone(corpus / "train" / "5.wav", 440)
    metadata.write_text(metadata.read_text().replace("?!", "tone 8"))
    decoded.clear()
    assert len(compute(load_captions(str(corpus), "train"))) == CLIPS
    assert decoded == ["3.wav", "5.wav", "8.wav"]
    assert skipped_file.read_text() == json.dumps({"split": "validation", "id": "kept"}) + "\n"
