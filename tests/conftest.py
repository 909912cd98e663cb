"""Fixtures: tiny random models, a tokenizer, and small corpora of tones."""

import os
import sys
import tempfile

# Set before torch and transformers are imported. transformers copies a checkpoint's code into this folder without a
# lock, so each process of pytest-xdist has its own. It also keeps the tests out of the user's caches.
HF_HOME = tempfile.TemporaryDirectory(prefix="rgmc-tests-")
os.environ["HF_HOME"] = HF_HOME.name
# Threads that spin while waiting would slow the other processes down.
os.environ["OMP_NUM_THREADS"] = str(max(1, os.cpu_count() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from encoders import FORMATS, RATE, encode_file, stereo_noise
from helpers import AUDIO, CAPTIONS, SPLITS, TEXT, write_corpus
from transformers import AutoConfig

import caption
from clips.options import parse, user_errors
from configuration_rgmc import RGMCConfig
from feature_extraction_rgmc import RGMCFeatureExtractor
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from training.building import train_tokenizer


def pytest_collection_modifyitems(items: list[pytest.Item]):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_unconfigure():
    HF_HOME.cleanup()


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    from browser import start_browser

    with start_browser() as started:
        yield started


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(CAPTIONS, 400)


@pytest.fixture
def processor(tokenizer):
    return RGMCProcessor(RGMCFeatureExtractor(), tokenizer, max_candidate_length=24, max_caption_length=24)


@pytest.fixture
def make_config(tokenizer):
    def make(text="gpt2", audio=None, **fields) -> RGMCConfig:
        special = {name: tokenizer.eos_token_id for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return RGMCConfig(
            audio_config=AutoConfig.for_model("clap_audio_model", **{**AUDIO, **(audio or {})}).to_dict(),
            text_config=AutoConfig.for_model(text, vocab_size=len(tokenizer), **TEXT[text], **special).to_dict(),
            **{"prefix_length": 3, "spec_augment": False, **fields},
        )

    return make


@pytest.fixture
def make_model(make_config):
    def make(*args, max_new_tokens=24, **fields) -> RGMCModel:
        torch.manual_seed(0)
        model = RGMCModel(make_config(*args, **fields)).eval()
        model.generation_config.max_new_tokens = max_new_tokens
        return model

    return make


@pytest.fixture
def log_mels():
    """Makes log-mels of `n` random clips, in the range of real ones."""

    def make(n: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = torch.rand(n, 1, 1, 64, generator=generator) * 60 - 60  # each clip has a spectrum of its own
        return shape + 5 * torch.randn(n, 1, 1001, 64, generator=generator)

    return make


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus that tests read but do not change."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), SPLITS)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A function that encodes a format of `FORMATS` and returns the file's path and the samples in it."""
    folder = tmp_path_factory.mktemp("encoded")

    def get(name: str) -> tuple[Path, np.ndarray, int]:
        codec, sample_format, rate, codec_options, muxer, _ = FORMATS[name]
        samples = stereo_noise(rate=rate)
        if not (folder / name).exists():
            encode_file(folder / name, codec, sample_format, samples, rate, muxer, **codec_options)
        return folder / name, samples, rate

    return get


@pytest.fixture
def caption_command(tmp_path, monkeypatch, capsys):
    """Runs `caption.py` in the test's folder, and returns its status and what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["caption.py"])

    def run(*words) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            with user_errors():
                (args,) = parse(caption.CaptionArguments, [*map(str, words)], positional="paths")
                status = caption.run(args)
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def wav(tmp_path):
    """A 20 s stereo WAV and its samples as stored."""
    path = tmp_path / "sound.wav"
    soundfile.write(path, stereo_noise(20.0).T, RATE, subtype="FLOAT")
    return path, stereo_noise(20.0)
