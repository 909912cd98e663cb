"""What can be known to be wrong with the options of `train.py` before hours of decoding."""

from dataclasses import asdict
from pathlib import Path

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig
from transformers.trainer_utils import SchedulerType

from clips.checkpoints import check_rgmc
from clips.options import check_dataset, check_file, check_folder, check_model, check_output, did_you_mean
from configuration_rgmc import RGMCConfig
from training.arguments import (
    ALLOWED_WITH_MODEL,
    DROPOUTS,
    LENGTHS,
    MODEL_CHOICES,
    SHARES,
    DataArguments,
    ModelArguments,
    TrainingArguments,
    model_choices,
    refresh_interval,
)
from training.baselines import LTU_STYLE, PARTS, USED, read_entries


def check_arguments(model_args: ModelArguments, args: TrainingArguments):
    """
    Checks the options before any file is read.

    Raises:
        `ValueError`: If values are out of range, contradict each other, or would do nothing.
    """
    at_least_one = ["num_train_epochs", "batch_size", "micro_batch_size", "patience", "max_steps", "save_steps"]
    at_least_one += ["save_total_limit", "logging_steps", "lora_r", "prefix_length", "num_candidates", *LENGTHS]
    for name in at_least_one:
        value = getattr(model_args if hasattr(model_args, name) else args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if args.max_grad_norm is not None and args.max_grad_norm <= 0:
        raise ValueError(f"--max_grad_norm must be positive, got {args.max_grad_norm}; leave it out for no clipping")
    for name in ("learning_rate", "audio_learning_rate", "mapper_learning_rate", "text_learning_rate"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise ValueError(f"--{name} must be positive, got {getattr(args, name)}")
    numbers = ("warmup_steps", "num_sample_captions", "text_pretraining_steps")
    for name in ("word_loss_weight", "prefix_embedding_weight", "weight_decay", *numbers):
        if not getattr(args, name) >= 0:
            raise ValueError(f"--{name} must be 0 or more, got {getattr(args, name)}")
    if model_args.freeze_audio_tower or model_args.conditioning == "candidate":
        for name, off in (("word_loss_weight", "0"), ("augment_audio", "false"), ("audio_statistics", "false")):
            if getattr(model_args if hasattr(model_args, name) else args, name):
                raise ValueError(f"--{name} does nothing where the audio encoder is not trained: set it to {off}")
    for name in SHARES:
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"--{name} is a probability: expected 0 to 1, got {getattr(args, name)}")
    for names in (DROPOUTS, SHARES[len(DROPOUTS) :]):
        if sum(getattr(args, name) for name in names) > 1:
            raise ValueError(f"--{' and --'.join(names)} exclude each other: their sum must be at most 1")
    conditioning, num_candidates = model_args.conditioning, model_args.num_candidates or 1
    if model_args.baseline:
        check_baseline(model_args, args)
        conditioning = "audio"
    if model_args.model and Path(model_args.model, "config.json").is_file():
        config = RGMCConfig.get_config_dict(model_args.model)[0]
        conditioning, num_candidates = config.get("conditioning"), config.get("num_candidates", 1)
    if conditioning == "audio" and (args.samples_candidates or args.text_pretraining_steps):
        raise ValueError("a model of --conditioning audio has no candidates: leave out the options for their use")
    unused = [name for name in (*DROPOUTS, "prefix_embedding_weight") if getattr(args, name)]
    if conditioning == "candidate" and unused:
        raise ValueError(
            f"a model of --conditioning candidate has nothing but candidates: leave out --{' and --'.join(unused)}"
        )
    if args.candidate_pool is not None and args.candidate_pool < num_candidates:
        raise ValueError(
            f"--candidate_pool must be at least --num_candidates, {num_candidates}, got {args.candidate_pool}"
        )
    if args.text_pretraining_steps and model_args.freeze_text_model:
        raise ValueError("--text_pretraining_steps trains the decoder: leave out --freeze_text_model")
    if model_args.lora_alpha is not None and not model_args.lora_r:
        raise ValueError("--lora_alpha does nothing without --lora_r")
    if model_args.tokenizer_vocab_size is not None and not model_args.text_config and not model_args.baseline:
        raise ValueError("--tokenizer_vocab_size does nothing without --text_config")
    refresh_interval(args.refresh)
    trackers = args.report_to.split(",") if args.report_to else []
    for option, words, known in (
        ("lr_scheduler_type", [args.lr_scheduler_type], [kind.value for kind in SchedulerType]),
        ("report_to", trackers, [kind.value for kind in LoggerType]),
    ):
        for word in words:
            if word not in known:
                near = did_you_mean(word, known)
                raise ValueError(f"--{option} {word}: expected one of {', '.join(known)}{near}")
    missing = {*trackers} - {"all", *(str(kind) for kind in get_available_trackers())}
    if missing:
        raise ValueError(f"--report_to {args.report_to}: not installed: `pip install {' '.join(sorted(missing))}`")
    if args.push_to_hub and args.hub_model_id:
        try:
            validate_repo_id(args.hub_model_id)
        except HFValidationError as error:
            raise ValueError(f"--hub_model_id {args.hub_model_id}: expected owner/name ({error})") from error
    given = {name for name, value in asdict(model_args).items() if value not in (None, {}, False)}
    fixed = given - {"model", *ALLOWED_WITH_MODEL, *MODEL_CHOICES, *LENGTHS}
    if model_args.model and fixed:
        raise ValueError(f"--model brings its own parts: leave out {', '.join(sorted(fixed))}")
    if bool(model_args.audio_config) != bool(model_args.text_config):
        raise ValueError(
            "give both --audio_config and --text_config to train from scratch, or neither to start from pretrained"
        )
    if model_args.audio_config and {"audio_model", "text_model"} & given:
        raise ValueError(
            "--audio_config and --text_config train from scratch: leave out --audio_model and --text_model"
        )
    if model_args.audio_statistics and not model_args.audio_config and not model_args.model:
        raise ValueError("--audio_statistics is for an encoder from scratch: give --audio_config too, or leave it out")
    RGMCConfig(**model_choices(model_args))
    for name, model_type in (("audio_config", "clap_audio_model"), ("text_config", "gpt2")):
        entries = getattr(model_args, name)
        known = AutoConfig.for_model(entries.get("model_type", model_type))
        unknown = [key for key in entries if not hasattr(known, key)]
        if unknown:
            near = did_you_mean(unknown[0], known.to_dict())
            raise ValueError(f"{name} has no {', '.join(unknown)}: see {type(known).__name__}{near}")
        try:
            config = type(known)(**{key: value for key, value in entries.items() if key != "model_type"})
        except Exception as error:  # of whatever kind the library has for a wrong type
            raise ValueError(f"--{name} cannot be used: {' '.join(str(error).split())}") from error
        heads = getattr(config, "num_attention_heads", None)  # some decoders have none
        if isinstance(heads, int) and config.hidden_size % heads:
            raise ValueError(f"--{name}: a width of {config.hidden_size} cannot be divided among {heads} heads")


def check_baseline(model_args: ModelArguments, args: TrainingArguments):
    """Raises `ValueError` if there is no such `--baseline`, or for options that do nothing with one."""
    kind, *_ = read_entries(model_args.baseline)
    used = {*USED, *(PARTS if kind == LTU_STYLE else ())}
    unused = [name for name, value in asdict(model_args).items() if value not in (None, {}, False) and name not in used]
    unused += [name for name in ("word_loss_weight", "prefix_embedding_weight", "test_split") if getattr(args, name)]
    unused += ["mapper_learning_rate"] if args.mapper_learning_rate and kind != LTU_STYLE else []
    if unused:
        way = "; score it beside a model: eval.py --baseline" if unused == ["test_split"] else ""
        raise ValueError(f"--baseline has no use for {', '.join(unused)}: leave it out{way}")


def check_paths(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments):
    """Raises `FileNotFoundError` or `ValueError` if a model or corpus that an option names does not exist."""
    check_output(args.output_dir)
    if args.resume_from_checkpoint not in (None, "last"):
        expected = "a checkpoint-<step> of --output_dir, or 'last'"
        check_folder("--resume_from_checkpoint", args.resume_from_checkpoint, expected)
    check_rgmc("--model", model_args.model)
    check_model("--audio_model", model_args.audio_model, "a pretrained CLAP", may_be_file=True)
    check_model("--text_model", model_args.text_model, "a pretrained causal language model")
    vectors = model_args.baseline.get("word_vectors")
    check_file("--baseline.word_vectors", vectors, "lines of a word and its numbers, as GloVe has them")
    check_dataset("--validation_dataset", data_args.validation_dataset)
    if not data_args.demo_clips:
        check_dataset("--dataset", data_args.dataset)


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
            f"by the rule '{rule}'. Leave the option out, or train a new model"
        )
    return rule
