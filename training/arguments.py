"""Options of `train.py`: the fields of three dataclasses, from a yaml file and from the command line, which wins."""

from dataclasses import dataclass, field
from typing import Literal

from clips.options import CorpusArguments, HubArguments, OptionParser, SearchArguments

AUDIO_MODEL, TEXT_MODEL = "laion/larger_clap_music", "openai-community/gpt2"
ALLOWED_WITH_MODEL = ("freeze_audio_tower", "freeze_mapper", "freeze_text_model", "lora_r", "lora_alpha")
LENGTHS = ("max_candidate_length", "max_caption_length")
MODEL_CHOICES = (
    "prefix_length",
    "conditioning",
    "num_candidates",
    "candidate_similarity",
    "spec_augment",
    "audio_statistics",
    "caption_normalization",
    "selection",
)


@dataclass
class ModelArguments:
    group = "model"
    model: str | None = field(
        default=None, metadata={"help": "RGMC checkpoint to continue from, on any corpus: folder or Hub id."}
    )
    audio_model: str | None = field(
        default=None,
        metadata={
            "help": f"Pretrained CLAP without fusion: Hub id, folder, or LAION's file.pt or repo_id/file.pt "
            f"({AUDIO_MODEL} if unset)."
        },
    )
    text_model: str | None = field(
        default=None, metadata={"help": f"Pretrained causal language model: Hub id or folder ({TEXT_MODEL} if unset)."}
    )
    audio_config: dict = field(
        default_factory=dict,
        metadata={
            "help": "Instead of --audio_model: ClapAudioConfig of an encoder from scratch. --audio_config.hidden_size "
            "128 sets one entry."
        },
    )
    text_config: dict = field(
        default_factory=dict,
        metadata={
            "help": "Instead of --text_model: configuration of a decoder from scratch. --text_config.n_layer 4 sets "
            "one entry."
        },
    )
    baseline: dict = field(
        default_factory=dict,
        metadata={
            "help": "Instead of an RGMC: configuration of a baseline, of the model_type muscaps, lp-musiccaps or "
            "ltu-style. --baseline.num_channels 32 sets one entry."
        },
    )
    tokenizer_vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "Size of the BPE tokenizer trained on the captions, with --text_config or --baseline (1000 if "
            "unset); of muscaps, the number of words (all that occur twice, if unset)."
        },
    )
    prefix_length: int | None = field(
        default=None, metadata={"help": "Vectors that the mapper makes of an audio embedding (10 if unset)."}
    )
    conditioning: Literal["audio+candidate", "audio", "candidate"] | None = field(
        default=None,
        metadata={"help": "What the decoder is given (audio+candidate if unset); the other two are ablations."},
    )
    num_candidates: int | None = field(
        default=None, metadata={"help": "Captions of similar songs that the decoder is given (1 if unset)."}
    )
    candidate_similarity: bool | None = field(
        default=None,
        metadata={
            "help": "Tell the decoder how similar the song of each candidate is, by a token before it (false if unset)."
        },
    )
    spec_augment: bool | None = field(
        default=None, metadata={"help": "Mask stripes of the log-mels in training (true if unset)."}
    )
    audio_statistics: bool | None = field(
        default=None,
        metadata={
            "help": "Add a linear layer on statistics of the log-mels to an encoder from scratch, which learns from "
            "far fewer clips with it (false if unset)."
        },
    )
    caption_normalization: Literal["paper", "music"] | None = field(
        default=None,
        metadata={
            "help": "Rule of captions: paper deletes all punctuation, music keeps that of C#, R&B, 4/4 and don't "
            "(that of --model, or music, if unset)."
        },
    )
    selection: Literal["best", "consensus"] | None = field(
        default=None,
        metadata={
            "help": "How the model chooses a caption: the most probable one, as in the paper (best, if unset), or the "
            "one that its captions from several similar songs agree on (consensus)."
        },
    )
    freeze_audio_tower: bool = field(default=False, metadata={"help": "Do not train the audio encoder."})
    freeze_mapper: bool = field(default=False, metadata={"help": "Do not train the mapper."})
    freeze_text_model: bool = field(default=False, metadata={"help": "Do not train the decoder."})
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Train LoRA matrices of this rank in the decoder instead of its weights; needs peft."},
    )
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of LoRA (twice its rank if unset)."})
    max_candidate_length: int | None = field(
        default=None, metadata={"help": "Tokens of a candidate; longer ones are cut (128 if unset)."}
    )
    max_caption_length: int | None = field(
        default=None, metadata={"help": "Tokens of a caption; longer ones are cut (128 if unset)."}
    )


