"""Builds what the options ask for: features of the corpus, processor, model and optimizer."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from captions_rgmc import SIMILARITY_TOKENS
from clips.features import ClipFeatures, compute_features
from clips.rows import load_captions
from feature_extraction_rgmc import RGMCFeatureExtractor
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from statistics_rgmc import LEAST_DEVIATION, summarize
from training.arguments import (
    AUDIO_MODEL,
    LENGTHS,
    TEXT_MODEL,
    DataArguments,
    ModelArguments,
    TrainingArguments,
    model_choices,
)
from training.lora import add_lora


def prepare_data(
    data_args: DataArguments,
    args: TrainingArguments,
    accelerator: Accelerator,
    feature_extractor: RGMCFeatureExtractor,
    normalization: str,
) -> tuple[ClipFeatures, ClipFeatures]:
    """Returns the features of the training and the validation split, computed by the main process, cached for all."""
    with accelerator.main_process_first():
        if data_args.demo_clips and accelerator.is_main_process:
            from corpora.demo import write_demo_corpus

            write_demo_corpus(data_args.dataset, clips=data_args.demo_clips)
        columns = (data_args.caption_column, data_args.id_column)
        train = load_captions(data_args.dataset, data_args.train_split, *columns)
        if data_args.max_train_samples is not None:
            train = train.select(range(min(data_args.max_train_samples, len(train))))
        validation_dataset = data_args.validation_dataset or data_args.dataset
        validation = load_captions(validation_dataset, data_args.validation_split, *columns)
        same_name = data_args.validation_split == data_args.train_split
        validation_name = f"{data_args.validation_split} (validation)" if same_name else data_args.validation_split
        if args.test_split:  # a missing split is an error now, not after the training
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
                normalization=normalization,
            )
            for split, rows in ((data_args.train_split, train), (validation_name, validation))
        )


def build_feature_extractor(model_args: ModelArguments) -> RGMCFeatureExtractor:
    return RGMCFeatureExtractor()


def build_processor(model_args: ModelArguments, captions: list[str]) -> RGMCProcessor:
    lengths = {name: getattr(model_args, name) for name in LENGTHS if getattr(model_args, name) is not None}
    if model_args.model:
        processor = RGMCProcessor.from_pretrained(model_args.model)
        vars(processor).update(lengths)
        return processor  # `caption_rule` has checked its rule
    if model_args.text_config:
        tokenizer = train_tokenizer(captions, model_args.tokenizer_vocab_size or 1000)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model_args.text_model or TEXT_MODEL)
    if model_args.candidate_similarity:
        tokenizer.add_tokens(SIMILARITY_TOKENS, special_tokens=True)
    rule = model_args.caption_normalization
    return RGMCProcessor(RGMCFeatureExtractor(), tokenizer, caption_normalization=rule, **lengths)


def train_tokenizer(captions: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer like GPT-2's on these captions."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def frequent_words(captions: list[str], least: int = 5, largest_share: float = 0.5, most: int = 4096) -> list[str]:
    """The words in at least `least` captions and at most `largest_share` of them: `most` words, the frequent first."""
    counts = Counter(word for caption in captions for word in {*caption.split()})
    found = [word for word in counts if least <= counts[word] <= largest_share * len(captions)]
    return sorted(found, key=lambda word: (-counts[word], word))[:most]


def label_words(captions: list[str], words: list[str]) -> torch.Tensor:
    """Which of `words` each caption has: 1 or 0, uint8 `(N, W)`."""
    index = {word: column for column, word in enumerate(words)}
    labels = torch.zeros(len(captions), len(words), dtype=torch.uint8)
    for row, caption in enumerate(captions):
        labels[row, [index[word] for word in {*caption.split()} if word in index]] = 1
    return labels


def build_model(
    model_args: ModelArguments,
    processor: RGMCProcessor,
    train: ClipFeatures,
    predicts_words: bool = False,
    model_class: type[RGMCModel] = RGMCModel,
) -> RGMCModel:
    choices = model_choices(model_args)
    if model_args.model:
        model = RGMCModel.from_pretrained(model_args.model, dtype=torch.float32)
        model.set_datastore(None)  # this corpus gets its own
        if not predicts_words:  # a head that is not trained with the encoder would mislead
            model.word_head = model.config.words = None
        model.config.selection = choices.pop("selection", model.config.selection)
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
        config = model_class.config_class(
            audio_config={"model_type": "clap_audio_model", **model_args.audio_config},
            text_config={"model_type": "gpt2", **model_args.text_config, **tokens},
            **choices,
        )
        model = model_class(config)
        model.set_log_mel_statistics(*log_mel_statistics(train))
        if model.config.audio_statistics:
            model.set_audio_statistics(*audio_statistics(train))
    else:
        parts = (model_args.audio_model or AUDIO_MODEL, model_args.text_model or TEXT_MODEL)
        model = model_class.from_audio_text_pretrained(*parts, **choices)
        # A decoder without a BOS of its own takes the tokenizer's separator.
        model.config.text_config.bos_token_id = processor.separator_token_id
        if model.config.candidate_similarity:
            model.text_model.resize_token_embeddings(len(processor.tokenizer))
    if predicts_words:
        captions = [captions[0] for captions in train.captions]
        words = frequent_words(captions)
        if not words:
            raise ValueError(
                f"--word_loss_weight: found no word to predict in the {len(train)} training captions, "
                "expected one in 5 or more and at most half of them: set it to 0"
            )
        model.set_words(words)
    candidates = (
        model.config.num_candidates * (processor.max_candidate_length + 1 + model.config.candidate_similarity)
        if model.config.uses_candidate
        else 1
    )
    longest = model.config.prefix_length + candidates + processor.max_caption_length
    positions = getattr(model.config.text_config, "max_position_embeddings", longest)
    if longest > positions:
        raise ValueError(
            f"Prefix, candidates and caption may take {longest} positions, but the decoder has {positions}: "
            "lower max_candidate_length or max_caption_length"
        )
    model.generation_config.update(
        bos_token_id=processor.separator_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        max_new_tokens=processor.max_caption_length,
    )
    if model_args.freeze_audio_tower:
        model.freeze_audio_tower()
    if model_args.freeze_mapper and model.mapper is not None:
        model.mapper.requires_grad_(False)
    if model_args.freeze_text_model:
        model.text_model.requires_grad_(False)
    if model_args.lora_r:
        add_lora(model, model_args.lora_r, model_args.lora_alpha)
    return model


def enable_checkpointing(model: RGMCModel):
    """Makes the model recompute activations in the backward pass instead of keeping them."""
    # The first name exists since transformers 5.23, which deprecates the other.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def log_mel_statistics(features: ClipFeatures, batch_size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the mean and the variance of each mel bin over a corpus, each `(F,)`."""
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(features), batch_size):
        log_mels = features.read(list(range(start, min(start + batch_size, len(features))))).double()
        count += log_mels[..., 0].numel()
        total = total + log_mels.sum(dim=(0, 1, 2))
        squares = squares + log_mels.square().sum(dim=(0, 1, 2))
    mean = total / count
    return mean, squares / count - mean.square()


