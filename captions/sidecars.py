"""
Captions in files beside the songs, as the programs that train on them read them.

Each function of `CONSUMERS` turns rows into files and their text. Rows without a caption have none.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clips.outputs import replaced_whole

Row = dict[str, Any]
Files = dict[Path, str]
Consumer = Literal["ace-step", "kohya", "audiocraft", "stable-audio", "audiofolder"]
AUDIOCRAFT = ("key", "artist", "description", "keywords", "bpm", "genre", "title", "name", "instrument", "moods")


def ace_step(rows: Iterable[Row]) -> Files:
    """ACE-Step 1.5: `song.caption.txt`. A plain `song.txt` holds lyrics there, and would be sung."""
    return {Path(row["path"]).with_suffix(".caption.txt"): row["caption"] + "\n" for row in rows}


def kohya(rows: Iterable[Row]) -> Files:
    """Scripts that follow kohya-ss, with `caption_extension = ".txt"`: `song.txt`, a caption in one line."""
    return {Path(row["path"]).with_suffix(".txt"): row["caption"] + "\n" for row in rows}


def audiocraft(rows: Iterable[Row]) -> Files:
    """AudioCraft's `MusicDataset`: `song.json` with all of its keys. What nobody has heard is null."""
    return {
        Path(row["path"]).with_suffix(".json"): _json(
            dict.fromkeys(AUDIOCRAFT) | {"description": row["caption"], "name": Path(row["path"]).stem}
        )
        for row in rows
    }


def stable_audio(rows: Iterable[Row]) -> Files:
    """stable-audio-tools: `song.json` with a `prompt`, which `captions/stable_audio.py` reads there."""
    return {Path(row["path"]).with_suffix(".json"): _json({"prompt": row["caption"]}) for row in rows}


def audiofolder(rows: Iterable[Row]) -> Files:
    """`load_dataset("audiofolder")`: a `metadata.csv` in each folder, with `file_name` and `text`."""
    tables: dict[Path, list[Row]] = {}
    for row in rows:
        tables.setdefault(Path(row["path"]).parent / "metadata.csv", []).append(row)
    files = {}
    for path, songs in tables.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file_name", "text"])
        writer.writerows([Path(row["path"]).name, row["caption"]] for row in songs)
        files[path] = text.getvalue()
    return files


CONSUMERS: dict[str, Callable[[Iterable[Row]], Files]] = {
    "ace-step": ace_step,
    "kohya": kohya,
    "audiocraft": audiocraft,
    "stable-audio": stable_audio,
    "audiofolder": audiofolder,
}


@dataclass
class Sidecars:
    """
    The sidecars of a run.

    Args:
        consumer (`str`):
            For whom they are: a name of `CONSUMERS`.
        paths (`list[str]`):
            The files of the run.
        existing (`str`, defaults to `"error"`):
            What happens to a file that is there and was not made from a row of the output: `"overwrite"` replaces it;
            `"skip"` and `"append"` keep it; for `"error"` it is an error before anything is captioned.
        resumed (`bool`, defaults to `False`):
            Whether an interrupted run may have written some. Then they are no error.

    Attributes:
        kept (`list[Path]`): Files that [`~Sidecars.write`] found there and kept.

    Raises:
        `FileExistsError`: For `"error"`, if a sidecar is there.
        `ValueError`: If two songs would share one.
    """

    consumer: str
    paths: list[str]
    existing: str = "error"
    resumed: bool = False
    kept: list[Path] = field(default_factory=list)

    def __post_init__(self):
        named = Counter(path for song in self.paths for path in self._files([{"path": song, "caption": ""}]))
        self.named: set[Path] = {*named}
        shared = [path for path, count in named.items() if count > 1]
        if shared and self.consumer != "audiofolder":
            raise ValueError(f"--sidecar {self.consumer}: two songs would share {shared[0]}; rename one of them")
        there = [path for path in named if path.exists()]
        if there and self.existing == "error" and not self.resumed:
            raise FileExistsError(
                f"--sidecar {self.consumer}: {there[0]} is there already ({len(there)} of {len(named)}): "
                "add --existing skip to keep such files, or overwrite to replace them"
            )

    def write(self, rows: Iterable[Row], former: Iterable[Row] = ()):
        """
        Writes the sidecars of the run's files. One that still is what `former` rows said is replaced, whatever
        `existing` is; one that says the same already is left alone. `rows` may be of more files: a `metadata.csv` holds
        all of its folder.
        """
        before = self._files(former)
        for path, text in self._files(rows).items():
            found = _read(path)
            if found == text or path not in self.named:
                continue
            if found is not None and found != before.get(path) and self.existing != "overwrite":
                self.kept.append(path)
                continue
            with replaced_whole(path) as unfinished:
                unfinished.write_text(text, encoding="utf-8")

    def _files(self, rows: Iterable[Row]) -> Files:
        spoken = ({**row, "caption": " ".join(row["caption"].split())} for row in rows if row["caption"] is not None)
        return CONSUMERS[self.consumer](spoken)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
