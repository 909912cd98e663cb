"""The steps that turn a raw corpus into a table. Each row left out is counted and listed with its reason."""

import io
import json
import os
from collections import Counter
from pathlib import Path

import pandas
import pyarrow

from clips.rows import usable_captions
from clips.tables import clean_caption
from corpora.dedup import deduplicate
from corpora.leaks import Clips, find_leaks, hash_audio
from corpora.probe import probe_files
from corpora.readers import Corpus
from corpora.splits import SPLITS, group_rows, natural_key

FIRST_COLUMNS = ["file_name", "id", "caption", "caption_original", "split", "cluster", "duration", "sampling_rate"]
FIRST_COLUMNS += ["channels", "source", "license"]
HIDDEN = {"file", "captions", "seconds", "notes", "problem", "named", "why"}  # keys not in the table
LONGER_BY = 2.0  # s by which a clip may exceed the corpus's duration: containers are not exact
LARGEST = 20  # clusters in the report


def sort_rows(corpus: Corpus, rows: list[dict]) -> list[dict]:
    """Sorts rows by their ids; for a duplicate id, the first row with a file is kept."""
    rows = sorted(
        rows,
        key=lambda row: (natural_key(row["id"]), row["file"] is None, row["file"] or "", row["captions"]),
    )
    kept: dict[str, dict] = {}
    for row in rows:
        if not row["id"]:
            corpus.reject(None, row["file"], "no_id", "neither an id nor a file name")
        elif row["id"] in kept:
            first = kept[row["id"]]["file"]
            corpus.reject(row["id"], row["file"], "double_id", f"duplicate id; the row of {first} is kept")
        else:
            kept[row["id"]] = row
    return list(kept.values())


def clean_captions(corpus: Corpus, rows: list[dict]) -> list[dict]:
    """
    Sets `caption` (without HTML) and `caption_original` (unchanged) to the captions that have words. They are not
    normalised here: the model's processor does that, by its own rule.
    """
    kept = []
    for row in rows:
        row["caption_original"] = [text for text in row["captions"] if usable_captions([text])]
        row["caption"] = [clean_caption(text) for text in row["caption_original"]]
        row.setdefault("notes", [])
        if len(row["caption"]) < len(row["captions"]):
            row["notes"].append("some of its captions have no words")
        if row["caption"] != row["caption_original"]:
            row["notes"].append("its caption had HTML, which was removed")
        if row["caption"]:
            kept.append(row)
        else:
            corpus.reject(row["id"], row["file"], "no_caption", f"none with words: {row['captions']}")
    return kept


def probe_rows(corpus: Corpus, rows: list[dict], known_file: Path, num_proc: int) -> list[dict]:
    """Keeps rows whose file exists, can be decoded, and is not longer than the corpus says (a whole video would be)."""
    named = [row for row in rows if row["file"]]
    for row in rows:
        if not row["file"]:
            reason = f"no audio file was found: {row['why']}" if row.get("why") else "no audio file was found"
            corpus.reject(row["id"], row.get("named"), "no_audio", reason)
    kept = []
    for row, found in zip(named, probe_files([row["file"] for row in named], known_file, num_proc)):
        wanted = row.get("seconds")
        if found["problem"]:
            corpus.reject(row["id"], row["file"], "broken_audio", found["problem"])
        elif wanted and found["duration"] > wanted + LONGER_BY:
            reason = f"lasts {found['duration']:.1f} s, expected a clip of {wanted:g} s: cut it out of the video first"
            corpus.reject(row["id"], row["file"], "not_the_clip", reason)
        else:
            row |= {**found, "notes": row["notes"] + found["notes"]}
            kept.append(row)
    return kept


