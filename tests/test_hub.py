"""
What a checkpoint sends to the Hub and loads from it, tested with a server on this machine. The code runs from the Hub's
copy, in fresh processes that do not know this folder.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import CAPTIONS, ROOT, config_file, write_corpus
from loopback_hub import LoopbackHub

from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor

REPO = "tester/rgmc-tiny"
PUSHED = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors"),
    *(path.name for path in ROOT.glob("*_rgmc.py")),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("datastore/captions.parquet", "datastore/datastore.json", "datastore/embeddings.safetensors"),
}
DATASTORE = {name for name in PUSHED if name.startswith("datastore/")}
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}


def start(code: str, *args: str, folder: Path, environment: dict) -> subprocess.Popen:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(command, cwd=folder, env={**inherited, **environment}, text=True, **pipes)


def output_of(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub():
    server = LoopbackHub()
    yield server
    server.shutdown()


PUBLISH = """
import runpy, shutil, sys
import torch
import train
from huggingface_hub import create_repo, upload_file
from pathlib import Path
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor
from training.checkpoints import push_model

train.main(sys.argv[1:])

shutil.copytree("checkpoint-500", "changed")
model, processor = RGMCModel.from_pretrained("changed"), RGMCProcessor.from_pretrained("changed")
for part in (model.mapper, model.text_model):
    for weight in part.parameters():
        torch.nn.init.normal_(weight, std=0.5)
model.save_pretrained("changed")
strays = ("datastore/skipped.jsonl", "datastore/index.faiss", "model-old/model.safetensors", "backup/modeling_rgmc.py")
for stray in strays:
    Path("changed", stray).parent.mkdir(exist_ok=True)
    Path("changed", stray).write_text("mine")
sys.argv = ["training.checkpoints", "changed", "tester/rgmc-tiny"]
runpy.run_module("training.checkpoints", run_name="__main__")

create_repo("tester/store")
for folder in ("", "datastore"):
    name = f"{folder}/index.faiss".strip("/")
    upload_file(path_or_fileobj=b"of former code", path_in_repo=name, repo_id="tester/store")
    model.datastore.push_to_hub("tester/store", path_in_repo=folder)

captioner = MusicCaptioningPipeline(model=model, processor=processor, device="cpu")
captioner.save_pretrained("whole", push_to_hub=True, repo_id="tester/whole")
model.save_pretrained("whole", push_to_hub=True, repo_id="tester/model")
model.push_to_hub("tester/pushed")

push_model(Path("changed"), "tester/without", private=True)
for name in ("backup/modeling_rgmc.py", "datastore/index.faiss"):  # the latter as of former code
    upload_file(path_or_fileobj=b"mine", path_in_repo=name, repo_id="tester/without")
model.set_datastore(None)
captioner.push_to_hub("tester/whole")
shutil.copytree("changed", "without")
model.save_pretrained("without")
push_model(Path("without"), "tester/without", private=True)

model.push_to_hub("tester/bare", tags=["mine"])
processor.push_to_hub("tester/bare")
"""


@pytest.fixture(scope="module")
def published(hub, folder):
    """
    Commits of each repository. The folders `checkpoint-500` (what train.py leaves), `changed` (another decoder) and
    `without` (no datastore) have the same contents: see `PUBLISH`.
    """
    splits = {"train": CAPTIONS[:6], "validation": CAPTIONS[2:4]}
    config = config_file(folder, write_corpus(folder / "corpus", splits), "checkpoint-500")
    options = ["--push_to_hub", "true", "--hub_model_id", REPO, "--model_license", "cc-by-4.0"]
    shutil.copy(folder / "corpus" / "train" / "3.wav", folder / "song.mp3")
    environment = {**hub.environment(folder), "PYTHONPATH": str(ROOT)}
    output_of(start(PUBLISH, str(config), *options, folder=folder, environment=environment))
    return {repo: list(commits)[1:] for repo, commits in hub.repos.items()}


LOAD = """
import json, re, sys
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, AutoTokenizer, pipeline

