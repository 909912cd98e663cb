"""Which checkpoint it is: found among those of this machine, and told apart from others. Nothing here loads torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from clips.options import check_model

CHECKPOINT_FILES = ["*.safetensors", "config.json", "generation_config.json", "datastore/*"]
CHECKPOINT_FILES += ["processor_config.json", "tokenizer*"]


def identify(name: str) -> dict[str, Any]:
    """What identifies a checkpoint: the SHA-256 of its files and its commit on the Hub."""
    folder = Path(cached_file(name, "config.json")).parent  # named after the commit in the Hub's cache
    revision = None if Path(name).is_dir() else folder.name
    files = sorted(path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern))
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    return {"name": name, "revision": revision, "sha256": digests}


def fingerprint(name: str) -> dict[str, str | None]:
    """
    A short form of [`identify`]: `name`, `revision` (the commit on the Hub, None for a folder) and `fingerprint` (16
    hexadecimal digits of a digest of the folder's files, None on the Hub, where the commit says as much).
    """
    if not Path(name).is_dir():
        revision = Path(cached_file(name, "config.json")).parent.name
        return {"name": name, "revision": revision, "fingerprint": None}
    digests = json.dumps(identify(name)["sha256"], sort_keys=True)
    return {"name": name, "revision": None, "fingerprint": hashlib.sha256(digests.encode()).hexdigest()[:16]}


def read_config(name: str) -> dict[str, Any]:
    """The configuration of a checkpoint; empty if it cannot be read."""
    try:
        config = json.loads(Path(cached_file(name, "config.json")).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def score_threshold(name: str) -> float | None:
    """The score below which captions of a checkpoint are not shown; None if it does not say."""
    return json.loads(Path(cached_file(name, "config.json")).read_text(encoding="utf-8")).get("score_threshold")


def check_rgmc(option: str, name: str | None):
    """
    As [`check_model`], for an option that takes nothing but an RGMC.

    Raises:
        `ValueError`: Also if it is another model; for a baseline, with what takes one.
    """
    check_model(option, name)
    config = read_config(name) if name else {}
    kind = config.get("model_type", "rgmc")
    if "custom_pipelines" in config and kind != "rgmc":
        raise ValueError(
            f"{option} {name} is a baseline ({kind}) and no RGMC: `eval.py --baseline {kind}={name}` scores it beside "
            f"one, and pipeline('music-captioning', '{name}', trust_remote_code=True) of transformers captions with it"
        )
    if kind != "rgmc":
        raise ValueError(f"{option} {name} is a model of the type {kind}: expected a trained checkpoint of an RGMC")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in a folder of runs that was written last, or None. Incomplete ones are left out."""
    found = [
        path.parent
        for path in folder.glob("*/config.json")
        if (path.parent / "processor_config.json").is_file()
        and read_config(str(path.parent)).get("model_type") == "rgmc"
        and any(path.parent.glob("*.safetensors"))
    ]
    return max(found, key=lambda checkpoint: (checkpoint / "config.json").stat().st_mtime_ns, default=None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
