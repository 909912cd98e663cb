"""Turns songs into what a datastore holds: captions as rows, and embeddings."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import torch
from transformers.utils import logging

if TYPE_CHECKING:
    try:
        import datasets
    except ImportError:
        pass

try:
    from .processing_rgmc import RGMCProcessor
    from .search_rgmc import BLOCK_ROWS, decode_embeddings, encode_embeddings
except ImportError:
    from processing_rgmc import RGMCProcessor
    from search_rgmc import BLOCK_ROWS, decode_embeddings, encode_embeddings

COLUMNS = ["id", "caption", "input_ids"]
PROVENANCE = ["source", "license"]  # of a caption: optional columns of a corpus, `None` if not known
ORIGINAL = "original"  # column of the captions as the corpus writes them, `None` if not known


def make_rows(
    ids: list[str],
    captions: list[str],
    processor,
    source: list[str | None] | None = None,
    license: list[str | None] | None = None,
    original: list[str | None] | None = None,
) -> "datasets.Dataset":
    """
    Makes the rows of a [`CaptionDatastore`] from captions as the model is trained on them, and as the corpus writes
    them (`original`).
    """
    datasets, _ = import_datasets()
    tokens = [processor.encode_candidate(caption) for caption in captions]
    others = {"source": source, "license": license, ORIGINAL: original}
    others = {name: column or [None] * len(ids) for name, column in others.items()}
    return datasets.Dataset.from_dict({"id": ids, "caption": captions, "input_ids": tokens, **others})


def read_songs(dataset: "datasets.Dataset | list[dict]", processor) -> tuple["datasets.Dataset", Iterator]:
    """Reads what [`CaptionDatastore.build`] is given as the rows of a datastore and an iterator over the sounds."""
    datasets, _ = import_datasets()
    if isinstance(dataset, datasets.Dataset):
        for column, feature in dataset.features.items():
            if isinstance(feature, datasets.Audio):  # the processor decodes
                dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    songs: dict[str, list] = {name: [] for name in ("ids", "captions", ORIGINAL, *PROVENANCE)}
    dataset = list(dataset) if isinstance(dataset, Iterator) else dataset  # it is read twice
    for number, row in enumerate(dataset):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"Row {number} of the datastore to be built is a {type(row).__name__}, in a {type(dataset).__name__}: "
                "expected a datasets.Dataset or a list of dicts with `audio`, `caption` and `id` "
                '(pass one split of a DatasetDict, `.to_dict("records")` of a DataFrame, '
                'or `load_dataset("audiofolder", ...)` for a folder)'
            )
        audio = row.get("audio")
        path = audio.get("path") if isinstance(audio, dict) else audio
        row_id = row.get("id")
        if row_id in (None, ""):
            row_id = Path(path).name if isinstance(path, (str, os.PathLike)) else None
        captions = [text for name in ("captions", "caption") for text in _texts(row.get(name))]
        original = next(filter(processor.normalize, captions), None)
        caption = None if original is None else processor.normalize(original)
        for name, value in (("audio", audio), ("caption", caption), ("id", row_id)):
            if value is None:
                raise ValueError(
                    f"Row {number} of the datastore to be built (id {row_id!r}) has no {name}: "
                    f"found the columns {', '.join(row)}"
                )
        songs["ids"].append(str(row_id))
        songs["captions"].append(caption)
        songs[ORIGINAL].append(" ".join(original.split()))
        for name in PROVENANCE:
            if not isinstance(row.get(name), str | None):
                raise ValueError(f"Row {number} (id {row_id!r}): expected a text as {name}, got {row[name]!r}")
            songs[name].append(row.get(name))
    check_ids(songs["ids"])
    rows = make_rows(songs.pop("ids"), songs.pop("captions"), processor, **songs)
    return rows, (row["audio"] for row in dataset)


def _texts(entry) -> list[str]:
    """Lists the texts in a caption, a list of captions, or an empty cell (NaN in a table)."""
    entries = [entry] if isinstance(entry, str) or not isinstance(entry, Iterable) else entry
    return [text for text in entries if isinstance(text, str)]


@torch.no_grad()
def embed_songs(model, ids: list[str], sounds: Iterator, processor, batch_size: int, storage: str) -> np.ndarray:
    embeddings = np.empty((len(ids), model.config.audio_config.projection_dim), storage)
    training = model.training
    model.eval()
    progress = logging.tqdm(total=len(ids), desc="Embedding songs", unit="clip", leave=False)
    try:
        for start in range(0, len(ids), batch_size):
            log_mels = []
            for row_id, audio in zip(ids[start : start + batch_size], sounds):
                try:
                    log_mels.append(processor(audio=[audio])["input_features"])
                except ValueError as error:  # includes AudioError
                    raise ValueError(f"The song '{row_id}' cannot be embedded: {error}") from error
            embeds = model.embed_audio(torch.cat(log_mels)).cpu().numpy()
            embeddings[start : start + batch_size] = encode_embeddings(embeds, storage)
            progress.update(len(log_mels))
    finally:
        progress.close()
        model.train(training)
    return embeddings


def processor_of(model):
    if not model.name_or_path:
        raise ValueError("This model was not loaded from a checkpoint, so it has no processor: pass processor=")
    revision = {"revision": model.loaded_revision} if model.loaded_revision else {}
    return RGMCProcessor.from_pretrained(model.name_or_path, **revision)


def check_ids(ids: list[str]):
    if len(set(ids)) == len(ids):
        return
    repeated = [row_id for row_id, count in Counter(ids).items() if count > 1]
    raise ValueError(f"A datastore's ids must be unique: found {len(repeated)} duplicate ids, such as {repeated[:3]}")


def import_datasets():
    try:
        import datasets
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("A datastore needs datasets: `pip install datasets faiss-cpu`") from error
    return datasets, pyarrow


def as_stored(rows: "datasets.Dataset") -> "datasets.Dataset":
    """Casts rows to the stored columns and types, without any other columns, in memory."""
    _, pyarrow = import_datasets()
    table = rows.with_format("arrow")[:]
    types = dict.fromkeys([*COLUMNS, *PROVENANCE, ORIGINAL], pyarrow.string())
    types["input_ids"] = pyarrow.list_(pyarrow.int64())
    try:
        columns = {
            name: table[name].cast(kind) if name in table.column_names else pyarrow.nulls(len(table), kind)
            for name, kind in types.items()
        }
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"A datastore's rows need texts and lists of tokens, found {rows.features} ({error}): rebuild it"
        ) from error
    return as_dataset(pyarrow.table(columns))


def measure_tokens(rows: "datasets.Dataset") -> tuple[int, int]:
    """
    Returns the largest token of stored rows (-1 if there is none) and the length of the longest caption in tokens.

    Raises:
        `ValueError`: If a row lacks its id, caption or tokens, or if a token is negative.
    """
    _, pyarrow = import_datasets()
    compute = pyarrow.compute
    table = rows.with_format("arrow")[:]
    tokens = compute.list_flatten(table["input_ids"])
    smallest, largest = compute.min_max(tokens).as_py().values()
    lacking = [name for name in COLUMNS if table[name].null_count]
    if lacking or tokens.null_count or (smallest or 0) < 0:
        raise ValueError(
            f"Each row of a datastore needs {', '.join(COLUMNS)}, with no token below 0; "
            f"empty in some row: {', '.join(lacking) or 'none'}, smallest token: {smallest}"
        )
    longest = compute.max(compute.list_value_length(table["input_ids"])).as_py()
    return -1 if largest is None else largest, longest or 0


def as_dataset(table) -> "datasets.Dataset":
    datasets, _ = import_datasets()
    # By default a dataset hashes all its rows for its fingerprint.
    return datasets.Dataset(table, fingerprint=uuid4().hex)


def check_rows(rows: "datasets.Dataset", embeddings: np.ndarray):
    missing = [column for column in COLUMNS if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"A datastore's rows need the columns {COLUMNS}; missing: {missing}, found: {rows.column_names}"
        )
    if embeddings.ndim != 2 or len(rows) != len(embeddings):
        raise ValueError(
            f"A datastore needs one embedding per caption: {len(rows)} captions, embeddings {embeddings.shape}"
        )
    check_ids(rows["id"][:])
    wrong: list[int] = []
    for start in range(0, len(embeddings), BLOCK_ROWS):
        block = embeddings[start : start + BLOCK_ROWS]
        block = decode_embeddings(block) if block.dtype == np.int8 else block.astype(np.float32, copy=False)
        norms = np.sqrt(np.einsum("ij,ij->i", block, block))  # np.linalg.norm would square a copy of them all
        wrong += (start + np.flatnonzero(~(np.abs(norms - 1) < 1e-3))).tolist()
    if wrong:
        raise ValueError(
            f"A datastore's embeddings must be unit vectors, as `RGMCModel.embed_audio` makes them: "
            f"{len(wrong)} of {len(embeddings)} are not, such as that of '{rows[wrong[0]]['id']}'"
        )
