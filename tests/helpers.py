"""Helpers of several test modules: paths, tiny configurations, small corpora of tones, and ways to run the scripts."""

import functools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

import numpy as np
import pandas
import soundfile
import torch
import yaml
from datasets import Dataset
from hypothesis import strategies as st
from transformers import ClapConfig, ClapModel

import prepare as prepare_script
import train
from captions.span_rows import Span
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from retrieval_rgmc import CaptionDatastore

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"  # real recordings; tests that need them are skipped without
# On a machine that has nothing else, the scripts need not be told.
ON_CPU = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
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
SPLITS = {
    "train": [*CAPTIONS, CAPTIONS[0], "solo flute", "warm organ", "Loud brass!", "a quiet harp"],
    "validation": CAPTIONS[2:5],
    "test": CAPTIONS[4:8],
}
MUSICAL_TEXT = st.text(st.one_of(st.sampled_from("/&#\u266d\u266f'\u2019-abcg4! \u0327\u0301\u200b"), st.characters()))
MUSICCAPS = SHARED / "musiccaps" / "musiccaps-public.csv"


def write_tone(path: Path, hertz: float, seconds: float = 10.0, rate: int = 8_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time) + 0.1 * np.sin(2 * np.pi * 3.01 * hertz * time), rate)
    return path


def write_corpus(folder: Path, splits: dict[str, list[str]]) -> Path:
    """Writes an audiofolder of tones: `write_corpus(folder, {"train": ["a caption", …], "validation": […]})`."""
    for split, captions in splits.items():
        lines = ["file_name,id,caption"]
        for row, caption in enumerate(captions):
            write_tone(folder / split / f"{row}.wav", 110 * 2 ** (row / 3) + len(split))
            lines.append(f"{row}.wav,{split}-{row},{caption}")
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(folder: Path, corpus: Path, *options: str, name: str = "checkpoint") -> Path:
    """Trains a tiny model in this process, and returns the checkpoint's folder."""
    train.main([str(config_file(folder, corpus, name, continued="--model" in options)), *options])
    return folder / name


def run_in_two_processes(folder: Path, corpus: Path, *options: str, name: str = "two") -> Path:
    """Trains a tiny model in two processes, and returns the checkpoint's folder."""
    in_two_processes("train.py", str(config_file(folder, corpus, name)), *options, output=folder / f"{name}.log")
    return folder / name


