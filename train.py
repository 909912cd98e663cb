"""
Trains RGMC (sections 3 and 4 of the paper).

    accelerate launch train.py configs/demo.yaml
    accelerate launch train.py configs/small.yaml --dataset my_music --output_dir outputs/my_music
    accelerate launch train.py --dataset my_music --output_dir outputs/my_music --text_model openai-community/gpt2

Options are the fields of `ModelArguments`, `DataArguments` and `TrainingArguments`: from a yaml file, and from the
command line, which wins; `--text_config.n_layer 4` sets one entry of a configuration. `--help` lists them.
"""

import os

# Read when torch is loaded: on a busy CPU, threads that spin while they wait make a step many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import math
import re
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, set_seed
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser, PreTrainedTokenizerFast, get_scheduler
from transformers.utils import logging

from configuration_rgmc import RGMCConfig
from dataset_rgmc import ClipFeatures, TeacherForcingCollator, compute_features, load_captions
from eval import EvaluationArguments, evaluate_checkpoint
from feature_extraction_rgmc import RGMCFeatureExtractor
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore

AUDIO_MODEL, TEXT_MODEL = "laion/larger_clap_music", "openai-community/gpt2"
MODEL_CHOICES = ("prefix_length", "conditioning", "num_candidates", "spec_augment")


@dataclass
class ModelArguments:
    model: str | None = field(default=None, metadata={"help": "RGMC checkpoint to continue from, on any corpus."})
    audio_model: str | None = field(default=None, metadata={"help": f"Pretrained CLAP, unfused ({AUDIO_MODEL})."})
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
    freeze_audio_tower: bool = field(default=False, metadata={"help": "Train the mapper and the decoder alone."})
    max_candidate_length: int | None = field(
        default=None, metadata={"help": "Tokens; longer candidates are cut (128)."}
    )
    max_caption_length: int | None = field(default=None, metadata={"help": "Tokens; longer captions are cut (128)."})


