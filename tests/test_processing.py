"""What RGMCProcessor promises: one form of captions, prompts padded for generation, and files that load again."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import CAPTIONS, ROOT
from transformers import GenerationConfig

from configuration_rgmc import RGMCConfig
from modeling_rgmc import default_generation_config
from processing_rgmc import RGMCProcessor, normalize_caption


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Sad, slow Ballad.", "a sad slow ballad"),
        ("  mid-range\n90\u2019s pop!\t", "midrange 90s pop"),
        ("caf\u00e9 \u2014 \u266b \U0001f3b5 jazz", "café jazz"),
        ("cafe\u0301 e!\u0301", "caf\u00e9 \u00e9"),
        ("100% \u20ac $", "100"),
        ("...", ""),
        ("\u65e5\u672c\u3001\u97f3\u697d", "日本音楽"),
    ],
)
def test_captions_are_lower_case_without_punctuation(caption, expected):
    assert normalize_caption(caption) == expected
    assert normalize_caption(expected) == expected


def test_audio_and_candidates_make_the_models_inputs(processor):
    waveform = np.sin(np.arange(48_000) / 20).astype(np.float32)
    inputs = processor(audio=[waveform, waveform], sampling_rate=48_000, candidates=["Sad piano!", CAPTIONS[1]])
    assert inputs["input_features"].shape == (2, 1, 1001, 64)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert inputs["input_ids"][1].tolist() == [*processor.encode_candidate(CAPTIONS[1]), processor.separator_token_id]
    assert inputs["attention_mask"][:, -1].all() and not inputs["attention_mask"].all()
    assert set(processor(audio=waveform, sampling_rate=48_000)) == {"input_features"}


def test_captions_end_with_eos_unless_they_are_cut(processor):
    eos = processor.tokenizer.eos_token_id
    assert processor.encode_caption("a sad ballad")[-1] == eos
    long = " ".join(["piano"] * 40)
    assert len(processor.encode_caption(long)) == 24 and processor.encode_caption(long)[-1] != eos
    assert len(processor.encode_candidate(long)) == 24


def test_wrong_calls_say_what_is_expected(processor):
    waveform = np.zeros(48_000, np.float32)
    with pytest.raises(ValueError, match="1:1"):
        processor(audio=[waveform, waveform], sampling_rate=48_000, candidates=["one"])
    for wrong in (5, ["one", None], [["one", 2]]):
        with pytest.raises(ValueError, match=r"a caption or a list of captions, got (5|None|\['one', 2\])"):
            processor(candidates=wrong)
    with pytest.raises(ValueError, match="audio="):
        processor()
    with pytest.raises(ValueError, match="PyTorch"):
        processor(audio=waveform, sampling_rate=48_000, return_tensors="np")


def test_a_processor_survives_saving_and_pickling(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for loaded in (RGMCProcessor.from_pretrained(tmp_path), pickle.loads(pickle.dumps(processor))):
        assert loaded.encode_caption(CAPTIONS[0]) == processor.encode_caption(CAPTIONS[0])
        assert loaded.max_caption_length == 24
        assert loaded.tokenizer.padding_side == "left"
        assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()


def test_a_tokenizer_without_pad_token_pads_with_eos(processor):
    tokenizer = pickle.loads(pickle.dumps(processor.tokenizer))
    tokenizer.pad_token = None
    assert RGMCProcessor(processor.feature_extractor, tokenizer).tokenizer.pad_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="EOS"):
        RGMCProcessor(processor.feature_extractor, tokenizer)


ROOT_MODEL = """
import sys, torch
from transformers import AutoConfig, AutoModel
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.device("meta"):
    model = AutoModel.from_config(config, trust_remote_code=True)
print(config.prefix_length, sum(weight.numel() for weight in model.parameters()))
"""


def test_the_repository_itself_is_the_papers_model(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ROOT_MODEL, str(ROOT)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    prefix_length, weights = map(int, done.stdout.split())
    assert prefix_length == 10
    mapper = 512 * 3840 + 3840 + 3840 * 7680 + 7680
    assert (weights - mapper) / 1e6 == pytest.approx(68.61 + 124.44, abs=0.01)
    # The files say the same as the code's defaults.
    default, root = RGMCConfig(), RGMCConfig.from_pretrained(ROOT)
    ignored = {"architectures", "auto_map"}
    assert {**root.to_dict(), **dict.fromkeys(ignored)} == {**default.to_dict(), **dict.fromkeys(ignored)}
    generation = default_generation_config(default)
    assert GenerationConfig.from_pretrained(ROOT).to_dict() == generation.to_dict()


def test_the_repositorys_own_processor_takes_gpt2s_tokenizer(processor, monkeypatch):
    asked = []

    def from_pretrained(name, **kwargs):
        asked.append(name)
        return processor.tokenizer

    monkeypatch.setattr("processing_rgmc.AutoTokenizer.from_pretrained", from_pretrained)
    loaded = RGMCProcessor.from_pretrained(ROOT)
    assert asked == ["openai-community/gpt2"]
    settings = loaded.feature_extractor.to_dict()
    assert settings.pop("auto_map") == {"AutoFeatureExtractor": "feature_extraction_rgmc.RGMCFeatureExtractor"}
    assert settings == processor.feature_extractor.to_dict()
