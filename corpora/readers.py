"""
Readers of raw corpora: each gives rows of an id, a file and captions, and says why it left a row out.
"""

import ast
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pandas
from tqdm.auto import tqdm

from corpora.clips import find_clips
from dataset_rgmc import AUDIO_COLUMNS, METADATA_FILES, SPLIT_NAMES, read_table

NOT_AUDIO = {".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet", ".arrow", ".md", ".html", ".png", ".jpg", ".webp"}
NOT_AUDIO |= {".part", ".ytdl", ".vtt", ".srt", ".tmp", ".lock", ".py", ".yaml", ".pdf", ".zip", ".tar", ".gz"}
# What we write: a table's own columns of these names are renamed.
RESERVED = {*AUDIO_COLUMNS, "caption", "captions", "caption_original", "cluster", "duration", "sampling_rate"}
RESERVED |= {"channels", "id", "split", "file", "named", "seconds", "notes", "problem"}
OF_FILES = {"no_json", "second_file", "other_file"}  # kinds of rejections: of files that belong to no listed row
PSEUDO_CAPTIONS = ["caption_writing", "caption_summary", "caption_paraphrase"]


@dataclass
class Corpus:
    """
    What a reader found.

    Args:
        rows (`list[dict]`):
            `id` (str), `file` (path, or None where none was found), `captions` (list of str), perhaps `split` and
            `seconds` (what the file must last), and the corpus's other columns.
        rejected (`list[dict]`): `id`, `file`, `kind`, `reason` of each row that is left out.
        license (`str`, *optional*): Of the captions.
        merged (`int`): Captions that joined an earlier row.
    """

    rows: list[dict]
    rejected: list[dict] = field(default_factory=list)
    license: str | None = None
    merged: int = 0

    def reject(self, row_id: str | None, file: str | None, kind: str, reason: str):
        self.rejected.append({"id": row_id, "file": file, "kind": kind, "reason": reason})


# -- Audiostock -------------------------------------------------------------------------------------------------------


@dataclass
class AudiostockArguments:
    raw_dir: str = field(metadata={"help": "Folder, with any subfolders, of audio files beside JSON of the same stem."})


def read_audiostock(args: AudiostockArguments, output_dir: Path) -> Corpus:
    """
    Audiostock as LAION-Audio's preprocessing leaves it: `17.flac` beside `17.json`, which holds

        {"text": [short, long], "tag": […], "original_data": {"id": …, "URL": …, "purpose": …, "impression": …}}

    The first text is the short caption (section 5: the only one that is used). A text alone, and `short_text` and
    `long_text`, are understood too; `tag` or `tags`, `purpose`, `impression` and `scene` (or `tags_purpose` and so on)
    are lists, or joined by commas, beside the text or within `original_data`. The id is the JSON's own, else the stem,
    else, where the same stem stands in several folders, the path.
    """
    base = Path(args.raw_dir)
    texts, sounds, corpus = {}, {}, Corpus([])
    for file in walk(base):
        stem, suffix = os.path.splitext(file)
        if suffix == ".json":
            texts[stem] = file
        elif suffix.lower() not in NOT_AUDIO:
            if stem in sounds:
                corpus.reject(None, file, "second_file", f"{sounds[stem]} has the same stem")
            sounds.setdefault(stem, file)
    if not texts:
        raise FileNotFoundError(f"{base} holds no .json: expected audio files beside JSON of the same stem")
    names = Counter(os.path.basename(stem) for stem in texts)
    for stem, file in tqdm(texts.items(), desc="Reading JSON", unit="file"):
        name = os.path.basename(stem)
        name = name if names[name] == 1 else Path(os.path.relpath(stem, base)).as_posix()
        sound = sounds.pop(stem, None)
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
            row = _audiostock_row(content, name)
        except (ValueError, OSError) as error:
            corpus.reject(name, sound or file, "broken_json", f"{file}: {error}")
            continue
        corpus.rows.append({**row, "file": sound})
    for stem, file in sounds.items():
        corpus.reject(os.path.basename(stem), file, "no_json", "no JSON of the same stem")
    return corpus


