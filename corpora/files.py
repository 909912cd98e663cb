"""The audio files of a folder, and which of them is meant by the name that a table gives."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

NOT_AUDIO = {".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet", ".arrow", ".md", ".html", ".png", ".jpg", ".webp"}
NOT_AUDIO |= {".part", ".ytdl", ".vtt", ".srt", ".tmp", ".lock", ".py", ".yaml", ".pdf", ".zip", ".tar", ".gz"}
AUDIO = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".au", ".webm"}
AUDIO |= {".mp4", ".mkv", ".mov", ".mpg"}  # endings that a table's names may have, and the files not


def walk(folder: Path) -> Iterator[str]:
    """
    All files of a folder and its subfolders in the order of their names, without hidden ones; links are followed, but
    into no folder twice.

    Raises:
        `OSError`: for a folder that is none, or that cannot be read.
        `ValueError`: for a name that is not UTF-8, which no table could hold.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            file = os.path.join(parent, name)
            try:
                file.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{os.fsencode(file)!r}: the name of this file is not UTF-8; rename it") from error
            yield file


def _raise(error: OSError):
    raise error


def may_be_audio(file: str) -> bool:
    """Whether the name does not say that it is something else."""
    return os.path.splitext(file)[1].lower() not in NOT_AUDIO


class AudioFiles:
    """
    The audio files of a folder and its subfolders, or none.

    Of files that differ by their ending alone (`17.mp3`, `17.wav`) the first is taken.
    """

    def __init__(self, folder: Path | None):
        self.by_name: list[dict[str, list[str]]] = [{}, {}, {}]  # the surest first
        stems = set()
        for file in filter(may_be_audio, walk(folder) if folder else ()):
            path = PurePath(_same(os.path.relpath(file, folder)))
            if path.with_suffix("") in stems:
                continue
            stems.add(path.with_suffix(""))
            whole = {path.as_posix(), path.with_suffix("").as_posix()}
            for names, keys in zip(self.by_name, (whole, {path.name, path.stem}, {path.name.partition(".")[0]})):
                for key in keys:
                    names.setdefault(key, []).append(file)

    def find(self, names: Sequence[str]) -> list[str]:
        """
        Files by the first of these names that is a file's path below the folder, then its own name, each with or
        without its ending, then what stands before its first dot (`17` for `17.2min.mp3`).
        """
        keys = []
        for name in map(_same, names):
            stem, suffix = os.path.splitext(name)
            for key in (name, stem) if suffix.lower() in AUDIO else (name,):
                keys += [key, os.path.basename(key)]
        for known in self.by_name:
            for key in keys:
                if key in known:
                    return known[key]
        return []


def _same(name: str) -> str:
    """One spelling of an accented letter: file systems differ."""
    return unicodedata.normalize("NFC", name)
