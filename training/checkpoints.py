"""
Writes what a run leaves: the model to use, in `output_dir` itself, and `checkpoint-<step>`, to resume from.

Both appear whole or not at all: they are written to a staging folder and then renamed.
"""

import json
import math
import os
import re
import shutil
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from huggingface_hub import create_repo, list_repo_files, upload_file, upload_folder
from transformers import PreTrainedModel
from transformers.utils import logging

from baselines import BASELINES
from clips.checkpoints import read_config
from clips.options import ROOT, OptionParser, check_folder, check_model, user_errors
from configuration_rgmc import RGMCConfig
from model_card_rgmc import is_hub_id, model_card
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import DATASTORE_FILES, INDEX_FILE
from training.arguments import RobustnessArguments, TrainingArguments
from training.refresh import Neighbors

# Options that a resumed run may change. They only change where the training ends and, for micro_batch_size, which
# numbers dropout draws. The number of steps that the schedule takes from them is a setting of its own.
FREE_OPTIONS = {
    *("output_dir", "overwrite_output_dir", "num_train_epochs", "max_steps", "patience", "micro_batch_size"),
    *("dataloader_num_workers", "num_proc", "cache_dir", "max_skipped", "save_steps", "save_total_limit"),
    *("resume_from_checkpoint", "logging_steps", "report_to", "num_sample_captions", "test_split", "demo_clips"),
    *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "model_license", "datastore_license"),
}

FORMER_RUN = ".former-run"  # folder of what a run replaces, until it has something to put in its place
UNFINISHED = ".unfinished"  # file that is there from the start of a training to its end

