"""Looks into audio files with several processes, and remembers what it found, so that an interrupted run resumes."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from audio_rgmc import AudioError, probe_audio
from clips.isolation import run_isolated

UNUSABLE = {"duration": None, "sampling_rate": None, "channels": None, "notes": []}


def probe(file: str) -> dict:
    """
    Describes an audio file: `{"duration", "sampling_rate", "channels", "notes", "problem"}`, in s and Hz. `problem` is
    why the file cannot be used, or None.
    """
    try:
        return {**probe_audio(file), "problem": None}
    except AudioError as error:
        return {**UNUSABLE, "problem": str(error)}


def hash_file(file: str) -> dict:
    """Computes the SHA-256 of a file's bytes: `{"sha256", "problem"}`, one of which is None."""
    try:
        with open(file, "rb") as content:
            return {"sha256": hashlib.file_digest(content, "sha256").hexdigest(), "problem": None}
    except OSError as error:
        return {"sha256": None, "problem": str(error)}


def probe_files(
    files: Sequence[str],
    known_file: Path,
    num_proc: int = 1,
    look: Callable[[str], dict] = probe,
    title: str = "Probing audio",
) -> list[dict]:
    """
    Calls `look` on each file, unless its result is known.

    Each result is written to `known_file` at once, with the file's path, size and modification time as its key. Files
    with a known result are not read again, but one that could not be used is tried again.

    Args:
        files (`Sequence[str]`):
            Paths; duplicates are allowed.
        known_file (`Path`):
            A jsonl file of results, created if it does not exist.
        num_proc (`int`, defaults to 1):
            Number of processes. If one of several dies, hangs or takes too much memory, that costs one file, whose
            `problem` says so. With 1, this process does the work, without such protection.
        look (`Callable`, defaults to [`probe`]):
            [`probe`] or [`hash_file`]; each needs a `known_file` of its own.
        title (`str`, defaults to `"Probing audio"`):
            Title of the progress bar.

    Returns:
        `list[dict]`: The result of each file.
    """
    known = _read_known(known_file)
    keys = {file: _key(file) for file in files}
    new = sorted({file for file in files if keys[file] not in known})
    known_file.parent.mkdir(parents=True, exist_ok=True)
    _end_last_line(known_file)
    progress = tqdm(total=len(new), desc=title, unit="file", disable=not new)
    with open(known_file, "a", encoding="utf-8") as lines, progress:
        for file, found in _look_into_all(new, look, num_proc):
            known[keys[file]] = found
            lines.write(json.dumps({"key": keys[file], **found}, ensure_ascii=False) + "\n")
            lines.flush()
            progress.update()
    return [known[keys[file]] for file in files]


def _look_into_all(files: list[str], look: Callable[[str], dict], num_proc: int):
    if num_proc <= 1:
        yield from ((file, look(file)) for file in files)
        return
    for number, found, problem in run_isolated(look, files, num_proc):
        nothing = {"sha256": None} if look is hash_file else UNUSABLE
        yield files[number], found if problem is None else {**nothing, "problem": f"{files[number]!r}: {problem}"}


def _key(file: str) -> str:
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # probing will report it
        return file
    return f"{os.path.abspath(file)} {status.st_size} {status.st_mtime_ns}"


def _read_known(known_file: Path) -> dict[str, dict]:
    known = {}
    for line in known_file.read_bytes().splitlines() if known_file.is_file() else ():
        try:
            found = json.loads(line)
        except ValueError:  # the line that was being written when a run was killed
            continue
        if found["problem"] is None:
            known[found.pop("key")] = found
    return known


def _end_last_line(known_file: Path):
    """Ends a line that a killed run left unfinished, so that the next line does not join it."""
    content = known_file.read_bytes() if known_file.is_file() else b""
    if content and not content.endswith(b"\n"):
        with open(known_file, "ab") as file:
            file.write(b"\n")
