"""The log-mels of clips, each computed once and kept in Arrow files."""

import functools
import hashlib
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import datasets
import numpy as np
import pyarrow.parquet
import torch
from accelerate import Accelerator
from datasets import Array2D, Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from datasets.utils import tqdm
from transformers.utils import logging

from audio_rgmc import AudioError, AudioWarning
from clips.isolation import run_isolated
from clips.rows import original_captions, usable_captions
from clips.tables import clean_caption
from feature_extraction_rgmc import RGMCFeatureExtractor
from processing_rgmc import RGMCProcessor
from songs_rgmc import ORIGINAL, PROVENANCE

logger = logging.get_logger(__name__)

FRONT_END = ["sampling_rate", "duration", "feature_size", "hop_length", "fft_window_size"]
FRONT_END += ["frequency_min", "frequency_max"]  # the settings that determine a log-mel
FRONT_END_VERSION = 2  # raise it when the front end computes other numbers: it is part of the cache's key
CLIPS_PER_PROCESS = 1024  # in a file of the cache: seconds of work


@dataclass
class ClipFeatures:
    """
    The usable clips of a split.

    Args:
        ids (`list[str]`):
            Unique id of each clip.
        captions (`list[list[str]]`):
            Normalised captions of each clip, at least one.
        log_mels (`Dataset`):
            One row per clip with its `log_mel`, `(T, F)` in dB, as the cache stores it.
        provenance (`dict[str, list[str | None]]`, *optional*):
            `source` and `license` of the clips, where the corpus has them, and `original`, their first captions as the
            corpus writes them.
        normalization (`str`, defaults to `"paper"`):
            Rule by which the captions were normalised.
    """

    ids: list[str]
    captions: list[list[str]]
    log_mels: Dataset
    provenance: dict[str, list[str | None]] = field(default_factory=dict)
    normalization: str = "paper"

    def __post_init__(self):
        dtype = getattr(torch, self.log_mels.features["log_mel"].dtype)
        self.log_mels = self.log_mels.select_columns(["log_mel"]).with_format("torch", dtype=dtype)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: list[int]) -> torch.Tensor:
        """Reads the log-mels of these rows: float32 `(B, 1, T, F)`, in dB."""
        return self.log_mels[rows]["log_mel"].float().unsqueeze(1)


