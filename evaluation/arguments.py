"""The options of `eval.py`."""

from dataclasses import dataclass, field
from pathlib import Path

from clips.checkpoints import check_rgmc
from clips.options import InferenceArguments, check_dataset, check_file, check_model, check_output
from clips.recall import RECALL_THRESHOLD
from evaluation.systems import OPTIONS, SWITCHES, TABLES


@dataclass(kw_only=True)
class SystemArguments:
    group = "systems beside the model"
    audio_only_model: str | None = field(
        default=None, metadata={"help": "Table 3: a checkpoint trained with --conditioning audio."}
    )
    text_only_model: str | None = field(
        default=None, metadata={"help": "Table 3: a checkpoint trained with --conditioning candidate."}
    )
    transfer_model: str | None = field(
        default=None,
        metadata={"help": "Table 5: a checkpoint trained on another corpus first (configs/transfer.yaml)."},
    )
    frozen_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Tables 3 and 5: encoder of the nearest-neighbor baseline. Either the CLAP that the training "
            "started from, as --audio_model of train.py, which then embeds --train_split; or an RGMC checkpoint whose "
            "encoder was not trained, such as one of --conditioning candidate, with its datastore."
        },
    )
    train_split: str = field(
        default="train", metadata={"help": "Split that --frozen_encoder and --statistics_neighbor retrieve from."}
    )
    statistics_neighbor: bool = field(
        default=False,
        metadata={
            "help": "Tables 3 and 5: a nearest neighbor by statistics of the log-mels, without anything learned. It "
            "reads all clips of --train_split; those that no run has read before are decoded first."
        },
    )
    masked: bool = field(
        default=True, metadata={"help": "Table 3: also the trained model with its audio or its candidate masked."}
    )
    consensus: bool = field(
        default=False,
        metadata={
            "help": "Tables 3 and 5: also the captions by consensus decoding, which takes several times as long; of a "
            "model that decodes so unless told, its most probable captions."
        },
    )
    oracle: bool = field(
        default=False,
        metadata={"help": "Tables 3 and 5: also the best of the model's beams, judged by the references."},
    )
    baseline: list[str] | None = field(
        default=None,
        metadata={
            "help": "Baselines that train.py --baseline has trained, each as name=checkpoint. Checkpoints of one name "
            "that differ by seed share its row."
        },
    )
    predictions: list[str] | None = field(
        default=None,
        metadata={"help": 'Other systems, each as name=file.jsonl with lines {"id": …, "prediction": …}.'},
    )


@dataclass(kw_only=True)
class MetricArguments:
    group = "metrics"
    meteor: bool = field(default=True, metadata={"help": "METEOR 1.5, which needs Java and about 1 GB."})
    clap_model: str | None = field(
        default="laion/clap-htsat-unfused",
        metadata={"help": "ClapModel of the CLAP scores, a folder or Hub id; none for no CLAP scores."},
    )
    clap_revision: str | None = field(default=None, metadata={"help": "Commit or tag of --clap_model."})
    listening: bool = field(
        default=True,
        metadata={
            "help": "Measure how often the model finds a clip's own caption more probable than other captions, and "
            "with its own sound than with another."
        },
    )
    explain: bool = field(
        default=False,
        metadata={
            "help": "Also say which words come from the sound and which from the candidate, what can be read in the "
            "prefixes, where words of --watched_words occur, and how sure the captions are beside those of "
            "--validation_split, which is captioned for that."
        },
    )
    validation_split: str = field(default="validation", metadata={"help": "Split that --explain compares with."})
    watched_words: str | None = field(
        default=None, metadata={"help": "Words that --explain lists, a yaml file; evaluation/bias.yaml if unset."}
    )
    attributes: str | None = field(
        default=None,
        metadata={"help": "Words of the attribute scores, a yaml file; evaluation/attributes.yaml if unset."},
    )
    attribute_columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Columns that say what is true of a clip, such as lead_instrument genre. They replace the captions "
            "in the categories that they speak of."
        },
    )
    bootstrap: int = field(default=1000, metadata={"help": "Resamples for the 95 %% intervals; 0 for no intervals."})
    recall_threshold: float = field(
        default=RECALL_THRESHOLD,
        metadata={"help": "Token F1 from which on a neighbor's caption counts as similar, above 0 and up to 1."},
    )
    leakage: str | None = field(
        default=None,
        metadata={
            "help": "leakage.json of find_leaks.py or prepare.py: also score without the clips that leak into the "
            "split from the training split."
        },
    )


