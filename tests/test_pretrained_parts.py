"""What the pretrained parts promise: LAION's own embeddings, no random weight, known sources, any decoder."""

import hashlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, TEXT, write_clap
from huggingface_hub import ModelCard
from laion_reference import make_laion, sounds
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    ClapAudioConfig,
    ClapAudioModelWithProjection,
    GPT2Model,
)

from clips.embedding import with_audio_tower_of
from configuration_rgmc import RGMCConfig
from modeling_rgmc import RGMCModel
from pretrained_rgmc import LAION_CONVERSION, _laion_name, load_clap_audio, load_text_model
from training.arguments import DataArguments, ModelArguments, TrainingArguments
from training.building import build_model
from training.checkpoints import run_card


def write_decoder(folder: Path, tokenizer, kind: str = "gpt2", dtype=torch.float32, **special) -> str:
    torch.manual_seed(0)
    special = {name: tokenizer.eos_token_id for name in ("bos_token_id", "eos_token_id", "pad_token_id")} | special
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **TEXT[kind], **special)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return str(folder)


def write_laion(path: Path, state: dict, **others) -> str:
    """Writes a checkpoint as LAION's training does: a distributed model's names, with the optimizer beside them."""
    optimizer = {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    contents = {"epoch": 15, "name": "a run", "optimizer": optimizer, **others}
    torch.save({**contents, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return str(path)


def remove_weight(folder: Path, name: str):
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def decoder(tmp_path, tokenizer) -> str:
    return write_decoder(tmp_path / "gpt2", tokenizer)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Names and shapes of LAION's HTS-AT tiny and of the other parts in the file; each stores only one number."""
    with torch.device("meta"):
        weights = ClapAudioModelWithProjection(ClapAudioConfig()).state_dict()
    shapes = {_laion_name(name): tensor.shape for name, tensor in weights.items()}
    shapes = {name: (3 * shape[0], *shape[1:]) if ".qkv." in name else shape for name, shape in shapes.items()}
    shapes |= {
        "logit_scale_a": (),
        "audio_branch.spectrogram_extractor.stft.conv_real.weight": (513, 1, 1024),
        "audio_branch.logmel_extractor.melW": (513, 64),
        "audio_branch.layers.0.blocks.1.attn_mask": (64, 64, 64),
        "audio_branch.tscam_conv.weight": (527, 768, 2, 3),
        "audio_branch.head.bias": (527,),
        "audio_transform.sequential.0.weight": (512, 512),
        "text_branch.embeddings.position_ids": (1, 514),
        "text_projection.0.weight": (512, 768),
    }
    return {
        name: torch.zeros((), dtype=torch.long if name.endswith(("index", "tracked")) else torch.float).expand(shape)
        for name, shape in shapes.items()
    }


# -- LAION's checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, depths, hidden_size", [("tiny", (2, 2, 6, 2), 768), ("base", (2, 2, 12, 2), 1024)])
def test_embeddings_equal_those_of_laion_clap(size, depths, hidden_size, processor, decoder, tmp_path):
    laion = make_laion(size)
    path = write_laion(tmp_path / f"{size}.pt", laion.model.state_dict())
    clips = sounds(2)
    with torch.no_grad():
        # LAION's own log-mel of the same float waveform, without its rounding to 16 bits.
        expected = laion.model.get_audio_embedding([{"waveform": torch.from_numpy(clip)} for clip in clips])
    model = RGMCModel.from_audio_text_pretrained(path, decoder).eval()
    features = processor.feature_extractor(clips, sampling_rate=48_000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        found = model.embed_audio(features)
    print(size, (found - expected).abs().max().item(), (expected[0] @ expected[1]).item())
    assert expected[0] @ expected[1] < 0.99, "the clips are too alike to tell one from another"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    audio = model.config.audio_config
    assert (tuple(audio.depths), audio.hidden_size, audio.projection_dim) == (depths, hidden_size, 512)
    assert not audio.enable_fusion


def test_a_checkpoint_of_laion_trains_is_saved_and_continued(state, processor, decoder, tmp_path):
    path = write_laion(tmp_path / "laion.pt", state, epoch=np.int64(15), best=np.float64(90.14))
    arguments = ModelArguments(audio_model=path, text_model=decoder)
    model = build_model(arguments, processor, train=None)
    assert model.config.audio_model_source == {
        "name": "laion.pt",
        "revision": None,
        "sha256": {"laion.pt": sha256(path)},
        "conversion": LAION_CONVERSION,
    }
    model.save_pretrained(tmp_path / "first")
    again = build_model(ModelArguments(model=str(tmp_path / "first")), processor, train=None)
    again.save_pretrained(tmp_path / "second")
    config = RGMCConfig.from_pretrained(tmp_path / "second")
    for name in ("audio_model_source", "text_model_source"):
        assert getattr(config, name) == getattr(model.config, name)
    assert config.text_model_source["sha256"] == {"model.safetensors": sha256(Path(decoder) / "model.safetensors")}
    assert str(tmp_path) not in (tmp_path / "second" / "config.json").read_text(encoding="utf-8")
    # As in LAION's own training, whole branches are dropped, not single numbers.
    assert (config.audio_config.hidden_dropout_prob, config.audio_config.drop_path_rate) == (0.0, 0.1)


def test_the_frozen_encoder_of_an_evaluation_may_be_laions(state, tmp_path):
    state["audio_branch.norm.bias"] = torch.arange(768.0)
    model = with_audio_tower_of(write_laion(tmp_path / "laion.pt", state))
    assert torch.equal(model.audio_tower.audio_model.audio_encoder.norm.bias, torch.arange(768.0))


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_checkpoints_without_module_and_of_old_pytorch_are_read(state, options, tmp_path):
    state["audio_branch.norm.bias"] = torch.arange(768.0)
    torch.save(state, tmp_path / "old.pt", **options)
    _, weights, _ = load_clap_audio(str(tmp_path / "old.pt"))
    assert torch.equal(weights["audio_model.audio_encoder.norm.bias"], torch.arange(768.0))


FC1 = "audio_branch.layers.2.blocks.5.mlp.fc1.weight"
STEM = "audio_branch.patch_embed.proj.weight"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({FC1: None, "audio_projection.0.bias": None}, f"missing: {FC1}, audio_projection.0.bias"),
        ({"audio_branch.layers.0.blocks.0.attn.qkv.bias": None}, "missing: audio_branch.layers.0.blocks.0.attn.qkv.b"),
        ({"audio_branch.absolute_pos_embed": (1, 4096, 96)}, "unknown: audio_branch.absolute_pos_embed"),
        ({"audio_branch.layers.2.blocks.6.norm1.bias": (384,)}, "unknown: audio_branch.layers.2.blocks.6.norm1.bias"),
        ({"audio_branch.mel_conv2d.weight": (96, 1, 4, 12)}, "with fusion.*: audio_branch.mel_conv2d.weight"),
        (
            {"audio_branch.patch_embed.mel_conv2d.bias": (96,)},
            "with fusion.*: audio_branch.patch_embed.mel_conv2d.bias",
        ),
        ({"audio_branch.fusion_model.local_att.0.bias": (24,)}, "with fusion.*fusion_model.local_att.0.bias"),
        ({STEM: (96, 4, 4, 4)}, rf"another shape: {STEM} \(96, 4, 4, 4\)"),
        ({FC1: (1535, 384)}, rf"another shape: {FC1} \(1535, 384\)"),
        ({"audio_branch.logmel_extractor.melW": (769, 64)}, r"melW \(769, 64\)"),
        ({STEM: None}, f"{STEM} is missing"),
        ({STEM: (100, 1, 4, 4)}, r"has the shape \(100, 1, 4, 4\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_listed(state, changes, message, decoder, tmp_path):
    for name, shape in changes.items():
        state[name] = None if shape is None else torch.zeros(()).expand(shape)
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    path = write_laion(tmp_path / "laion.pt", state)
    with pytest.raises(ValueError, match=f"laion.pt .*{message}"):
        RGMCModel.from_audio_text_pretrained(path, decoder)


class Command:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_no_code_in_a_checkpoint_is_run(state, tmp_path):
    marker = tmp_path / "was here"
    path = write_laion(tmp_path / "laion.pt", state, args=Command(marker))
    with pytest.raises(ValueError, match=r"laion.pt cannot be read .*mkdir.* save its weights by themselves"):
        load_clap_audio(path)
    assert not marker.exists()
    path = write_laion(tmp_path / "laion.pt", state, args=Namespace(lr=1e-4))
    with pytest.raises(ValueError, match=r"argparse\.Namespace"):
        load_clap_audio(path)


@pytest.mark.parametrize(
    "contents, message",
    [
        (b"", "cannot be read as tensors"),
        (b"a text", "cannot be read as tensors"),
        ({"state_dict": {"encoder.weight": torch.zeros(2)}}, "no audio_branch among encoder.weight"),
        ({"state_dict": 3}, "no audio_branch"),
        ([torch.zeros(2)], "no audio_branch"),
    ],
)
def test_what_is_no_checkpoint_of_laion_is_refused(contents, message, tmp_path):
    path = tmp_path / "other.pt"
    path.write_bytes(contents) if isinstance(contents, bytes) else torch.save(contents, path)
    with pytest.raises(ValueError, match=f"other.pt .*{message}.*a LAION checkpoint is"):
        load_clap_audio(str(path))


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such file"):
        load_clap_audio(str(tmp_path / "nowhere.pt"))


# -- checkpoints of transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "gemma2"])
def test_any_causal_language_model_is_a_decoder(kind, processor, log_mels, tokenizer, tmp_path):
    clap = write_clap(tmp_path / "clap")
    folder = write_decoder(tmp_path / kind, tokenizer, kind, dtype=torch.bfloat16, bos_token_id=None)
    model = RGMCModel.from_audio_text_pretrained(clap, folder, prefix_length=3).eval()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.text_model.state_dict().items())
    assert model.config.text_config.bos_token_id is None
    assert model.config.separator_token_id == tokenizer.eos_token_id
    inputs = processor(candidates=["a sad song"])
    assert model.generate(input_features=log_mels(1), **inputs, max_new_tokens=4).shape[0] == 1
    model.save_pretrained(tmp_path / "rgmc")
    loaded = RGMCModel.from_pretrained(tmp_path / "rgmc")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_weights_that_would_be_random_are_refused(decoder, tokenizer, tmp_path):
    norm = "audio_model.audio_encoder.norm.weight"
    write_clap(tmp_path / "clap")
    remove_weight(tmp_path / "clap", "text_projection.linear1.weight")  # not needed
    load_clap_audio(str(tmp_path / "clap"))
    remove_weight(tmp_path / "clap", norm)
    with pytest.raises(ValueError, match=f"clap is not a complete CLAP: these weights would be random: {norm}$"):
        RGMCModel.from_audio_text_pretrained(str(tmp_path / "clap"), decoder)
    with pytest.raises(ValueError, match="gpt2 is not a complete CLAP: these weights would be random"):
        RGMCModel.from_audio_text_pretrained(decoder, decoder)
    write_decoder(tmp_path / "llama", tokenizer, "llama")
    remove_weight(tmp_path / "llama", "lm_head.weight")
    with pytest.raises(ValueError, match=r"llama is not a complete causal language model.*: lm_head\.weight$"):
        load_text_model(str(tmp_path / "llama"))


def test_a_tied_head_is_not_missed(decoder, tmp_path):
    GPT2Model.from_pretrained(decoder).save_pretrained(tmp_path / "base")  # as openai-community/gpt2 is stored
    model, _ = load_text_model(str(tmp_path / "base"))
    assert torch.equal(model.lm_head.weight, AutoModelForCausalLM.from_pretrained(decoder).lm_head.weight)


def test_every_shard_is_hashed_and_no_place_is_kept(tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(write_decoder(tmp_path / "whole", tokenizer))
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    _, source = load_text_model(f"{tmp_path}/shards/")
    digests = {path.name: sha256(path) for path in shards}
    assert source == {"name": "shards", "revision": None, "sha256": digests, "conversion": None}


# -- the Hub ----------------------------------------------------------------------------------------------------------

FROM_THE_HUB = """
import json, sys
from modeling_rgmc import RGMCModel
for audio_model in ("someone/clap", "someone/laion/checkpoints/tiny.pt"):
    config = RGMCModel.from_audio_text_pretrained(audio_model, "someone/gpt2").config
    print(json.dumps([config.audio_model_source, config.text_model_source]))
try:
    RGMCModel.from_audio_text_pretrained("someone/laion/other.pt", "someone/gpt2")
except OSError as error:
    print(error)
"""


def test_parts_of_the_hub_are_named_with_their_commit(state, decoder, tmp_path):
    (tmp_path / "laion" / "checkpoints").mkdir(parents=True)
    laion = write_laion(tmp_path / "laion" / "checkpoints" / "tiny.pt", state)
    clap = write_clap(tmp_path / "clap")
    commits = {"clap": "c" * 40, "gpt2": "d" * 40, "laion": "e" * 40}
    for name, commit in commits.items():
        repository = tmp_path / "hub" / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots").mkdir()
        (repository / "snapshots" / commit).symlink_to(tmp_path / name)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FROM_THE_HUB]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    *lines, error = run.stdout.splitlines()[:3]
    text = {"name": "someone/gpt2", "revision": "d" * 40, "conversion": None}
    text["sha256"] = {"model.safetensors": sha256(Path(decoder) / "model.safetensors")}
    found = [json.loads(line) for line in lines]
    weights = {"model.safetensors": sha256(Path(clap) / "model.safetensors")}
    assert found[0] == [{"name": "someone/clap", "revision": "c" * 40, "sha256": weights, "conversion": None}, text]
    source = {"revision": "e" * 40, "sha256": {"tiny.pt": sha256(laion)}, "conversion": LAION_CONVERSION}
    assert found[1] == [{"name": "someone/laion/checkpoints/tiny.pt", **source}, text]
    assert "the Hub does not give other.pt of someone/laion" in error


def test_the_model_card_names_the_repositories_and_no_place(make_config, tmp_path):
    sources = {
        "audio_model_source": {"name": "someone/laion/tiny.pt", "revision": "e" * 40, "sha256": {}, "conversion": 1},
        "text_model_source": {"name": "gpt2", "revision": None, "sha256": {}, "conversion": None},
    }
    arguments = (
        ModelArguments(audio_model="someone/laion/tiny.pt", text_model=str(tmp_path / "gpt2")),
        DataArguments(dataset="music"),
        TrainingArguments(output_dir=str(tmp_path / "out")),
    )
    card = ModelCard(run_card(arguments, make_config(**sources), loss=1.0, epoch=1))
    assert card.data.base_model == ["someone/laion"]
    assert "It started with the audio encoder from `someone/laion/tiny.pt` and the decoder from `gpt2`;" in card.text
    assert str(tmp_path) not in str(card)
    scratch = ModelCard(run_card(arguments, make_config(), loss=1.0, epoch=1))
    assert scratch.data.base_model is None and "It started" not in scratch.text
