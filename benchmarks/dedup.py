"""
Measures the exact deduplication of 250,000 short captions (section 5 of the paper).

    python -m benchmarks.dedup

prints a table and writes `benchmarks/results/dedup.json`. The captions are generated from recombined phrases: 10 %
exact copies, 20 % edited copies, and some short ones. A second run takes near copies of one caption, the hard case. The
reference multiplies all sets of 5-grams with each other and must find the same pairs; it runs on `--subset` captions,
and the two are compared on that subset. Seconds are wall time; memory is the peak of a whole process, one per row.
"""

import json
import multiprocessing
import resource
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from scipy import sparse

from benchmarks.train import machine
from corpora.dedup import _by_rarity, deduplicate, distinct_sets, similar_pairs

RESULTS = Path(__file__).parent / "results"
MOODS = "calm dark happy sad epic tense dreamy gentle wild solemn bright nostalgic heroic playful eerie warm".split()
STYLES = "waltz march ballad jingle anthem groove tango reggae techno bossa lullaby fanfare blues trance rag".split()
LEADS = "piano violin flute guitar cello harp organ trumpet marimba accordion koto sitar choir oboe synth".split()
ENDINGS = [
    *("with a driving beat", "with soft strings behind it", "for the opening of a film", "at a slow tempo"),
    *("that builds to a climax", "in a minor key", "with hand claps and bells", "for a sunny morning", "with brushes"),
    *("that sounds like rain", "with a walking bass line", "for a chase", "in the style of the eighties", "live"),
]


def make_captions(n: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    pick = lambda words: words[int(generator.integers(len(words)))]  # noqa: E731
    captions = []
    for kind in generator.random(n):
        if captions and kind < 0.3:
            words = pick(captions).split()
            if kind > 0.1:  # edited: a word inserted, deleted or replaced
                place = int(generator.integers(len(words)))
                words[place : place + int(generator.integers(2))] = [pick(LEADS)] * int(generator.integers(2))
            captions.append(" ".join(words) or "music")
        elif kind < 0.4:
            captions.append(f"{pick(MOODS)} {pick(STYLES)}")
        else:
            endings = " ".join(pick(ENDINGS) for _ in range(int(generator.integers(1, 4))))
            captions.append(
                f"a {pick(MOODS)} and {pick(MOODS)} {pick(STYLES)} for {pick(LEADS)} and {pick(LEADS)} {endings}"
            )
    return captions


def make_family(n: int, seed: int) -> list[str]:
    """Generates near copies of one caption of 60 words."""
    generator = np.random.default_rng(seed)
    base = [str(word) for word in generator.integers(10**6, size=60)]
    return [" ".join([*base, *map(str, generator.integers(50, size=int(generator.integers(1, 5))))]) for _ in range(n)]


def all_pairs(captions: list[str]) -> set[tuple[int, int]]:
    """The reference: compares every set with every other."""
    sets, _ = distinct_sets(captions, 5)
    tokens = _by_rarity(sets)
    overlaps = sparse.triu(tokens @ tokens.T, k=1).tocoo()
    sizes = np.diff(tokens.indptr)
    union = sizes[overlaps.row] + sizes[overlaps.col] - overlaps.data
    similar = 5 * overlaps.data > 4 * union
    return set(zip(overlaps.row[similar].tolist(), overlaps.col[similar].tolist()))


def our_pairs(captions: list[str]) -> set[tuple[int, int]]:
    pairs, _ = similar_pairs(distinct_sets(captions, 5)[0], 0.8)
    return set(map(tuple, pairs.tolist()))


def measure(way, captions: list[str], answers):
    start = time.perf_counter()
    found = way(captions)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
    kept = len(found) if isinstance(found, set) else len(found[0])
    answers.put({"captions": len(captions), "seconds": seconds, "peak_gib": peak, "found": kept})


def in_own_process(way, captions: list[str]) -> dict:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=measure, args=(way, captions, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def ids_and_deduplicate(captions: list[str]):
    return deduplicate(captions, list(range(len(captions))))


def main():
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--captions", type=int, default=250_000)
    parser.add_argument("--family", type=int, default=5_000)
    parser.add_argument("--subset", type=int, default=20_000)
    args = parser.parse_args()
    captions = make_captions(args.captions, seed=0)
    subset = captions[: args.subset]
    if our_pairs(subset) != all_pairs(subset):
        raise SystemExit("The pairs are not those of the reference")
    results = {
        "deduplicate": in_own_process(ids_and_deduplicate, captions),
        "family": in_own_process(ids_and_deduplicate, make_family(args.family, seed=1)),
        "subset": in_own_process(our_pairs, subset),
        "reference of the subset": in_own_process(all_pairs, subset),
    }
    for name, found in results.items():
        print(f"{name:24} {found['captions']:>9,} captions  {found['seconds']:7.1f} s  {found['peak_gib']:5.2f} GiB")
    ratio = results["reference of the subset"]["seconds"] / results["subset"]["seconds"]
    print(f"On the subset the reference takes {ratio:.1f} times as long; goal for 250,000: under 60 s and 2 GiB")
    written = {"command": "python -m benchmarks.dedup", "machine": machine("cpu"), "ratio": ratio, **results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dedup.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
