"""What export.py promises: an encoder that embeds and finds neighbours as the model does, without transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

import export
from clips.options import parse
from corpora.demo import SAMPLE_RATE, draw_clip
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor

DEMO = str(ROOT / "checkpoints" / "demo")

# Knows neither transformers nor this repository.
ELSEWHERE = """
import sys
sys.modules["transformers"] = None
import numpy as np, pyarrow.parquet, torch
from safetensors.torch import load_file
log_mels = torch.from_numpy(np.load("log_mels.npy"))
encoder = torch.export.load("export/encoder.pt2").module()
embeds = torch.cat([encoder(batch) for batch in log_mels.split([1, 2, len(log_mels) - 3])])
rows = (embeds @ load_file("export/embeddings.safetensors")["embeddings"].T).topk(5).indices.numpy()
captions = pyarrow.parquet.read_table("export/captions.parquet")["caption"].to_pylist()
assert not [name for name in sys.modules if name.endswith("_rgmc")]
np.savez("found.npz", embeds=embeds.numpy(), captions=np.array([[captions[row] for row in found] for found in rows]))
"""


@pytest.fixture(scope="module")
def model():
    return RGMCModel.from_pretrained(DEMO).eval()


@pytest.fixture(scope="module")
def clips():
    """Log-mels `(10, 1, T, F)` of clips that the script does not compare."""
    sounds = [draw_clip(0, 100 + index)[1] for index in range(10)]
    return RGMCProcessor.from_pretrained(DEMO).feature_extractor(sounds, sampling_rate=SAMPLE_RATE)["input_features"]


@pytest.fixture
def tiny(make_model, processor, tmp_path) -> str:
    make_model().save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_encoder_works_in_a_process_without_transformers(model, clips, tmp_path):
    description = export.main(export.ExportArguments(DEMO, str(tmp_path / "export")))
    np.save(tmp_path / "log_mels.npy", clips.numpy())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    with torch.no_grad():
        embeds = model.embed_audio(clips)
    np.testing.assert_allclose(found["embeds"], embeds.numpy(), rtol=0, atol=1e-4)
    assert found["captions"].tolist() == model.datastore.search(embeds, k=5).captions

    assert json.loads((tmp_path / "export" / "encoder.json").read_text()) == description
    assert description["encoder_fingerprint"] == model.datastore.encoder_fingerprint
    settings = description["log_mels"]
    assert [settings["frames"], settings["feature_size"]] == [*clips.shape[2:]]
    assert (tmp_path / "export" / "encoder.pt2").stat().st_size < Path(DEMO, "model.safetensors").stat().st_size


def test_a_program_unlike_the_model_is_refused(tiny, tmp_path, monkeypatch):
    args, trace = export.ExportArguments(tiny, str(tmp_path / "export")), export.trace_encoder
    export.main(args)
    former = contents(tmp_path / "export")

    def rounded(*args):
        program = trace(*args)
        for weight in program.parameters():
            weight.data = weight.data.round(decimals=1)
        return program

    monkeypatch.setattr(export, "trace_encoder", rounded)
    with pytest.raises(ValueError, match=r"encoder\.pt2 .* differ by up to [\d.e-]+, expected at most 0\.0001\."):
        export.main(args)
    assert contents(tmp_path / "export") == former
    with pytest.raises(ValueError, match="differ by up to"):
        export.main(export.ExportArguments(tiny, str(tmp_path / "new")))
    assert not any((tmp_path / "new").iterdir())


def test_only_an_export_is_replaced(tiny):
    former = contents(Path(tiny))
    with pytest.raises(FileExistsError, match=r"holds \w+\.\w+ and no encoder\.json"):
        export.main(export.ExportArguments(tiny, tiny))
    assert contents(Path(tiny)) == former


def test_onnx_names_the_packages_that_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    words = ["--model", DEMO, "--output_dir", "outputs/export"]
    assert not parse(export.ExportArguments, words)[0].onnx
    with pytest.raises(ImportError, match="needs onnx, onnxscript, onnxruntime: pip install onnx"):
        export.ExportArguments(DEMO, "outputs/export", onnx=True)


def test_onnx_embeds_as_the_model_does(model, clips, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export.main(export.ExportArguments(DEMO, str(tmp_path), onnx=True))
    (embeds,) = runtime.InferenceSession(tmp_path / "encoder.onnx").run(None, {"log_mels": clips.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(embeds, model.embed_audio(clips).numpy(), rtol=0, atol=1e-4)
