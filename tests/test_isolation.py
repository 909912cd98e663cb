"""What isolation promises: a file that kills, hangs or bloats its process only costs itself, and the run continues."""

import functools
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from helpers import write_corpus

import corpora.probe
from clips.features import compute_features
from clips.isolation import run_isolated
from clips.rows import load_captions
from feature_extraction_rgmc import RGMCFeatureExtractor


def exits(*_):
    os._exit(3)


def crashes(*_):
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(*_):
    time.sleep(1000)


def bloats(*_):
    np.ones(2**32, np.uint8)


BAD = {
    exits: "exit code 3",
    crashes: "SIGSEGV",
    hangs: "not done after 2 s",
    bloats: "more memory than a file may take",
}


def square(item: int, bad: dict):
    return bad[item]() if item in bad else item**2


@pytest.mark.parametrize("num_proc", [1, 3])
def test_each_way_to_lose_a_process_costs_one_item_and_says_which(num_proc):
    bad = dict(zip((0, 5, 6, 19), BAD))
    found = sorted(run_isolated(functools.partial(square, bad=bad), range(20), num_proc, seconds=2))
    assert [number for number, _, _ in found] == list(range(20))
    for number, result, problem in found:
        assert result == (None if number in bad else number**2)
        assert (problem is None) == (number not in bad)
        assert number not in bad or BAD[bad[number]] in problem


def fails(item: int):
    raise KeyError(f"a mistake of ours with {item}")


def test_an_error_of_ours_is_not_taken_for_a_bad_file():
    with pytest.raises(KeyError, match="a mistake of ours"):
        list(run_isolated(fails, range(3), 2))


@pytest.mark.parametrize("kill", [exits, crashes])
@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_file_that_kills_its_decoder_is_skipped_with_the_reason(tmp_path, monkeypatch, num_proc, kill):
    corpus = write_corpus(tmp_path / "corpus", {"train": [f"tone {row}" for row in range(5)]})
    call = RGMCFeatureExtractor.__call__

    def killing_call(self, audio, **kwargs):
        return kill() if isinstance(audio, dict) and audio["path"].endswith("3.wav") else call(self, audio, **kwargs)

    monkeypatch.setattr(RGMCFeatureExtractor, "__call__", killing_call)
    skipped_file = tmp_path / "skipped.jsonl"
    rows = load_captions(str(corpus), "train")
    options = {"max_skipped": 0.5, "cache_dir": str(tmp_path / "cache"), "num_proc": num_proc}
    features = compute_features(rows, RGMCFeatureExtractor(), "train", skipped_file, **options)
    assert features.ids == [f"train-{row}" for row in (0, 1, 2, 4)]
    files = [corpus / "train" / f"{row}.wav" for row in (0, 1, 2, 4)]
    assert torch.equal(features.read([0, 1, 2, 3]), RGMCFeatureExtractor()(files)["input_features"].half().float())
    (line,) = [json.loads(line) for line in skipped_file.read_text().splitlines()]
    assert line["id"] == "train-3" and BAD[kill] in line["reason"]


@pytest.mark.parametrize("kill", [exits, crashes])
def test_a_file_that_kills_its_process_while_it_is_probed_is_a_broken_file(tmp_path, monkeypatch, kill):
    corpus = write_corpus(tmp_path / "corpus", {"train": [f"tone {row}" for row in range(5)]})
    files = [str(corpus / "train" / f"{row}.wav") for row in range(5)]
    probe_audio = corpora.probe.probe_audio
    monkeypatch.setattr(corpora.probe, "probe_audio", lambda file: (kill if file == files[2] else probe_audio)(file))
    found = corpora.probe.probe_files(files, tmp_path / "probed.jsonl", num_proc=2)
    assert [line["duration"] for line in found] == [10.0, 10.0, None, 10.0, 10.0]
    assert files[2] in found[2]["problem"] and BAD[kill] in found[2]["problem"]
    monkeypatch.setattr(corpora.probe, "probe_audio", probe_audio)
    assert corpora.probe.probe_files(files, tmp_path / "probed.jsonl", num_proc=2)[2]["duration"] == 10.0
