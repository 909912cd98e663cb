"""Options of `train.py`: the fields of three dataclasses, from a yaml file and from the command line, which wins."""

import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml
from transformers import AutoConfig, HfArgumentParser

from configuration_rgmc import RGMCConfig

AUDIO_MODEL, TEXT_MODEL = "laion/larger_clap_music", "openai-community/gpt2"
FREEZING = ("freeze_audio_tower", "freeze_mapper", "freeze_text_model", "lora_r", "lora_alpha")
LENGTHS = ("max_candidate_length", "max_caption_length")
MODEL_CHOICES = ("prefix_length", "conditioning", "num_candidates", "spec_augment", "caption_normalization")


@dataclass
class ModelArguments:
    model: str | None = field(default=None, metadata={"help": "RGMC checkpoint to continue from, on any corpus."})
    audio_model: str | None = field(
        default=None,
        metadata={
            "help": f"Pretrained CLAP, unfused: Hub id, folder, or LAION's file.pt or repo_id/file.pt ({AUDIO_MODEL})."
        },
    )
    text_model: str | None = field(default=None, metadata={"help": f"Pretrained causal language model ({TEXT_MODEL})."})
    audio_config: dict = field(
        default_factory=dict, metadata={"help": "Instead of --audio_model: ClapAudioConfig of an encoder from scratch."}
    )
    text_config: dict = field(
        default_factory=dict, metadata={"help": "Instead of --text_model: configuration of a decoder from scratch."}
    )
    tokenizer_vocab_size: int | None = field(
        default=None,
        metadata={"help": "Of the BPE tokenizer trained on the captions for a decoder from scratch (1000)."},
    )
    prefix_length: int | None = field(
        default=None, metadata={"help": "Vectors that the mapper makes of an audio embedding (10)."}
    )
    conditioning: str | None = field(
        default=None, metadata={"help": "'audio+candidate' (default), or the ablations 'audio' and 'candidate'."}
    )
    num_candidates: int | None = field(
        default=None, metadata={"help": "Captions of similar songs that the decoder is given (1)."}
    )
    spec_augment: bool | None = field(
        default=None, metadata={"help": "Mask stripes of the log-mels that the encoder is trained on (true)."}
    )
    caption_normalization: str | None = field(
        default=None,
        metadata={
            "help": "Rule of captions: 'paper' deletes all punctuation, 'music' keeps that of C#, R&B, 4/4 and don't "
            "(music, or that of --model)."
        },
    )
    freeze_audio_tower: bool = field(default=False, metadata={"help": "Do not train the audio encoder."})
    freeze_mapper: bool = field(default=False, metadata={"help": "Do not train the mapper."})
    freeze_text_model: bool = field(default=False, metadata={"help": "Do not train the decoder."})
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Train LoRA matrices of this rank in the decoder instead of its weights (peft)."},
    )
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of LoRA (twice its rank)."})
    max_candidate_length: int | None = field(
        default=None, metadata={"help": "Tokens; longer candidates are cut (128)."}
    )
    max_caption_length: int | None = field(default=None, metadata={"help": "Tokens; longer captions are cut (128)."})


@dataclass
class DataArguments:
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Required: audiofolder, csv, tsv, jsonl or parquet file of paths, save_to_disk folder, or Hub id."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split that is trained on and retrieved from."})
    validation_split: str = field(default="validation", metadata={"help": "Split of the early stopping."})
    validation_dataset: str | None = field(
        default=None, metadata={"help": "Corpus of the validation split, where it is not --dataset."}
    )
    caption_column: str = field(
        default="caption", metadata={"help": "Column of the caption, or of captions, the first of which is learned."}
    )
    id_column: str = field(default="id", metadata={"help": "Column of unique ids; file names where it is missing."})
    max_skipped: float = field(default=0.01, metadata={"help": "Largest share of unusable rows that is not an error."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first rows of the split."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the log-mel cache; that of datasets if unset."}
    )
    cache_dtype: str = field(
        default="float16", metadata={"help": "Type of the cached log-mels: float16 or float32, twice as large."}
    )
    num_proc: int = field(default=os.cpu_count() or 1, metadata={"help": "Processes that decode audio."})
    demo_clips: int = field(
        default=0, metadata={"help": "First synthesise a demo corpus of this many clips in the folder --dataset."}
    )


