"""
From a corpus to batches: rows of captions and audio, their log-mel features computed once, and teacher-forcing batches.

`train.py` and `eval.py` share this module. A corpus is a folder in the `audiofolder` layout, a csv, tsv, jsonl or
parquet file of paths, a folder that `save_to_disk` wrote, or the id of a Hub dataset.
"""

import functools
import hashlib
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import torch
from datasets import Array2D, Audio, Dataset, DatasetDict, Features, Value
from datasets.arrow_writer import ArrowWriter
from datasets.utils import tqdm
from transformers.utils import logging

from corpora.isolation import run_isolated
from corpora.tables import (
    TABLES,
    check_names,
    clean_caption,
    is_placeholder,
    match_columns,
    read_rows,
    read_text,
    text_of,
)
from feature_extraction_rgmc import AudioError, AudioWarning, RGMCFeatureExtractor
from processing_rgmc import RGMCProcessor, normalize_caption
from retrieval_rgmc import PROVENANCE, join_candidates

logger = logging.get_logger(__name__)

SPLIT_NAMES = [
    ["train", "training"],
    ["validation", "val", "valid", "dev"],
    ["test", "eval", "evaluation"],
]
AUDIO_COLUMNS = ["audio", "file_name", "audio_file_name", "path", "file"]
METADATA_FILES = ["metadata.csv", "metadata.jsonl", "metadata.parquet"]
AUDIO_FEATURE = {"path": Value("string"), "bytes": Value("binary")}
FILE_COLUMN = "__file__"  # a table's own name of a file, before its folder is put in front
FRONT_END = ("sampling_rate", "duration", "feature_size", "hop_length", "fft_window_size")
FRONT_END += ("frequency_min", "frequency_max")  # what decides the numbers of a log-mel
FRONT_END_VERSION = 2  # of what is cached: raise it when the front end computes other numbers
CLIPS_PER_PROCESS = 1024  # computed between two finished files of the cache: seconds of work


# -- corpora ----------------------------------------------------------------------------------------------------------


def load_captions(dataset: str, split: str, caption_column: str = "caption", id_column: str = "id") -> Dataset:
    """
    One split of a corpus.

    Args:
        dataset (`str`):
            A folder in the `audiofolder` layout (`metadata.csv`, `.jsonl` or `.parquet` with `file_name` in each
            split's folder, or one for all), a csv, tsv, jsonl or parquet file with a column of paths, a `save_to_disk`
            folder, or a Hub id. A column may be written in other letters (`Caption`), which is announced.
        split (`str`): Split name; the usual other names of the same split are found too (`validation`: `val`, `valid`,
        `dev`).
            `"all"` takes every row of a corpus that has no splits.
        caption_column (`str`, defaults to `"caption"`): A caption, or a list of captions, per row.
        id_column (`str`, defaults to `"id"`): Where the corpus or a row has none, a row's id is its file name.

    Returns:
        `Dataset` with the columns `id` (unique), `audio` (`{"path", "bytes"}`), `captions` (list of the row's captions
        as the corpus writes them) and, where the corpus has them, `source` and `license`.

    Raises:
        `FileNotFoundError` or `ValueError`: when the corpus, the split, a column or every row is missing, a row of a
        table cannot be read, or an id or a column stands twice.
    """
    rows = _load_rows(dataset, split, (caption_column, id_column))
    where = f"split '{split}' of {dataset}"
    if len(rows) == 0:
        raise ValueError(f"{where} is empty: expected at least one row of audio and caption")
    audio_column = next((column for column in AUDIO_COLUMNS if column in rows.column_names), None)
    for wanted, found in ((" or ".join(AUDIO_COLUMNS), audio_column), (caption_column, caption_column)):
        if found not in rows.column_names:
            raise ValueError(f"{where} has no column {wanted}: found {', '.join(rows.column_names)}")
    names = rows[FILE_COLUMN][:] if FILE_COLUMN in rows.column_names else [""] * len(rows)
    ids = [name or f"{split}-{row}" for row, name in enumerate(names)]
    if id_column in rows.column_names:
        own_ids = [text_of(row_id).strip() for row_id in rows[id_column]]
        without = own_ids.count("")
        if without:
            logger.warning_once(f"{where}: {without} of {len(ids)} rows have no id, and go by the names of their files")
        ids = [own or name for own, name in zip(own_ids, ids)]
    repeated = {row_id: count for row_id, count in Counter(ids).items() if count > 1}
    if repeated:
        row_id = next(iter(repeated))
        where_rows = [row for row, other in enumerate(ids) if other == row_id]
        raise ValueError(
            f"{where}: {len(repeated)} ids stand more than once, such as '{row_id}' in the rows {where_rows[:5]}"
        )
    captions = [_as_list(entry) for entry in rows[caption_column]]
    audio = rows.select_columns([audio_column])
    if audio_column != "audio":
        audio = audio.rename_column(audio_column, "audio")
    if not isinstance(audio.features["audio"], (dict, Audio)):
        paths = [{"path": path if isinstance(path, str) else None, "bytes": None} for path in audio["audio"]]
        audio = Dataset.from_dict({"audio": paths}, features=Features({"audio": AUDIO_FEATURE}))
    found = audio.add_column("id", ids).add_column("captions", captions, feature=datasets.List(Value("string")))
    for column in PROVENANCE:
        if column in rows.column_names:
            entries = [None if entry in (None, "") else str(entry) for entry in rows[column]]
            found = found.add_column(column, entries, feature=Value("string"))
    return found


