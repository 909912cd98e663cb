"""Builds a baseline, as `training.building` builds an RGMC: a front end, a processor and a model of `--baseline`."""

import inspect
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from baselines import BASELINES
from baselines.baseline_rgmc import BaselineModel
from clips.features import ClipFeatures
from clips.options import did_you_mean
from feature_extraction_rgmc import RGMCFeatureExtractor
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from training import building
from training.arguments import ALLOWED_WITH_MODEL, ModelArguments

LTU_STYLE = "ltu-style"
SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
# Entries of `--baseline` that are neither of the configuration nor of the front end.
ENTRIES = {"muscaps": {"word_vectors"}, "lp-musiccaps": {"tokenizer"}, LTU_STYLE: set()}
USED = ("baseline", "caption_normalization", "tokenizer_vocab_size", "max_caption_length")
# Options of an RGMC that an LTU-style, whose parts are an RGMC's, has too.
PARTS = ("audio_model", "text_model", "audio_config", "text_config", "prefix_length", "spec_augment")
PARTS += ALLOWED_WITH_MODEL


def read_entries(baseline: dict) -> tuple[str, dict, dict, dict]:
    """
    Divides the entries of `--baseline`: the `model_type`, fields of its configuration, of its front end, and `ENTRIES`.

    Raises:
        `ValueError`: If there is no such baseline, or if it has no such entry.
    """
    entries = dict(baseline)
    kind = entries.pop("model_type", None)
    if kind not in BASELINES:
        near = did_you_mean(str(kind), BASELINES)
        raise ValueError(f"--baseline.model_type {kind}: expected one of {', '.join(BASELINES)}{near}")
    model_class, processor_class = BASELINES[kind]
    known, front_end = (), ()
    if kind != LTU_STYLE:
        known = model_class.config_class().to_dict()
        front_end = inspect.signature(processor_class.feature_extractor_class.__init__).parameters
    unknown = [name for name in entries if name not in {*known, *front_end, *ENTRIES[kind]}]
    if unknown:
        near = did_you_mean(unknown[0], [*known, *front_end, *ENTRIES[kind]])
        raise ValueError(f"--baseline of {kind} has no {', '.join(unknown)}{near}")
    parts = (
        {name: value for name, value in entries.items() if name in names} for names in (known, front_end, ENTRIES[kind])
    )
    return kind, *parts


def build_feature_extractor(model_args: ModelArguments) -> RGMCFeatureExtractor:
    kind, _, front_end, _ = read_entries(model_args.baseline)
    if kind == LTU_STYLE:
        return building.build_feature_extractor(model_args)
    return BASELINES[kind][1].feature_extractor_class(**front_end)


def build_processor(model_args: ModelArguments, captions: list[str]) -> RGMCProcessor:
    kind, _, _, others = read_entries(model_args.baseline)
    if kind == LTU_STYLE:
        return building.build_processor(model_args, captions)
    size = model_args.tokenizer_vocab_size
    if others.get("tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(others["tokenizer"])
    elif kind == "muscaps":
        tokenizer = word_tokenizer(captions, size)
    else:
        tokenizer = building.train_tokenizer(captions, size or 1000)
        tokenizer.add_special_tokens({name: SPECIAL_TOKENS[name] for name in ("bos_token", "pad_token")})
    lengths = {} if model_args.max_caption_length is None else {"max_caption_length": model_args.max_caption_length}
    rule = model_args.caption_normalization
    return BASELINES[kind][1](build_feature_extractor(model_args), tokenizer, caption_normalization=rule, **lengths)


def word_tokenizer(captions: list[str], most: int | None = None, least: int = 2) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the `most` frequent words (by default all) of those that occur `least` times."""
    counts = Counter(word for caption in captions for word in caption.split())
    words = [word for word, count in counts.most_common() if count >= least]
    tokens = [*SPECIAL_TOKENS.values(), *words][: most and most + len(SPECIAL_TOKENS)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def build_model(
    model_args: ModelArguments, processor: RGMCProcessor, train: ClipFeatures, predicts_words: bool = False
) -> BaselineModel | RGMCModel:
    kind, fields, _, others = read_entries(model_args.baseline)
    model_class, _ = BASELINES[kind]
    if kind == LTU_STYLE:
        return building.build_model(model_args, processor, train, model_class=model_class)
    tokenizer = processor.tokenizer
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    fields |= {"vocab_size": len(tokenizer), "caption_normalization": processor.caption_normalization}
    model = model_class(model_class.config_class(**fields, **{name: getattr(tokenizer, name) for name in names}))
    model.generation_config.max_new_tokens = processor.max_caption_length
    if others.get("word_vectors"):
        read_word_vectors(Path(others["word_vectors"]), tokenizer, model.text_model.embedding.weight.data)
    return model


def read_word_vectors(file: Path, tokenizer: PreTrainedTokenizerBase, weight: torch.Tensor):
    """
    Copies the vectors of a GloVe file, lines of a word and its numbers, into the rows of `weight` of the words it has.

    Raises:
        `ValueError`: If vectors are of another length than the rows.
    """
    vocabulary, found = tokenizer.get_vocab(), 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            word, *values = line.rstrip().split(" ")
            if word not in vocabulary:
                continue
            if len(values) != weight.shape[1]:
                raise ValueError(
                    f"{file}, line {number}: {len(values)} numbers, expected {weight.shape[1]}: "
                    "set --baseline.embedding_size, or give another file"
                )
            weight[vocabulary[word]] = torch.tensor([float(value) for value in values])
            found += 1
    print(f"{found} of {len(vocabulary) - len(SPECIAL_TOKENS)} words have a vector in {file}; the others are learned")