def compute_features(
    rows: Dataset,
    feature_extractor: RGMCFeatureExtractor,
    split: str,
    skipped_file: Path,
    max_skipped: float = 0.01,
    cache_dir: str | None = None,
    dtype: str = "float16",
    num_proc: int | None = None,
    normalization: str = "paper",
) -> ClipFeatures:
    """
    Decodes each clip once (section 3: the crop is fixed) and caches its log-mel in Arrow files, which later runs, other
    splits and other corpora read.

    The key of a clip is the front end's settings with the file's path, size and modification time, or with the content
    where a dataset holds the bytes. Only a changed file is computed again. An interrupted run resumes where it stopped:
    every `CLIPS_PER_PROCESS` clips of each process make a finished file.

    Rows whose audio cannot be read or whose caption is empty are skipped, announced, and listed in `skipped_file`, one
    line of JSON each (`split`, `row`, `id`, `file`, `reason`). The next run tries an unreadable file again.

    Args:
        rows (`Dataset`):
            What [`load_captions`] returns.
        feature_extractor ([`RGMCFeatureExtractor`]):
            Computes the log-mels.
        split (`str`):
            Name of these rows in messages and in `skipped_file`.
        skipped_file (`Path`):
            A jsonl file. Its lines of other splits are kept, those of this split are replaced.
        max_skipped (`float`, defaults to 0.01):
            Largest share of skipped rows that is not an error.
        cache_dir (`str`, *optional*, defaults to the cache of `datasets`):
            Folder of the Arrow files.
        dtype (`str`, defaults to `"float16"`):
            Stored type: `"float16"` (132 MB per 1,000 clips) or `"float32"` (260 MB). float16 changes a log-mel by up
            to 0.03 dB and the embedding by less than 5e-7 in cosine.
        num_proc (`int`, *optional*):
            Number of processes that decode. One that dies, hangs or takes too much memory costs one row, which is
            skipped with that reason. By default this process decodes, without such protection.
        normalization (`str`, defaults to `"paper"`):
            Rule of the captions: the processor's `caption_normalization`.

    Returns:
        [`ClipFeatures`]: The usable rows, in their order.

    Raises:
        `ValueError`: If more than `max_skipped` of the rows, or all of them, would be skipped; for another `dtype`.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"Cached log-mels of type {dtype}: expected float16 or float32")
    front_end = [*(getattr(feature_extractor, name) for name in FRONT_END), *feature_extractor.further_settings]
    settings = json.dumps([FRONT_END_VERSION, dtype, *front_end])
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "rgmc_log_mel" / _digest(settings.encode())
    folder.mkdir(parents=True, exist_ok=True)
    captions = [usable_captions(texts, normalization) for texts in rows["captions"]]
    marked = sum(any(clean_caption(text) != text for text in texts) for texts in rows["captions"])
    if marked:
        logger.warning(f"{marked} of {len(rows)} rows of {split} have HTML in their captions; it is removed")
    keys = [_clip_key(audio) for audio in rows["audio"]]

    wanted = {key: row for row, key in enumerate(keys) if key and captions[row]}  # a file in two rows is decoded once
    found = _CachedClips(folder)
    missing = sorted(row for key, row in wanted.items() if key not in found.positions)
    clips_per_file = CLIPS_PER_PROCESS * (num_proc or 1)
    for start in range(0, len(missing), clips_per_file):
        part = missing[start : start + clips_per_file]
        description = f"Features of {split}, {start + 1} to {start + len(part)} of {len(missing)} new clips"
        part_keys = [keys[row] for row in part]
        _cache_clips(rows.select(part), part_keys, feature_extractor, dtype, folder, num_proc, description)
    found = _CachedClips(folder)

    problems = {}
    for row, key in enumerate(keys):
        if not captions[row]:
            problems[row] = f"no caption, or none with words: {rows[row]['captions']}"
        elif key is None:
            problems[row] = "no audio: the row names no file"
        elif key not in found.positions:
            problems[row] = found.problems[key]
    _report_skipped(rows, problems, split, skipped_file, max_skipped)
    good = [row for row in range(len(rows)) if row not in problems]
    _announce_notes(
        {rows[row]["id"]: found.notes[keys[row]] for row in good if found.notes[keys[row]]}, len(good), split
    )
    positions = [found.positions[keys[row]] for row in good]
    usable = rows.select(good)
    provenance = {column: usable[column][:] for column in PROVENANCE if column in usable.column_names}
    provenance[ORIGINAL] = [original_captions(texts, normalization)[0] for texts in usable["captions"]]
    good_captions = [captions[row] for row in good]
    return ClipFeatures(usable["id"][:], good_captions, found.clips.select(positions), provenance, normalization)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _clip_key(audio: dict) -> str | None:
    """Key of a clip by its content, else by its file's path, size and modification time; None without a file."""
    if audio["bytes"] is not None:
        return _digest(audio["bytes"])
    if not audio["path"]:
        return None
    path = os.path.abspath(audio["path"])
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # decoding will say why
        return _digest(path.encode())
    return _digest(f"{path} {status.st_size} {status.st_mtime_ns}".encode())


class _CachedClips:
    """The clips of a cache folder: memory-mapped rows and, by key, a clip's row and notes, or its problem."""

    def __init__(self, folder: Path):
        files = []
        for path in sorted(folder.glob("*.arrow")):
            try:
                files.append(Dataset.from_file(str(path)))
            except (pyarrow.ArrowInvalid, OSError) as error:
                logger.warning(f"{path} is damaged ({error}): its clips are computed again; delete it")
        self.clips = datasets.concatenate_datasets(files) if files else None
        self.positions, self.notes, self.problems = {}, {}, {}
        columns = ("key", "notes", "problem")
        for position, (key, notes, problem) in enumerate(zip(*(self.clips[name] for name in columns)) if files else ()):
            if problem is None:
                self.positions[key], self.notes[key] = position, notes
            else:
                self.problems[key] = problem