def _as_list(entry) -> list[str]:
    """A caption, a list of captions, or nothing, as a list of captions."""
    if entry is None:
        return []
    return [str(caption) for caption in entry] if isinstance(entry, (list, tuple, np.ndarray)) else [str(entry)]


def _load_rows(dataset: str, split: str, columns: tuple[str, str]) -> Dataset:
    names = next(([split, *names] for names in SPLIT_NAMES if split in names), [split])
    path = Path(dataset)
    if path.is_file():
        return _from_table(path, names, columns)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(path)
        if isinstance(saved, DatasetDict):
            saved = saved[_find_split(names, list(saved), dataset)]
        elif names != ["all"]:
            raise ValueError(
                f"{dataset} was saved without splits: save a DatasetDict, or take every row with the split 'all'"
            )
        return _without_decoding(_rename(saved, columns, dataset))
    if path.is_dir():
        return _from_audiofolder(path, names, columns)
    if path.is_absolute() or dataset.startswith(".") or dataset.count("/") > 1:
        raise FileNotFoundError(
            f"{dataset} does not exist: expected a corpus's folder or file, or the id of a Hub dataset"
        )
    splits = datasets.get_dataset_split_names(dataset)
    found = datasets.load_dataset(dataset, split=_find_split(names, splits, dataset))
    return _without_decoding(_rename(found, columns, dataset))


def _from_audiofolder(path: Path, names: list[str], columns: tuple[str, str]) -> Dataset:
    for folder in [parent / name for parent in (path, path / "data") for name in names]:
        for metadata in (folder / name for name in METADATA_FILES):
            if metadata.is_file():
                return _without_split(read_table(metadata, columns), metadata.parent)
    for metadata in (path / name for name in METADATA_FILES):
        if metadata.is_file():
            return _from_table(metadata, names, columns)
    found = sorted(entry.name for entry in path.iterdir())[:10]
    raise FileNotFoundError(
        f"{path} has no split '{names[0]}': expected {path / names[0]}/ with {' or '.join(METADATA_FILES)}, or one "
        f"such file in {path} itself; found {', '.join(found) or 'an empty folder'}"
    )


