"""What loading a checkpoint's folder promises: precisions, attention, any place on disk, and clear errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers import CAPTIONS, ROOT, write_tone
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore


@pytest.fixture
def checkpoint(make_model, processor, log_mels, tmp_path):
    model = make_model(max_new_tokens=8)
    for weight in model.text_model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.5)
    rows = {"id": CAPTIONS, "caption": CAPTIONS, "input_ids": [processor.encode_candidate(text) for text in CAPTIONS]}
    with torch.no_grad():
        embeddings = model.embed_audio(log_mels(len(CAPTIONS))).numpy()
    model.set_datastore(CaptionDatastore(Dataset.from_dict(rows), embeddings, model.encoder_fingerprint()))
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_takes_features_of_any(checkpoint, log_mels, dtype):
    model = RGMCModel.from_pretrained(checkpoint, dtype=dtype)
    assert {weight.dtype for weight in model.text_model.parameters()} == {dtype} == {model.mapper.linear1.weight.dtype}
    assert {weight.dtype for weight in model.audio_tower.parameters()} == {torch.float32}  # like the datastore's
    features, tokens = log_mels(2), torch.tensor([[5, 0], [6, 0]])
    found = {}
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        logits = model(input_ids=tokens, input_features=features.to(kind)).logits
        assert logits.dtype == dtype
        found[kind] = model.retrieve(model.embed_audio(features.to(kind))).ids
        model.generate(features.to(kind))
    assert (
        found[torch.float32] == RGMCModel.from_pretrained(checkpoint).datastore.search(model.embed_audio(features)).ids
    )


def test_the_ways_to_load_a_model_change_nothing_of_what_it_says(checkpoint, log_mels):
    features = log_mels(3)
    said = RGMCModel.from_pretrained(checkpoint).generate(features)
    assert len({tuple(caption) for caption in said.tolist()}) > 1
    for options in (
        {"device_map": "auto"},
        {"device_map": "cpu"},
        {"dtype": "auto"},
        {"attn_implementation": "eager"},
        {"attn_implementation": "sdpa"},
        {"attn_implementation": {"audio_config": "eager", "text_config": "sdpa"}},
        {"use_safetensors": True},
    ):
        model = RGMCModel.from_pretrained(checkpoint, **options)
        assert model.generate(features).equal(said), options
        for part, name in (("audio_config", "audio"), ("text_config", "text")):
            expected = options.get("attn_implementation", "sdpa")
            expected = expected[part] if isinstance(expected, dict) else expected
            assert getattr(model.config, part)._attn_implementation == expected, name


def test_a_compiled_model_computes_the_same_as_one_graph(checkpoint, log_mels):
    model = RGMCModel.from_pretrained(checkpoint)
    inputs = {"input_ids": torch.tensor([[5, 0], [6, 0]]), "input_features": log_mels(2)}
    options = {"backend": "eager", "fullgraph": True}
    compiled = torch.compile(model, **options)
    with torch.no_grad():
        try:
            torch.compile(model.text_model, **options)(inputs["input_ids"])
        except torch._dynamo.exc.Unsupported as error:
            pytest.skip(f"torch {torch.__version__} cannot compile transformers' own GPT-2 as one graph: {error}")
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


def test_saving_again_gives_the_same_bytes(checkpoint, tmp_path):
    RGMCModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    RGMCProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    files = sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    for file in files:
        if file.name != "config.json":  # a loaded configuration adds the weights' type
            assert (tmp_path / "again" / file).read_bytes() == (checkpoint / file).read_bytes(), file
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["custom_pipelines"]["music-captioning"]["impl"] == "pipeline_rgmc.MusicCaptioningPipeline"


CAPTION = """
import sys
from transformers import pipeline
for folder in sys.argv[2:]:
    captioner = pipeline("music-captioning", model=folder, trust_remote_code=True, device="cpu")
    print(ascii(captioner(sys.argv[1])["caption"]))
    captioner.save_pretrained("again")
    print(ascii(pipeline(model="again", trust_remote_code=True, device="cpu")(sys.argv[1])["caption"]))
