"""Readers of raw corpora. Each returns rows with an id, a file and captions, and a reason for each row left out."""

import ast
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from tqdm.auto import tqdm

from clips.rows import AUDIO_COLUMNS, METADATA_FILES, SPLIT_NAMES
from clips.tables import TABLES, match_columns, read_json, read_rows, read_text, text_of
from corpora.files import AudioFiles, may_be_audio, walk
from corpora.youtube import find_clips

# Columns that we write: a table's own columns with these names are renamed.
RESERVED = {*AUDIO_COLUMNS, "caption", "captions", "caption_original", "cluster", "duration", "sampling_rate"}
RESERVED |= {"channels", "id", "split", "file", "named", "why", "seconds", "notes", "problem"}
OF_FILES = {"no_json", "second_file", "other_file"}  # kinds of rejections of files without a listed row
HUB_ID = r"\w[\w.-]*(/[\w.-]+)?"
OPTIONAL_COLUMNS = {"id", "split"}  # optional by these default names; a column named by an option must exist
PSEUDO_CAPTIONS = ["caption_writing", "caption_summary", "caption_paraphrase"]


@dataclass
class Corpus:
    """
    What a reader found.

    Args:
        rows (`list[dict]`):
            `id` (str), `file` (path, or None if none was found), `captions` (list of str), optionally `split` and
            `seconds` (how long the file should last), and the corpus's other columns.
        rejected (`list[dict]`, *optional*):
            `id`, `file`, `kind` and `reason` of each row left out.
        license (`str`, *optional*):
            Licence of the captions.
        merged (`int`, defaults to 0):
            Number of captions that were added to an earlier row.
        notes (`list[str]`, *optional*):
            Guesses about its tables.
        about_audio (`str`, defaults to `""`):
            Where the audio comes from and how its files are named, for those who lack it.
    """

    rows: list[dict]
    rejected: list[dict] = field(default_factory=list)
    license: str | None = None
    merged: int = 0
    notes: list[str] = field(default_factory=list)
    about_audio: str = ""

    def reject(self, row_id: str | None, file: str | None, kind: str, reason: str):
        self.rejected.append({"id": row_id, "file": file, "kind": kind, "reason": reason})

    def read(self, path: Path) -> tuple[list[str], Iterable[dict]]:
        """Reads the column names and rows of a table; rows that cannot be read are rejected."""
        return read_rows(path, lambda reason: self.reject(None, str(path), "broken_row", reason), self.note)

    def note(self, text: str):
        if text not in self.notes:
            self.notes.append(text)


# -- Audiostock -------------------------------------------------------------------------------------------------------


@dataclass
class AudiostockArguments:
    group = "corpus"
    raw_dir: str = field(metadata={"help": "Folder, with any subfolders, of audio files and JSON of the same stem."})


def read_audiostock(args: AudiostockArguments, output_dir: Path) -> Corpus:
    """
    Reads Audiostock as LAION-Audio's preprocessing leaves it: `17.flac` beside `17.json`, which holds

        {"text": [short, long], "tag": […], "original_data": {"id": …, "URL": …, "purpose": …, "impression": …}}

    The first text is the short caption (section 5: the only one used). A single text, or `short_text` and `long_text`,
    are understood too. `tag` or `tags`, `purpose`, `impression` and `scene` (or `tags_purpose` and so on) are lists or
    text with commas, beside the text or within `original_data`. The id is the JSON's own, else the number in its URL
    (`https://audiostock.net/audio/1150592/play`), else the stem, or the path if several folders have the same stem. The
    folders `train` and `test` are ignored: they are LAION's splits, not the paper's.
    """
    base = Path(args.raw_dir)
    texts, sounds, corpus = {}, {}, Corpus([])
    for file in walk(base):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() == ".json":
            texts[stem] = file
        elif may_be_audio(file):
            if stem in sounds:
                corpus.reject(None, file, "second_file", f"{sounds[stem]} has the same stem")
            sounds.setdefault(stem, file)
    if not texts:
        raise FileNotFoundError(
            f"{base} holds no .json: expected audio files beside JSON of the same stem; unpack archives first (tar xf)"
        )
    names = Counter(os.path.basename(stem) for stem in texts)
    for stem, file in tqdm(texts.items(), desc="Reading JSON", unit="file"):
        name = os.path.basename(stem)
        name = name if names[name] == 1 else Path(os.path.relpath(stem, base)).as_posix()
        sound = sounds.pop(stem, None)
        try:
            row = _audiostock_row(read_json(read_text(Path(file))), name)
        except (ValueError, OSError) as error:
            corpus.reject(name, sound or file, "broken_json", f"{file}: {error}")
            continue
        corpus.rows.append({**row, "file": sound})
    for stem, file in sounds.items():
        corpus.reject(os.path.basename(stem), file, "no_json", "no JSON of the same stem")
    return corpus