def _audiostock_row(content: dict, name: str) -> dict:
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}; expected an object with the key 'text'")
    original = content.get("original_data")
    fields = {**(original if isinstance(original, dict) else {}), **content}
    texts = fields.get("text", [fields.get("short_text"), fields.get("long_text")])
    texts = texts if isinstance(texts, list) else [texts]
    short, long = ([text if isinstance(text, str) else "" for text in texts] + ["", ""])[:2]
    return {
        "id": str(fields.get("id") or name),
        "captions": [short],
        "caption_long": long or None,
        "title": fields.get("title") and str(fields["title"]),
        "tags": _tags(fields.get("tag", fields.get("tags"))),
        **{key: _tags(fields.get(key, fields.get(f"tags_{key}"))) for key in ("purpose", "impression", "scene")},
        "source": fields.get("URL") or fields.get("url"),
    }


def _tags(value) -> list[str]:
    parts = value if isinstance(value, list) else str(value or "").split(",")
    return [text for text in (str(part).strip() for part in parts) if text]


# -- MusicCaps --------------------------------------------------------------------------------------------------------


@dataclass
class MusicCapsArguments:
    csv: str = field(metadata={"help": "musiccaps-public.csv."})
    audio_dir: str = field(metadata={"help": "Folder of clips that are named by YouTube id."})


def read_musiccaps(args: MusicCapsArguments, output_dir: Path) -> Corpus:
    """MusicCaps' public csv and clips that somebody cut: `find_clips` says how these may be named."""
    table = read_table(Path(args.csv))
    starts = {ytid: float(start) for ytid, start in zip(table["ytid"], table["start_s"])}
    clips, others = find_clips([file for file in walk(Path(args.audio_dir)) if _may_be_audio(file)], starts)
    corpus = Corpus([], license="CC BY-SA 4.0")
    for record in table.to_dict("records"):
        start, end = float(record["start_s"]), float(record["end_s"])
        corpus.rows.append(
            {
                "id": record["ytid"],
                "file": clips.get(record["ytid"]),
                "captions": [record["caption"]],
                "split": "test" if record["is_audioset_eval"] == "True" else "train",
                "seconds": end - start,
                "start_s": start,
                "end_s": end,
                "aspect_list": [str(aspect) for aspect in ast.literal_eval(record["aspect_list"])],
                "audioset_positive_labels": record["audioset_positive_labels"].split(","),
                "author_id": record["author_id"],
                "is_balanced_subset": record["is_balanced_subset"] == "True",
                "source": f"https://www.youtube.com/watch?v={record['ytid']}&t={start:g}s",
            }
        )
    for file, reason in others.items():
        corpus.reject(None, file, "other_file", reason)
    return corpus


# -- tables, folders, Hub datasets ------------------------------------------------------------------------------------


@dataclass
class TableArguments:
    source: str = field(
        metadata={
            "help": "csv, jsonl or parquet file, audiofolder, folder of audio files beside .txt of the same stem "
            "(a line is a caption), save_to_disk folder, or Hub id."
        }
    )
    audio_dir: str | None = field(default=None, metadata={"help": "Where the files are; beside the table if unset."})
    caption_columns: list[str] = field(
        default_factory=lambda: ["caption"], metadata={"help": "Columns of a caption or of a list of captions."}
    )
    id_column: str = field(default="id", metadata={"help": "Column of the ids; file names where it is missing."})
    file_column: str | None = field(
        default=None,
        metadata={"help": "Column of the files, found by path or by stem; the ids' files where there is none."},
    )
    split_column: str = field(default="split", metadata={"help": "Column of splits, which are kept where it exists."})
    keep_splits: bool = field(default=True, metadata={"help": "Whether the corpus's own splits are kept."})
    merge_ids: bool = field(default=False, metadata={"help": "Rows of one id are captions of one clip."})
    license: str | None = field(default=None, metadata={"help": "What the column license says."})


@dataclass
class SongDescriberArguments:
    csv: str = field(metadata={"help": "song_describer.csv."})
    audio_dir: str = field(metadata={"help": "Folder of NN/<track_id>.2min.mp3."})
    valid_subset: bool = field(default=False, metadata={"help": "Only the captions of the valid subset."})


def read_song_describer(args: SongDescriberArguments, output_dir: Path) -> Corpus:
    """The Song Describer Dataset, 1 to 5 captions for a track: all of it is for evaluation."""
    table = read_table(Path(args.csv))
    corpus = Corpus([], license="CC BY-SA 4.0")
    if args.valid_subset:
        valid = table["is_valid_subset"] == "True"
        for record in table[~valid].to_dict("records"):
            corpus.reject(record["track_id"], record["path"], "not_valid_subset", "is_valid_subset is not True")
        table = table[valid]
    options = TableArguments(args.csv, args.audio_dir, id_column="track_id", file_column="path", merge_ids=True)
    _add_table(corpus, table.assign(split="test"), options, Path(args.audio_dir), output_dir / "audio")
    return corpus


