"""
Measures the scoring of a split: all string metrics of 2,500 captions, with intervals from 1,000 resamples.

    python -m benchmarks.metrics

prints a table and writes `benchmarks/results/metrics.json`. Captions and references are generated, about 50 words long
like those of MusicCaps. (a) is the COCO caption code's own scorers on words that are already tokenised, without
intervals; (b) is `metrics/caption_metrics` without METEOR, (c) with it. Seconds are the wall time of one run after a
warm-up. METEOR runs in Java, which starts again for each call.
"""

import json
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from benchmarks.train import machine
from evaluation.scoring import load_metric

RESULTS = Path(__file__).parent / "results"
WORDS = 4000  # size of the vocabulary; the k-th word is 1/k times as frequent as the first, as in language
GOALS = {"(b) without METEOR": 8, "(c) with METEOR": 30}  # seconds


def make_captions(n: int, length: float, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    ranks = 1 / np.arange(1, WORDS + 1)
    vocabulary = ["".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(WORDS)]
    lengths = generator.poisson(length, n).clip(min=4)
    return [" ".join(generator.choice(vocabulary, size, p=ranks / ranks.sum())) for size in lengths]


def score_with_coco(predictions: list[str], references: list[str]):
    found = {item: [caption] for item, caption in enumerate(predictions)}
    truth = {item: [caption] for item, caption in enumerate(references)}
    Bleu(4).compute_score(truth, found, verbose=0)
    Rouge().compute_score(truth, found)
    Cider().compute_score(truth, found)


def main():
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=2500)
    parser.add_argument("--bootstrap", type=int, default=1000)
    args = parser.parse_args()
    # Half of each caption is its reference's, so that something matches.
    references = make_captions(args.pairs, 50, seed=0)
    others = references[1:] + references[:1]
    predictions = [own[: len(own) // 2] + other[len(other) // 2 :] for own, other in zip(references, others)]
    options = {"predictions": predictions, "references": references, "bootstrap": args.bootstrap}
    ways = {
        "(a) COCO code, no METEOR, no intervals": lambda: score_with_coco(predictions, references),
        "(b) without METEOR": lambda: metric.compute(meteor=False, **options),
        "(c) with METEOR": lambda: metric.compute(**options),
    }
    seconds = {}
    for name, way in ways.items():
        for _ in range(2):
            metric = load_metric("caption_metrics")  # a new one, because it caches METEOR's answers
            start = time.perf_counter()
            found = way()
            seconds[name] = time.perf_counter() - start
        goal = f"  (goal: under {GOALS[name]} s)" if name in GOALS else ""
        print(f"{name:40} {seconds[name]:7.1f} s  {seconds[name] / seconds[next(iter(ways))]:5.1f}{goal}")
        if found and found.get("unavailable"):
            raise SystemExit(f"METEOR was not measured: {found['unavailable']['meteor_1.5']}")
    results = {"command": "python -m benchmarks.metrics", **vars(args), "machine": machine("cpu"), "seconds": seconds}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "metrics.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
