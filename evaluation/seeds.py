"""Several checkpoints of one configuration, which differ by the seed of their training, as one row of a table."""

import reprlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import GenerationConfig

from clips.checkpoints import CHECKPOINT_FILES, identify
from configuration_rgmc import RGMCConfig
from evaluation.captioning import Captioner
from evaluation.systems import SHARED, System
from processing_rgmc import RGMCProcessor
from reporting.results import Prediction
from retrieval_rgmc import CaptionDatastore

OF_CHECKPOINT = ("prediction", "candidate", "candidate_id", "similarity", "beams")  # fields of a prediction
# Fields that say which library wrote a file, not what the model does.
LIBRARY_FIELDS = {"transformers_version", "_name_or_path", "auto_map", "custom_pipelines"}


def check_same_configuration(names: list[str]):
    """
    Checks before hours of captioning that checkpoints are different ones of the same configuration.

    Args:
        names (`list[str]`): Folders or Hub ids.

    Raises:
        `ValueError`: If two are the same, or differ in more than their weights and what they make of them: the
        message names both and the field.
    """
    if len(names) == 1:
        return
    weights: dict[tuple, str] = {}
    for name in names:
        if not Path(name).is_dir():  # on the Hub: the digests are those of the downloaded files
            snapshot_download(name, allow_patterns=CHECKPOINT_FILES)
        digests = identify(name)["sha256"]
        key = tuple(digest for file, digest in digests.items() if "/" not in file and file.endswith(".safetensors"))
        if key in weights:
            raise ValueError(
                f"--model {weights[key]} and {name} are the same checkpoint: "
                "expected checkpoints that were trained with different seeds"
            )
        weights[key] = name
    first = read_configuration(names[0])
    for name in names[1:]:
        found = first_difference(first, read_configuration(name))
        if found:
            field, one, other = found
            raise ValueError(
                f"--model {names[0]} and {name} differ in {field}: {reprlib.repr(one)} and {reprlib.repr(other)}; "
                "expected checkpoints that differ by seed alone. Evaluate the others in another run"
            )


def read_configuration(name: str) -> dict[str, Any]:
    """What a checkpoint's captions depend on, beside its weights and the embeddings that they make."""
    processor, datastore = RGMCProcessor.from_pretrained(name), CaptionDatastore.from_checkpoint(name)
    columns = ("id", "caption", "input_ids")
    return {
        "config.json": RGMCConfig.from_pretrained(name).to_dict(),
        "generation_config.json": GenerationConfig.from_pretrained(name).to_dict(),
        "processor_config.json": processor.to_dict(),
        "tokenizer": processor.tokenizer.get_vocab(),
        "datastore": None
        if datastore is None
        else {
            **{field: getattr(datastore, field) for field in ("storage", "string_factory", "search_parameters")},
            **{column: datastore.rows.with_format(None)[column][:] for column in columns},
        },
    }


def first_difference(one: Any, other: Any, field: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two nested values differ, with both of its values; None if they are equal."""
    if one == other:
        return None
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in dict.fromkeys([*one, *other]) if key not in LIBRARY_FIELDS]
        parts = ((one.get(key), other.get(key), f"{field} {key}".strip()) for key in keys)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = ((*values, f"{field}[{row}]") for row, values in enumerate(zip(one, other)))
    else:
        return field, one, other
    return next(filter(None, (first_difference(*part) for part in parts)), None)


def add_checkpoint(
    captioner: Captioner,
    make: Callable[..., tuple[dict[str, System], list[Prediction]]],
    systems: dict[str, System],
    lines: list[Prediction],
):
    """
    Adds what another checkpoint says to the rows of the first.

    Args:
        captioner ([`Captioner`]): With the other checkpoint.
        make (`Callable`): `make_systems` with its other arguments already given.
        systems (`dict[str, System]`): Of the first checkpoint; those of the other are added, each with its `row`.
        lines (`list[Prediction]`): One per clip; `other_checkpoints` is added to each.
    """
    found, said = make(captioner, checkpoints={}, predictions={})
    own = [key for key in found if key not in SHARED]
    # Unlike any other key: a name of --predictions has no "=".
    systems |= {f"{key}={captioner.name}": replace(found[key], row=key) for key in own}
    for line, other in zip(lines, said):
        line.setdefault("other_checkpoints", []).append(
            {
                "checkpoint": captioner.name,
                **{name: other[name] for name in OF_CHECKPOINT if name in other},
                "captions": {key: other["captions"][key] for key in own},
            }
        )