def _audiostock_row(content: dict, name: str) -> dict:
    original = content.get("original_data")
    fields = {**(original if isinstance(original, dict) else {}), **content}
    texts = fields.get("text")
    texts = [fields.get("short_text"), fields.get("long_text")] if texts is None else texts
    texts = texts if isinstance(texts, list) else [texts]
    short, long = ([text if isinstance(text, str) else "" for text in texts] + ["", ""])[:2]
    url = text_of(fields.get("URL", fields.get("url")))
    number = re.search(r"audiostock\.net/audio/(\d+)", url)
    return {
        "id": text_of(fields.get("id")) or (number[1] if number else name),
        "captions": [short],
        "caption_long": long or None,
        "title": text_of(fields.get("title")) or None,
        "tags": _tags(fields.get("tag", fields.get("tags"))),
        **{key: _tags(fields.get(key, fields.get(f"tags_{key}"))) for key in ("purpose", "impression", "scene")},
        "source": url or None,
    }


def _tags(value) -> list[str]:
    parts = value if isinstance(value, list) else text_of(value).split(",")
    return [text for text in (text_of(part).strip() for part in parts) if text]


# -- MusicCaps --------------------------------------------------------------------------------------------------------


@dataclass
class MusicCapsArguments:
    group = "corpus"
    csv: str = field(metadata={"help": "musiccaps-public.csv."})
    audio_dir: str = field(metadata={"help": "Folder of clips named by YouTube id."})


def read_musiccaps(args: MusicCapsArguments, output_dir: Path) -> Corpus:
    """Reads MusicCaps' public csv, and clips that have been cut already; `find_clips` says how they may be named."""
    corpus = Corpus([], license="CC BY-SA 4.0")
    columns, records = corpus.read(Path(args.csv))
    wanted = ["ytid", "start_s", "end_s", "caption", "aspect_list", "audioset_positive_labels", "author_id"]
    _expect_columns(args.csv, columns, [*wanted, "is_balanced_subset", "is_audioset_eval"])
    for record in records:
        try:
            corpus.rows.append(_musiccaps_row(record))
        except (ValueError, SyntaxError) as error:
            corpus.reject(record["ytid"], None, "broken_row", f"{args.csv}: {error}")
    starts = {row["id"]: row["start_s"] for row in corpus.rows}
    clips, others = find_clips(filter(may_be_audio, walk(Path(args.audio_dir))), starts)
    for row in corpus.rows:
        row["file"] = clips.get(row["id"])
        if row["file"] is None:
            row["why"] = f"{args.audio_dir} has none with this YouTube id in its name"
    lacking = next((row for row in corpus.rows if row["file"] is None), None)
    if lacking:
        name, start, end = lacking["id"], f"{lacking['start_s']:g}", f"{lacking['end_s']:g}"
        corpus.about_audio = (
            f"MusicCaps comes without audio. Each clip is a part of a YouTube video, such as {start} to {end} s of "
            f"https://youtu.be/{name}: name it {name}.wav, [{name}]-[{start}-{end}].wav or {name}_{start}_{end}.wav"
        )
    for file, reason in others.items():
        corpus.reject(None, file, "other_file", reason)
    return corpus


