"""
Measures a large datastore: built from given embeddings, saved, loaded and searched, each in its own process.

    python -m benchmarks.datastore

prints a table and writes `benchmarks/results/datastore.json`. All data is generated; nothing is downloaded. Captions
have 12 to 28 random tokens. There are two kinds of unit vectors of 512 numbers: random ones, which have no close
neighbours, and clustered ones around `--rows` / 100 centres, with a cosine of about 0.9 to the others in their cluster.

Queries are vectors of the same kind that are not in the datastore. Recall is the share of queries that find the same
nearest row as an exact search in float32; beside it stands by how much, at most, the row found instead is less similar.
All searches are exact over the stored numbers, except in the last row: a FAISS index with `nprobe` 32. The first search
builds this index, and that time is listed apart from the query's.

Seconds are wall time. Memory is the process's peak (Linux: `VmHWM`), which includes the mapped files' pages in memory,
and beside it `RssAnon` at the end, what the process itself holds. The files' pages may be cached already.
"""

from clips import threads  # noqa: F401

# isort: split
import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import torch
from datasets import Dataset

from benchmarks.refresh import memory_gib
from benchmarks.train import machine
from retrieval_rgmc import CaptionDatastore
from search_rgmc import STORAGES

RESULTS = Path(__file__).parent / "results"
SIZE, BLOCK, ROWS_PER_CENTRE, NPROBE = 512, 50_000, 100, 32
KINDS = ("random", "clustered")
LIMIT_GIB = 8


# -- what is stored ---------------------------------------------------------------------------------------------------