@dataclass
class DataArguments(CorpusArguments):
    group = "data"
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "audiofolder, csv, tsv, jsonl or parquet of paths, save_to_disk folder, or Hub id (required)."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on and to retrieve from."})
    validation_split: str = field(default="validation", metadata={"help": "Split that decides when training ends."})
    validation_dataset: str | None = field(
        default=None, metadata={"help": "Corpus of --validation_split if it is not --dataset."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first rows of the split only."})
    demo_clips: int = field(
        default=0, metadata={"help": "First synthesise a demo corpus of this many clips in the folder --dataset."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_train_samples is not None:
            self.check_least("max_train_samples", 1)


@dataclass(kw_only=True)
class OptimizationArguments:
    group = "optimisation"
    num_train_epochs: int = field(default=30, metadata={"help": "Most epochs; --patience usually ends it before."})
    max_steps: int | None = field(default=None, metadata={"help": "Most optimizer steps."})
    patience: int = field(default=3, metadata={"help": "Stop after so many epochs without a lower validation loss."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of Adam; the default is the paper's."})
    audio_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the audio encoder (--learning_rate if unset)."}
    )
    mapper_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the mapper (--learning_rate if unset)."}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the decoder (--learning_rate if unset)."}
    )
    word_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a loss by which the encoder also learns to predict the words of captions. "
            "0 is off, as in the paper; it helps most when the encoder is trained from scratch."
        },
    )
    prefix_embedding_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a loss that draws the prefix vectors to the nearest token embeddings, so that they can "
            "be read. 0 is off, as in the paper."
        },
    )
    augment_audio: bool = field(
        default=False,
        metadata={
            "help": "Shift each training clip in time, wrapping around, and change its level by up to 6 dB. It helps "
            "an encoder that is trained from scratch."
        },
    )
    lr_scheduler_type: str = field(
        default="constant",
        metadata={
            "help": "Schedule of transformers.get_scheduler: constant, linear, cosine, ...; reduce_lr_on_plateau "
            "halves the learning rate when the validation loss has not fallen for more than 5 epochs."
        },
    )
    warmup_steps: int = field(default=0, metadata={"help": "Steps in which the schedule raises the learning rate."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of AdamW; 0 is Adam, as in the paper."})
    max_grad_norm: float | None = field(default=None, metadata={"help": "Clip the gradient to this norm."})
    batch_size: int = field(
        default=32, metadata={"help": "Clips per step, over all processes; the default is the paper's."}
    )
    micro_batch_size: int | None = field(
        default=None, metadata={"help": "Most clips per forward pass and process; gradients are accumulated."}
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = field(
        default=None,
        metadata={
            "help": "Precision of the forward pass; accelerate's own setting if unset. A processor that has no "
            "instructions for bf16 computes in float32 instead."
        },
    )
    torch_compile: bool = field(default=False, metadata={"help": "Compile the encoder and the decoder."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations twice: less memory, a third more time."}
    )
    refresh: str = field(
        default="epoch",
        metadata={"help": "When to look up the neighbours again: epoch, never, or every N epochs (section 3.2)."},
    )
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that read the log-mel cache."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights, the order of the clips and dropout."})


DROPOUTS = ("candidate_dropout", "prefix_dropout", "both_dropout")  # probabilities, as those of SHARES
SHARES = (*DROPOUTS, "own_candidate", "random_candidate")


@dataclass(kw_only=True)
class RobustnessArguments:
    group = "use of candidates in training"
    text_pretraining_steps: int = field(
        default=0,
        metadata={
            "help": "Steps in which the decoder first learns, without sound, to write each caption from captions with "
            "similar words. 0 is off, as in the paper; a decoder from scratch hardly uses its candidates without it."
        },
    )
    candidate_pool: int | None = field(
        default=None,
        metadata={
            "help": "Draw the candidates of a training clip anew in each epoch from this many of its nearest songs, "
            "and shuffle them. By default it is always given the nearest, as in the paper."
        },
    )
    candidate_dropout: float = field(
        default=0.0, metadata={"help": "Probability that a training clip is given no candidate."}
    )
    prefix_dropout: float = field(
        default=0.0, metadata={"help": "Probability that a training clip is given its candidates alone, not its sound."}
    )
    both_dropout: float = field(
        default=0.0, metadata={"help": "Probability that a training clip is given neither candidates nor its sound."}
    )
    own_candidate: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a training clip is given its own caption as a candidate, so that the decoder "
            "learns that a candidate may be right. Also applies to text pretraining."
        },
    )
    random_candidate: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a training clip is given captions of random songs instead of similar ones, so "
            "that the decoder learns that a candidate may be wrong."
        },
    )

    @property
    def samples_candidates(self) -> bool:
        """Whether a training clip is not simply given its prefix and its nearest songs' captions."""
        return bool(self.candidate_pool or any(getattr(self, name) for name in SHARES))