@functools.cache
def processes() -> ForkServerContext:
    """Makes processes that have imported the scripts and their libraries already, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers", "train"])
    with mock.patch.dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}"):
        multiprocessing.forkserver.ensure_running()
    return context


def run_script(script: str, options: Sequence[str], cwd: Path, environment: dict[str, str], output: Path):
    """Does in this process what `python <script> <options>` does in a new one; `-m <module>` is a script, too."""
    multiprocessing.set_start_method(None, force=True)  # as in a new process
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = [script, *options]
    status = None
    try:
        if script.startswith("-m "):
            runpy.run_module(script.removeprefix("-m "), run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as ended:  # with its frames go the workers of loaders, for which multiprocessing would wait
        status = ended.code
    sys.exit(status)


class Script:
    """
    A running script of the repository, or of any other path, in several processes of which each has imported the
    libraries already. They know of each other what torchrun tells. `output` is where they write what they print.
    """

    def __init__(
        self, script: str, *options: str, output: Path, cwd: Path = ROOT, world_size: int = 1, **variables: str
    ):
        environment = {**os.environ, **variables, **ON_CPU, "OMP_NUM_THREADS": "1"}
        if world_size > 1:
            with socket.create_server(("127.0.0.1", 0)) as free:
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
            environment |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        self.output, self.processes = output, []
        for rank in map(str, range(world_size)):
            ranks = {"RANK": rank, "LOCAL_RANK": rank} if world_size > 1 else {}
            arguments = (script, options, cwd, environment | ranks, output)
            self.processes.append(processes().Process(target=run_script, args=arguments))
            self.processes[-1].start()

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """Waits for the processes, of which one that fails ends the others, and returns what they printed."""
        until = time.monotonic() + timeout
        while self.is_alive():
            if time.monotonic() > until or any(process.exitcode for process in self.processes):
                self.kill()
            connection.wait([process.sentinel for process in self.processes if process.is_alive()], timeout=1)
        status = next((process.exitcode for process in self.processes if process.exitcode), 0)
        printed = (Path(f"{self.output}.{stream}").read_text() for stream in ("stdout", "stderr"))
        return subprocess.CompletedProcess(self.processes, status, *printed)

    def is_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def kill(self):
        for process in self.processes:
            process.kill()
            process.join()


def in_two_processes(script: str, *options: str, output: Path, **variables: str) -> subprocess.CompletedProcess:
    """Runs a script in two processes, which must succeed, and returns what they printed."""
    done = Script(script, *options, output=output, world_size=2, **variables).wait()
    assert done.returncode == 0, done.stderr
    return done


def config_file(folder: Path, corpus: Path, name: str, continued: bool = False) -> Path:
    config = {
        "dataset": str(corpus),
        "output_dir": str(folder / name),
        "cache_dir": str(folder / "cache"),
        "audio_config": {**AUDIO, "hidden_dropout_prob": 0.0},
        "text_config": {**TEXT["gpt2"], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "tokenizer_vocab_size": 350,
        "prefix_length": 3,
        "spec_augment": False,
        "max_candidate_length": 20,
        "max_caption_length": 20,
        "num_train_epochs": 1,
        "learning_rate": "1e-3",
        "batch_size": 4,
        "dataloader_num_workers": 0,
        "num_proc": 1,
    }
    if continued:  # the checkpoint has its own
        for part in (
            "audio_config",
            "text_config",
            "tokenizer_vocab_size",
            "max_candidate_length",
            "max_caption_length",
        ):
            del config[part]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unit_vectors(rows: int, size: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_rows(count: int) -> Dataset:
    return Dataset.from_dict(
        {
            "id": [f"song-{row}" for row in range(count)],
            "caption": [f"caption {row % 7}" for row in range(count)],
            "input_ids": [[row, row + 1] for row in range(count)],
        }
    )


def make_datastore(count: int = 50, **fields) -> CaptionDatastore:
    return CaptionDatastore(make_rows(count), unit_vectors(count), encoder_fingerprint="f00d", **fields)


def write_clap(folder: Path, **audio) -> str:
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ClapConfig(audio_config={**AUDIO, **audio}, text_config={**text, "vocab_size": 50}, projection_dim=32)
    ClapModel(config).save_pretrained(folder)
    return str(folder)


def prepare(*options) -> dict:
    """Prepares a corpus in this process, checks that the report's counts add up, and returns it."""
    options = list(map(str, options))
    prepare_script.main(options)
    folder = Path(options[options.index("--output_dir") + 1])
    report = json.loads((folder / "report.json").read_text())
    rejected = read_lines(folder / "rejected.jsonl")
    besides = [line for line in rejected if line["kind"] in ("no_json", "second_file", "other_file")]
    assert report["listed"] == report["kept"] + report["merged"] + len(rejected) - len(besides)
    assert sum(report["rejected"].values()) == len(rejected) and all(line["reason"] for line in rejected)
    assert report["kept"] == sum(split["found"] for split in report["splits"].values())
    return report


def read_table(folder: Path) -> pandas.DataFrame:
    return pandas.read_parquet(folder / "metadata.parquet").set_index("id", drop=False)


def write_sound(path: Path, seconds: float = 1.0, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, (round(8000 * seconds), 1 + seed % 2))
    soundfile.write(path, noise, 8000)
    return path


LONG_CAPTION = (
    "A calm piano piece with soft strings and a slow tempo that reminds the listener of an evening by the sea"
)


def make_spans(*parts: tuple, path: str = "film.mp4", duration: float | None = None) -> list[Span]:
    """Spans of `(end, kind or caption, fields)`, one after the other; a caption makes it music."""
    spans, start = [], 0.0
    duration = parts[-1][0] if duration is None else duration
    for end, what, *fields in parts:
        kind = what if what in ("silence", "other") else "music"
        named = {"caption": what, "score": -0.5} if kind == "music" else {}
        fields = named | (fields[0] if fields else {})
        spans.append(Span(path=path, duration=duration, start=start, end=end, kind=kind, **fields))
        start = end
    return spans


def vary_captions(model: RGMCModel):
    """Gives a decoder weights with which the captions of different clips differ, in words and in length."""
    for weight in model.text_model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.5)
    model.generation_config.eos_token_id = [0, *range(270, 290)]


def saved_pipeline(model: RGMCModel, processor, folder: Path) -> MusicCaptioningPipeline:
    """A pipeline, which is also saved to a folder unless that is there."""
    made = MusicCaptioningPipeline(model=model, processor=processor, device="cpu")
    if not folder.exists():
        made.save_pretrained(folder)
    return made