def _musiccaps_row(record: dict[str, str]) -> dict:
    start, end = float(record["start_s"]), float(record["end_s"])
    if record["is_audioset_eval"] not in ("True", "False"):
        raise ValueError(f"is_audioset_eval is '{record['is_audioset_eval']}': expected True or False")
    return {
        "id": record["ytid"],
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


# -- tables, folders, Hub datasets ------------------------------------------------------------------------------------


@dataclass
class TableArguments:
    group = "corpus"
    source: str = field(
        metadata={
            "help": "csv, tsv, jsonl or parquet file, audiofolder, "
            "folder of audio files and .txt files of the same stem with a caption per line, "
            "save_to_disk folder, Hub id, or folder of a Hub dataset's parquet files."
        }
    )
    audio_dir: str | None = field(default=None, metadata={"help": "Folder of the files; that of the table if unset."})
    caption_columns: list[str] = field(
        default_factory=lambda: ["caption"], metadata={"help": "Columns that hold a caption or a list of captions."}
    )
    id_column: str = field(default="id", metadata={"help": "Column of the ids; file names if there is no 'id'."})
    file_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the files, which are found by path, else by a name that no other file has; "
            f"if unset, the first of {', '.join(AUDIO_COLUMNS)} that exists, else the files are found by id."
        },
    )
    split_column: str = field(default="split", metadata={"help": "Column of the corpus's own splits, if it has any."})
    keep_splits: bool = field(default=True, metadata={"help": "Keep the corpus's own splits."})
    merge_ids: bool = field(default=False, metadata={"help": "Rows with the same id are captions of one clip."})
    license: str | None = field(default=None, metadata={"help": "Text of the column license."})


@dataclass
class SongDescriberArguments:
    group = "corpus"
    csv: str = field(metadata={"help": "song_describer.csv."})
    audio_dir: str = field(metadata={"help": "Folder of NN/<track_id>.2min.mp3."})
    valid_subset: bool = field(default=False, metadata={"help": "Keep only the captions of the valid subset."})


def read_song_describer(args: SongDescriberArguments, output_dir: Path) -> Corpus:
    """Reads the Song Describer Dataset, with 1 to 5 captions per track; all of it is a test split."""
    corpus = Corpus([], license="CC BY-SA 4.0")
    columns, records = corpus.read(Path(args.csv))
    _expect_columns(args.csv, columns, ["track_id", "caption", "path", "is_valid_subset"])
    rows = []
    for record in records:
        if args.valid_subset and record["is_valid_subset"] != "True":
            corpus.reject(record["track_id"], record["path"], "not_valid_subset", "is_valid_subset is not True")
        else:
            rows.append({**record, "split": "test"})
    options = TableArguments(args.csv, args.audio_dir, id_column="track_id", file_column="path", merge_ids=True)
    _add_rows(corpus, [*columns, "split"], rows, options, Path(args.audio_dir), output_dir / "audio")
    return corpus


def _expect_columns(name: str, columns: list[str], wanted: list[str]):
    missing = [column for column in wanted if column not in columns]
    if missing:
        raise ValueError(f"{name} has no column {', '.join(missing)}: found {', '.join(columns)}")


def read_any(args: TableArguments, output_dir: Path) -> Corpus:
    """
    Reads a table, folder or Hub dataset by its column names. Sounds stored in a dataset are written to
    `output_dir/audio`, because every row needs a file.
    """
    corpus = Corpus([], license=args.license)
    source, sounds_dir = Path(args.source), output_dir / "audio"
    if source.is_file():
        _add_rows(corpus, *corpus.read(source), args, source.parent, sounds_dir)
    elif tables := _metadata_files(source):
        for path in tables:
            part = "" if path.parent == source else path.parent.name
            split = _split_name(part) if any(part.lower() in names for names in SPLIT_NAMES) else None
            _add_rows(corpus, *corpus.read(path), args, path.parent, sounds_dir, part, split)
    elif source.is_dir() and not _is_dataset(source):
        _add_text_files(corpus, source)
    else:
        for split, rows in _load_dataset(source, args.source):
            _add_rows(corpus, rows.column_names, rows, args, source, sounds_dir, split, _split_name(split))
    if not args.keep_splits:
        for row in corpus.rows:
            row.pop("split", None)
    return corpus


