"""
Loads the pretrained parts that an RGMC starts from (section 4) and records which they were: the audio encoder of CLAP,
as transformers or LAION's own code saves it, and a causal language model.
"""

import hashlib
import json
import os
import re
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, ClapAudioConfig, ClapAudioModelWithProjection, ClapModel, PreTrainedModel
from transformers.utils import cached_file

# Stored in the configuration. Raise it when the same checkpoint would give other weights than before.
LAION_CONVERSION = 1

# Depths of LAION's HTS-AT tiny, base and large, by the channels of the first stage. All have `ClapAudioConfig`'s heads.
LAION_DEPTHS = {96: [2, 2, 6, 2], 128: [2, 2, 12, 2], 256: [2, 2, 12, 2]}

# Names in transformers and in LAION's code, in the order of replacement.
LAION_NAMES = {
    "audio_model.audio_encoder.batch_norm.": "audio_branch.bn0.",
    "audio_model.audio_encoder.": "audio_branch.",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".attention.output.dense.": ".attn.proj.",
    ".attention.self.query.": ".attn.qkv.",
    ".attention.self.key.": ".attn.qkv.",
    ".attention.self.value.": ".attn.qkv.",
    ".attention.self.": ".attn.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    "projection.linear1.": "projection.0.",
    "projection.linear2.": "projection.2.",
}
# Not needed to embed audio: the front end (ours is used), a classifier, masks, and CLAP's text side.
LAION_UNUSED = re.compile(
    r"audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\.|.*\.attn_mask$|"
    r"(text_branch|text_projection|text_transform|audio_transform)\.|logit_scale_[at]$"
)
LAION_FUSION = re.compile(r"audio_branch\..*(mel_conv|fusion_model)")


def is_laion_checkpoint(name: str) -> bool:
    """Whether `name` is a checkpoint of LAION's own code, such as `file.pt` or `repo_id/file.pt`."""
    return name.endswith(".pt") or os.path.isfile(name)


def load_clap_audio(name: str) -> tuple[dict, dict[str, torch.Tensor], dict]:
    """
    Loads the audio encoder and the projection of a pretrained CLAP without fusion.

    Args:
        name (`str`):
            Hub id or folder of a `ClapModel` (`"laion/larger_clap_music"`), or a checkpoint of LAION's own code, as a
            local file or as `repo_id/file` on the Hub (`"lukewys/laion_clap/music_audioset_epoch_15_esc_90.14.pt"`).

    Returns:
        `tuple`: The fields of its `ClapAudioConfig`, the weights of a `ClapAudioModelWithProjection`, and the
        `audio_model_source` for [`RGMCConfig`].

    Raises:
        `OSError`: If it cannot be found.
        `ValueError`: If it is not a CLAP or lacks weights, or if a checkpoint of LAION's code has unknown weights or
        those of a model with fusion.
    """
    if is_laion_checkpoint(name):
        file, source = _find_laion_checkpoint(name)
        audio_config, weights = convert_laion_state_dict(read_laion_checkpoint(file), file.name)
        return audio_config, weights, {**source, "sha256": _digests([file]), "conversion": LAION_CONVERSION}
    folder, source = _locate(name)
    clap, info = ClapModel.from_pretrained(
        name, revision=source["revision"] or "main", dtype=torch.float32, output_loading_info=True
    )
    parts = ("audio_model.", "audio_projection.")
    weights = {key: tensor for key, tensor in clap.state_dict().items() if key.startswith(parts)}
    _refuse_random(name, "CLAP", info["missing_keys"] & weights.keys())
    source = {**source, "sha256": _digests(_weights_files(folder)), "conversion": None}
    return clap.config.audio_config.to_dict(), weights, source


