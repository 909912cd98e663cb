"""
What RGMC relies on in its libraries beyond their public interfaces, each in a test named after it. If a new release
breaks one of these tests, the library has changed, not RGMC. docs/libraries.md lists them with reasons.
"""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from helpers import CAPTIONS, ROOT, config_file, write_corpus
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import (
    AutoModelForCausalLM,
    ClapAudioConfig,
    ClapAudioModelWithProjection,
    GenerationMixin,
    Pipeline,
    PreTrainedModel,
    pipelines,
)
from transformers.models.clap import modeling_clap

import train
from configuration_rgmc import TESTED_TRANSFORMERS, check_transformers
from generation_rgmc import CACHE_NAMES
from layers_rgmc import RGMCAudioSelfAttention
from modeling_rgmc import KEEPS_POSITIONS, RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor
from training.checkpoints import renew_model


def read_requirements(name: str) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


# -- versions ---------------------------------------------------------------------------------------------------------


def test_requirements_name_the_constraints_first():
    assert (ROOT / "requirements.txt").read_text().splitlines()[0] == "-c constraints.txt"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_each_requirement_has_one_exact_version_within_its_range(python):
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    pins = {}
    for pin in read_requirements("constraints.txt"):
        if pin.marker is None or pin.marker.evaluate(environment):
            assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin
            assert canonicalize_name(pin.name) not in pins, pin
            pins[canonicalize_name(pin.name)] = str(pin.specifier)[2:]
    for wanted in [*read_requirements("requirements.txt"), *read_requirements("requirements-dev.txt")]:
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


def test_what_only_one_build_of_torch_needs_is_left_to_torch():
    assert not [pin.name for pin in read_requirements("constraints.txt") if re.match("nvidia|cuda|triton", pin.name)]


def test_the_requirement_is_the_range_that_the_code_says_was_tested():
    (wanted,) = (wanted for wanted in read_requirements("requirements.txt") if wanted.name == "transformers")
    oldest, newest = TESTED_TRANSFORMERS
    major, minor = newest.split(".")
    assert {str(part) for part in wanted.specifier} == {f">={oldest}", f"<{major}.{int(minor) + 1}"}


def load_configuration_of(checkpoint: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, checkpoint / "configuration_rgmc.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_a_checkpoint_warns_once_under_a_newer_transformers(make_model, tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path)
    said = []
    logger = transformers.utils.logging.get_logger("rgmc")
    monkeypatch.setattr(logger, "warning", said.append)
    type(logger).warning_once.cache_clear()
    monkeypatch.setattr(transformers, "__version__", "5.99.0.dev0")
    for name in ("first", "second"):  # as the code of two checkpoints
        load_configuration_of(tmp_path, name)
    (message,) = said
    assert "RGMC was tested with transformers 5.6 to 5.24; this is 5.99.0.dev0" in message
    assert "pip install 'transformers>=5.6,<5.25'" in message


def test_a_checkpoint_refuses_an_older_transformers_and_says_what_mends_it(make_model, tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path)
    monkeypatch.setattr(transformers, "__version__", "5.5.4")
    with pytest.raises(
        RuntimeError, match=r"needs transformers 5.6 or newer, but this is 5.5.4: `pip install 'transfo"
    ):
        load_configuration_of(tmp_path, "old")


@pytest.mark.parametrize("tested", [*TESTED_TRANSFORMERS, f"{TESTED_TRANSFORMERS[1]}.3", f"{TESTED_TRANSFORMERS[0]}.0"])
def test_the_tested_versions_are_not_spoken_of(tested, monkeypatch):
    monkeypatch.setattr("configuration_rgmc.logging.get_logger", lambda name: pytest.fail("warned"))
    check_transformers(tested)


# -- transformers -----------------------------------------------------------------------------------------------------


def test_transformers_calls_the_cache_by_a_known_name():
    for function in (GenerationMixin.prepare_inputs_for_generation, transformers.GPT2LMHeadModel.forward):
        assert {*CACHE_NAMES} & {*inspect.signature(function).parameters}, function


def test_transformers_slice_logits_to_keep_tells_whether_decoders_keep_positions_by_row(make_config):
    decoder = AutoModelForCausalLM.from_config(make_config().text_config).eval()
    tokens, positions = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([[0], [2]])
    with torch.no_grad():
        every, kept = decoder(tokens).logits, decoder(tokens, logits_to_keep=positions).logits
    by_row = torch.stack([every[0, :1], every[1, 2:]])
    assert KEEPS_POSITIONS == (kept.shape == by_row.shape and torch.allclose(kept, by_row))


def test_transformers_clap_window_attention_has_the_parts_that_ours_takes_over():
    names = ["self", "hidden_states", "attention_mask", "output_attentions"]
    assert [*inspect.signature(modeling_clap.ClapAudioSelfAttention.forward).parameters] == names
    names = ["self", "config", "dim", "num_heads", "window_size"]
    assert [*inspect.signature(modeling_clap.ClapAudioSelfAttention.__init__).parameters] == names
    attention = modeling_clap.ClapAudioAttention(ClapAudioConfig(), 16, 2, 8)
    assert {name for name, _ in attention.self.named_parameters()} == {
        "relative_position_bias_table",
        *(f"{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")),
    }
    for name in ("all_head_size", "num_attention_heads", "window_size", "relative_position_index", "dropout"):
        assert hasattr(attention.self, name), name