@dataclass
class EvaluationArguments(MetricArguments, SystemArguments, InferenceArguments):
    group = "model, split and report"
    model: list[str] = field(
        metadata={
            "help": "Trained checkpoint: folder or Hub id. Several that differ by the seed of their training share "
            "their rows, as mean and standard deviation."
        }
    )
    dataset: str = field(
        metadata={"help": "audiofolder, csv, tsv, jsonl or parquet of paths, save_to_disk folder, or Hub id."}
    )
    output_dir: str = field(metadata={"help": "Folder of the report, predictions.jsonl and results.json."})
    split: str = field(default="test", metadata={"help": "Split to caption; all for a corpus without splits."})
    table: list[int] = field(
        default_factory=lambda: [3],
        metadata={
            "help": "Tables of the paper: 1 captions side by side, 3 systems, 4 candidates, 5 another corpus and "
            "transfer."
        },
    )
    num_examples: int = field(default=12, metadata={"help": "Clips in the report, with audio players."})
    update_model_card: bool = field(
        default=False, metadata={"help": "Write the results into the card of --model, a local folder."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of random captions, shuffling, resamples and examples."})

    def __post_init__(self):
        super().__post_init__()
        self.model = [self.model] if isinstance(self.model, str) else self.model
        unknown = set(self.table) - set(TABLES)
        if unknown:
            raise ValueError(f"--table {sorted(unknown)}: expected some of {sorted(TABLES)}")
        if self.update_model_card and set(self.table) == {1}:
            raise ValueError("--update_model_card true: Table 1 has no scores; add --table 3")
        for key, option in {**OPTIONS, **SWITCHES}.items():
            name = option.removeprefix("--")
            tables = [table for table, keys in TABLES.items() if key in keys]
            if getattr(self, name) and not set(tables) & set(self.table):
                raise ValueError(f"{option} makes no row of --table {self.table}: expected one of {tables} there")
        if not 0 < self.recall_threshold <= 1:
            raise ValueError(f"--recall_threshold {self.recall_threshold}: expected more than 0 and at most 1")
        self.check_least("bootstrap", 0)
        self.check_least("num_examples", 0)
        if self.clap_model and self.clap_model.lower() == "none":
            self.clap_model = None
        if self.update_model_card and len(self.model) > 1:
            raise ValueError(
                f"--update_model_card true: a card is about one checkpoint, and --model names {len(self.model)}; "
                "evaluate them one at a time"
            )
        if self.update_model_card and not (Path(self.model[0]) / "README.md").is_file():
            raise ValueError(f"--update_model_card true: {self.model[0]} is not a local folder with a README.md")


def check_paths(args: EvaluationArguments):
    """Raises `FileNotFoundError` or `ValueError` if a model, corpus or file that an option names does not exist."""
    check_output(args.output_dir)
    for name in args.model:
        check_rgmc("--model", name)
    for name in ("audio_only_model", "text_only_model", "transfer_model"):
        check_rgmc(f"--{name}", getattr(args, name))
    check_model("--frozen_encoder", args.frozen_encoder, "a CLAP or a trained checkpoint", may_be_file=True)
    check_file("--leakage", args.leakage, "the leakage.json that find_leaks.py or prepare.py writes")
    check_file("--attributes", args.attributes, "a yaml file such as evaluation/attributes.yaml")
    check_file("--watched_words", args.watched_words, "a yaml file such as evaluation/bias.yaml")
    for entry in args.baseline or []:
        check_model(f"--baseline {entry}:", entry.partition("=")[2] or None)
    for entry in args.predictions or []:
        _, is_named, file = entry.partition("=")
        check_file(f"--predictions {entry}:", file if is_named else None, "lines of captions")
    check_dataset("--dataset", args.dataset)
    otherwise = "; --clap_model none leaves out the CLAP scores"
    check_model("--clap_model", args.clap_model, "a ClapModel", otherwise=otherwise)