def _cache_clips(
    rows: Dataset,
    keys: list[str],
    feature_extractor: RGMCFeatureExtractor,
    dtype: str,
    folder: Path,
    num_proc: int | None,
    description: str,
):
    """Writes the log-mels of `rows` to a new Arrow file, which only appears once it is complete."""
    frames = 1 + round(feature_extractor.duration * feature_extractor.sampling_rate) // feature_extractor.hop_length
    shape = (frames, feature_extractor.feature_size)
    features = Features(
        {
            "key": Value("string"),
            "log_mel": Array2D(shape, dtype),
            "notes": datasets.List(Value("string")),
            "problem": Value("string"),
        }
    )
    extract = functools.partial(_extract, feature_extractor=feature_extractor, dtype=dtype)
    audio = rows["audio"]
    if num_proc:
        results = run_isolated(functools.partial(_on_one_thread, extract), audio, num_proc)
    else:
        results = ((row, extract(sound), None) for row, sound in enumerate(audio))
    file = folder / f"{_digest(''.join(keys).encode())}.arrow"
    unfinished = file.with_name(f"{file.name}.{uuid4().hex}")  # another run may be writing the same clips
    try:
        with ArrowWriter(path=str(unfinished), features=features, writer_batch_size=256) as writer:
            for row, found, problem in tqdm(results, desc=description, unit="clip", total=len(rows)):
                log_mel, notes, problem = (None, [], problem) if found is None else found
                log_mel = np.zeros(shape, dtype) if log_mel is None else log_mel
                writer.write({"key": keys[row], "log_mel": log_mel, "notes": notes, "problem": problem})
            writer.finalize()
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _on_one_thread(extract: Callable, audio: dict):
    torch.set_num_threads(1)  # one process per core already
    return extract(audio)


def _extract(
    audio: dict, feature_extractor: RGMCFeatureExtractor, dtype: str
) -> tuple[np.ndarray | None, list[str], str | None]:
    """Computes a log-mel and returns it with the kinds of its warnings, or None with the problem."""
    log_mel, problem = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            log_mel = feature_extractor(audio)["input_features"][0, 0].numpy().astype(dtype)
        except AudioError as error:
            problem = str(error)
    return log_mel, [warning.message.kind for warning in caught if isinstance(warning.message, AudioWarning)], problem


def _report_skipped(rows: Dataset, problems: dict[int, str], split: str, skipped_file: Path, max_skipped: float):
    lines = []
    if skipped_file.is_file():
        lines = [json.loads(line) for line in skipped_file.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["split"] != split]
    for row, reason in problems.items():
        lines.append(
            {"split": split, "row": row, "id": rows[row]["id"], "file": rows[row]["audio"]["path"], "reason": reason}
        )
    if not lines:
        skipped_file.unlink(missing_ok=True)
        return
    skipped_file.parent.mkdir(parents=True, exist_ok=True)
    written = skipped_file.with_name(f"{skipped_file.name}.{uuid4().hex}")  # other processes may be writing the same
    written.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    os.replace(written, skipped_file)
    if not problems:
        return
    row, reason = next(iter(problems.items()))
    message = (
        f"{len(problems)} of {len(rows)} rows of {split} cannot be used and are listed in {skipped_file}; "
        f"the first is row {row}, id '{rows[row]['id']}', file {rows[row]['audio']['path']}: {reason}"
    )
    if len(problems) > max_skipped * len(rows) or len(problems) == len(rows):
        raise ValueError(f"{message}. More than {max_skipped:.1%} is an error: repair them, or raise --max_skipped")
    logger.warning(message)


def _announce_notes(notes: dict[str, list[str]], clips: int, split: str):
    """Announces each kind of doubtful sound once, not once per clip."""
    ids_by_kind = defaultdict(list)
    for clip_id, kinds in notes.items():
        for kind in kinds:
            ids_by_kind[kind].append(clip_id)
    for kind, ids in ids_by_kind.items():
        logger.warning(f"{len(ids)} of {clips} clips of {split}: {kind}; the first is '{ids[0]}'")


@dataclass
class Split:
    """A split of a corpus, and how its clips are cached."""

    rows: Dataset
    name: str
    skipped_file: Path
    max_skipped: float
    cache: dict  # cache_dir, dtype and num_proc of compute_features

    def features(self, processor: RGMCProcessor, accelerator: Accelerator) -> ClipFeatures:
        """Returns the usable clips. The main process computes what the cache lacks; the others then read it."""
        with accelerator.main_process_first():
            return compute_features(
                self.rows,
                processor.feature_extractor,
                self.name,
                skipped_file=self.skipped_file,
                max_skipped=self.max_skipped,
                normalization=processor.caption_normalization,
                **self.cache,
            )