@dataclass
class DataArguments:
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Required: audiofolder, csv, jsonl or parquet file of paths, save_to_disk folder, or Hub dataset "
            "id."
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
    patience: int = field(
        default=3, metadata={"help": "Epochs without a lower validation loss after which training ends."}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Of Adam (the paper: 1e-5)."})
    audio_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the audio encoder, where it is not --learning_rate."}
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
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that read the log-mel cache."})
    seed: int = field(default=0, metadata={"help": "Of the weights, the order of the clips and dropout."})
    test_split: str | None = field(
        default=None,
        metadata={"help": "Evaluate the checkpoint on this split of --dataset at the end, into output_dir/eval."},
    )


# -- 1. options -------------------------------------------------------------------------------------------------------


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """A yaml file in the first place, then options; those of the form `--field.key value` set an entry of a dict."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments), description=__doc__)
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


# -- 2. data, processor and model -------------------------------------------------------------------------------------


def prepare_data(
    data_args: DataArguments, args: TrainingArguments, accelerator: Accelerator, feature_extractor: RGMCFeatureExtractor
) -> tuple[ClipFeatures, ClipFeatures]:
    """Features of the training and the validation split. The main process computes them, the others read its cache."""
    with accelerator.main_process_first():
        if data_args.demo_clips and accelerator.is_main_process:
            from corpora.demo import write_demo_corpus

            write_demo_corpus(data_args.dataset, clips=data_args.demo_clips)
        columns = (data_args.caption_column, data_args.id_column)
        splits = {
            data_args.train_split: load_captions(data_args.dataset, data_args.train_split, *columns),
            data_args.validation_split: load_captions(
                data_args.validation_dataset or data_args.dataset, data_args.validation_split, *columns
            ),
        }
        if args.test_split:  # better missed now than after the training
            load_captions(data_args.dataset, args.test_split, *columns)
        return tuple(
            compute_features(
                rows,
                feature_extractor,
                split,
                skipped_file=Path(args.output_dir) / "skipped.jsonl",
                max_skipped=data_args.max_skipped,
                cache_dir=data_args.cache_dir,
                dtype=data_args.cache_dtype,
                num_proc=data_args.num_proc,
            )
            for split, rows in splits.items()
        )


def check_model_arguments(model_args: ModelArguments):
    """What can be known to be wrong before hours of decoding."""
    given = {name for name, value in asdict(model_args).items() if value not in (None, {}, False)}
    fixed = given - {"model", "freeze_audio_tower", *MODEL_CHOICES}
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


def model_choices(model_args: ModelArguments) -> dict:
    return {name: getattr(model_args, name) for name in MODEL_CHOICES if getattr(model_args, name) is not None}


def build_processor(model_args: ModelArguments, captions: list[str]) -> RGMCProcessor:
    if model_args.model:
        return RGMCProcessor.from_pretrained(model_args.model)
    if model_args.text_config:
        tokenizer = train_tokenizer(captions, model_args.tokenizer_vocab_size or 1000)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model_args.text_model or TEXT_MODEL)
    lengths = {name: getattr(model_args, name) for name in ("max_candidate_length", "max_caption_length")}
    lengths = {name: value for name, value in lengths.items() if value is not None}
    return RGMCProcessor(RGMCFeatureExtractor(), tokenizer, **lengths)


def train_tokenizer(captions: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2's, of these captions."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(captions, vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def build_model(model_args: ModelArguments, processor: RGMCProcessor, train: ClipFeatures) -> RGMCModel:
    choices = model_choices(model_args)
    if model_args.model:
        model = RGMCModel.from_pretrained(model_args.model, dtype=torch.float32)
        model.set_datastore(None)  # this corpus makes its own
        changed = [name for name, value in choices.items() if getattr(model.config, name) != value]
        if changed:
            raise ValueError(f"{model_args.model} was trained with another {', '.join(changed)}: leave the option out")
    elif model_args.text_config:
        tokens = {
            "vocab_size": len(processor.tokenizer),
            "bos_token_id": processor.separator_token_id,
            "eos_token_id": processor.tokenizer.eos_token_id,
            "pad_token_id": processor.tokenizer.pad_token_id,
        }
        config = RGMCConfig(
            audio_config={"model_type": "clap_audio_model", **model_args.audio_config},
            text_config={"model_type": "gpt2", **model_args.text_config, **tokens},
            **choices,
        )
        model = RGMCModel(config)
        model.set_log_mel_statistics(*log_mel_statistics(train))
    else:
        parts = (model_args.audio_model or AUDIO_MODEL, model_args.text_model or TEXT_MODEL)
        model = RGMCModel.from_audio_text_pretrained(*parts, **choices)
        # Where the decoder has no BOS of its own, the tokenizer's choice of a separator counts.
        model.config.text_config.bos_token_id = processor.separator_token_id
    longest = model.config.prefix_length + model.config.num_candidates * (processor.max_candidate_length + 1)
    longest += processor.max_caption_length
    positions = getattr(model.config.text_config, "max_position_embeddings", longest)
    if longest > positions:
        raise ValueError(
            f"Prefix, candidates and caption may take {longest} positions and the decoder has {positions}: lower "
            "max_candidate_length or max_caption_length"
        )
    model.generation_config.update(
        bos_token_id=processor.separator_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        max_new_tokens=processor.max_caption_length,
    )
    if model_args.freeze_audio_tower:
        model.freeze_audio_tower()
    return model


def log_mel_statistics(features: ClipFeatures, batch_size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each mel bin over a corpus, each `(F,)`."""
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(features), batch_size):
        log_mels = features.read(list(range(start, min(start + batch_size, len(features))))).double()
        count += log_mels[..., 0].numel()
        total = total + log_mels.sum(dim=(0, 1, 2))
        squares = squares + log_mels.square().sum(dim=(0, 1, 2))
    mean = total / count
    return mean, squares / count - mean.square()


# -- 3. retrieval -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def embed_rows(
    model: RGMCModel, features: ClipFeatures, accelerator: Accelerator, batch_size: int, description: str
) -> np.ndarray:
    """Embeddings `(N, E)` of all rows in evaluation mode. Each process embeds every world-th row, each row once."""
    world = accelerator.num_processes
    own = list(range(accelerator.process_index, len(features), world))
    batches = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    training = model.training
    model.eval()
    parts = []
    for rows in tqdm(batches, desc=description, unit="batch", leave=False, disable=not accelerator.is_main_process):
        # In float32, whatever the training's precision, as captioning embeds its queries.
        parts.append(model.embed_audio(features.read(rows)))
    model.train(training)
    # Processes hold the same number of rows, or one less: that one is made up, and dropped again.
    size = model.config.audio_config.projection_dim
    padding = math.ceil(len(features) / world) - len(own)
    parts.append(torch.zeros(padding, size, device=model.device))
    gathered = accelerator.gather(torch.cat(parts))  # (world * ceil(N / world), E), process by process
    in_order = gathered.unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)
    return in_order[: len(features)].float().cpu().numpy()


