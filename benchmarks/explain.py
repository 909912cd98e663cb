"""
Measures what an explanation costs beside the caption.

    python -m benchmarks.explain --model outputs/demo --music data/demo/test

prints the ratio of the time with explanations to the time without, and writes `benchmarks/results/explain.json`. All of
it is the model's part: the log-mels are computed before. Captioning is `embed_audio`, retrieval and `generate` with the
checkpoint's settings; explaining is `explain` of these captions, without controls (four passes) and with those of one
random song (eight). They take turns in one process, and the medians of the rounds are compared.
"""

from clips import threads  # noqa: F401

# isort: split
import json
import platform
import statistics
import time
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path

import torch

from captions.inputs import find_inputs
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor

RESULTS = Path(__file__).parent / "results" / "explain.json"


def main():
    parser = ArgumentParser(description="Measures what an explanation costs beside the caption.")
    parser.add_argument("--model", default="outputs/demo", help="Checkpoint: folder or Hub id.")
    parser.add_argument("--music", required=True, help="Folder of music.")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()

    model, processor = RGMCModel.from_pretrained(args.model).eval(), RGMCProcessor.from_pretrained(args.model)
    paths = [*find_inputs([args.music]).files][: args.clips]
    batches = [
        processor(audio=paths[start : start + args.batch_size])["input_features"]
        for start in range(0, len(paths), args.batch_size)
    ]
    seconds: dict[str, list[float]] = {"caption": [], "four passes": [], "with controls": []}
    for _ in range(args.rounds + 1):
        spent = dict.fromkeys(seconds, 0.0)
        for log_mels in batches:
            begun = time.perf_counter()
            with torch.no_grad():
                embeds = model.embed_audio(log_mels)
            tokens = model.generate(audio_embeds=embeds)
            spent["caption"] += time.perf_counter() - begun
            for name, songs in (("four passes", 0), ("with controls", 1)):
                begun = time.perf_counter()
                model.explain(audio_embeds=embeds, tokens=tokens, random_songs=songs)
                spent[name] += time.perf_counter() - begun
        for name, value in spent.items():
            seconds[name].append(value)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first round warms up
    ratios = {name: 1 + medians[name] / medians["caption"] for name in ("four passes", "with controls")}
    for name, ratio in ratios.items():
        print(f"a caption with its explanation, {name}: {ratio:.2f} times a caption")
    results = {
        "model": Path(args.model).name if Path(args.model).is_absolute() else args.model,
        "clips": len(paths),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "seconds": {name: [round(value, 3) for value in values[1:]] for name, values in seconds.items()},
        "ratio": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
