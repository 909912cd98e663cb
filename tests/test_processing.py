"""What RGMCProcessor promises: one form of captions, prompts padded for generation, and files that load again."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from helpers import CAPTIONS, MUSICAL_TEXT, ROOT
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import GenerationConfig

from captions_rgmc import NORMALIZATIONS, normalize_caption
from configuration_rgmc import RGMCConfig
from corpora.demo import draw_clip
from generation_rgmc import default_generation_config
from processing_rgmc import RGMCProcessor


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


@pytest.mark.parametrize(
    ("caption", "paper", "music"),
    [
        ("R&B / hip-hop", "rb hiphop", "r&b hip hop"),
        ("C# minor, 4/4", "c minor 44", "c# minor 4/4"),
        ("late-night \u2013 smooth", "latenight smooth", "late night smooth"),
        ("don't, don\u2019t and don`t", "dont dont and dont", "don't don't and don't"),
        ("\u2018sad\u2019 drummin' 'n' bass", "sad drummin n bass", "sad drummin n bass"),
        ("(F#)/G\u266fm7, B\u266d; #1 hit", "fgm7 b 1 hit", "f# g#m7 bb 1 hit"),
        ("rock & roll and/or 12/8 & Co.", "rock roll andor 128 co", "rock roll and or 12/8 co"),
        ("90's pop_! 100%", "90s pop 100", "90's pop 100"),
        (
            "zero\u200bwidth \u202esoft\u00adly\u202c \u2764\ufe0f love",
            "zerowidth softly love",
            "zerowidth softly love",
        ),
        ("caf\u00e9 jazz, for two", "caf\u00e9 jazz for two", "caf\u00e9 jazz for two"),
    ],
)
def test_each_rule_deletes_what_it_says(caption, paper, music):
    assert normalize_caption(caption, "paper") == normalize_caption(caption) == paper
    assert normalize_caption(caption, "music") == music
    with pytest.raises(ValueError, match="'jazz': expected one of paper, music"):
        normalize_caption(caption, "jazz")


@given(MUSICAL_TEXT, st.sampled_from(NORMALIZATIONS))
@example("x##c#!'\u0327&b", "music")
def test_normalising_twice_is_normalising_once(caption, rule):
    once = normalize_caption(caption, rule)
    assert normalize_caption(once, rule) == once


def test_captions_of_the_demo_are_the_same_by_both_rules(monkeypatch):
    monkeypatch.setattr("corpora.demo.render_clip", lambda *args: None)
    for caption in (draw_clip(0, index)[0]["caption"] for index in range(960)):
        assert normalize_caption(caption, "music") == normalize_caption(caption, "paper") == caption


def test_a_processor_normalises_by_the_rule_that_is_saved_with_it(processor, tmp_path):
    music = RGMCProcessor(processor.feature_extractor, processor.tokenizer, caption_normalization="music")
    music.save_pretrained(tmp_path)
    loaded = RGMCProcessor.from_pretrained(tmp_path)
    assert loaded.caption_normalization == "music" and loaded.normalize("R&B, late-night") == "r&b late night"
    assert loaded.encode_candidate("R&B") == loaded.tokenizer("r&b")["input_ids"] != processor.encode_candidate("R&B")
    assert loaded.encode_caption("C#")[:-1] == loaded.tokenizer("c#")["input_ids"]
    path = tmp_path / "processor_config.json"
    settings = json.loads(path.read_text())
    del settings["caption_normalization"]  # as in checkpoints from before the setting
    path.write_text(json.dumps(settings))
    assert RGMCProcessor.from_pretrained(tmp_path).caption_normalization == "paper"
    with pytest.raises(ValueError, match="'jazz'"):
        RGMCProcessor(processor.feature_extractor, processor.tokenizer, caption_normalization="jazz")


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
    # The files agree with the code's defaults.
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