def make_vectors(kind: str, rows: int, count: int, seed: int) -> torch.Tensor:
    """Generates `count` unit vectors for a datastore of `rows` rows: `(count, 512)`."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(count, SIZE, generator=generator), dim=1)
    if kind == "random":
        return vectors
    centres = torch.randn(max(rows // ROWS_PER_CENTRE, 1), SIZE, generator=torch.Generator().manual_seed(0))
    centres = torch.nn.functional.normalize(centres, dim=1)
    chosen = torch.randint(0, len(centres), (count,), generator=generator)
    return torch.nn.functional.normalize(centres[chosen] + vectors / 3, dim=1)


def write_embeddings(path: Path, kind: str, rows: int):
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, SIZE))
    for start in range(0, rows, BLOCK):
        table[start : start + BLOCK] = make_vectors(kind, rows, min(BLOCK, rows - start), seed=1 + start)
    table.flush()


def make_rows(count: int) -> Dataset:
    random = np.random.default_rng(0)
    tokens = [random.integers(0, 50_257, length).tolist() for length in random.integers(12, 29, count)]
    captions = [f"a made-up caption of song {row}, with piano, strings and a slow beat" for row in range(count)]
    return Dataset.from_dict({"id": [f"song-{row}" for row in range(count)], "caption": captions, "input_ids": tokens})


# -- phases, each in its own process ----------------------------------------------------------------------------------


def in_own_process(function: Callable, *args):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def seconds_of(function: Callable, *args):
    started = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - started


def memory() -> dict:
    return {"peak_gib": memory_gib("VmHWM"), "anonymous_gib": memory_gib("RssAnon")}


def build(vectors: Path, rows: int, folder: Path, storage: str, string_factory: str) -> dict:
    parameters = None if string_factory == "Flat" else f"nprobe={NPROBE}"
    arguments = (make_rows(rows), np.load(vectors), "made-up", string_factory, storage, None, parameters)
    datastore, seconds = seconds_of(CaptionDatastore, *arguments)
    found = {"build_s": seconds}
    _, found["save_s"] = seconds_of(datastore.save_pretrained, folder)
    return found | {"disk_gib": sum(path.stat().st_size for path in folder.iterdir()) / 2**30} | memory()


def load(folder: Path) -> dict:
    _, seconds = seconds_of(CaptionDatastore.from_pretrained, folder)
    return {"load_s": seconds} | memory()


def search(folder: Path, kind: str, queries: int) -> tuple[dict, np.ndarray]:
    datastore = CaptionDatastore.from_pretrained(folder)
    vectors = make_vectors(kind, len(datastore), queries, seed=0)
    found = {}
    if datastore.string_factory != "Flat":
        _, found["index_s"] = seconds_of(lambda: datastore.index)
    _, found["one_query_s"] = seconds_of(datastore.search, vectors[:1])
    (rows, _), found["queries_s"] = seconds_of(datastore.search_rows, vectors)
    return found | {"queries": queries} | memory(), rows[:, 0]


def exact_similarities(vectors: Path, kind: str, rows: int, found: np.ndarray) -> np.ndarray:
    """Computes the similarity of each query and the row found for it, in float64 from the embeddings as given."""
    queries = make_vectors(kind, rows, len(found), seed=0).double().numpy()
    return (queries * np.load(vectors, mmap_mode="r")[found]).sum(axis=1)


# -- main -------------------------------------------------------------------------------------------------------------


def measure(name: str, storage: str, string_factory: str, args, folder: Path, expected: dict) -> dict:
    measured = {"storage": storage, "string_factory": string_factory, "recall_at_1": {}, "less_similar_by": {}}
    for kind in KINDS:
        store, vectors = folder / "store", folder / f"{kind}.npy"
        built = in_own_process(build, vectors, args.rows, store, storage, string_factory)
        searched, rows = in_own_process(search, store, kind, args.queries)
        if kind == KINDS[0]:  # the other kind costs the same
            measured |= {"build": built, "load": in_own_process(load, store), "search": searched}
        similarities = exact_similarities(vectors, kind, args.rows, rows)
        best_rows, best = expected.setdefault(kind, (rows, similarities))
        measured["recall_at_1"][kind] = float((rows == best_rows).mean())
        measured["less_similar_by"][kind] = float((best - similarities).max())
    phases = [measured[phase] for phase in ("build", "load", "search")]
    measured["peak_gib"] = max(phase["peak_gib"] for phase in phases)
    built, loaded, searched = phases
    print(
        f"{name:14}{built['disk_gib']:7.2f}{built['build_s']:9.1f}{built['save_s']:8.1f}{loaded['load_s']:8.1f}"
        f"{searched.get('index_s', 0):8.1f}{searched['one_query_s']:10.3f}{searched['queries_s']:12.1f}"
        + "".join(f"{phase['peak_gib']:8.2f}" for phase in phases)
        + f"{searched['anonymous_gib']:9.2f}"
        + "".join(f"{measured['recall_at_1'][kind]:9.1%} ({measured['less_similar_by'][kind]:.4f})" for kind in KINDS),
        flush=True,
    )
    return measured


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--index", default="IVF1024,SQ8", help="FAISS index of the table's last row.")
    args = parser.parse_args()
    facts = machine("cpu") | {"faiss": faiss.__version__, "datasets": version("datasets")}
    command = " ".join(["python -m benchmarks.datastore", *sys.argv[1:]])
    results = {"command": command, "machine": facts, "rows": args.rows, "embedding_size": SIZE, "stores": {}}
    print(
        f"{args.rows:,} captions; seconds; GiB\n{'':14}{'disk':>7}{'build':>9}{'save':>8}{'load':>8}{'index':>8}"
        f"{'1 query':>10}{f'{args.queries:,} qu.':>12}{'peaks: build, load, search':>24}{'  anon.':>9}"
        "  recall@1 (similarity lost, at most): random, clustered"
    )
    expected = {}
    with TemporaryDirectory() as folder:
        for kind in KINDS:
            in_own_process(write_embeddings, Path(folder) / f"{kind}.npy", kind, args.rows)
        for name, storage, factory in [(name, name, "Flat") for name in STORAGES] + [(args.index, "int8", args.index)]:
            results["stores"][name] = measure(name, storage, factory, args, Path(folder), expected)
    peak = max(store["peak_gib"] for store in results["stores"].values())
    print(f"Peak: {peak:.2f} GiB (goal: within {LIMIT_GIB} GiB: {'reached' if peak <= LIMIT_GIB else 'MISSED'})")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "datastore.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