def load_text_model(name: str) -> tuple[PreTrainedModel, dict]:
    """
    Loads a pretrained causal language model in float32.

    Args:
        name (`str`):
            Hub id or folder.

    Returns:
        `tuple`: The model, and the `text_model_source` for [`RGMCConfig`].

    Raises:
        `OSError`: If it cannot be found.
        `ValueError`: If the checkpoint lacks weights.
    """
    folder, source = _locate(name)
    model, info = AutoModelForCausalLM.from_pretrained(
        name, revision=source["revision"] or "main", dtype=torch.float32, output_loading_info=True
    )
    _refuse_random(name, "causal language model", info["missing_keys"])
    return model, {**source, "sha256": _digests(_weights_files(folder)), "conversion": None}


# -- checkpoints of transformers --------------------------------------------------------------------------------------


def _locate(name: str) -> tuple[Path, dict]:
    """Finds the folder of a checkpoint (for a Hub id, the snapshot of one commit), its name and its revision."""
    folder = Path(cached_file(name, "config.json")).parent
    if os.path.isdir(name):
        return folder, {"name": folder.resolve().name, "revision": None}
    return folder, {"name": name, "revision": folder.name}


def _weights_files(folder: Path) -> list[Path]:
    """Lists the files that `from_pretrained` reads the weights from."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / stem).is_file():
            return [folder / stem]
        if (index := folder / f"{stem}.index.json").is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / shard for shard in sorted(set(shards))]
    raise OSError(f"{folder} has no weights: expected model.safetensors or pytorch_model.bin, or the index of one")


def _digests(files: list[Path]) -> dict[str, str]:
    digests = {}
    for path in files:
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _refuse_random(name: str, kind: str, missing: set[str]):
    if missing:
        raise ValueError(f"{name} is not a complete {kind}: these weights would be random: {_listed(missing)}")


def _listed(names) -> str:
    names = sorted(names)
    return ", ".join(names[:20]) + (f", and {len(names) - 20} more" if len(names) > 20 else "")


# -- checkpoints of LAION's own code ----------------------------------------------------------------------------------


class _Ignored:
    """Replaces the NumPy numbers of a checkpoint (an epoch, a score) and their type, so that none is created."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