def _from_table(path: Path, names: list[str], columns: tuple[str, str]) -> Dataset:
    """
    The rows of a split: by the column `split`, by the folder that the paths begin with, or by the table's own
    name.
    """
    table = read_table(path, columns)
    if "split" in table.columns:
        splits = table["split"]
    elif path.stem in names or names == ["all"]:
        return _without_split(table, path.parent)
    else:
        audio_column = next((column for column in AUDIO_COLUMNS if column in table.columns), None)
        splits = table[audio_column].map(_first_folder) if audio_column else pandas.Series(dtype=str)
    if not set(names) & set(splits):
        raise ValueError(
            f"{path} has no split '{names[0]}': expected a column 'split', paths that begin with '{names[0]}/', or the "
            f"file name {names[0]}{path.suffix}; the split 'all' takes every row. Found the columns "
            f"{', '.join(table.columns)}"
        )
    return _without_split(table[splits.isin(names)], path.parent)


def _first_folder(entry) -> str:
    return Path(entry).parts[0] if isinstance(entry, str) and entry else ""


def read_table(path: Path, columns: tuple[str, str] = ("caption", "id")) -> pandas.DataFrame:
    """
    A csv or tsv (all columns as text), jsonl, json or parquet file; `columns` are those of the caption and the id.
    `ValueError` where it is none, or a part of it is broken.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            table = pandas.DataFrame(json.loads(read_text(path)), dtype=object)
        elif suffix == ".parquet":
            check_names(pyarrow.parquet.read_schema(path).names, path)
            table = pandas.read_parquet(path)
        elif suffix in TABLES:
            names, rows = read_rows(path, _refuse_row, logger.warning_once)
            # As objects: an id such as 007, or 7 beside rows without one, stays what it is.
            table = pandas.DataFrame(list(rows), columns=names, dtype=object)
        else:
            raise ValueError(f"{path} is not a table: expected a file that ends in {', '.join(TABLES)} or .json")
    except (OSError, pyarrow.ArrowException, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as {suffix[1:]}: {error}") from error
    return table.rename(columns=_other_letters(list(table.columns), columns, path))


def _refuse_row(reason: str):
    raise ValueError(f"{reason}. Mend it; prepare.py leaves such rows out and counts them")


def _other_letters(found: list[str], columns: tuple[str, str], where: str | Path) -> dict[str, str]:
    """What columns are called here, where the corpus writes the name in other letters."""
    of_files = () if set(AUDIO_COLUMNS) & set(found) else AUDIO_COLUMNS  # one that is there as it is needs no other
    return match_columns(found, (*columns, *of_files, "split", *PROVENANCE), where, logger.warning_once)


def _rename(rows: Dataset, columns: tuple[str, str], dataset: str) -> Dataset:
    return rows.rename_columns(_other_letters(rows.column_names, columns, dataset))


def _without_split(table: pandas.DataFrame, folder: Path) -> Dataset:
    table = table.reset_index(drop=True)
    for column in AUDIO_COLUMNS:
        if column in table.columns and table[column].map(lambda entry: isinstance(entry, str)).any():
            table[FILE_COLUMN] = table[column].fillna("")
            table[column] = table[column].map(
                lambda entry: str(folder / entry) if isinstance(entry, str) and entry else ""
            )
            break
    for column in table.columns:
        if table[column].map(lambda entry: isinstance(entry, list)).any():
            table[column] = table[column].map(_as_list)
    return Dataset.from_pandas(table, preserve_index=False)


def _without_decoding(rows: Dataset) -> Dataset:
    """Audio columns as paths and bytes: decoding them is the feature extractor's work, and needs no torchcodec."""
    for column, feature in rows.features.items():
        if isinstance(feature, Audio):
            rows = rows.cast_column(column, Audio(decode=False))
    return rows


def _find_split(names: list[str], splits: list[str], dataset: str) -> str:
    for name in names:
        if name in splits:
            return name
    raise ValueError(f"{dataset} has no split '{names[0]}': found {', '.join(splits)}")


def usable_captions(texts: list[str], normalization: str = "paper") -> list[str]:
    """The normalised captions of a row: HTML is removed, and left out is what has no words or stands for nothing."""
    cleaned = map(clean_caption, texts)
    normalized = (normalize_caption(text, normalization) for text in cleaned if not is_placeholder(text))
    return [text for text in normalized if text]