@dataclass
class TrainingArguments:
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Required: folder of the checkpoint: model, processor, datastore, code and model card."},
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace a checkpoint in --output_dir."})
    num_train_epochs: int = field(default=30, metadata={"help": "Most epochs; early stopping usually ends before."})
    max_steps: int | None = field(default=None, metadata={"help": "Most optimizer steps."})
    patience: int = field(
        default=3, metadata={"help": "Epochs without a lower validation loss after which training ends."}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Of Adam (the paper: 1e-5)."})
    audio_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the audio encoder, where it is not --learning_rate."}
    )
    mapper_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the mapper, where it is not --learning_rate."}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the decoder, where it is not --learning_rate."}
    )
    lr_scheduler_type: str = field(default="constant", metadata={"help": "A schedule of transformers.get_scheduler."})
    warmup_steps: int = field(
        default=0, metadata={"help": "Steps in which the learning rate rises, where the schedule has it."}
    )
    max_grad_norm: float | None = field(default=None, metadata={"help": "Clips the norm of the gradient."})
    batch_size: int = field(default=32, metadata={"help": "Clips per step, over all processes (the paper: 32)."})
    micro_batch_size: int | None = field(
        default=None,
        metadata={"help": "Most clips per forward pass of a process; a step accumulates as many as it needs."},
    )
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, fp16 or bf16; accelerate's own setting if unset."}
    )
    torch_compile: bool = field(default=False, metadata={"help": "Compile the encoder and the decoder."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory, a third more computation."})
    refresh: str = field(
        default="epoch",
        metadata={
            "help": "When neighbours are looked up anew: epoch, never (after the first time), or every N epochs."
        },
    )
    string_factory: str = field(default="Flat", metadata={"help": "FAISS index of the datastore; Flat is exact."})
    search_parameters: str | None = field(
        default=None, metadata={"help": "Of that index: nprobe=32, efSearch=64; FAISS's own (1, 16) if unset."}
    )
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that read the log-mel cache."})
    seed: int = field(default=0, metadata={"help": "Of the weights, the order of the clips and dropout."})
    save_steps: int | None = field(
        default=None, metadata={"help": "Steps between two output_dir/checkpoint-<step>; the epochs' ends if unset."}
    )
    save_total_limit: int = field(default=1, metadata={"help": "How many checkpoint-<step> are kept."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "A checkpoint-<step> to go on from; 'last' is the newest in --output_dir, if there is any."},
    )
    logging_steps: int = field(default=10, metadata={"help": "Steps between two lines of log.jsonl."})
    report_to: str | None = field(
        default=None,
        metadata={"help": "Trackers of accelerate: tensorboard, wandb, trackio, ..., or several by commas."},
    )
    num_sample_captions: int = field(
        default=2, metadata={"help": "Captions of validation clips that are logged after each epoch."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Push the checkpoint to the Hub."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository; the name of --output_dir if unset."})
    hub_strategy: str = field(default="end", metadata={"help": "end, or every_save: each time the model got better."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Make a new repository private."})
    model_license: str | None = field(
        default=None, metadata={"help": "Licence of the weights in the model card, as the Hub calls it: cc-by-4.0, ..."}
    )
    datastore_license: str | None = field(
        default=None, metadata={"help": "Licence of the captions in the datastore, likewise."}
    )
    test_split: str | None = field(
        default=None,
        metadata={"help": "Evaluate the checkpoint on this split of --dataset at the end, into output_dir/eval."},
    )


def parse_arguments(
    argv: list[str], description: str | None = None
) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """A yaml file in the first place, then options; those of the form `--field.key value` set an entry of a dict."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments), description=description)
    values = {}
    if argv and argv[0].endswith((".yaml", ".yml")):
        values = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8")) or {}
        argv = argv[1:]
    options, rest = {}, []
    for option in argv:
        rest += option.split("=", 1) if option.startswith("--") else [option]
        if len(rest) > 1 and re.fullmatch(r"--\w+\.\w+", rest[-2]):
            name, key = rest[-2][2:].split(".")
            options.setdefault(name, {})[key] = yaml.safe_load(rest[-1])
            del rest[-2:]
    known = {option.name for arguments in parser.dataclass_types for option in fields(arguments)}
    unknown = sorted({*values, *options} - known)
    if unknown:
        parser.error(f"unknown options: {', '.join(unknown)}; --help lists the known ones")
    for name, entries in options.items():
        values[name] = {**values.get(name, {}), **entries}
    if values.get("mixed_precision") is False:
        values["mixed_precision"] = "no"  # what yaml makes a boolean of
    # As texts, numbers go through the option's own type, as those of the command line do.
    numbers = {name: str(value) for name, value in values.items() if type(value) in (int, float)}
    parser.set_defaults(**{**values, **numbers})
    model_args, data_args, args = parser.parse_args_into_dataclasses(args=rest)
    for name, value in (("dataset", data_args.dataset), ("output_dir", args.output_dir)):
        if value is None:
            parser.error(f"--{name} is required, on the command line or in the yaml file")
    return model_args, data_args, args


def refresh_interval(refresh: str) -> int:
    """Epochs between two refreshes; 0 for never."""
    if refresh in ("epoch", "never"):
        return int(refresh == "epoch")
    if refresh.isdecimal() and int(refresh) > 0:
        return int(refresh)
    raise ValueError(f"--refresh {refresh}: expected epoch, never, or a number of epochs")


def check_arguments(model_args: ModelArguments, args: TrainingArguments):
    """What can be known to be wrong before hours of decoding."""
    at_least_one = ["num_train_epochs", "batch_size", "micro_batch_size", "patience", "max_steps", "save_steps"]
    at_least_one += ["save_total_limit", "logging_steps", "lora_r"]
    for name in at_least_one:
        value = getattr(model_args if name == "lora_r" else args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if args.max_grad_norm is not None and args.max_grad_norm <= 0:
        raise ValueError(f"--max_grad_norm must be positive, got {args.max_grad_norm}; leave it out for no clipping")
    for name, needed in (("lora_alpha", "lora_r"), ("tokenizer_vocab_size", "text_config")):
        if getattr(model_args, name) is not None and not getattr(model_args, needed):
            raise ValueError(f"--{name} does nothing without --{needed}")
    refresh_interval(args.refresh)
    if args.hub_strategy not in ("end", "every_save"):
        raise ValueError(f"--hub_strategy {args.hub_strategy}: expected end or every_save")
    given = {name for name, value in asdict(model_args).items() if value not in (None, {}, False)}
    fixed = given - {"model", *FREEZING, *MODEL_CHOICES, *LENGTHS}
    if model_args.model and fixed:
        raise ValueError(f"--model brings its own parts: leave out {', '.join(sorted(fixed))}")
    if bool(model_args.audio_config) != bool(model_args.text_config):
        raise ValueError(
            "Give both audio_config and text_config to train from scratch, or neither to start from pretrained"
        )
    if model_args.audio_config and {"audio_model", "text_model"} & given:
        raise ValueError("audio_config and text_config train from scratch: leave out audio_model and text_model")
    RGMCConfig(**model_choices(model_args))
    for name, model_type in (("audio_config", "clap_audio_model"), ("text_config", "gpt2")):
        entries = getattr(model_args, name)
        known = AutoConfig.for_model(entries.get("model_type", model_type))
        unknown = [key for key in entries if not hasattr(known, key)]
        if unknown:
            raise ValueError(f"{name} has no {', '.join(unknown)}: see {type(known).__name__}")


def caption_rule(model_args: ModelArguments) -> str:
    """
    The rule of captions: that of `--model`, else the option's.

    Raises:
        `ValueError`: where the option asks for another rule than that of `--model`.
    """
    if not model_args.model:
        return model_args.caption_normalization or "music"
    rule = RGMCConfig.get_config_dict(model_args.model)[0].get("caption_normalization", "paper")
    if model_args.caption_normalization not in (None, rule):
        raise ValueError(
            f"--caption_normalization {model_args.caption_normalization}: {model_args.model} was trained on captions "
            f"by the rule '{rule}'. Leave the option out, or train a model anew"
        )
    return rule


def model_choices(model_args: ModelArguments) -> dict:
    return {name: getattr(model_args, name) for name in MODEL_CHOICES if getattr(model_args, name) is not None}