def read_any(args: TableArguments, output_dir: Path) -> Corpus:
    """
    A table, folder or Hub dataset by its column names. Sounds that a dataset holds itself are written to
    `output_dir/audio`.
    """
    corpus = Corpus([], license=args.license)
    source = Path(args.source)
    places = [folder / name for folder in (source, *_subfolders(source)) for name in METADATA_FILES]
    tables = [source] if source.is_file() else [place for place in places if place.is_file()]
    if tables:
        for path in tables:
            table = read_table(path)
            part = path.parent.name if source.is_dir() and path.parent != source else ""
            if part and args.split_column not in table:
                table[args.split_column] = part
            _add_table(corpus, table, args, path.parent, output_dir / "audio", part)
    elif source.is_dir() and not any((source / name).is_file() for name in ("dataset_dict.json", "state.json")):
        _add_text_files(corpus, source)
    else:
        loaded = datasets.load_from_disk(source) if source.is_dir() else datasets.load_dataset(args.source)
        parts = loaded.items() if isinstance(loaded, datasets.DatasetDict) else [(None, loaded)]
        for split, rows in parts:
            table = _dataset_table(rows, output_dir / "audio", f"{split or 'rows'}", args)
            if split and args.split_column not in table:
                table[args.split_column] = split
            _add_table(corpus, table, args, output_dir, output_dir / "audio")
    if not args.keep_splits:
        for row in corpus.rows:
            row.pop("split", None)
    return corpus


def _add_table(
    corpus: Corpus, table: pandas.DataFrame, args: TableArguments, folder: Path, sounds_dir: Path, part: str = ""
):
    """Adds a table's rows. `part` is the subfolder that it describes, whose files may have the names of another's."""
    captions = [name for name in args.caption_columns if name in table]
    files = [args.file_column] if args.file_column else AUDIO_COLUMNS
    file_column = next((name for name in files if name in table), None)
    if file_column and len(table) and isinstance(table[file_column].iloc[0], dict):
        table = _with_paths(table, file_column, table[file_column], sounds_dir, part or "row", args.id_column)
    id_column = args.id_column if args.id_column in table else None
    if len(captions) < len(args.caption_columns) or not (file_column or id_column):
        raise ValueError(
            f"columns {', '.join(map(str, table.columns))}: expected the captions {args.caption_columns} "
            f"(--caption_columns), and files {files} (--file_column) or ids '{args.id_column}' (--id_column)"
        )
    base = Path(args.audio_dir) if args.audio_dir else folder
    by_stem: dict[str, str] | None = None
    rows: dict[str, dict] = {}
    for record in table.to_dict("records"):
        named = record.get(file_column)
        named = named if isinstance(named, str) and named else None
        row_id = (_text(record[id_column]) if id_column else "") or os.path.join(part, named or "")
        texts = [text for name in captions for text in _texts(record[name])]
        if args.merge_ids and row_id in rows:
            rows[row_id]["captions"] += texts
            corpus.merged += 1
            continue
        file = str(base / named) if named and (base / named).is_file() else None
        if file is None:
            by_stem = _by_stem(base) if by_stem is None else by_stem
            stem = Path(named or row_id).stem
            file = by_stem.get(stem) or by_stem.get(row_id)
        used = {args.id_column, args.split_column, file_column, *captions}
        row = {"id": row_id, "file": file, "captions": texts, "named": named}
        split = _split_name(record.get(args.split_column))
        row.update({"split": split} if split else {})
        extra = {str(key): _plain(value) for key, value in record.items() if key not in used}
        row.update({f"{key}_original" if key in RESERVED else key: value for key, value in extra.items()})
        rows[row_id] = row
        corpus.rows.append(row)