# -- features ---------------------------------------------------------------------------------------------------------


@dataclass
class ClipFeatures:
    """
    The usable clips of a split.

    Args:
        ids (`list[str]`): Of the clips, unique.
        captions (`list[list[str]]`): At least one per clip, normalised.
        log_mels (`Dataset`): One row per clip with its `log_mel`, `(T, F)`, dB, as the cache stores it.
        provenance (`dict[str, list[str | None]]`): `source` and `license` of the clips, where the corpus has them.
        normalization (`str`, defaults to `"paper"`): Rule by which the captions are normalised.
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
        """Log-mels of these rows: float32 `(B, 1, T, F)`, dB."""
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
    Decodes each clip once (section 3: the crop is fixed) and keeps its log-mel in Arrow files, from which later runs,
    other splits and other corpora read it.

    A clip is known by its path, size and time of change, or by its content where a dataset holds that, and by the front
    end's settings; so a changed file is computed anew, and only that. An interrupted run goes on where it was: every
    `CLIPS_PER_PROCESS` clips of each process are a finished file.

    Rows whose audio cannot be read or whose caption is empty are skipped, announced, and listed in `skipped_file`, a
    line of JSON each (`split`, `row`, `id`, `file`, `reason`). An unreadable file is tried again by the next run.

    Args:
        rows (`Dataset`): What [`load_captions`] returns.
        feature_extractor ([`RGMCFeatureExtractor`])
        split (`str`): What messages and `skipped_file` call these rows.
        skipped_file (`Path`): Lines of other splits are kept in it, those of this split are replaced.
        max_skipped (`float`, defaults to 0.01): Largest share of skipped rows that is not an error.
        cache_dir (`str`, *optional*): Folder of the Arrow files; that of `datasets` by default.
        dtype (`str`, defaults to `"float16"`):
            Stored type, or `"float32"`: 132 or 260 MB per 1,000 clips. float16 moves a log-mel by up to 0.03 dB and the
            embedding by less than 5e-7 in cosine.
        num_proc (`int`, *optional*):
            Number of processes that decode. One that dies, hangs or takes too much memory costs one row, which is
            skipped with that reason. By default this process decodes, without such protection.
        normalization (`str`, defaults to `"paper"`): Rule of the captions, the processor's `caption_normalization`.

    Returns:
        [`ClipFeatures`] of the usable rows, in their order.

    Raises:
        `ValueError`: when more than `max_skipped` of the rows would be skipped, or all of them; another `dtype`.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"cached log-mels of type {dtype}: expected float16 or float32")
    settings = json.dumps([FRONT_END_VERSION, dtype, *(getattr(feature_extractor, name) for name in FRONT_END)])
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "rgmc_log_mel" / _digest(settings.encode())
    folder.mkdir(parents=True, exist_ok=True)
    captions = [usable_captions(texts, normalization) for texts in rows["captions"]]
    marked = sum(any(clean_caption(text) != text for text in texts) for texts in rows["captions"])
    if marked:
        logger.warning(f"{marked} of {len(rows)} rows of {split} have HTML in their captions, which is removed")
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
    _list_skipped(rows, problems, split, skipped_file, max_skipped)
    good = [row for row in range(len(rows)) if row not in problems]
    _announce_notes(
        {rows[row]["id"]: found.notes[keys[row]] for row in good if found.notes[keys[row]]}, len(good), split
    )
    positions = [found.positions[keys[row]] for row in good]
    usable = rows.select(good)
    provenance = {column: usable[column][:] for column in PROVENANCE if column in usable.column_names}
    good_captions = [captions[row] for row in good]
    return ClipFeatures(usable["id"][:], good_captions, found.clips.select(positions), provenance, normalization)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _clip_key(audio: dict) -> str | None:
    """Names a clip: by its content, else by its file's path, size and time of change. None: the row names no file."""
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
    """All clips of a cache folder: memory-mapped rows, and by key the row of a usable clip, its notes, or a problem."""

    def __init__(self, folder: Path):
        files = []
        for path in sorted(folder.glob("*.arrow")):
            try:
                files.append(Dataset.from_file(str(path)))
            except (pyarrow.ArrowInvalid, OSError) as error:
                logger.warning(f"{path} is damaged ({error}): its clips are computed anew; delete it")
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
    """Writes the log-mels of `rows` to a new Arrow file, which appears when it is complete."""
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
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
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
    """Log-mel, kinds of warnings, and why there is none."""
    log_mel, problem = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            log_mel = feature_extractor(audio)["input_features"][0, 0].numpy().astype(dtype)
        except AudioError as error:
            problem = str(error)
    return log_mel, [warning.message.kind for warning in caught if isinstance(warning.message, AudioWarning)], problem


