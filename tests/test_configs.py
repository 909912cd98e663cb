"""The paper's three runs: their configurations match the paper, and they run on synthetic rows."""

import re
import shlex
from collections import Counter

import pytest
import torch
from helpers import AUDIO, CAPTIONS, ROOT, SPLITS, TEXT, read_lines, write_corpus
from transformers import AutoModelForCausalLM, ClapConfig, ClapModel, GPT2Config, HfArgumentParser

import train
from eval import EvaluationArguments
from modeling_rgmc import RGMCModel
from retrieval_rgmc import CaptionDatastore
from training.building import train_tokenizer

RUNS = ("audiostock", "musiccaps", "transfer")
CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[str]:
    """Options with a tiny CLAP and GPT-2 in place of those on the Hub."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, 400)
    special = {name: tokenizer.eos_token_id for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {**TEXT["gpt2"], "n_positions": 1024, "vocab_size": len(tokenizer)}
    AutoModelForCausalLM.from_config(GPT2Config(**sizes, **special)).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    clap = ClapConfig(audio_config=AUDIO, text_config={**text, "vocab_size": 100}, projection_dim=32)
    ClapModel(clap).save_pretrained(folder / "clap")
    return ["--audio_model", str(folder / "clap"), "--text_model", str(folder / "gpt2")]


@pytest.mark.parametrize("name", RUNS)
def test_settings_are_those_of_section_4(name):
    model_args, _, args = train.parse_arguments([str(CONFIGS / f"{name}.yaml")])
    assert (args.batch_size, args.learning_rate, args.lr_scheduler_type) == (32, 1e-5, "constant")
    assert (args.refresh, args.max_grad_norm, args.warmup_steps) == ("epoch", None, 0)
    assert args.audio_learning_rate is args.mapper_learning_rate is args.text_learning_rate is None
    assert not any(getattr(model_args, name) for name in ("freeze_audio_tower", "freeze_mapper", "freeze_text_model"))
    if name != "transfer":
        assert (model_args.prefix_length, model_args.num_candidates) == (10, 1)
        assert model_args.text_model == "openai-community/gpt2"


def test_every_run_goes_through_on_made_up_rows(parts, tmp_path):
    corpora = {
        "audiostock": write_corpus(tmp_path / "audiostock", SPLITS),
        "musiccaps": write_corpus(
            tmp_path / "musiccaps", {split: [f"{text} live" for text in texts] for split, texts in SPLITS.items()}
        ),
    }
    corpora["transfer"] = corpora["musiccaps"]
    for name in RUNS:
        options = ["--dataset", str(corpora[name]), "--output_dir", str(tmp_path / "out" / name), "--max_steps", "2"]
        options += ["--cache_dir", str(tmp_path / "cache"), "--num_proc", "1", "--dataloader_num_workers", "0"]
        options += ["--model", str(tmp_path / "out" / "audiostock")] if name == "transfer" else parts
        options += ["--num_sample_captions", "0", "--max_caption_length", "20"]
        train.main([str(CONFIGS / f"{name}.yaml"), *options])
        assert read_lines(tmp_path / "out" / name / "log.jsonl")[-1]["step"] == 2
        assert (tmp_path / "out" / name / "eval" / "results.json").exists()
        store = CaptionDatastore.from_pretrained(tmp_path / "out" / name)
        assert store.rows["caption"][0] == CAPTIONS[0] + (" live" if corpora[name].name == "musiccaps" else "")
    first, second = (RGMCModel.from_pretrained(tmp_path / "out" / name) for name in ("audiostock", "transfer"))
    moved = [(first.state_dict()[key] - weight).abs().max() for key, weight in second.named_parameters()]
    assert 0 < max(moved) < 1e-3  # it started from the other's weights


def test_the_commands_of_the_pages_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ").replace("$seed", "0")
    commands = [shlex.split(command, comments=True) for command in re.findall(r"accelerate launch ([^`\n]+)", text)]
    counts = Counter(script for script, *_ in commands)
    assert counts["train.py"] >= 9 and counts["eval.py"] >= 4
    for script, *options in commands:
        if script == "train.py":
            model_args, _, args = train.parse_arguments(options)
            train.check_arguments(model_args, args)
        elif script == "eval.py":
            HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(options)