def _metadata_files(source: Path) -> list[Path]:
    """Finds a folder's metadata files in the `audiofolder` layout: its own, its subfolders' and those of `data`."""
    folders = [source, *_subfolders(source), *_subfolders(source / "data")]
    found = (next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None) for folder in folders)
    return [path for path in found if path]


def _is_dataset(source: Path) -> bool:
    """Whether `save_to_disk` wrote this folder, or it holds the parquet files of a Hub dataset."""
    saved = any((source / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or any(source.glob("**/*.parquet"))


def _load_dataset(source: Path, name: str) -> list[tuple[str, datasets.Dataset]]:
    """Loads the splits and their rows, with sounds as `{"path", "bytes"}`."""
    if not source.is_dir() and (not re.fullmatch(HUB_ID, name) or source.suffix.lower() in TABLES):
        raise FileNotFoundError(f"{name} does not exist: expected a table, a folder, or the id of a Hub dataset")
    saved = any((source / file).is_file() for file in ("dataset_dict.json", "state.json"))
    loaded = datasets.load_from_disk(source) if saved else datasets.load_dataset(name)
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    for column, feature in next(iter(parts.values())).features.items():
        if isinstance(feature, datasets.Audio):
            parts = {split: rows.cast_column(column, datasets.Audio(decode=False)) for split, rows in parts.items()}
    return list(parts.items())


def _add_rows(
    corpus: Corpus,
    columns: list[str],
    records: Iterable[dict],
    args: TableArguments,
    folder: Path,
    sounds_dir: Path,
    part: str = "",
    split_of_part: str | None = None,
):
    """Adds a table's rows. `part` is their split or subfolder; file names may be the same in several parts."""
    where = f"{args.source} ({part})" if part else args.source
    file_columns = [args.file_column] if args.file_column else AUDIO_COLUMNS
    of_files = () if set(file_columns) & set(columns) else file_columns  # an exact name needs no substitute
    wanted = (*args.caption_columns, *of_files, args.id_column, args.split_column)
    renamed = match_columns(columns, wanted, where, corpus.note)
    columns = [renamed.get(name, name) for name in columns]
    file_column = next((name for name in file_columns if name in columns), None)
    named_columns = [*args.caption_columns, *([args.file_column] if args.file_column else [])]
    named_columns += [name for name in (args.id_column, args.split_column) if name not in OPTIONAL_COLUMNS]
    missing = [name for name in named_columns if name not in columns]
    if missing or not (file_column or args.id_column in columns):
        raise ValueError(
            f"{where} has the columns {', '.join(columns)}: "
            f"expected the captions {args.caption_columns} (--caption_columns), "
            f"and files {file_columns} (--file_column) or ids '{args.id_column}' (--id_column); "
            f"missing: {', '.join(missing)}"
        )
    base = Path(args.audio_dir) if args.audio_dir else folder
    files: AudioFiles | None = None
    rows: dict[str, dict] = {}
    used = {args.id_column, args.split_column, file_column, *args.caption_columns}
    for number, record in enumerate(tqdm(records, desc=f"Reading {part or 'rows'}", unit="row")):
        record = {renamed.get(name, name): value for name, value in record.items()}
        sound = record.get(file_column)
        held = isinstance(sound, dict)  # bytes, or the path of a dataset's own file
        named = text_of(sound["path"] if held else sound)
        row_id = text_of(record.get(args.id_column)).strip()
        nameless = not row_id and args.id_column in columns
        if not row_id and held:
            row_id = f"{part or 'row'}-{number:06d}"
        elif not row_id and named:
            row_id = os.path.join(part, named)
        texts = [text for name in args.caption_columns for text in _texts(record.get(name))]
        if args.merge_ids and row_id in rows:
            rows[row_id]["captions"] += texts
            corpus.merged += 1
            continue
        row = {"id": row_id, "file": None, "captions": texts, "named": named or None}
        row |= {"notes": ["without an id: its file's name is its id"]} if nameless and row_id else {}
        if held and sound.get("bytes") is not None:
            row["file"] = _write_sound(sounds_dir / f"{part or 'row'}-{number:06d}{Path(named).suffix}", sound["bytes"])
        elif os.path.isfile(base / named):
            row["file"] = str(base / named)
        else:
            files = AudioFiles(base if args.audio_dir or base.is_dir() else None) if files is None else files
            found = files.find([named, row_id] if named else [row_id])
            row["file"] = found[0] if len(found) == 1 else None
            row["why"] = f"{len(found)} files have its name: first {found[:2]}" if found else f"none in {base}"
        split = _split_name(record.get(args.split_column)) if args.split_column in columns else split_of_part
        row |= {"split": split} if split else {}
        extra = {key: _plain(value) for key, value in record.items() if key not in used}
        row |= {f"their_{key}" if key in RESERVED else key: value for key, value in extra.items()}
        rows[row_id] = row
        corpus.rows.append(row)


def _write_sound(file: Path, content: bytes) -> str:
    """Writes a sound unless it is there, and returns its path: another one where a former run has another sound."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file() and file.read_bytes() != content:
        file = file.with_stem(f"{file.stem}-{hashlib.sha256(content).hexdigest()[:16]}")
    if not file.is_file():
        part = file.with_name(f"{file.name}.part")
        part.write_bytes(content)
        os.replace(part, file)
    return str(file.resolve())


def _add_text_files(corpus: Corpus, folder: Path):
    files = list(walk(folder))
    texts = {os.path.splitext(file)[0]: file for file in files if file.lower().endswith(".txt")}
    sounds: dict[str, str] = {}
    for file in filter(may_be_audio, files):
        first = sounds.setdefault(os.path.splitext(file)[0], file)
        if first != file:
            corpus.reject(None, file, "second_file", f"{first} has the same stem")
    if not texts:
        raise FileNotFoundError(f"{folder} holds no {' or '.join(METADATA_FILES)}, and no .txt beside an audio file")
    for stem in sorted(texts.keys() | sounds.keys()):
        row = {"id": Path(os.path.relpath(stem, folder)).as_posix(), "file": sounds.get(stem)}
        try:
            text = read_text(Path(texts[stem])) if stem in texts else ""
        except ValueError as error:
            corpus.reject(row["id"], texts[stem], "broken_text", str(error))
            continue
        corpus.rows.append({**row, "captions": [line for line in text.splitlines() if line.strip()]})


def _texts(value) -> list[str]:
    return list(map(text_of, value)) if isinstance(value, list) else [text_of(value)]


def _plain(value):
    return None if value != value else value


def _split_name(value) -> str | None:
    """Returns our name of a split, an unknown name unchanged, and None for an empty one."""
    value = text_of(value)
    return next((names[0] for names in SPLIT_NAMES if value.lower() in names), value) or None


def _subfolders(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir()] if folder.is_dir() else []


@dataclass
class LPMusicCapsArguments(TableArguments):
    caption_columns: list[str] = field(
        default_factory=lambda: list(PSEUDO_CAPTIONS),
        metadata={"help": "Columns of pseudo captions (the authors advise against caption_attribute_prediction)."},
    )
    id_column: str = field(default="track_id", metadata={"help": "track_id (MSD, MTT) or ytid (MC)."})


# name: its arguments, its reader, and its defaults for options that all corpora have
READERS = {
    "audiostock": (
        AudiostockArguments,
        read_audiostock,
        # The paper's 184,242 / 7,925 / 8,003 of 200,170 (section 5), and the same shares of fewer.
        {"dedup": "drop", "validation": 7925 / 200_170, "test": 8003 / 200_170},
    ),
    "musiccaps": (MusicCapsArguments, read_musiccaps, {"validation": 487}),  # section 5
    "song_describer": (SongDescriberArguments, read_song_describer, {"validation": 0, "test": 0}),
    "lp_musiccaps": (LPMusicCapsArguments, read_any, {"validation": 0, "test": 0}),
    "any": (TableArguments, read_any, {}),
}