def test_transformers_clap_has_the_parts_that_the_encoder_is_reached_by():
    with torch.device("meta"):
        encoder = ClapAudioModelWithProjection(ClapAudioConfig())
    assert isinstance(encoder.audio_model.audio_encoder.batch_norm, torch.nn.BatchNorm2d)
    assert encoder.audio_projection.linear1.weight.ndim == 2


def test_transformers_attn_implementation_is_kept_by_each_part(make_config, tmp_path):
    RGMCModel(make_config()).save_pretrained(tmp_path)
    model = RGMCModel.from_pretrained(tmp_path, attn_implementation={"audio_config": "eager", "text_config": "eager"})
    assert (model.config.audio_config._attn_implementation, model.config.text_config._attn_implementation) == (
        ("eager",) * 2
    )
    assert not any(isinstance(module, RGMCAudioSelfAttention) for module in model.modules())


def test_transformers_keep_in_fp32_modules_strict_keeps_the_encoder_in_float32(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    model = RGMCModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.audio_tower.parameters()} == {torch.float32}
    assert {weight.dtype for weight in model.text_model.parameters()} == {torch.bfloat16}


def test_transformers_init_weights_initialises_what_has_no_weights(make_config):
    called = []

    class Model(RGMCModel):
        def _init_weights(self, module):
            called.append(type(module).__name__)

    Model(make_config())
    assert "Linear" in called
    assert hasattr(PreTrainedModel, "_supports_sdpa") and hasattr(PreTrainedModel, "_supports_flash_attn")


def test_transformers_pipelines_load_what_their_flags_say():
    for flag in ("_load_processor", "_load_tokenizer", "_load_feature_extractor"):
        assert flag in vars(Pipeline) and flag in inspect.getsource(pipelines), flag
    for name in ("_sanitize_parameters", "preprocess", "_forward", "postprocess"):
        assert callable(getattr(Pipeline, name))


def test_transformers_processors_are_made_of_their_parts():
    for name in ("get_processor_dict", "from_args_and_dict"):
        assert callable(getattr(transformers.ProcessorMixin, name))


# -- accelerate -------------------------------------------------------------------------------------------------------


def test_accelerate_fsdp_plugin_has_the_settings_that_are_checked_and_set():
    fields = inspect.signature(FullyShardedDataParallelPlugin).parameters
    for name in ("fsdp_version", "auto_wrap_policy", "cpu_ram_efficient_loading", "mixed_precision_policy"):
        assert name in fields, name
    assert "fsdp_plugin" in inspect.getsource(AcceleratorState)


# -- old checkpoints --------------------------------------------------------------------------------------------------


def test_a_checkpoint_with_old_code_is_renewed_in_its_place(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"train": CAPTIONS[:4], "validation": CAPTIONS[2:4]})
    train.main([str(config_file(tmp_path, corpus, "checkpoint"))])
    folder = tmp_path / "checkpoint"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    song = corpus / "train" / "3.wav"

    def caption():
        model, processor = RGMCModel.from_pretrained(folder), RGMCProcessor.from_pretrained(folder)
        return MusicCaptioningPipeline(model=model, processor=processor, device="cpu")(str(song))

    said = caption()
    (folder / "modeling_rgmc.py").write_text("raise ImportError('old code')")
    (folder / "datastore" / "index.faiss").write_bytes(b"of an earlier version")
    renew_model(folder)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed <= {"config.json"}  # a loaded configuration adds the weights' type
    assert caption() == said
