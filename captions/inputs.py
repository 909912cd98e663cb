"""What a user names becomes a list of files: files, folders, patterns, lists, tables and standard input."""

import glob
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clips.options import check_file, did_you_mean, near_path
from clips.tables import read_rows, read_text
from corpora.files import AUDIO, walk

# In a folder. A file that is named itself may end in anything.
SUFFIXES = AUDIO | {".3gp", ".ac3", ".aifc", ".amr", ".ape", ".avi", ".caf", ".dts", ".flv", ".m2ts", ".m4b", ".m4v"}
SUFFIXES |= {".mka", ".mp2", ".mpeg", ".mts", ".ts", ".tta", ".w64", ".wmv", ".wv"}
LISTS = (".m3u", ".m3u8", ".txt")


@dataclass
class Inputs:
    """
    The files to caption.

    Args:
        files (`dict[str, tuple[int, int] | None]`):
            Size in bytes and time of modification in ns by path, in the order of captioning; None for no such file.
        problems (`dict[str, str]`):
            Why a folder or file was left out, by path.
        duplicates (`int`, defaults to 0):
            How many files were named again.
        finished (`list[str]`):
            Films that have all that is asked, and are left alone.
    """

    files: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    duplicates: int = 0
    finished: list[str] = field(default_factory=list)

    def reject(self, path: str, reason: str):
        self.problems[os.fsencode(path).decode(errors="backslashreplace")] = reason


def find_inputs(paths: list[str], table: str | None = None, column: str = "path") -> Inputs:
    """
    Finds the files that paths name. A file that is named several times, or by links, counts once.

    Args:
        paths (`list[str]`):
            - a file;
            - a folder: its audio and video files and those of its subfolders, by name, without hidden ones;
            - a pattern such as `music/**/*.mp3`;
            - a list of files and folders that ends in .m3u, .m3u8 or .txt, one a line, relative to the list;
            - `-`: such lines on standard input, relative to the working folder, or ended by zero bytes.
        table (`str`, *optional*):
            A csv, tsv, jsonl or parquet file of paths, relative to it.
        column (`str`, defaults to `"path"`):
            Its column of paths.

    Raises:
        `FileNotFoundError`: If a path of `paths` does not exist.
        `ValueError`: If a list or the table cannot be read, or if the table has no such column.
    """
    found = Inputs()
    seen: set[str] = set()
    for path in (*_expand(paths, found), *(_entries(_read_table(table, column), table, found) if table else ())):
        real = os.path.realpath(path)
        if real in seen:
            found.duplicates += 1
            continue
        seen.add(real)
        if not _is_text(path):
            found.reject(path, "its name is not UTF-8; rename it")
            continue
        try:
            status = os.stat(path)
            found.files[path] = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):  # an entry of a list: decoding will say why
            found.files[path] = None
    return found


def _expand(paths: list[str], found: Inputs) -> Iterator[str]:
    for path in paths:
        if path == "-":
            text = _read_standard_input()
            yield from _entries(text.split("\0") if "\0" in text else text.splitlines(), None, found)
        elif os.path.isdir(path):
            yield from _files_of(path, found)
        elif os.path.isfile(path) and path.lower().endswith(LISTS):
            yield from _entries(_read_list(Path(path)), path, found)
        elif os.path.exists(path):
            yield path
        elif matches := sorted(glob.glob(path, recursive=True)):
            yield from _expand(matches, found)
        elif glob.has_magic(path):
            raise FileNotFoundError(f"{path} matches no file: expected a path, or a pattern such as music/**/*.mp3")
        else:
            hint = near_path(path) if "://" not in path else ": URLs are not fetched, so download it first"
            raise FileNotFoundError(f"{path} does not exist{hint}")


def _read_standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        found = f"{error.object[error.start : error.start + 1]!r} after {error.object[: error.start][-40:]!r}"
        raise ValueError(
            f"standard input is not {error.encoding.upper()}: found {found}; expected paths in it"
        ) from error


def _entries(lines: list[str], source: str | None, found: Inputs) -> Iterator[str]:
    """The files that the lines of a list name, relative to its folder."""
    for line in filter(None, map(str.strip, lines)):
        path = os.path.join(os.path.dirname(source or ""), line)
        yield from _files_of(path, found) if os.path.isdir(path) else [path]


def _files_of(folder: str, found: Inputs) -> Iterator[str]:
    for file in walk(Path(folder), found.reject):
        if os.path.splitext(file)[1].lower() in SUFFIXES:
            yield file.removeprefix("./")


def _read_list(path: Path) -> list[str]:
    if path.suffix.lower() == ".m3u" and not _is_utf8(path):  # as old players write it
        text = path.read_text(encoding="cp1252", errors="replace")
    else:
        text = read_text(path).removeprefix("\ufeff")
    return [line for line in text.splitlines() if path.suffix.lower() == ".txt" or not line.startswith("#")]


def _read_table(table: str, column: str) -> list[str]:
    check_file("--csv", table, "a csv, tsv, jsonl or parquet file of paths")

    def refuse(reason: str):
        raise ValueError(f"--csv: {reason}")

    columns, rows = read_rows(Path(table), refuse, lambda note: print(note, file=sys.stderr))
    if column not in columns:
        hint = did_you_mean(column, columns, "--column ")
        raise ValueError(f"{table} has no column '{column}': found {', '.join(columns)}{hint}")
    return [str(row[column]) for row in rows if row.get(column)]


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True