found = {}
for checkpoint, revision in json.loads(sys.argv[1]):
    options = {"revision": revision, "trust_remote_code": True}
    model = AutoModel.from_pretrained(checkpoint, **options)
    processor = AutoProcessor.from_pretrained(checkpoint, **options)
    others = [auto.from_pretrained(checkpoint, **options) for auto in (AutoConfig, AutoFeatureExtractor)]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
    captioner = pipeline("music-captioning", model=checkpoint, device="cpu", **options)
    inputs = processor(audio=["song.mp3"])
    tokens = model.generate(**inputs)
    found[f"{checkpoint}@{revision}"] = {
        "revision": model.loaded_revision,
        "classes": [type(part).__name__ for part in (model, processor, *others)],
        "caption": tokenizer.batch_decode(tokens, skip_special_tokens=True)[0],
        "pipeline": captioner("song.mp3"),
    }
for card in sys.argv[2:]:
    for block in re.findall(r"```python\\n(.*?)```", open(card).read(), re.S):
        exec(block)
    # A worker that is started afresh gets the processor pickled.
    loader = DataLoader(["song.mp3"], collate_fn=processor, num_workers=1, multiprocessing_context="spawn")
    assert next(iter(loader))["input_features"].equal(inputs["input_features"])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def local(published, folder):
    """What the pushed folders give when loaded locally."""
    said = {}
    for name in ("checkpoint-500", "changed", "without"):
        model, processor = RGMCModel.from_pretrained(folder / name), RGMCProcessor.from_pretrained(folder / name)
        captioner = MusicCaptioningPipeline(model=model, processor=processor, device="cpu")
        said[name] = captioner(str(folder / "song.mp3"))
    return said


@pytest.fixture(scope="module")
def loaded(hub, published, folder):
    """What a process loads from the Hub beside another, with an empty cache, and the files that were requested."""
    del hub.log[:]
    checkpoints = [(REPO, None), (REPO, published[REPO][0]), ("tester/without", None), ("tester/bare", None)]
    checkpoints.append(("tester/without", published["tester/without"][0]))  # main no longer has its datastore
    options = {"folder": folder, "environment": hub.environment(folder / "cache")}
    both = [start(LOAD, json.dumps(checkpoints), **options), start(LOAD, json.dumps(checkpoints[:1]), **options)]
    results = [process.communicate(timeout=300) for process in both]
    failed = [i for i, process in enumerate(both) if process.returncode]
    assert len(failed) < 2, [err for _, err in results]
    assert all("transformers_modules" in results[i][1] for i in failed), results[failed[0]][1]
    for i in failed:  # transformers copies code without a lock: a process that met half a copy has to try again
        results[i] = (output_of(start(LOAD, both[i].args[3], **options)), "")
    both = [json.loads(out.splitlines()[-1]) for out, _ in results]
    assert both[1][f"{REPO}@None"] == both[0][f"{REPO}@None"]
    return both[0], hub.downloads()


def test_the_model_is_pushed_and_of_its_folder_nothing_else(hub, published, folder):
    checkpoint = folder / "checkpoint-500"
    assert {path.name for path in checkpoint.iterdir()} - PUSHED > {"log.jsonl", "neighbors.jsonl"}
    assert hub.files(REPO, published[REPO][0]).keys() == PUSHED
    assert hub.files(REPO).keys() == PUSHED
    for name, content in hub.files(REPO, published[REPO][0]).items():
        assert content == (checkpoint / name).read_bytes()


def test_what_is_pushed_names_no_place_on_this_machine_and_no_circumstance_of_its_making(hub, published):
    for repo, commits in published.items():
        for name, content in hub.files(repo, commits[-1]).items():
            if not name.endswith((".safetensors", ".parquet", "_rgmc.py")):
                text = content.decode()
                assert not re.search(r"/tmp|/root|/home|\\bis_local|local_files_only|127\.0\.0\.1", text), (repo, name)
                assert str(ROOT) not in text and sys.prefix not in text


def test_a_second_push_takes_away_what_the_model_no_longer_has(hub, published):
    assert hub.private == {"tester/without"}
    with_datastore, *_, without = published["tester/without"]
    assert hub.files("tester/without", with_datastore).keys() == PUSHED
    assert hub.files("tester/without", without).keys() == PUSHED - DATASTORE | {"backup/modeling_rgmc.py"}
    with_datastore, *_, without = published["tester/whole"]
    assert hub.files("tester/whole", with_datastore).keys() == PUSHED
    assert hub.files("tester/whole", without).keys() == PUSHED - DATASTORE