def _add_text_files(corpus: Corpus, folder: Path):
    files = list(walk(folder))
    texts = {os.path.splitext(file)[0]: file for file in files if file.endswith(".txt")}
    sounds: dict[str, str] = {}
    for file in filter(_may_be_audio, files):
        first = sounds.setdefault(os.path.splitext(file)[0], file)
        if first != file:
            corpus.reject(None, file, "second_file", f"{first} has the same stem")
    if not texts:
        raise FileNotFoundError(f"{folder} holds no {' or '.join(METADATA_FILES)}, and no .txt beside audio files")
    for stem in sorted(texts.keys() | sounds.keys()):
        row = {"id": Path(os.path.relpath(stem, folder)).as_posix(), "file": sounds.get(stem)}
        try:
            text = Path(texts[stem]).read_text(encoding="utf-8-sig") if stem in texts else ""
        except ValueError as error:
            corpus.reject(row["id"], texts[stem], "broken_text", str(error))
            continue
        corpus.rows.append({**row, "captions": [line for line in text.splitlines() if line.strip()]})


def _dataset_table(rows: datasets.Dataset, folder: Path, prefix: str, args: TableArguments) -> pandas.DataFrame:
    """A dataset as a table, in which sounds are paths."""
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Audio):
            rows = rows.cast_column(column, datasets.Audio(decode=False))
    column = args.file_column or next((name for name in AUDIO_COLUMNS if name in rows.column_names), None)
    if not isinstance(rows.features.get(column), (dict, datasets.Audio)):
        return rows.to_pandas()
    return _with_paths(rows.remove_columns([column]).to_pandas(), column, rows[column], folder, prefix, args.id_column)


def _with_paths(
    table: pandas.DataFrame, column: str, sounds: Iterable[dict], folder: Path, prefix: str, id_column: str
) -> pandas.DataFrame:
    """The table with paths for the sounds, `{"path", "bytes"}`; bytes become files of `folder`.
    Where it has no ids, they are numbers.
    """
    paths, names = [], []
    for number, sound in enumerate(tqdm(sounds, desc="Reading sounds", unit="clip")):
        path, content = sound["path"], sound["bytes"]
        names.append(f"{prefix}-{number:06d}")
        if content is not None:
            file = folder / f"{names[-1]}{Path(path or '').suffix}"
            folder.mkdir(parents=True, exist_ok=True)
            if not file.is_file() or file.read_bytes() != content:
                file.write_bytes(content)
            path = str(file.resolve())
        paths.append(path)
    table = table.assign(**{column: paths})
    return table if id_column in table else table.assign(**{id_column: names})


def _text(value) -> str:
    return "" if value is None or value != value else str(value)


def _texts(value) -> list[str]:
    return list(map(_text, value)) if isinstance(value, (list, tuple, np.ndarray)) else [_text(value)]


def _plain(value):
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return None if value != value else value


def _split_name(value) -> str | None:
    """Our name of a split; None where a row names none. A name that no split of ours has stays as it is."""
    if not isinstance(value, str) or not value:
        return None
    return next((names[0] for names in SPLIT_NAMES if value.lower() in names), value)


def _by_stem(folder: Path) -> dict[str, str]:
    """Audio files by their stem, and by its part before the first dot (`17.2min.mp3`: `17`)."""
    files: dict[str, str] = {}
    for file in walk(folder):
        if _may_be_audio(file):
            files.setdefault(Path(file).stem, file)
            files.setdefault(Path(file).name.partition(".")[0], file)
    return files


def walk(folder: Path):
    """All files of a folder and its subfolders in the order of their names, without hidden ones."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))


def _subfolders(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir()] if folder.is_dir() else []


def _may_be_audio(file: str) -> bool:
    return os.path.splitext(file)[1].lower() not in NOT_AUDIO


@dataclass
class LPMusicCapsArguments(TableArguments):
    caption_columns: list[str] = field(
        default_factory=lambda: list(PSEUDO_CAPTIONS),
        metadata={"help": "Columns of pseudo captions (the authors advise against caption_attribute_prediction)."},
    )
    id_column: str = field(default="track_id", metadata={"help": "track_id (MSD, MTT) or ytid (MC)."})


# name: its arguments, its reader, and defaults of the options of all corpora
READERS = {
    "audiostock": (
        AudiostockArguments,
        read_audiostock,
        # 184,242 / 7,925 / 8,003 of the paper's 200,170 (section 5), and the same shares of fewer.
        {"dedup": "drop", "validation": 7925 / 200_170, "test": 8003 / 200_170},
    ),
    "musiccaps": (MusicCapsArguments, read_musiccaps, {"validation": 487}),  # section 5
    "song_describer": (SongDescriberArguments, read_song_describer, {"validation": 0, "test": 0}),
    "lp_musiccaps": (LPMusicCapsArguments, read_any, {"validation": 0, "test": 0}),
    "any": (TableArguments, read_any, {}),
}