@dataclass(kw_only=True)
class CheckpointArguments:
    group = "checkpoints and logging"
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the checkpoint: model, processor, datastore, code and model card (required)."},
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the run in --output_dir."})
    save_steps: int | None = field(
        default=None, metadata={"help": "Steps between two output_dir/checkpoint-<step>; once an epoch if unset."}
    )
    save_total_limit: int = field(default=1, metadata={"help": "How many checkpoint-<step> to keep."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "A checkpoint-<step> to resume from; last: the newest one in --output_dir, if any."},
    )
    logging_steps: int = field(default=10, metadata={"help": "Steps between two lines of log.jsonl."})
    report_to: str | None = field(
        default=None, metadata={"help": "Trackers of accelerate, separated by commas: tensorboard, wandb, trackio, ..."}
    )
    num_sample_captions: int = field(
        default=2, metadata={"help": "Captions of validation clips to log after each epoch."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Evaluate the checkpoint on this split at the end, into output_dir/eval."}
    )


@dataclass(kw_only=True)
class PublishingArguments(HubArguments):
    group = "Hub"
    push_to_hub: bool = field(default=False, metadata={"help": "Push the checkpoint to the Hub."})
    hub_strategy: Literal["end", "every_save"] = field(
        default="end", metadata={"help": "Push at the end, or each time the model got better."}
    )
    model_license: str | None = field(
        default=None, metadata={"help": "Licence of the weights in the model card, as the Hub names it: cc-by-4.0, ..."}
    )
    datastore_license: str | None = field(
        default=None, metadata={"help": "Licence of the captions in the datastore, as the Hub names it."}
    )


@dataclass
class TrainingArguments(
    PublishingArguments, CheckpointArguments, SearchArguments, RobustnessArguments, OptimizationArguments
):
    """All options of a run that are neither the model's nor the corpus's."""


def parse_arguments(
    argv: list[str], description: str | None = None
) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parses a yaml file, if it comes first, and options; `--field.key value` sets an entry of a dict."""
    parser = OptionParser((ModelArguments, DataArguments, TrainingArguments), config_file=True, description=description)
    model_args, data_args, args = parser.parse(argv)
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


def model_choices(model_args: ModelArguments) -> dict:
    return {name: getattr(model_args, name) for name in MODEL_CHOICES if getattr(model_args, name) is not None}
