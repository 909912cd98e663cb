"""Finds the audio files of a folder, and the file that a table's name refers to."""

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

NOT_AUDIO = {".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet", ".arrow", ".md", ".html", ".png", ".jpg", ".webp"}
NOT_AUDIO |= {".part", ".ytdl", ".vtt", ".srt", ".tmp", ".lock", ".py", ".yaml", ".pdf", ".zip", ".tar", ".gz"}
AUDIO = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".au", ".webm"}
AUDIO |= {".mp4", ".mkv", ".mov", ".mpg"}  # endings that a table's names may have even if the files have others


def walk(folder: Path, reject: Callable[[str, str], None] | None = None) -> Iterator[str]:
    """
    Yields all files of a folder and its subfolders in the order of their names, except hidden ones. Links are followed,
    but each folder is read once.

    Args:
        folder (`Path`):
            The folder.
        reject (`Callable[[str, str], None]`, *optional*):
            Called with each path that cannot be used and the reason; by default that is an error.

    Raises:
        `OSError`: If the folder does not exist or a folder cannot be read.
        `ValueError`: For a name that is not UTF-8, because no table can hold it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")

    def refuse(error: OSError):
        if reject is None:
            raise error
        reject(os.fspath(error.filename), f"cannot be read ({error.strerror})")

    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
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
                if reject is None:
                    raise ValueError(f"{os.fsencode(file)!r}: the name of this file is not UTF-8; rename it") from error
                reject(file, "its name is not UTF-8; rename it")
                continue
            yield file


def may_be_audio(file: str) -> bool:
    """Whether a file's ending does not rule out audio."""
    return os.path.splitext(file)[1].lower() not in NOT_AUDIO


class AudioFiles:
    """
    Audio files of a folder and its subfolders, to be found by name.

    Among files that only differ in their ending (`17.mp3`, `17.wav`), the first is used.

    Args:
        folder (`Path`, *optional*):
            The folder; without one there are no files.
    """

    def __init__(self, folder: Path | None):
        self.by_name: list[dict[str, list[str]]] = [{}, {}, {}]  # the surest names first
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
        Finds the files that match the first of `names` with a match.

        A name is compared first with the files' paths below the folder, then with their own names, each with or without
        ending, and last with the part before their first dot (`17` for `17.2min.mp3`).
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
    """Gives accented letters one spelling, because file systems differ."""
    return unicodedata.normalize("NFC", name)