# Only these files are pushed to the Hub (`is_model_file`).
MODEL_FILES = [
    *("README.md", "config.json", "generation_config.json", "*_rgmc.py", ".eval_results/*.yaml"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *(f"datastore/{name}" for name in DATASTORE_FILES),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    # Tokenizers without a tokenizer.json.
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model"),
]


# -- the state of a run -----------------------------------------------------------------------------------------------


@dataclass
class TrainingState:
    """How far a run has come. accelerate itself saves weights, optimizer, schedule and random numbers."""

    epoch: int = 1
    step_in_epoch: int = 0
    step: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    neighbors: Neighbors | None = None
    # This process's summed loss and all processes' tokens: [in the epoch, since the last line of the log].
    losses: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    tokens: list[int] = field(default_factory=lambda: [0, 0])

    def state_dict(self) -> dict:
        tables = {name: torch.from_numpy(table) for name, table in vars(self.neighbors).items()}
        return {**vars(self), "neighbors": tables, "tokens": list(self.tokens)}

    def load_state_dict(self, state: dict):
        tables = {name: table.numpy() for name, table in state["neighbors"].items()}
        vars(self).update({**state, "neighbors": Neighbors(**tables)})


def save_state(output_dir: Path, accelerator: Accelerator, state: TrainingState, settings: dict, limit: int):
    """Writes `checkpoint-<step>` and deletes all but the newest `limit` checkpoints."""
    place = output_dir / f"checkpoint-{state.step}"
    staging = output_dir / f".incomplete-{place.name}"
    # The main process takes over the sum, so that this run and a resumed one add up in the same order.
    total = accelerator.reduce(state.losses, "sum")
    state.losses = total if accelerator.is_main_process else torch.zeros_like(total)
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(staging))
        if accelerator.is_main_process:
            (staging / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        accelerator.wait_for_everyone()
    except Exception as error:  # for a full disk, safetensors and torch raise their own errors
        shutil.rmtree(staging, ignore_errors=True)
        last = last_checkpoint(output_dir)
        left = (
            f"{last} is whole: free some space, then run again with --resume_from_checkpoint last"
            if last
            else "no earlier checkpoint exists"
        )
        raise OSError(f"{place} cannot be written ({error}); {left}") from error
    if accelerator.is_main_process:
        os.replace(staging, place)
        end_former_run(output_dir)
        for checkpoint in list_checkpoints(output_dir)[:-limit]:
            shutil.rmtree(checkpoint)
    accelerator.wait_for_everyone()


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Lists the complete checkpoints, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def last_checkpoint(output_dir: Path) -> Path | None:
    return next(reversed(list_checkpoints(output_dir)), None)


def find_checkpoint(name: str | None, output_dir: Path) -> Path | None:
    """Returns the checkpoint that `--resume_from_checkpoint` names."""
    if name in (None, "last"):
        return last_checkpoint(output_dir) if name else None
    if Path(name).resolve().parent != output_dir.resolve():
        raise ValueError(f"{name} belongs to another run: resume it with --output_dir {Path(name).parent}")
    if not (Path(name) / "settings.json").is_file():
        raise FileNotFoundError(f"{name} is not a checkpoint-<step> of a run: expected the folder of one, or 'last'")
    return Path(name)


def prepare_output(args: TrainingArguments, accelerator: Accelerator) -> Path | None:
    """
    Makes `output_dir`, and returns the checkpoint to resume. Nothing of a former run is touched yet.

    Raises:
        `FileExistsError`: If `output_dir` holds a run that is neither to be resumed nor to be replaced.
    """
    output_dir = Path(args.output_dir)
    aside = output_dir / FORMER_RUN
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        if aside.is_dir() and (output_dir / UNFINISHED).exists() and list_checkpoints(output_dir):
            end_former_run(output_dir)  # its successor was killed before it could
        for path in output_dir.glob(".incomplete*"):
            shutil.rmtree(path)
        if aside.is_dir():  # its successor ended before it had saved anything
            (output_dir / UNFINISHED).unlink(missing_ok=True)
            for path in sorted(aside.iterdir(), key=lambda path: path.name == UNFINISHED):  # that one last
                os.replace(path, output_dir / path.name)
            aside.rmdir()
            accelerator.print(
                f"The last run in {output_dir} ended before it had saved anything, so the run before it is back"
            )
    accelerator.wait_for_everyone()
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
    former = [*output_dir.glob("config.json"), *list_checkpoints(output_dir)]
    if former and not args.overwrite_output_dir:
        ways = "choose another --output_dir, or give --overwrite_output_dir true to replace it"
        if not args.resume_from_checkpoint:
            raise FileExistsError(
                f"{output_dir} holds a run ({former[0].name}): resume it with --resume_from_checkpoint last, {ways}"
            )
        if not checkpoint and not (output_dir / UNFINISHED).exists():
            raise FileExistsError(
                f"{output_dir} holds a finished model but no checkpoint-<step> to resume from: {ways}"
            )
    return checkpoint


def begin_run(output_dir: Path):
    """
    Puts the checkpoints and the log of a former run aside, once all that a new run needs has been read and checked.
    [`end_former_run`] deletes them when the new run has saved something; its model is replaced by a better one.
    """
    aside = output_dir / FORMER_RUN
    aside.mkdir()
    others = [output_dir / name for name in (UNFINISHED, "log.jsonl", "neighbors.jsonl")]
    for path in [*others, *list_checkpoints(output_dir)]:
        if path.exists():
            os.replace(path, aside / path.name)
    (output_dir / UNFINISHED).touch()  # last: from here on all checkpoints are the new run's


def end_former_run(output_dir: Path):
    """Deletes what [`begin_run`] has put aside: at once out of the way, however long the deletion takes."""
    if (output_dir / FORMER_RUN).is_dir():
        doomed = output_dir / ".incomplete-former"
        os.replace(output_dir / FORMER_RUN, doomed)
        shutil.rmtree(doomed)


def end_run(output_dir: Path):
    """Notes that the training is over."""
    (output_dir / UNFINISHED).unlink(missing_ok=True)


def load_state(
    checkpoint: Path, output_dir: Path, accelerator: Accelerator, state: TrainingState, settings: dict
) -> TrainingState:
    """
    Resumes a run from `checkpoint`, and deletes later checkpoints and lines of the log.

    Raises:
        `ValueError`: If the run was started with other rows or options.
    """
    former = json.loads((checkpoint / "settings.json").read_text(encoding="utf-8"))
    defaults = asdict(RobustnessArguments()) | {
        "word_loss_weight": 0.0,
        "prefix_embedding_weight": 0.0,
        "augment_audio": False,
        "weight_decay": 0.0,
        "baseline": {},
    }  # of options that older checkpoints lack
    former = defaults | former
    former.setdefault("caption_normalization", "paper")  # of checkpoints from before the option
    changed = [name for name in sorted({*former, *settings}) if former.get(name) != settings.get(name)]
    if changed:
        changes = ", ".join(f"{name} was {former.get(name)!r}, is {settings.get(name)!r}" for name in changed)
        raise ValueError(f"{checkpoint} belongs to another run: {changes}. Keep the former values, or start a new run")
    accelerator.load_state(str(checkpoint))
    if not accelerator.is_main_process:
        state.losses.zero_()
    state.losses = state.losses.to(accelerator.device)
    if accelerator.is_main_process:
        for later in list_checkpoints(output_dir):
            if int(later.name.split("-")[1]) > state.step:
                shutil.rmtree(later)
        log = output_dir / "log.jsonl"
        if log.exists():
            lines = [line for line in log.read_text("utf-8").splitlines() if _is_former(line, state)]
            written = output_dir / "log.jsonl.incomplete"
            written.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            os.replace(written, log)
    accelerator.wait_for_everyone()
    return state


def _is_former(text: str, state: TrainingState) -> bool:
    """Whether a line of the log was written before `state`. An epoch's line comes after its last step."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:  # cut off when the run was killed
        return False
    return line["step"] <= state.step and line.get("epoch", 0) < state.epoch


def run_settings(arguments: tuple, **others) -> dict:
    """Collects the settings that must not change when a run is resumed."""
    options = {name: value for part in arguments for name, value in asdict(part).items()}
    return {**{name: value for name, value in options.items() if name not in FREE_OPTIONS}, **others}


# -- the model to use -------------------------------------------------------------------------------------------------


def save_model(output_dir: Path, model: RGMCModel, processor: RGMCProcessor, card: str, state_dict: dict | None = None):
    """
    Writes model, processor, datastore, code and card to a staging folder and moves them to `output_dir`.

    `config.json` comes last. A folder without it is not a checkpoint, so an interruption leaves the former checkpoint,
    this one, or none.

    Args:
        output_dir (`Path`):
            Folder of the checkpoint.
        model ([`RGMCModel`]):
            Saved with its datastore and its code.
        processor ([`RGMCProcessor`]):
            Saved with the model.
        card (`str`):
            Text of `README.md`.
        state_dict (`dict`, *optional*):
            Saved in place of the model's own weights.
    """
    staging = output_dir / ".incomplete"
    shutil.rmtree(staging, ignore_errors=True)
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # that of a single file says nothing
    try:
        model.save_pretrained(staging, state_dict=state_dict)
        processor.save_pretrained(staging)
        (staging / "README.md").write_text(card, encoding="utf-8")
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    (output_dir / "config.json").unlink(missing_ok=True)
    for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == "config.json"):
        target = output_dir / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(entry, target)
    staging.rmdir()


def classes_of(checkpoint: Path) -> tuple[type[PreTrainedModel], type[RGMCProcessor]]:
    """The classes of a checkpoint's model, RGMC or baseline, and of its processor."""
    return BASELINES.get(read_config(str(checkpoint)).get("model_type"), (RGMCModel, RGMCProcessor))


def is_model_file(name: str) -> bool:
    """Whether `name`, a path within a checkpoint, matches `MODEL_FILES`; a star does not match a slash."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in MODEL_FILES)


def push_model(output_dir: Path, repo_id: str | None, private: bool, endpoint: bool = False):
    """
    Pushes the model in `output_dir`, and nothing else in that folder, to the Hub.

    Files of an earlier model that this one lacks, for example a datastore, are deleted from the repository.

    Args:
        output_dir (`Path`):
            Folder of a checkpoint.
        repo_id (`str`, *optional*):
            Repository, `owner/name`; by default the folder's name under the user's own account.
        private (`bool`):
            Whether a new repository is private.
        endpoint (`bool`, *optional*, defaults to `False`):
            Whether `handler.py` and its `requirements.txt` are pushed, too, for an Inference Endpoint.

    Raises:
        `FileNotFoundError`: If the folder does not hold a whole checkpoint.
    """
    needed = ["README.md", "config.json", "generation_config.json", "model*.safetensors*", "processor_config.json"]
    needed += [f"{part.__module__.rpartition('.')[2]}.py" for part in classes_of(output_dir)]
    missing = [name for name in needed if not [*output_dir.glob(name)]]
    if missing:
        raise FileNotFoundError(f"{output_dir} is not a checkpoint that train.py wrote: it has no {', '.join(missing)}")
    repo_id = create_repo(repo_id or output_dir.resolve().name, private=private, exist_ok=True).repo_id
    files = [path.relative_to(output_dir).as_posix() for path in output_dir.rglob("*") if path.is_file()]
    upload_folder(
        repo_id=repo_id,
        folder_path=output_dir,
        allow_patterns=[*filter(is_model_file, files)],
        delete_patterns=[*filter(is_model_file, list_repo_files(repo_id)), f"datastore/{INDEX_FILE}"],
        commit_message="Upload the model",
    )
    if endpoint:
        lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        requirements = "".join(line for line in lines if not line.startswith("-c "))
        for name, content in (("handler.py", ROOT / "handler.py"), ("requirements.txt", requirements.encode())):
            upload_file(repo_id=repo_id, path_in_repo=name, path_or_fileobj=content, commit_message=f"Upload {name}")


TRAINING_SECTION = """## Training

{started}The validation loss is {loss:.4f} per token after epoch {epoch}.

```yaml
{settings}```

"""


def run_card(arguments: tuple, config: RGMCConfig, loss: float, epoch: int) -> str:
    """Writes the model card of a run. It holds no local path: a corpus on disk goes by the name of its folder."""
    _, data_args, args = arguments
    settings = {name: value for part in arguments for name, value in asdict(part).items() if value not in (None, {})}
    for name, value in settings.items():
        if isinstance(value, str) and Path(value).is_absolute():
            settings[name] = Path(value).name
    sources = {"audio encoder": config.audio_model_source, "decoder": config.text_model_source}
    names = {part: " ".join(source["name"].replace("`", "'").split()) for part, source in sources.items() if source}
    started = " and ".join(f"the {part} from `{name}`" for part, name in names.items())
    started = f"It started with {started}; commits and SHA-256: `config.json`. " if started else ""
    text = yaml.safe_dump(settings, sort_keys=False)
    return model_card(
        args.hub_model_id or Path(args.output_dir).resolve().name,
        config,
        TRAINING_SECTION.format(started=started, loss=loss, epoch=epoch, settings=text),
        args.model_license,
        args.datastore_license,
        datasets=[data_args.dataset] if is_hub_id(data_args.dataset) else None,
    )


def renew_model(checkpoint: Path):
    """
    Saves a checkpoint of `train.py` again in place: the same model with the code of this repository, for a checkpoint
    whose own code is too old for the installed transformers.
    """
    model_class, processor_class = classes_of(checkpoint)
    model = model_class.from_pretrained(checkpoint, dtype="auto")
    processor = processor_class.from_pretrained(checkpoint)
    card = checkpoint / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else model_card(checkpoint.resolve().name, model.config)
    save_model(checkpoint, model, processor, text)


def parse_options(argv: list[str]) -> Namespace:
    parser = OptionParser(
        prog="python -m training.checkpoints",
        description="Renews the code in a checkpoint, or pushes a checkpoint to the Hub.",
    )
    parser.add_argument("checkpoint", type=Path, help="folder that train.py wrote")
    parser.add_argument(
        "repo_id",
        nargs="?",
        help="owner/name on the Hub, created if it does not exist; only the model is pushed",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--endpoint", action="store_true", help="also push handler.py, which answers for it at an Inference Endpoint"
    )
    parser.add_argument("--renew", action="store_true", help="first save it again with this repository's code")
    options = parser.parse_args(argv)
    if not options.repo_id and not options.renew:
        parser.error("nothing to do: name a repository to push to, or --renew")
    return options


if __name__ == "__main__":
    with user_errors():
        options = parse_options(sys.argv[1:])
        check_folder("checkpoint", str(options.checkpoint), "the folder of a trained checkpoint")
        check_model("checkpoint", str(options.checkpoint))
        if options.renew:
            renew_model(options.checkpoint)
            print(f"{options.checkpoint} now holds the code of this repository")
        if options.repo_id:
            push_model(options.checkpoint, options.repo_id, options.private, options.endpoint)
            print(f"Pushed {options.checkpoint} to {options.repo_id}")