def test_a_pushed_datastore_takes_away_the_index_of_former_code(hub, published):
    assert hub.files("tester/store").keys() == DATASTORE | {name.removeprefix("datastore/") for name in DATASTORE}


@pytest.mark.parametrize("repo", ["tester/model", "tester/pushed"])
def test_a_model_that_is_pushed_by_itself_has_its_datastore(hub, published, repo):
    assert hub.files(repo).keys() == PUSHED - PROCESSOR
    assert "`datastore/` holds 6 captions" in hub.files(repo)["README.md"].decode()


def test_the_card_states_the_run(hub, published):
    card = hub.files(REPO)["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata == {
        "library_name": "transformers",
        "license": "cc-by-4.0",
        "code_license": "mit",
        "datastore_license": "unknown",
        "pipeline_tag": "audio-text-to-text",
        "tags": ["music", "music-captioning", "retrieval-augmented-generation"],
    }
    assert "Weights: cc-by-4.0. Captions in the datastore: not stated" in card
    assert "`datastore/` holds 6 captions" in card
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.S)[1])["dataset"] == "corpus"


def test_a_bare_model_is_pushed_with_our_card_and_not_with_a_form(hub, published):
    files = hub.files("tester/bare")
    assert files.keys() == PUSHED - DATASTORE
    card = files["README.md"].decode()
    assert "Model ID" not in card and "More Information Needed" not in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "unknown" and metadata["tags"][-1] == "mine"
    assert 'checkpoint = "tester/bare"' in card


def test_the_hub_gives_back_what_it_was_given(loaded, local, published):
    main, pinned, without, bare, before = loaded[0].values()
    assert main["pipeline"] == before["pipeline"] == approximately(local["changed"])
    assert pinned["pipeline"] == approximately(local["checkpoint-500"])
    assert without["pipeline"] == bare["pipeline"] == approximately(local["without"])
    assert len({entry["caption"] for entry in (main, pinned, without)}) == 3
    # `CaptionDatastore.build` finds the processor of this model by it.
    assert main["revision"] in (None, "main") and pinned["revision"] == published[REPO][0]
    for entry in loaded[0].values():
        assert entry["classes"] == ["RGMCModel", "RGMCProcessor", "RGMCConfig", "RGMCFeatureExtractor"]
        shown = entry["pipeline"]["caption"]  # with a capital and a full stop, and single spaces
        assert shown.removesuffix(".").lower() == " ".join(entry["caption"].lower().split())


def approximately(clip: dict) -> dict:
    candidates = [
        {**candidate, "similarity": pytest.approx(candidate["similarity"], abs=1e-5)}
        for candidate in clip["candidates"]
    ]
    return {
        **clip,
        "path": Path(clip["path"]).name,  # it was given relative to the folder
        "score": pytest.approx(clip["score"], abs=1e-5),
        "candidates": candidates,
    }


def test_loading_asks_for_the_checkpoint_and_nothing_else(loaded, published):
    downloads = loaded[1]
    expected = {f"{repo}/{name}" for repo in (REPO, "tester/without") for name in PUSHED - {"README.md"}}
    expected |= {f"tester/bare/{name}" for name in PUSHED - DATASTORE - {"README.md"}}
    assert {*downloads} == expected


def test_what_was_loaded_once_loads_offline_and_its_card_tells_how(hub, loaded, published, folder):
    (folder / "card.md").write_bytes(hub.files(REPO)["README.md"])
    environment = {**hub.environment(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    requests = len(hub.log)
    checkpoints = [(REPO, published[REPO][0]), ("tester/without", None)]
    out = output_of(start(LOAD, json.dumps(checkpoints), "card.md", folder=folder, environment=environment))
    *said, last = out.splitlines()
    again = json.loads(last)
    assert again == {name: loaded[0][name] for name in again}
    main = loaded[0][f"{REPO}@None"]
    assert f"'caption': {main['pipeline']['caption']!r}" in said[0] and said[1] == str([main["caption"]])
    assert len(hub.log) == requests
