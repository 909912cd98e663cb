"""laion_clap's own modules with random weights, as a reference for tests, and sounds for them."""

import ast
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import AUDIO, CAPTIONS
from tokenizers.processors import TemplateProcessing
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaConfig, RobertaModel

from training.building import train_tokenizer

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 80,
}


def clap_tokenizer():
    """A tokenizer like RoBERTa's: a token per letter between two others, so an empty text has tokens; padding is 0."""
    tokenizer = train_tokenizer(CAPTIONS, 257)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer


@torch.no_grad()
def shake(module: torch.nn.Module, seed: int):
    """Sets weights and batch-norm statistics that make the outputs of different inputs very different."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        if tensor.ndim > 1:
            scale = 2 / tensor[0].numel() ** 0.5 if "embeddings" not in name and "table" not in name else 0.5
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
        else:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    for name, tensor in module.named_buffers():
        if name.endswith("running_mean"):
            tensor.copy_(10 * torch.randn(tensor.shape, generator=generator) - 30)
        elif name.endswith("running_var"):
            tensor.copy_(100 + 100 * torch.rand(tensor.shape, generator=generator))


def sounds(n: int = 3, seconds: float = 10.0) -> list[np.ndarray]:
    """Chords and noise, partly beyond full scale."""
    generator = np.random.default_rng(0)
    time = np.arange(int(seconds * 48_000)) / 48_000
    clips = []
    for i in range(1, n + 1):
        chord = sum(np.sin(2 * np.pi * 110 * (i + 0.5) * k * time) for k in range(1, 5))
        hiss = generator.standard_normal(len(time))
        clips.append((0.3 * chord * np.exp(-i * (time % 0.7)) + 0.03 * i * hiss).astype(np.float32))
    return clips


def laion_clap_folder() -> Path:
    """Finds the package's folder without importing it, because that would ask the Hub for tokenizers."""
    missing = [name for name in ("laion_clap", "torchlibrosa") if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("RGMC_REQUIRE_PARITY"):
        pytest.fail(f"RGMC_REQUIRE_PARITY is set, but {' and '.join(missing)} cannot be imported")
    if missing:
        pytest.skip("the parity test needs laion_clap: pip install torchlibrosa && pip install --no-deps laion-clap")
    return Path(importlib.util.find_spec("laion_clap").submodule_search_locations[0])


def make_laion(size: str) -> SimpleNamespace:
    """
    Makes laion_clap's model (`CLAP`) of `size` tiny or base, with random weights and a small RoBERTa, and its
    preprocessing of waveforms.
    """
    folder = laion_clap_folder()
    package = types.ModuleType("laion_clap_module")
    package.__path__ = [str(folder / "clap_module")]
    stubs = {"torchvision.ops.misc": {"FrozenBatchNorm2d": None}, "torchvision.ops": {}, "torchvision": {}, "h5py": {}}
    with pytest.MonkeyPatch.context() as modules:
        modules.setitem(sys.modules, package.__name__, package)
        for name, contents in stubs.items():  # it imports them, but does not use them here
            stub = types.ModuleType(name)
            vars(stub).update(contents)
            modules.setitem(sys.modules, name, stub)
        module = importlib.import_module("laion_clap_module.model")

    tokenizer = clap_tokenizer()
    sizes = {**TEXT, "hidden_size": 768, "num_attention_heads": 12, "type_vocab_size": 1}
    text_config = RobertaConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    settings = json.loads((folder / "clap_module" / "model_configs" / f"HTSAT-{size}.json").read_text())
    settings["text_cfg"]["model_type"] = "roberta"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as roberta:
        small = SimpleNamespace(from_pretrained=lambda _: RobertaModel(text_config))
        roberta.setattr(module, "RobertaModel", small)
        model = module.CLAP(**settings).eval()
    for seed, part in enumerate((model.audio_branch, model.audio_projection, model.text_branch, model.text_projection)):
        names = {name for name in part.state_dict() if not name.endswith("num_batches_tracked")}  # torch fills those in
        fixed = {name: part.state_dict()[name].clone() for name in names if "extractor" in name}
        shake(part, seed)
        kept = part.load_state_dict(fixed, strict=False)  # Fourier basis and mel filters
        assert kept.unexpected_keys == [] and {*kept.missing_keys} == names - fixed.keys(), kept
        assert len(fixed) == (3 if part is model.audio_branch else 0), [*fixed]

    # Its training/data.py imports a dozen packages for other functions.
    source = ast.parse((folder / "training" / "data.py").read_text())
    wanted = ("float32_to_int16", "int16_to_float32", "get_audio_features")
    source.body = [node for node in source.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    functions = {"np": np, "torch": torch, "F": torch.nn.functional}
    exec(compile(source, "data.py", "exec"), functions)

    def embed_audio(waveforms: list[np.ndarray]) -> torch.Tensor:
        """`CLAP_Module.get_audio_embedding_from_data`."""
        inputs = []
        for waveform in waveforms:
            waveform = functions["int16_to_float32"](functions["float32_to_int16"](waveform))
            waveform = torch.from_numpy(waveform).float()
            options = {"data_truncating": "rand_trunc", "data_filling": "repeatpad", "audio_cfg": settings["audio_cfg"]}
            inputs.append(functions["get_audio_features"]({}, waveform, 480_000, **options))
        return model.get_audio_embedding(inputs)

    def embed_texts(texts: list[str]) -> torch.Tensor:
        """`CLAP_Module.get_text_embedding`."""
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        return model.get_text_embedding({name: tokens[name] for name in ("input_ids", "attention_mask")})

    return SimpleNamespace(
        model=model, text_config=text_config, tokenizer=tokenizer, embed_audio=embed_audio, embed_texts=embed_texts
    )


def save_checkpoint(folder: Path, model: ClapModel, tokenizer, **extractor) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"frequency_min": 50, "frequency_max": 14_000, "truncation": "rand_trunc", "padding": "repeatpad"}
    ClapFeatureExtractor(**{**settings, **extractor}).save_pretrained(folder)
    return str(folder)


def tiny_clap(**audio) -> tuple[ClapModel, object]:
    tokenizer = clap_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(audio_config={**AUDIO, **audio}, text_config=text, projection_dim=32))
    shake(model, 0)
    return model, tokenizer