"""


def test_folders_of_any_name_load_and_are_left_as_they_were(checkpoint, tmp_path):
    names = ["checkpoint-500", "rgmc.v1", "two words", "käse"]
    folders = [shutil.copytree(checkpoint, tmp_path / "models" / name) for name in names]
    os.chmod(folders[0], 0o555)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "models").rglob("*"))
    song = write_tone(tmp_path / "song.wav", 220)
    done = subprocess.run(
        [sys.executable, "-c", CAPTION, str(song), *map(str, folders)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    captions = done.stdout.splitlines()
    assert len(captions) == 2 * len(names) and len({*captions}) == 1
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "models").rglob("*")) == before


def test_a_module_that_transformers_loads_names_all_modules_that_it_needs(tmp_path):
    for path in (*ROOT.glob("*_rgmc.py"), *ROOT.glob("baselines/*_rgmc.py")):
        shutil.copy(path, tmp_path)  # as in a checkpoint
    kinds = ("configuration", "feature_extraction", "modeling", "processing", "pipeline")
    for kind in (*kinds, "muscaps", "lp_musiccaps", "ltu_style"):
        name = f"{kind}_rgmc"
        module = tmp_path / f"{name}.py"
        needed = {Path(file).stem for file in get_relative_import_files(module)}
        assert needed - {name} == {*get_relative_imports(module)}, name  # transformers 5.6 only copies the latter


@pytest.fixture
def unknown_to_transformers(monkeypatch):
    """A state as in a process that has not imported eval.py, which registers our configuration."""
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "rgmc", raising=False)


def test_code_runs_only_where_it_is_trusted(checkpoint, unknown_to_transformers):
    for auto in (AutoConfig, AutoModel, AutoProcessor, AutoFeatureExtractor):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            auto.from_pretrained(checkpoint, trust_remote_code=False)


def test_our_own_classes_ask_nothing_on_the_terminal(checkpoint, unknown_to_transformers, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    RGMCModel.from_pretrained(checkpoint)
    RGMCProcessor.from_pretrained(checkpoint)
    assert asked == []


def test_the_code_in_the_place_of_a_checkpoint_is_a_short_error(tmp_path):
    """`pipeline` adds nothing to it: no list of classes that it tried, and no second traceback."""
    words = "holds the code and the configuration but no weights: give a trained checkpoint"
    with pytest.raises(EntryNotFoundError, match=words):
        RGMCModel.from_pretrained(ROOT)
    with pytest.raises(EntryNotFoundError, match=words) as error:
        pipeline("music-captioning", model=str(ROOT), trust_remote_code=True, device="cpu")
    assert error.value.__context__ is None and len(str(error.value).splitlines()) == 1


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def set_in_config(**fields):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("config.json", remove, "no config.json"),
        ("config.json", cut, "config.json' is not a valid JSON"),
        ("config.json", set_in_config(prefix_length=0), "`prefix_length` must be at least 1, got 0"),
        ("config.json", set_in_config(prefix_length="ten"), "'prefix_length' expected int, got str"),
        ("config.json", set_in_config(conditioning="video"), "expected one of .*'audio', 'candidate'.*, got video"),
        ("model.safetensors", remove, "holds the code and the configuration but no weights: give a trained checkpoint"),
        ("model.safetensors", cut, "checkpoint is damaged or cut short"),
        ("datastore/embeddings.safetensors", cut, "checkpoint/datastore is damaged"),
        ("datastore/embeddings.safetensors", remove, "datastore/embeddings.safetensors"),
        ("datastore/captions.parquet", cut, "captions.parquet"),
        ("datastore/datastore.json", remove, "a datastore of 8 captions, but its files"),
        ("processor_config.json", remove, "feature extractor"),
        ("tokenizer.json", remove, "tokenizer"),
    ],
)
def test_a_damaged_checkpoint_is_an_error_that_names_the_place(checkpoint, file, damage, words):
    damage(checkpoint / file)
    with pytest.raises(Exception) as error:
        RGMCModel.from_pretrained(checkpoint)
        RGMCProcessor.from_pretrained(checkpoint)
    assert re.search(words, str(error.value), re.S), str(error.value)