@dataclass
class Neighbors:
    """Candidates of both splits: row numbers of the training split `(N, K)`, -1 for none, and similarities `(N, K)`."""

    train: np.ndarray
    train_similarities: np.ndarray
    validation: np.ndarray


def refresh(
    model: RGMCModel,
    train: ClipFeatures,
    validation: ClipFeatures,
    rows: Dataset,
    accelerator: Accelerator,
    batch_size: int,
) -> tuple[CaptionDatastore, Neighbors]:
    """Embeds every song with the current encoder and looks up its neighbours (section 3.2), itself excluded by id."""
    embeds = embed_rows(model, train, accelerator, batch_size, "Embedding the training split")
    queries = embed_rows(model, validation, accelerator, batch_size, "Embedding the validation split")
    datastore = CaptionDatastore(rows, embeds, model.encoder_fingerprint())
    k = model.config.num_candidates
    neighbors, similarities = datastore.search_rows(embeds, k, exclude_ids=train.ids)
    return datastore, Neighbors(neighbors, similarities, datastore.search_rows(queries, k)[0])


def write_neighbors(path: Path, ids: list[str], neighbors: Neighbors, epoch: int):
    """The table of the epoch: for each training clip the ids of its candidates and their similarities, a line each."""
    with path.open("w", encoding="utf-8") as file:
        for row_id, rows, similarities in zip(ids, neighbors.train, neighbors.train_similarities):
            found = [(ids[row], round(float(score), 6)) for row, score in zip(rows, similarities) if row >= 0]
            line = {
                "epoch": epoch,
                "id": row_id,
                "candidate_ids": [name for name, _ in found],
                "similarities": [score for _, score in found],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


# -- 4. training ------------------------------------------------------------------------------------------------------


def build_optimizer(model: RGMCModel, args: TrainingArguments) -> torch.optim.Optimizer:
    """Adam, as in the paper, over the parts that are trained; the encoder may have a learning rate of its own."""
    audio_rate = args.learning_rate if args.audio_learning_rate is None else args.audio_learning_rate
    audio = {id(weight) for weight in model.audio_tower.parameters()}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if id(weight) in audio], "lr": audio_rate},
        {"params": [weight for weight in trained if id(weight) not in audio]},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]], lr=args.learning_rate)


