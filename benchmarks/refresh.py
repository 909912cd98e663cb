"""
Measures a retrieval refresh: every training song is embedded by the current encoder, and its nearest song looked up.

    python -m benchmarks.refresh
    python -m benchmarks.refresh --device cuda

prints a table and writes `benchmarks/results/refresh-<device>.json`. All data is generated; nothing is downloaded. The
refresh is the training's own: `build_datastore` and `find_neighbors` under an `Accelerator`, with the embedding batch
of the training's defaults.

`--rows` songs have captions of about 20 tokens. Their log-mels are 256 generated clips in an Arrow table, repeated by
`select`, because all of them would take 24 GB of disk. These numbers therefore leave out the cost of reading log-mels
from a disk and the pages of mapped files.

On a GPU the encoder is HTSAT-base with random weights (`--encoder base`). On a CPU that would take hours, so there it
is a very small encoder with embeddings of the same size (`--encoder small`). All rows go through the whole code; the
rate of HTSAT-base is measured on `--embedded_rows` clips and extrapolated, and the table says so.

Equal log-mels have equal embeddings, so the search is also measured on random unit vectors. An exact search compares
each query with each row whatever they hold. `--queries` sets the number of queries; if it is not all rows, the time for
all is extrapolated. 200 queries of both searches are checked against numpy's products in float64.

Seconds are wall time; beside them is the CPU time of all threads, which other processes on the machine affect less.
Memory is the process's peak (Linux: `VmHWM`), as a whole and above what it held when the refresh began.
"""

from clips import threads  # noqa: F401

# isort: split
import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Array2D, Dataset, Features
from transformers import AutoConfig

from benchmarks.train import machine as describe_machine
from clips import embedding
from clips.features import ClipFeatures
from configuration_rgmc import HTSAT_BASE, RGMCConfig
from modeling_rgmc import RGMCModel
from retrieval_rgmc import CaptionDatastore
from training import refresh
from training.arguments import TrainingArguments

RESULTS = Path(__file__).parent / "results"
CLIPS, VALIDATION_ROWS, CHECKED = 256, 2000, 200
VARIANTS = ("(b) RGMC float32", "(b) RGMC bfloat16")  # names in the training benchmark
ENCODERS = {
    "base": HTSAT_BASE,
    "small": {
        "model_type": "clap_audio_model",
        "patch_embeds_hidden_size": 8,
        "patch_size": 16,
        "patch_stride": [16, 16],
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "hidden_size": 16,
        "projection_dim": 512,
    },
}


# -- what is refreshed ------------------------------------------------------------------------------------------------


def make_model(encoder: str, device: torch.device) -> RGMCModel:
    """Makes a model with this encoder. Its decoder is tiny, because a refresh does not use it."""
    torch.manual_seed(0)
    audio_config = AutoConfig.for_model(**ENCODERS[encoder]).to_dict()
    text_config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 1}
    model = RGMCModel(RGMCConfig(audio_config=audio_config, text_config=text_config))
    model.set_log_mel_statistics(torch.tensor(-30.0), torch.tensor(225.0))  # those of the generated clips
    return model.to(device)


def make_features(clips: Dataset, count: int, split: str) -> ClipFeatures:
    ids = [f"{split}-{row}" for row in range(count)]
    return ClipFeatures(ids, [["a caption"]] * count, clips.select([row % CLIPS for row in range(count)]))


def make_data(count: int) -> tuple[ClipFeatures, ClipFeatures, Dataset]:
    """Generates both splits and the rows of the datastore."""
    random = np.random.default_rng(0)
    log_mels = random.normal(-30, 15, (CLIPS, 1001, 64)).astype(np.float16)
    clips = Dataset.from_dict({"log_mel": log_mels}, features=Features({"log_mel": Array2D((1001, 64), "float16")}))
    train, validation = (make_features(clips, *split) for split in ((count, "train"), (VALIDATION_ROWS, "validation")))
    tokens = [random.integers(0, 50_257, length).tolist() for length in random.integers(12, 29, count)]
    captions = [f"a made-up caption of song {row}, with piano, strings and a slow beat" for row in range(count)]
    return train, validation, Dataset.from_dict({"id": train.ids, "caption": captions, "input_ids": tokens})