def mark_clusters(rows: list[dict], ngram: int, threshold: float) -> dict:
    """
    Sets `cluster` of each row to the smallest id of its cluster. Rows share a cluster if any of their captions do.

    Args:
        rows (`list[dict]`):
            Rows in the order of their ids.
        ngram (`int`):
            As in `deduplicate`.
        threshold (`float`):
            As in `deduplicate`.

    Returns:
        `dict`: The number of clusters with several rows, the number of these rows, the number of clusters by size, and
        the largest clusters with examples.
    """
    captions = [caption for row in rows for caption in row["caption"]]
    _, labels = deduplicate(captions, range(len(captions)), ngram, threshold)
    labels = iter(labels.tolist())
    members: dict[int, list[dict]] = {}
    for row, group in zip(rows, group_rows([[next(labels) for _ in row["caption"]] for row in rows]).tolist()):
        members.setdefault(group, []).append(row)
        row["cluster"] = members[group][0]["id"]
    several = sorted((found for found in members.values() if len(found) > 1), key=len, reverse=True)
    return {
        "clusters": len(several),
        "rows": sum(map(len, several)),
        "sizes": dict(sorted(Counter(map(len, several)).items())),
        "largest": [
            {"id": found[0]["id"], "rows": len(found), "examples": [row["caption"][0] for row in found[:5]]}
            for found in several[:LARGEST]
        ],
    }


def drop_duplicates(corpus: Corpus, rows: list[dict]) -> list[dict]:
    """Keeps only the row with the smallest id of each cluster."""
    kept: dict[str, dict] = {}
    for row in rows:
        if row["cluster"] in kept:
            first = kept[row["cluster"]]["id"]
            corpus.reject(row["id"], row["file"], "duplicate", f"near-duplicate; {first} of its cluster is kept")
        kept.setdefault(row["cluster"], row)
    return list(kept.values())


def find_shared(rows: list[dict], output_dir: Path, ngram: int, threshold: float, num_proc: int) -> dict | None:
    """
    Finds captions and files that two splits share.

    Args:
        rows (`list[dict]`):
            Rows with their splits.
        output_dir (`Path`):
            Folder of the corpus, which keeps the files' hashes.
        ngram (`int`):
            As in `deduplicate`.
        threshold (`float`):
            As in `deduplicate`.
        num_proc (`int`):
            Number of processes that read files.

    Returns:
        `dict`: What `leakage.json` holds; None if there is only one split.
    """
    splits: dict[str, list[dict]] = {}
    for row in rows:
        splits.setdefault(row["split"], []).append(row)
    if len(splits) < 2:
        return None
    audio = {name: [{"path": row["file"], "bytes": None} for row in of] for name, of in splits.items()}
    sounds = hash_audio(audio, output_dir / "hashed.jsonl", num_proc)
    clips = {
        name: Clips([row["id"] for row in splits[name]], [row["caption"] for row in splits[name]], *sounds[name])
        for name in sorted(splits, key=(*SPLITS, *splits).index)
    }
    options = {"train_dataset": None, "ngram": ngram, "threshold": threshold, "model": None, "audio_threshold": None}
    found = find_leaks(clips, ngram, threshold)
    return {"dataset": str(output_dir), "train_split": "train", "options": options, **found}


def make_table(rows: list[dict], license: str | None, output_dir: Path) -> pandas.DataFrame:
    """Makes the table of `metadata.parquet`: paths relative to `output_dir`, captions as lists if a row has several."""
    several = any(len(row["caption"]) > 1 for row in rows)
    base = os.path.realpath(output_dir)
    records = []
    for row in rows:
        record = {"file_name": os.path.relpath(os.path.realpath(row["file"]), base), "license": license}
        record |= {name: value for name, value in row.items() if name not in HIDDEN}
        records.append(record | ({} if several else {name: row[name][0] for name in ("caption", "caption_original")}))
    table = pandas.DataFrame(records).dropna(axis=1, how="all")
    first = [name for name in FIRST_COLUMNS if name in table]
    table = table[[*first, *(name for name in table if name not in first)]]
    for name in table:
        try:
            table[[name]].to_parquet(io.BytesIO())
        except (pyarrow.ArrowException, OverflowError):  # a column of mixed kinds, or of empty objects
            table[name] = table[name].map(lambda value: json.dumps(value, ensure_ascii=False, default=str))
    return table