def audio_statistics(features: ClipFeatures, most: int = 4096) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes the mean and the deviation of each statistic of the log-mels, each `(S,)`, over a corpus or over `most`
    clips spread across it.
    """
    rows = np.linspace(0, len(features) - 1, min(len(features), most)).round().astype(int).tolist()
    found = torch.cat([summarize(features.read(rows[start : start + 32])) for start in range(0, len(rows), 32)])
    return found.mean(0), found.std(0, correction=0).clamp(min=LEAST_DEVIATION)


def build_optimizer(model: RGMCModel, args: TrainingArguments) -> torch.optim.Optimizer:
    """
    Makes Adam (section 4), or AdamW with `weight_decay`, for the trainable weights; each part may have its own learning
    rate.
    """
    rates = {
        model.audio_tower: args.audio_learning_rate,
        model.mapper: args.mapper_learning_rate,
        model.text_model: args.text_learning_rate,
        model.word_head: None,
    }
    groups = [
        {
            "params": [weight for weight in part.parameters() if weight.requires_grad],
            "lr": args.learning_rate if rate is None else rate,
        }
        for part, rate in rates.items()
        if part is not None
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("every part is frozen, so nothing would be trained: leave out one of the --freeze options")
    fused = model.device.type in ("cpu", "cuda")
    if args.weight_decay:
        return torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay, fused=fused)
    return torch.optim.Adam(groups, lr=args.learning_rate, fused=fused)
