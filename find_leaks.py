"""
Finds leaks between the splits of a corpus: captions and sounds that are the same, or almost.

    python find_leaks.py --dataset data/demo --output_dir outputs/leakage
    python find_leaks.py --dataset data/demo --model outputs/demo --output_dir outputs/leakage

writes `report.md` and `leakage.json`. With the latter, `eval.py --leakage` also scores the split without the clips that
leak from the training split. The options are the fields of `LeakageArguments`.
"""

from clips import threads  # noqa: F401

# isort: split
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from datasets import Dataset

from clips.embedding import embed_rows, is_rgmc_checkpoint, with_audio_tower_of
from clips.features import compute_features
from clips.locks import only_run
from clips.options import (
    DuplicateArguments,
    InferenceArguments,
    check_dataset,
    check_model,
    check_output,
    parse,
    user_errors,
)
from clips.outputs import replaced_together
from clips.processes import make_accelerator
from clips.rows import load_captions
from corpora.leaks import Clips, check_leak_options, find_leaks, hash_audio, write_leaks
from corpora.report import write_leak_report
from feature_extraction_rgmc import RGMCFeatureExtractor
from modeling_rgmc import RGMCModel


@dataclass
class LeakageArguments(InferenceArguments, DuplicateArguments):
    group = "splits and report"
    dataset: str = field(
        metadata={"help": "audiofolder, csv, tsv, jsonl or parquet of paths, save_to_disk folder, or Hub id."}
    )
    output_dir: str = field(metadata={"help": "Folder of report.md and leakage.json."})
    splits: list[str] = field(
        default_factory=lambda: ["train", "validation", "test"],
        metadata={"help": "Splits to compare, each with each."},
    )
    train_split: str = field(default="train", metadata={"help": "The one of --splits that a model is trained on."})
    train_dataset: str | None = field(
        default=None, metadata={"help": "Corpus of --train_split if it is not --dataset: of a model of another corpus."}
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Compares the sounds too, by the embeddings of an RGMC checkpoint or of a CLAP: folder, Hub id or "
            "LAION's .pt file."
        },
    )
    audio_threshold: float = field(
        default=0.99,
        metadata={
            "help": "Sounds whose cosine similarity is larger are near-identical. What is right depends on --model: "
            "the report shows how similar the nearest clips are."
        },
    )
    num_worst: int = field(default=20, metadata={"help": "Pairs of each kind in the report."})

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.splits)) != len(self.splits) or len(self.splits) < 2:
            raise ValueError(f"--splits {' '.join(self.splits)}: expected two or more, each once")
        if self.train_split not in self.splits:
            raise ValueError(f"--train_split {self.train_split}: expected one of --splits {' '.join(self.splits)}")
        check_leak_options(self.ngram, self.threshold, self.audio_threshold, self.num_worst)


def load_encoder(name: str) -> tuple[RGMCModel, RGMCFeatureExtractor]:
    """Loads a model that embeds sounds, and its feature extractor: an RGMC checkpoint, or a CLAP."""
    if is_rgmc_checkpoint(name):
        return RGMCModel.from_pretrained(name, load_datastore=False), RGMCFeatureExtractor.from_pretrained(name)
    return with_audio_tower_of(name), RGMCFeatureExtractor()


def embed_splits(args: LeakageArguments, splits: dict[str, Dataset], accelerator: Accelerator) -> dict[str, np.ndarray]:
    """Embeds the clips of each split as `(N, E)`: zeros for a clip that cannot be used, and these are announced."""
    model, feature_extractor = load_encoder(args.model)
    model = model.to(accelerator.device).eval()
    embedded = {}
    for name, rows in splits.items():
        with accelerator.main_process_first():
            features = compute_features(
                rows,
                feature_extractor,
                name,
                skipped_file=Path(args.output_dir) / "skipped.jsonl",
                max_skipped=args.max_skipped,
                cache_dir=args.cache_dir,
                dtype=args.cache_dtype,
                num_proc=args.num_proc,
            )
        embeds = embed_rows(model, features, accelerator, args.batch_size, f"Embedding {name}")
        embedded[name] = np.zeros((len(rows), embeds.shape[1]), np.float32)
        row_of_id = {row_id: row for row, row_id in enumerate(rows["id"][:])}
        embedded[name][[row_of_id[row_id] for row_id in features.ids]] = embeds
    return embedded


def main(args: LeakageArguments, accelerator: Accelerator) -> dict:
    """Writes `report.md` and `leakage.json` to `args.output_dir`, prints the counts, and returns `leakage.json`."""
    with only_run(args.output_dir, f"--output_dir {args.output_dir}"):
        accelerator.wait_for_everyone()
        return report_leaks(args, accelerator)


def report_leaks(args: LeakageArguments, accelerator: Accelerator) -> dict:
    # 1. The splits
    output_dir = Path(args.output_dir)
    splits = {}
    for name in args.splits:
        dataset = args.train_dataset if args.train_dataset and name == args.train_split else args.dataset
        splits[name] = load_captions(dataset, name, args.caption_column, args.id_column)

    # 2. Their sounds
    embeds = embed_splits(args, splits, accelerator) if args.model else {}
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return {}
    sounds = hash_audio(
        {name: rows["audio"] for name, rows in splits.items()}, output_dir / "hashed.jsonl", args.num_proc
    )

    # 3. Pairs
    clips = {
        name: Clips(rows["id"][:], rows["captions"][:], *sounds[name], embeds.get(name))
        for name, rows in splits.items()
    }
    found = find_leaks(clips, args.ngram, args.threshold, args.audio_threshold, args.num_worst, accelerator.device)
    names = ("train_dataset", "ngram", "threshold", "model", "audio_threshold")
    options = {name: getattr(args, name) for name in names}
    report = {"dataset": args.dataset, "train_split": args.train_split, "options": options, **found}

    # 4. The files
    with replaced_together(output_dir, last="leakage.json") as staging:
        write_leaks(staging, report)
        shown = write_leak_report(staging, report)
    print(shown)
    accelerator.wait_for_everyone()
    return report


if __name__ == "__main__":
    with user_errors():
        (leakage_args,) = parse(LeakageArguments, sys.argv[1:], __doc__)
        check_output(leakage_args.output_dir)
        check_model("--model", leakage_args.model, "a CLAP or a trained checkpoint", may_be_file=True)
        check_dataset("--dataset", leakage_args.dataset)
        check_dataset("--train_dataset", leakage_args.train_dataset)
        leakage_accelerator = make_accelerator()
        main(leakage_args, leakage_accelerator)
        leakage_accelerator.end_training()
