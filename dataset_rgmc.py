"""
From a corpus to batches: rows of captions and audio, their log-mel features computed once, and teacher-forcing batches.

`train.py` and `eval.py` share this module. A corpus is a folder in the `audiofolder` layout, a csv, jsonl or parquet
file of paths, a folder that `save_to_disk` wrote, or the id of a Hub dataset.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas
import torch
from datasets import Array2D, Audio, Dataset, DatasetDict, Features, Value
from transformers.utils import logging

from feature_extraction_rgmc import AudioError, RGMCFeatureExtractor
from processing_rgmc import RGMCProcessor, normalize_caption
from retrieval_rgmc import join_candidates

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
LOG_MEL_SHAPE = (1001, 64)


# -- corpora ----------------------------------------------------------------------------------------------------------


def load_captions(dataset: str, split: str, caption_column: str = "caption", id_column: str = "id") -> Dataset:
    """
    One split of a corpus.

    Args:
        dataset (`str`):
            A folder in the `audiofolder` layout (`metadata.csv`, `.jsonl` or `.parquet` with `file_name` in each
            split's folder, or one for all), a csv, jsonl or parquet file with a column of paths, a `save_to_disk`
            folder, or a Hub id.
        split (`str`): Split name; the usual other names of the same split are found too (`validation`: `val`, `valid`,
        `dev`).
            `"all"` takes every row of a corpus that has no splits.
        caption_column (`str`, defaults to `"caption"`): A caption, or a list of captions, per row.
        id_column (`str`, defaults to `"id"`): Where the corpus has none, a row's id is its file name.

    Returns:
        `Dataset` with the columns `id` (unique), `audio` (`{"path", "bytes"}`) and `captions` (list of the row's
        captions as the corpus writes them).

    Raises:
        `FileNotFoundError` or `ValueError`: when the corpus, the split, a column or every row is missing, or an id
        stands twice.
    """
    rows = _load_rows(dataset, split)
    where = f"split '{split}' of {dataset}"
    if len(rows) == 0:
        raise ValueError(f"{where} is empty: expected at least one row of audio and caption")
    audio_column = next((column for column in AUDIO_COLUMNS if column in rows.column_names), None)
    for wanted, found in ((" or ".join(AUDIO_COLUMNS), audio_column), (caption_column, caption_column)):
        if found not in rows.column_names:
            raise ValueError(f"{where} has no column {wanted}: found {', '.join(rows.column_names)}")
    if id_column in rows.column_names:
        ids = [str(row_id) for row_id in rows[id_column]]
    elif FILE_COLUMN in rows.column_names:
        ids = [name or f"{split}-{row}" for row, name in enumerate(rows[FILE_COLUMN])]
    else:
        ids = [f"{split}-{row}" for row in range(len(rows))]
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
    return audio.add_column("id", ids).add_column("captions", captions, feature=datasets.List(Value("string")))


def _as_list(entry) -> list[str]:
    """A caption, a list of captions, or nothing, as a list of captions."""
    if entry is None:
        return []
    return [str(caption) for caption in entry] if isinstance(entry, (list, tuple, np.ndarray)) else [str(entry)]


def _load_rows(dataset: str, split: str) -> Dataset:
    names = next(([split, *names] for names in SPLIT_NAMES if split in names), [split])
    path = Path(dataset)
    if path.is_file():
        return _from_table(path, names)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(path)
        if isinstance(saved, DatasetDict):
            saved = saved[_find_split(names, list(saved), dataset)]
        elif names != ["all"]:
            raise ValueError(
                f"{dataset} was saved without splits: save a DatasetDict, or take every row with the split 'all'"
            )
        return _without_decoding(saved)
    if path.is_dir():
        return _from_audiofolder(path, names)
    if path.is_absolute() or dataset.startswith(".") or dataset.count("/") > 1:
        raise FileNotFoundError(
            f"{dataset} does not exist: expected a corpus's folder or file, or the id of a Hub dataset"
        )
    splits = datasets.get_dataset_split_names(dataset)
    return _without_decoding(datasets.load_dataset(dataset, split=_find_split(names, splits, dataset)))


def _from_audiofolder(path: Path, names: list[str]) -> Dataset:
    for folder in [parent / name for parent in (path, path / "data") for name in names]:
        for metadata in (folder / name for name in METADATA_FILES):
            if metadata.is_file():
                return _without_split(_read_table(metadata), metadata.parent)
    for metadata in (path / name for name in METADATA_FILES):
        if metadata.is_file():
            return _from_table(metadata, names)
    found = sorted(entry.name for entry in path.iterdir())[:10]
    raise FileNotFoundError(
        f"{path} has no split '{names[0]}': expected {path / names[0]}/ with {' or '.join(METADATA_FILES)}, "
        "or one such file in "
        f"{path} itself; found {', '.join(found) or 'an empty folder'}"
    )


def _from_table(path: Path, names: list[str]) -> Dataset:
    """
    The rows of a split: by the column `split`, by the folder that the paths begin with, or by the table's own
    name.
    """
    table = _read_table(path)
    if "split" in table.columns:
        splits = table["split"]
    elif path.stem in names or names == ["all"]:
        return _without_split(table, path.parent)
    else:
        audio_column = next((column for column in AUDIO_COLUMNS if column in table.columns), None)
        splits = (
            table[audio_column].map(lambda entry: Path(entry).parts[0]) if audio_column else pandas.Series(dtype=str)
        )
    if not set(names) & set(splits):
        raise ValueError(
            f"{path} has no split '{names[0]}': expected a column 'split', paths that begin with '{names[0]}/', "
            "or the file name "
            f"{names[0]}{path.suffix}; the split 'all' takes every row"
        )
    return _without_split(table[splits.isin(names)], path.parent)


def _first_folder(entry) -> str:
    return Path(entry).parts[0] if isinstance(entry, str) and entry else ""


def _read_table(path: Path) -> pandas.DataFrame:
    try:
        if path.suffix == ".csv":
            # As text: an id such as 007, and a caption such as "null", stay what they are.
            return pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        if path.suffix in (".jsonl", ".json"):
            return pandas.read_json(path, lines=path.suffix == ".jsonl", dtype=False)
        if path.suffix == ".parquet":
            return pandas.read_parquet(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    raise ValueError(f"{path} is not a table: expected a file that ends in .csv, .jsonl, .json or .parquet")


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


# -- features ---------------------------------------------------------------------------------------------------------


def compute_features(
    rows: Dataset,
    feature_extractor: RGMCFeatureExtractor,
    skipped_file: Path,
    max_skipped: float = 0.01,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    description: str = "Features",
) -> Dataset:
    """
    Decodes each clip once and keeps its log-mel (section 3: the crop is fixed) as float16 in an Arrow file that later
    runs reuse.

    Rows whose audio cannot be read or whose caption is empty are skipped, announced, and listed in `skipped_file`, a
    line of JSON each (`row`, `id`, `file`, `reason`).

    Args:
        rows (`Dataset`): What [`load_captions`] returns.
        feature_extractor ([`RGMCFeatureExtractor`])
        skipped_file (`Path`): Written when a row is skipped.
        max_skipped (`float`, defaults to 0.01): Largest share of skipped rows that is not an error.
        cache_dir (`str`, *optional*): Folder of the Arrow files; that of `datasets` by default.
        num_proc (`int`, *optional*): Number of processes.
        description (`str`): Shown at the progress bar.

    Returns:
        `Dataset` with `id`, `captions` and `log_mel` (`(T, F)`, dB, float16), in the order of `rows`.

    Raises:
        `ValueError`: when more than `max_skipped` of the rows would be skipped, or all of them.
    """
    fingerprint = _fingerprint(rows, feature_extractor)
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "rgmc_log_mel"
    folder.mkdir(parents=True, exist_ok=True)
    features = rows.map(
        _extract,
        with_rank=True,
        fn_kwargs={"feature_extractor": feature_extractor},
        remove_columns=["audio"],
        features=Features(
            {
                "id": Value("string"),
                "captions": datasets.List(Value("string")),
                "log_mel": Array2D(LOG_MEL_SHAPE, "float16"),
                "problem": Value("string"),
            }
        ),
        writer_batch_size=256,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        desc=description,
    )
    problems = features["problem"]
    good = [row for row, problem in enumerate(problems) if problem is None]
    if len(good) < len(rows):
        _announce_skipped(rows, problems, skipped_file, max_skipped)
        features = features.select(good)
    return features.remove_columns("problem")


def _extract(row: dict, rank: int | None, feature_extractor: RGMCFeatureExtractor) -> dict:
    if rank is not None:
        torch.set_num_threads(1)  # one process per core already
    problem, log_mel = None, np.zeros(LOG_MEL_SHAPE, np.float16)
    captions = [normalize_caption(caption) for caption in row["captions"] if caption]
    if not any(captions):
        problem = f"empty caption: {row['captions']}"
    elif not row["audio"]["path"] and row["audio"]["bytes"] is None:
        problem = "no audio: the row names no file"
    else:
        try:
            log_mel = feature_extractor(row["audio"])["input_features"][0, 0].numpy().astype(np.float16)
        except AudioError as error:
            problem = str(error)
    return {"captions": [caption for caption in captions if caption], "log_mel": log_mel, "problem": problem}


def _announce_skipped(rows: Dataset, problems: list[str | None], skipped_file: Path, max_skipped: float):
    skipped = [
        {"row": row, "id": rows[row]["id"], "file": rows[row]["audio"]["path"], "reason": problem}
        for row, problem in enumerate(problems)
        if problem is not None
    ]
    skipped_file.parent.mkdir(parents=True, exist_ok=True)
    skipped_file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in skipped), encoding="utf-8")
    first = skipped[0]
    message = (
        f"{len(skipped)} of {len(rows)} rows cannot be used and are listed in {skipped_file}; the first is "
        f"row {first['row']}, "
        f"id '{first['id']}', file {first['file']}: {first['reason']}"
    )
    if len(skipped) > max_skipped * len(rows) or len(skipped) == len(rows):
        raise ValueError(f"{message}. More than {max_skipped:.1%} is an error: mend them, or raise --max_skipped")
    logger.warning(message)


def _fingerprint(rows: Dataset, feature_extractor: RGMCFeatureExtractor) -> str:
    """
    Names the features of these files: by path, size and time of change, or by content, and by the front end's
    settings.
    """
    digest = hashlib.sha256(feature_extractor.to_json_string().encode())
    for row in rows:
        path, content = row["audio"]["path"], row["audio"]["bytes"]
        if content is None and path and Path(path).is_file():
            status = Path(path).stat()
            content = f"{status.st_size} {status.st_mtime_ns}".encode()
        digest.update(repr((row["id"], row["captions"], path)).encode())
        digest.update(content or b"")
    return digest.hexdigest()[:32]


# -- batches ----------------------------------------------------------------------------------------------------------


class TeacherForcingCollator:
    """
    Row numbers to a training batch of [`RGMCModel`]: log-mels, and candidate, separator, caption and EOS, padded on
    the right.

    Labels are the caption's tokens and its EOS; what the decoder is given, and padding, is -100 (section 3.3).

    Args:
        features (`Dataset`): What [`compute_features`] returns.
        caption_ids (`list[list[int]]`): For each row its caption's tokens with EOS.
        candidate_ids (`list[list[list[int]]]`): For each row its candidates' tokens.
        processor ([`RGMCProcessor`])
    """

    def __init__(
        self,
        features: Dataset,
        caption_ids: list[list[int]],
        candidate_ids: list[list[list[int]]],
        processor: RGMCProcessor,
    ):
        self.log_mels = log_mel_reader(features)
        self.caption_ids = caption_ids
        self.candidate_ids = candidate_ids
        self.separator_token_id = processor.separator_token_id
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor]:
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
            "input_features": read_log_mels(self.log_mels, rows),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
        }


def log_mel_reader(features: Dataset) -> Dataset:
    return features.select_columns(["log_mel"]).with_format("torch", dtype=torch.float16)


def read_log_mels(log_mels: Dataset, rows: list[int]) -> torch.Tensor:
    """Log-mels `(B, 1, T, F)`, float32, of the rows of a [`log_mel_reader`]."""
    return log_mels[rows]["log_mel"].float().unsqueeze(1)
