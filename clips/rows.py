"""
The rows of a corpus: captions and where their audio is.

A corpus is a folder in the `audiofolder` layout, a csv, tsv, jsonl or parquet file of paths, a `save_to_disk` folder,
or the id of a Hub dataset.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow.parquet
from datasets import Audio, Dataset, DatasetDict, Features, Value
from transformers.utils import logging

from captions_rgmc import normalize_caption
from clips.tables import (
    TABLES,
    check_names,
    clean_caption,
    is_placeholder,
    match_columns,
    read_rows,
    read_text,
    text_of,
)
from songs_rgmc import PROVENANCE

logger = logging.get_logger(__name__)

SPLIT_NAMES = [
    ["train", "training"],
    ["validation", "val", "valid", "dev"],
    ["test", "eval", "evaluation"],
]
AUDIO_COLUMNS = ["audio", "file_name", "audio_file_name", "path", "file"]
METADATA_FILES = ["metadata.csv", "metadata.jsonl", "metadata.parquet"]
AUDIO_FEATURE = {"path": Value("string"), "bytes": Value("binary")}
FILE_COLUMN = "__file__"  # the file name as the table gives it, without the folder


def load_captions(
    dataset: str,
    split: str,
    caption_column: str = "caption",
    id_column: str = "id",
    more_columns: Sequence[str] = (),
) -> Dataset:
    """
    Loads one split of a corpus.

    Args:
        dataset (`str`):
            A folder in the `audiofolder` layout (`metadata.csv`, `.jsonl` or `.parquet` with `file_name` in each
            split's folder, or one for all), a csv, tsv, jsonl or parquet file with a column of paths, a `save_to_disk`
            folder, or a Hub id. A column name in another case (`Caption`) is accepted and announced.
        split (`str`):
            Name of the split. Its usual other names are found too (`validation`: `val`, `valid`, `dev`). `"all"` takes
            every row of a corpus without splits.
        caption_column (`str`, defaults to `"caption"`):
            Column with a caption, or a list of captions, per row.
        id_column (`str`, defaults to `"id"`):
            Column of the ids. A row without an id goes by the name of its file.
        more_columns (`Sequence[str]`, *optional*):
            Other columns to load, each cell as a list of texts: one, several where the cell is a list, or none.

    Returns:
        `Dataset`: Columns `id` (unique), `audio` (`{"path", "bytes"}`), `captions` (list of the row's captions as the
        corpus writes them), `more_columns` and, where the corpus has them, `source` and `license`.

    Raises:
        `FileNotFoundError` or `ValueError`: If the corpus, the split or a column is missing or the split is empty, if a
        row of a table cannot be read, or for a duplicate id or column.
    """
    rows = _load_rows(dataset, split, (caption_column, id_column))
    where = f"split '{split}' of {dataset}"
    if len(rows) == 0:
        raise ValueError(f"{where} is empty: expected at least one row of audio and caption")
    audio_column = next((column for column in AUDIO_COLUMNS if column in rows.column_names), None)
    needed = [(" or ".join(AUDIO_COLUMNS), audio_column), *((name, name) for name in (caption_column, *more_columns))]
    for wanted, found in needed:
        if found not in rows.column_names:
            columns = [column for column in rows.column_names if column != FILE_COLUMN]
            raise ValueError(f"{where} has no column {wanted}: found {', '.join(columns)}")
    names = rows[FILE_COLUMN][:] if FILE_COLUMN in rows.column_names else [""] * len(rows)
    ids = [name or f"{split}-{row}" for row, name in enumerate(names)]
    if id_column in rows.column_names:
        own_ids = [text_of(row_id).strip() for row_id in rows[id_column]]
        without = own_ids.count("")
        if without:
            logger.warning_once(f"{where}: {without} of {len(ids)} rows have no id and go by the names of their files")
        ids = [own or name for own, name in zip(own_ids, ids)]
    repeated = {row_id: count for row_id, count in Counter(ids).items() if count > 1}
    if repeated:
        row_id = next(iter(repeated))
        where_rows = [row for row, other in enumerate(ids) if other == row_id]
        raise ValueError(f"{where} has {len(repeated)} duplicate ids; the first is '{row_id}' in rows {where_rows[:5]}")
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
    for column in more_columns:
        if column in found.column_names:
            raise ValueError(f"{where}: the column {column} already has a meaning of its own: name another one")
        cells = [cell if isinstance(cell, (list, tuple, np.ndarray)) else [cell] for cell in rows[column]]
        texts = [[text_of(value) for value in cell if text_of(value)] for cell in cells]
        found = found.add_column(column, texts, feature=datasets.List(Value("string")))
    return found


def _as_list(entry) -> list[str]:
    """Turns a caption, a list of captions, or None into a list of captions."""
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
                f"{dataset} was saved without splits: save a DatasetDict, or use the split 'all' to take every row"
            )
        return _without_decoding(_rename(saved, columns, dataset))
    if path.is_dir():
        return _from_audiofolder(path, names, columns)
    if path.is_absolute() or dataset.startswith(".") or dataset.count("/") > 1:
        raise FileNotFoundError(
            f"{dataset} does not exist: expected the folder or file of a corpus, or the id of a Hub dataset"
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
    folder = next((path / name for name in names if (path / name).is_dir()), None)
    if folder:
        raise FileNotFoundError(
            f"{folder} has no {' or '.join(METADATA_FILES)}: expected one with the columns file_name and {columns[0]}"
        )
    found = sorted(entry.name for entry in path.iterdir())[:10]
    raise FileNotFoundError(
        f"{path} has no split '{names[0]}': found {', '.join(found) or 'an empty folder'}; "
        f"expected {' or '.join(METADATA_FILES)} in {path / names[0]}/ or in {path} itself"
    )


def _from_table(path: Path, names: list[str], columns: tuple[str, str]) -> Dataset:
    """Selects the rows of a split: by the column `split`, by the first folder of the paths, or by the table's name."""
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
            f"{path} has no split '{names[0]}': found the columns {', '.join(table.columns)}; "
            f"expected a column 'split', paths that begin with '{names[0]}/' or the file name {names[0]}{path.suffix}; "
            "the split 'all' takes every row"
        )
    return _without_split(table[splits.isin(names)], path.parent)