def _list_skipped(rows: Dataset, problems: dict[int, str], split: str, skipped_file: Path, max_skipped: float):
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
    written = skipped_file.with_name(f"{skipped_file.name}.{os.getpid()}")  # other processes may be writing the same
    written.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    os.replace(written, skipped_file)
    if not problems:
        return
    row, reason = next(iter(problems.items()))
    message = (
        f"{len(problems)} of {len(rows)} rows of {split} cannot be used and are listed in {skipped_file}; the first is "
        f"row {row}, id '{rows[row]['id']}', file {rows[row]['audio']['path']}: {reason}"
    )
    if len(problems) > max_skipped * len(rows) or len(problems) == len(rows):
        raise ValueError(f"{message}. More than {max_skipped:.1%} is an error: mend them, or raise --max_skipped")
    logger.warning(message)


def _announce_notes(notes: dict[str, list[str]], clips: int, split: str):
    """One line for each kind of doubtful sound, not one for each clip."""
    ids_by_kind = defaultdict(list)
    for clip_id, kinds in notes.items():
        for kind in kinds:
            ids_by_kind[kind].append(clip_id)
    for kind, ids in ids_by_kind.items():
        logger.warning(f"{len(ids)} of {clips} clips of {split}: {kind}; the first is '{ids[0]}'")


# -- batches ----------------------------------------------------------------------------------------------------------


class TeacherForcingCollator:
    """
    Row numbers to a training batch of [`RGMCModel`]: log-mels, and candidate, separator, caption and EOS, padded on
    the right.

    Labels are the caption's tokens and its EOS; what the decoder is given, and padding, is -100 (section 3.3).

    Args:
        features ([`ClipFeatures`])
        caption_ids (`list[list[int]]`): For each row its caption's tokens with EOS.
        candidate_ids (`list[list[list[int]]]`): For each row its candidates' tokens.
        processor ([`RGMCProcessor`])
    """

    def __init__(
        self,
        features: ClipFeatures,
        caption_ids: list[list[int]],
        candidate_ids: list[list[list[int]]],
        processor: RGMCProcessor,
    ):
        self.features = features
        self.caption_ids = caption_ids
        self.candidate_ids = candidate_ids
        self.separator_token_id = processor.separator_token_id
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor | int]:
        if not rows:
            # A process without rows in the last step: every process takes part in it, this one with nothing to learn.
            batch = self([0])
            return {**batch, "labels": torch.full_like(batch["labels"], -100)}
        prompts = [join_candidates(self.candidate_ids[row], self.separator_token_id) for row in rows]
        captions = [self.caption_ids[row] for row in rows]
        shape = (len(rows), max(len(prompt) + len(caption) for prompt, caption in zip(prompts, captions)))
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for i, (prompt, caption) in enumerate(zip(prompts, captions)):
            start, end = len(prompt), len(prompt) + len(caption)
            input_ids[i, :end] = torch.tensor(prompt + caption)
            attention_mask[i, :end] = 1  # by length: the pad token is EOS in GPT-2, and EOS is learned
            labels[i, start:end] = torch.tensor(caption)
        return {
            "input_features": self.features.read(rows),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "max_label_length": max(map(len, captions)),
        }
