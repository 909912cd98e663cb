"""Tiny random models, a tokenizer, and small corpora of tones that the tests share."""

import os
import tempfile
from pathlib import Path

# Set before torch and transformers are imported. Code of checkpoints is copied into this folder without a lock, so each
# process of pytest-xdist has its own; and the tests leave the user's caches alone.
HF_HOME = tempfile.TemporaryDirectory(prefix="rgmc-tests-")
os.environ["HF_HOME"] = HF_HOME.name
# Threads that wait by spinning would take the processors from the other processes.
os.environ["OMP_NUM_THREADS"] = str(max(1, os.cpu_count() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoConfig

from configuration_rgmc import RGMCConfig
from feature_extraction_rgmc import RGMCFeatureExtractor
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from training.building import train_tokenizer

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"  # real recordings; tests that need them are skipped where there are none

AUDIO = {
    "patch_embeds_hidden_size": 8,
    "patch_size": 16,
    "patch_stride": [16, 16],
    "depths": [1, 2],
    "num_attention_heads": [2, 2],
    "hidden_size": 16,
    "projection_dim": 32,
    "hidden_dropout_prob": 0.1,
}
TEXT = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
    },
    "qwen2": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
    "gemma2": {  # its head caps the logits
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "final_logit_softcapping": 0.2,
        "max_position_embeddings": 128,
    },
}
CAPTIONS = [
    "a sad ballad of piano and strings",
    "cheerful folk tune with acoustic guitar",
    "slow ambient soundscape with warm pads",
    "fast rock song led by electric guitar",
    "a happy waltz for flute and harp",
    "dark orchestral piece with low brass",
    "laid back hip hop beat with soft keys",
    "bright reggae groove with organ stabs",
]


def pytest_unconfigure():
    HF_HOME.cleanup()


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
    """Log-mels of `n` random clips, in the range of real ones."""

    def make(n: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = torch.rand(n, 1, 1, 64, generator=generator) * 60 - 60  # each clip has a spectrum of its own
        return shape + 5 * torch.randn(n, 1, 1001, 64, generator=generator)

    return make


def write_tone(path: Path, hertz: float, seconds: float = 10.0, rate: int = 8_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time) + 0.1 * np.sin(2 * np.pi * 3.01 * hertz * time), rate)
    return path


def write_corpus(folder: Path, splits: dict[str, list[str]]) -> Path:
    """An audiofolder of tones: `write_corpus(folder, {"train": ["a caption", …], "validation": […]})`."""
    for split, captions in splits.items():
        lines = ["file_name,id,caption"]
        for row, caption in enumerate(captions):
            write_tone(folder / split / f"{row}.wav", 110 * 2 ** (row / 3) + len(split))
            lines.append(f"{row}.wav,{split}-{row},{caption}")
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