IGNORED = [(_Ignored, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [(_Ignored, "numpy.dtype")]


def _find_laion_checkpoint(name: str) -> tuple[Path, dict]:
    if os.path.isfile(name):
        return Path(name), {"name": os.path.basename(name), "revision": None}
    on_the_hub = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)/(.+)", name)
    if not on_the_hub:
        raise FileNotFoundError(f"{name}: no such file; expected a local file, or repo_id/file.pt on the Hub")
    repo_id, file = on_the_hub.groups()
    try:
        path = Path(cached_file(repo_id, file))
    except OSError as error:
        raise OSError(f"{name} is not a local file, and the Hub does not give {file} of {repo_id}: {error}") from error
    return path, {"name": name, "revision": path.parents[file.count("/")].name}


def read_laion_checkpoint(file: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Reads the weights of a checkpoint of LAION's own code, `{"state_dict": {"module.…": tensor}, "epoch": …, …}`,
    without running anything in it.

    Args:
        file (`str` or `os.PathLike`):
            A local file.

    Returns:
        `dict[str, torch.Tensor]`: The weights, without `module.` before their names.

    Raises:
        `ValueError`: If it is not such a checkpoint, or if it holds objects other than tensors and numbers.
    """
    file = Path(file)
    expected = 'a LAION checkpoint is a `torch.save` of {"state_dict": {"module.audio_branch.…": tensor}}'
    try:
        with torch.serialization.safe_globals(IGNORED):
            # Memory-mapped, so that the optimizer's state is not read. Files of PyTorch before 1.6 are not archives.
            mmap = zipfile.is_zipfile(file)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # any kind, because the file may hold anything
        reason = str(error.__context__ or error).split("\n")[0].split(". ")[0]  # without the advice of torch.load
        raise ValueError(
            f"{file.name} cannot be read as tensors and numbers alone ({type(error).__name__}: {reason}); {expected}. "
            "If it is one and you trust its source, save its weights by themselves (this runs code in it): "
            '`torch.save({"state_dict": torch.load(path, weights_only=False)["state_dict"]}, new_path)`'
        ) from error
    state_dict = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    state_dict = state_dict if isinstance(state_dict, dict) else {}
    weights = {str(name).removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if not any(name.startswith("audio_branch.") and isinstance(weights[name], torch.Tensor) for name in weights):
        raise ValueError(f"{file.name} is not a LAION checkpoint: no audio_branch among {_listed(weights)}; {expected}")
    return weights


def convert_laion_state_dict(
    state_dict: dict[str, torch.Tensor], name: str = "The state dict"
) -> tuple[dict, dict[str, torch.Tensor]]:
    """
    Renames the weights of LAION's HTS-AT and audio projection as in transformers.

    Args:
        state_dict (`dict`):
            State of LAION's `CLAP`, with its text side, without `module.` before the names.
        name (`str`, defaults to `"The state dict"`):
            Its name in error messages.

    Returns:
        `tuple`: Fields of a `ClapAudioConfig`, and the weights of a `ClapAudioModelWithProjection` with that
        configuration. In training, LAION's model drops whole residual branches (`drop_path_rate`), not single numbers.

    Raises:
        `ValueError`: If the model has fusion, if weights are missing or unknown, or if shapes are not those of HTS-AT
        tiny, base or large on CLAP's front end. The weights are listed.
    """
    fused = [key for key in state_dict if LAION_FUSION.match(key)]
    if fused:
        raise ValueError(
            f"{name} is a CLAP with fusion, but RGMC reads one 10 s clip and needs a CLAP without fusion, "
            f"such as music_audioset_epoch_15_esc_90.14.pt. Weights of the fusion: {_listed(fused)}"
        )
    stem = state_dict.get("audio_branch.patch_embed.proj.weight")
    if stem is None or len(stem) not in LAION_DEPTHS:
        found = "is missing" if stem is None else f"has the shape {tuple(stem.shape)}"
        raise ValueError(
            f"{name} holds no HTS-AT: audio_branch.patch_embed.proj.weight {found}; "
            f"expected {list(LAION_DEPTHS)} rows, as in HTS-AT tiny, base and large. Weights: {_listed(state_dict)}"
        )
    audio_config = {
        "model_type": "clap_audio_model",
        "patch_embeds_hidden_size": len(stem),
        "depths": LAION_DEPTHS[len(stem)],
        "hidden_size": 8 * len(stem),
        "projection_dim": len(state_dict.get("audio_projection.2.bias", range(512))),
        "hidden_dropout_prob": 0.0,
        "drop_path_rate": 0.1,
    }
    with torch.device("meta"):
        expected = ClapAudioModelWithProjection(ClapAudioConfig(**audio_config)).state_dict()
    weights, missing, misshapen = {}, [], []
    unknown = {key for key in state_dict if not LAION_UNUSED.match(key)}
    for key, wanted in expected.items():
        original = _laion_name(key)
        unknown.discard(original)
        if original not in state_dict:
            missing.append(original)
            continue
        tensor = state_dict[original]
        if ".attn.qkv." in original:
            tensor = tensor.chunk(3)[["query", "key", "value"].index(key.split(".")[-2])]
        if tensor.shape != wanted.shape:
            misshapen.append(f"{original} {tuple(state_dict[original].shape)}")
        weights[key] = tensor
    filters = state_dict.get("audio_branch.logmel_extractor.melW")
    if filters is not None and filters.shape != (513, 64):  # (FFT bins of a window of 1024, mel bins)
        misshapen.append(f"audio_branch.logmel_extractor.melW {tuple(filters.shape)}")
    problems = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_listed(set(keys))}" for kind, keys in problems.items() if keys)
        raise ValueError(f"{name} is not a CLAP of LAION's with an HTS-AT of {len(stem)} channels. Weights {found}")
    return audio_config, weights


def _laion_name(name: str) -> str:
    for ours, theirs in LAION_NAMES.items():
        name = name.replace(ours, theirs)
    return name
