"""
Compares a checkpoint with its decoder in float32 and in int8.

    python -m benchmarks.int8 --model checkpoints/demo --dataset data/demo

prints the size of the decoder's weights, the CPU time of a caption, and CIDEr-D on the test split with the paired
interval of the difference, and writes `benchmarks/results/int8.json`. A caption is `embed_audio`, retrieval and
`generate` of log-mels that are computed before, with the checkpoint's settings. Both models take turns, clip by clip in
batches; the median of the rounds counts. A decoder of GPT-2's size with random weights is measured without CIDEr-D: 20
tokens by 5 beams after a prompt of 40.
"""

from clips import threads  # noqa: F401

# isort: split
import copy
import json
import platform
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

from clips.int8 import decoder_size, quantize_decoder
from eval import load_rows
from evaluation.arguments import EvaluationArguments
from evaluation.captioning import Captioner
from evaluation.intervals import with_interval
from evaluation.scoring import load_metric

RESULTS = Path(__file__).parent / "results" / "int8.json"
KINDS = ("float32", "int8")


def take_turns(say: dict[str, Callable[[Any], Any]], batches: list, rounds: int) -> tuple[dict, dict]:
    """What each kind says of the batches, and the CPU seconds that it took for all of them in each round."""
    seconds: dict[str, list[float]] = {kind: [] for kind in say}
    for _ in range(rounds + 1):
        said: dict[str, list] = {kind: [] for kind in say}
        spent = dict.fromkeys(say, 0.0)
        for batch in batches:
            for kind, function in say.items():
                begun = time.process_time()
                said[kind] += function(batch)
                spent[kind] += time.process_time() - begun
        for kind, value in spent.items():
            seconds[kind].append(value)
    return said, {kind: values[1:] for kind, values in seconds.items()}  # the first round warms up


def measure_checkpoint(args, folder: str) -> dict:
    options = EvaluationArguments(model=args.model, dataset=args.dataset, output_dir=folder)
    captioner = Captioner.load(args.model, load_rows(options, args.split), Accelerator(cpu=True), 1, Path(folder))
    clips, processor = captioner.features, captioner.processor
    models = {"float32": captioner.model, "int8": copy.deepcopy(captioner.model)}
    quantize_decoder(models["int8"])

    def sayer(model):
        def say(batch: list[int]) -> list[str]:
            embeds, own = model.embed_audio(clips.read(batch)), [captioner.own_ids[row] for row in batch]
            tokens = model.generate(audio_embeds=embeds, exclude_ids=own, **consensus)
            return [*map(processor.normalize, processor.batch_decode(tokens, skip_special_tokens=True))]

        return say

    consensus = {"tokenizer": processor.tokenizer} if captioner.model.config.selection == "consensus" else {}
    rows = [*range(len(clips))]
    batches = [rows[start : start + args.batch_size] for start in range(0, len(rows), args.batch_size)]
    with torch.no_grad():
        said, seconds = take_turns({kind: sayer(models[kind]) for kind in KINDS}, batches, args.rounds)
    rule = {"normalization": processor.caption_normalization, "meteor": False}
    scoring = {"references": clips.captions, "bootstrap": 1000, "seed": 0, **rule}
    scores = {kind: load_metric("caption_metrics").compute(predictions=said[kind], **scoring) for kind in KINDS}
    resamples = [np.array(scores[kind]["resamples"]["cider_d"]) for kind in KINDS]
    difference = with_interval(scores["int8"]["cider_d"] - scores["float32"]["cider_d"], resamples[1] - resamples[0])
    return {
        "clips": len(rows),
        "megabytes": {kind: round(decoder_size(models[kind]) / 1e6, 2) for kind in KINDS},
        "cpu_seconds_per_caption": {kind: round(statistics.median(seconds[kind]) / len(rows), 3) for kind in KINDS},
        "cider_d": {kind: round(scores[kind]["cider_d"], 2) for kind in KINDS},
        "difference": [round(value, 2) for value in (difference.value, difference.low, difference.high)],
        "changed_captions": sum(one != other for one, other in zip(*said.values())),
    }


def measure_gpt2(rounds: int, batch_size: int) -> dict:
    models = {}
    for kind in KINDS:
        torch.manual_seed(0)
        decoder = GPT2LMHeadModel(GPT2Config()).eval()
        models[kind] = SimpleNamespace(text_model=decoder, get_output_embeddings=decoder.get_output_embeddings)
    quantize_decoder(models["int8"])
    length = {"num_beams": 5, "min_new_tokens": 20, "max_new_tokens": 20, "pad_token_id": 0}

    def sayer(model):
        return lambda ids: model.text_model.generate(ids, attention_mask=torch.ones_like(ids), **length).tolist()

    prompt = torch.randint(50_000, (batch_size, 40))
    _, seconds = take_turns({kind: sayer(models[kind]) for kind in KINDS}, [prompt], rounds)
    return {
        "megabytes": {kind: round(decoder_size(models[kind]) / 1e6, 2) for kind in KINDS},
        "cpu_seconds_per_caption": {kind: round(statistics.median(seconds[kind]) / batch_size, 3) for kind in KINDS},
    }


def main():
    parser = ArgumentParser(description="Compares a checkpoint with its decoder in float32 and in int8.")
    parser.add_argument("--model", default="checkpoints/demo", help="Checkpoint: folder or Hub id.")
    parser.add_argument("--dataset", required=True, help="Corpus with a split of references.")
    parser.add_argument("--split", default="test")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        of_model = measure_checkpoint(args, folder)
    parts = {"checkpoint": of_model, "GPT-2, random weights": measure_gpt2(args.rounds, args.batch_size)}
    print(f"{'':<32}{'MB':>8}{'s/caption':>12}{'CIDEr-D':>10}")
    for name, part in parts.items():
        for kind in KINDS:
            score = f"{part['cider_d'][kind]:.2f}" if "cider_d" in part else "-"
            cells = f"{part['megabytes'][kind]:8.2f}{part['cpu_seconds_per_caption'][kind]:12.3f}{score:>10}"
            print(f"{name + ', ' + kind:<32}{cells}")
    value, low, high = of_model["difference"]
    print(f"int8 - float32: {value:+.2f} CIDEr-D ({low:+.2f} to {high:+.2f}) on {of_model['clips']} clips;", end=" ")
    print(f"{of_model['changed_captions']} captions differ")
    results = {
        "model": Path(args.model).name if Path(args.model).is_absolute() else args.model,
        "split": args.split,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "torchao")},
        **parts,
    }
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