# -- measurements -----------------------------------------------------------------------------------------------------


def memory_gib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


class Clock:
    def __init__(self):
        self.started = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """Wall time and CPU time since the clock was made."""
        return time.perf_counter() - self.started[0], time.process_time() - self.started[1]


class Stages:
    """Wall time, CPU time and peak memory of each stage, in order."""

    def __init__(self):
        self.stages = []

    @contextmanager
    def measure(self, name: str):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        clock = Clock()
        yield
        self.stages.append((name, *clock.seconds(), memory_gib("VmHWM")))

    def watch(self, function: Callable, *names: str) -> Callable:
        """Wraps a function so that its calls are measured as stages with these names, one after the other."""
        left = list(names)

        @wraps(function)
        def watched(*args, **kwargs):
            with self.measure(left.pop(0)):
                return function(*args, **kwargs)

        return watched


@contextmanager
def watched_refresh(stages: Stages):
    """Measures the project's functions that make up a refresh. Each leaves its result on the CPU."""
    watched = [
        (embedding, "embed_rows", ("embedding",)),
        (refresh, "embed_rows", ("validation: embedding",)),
        (RGMCModel, "encoder_fingerprint", ("datastore: fingerprint of the encoder",)),
        (embedding, "CaptionDatastore", ("datastore: checks",)),
        (CaptionDatastore, "search_rows", ("index and search", "validation: search", "validation: search for recall")),
    ]
    originals = [getattr(owner, name) for owner, name, _ in watched]
    for (owner, name, names), original in zip(watched, originals):
        setattr(owner, name, stages.watch(original, *names))
    yield
    for (owner, name, _), original in zip(watched, originals):
        setattr(owner, name, original)


def measure_refresh(args, accelerator: Accelerator) -> tuple[dict, CaptionDatastore]:
    model = make_model(args.encoder, accelerator.device)
    train, validation, rows = make_data(args.rows)
    batch_size = TrainingArguments.batch_size
    model.eval()
    with torch.no_grad():
        model.embed_audio(train.read(list(range(batch_size))))  # warm-up
    stages, on_gpu = Stages(), accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before, clock = memory_gib("VmRSS"), Clock()
    with watched_refresh(stages):
        datastore = embedding.build_datastore(model, train, rows, accelerator, batch_size)
        neighbors, _ = refresh.find_neighbors(model, datastore, train, validation, accelerator, batch_size)
    seconds, cpu_seconds = clock.seconds()
    peak = max(gib for *_, gib in stages.stages)
    results = {
        "rows": args.rows,
        "validation_rows": VALIDATION_ROWS,
        "encoder": args.encoder,
        "batch_size": batch_size,
        "seconds": {name: taken for name, taken, *_ in stages.stages} | {"whole refresh": seconds},
        "cpu_seconds": {name: taken for name, _, taken, _ in stages.stages} | {"whole refresh": cpu_seconds},
        "peak_gib_of_stage": {name: gib for name, *_, gib in stages.stages},
        "clips_per_s": args.rows / stages.stages[0][1],
        "peak_gib": peak,
        "peak_gib_above_start": peak - before,
        "gpu_peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "checked": check(datastore, neighbors.train, neighbors.train_similarities),
    }
    print(
        f"\nOne refresh of {args.rows:,} rows, encoder '{args.encoder}', {results['clips_per_s']:.0f} clips/s embedded"
    )
    print(f"{'':44}{'s':>10}{'CPU s':>10}{'peak GiB':>12}")
    for name, taken, cpu_taken, gib in stages.stages:
        print(f"{name:44}{taken:10.2f}{cpu_taken:10.2f}{gib:12.2f}")
    print(f"{'whole refresh':44}{seconds:10.2f}{cpu_seconds:10.2f}{peak:12.2f}  ({peak - before:.2f} above its start)")
    if on_gpu:
        print(f"{'peak on the GPU':44}{'':20}{results['gpu_peak_gib']:12.2f}")
    return results, datastore


