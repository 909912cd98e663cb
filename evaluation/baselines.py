"""The captions of baselines that `train.py` has trained: rows beside the model's, and what each row costs."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean

import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig

from baselines import BASELINES
from clips.features import Split
from evaluation.captioning import Captioner
from evaluation.seeds import first_difference
from evaluation.systems import OPTIONS, TITLES, System, captioning_title, keys_of_rows
from reporting.results import Cost


class BaselineCaptioner(Captioner):
    """A [`Captioner`] of a baseline's checkpoint, which has no candidates."""

    @classmethod
    def load(
        cls, name: str, split: Split, accelerator: Accelerator, batch_size: int, parts_dir: Path
    ) -> "BaselineCaptioner":
        model_class, processor_class = BASELINES[PreTrainedConfig.get_config_dict(name)[0]["model_type"]]
        processor = processor_class.from_pretrained(name)
        model = model_class.from_pretrained(name, dtype=torch.float32).to(accelerator.device).eval()
        return cls(name, model, processor, split.features(processor, accelerator), accelerator, batch_size, parts_dir)

    def _caption_batch(self, batch: list[int], *_) -> list[dict]:
        tokens = self.model.generate(self.features.read(batch))
        captions = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [{"row": row, "prediction": self.processor.normalize(said)} for row, said in zip(batch, captions)]


def read_baselines(entries: list[str], rule: str, predictions: list[str]) -> dict[str, list[str]]:
    """
    Checks `--baseline` before hours of captioning.

    Args:
        entries (`list[str]`): Each `name=checkpoint`; those of one name differ by seed.
        rule (`str`): By which the model normalises captions.
        predictions (`list[str]`): Entries of `--predictions`, whose names are taken.

    Returns:
        `dict[str, list[str]]`: The checkpoints by name.

    Raises:
        `ValueError`: If an entry has no name, or one that is taken, if its checkpoint is not a baseline's or follows
        another rule, or if two of one name are of different configurations.
    """
    found: dict[str, list[str]] = {}
    configs: dict[str, dict] = {}
    taken = {*TITLES, *TITLES.values(), *(entry.partition("=")[0] for entry in predictions)}
    for entry in entries:
        name, _, checkpoint = entry.partition("=")
        if not name or not checkpoint:
            raise ValueError(f"--baseline {entry}: expected name=checkpoint")
        if name in taken:
            raise ValueError(f"--baseline {entry}: the name '{name}' is taken")
        config, _ = PreTrainedConfig.get_config_dict(checkpoint)
        kind, own = config.get("model_type"), config.get("caption_normalization", "paper")
        if kind not in BASELINES:
            raise ValueError(f"--baseline {entry}: its model_type is {kind}, expected one of {', '.join(BASELINES)}")
        if own != rule:
            raise ValueError(
                f"--baseline {entry}: it writes captions by the rule '{own}', and the model by '{rule}': "
                f"their scores cannot be compared. Train it with --caption_normalization {rule}"
            )
        different = first_difference(configs.setdefault(name, config), config)
        if different:
            raise ValueError(
                f"--baseline {entry} and {found[name][0]} differ in {different[0]}: "
                "checkpoints of one name have to differ by seed alone"
            )
        found.setdefault(name, []).append(checkpoint)
    return found


def add_baselines(
    checkpoints: dict[str, list[str]],
    load: Callable[[str], BaselineCaptioner],
    ids: list[str],
    nearest: list[str | None],
    seconds: dict[str, float],
) -> dict[str, System]:
    """
    Captions the clips with each baseline.

    Args:
        checkpoints (`dict[str, list[str]]`): By name.
        load (`Callable`): `BaselineCaptioner.load`, with its other arguments already given.
        ids (`list[str]`): The clips.
        nearest (`list[str | None]`): One for each clip: the caption that this one would be a copy of.
        seconds (`dict[str, float]`): Where the wall time of a caption is added, by the title of the captioning.

    Returns:
        `dict[str, System]`: By name; further checkpoints of a name share its row.

    Raises:
        `ValueError`: If a baseline cannot read the same clips as the model.
    """
    systems: dict[str, System] = {}
    for name, folders in checkpoints.items():
        for checkpoint in folders:
            captioner = load(checkpoint)
            if captioner.features.ids != ids:
                raise ValueError(f"--baseline {name}={checkpoint} reads other clips than the model")
            lines = captioner.caption(captioning_title(name))
            seconds |= captioner.seconds
            key, row = (f"{name}={checkpoint}", name) if name in systems else (name, None)
            systems[key] = System(name, checkpoint, [line["prediction"] for line in lines], nearest, row)
    return systems


def measure_costs(systems: dict[str, System], baselines: Iterable[str], seconds: dict[str, float]) -> dict[str, Cost]:
    """
    What the trained systems cost.

    Args:
        systems (`dict[str, System]`): By key.
        baselines (`Iterable[str]`): Rows of `--baseline`.
        seconds (`dict[str, float]`): Wall time of a caption, by the title of the captioning.

    Returns:
        `dict[str, Cost]`: By row; of several checkpoints the mean of their trainings.
    """
    costs = {}
    trainings = {"rgmc", *OPTIONS, *baselines} - {"nearest_neighbor_frozen"}
    for row, keys in keys_of_rows(systems).items():
        if row not in trainings:
            continue
        trained = [found for key in keys if (found := training_seconds(systems[key].source))]
        each = seconds.get(captioning_title(row))
        costs[row] = Cost(mean(trained) if trained else None, 1 / each if each else None)
    return costs


def training_seconds(checkpoint: str) -> float | None:
    """The wall time of all epochs of a training by its `log.jsonl`; None where there is none."""
    log = Path(checkpoint, "log.jsonl")
    if not log.is_file():
        return None
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return sum(line["seconds"] for line in lines if "epoch" in line)