def plan_epoch(rows: np.ndarray, args: TrainingArguments, accelerator: Accelerator) -> list[list[list[int]]]:
    """
    Cuts the rows of an epoch into steps of `batch_size`, and this process's share of each into micro-batches.

    Every process gets equally many micro-batches per step, the last ones possibly empty: all take part in each step.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    steps = []
    for start in range(0, len(rows), args.batch_size):
        step = rows[start : start + args.batch_size]
        share = math.ceil(len(step) / world)
        micro = min(args.micro_batch_size or share, share)
        own = step[rank::world].tolist()
        steps.append([own[first : first + micro] for first in range(0, share, micro)])
    return steps


def load_batches(steps: list[list[list[int]]], collator: TeacherForcingCollator, args: TrainingArguments) -> DataLoader:
    """
    The micro-batches of an epoch. A new loader for each epoch: workers that outlive it would keep its candidates.
    """
    return DataLoader(
        range(len(collator.caption_ids)),
        batch_sampler=[micro_batch for step in steps for micro_batch in step],
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def train_epoch(
    model, optimizer, scheduler, collator, args: TrainingArguments, accelerator: Accelerator, epoch: int
) -> float:
    """One pass over the training split; returns the mean loss per token."""
    order = np.random.default_rng([args.seed, epoch]).permutation(len(collator.caption_ids))
    steps = plan_epoch(order, args, accelerator)
    batches = iter(load_batches(steps, collator, args))
    model.train()
    epoch_loss, epoch_tokens = torch.zeros((), device=accelerator.device), 0
    progress = tqdm(total=len(order), desc=f"Epoch {epoch}", unit="clip", disable=not accelerator.is_main_process)
    for number, step in enumerate(steps):
        clips = order[number * args.batch_size : (number + 1) * args.batch_size]
        tokens = sum(len(collator.caption_ids[row]) for row in clips)
        for index in range(len(step)):
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in next(batches).items()}
            last = index == len(step) - 1
            with nullcontext() if last else accelerator.no_sync(model):
                # Divided once, by all tokens of the step; the gradients of the processes are averaged.
                loss = model(**batch, num_items_in_batch=tokens / accelerator.num_processes).loss
                accelerator.backward(loss)
            epoch_loss += loss.detach() * tokens / accelerator.num_processes
        if args.max_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        epoch_tokens += tokens
        progress.update(len(clips))
        if number % 10 == 0:
            progress.set_postfix(loss=f"{float(epoch_loss) * accelerator.num_processes / epoch_tokens:.3f}")
    progress.close()
    return float(accelerator.reduce(epoch_loss, "sum")) / epoch_tokens


@torch.no_grad()
def validation_loss(
    model: RGMCModel, collator: TeacherForcingCollator, args: TrainingArguments, accelerator: Accelerator
) -> float:
    """Mean cross entropy per token: sums over tokens, divided once, the same on every process."""
    own = list(range(accelerator.process_index, len(collator.caption_ids), accelerator.num_processes))
    batch_size = args.micro_batch_size or args.batch_size
    steps = [[own[start : start + batch_size]] for start in range(0, len(own), batch_size)]
    total = torch.zeros((), device=accelerator.device)
    model.eval()
    for batch in load_batches(steps, collator, args):
        with accelerator.autocast():
            total += model(
                **{name: tensor.to(accelerator.device) for name, tensor in batch.items()}, num_items_in_batch=1
            ).loss
    return float(accelerator.reduce(total, "sum")) / sum(map(len, collator.caption_ids))


# -- 5. checkpoint ----------------------------------------------------------------------------------------------------


def save_checkpoint(output_dir: Path, model: RGMCModel, processor: RGMCProcessor, card: str):
    """
    Writes the complete checkpoint beside its place and moves it there, `config.json` last: without that file a folder
    is no checkpoint, so that an interruption leaves the former one, this one, or none.
    """
    staging = output_dir / ".incomplete"
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    processor.save_pretrained(staging)
    (staging / "README.md").write_text(card, encoding="utf-8")
    (output_dir / "config.json").unlink(missing_ok=True)
    for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == "config.json"):
        target = output_dir / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(entry, target)
    staging.rmdir()


CARD = """---
library_name: transformers
pipeline_tag: audio-text-to-text
tags:
- music
- music-captioning
- retrieval-augmented-generation
---

# RGMC: {name}