def check(datastore: CaptionDatastore, rows: np.ndarray, similarities: np.ndarray) -> dict:
    """Compares what the search found for a sample of its queries, the datastore's own rows, with float64 products."""
    sample = np.random.default_rng(1).choice(len(rows), min(CHECKED, len(rows)), replace=False)
    table = datastore.embeddings.astype(np.float64)
    products = table[sample] @ table.T
    products[np.arange(len(sample)), sample] = -np.inf  # the query's own row
    found = np.take_along_axis(products, rows[sample, :1], axis=1)[:, 0]
    best = products.max(axis=1)
    return {
        "queries": len(sample),
        "as_similar": int((best - found < 1e-6).sum()),
        "same_row": int((products.argmax(axis=1) == rows[sample, 0]).sum()),
        "own_row": int((rows[sample, 0] == sample).sum()),
        "worse_than_best_by": float((best - found).max()),
        "similarity_off_by": float(np.abs(found - similarities[sample, 0]).max()),
    }


def measure_random_search(rows: Dataset, count: int, device: torch.device) -> dict:
    """Measures the search alone, in a datastore of isotropic unit vectors."""
    vectors = torch.randn(len(rows), 512, generator=torch.Generator().manual_seed(0))
    datastore = CaptionDatastore(rows, torch.nn.functional.normalize(vectors, dim=1).numpy(), "random vectors")
    datastore.search_rows(datastore.embeddings[:1], device=device)  # warm-up; builds the index
    ids = rows["id"][:count]
    clock = Clock()
    found = datastore.search_rows(datastore.embeddings[:count], exclude_ids=ids, device=device)
    seconds, cpu_seconds = clock.seconds()
    return {
        "queries": count,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "seconds_of_all": seconds * len(rows) / count,
        "checked": check(datastore, *found),
    }


def measure_base_encoder(count: int, device: torch.device) -> dict:
    """Measures the rate of HTSAT-base; clips are read and embedded by the refresh's own function."""
    model, (features, *_) = make_model("base", device), make_data(count)
    with torch.no_grad():
        model.eval().embed_audio(features.read([0, 1, 2, 3]))  # warm-up
    clock = Clock()
    embedding.embed_rows(model, features, Accelerator(), TrainingArguments.batch_size, "Embedding with HTSAT-base")
    seconds, cpu_seconds = clock.seconds()
    return {"clips": count, "clips_per_s": count / seconds, "cpu_seconds_per_clip": cpu_seconds / count}


def compare_with_epoch(results: dict, device: str) -> dict:
    """Estimates a refresh with HTSAT-base as a share of an epoch, by the rates of the training benchmark."""
    path = RESULTS / f"train-{device}.json"
    refreshed, base = results["refresh"], results["base_encoder"]
    seconds, rows = refreshed["seconds"], refreshed["rows"]
    others = seconds["whole refresh"] - seconds["embedding"] - seconds["validation: embedding"]
    whole = (rows + VALIDATION_ROWS) / base["clips_per_s"] + others
    extrapolated = refreshed["encoder"] != "base"
    note = f", EXTRAPOLATED from {base['clips']} clips" if extrapolated else ""
    print(f"\nHTSAT-base embeds {base['clips_per_s']:.2f} clips/s: a refresh takes {whole:,.0f} s{note}")
    undisturbed = None
    if device == "cpu":  # what it would take if no other process had the cores
        undisturbed = (rows + VALIDATION_ROWS) * base["cpu_seconds_per_clip"] / torch.get_num_threads() + others
        print(f"  undisturbed, by its {base['cpu_seconds_per_clip']:.3f} s of CPU time per clip: {undisturbed:,.0f} s")
    found = {
        "refresh_s": whole,
        "undisturbed_refresh_s": undisturbed,
        "extrapolated": extrapolated,
        "training_rates_of": None,
        "share_of_epoch": {},
    }
    if not path.is_file():
        print(f"{path} does not exist: run `python -m benchmarks.train --device {device}` for the share of an epoch")
        return found
    found["training_rates_of"] = f"benchmarks/results/{path.name}"
    for size, variants in json.loads(path.read_text())["batch_sizes"].items():
        for name in VARIANTS:
            if variants.get(name):
                epoch = rows / variants[name]["clips_per_s"]
                share = found["share_of_epoch"][f"{name}, {size} clips a step"] = whole / epoch
                print(
                    f"  {share:.1%} of an epoch of {epoch:,.0f} s ({name}, {size} clips a step, {path.name})"
                    + (f", undisturbed {undisturbed / epoch:.1%}" if undisturbed else "")
                    + f"{note} "
                    f"(goal: at most 25 %: {verdict(share <= 0.25)})"
                )
    return found


def verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def describe_check(found: dict) -> str:
    return (
        f"checked: {found['as_similar']} of {found['queries']} queries found a row as similar as numpy's, "
        f"{found['same_row']} found the same row, {found['own_row']} found themselves; "
        f"less similar than the best by at most {found['worse_than_best_by']:.1e}, "
        f"similarity off by at most {found['similarity_off_by']:.1e}"
    )


# -- main -------------------------------------------------------------------------------------------------------------


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=184_242, help="Songs of the training split.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--encoder", choices=list(ENCODERS), help="By default small on the CPU, base on a GPU.")
    parser.add_argument("--embedded_rows", type=int, default=64, help="Clips for HTSAT-base if the encoder is small.")
    parser.add_argument("--queries", type=int, help="By default 10,240 on the CPU, all rows on a GPU.")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.encoder = args.encoder or ("base" if on_gpu else "small")
    args.queries = min(args.queries or (args.rows if on_gpu else 10_240), args.rows)
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # as the training does
    accelerator = Accelerator(cpu=not on_gpu)
    results = {
        "command": " ".join(["python -m benchmarks.refresh", *sys.argv[1:]]),
        "machine": machine(args.device),
    }
    results["refresh"], datastore = measure_refresh(args, accelerator)
    print("  " + describe_check(results["refresh"]["checked"]))
    random = results["random_search"] = measure_random_search(datastore.rows, args.queries, accelerator.device)
    del datastore
    scope = (
        "" if args.queries == args.rows else f", EXTRAPOLATED to all {args.rows:,}: {random['seconds_of_all']:.2f} s"
    )
    print(
        f"\nSearch among {args.rows:,} random unit vectors: {args.queries:,} queries {random['seconds']:.2f} s{scope}"
    )
    print("  " + describe_check(random["checked"]))
    results["base_encoder"] = (
        {
            "clips": args.rows,
            "clips_per_s": results["refresh"]["clips_per_s"],
            "cpu_seconds_per_clip": results["refresh"]["cpu_seconds"]["embedding"] / args.rows,
        }
        if args.encoder == "base"
        else measure_base_encoder(args.embedded_rows, accelerator.device)
    )
    results["epoch"] = compare_with_epoch(results, args.device)
    search = max(results["refresh"]["seconds"]["index and search"], random["seconds_of_all"])
    reached = verdict(search < 3) if on_gpu else "not measured on a CPU"
    print(f"Search of all rows: {search:.2f} s (goal: under 3 s on a GPU: {reached})")
    peak = max(results["refresh"]["peak_gib"], results["refresh"]["gpu_peak_gib"] or 0)
    print(f"Peak: {peak:.2f} GiB with the encoder '{args.encoder}' (goal: within 16 GiB: {verdict(peak <= 16)})")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"refresh-{args.device}.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def machine(device: str) -> dict:
    facts = describe_machine(device) | {name: version(name) for name in ("datasets", "accelerate")}
    if device == "cpu":  # on a GPU the search does not use FAISS
        import faiss

        facts["faiss"] = faiss.__version__
    return facts


if __name__ == "__main__":
    main()