def _first_folder(entry) -> str:
    return Path(entry).parts[0] if isinstance(entry, str) and entry else ""


def read_table(path: Path, columns: tuple[str, str] = ("caption", "id")) -> pandas.DataFrame:
    """
    Reads a csv or tsv (all columns as text), jsonl, json or parquet file.

    Args:
        path (`Path`):
            The file.
        columns (`tuple[str, str]`, defaults to `("caption", "id")`):
            Names of the caption and the id column. Columns that differ from an expected name only in case are renamed.

    Returns:
        `pandas.DataFrame`: The rows as objects, or a parquet file's own types.

    Raises:
        `ValueError`: For any other file, or if a part of it is broken.
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
            # As objects, so that the id 007 keeps its zeros, and 7 stays 7 where other rows have no id.
            table = pandas.DataFrame(list(rows), columns=names, dtype=object)
        else:
            raise ValueError(f"{path} is not a table: expected a file that ends in {', '.join(TABLES)} or .json")
    except (OSError, pyarrow.ArrowException, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as {suffix[1:]}: {error}") from error
    return table.rename(columns=_other_letters(list(table.columns), columns, path))


def _refuse_row(reason: str):
    raise ValueError(f"{reason}. Repair it; prepare.py leaves such rows out and counts them")


def _other_letters(found: list[str], columns: tuple[str, str], where: str | Path) -> dict[str, str]:
    """Maps a corpus's column names to ours where they differ only in case."""
    of_files = () if set(AUDIO_COLUMNS) & set(found) else AUDIO_COLUMNS  # an exact name needs no substitute
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
    """Casts audio columns to paths and bytes: the feature extractor decodes them, without torchcodec."""
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
    """Normalises the captions of a row without their HTML; drops placeholders and captions without words."""
    return [normalized for _, normalized in _usable(texts, normalization)]


def original_captions(texts: list[str], normalization: str = "paper") -> list[str]:
    """What [`usable_captions`] normalises: the captions in the corpus's wording, each on one line."""
    return [original for original, _ in _usable(texts, normalization)]


def _usable(texts: list[str], normalization: str) -> Iterator[tuple[str, str]]:
    """The usable captions as the corpus writes them, and normalised."""
    for text in texts:
        original = " ".join(clean_caption(text).split())
        normalized = "" if is_placeholder(original) else normalize_caption(original, normalization)
        if normalized:
            yield original, normalized
