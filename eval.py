"""
Captions a split with a checkpoint and scores it (section 6 of the paper).

    accelerate launch eval.py --model outputs/demo --dataset data/demo --split test --output_dir outputs/demo/eval
"""

import os

# Read when torch is loaded. Threads that spin while they wait for each other make a step many times slower on a busy
# CPU.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from tqdm.auto import tqdm
from transformers import AutoConfig, HfArgumentParser

from configuration_rgmc import RGMCConfig
from dataset_rgmc import ClipFeatures, compute_features, load_captions
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor, normalize_caption

# A checkpoint's configuration is read with the code at hand, which needs no trust in the copy that the checkpoint
# carries.
AutoConfig.register(RGMCConfig.model_type, RGMCConfig, exist_ok=True)

METRICS = {"cider_d": "CIDEr-D", "bleu_4": "BLEU@4", "rouge_l": "ROUGE-L", "copy": "Copy %", "distinct": "Distinct %"}
SYSTEMS = {
    "gold": "Gold caption",
    "random": "Random caption",
    "nearest_neighbor": "Nearest neighbor",
    "rgmc": "RGMC",
    "rgmc_shuffled_audio": "RGMC, shuffled audio",
}


@dataclass
class EvaluationArguments:
    model: str = field(metadata={"help": "Checkpoint: folder or Hub id."})
    dataset: str = field(
        metadata={"help": "audiofolder, csv, jsonl or parquet of paths, save_to_disk folder, or Hub id."}
    )
    output_dir: str = field(metadata={"help": "Folder of predictions.jsonl and results.json."})
    split: str = field(default="test", metadata={"help": "Split to caption; 'all' for a corpus without splits."})
    caption_column: str = field(
        default="caption", metadata={"help": "Column of the caption, or of a list of captions."}
    )
    id_column: str = field(default="id", metadata={"help": "Column of unique ids; file names where it is missing."})
    batch_size: int = field(default=32, metadata={"help": "Clips per forward pass and process."})
    seed: int = field(default=0, metadata={"help": "Of the random captions and of the shuffling of the audio."})
    max_skipped: float = field(default=0.01, metadata={"help": "Largest share of unusable rows that is not an error."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the log-mel cache; that of datasets if unset."}
    )
    cache_dtype: str = field(
        default="float16", metadata={"help": "Type of the cached log-mels: float16 or float32, twice as large."}
    )
    num_proc: int = field(default=1, metadata={"help": "Processes that decode audio."})


def evaluate_checkpoint(args: EvaluationArguments, accelerator: Accelerator) -> dict:
    """Writes `predictions.jsonl` and `results.json` to `args.output_dir`, prints the table, and returns the results."""
    output_dir = Path(args.output_dir)
    processor = RGMCProcessor.from_pretrained(args.model)
    model = RGMCModel.from_pretrained(args.model).to(accelerator.device).eval()
    if model.datastore is None:
        raise ValueError(f"{args.model} holds no datastore, so there are no candidates and no baselines to score")
    with accelerator.main_process_first():
        features = compute_features(
            load_captions(args.dataset, args.split, args.caption_column, args.id_column),
            processor.feature_extractor,
            args.split,
            skipped_file=output_dir / "skipped.jsonl",
            max_skipped=args.max_skipped,
            cache_dir=args.cache_dir,
            dtype=args.cache_dtype,
            num_proc=args.num_proc,
        )
    predictions = caption_split(model, processor, features, accelerator, args.batch_size)
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return {}
    systems = build_systems(predictions, model.datastore.rows["caption"], args.seed)
    results = {
        "n": len(predictions),
        "model": args.model,
        "dataset": args.dataset,
        "split": args.split,
        "seed": args.seed,
        "text": "lower case, Unicode punctuation and symbols deleted, white space collapsed; NLTK word tokens",
        "systems": {name: score(captions, predictions) for name, captions in systems.items()},
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_lines(output_dir / "predictions.jsonl", predictions)
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(format_table(results))
    # Also lets Gloo's threads release the last gathered tensors: they need the interpreter's lock for that, and a group
    # that is destroyed before they got it hangs for ever.
    accelerator.wait_for_everyone()
    return results


@torch.no_grad()
def caption_split(
    model: RGMCModel, processor: RGMCProcessor, features: ClipFeatures, accelerator: Accelerator, batch_size: int
) -> list[dict]:
    """Captions every row once, shared by the processes; the lines of `predictions.jsonl` in the order of `features`."""
    own = list(range(accelerator.process_index, len(features), accelerator.num_processes))
    progress = tqdm(total=len(own), desc="Captioning", unit="clip", disable=not accelerator.is_main_process)
    lines = []
    for start in range(0, len(own), batch_size):
        batch = own[start : start + batch_size]
        audio_embeds = model.embed_audio(features.read(batch))
        retrieved = model.retrieve(audio_embeds, exclude_ids=[features.ids[row] for row in batch])
        prompts = processor(candidates=retrieved.captions) if model.config.uses_candidate else {}
        tokens = model.generate(audio_embeds=audio_embeds, **prompts)
        captions = processor.batch_decode(tokens, skip_special_tokens=True)
        for i, (row, caption) in enumerate(zip(batch, captions)):
            lines.append(
                {
                    "row": row,
                    "id": features.ids[row],
                    "prediction": normalize_caption(caption),
                    "references": features.captions[row],
                    "candidate": next(iter(retrieved.captions[i]), None),
                    "candidate_id": next(iter(retrieved.ids[i]), None),
                    "similarity": next(iter(retrieved.similarities[i]), None),
                }
            )
        progress.update(len(batch))
    progress.close()
    lines = sorted(gather_object(lines), key=lambda line: line.pop("row"))
    if [line["id"] for line in lines] != features.ids:
        raise RuntimeError(f"{len(lines)} predictions were gathered for {len(features)} clips, or not one for each")
    return lines


def build_systems(predictions: list[dict], training_captions: list[str], seed: int) -> dict[str, list[str]]:
    """The captions of each system (section 6.1), and a floor: those that the model gives to another clip's audio."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(predictions))
    # A cycle through all clips: none keeps its own audio.
    other_clip = dict(zip(order.tolist(), np.roll(order, 1).tolist()))
    drawn = generator.integers(len(training_captions), size=len(predictions))
    return {
        "gold": [line["references"][0] for line in predictions],
        "random": [training_captions[row] for row in drawn],
        "nearest_neighbor": [line["candidate"] for line in predictions],
        "rgmc": [line["prediction"] for line in predictions],
        "rgmc_shuffled_audio": [predictions[other_clip[row]]["prediction"] for row in range(len(predictions))],
    }


def score(captions: list[str], predictions: list[dict]) -> dict[str, dict[str, float]]:
    """`{metric: {"value": …}}`, x 100, of one system's captions."""
    metric = evaluate.load(str(Path(__file__).parent / "metrics" / "caption_metrics"))
    values = metric.compute(predictions=captions, references=[line["references"] for line in predictions])
    values["copy"] = 100 * np.mean([caption == line["candidate"] for caption, line in zip(captions, predictions)])
    values["distinct"] = 100 * len(set(captions)) / len(captions)
    return {name: {"value": float(values[name])} for name in METRICS}


def write_lines(path: Path, lines: list[dict]):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def format_table(results: dict) -> str:
    lines = [f"{'':24}" + "".join(f"{title:>12}" for title in METRICS.values())]
    for system, values in results["systems"].items():
        lines.append(f"{SYSTEMS[system]:24}" + "".join(f"{values[name]['value']:12.2f}" for name in METRICS))
    return "\n".join([f"{results['split']}: {results['n']} clips", *lines])


if __name__ == "__main__":
    (evaluation_args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(sys.argv[1:])
    evaluate_checkpoint(
        evaluation_args, Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    )