Captions music from its sound and from the caption of the most similar song of a datastore: Retrieval Guided Music
Captioning via Multimodal Prefixes (Srivatsan et al., IJCAI 2024).

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
inputs = processor(audio=["song.mp3"], return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True))
```

The datastore holds {rows} captions of the training split. Validation loss {loss:.4f} per token after epoch {epoch}.

## Training

```yaml
{settings}```

## Limits

The model describes the middle 10 seconds of a song. It is as biased as its training captions: towards the genres that
they cover, in their wording, and in what they presume of singers and of cultures (the paper's ethical statement).
"""


def model_card(arguments: tuple, datastore: CaptionDatastore, loss: float, epoch: int) -> str:
    settings = {name: value for part in arguments for name, value in asdict(part).items() if value not in (None, {})}
    name = Path(settings["output_dir"]).name
    for path in ("dataset", "validation_dataset", "output_dir", "cache_dir", "model"):
        if path in settings and Path(settings[path]).is_absolute():
            settings[path] = Path(settings[path]).name
    return CARD.format(
        name=name, rows=len(datastore), loss=loss, epoch=epoch, settings=yaml.safe_dump(settings, sort_keys=False)
    )


# -- 6. main ----------------------------------------------------------------------------------------------------------


def main(argv: list[str]):
    # 1. Options
    arguments = model_args, data_args, args = parse_arguments(argv)
    output_dir = Path(args.output_dir)
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the others wait while one process decodes a corpus
    accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[patient])
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"{accelerator.distributed_type} is not supported: choose multi-GPU (data parallel) processes")
    if args.num_train_epochs < 1:
        raise ValueError(f"--num_train_epochs must be at least 1, got {args.num_train_epochs}")
    check_model_arguments(model_args)
    if (output_dir / "config.json").exists() and not args.overwrite_output_dir:
        raise FileExistsError(
            f"{output_dir} holds a checkpoint: choose another --output_dir, or --overwrite_output_dir true"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    if accelerator.device.type == "cpu":
        # accelerate launch leaves a CPU process one thread
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // accelerator.num_processes))
    if not accelerator.is_main_process:
        logging.set_verbosity_error()  # announcements come once
    set_seed(args.seed)

    # 2. Data, processor, model
    started = time.perf_counter()
    train, validation = prepare_data(data_args, args, accelerator, RGMCFeatureExtractor())
    captions = [captions[0] for captions in train.captions]
    processor = build_processor(model_args, captions)
    model = build_model(model_args, processor, train).to(accelerator.device)
    set_seed(args.seed, device_specific=True)

    # 3. What does not change between epochs: tokens, optimizer, schedule
    caption_ids = [processor.encode_caption(caption) for caption in captions]
    validation_ids = [processor.encode_caption(captions[0]) for captions in validation.captions]
    candidate_ids = [processor.encode_candidate(caption) for caption in captions]
    rows = Dataset.from_dict({"id": train.ids, "caption": captions, "input_ids": candidate_ids})
    optimizer = build_optimizer(model, args)
    steps = math.ceil(len(train) / args.batch_size) * args.num_train_epochs
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, args.warmup_steps, steps)
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    def collator(features: ClipFeatures, caption_ids: list[list[int]], neighbors: np.ndarray) -> TeacherForcingCollator:
        candidates = [
            [candidate_ids[row] for row in found if row >= 0 and model.config.uses_candidate] for found in neighbors
        ]
        return TeacherForcingCollator(features, caption_ids, candidates, processor)

    # 4. Epochs. The neighbours that are looked up after an epoch are those at the start of the next one (section 3.2),
    # and they belong to the very encoder that a checkpoint of this moment holds.
    batch_size = args.micro_batch_size or args.batch_size
    trains_encoder = any(weight.requires_grad for weight in model.audio_tower.parameters())
    best_loss, best_epoch = math.inf, 0
    datastore, neighbors = refresh(model, train, validation, rows, accelerator, batch_size)
    for epoch in range(1, args.num_train_epochs + 1):
        if accelerator.is_main_process:
            write_neighbors(output_dir / "neighbors.jsonl", train.ids, neighbors, epoch)
        epoch_started = time.perf_counter()
        batches = collator(train, caption_ids, neighbors.train)
        loss = train_epoch(wrapped, optimizer, scheduler, batches, args, accelerator, epoch)
        former = neighbors
        if trains_encoder:
            datastore, neighbors = refresh(model, train, validation, rows, accelerator, batch_size)
        held_out_loss = validation_loss(
            model, collator(validation, validation_ids, neighbors.validation), args, accelerator
        )
        log = {
            "epoch": epoch,
            "loss": loss,
            "validation_loss": held_out_loss,
            "neighbor_similarity": float(former.train_similarities[former.train >= 0].mean()),
            "neighbors_changed": float((former.train != neighbors.train).mean()),
            "processes": accelerator.num_processes,
            "seconds": time.perf_counter() - epoch_started,
        }
        if accelerator.is_main_process:
            tqdm.write("  ".join(f"{name} {value:.4g}" for name, value in log.items()))
            with (output_dir / "log.jsonl").open("w" if epoch == 1 else "a", encoding="utf-8") as file:
                file.write(json.dumps(log) + "\n")

        # 5. The best model so far is the checkpoint
        if held_out_loss < best_loss:
            best_loss, best_epoch = held_out_loss, epoch
            model.set_datastore(datastore)
            if accelerator.is_main_process:
                save_checkpoint(output_dir, model, processor, model_card(arguments, datastore, best_loss, best_epoch))
        if epoch - best_epoch >= args.patience:
            break
    accelerator.wait_for_everyone()
    if best_epoch == 0:
        raise RuntimeError(
            "The validation loss was never finite, so there is no checkpoint: try a smaller --learning_rate"
        )
    minutes = (time.perf_counter() - started) / 60
    accelerator.print(
        f"Trained in {minutes:.1f} minutes; {output_dir} holds epoch {best_epoch}, validation loss {best_loss:.4f}"
    )

    # 6. The table of the test split
    if args.test_split:
        evaluate_checkpoint(
            EvaluationArguments(
                model=args.output_dir,
                dataset=data_args.dataset,
                output_dir=str(output_dir / "eval"),
                split=args.test_split,
                caption_column=data_args.caption_column,
                id_column=data_args.id_column,
                max_skipped=data_args.max_skipped,
                cache_dir=data_args.cache_dir,
                cache_dtype=data_args.cache_dtype,
                num_proc=data_args.num_proc,
            ),
            accelerator,
        )
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1:])
