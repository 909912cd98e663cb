"""
What has been captioned already: the rows of the output file, and those that an interrupted run left beside it.

A row has a key made of its file's size and time of modification, the checkpoint and the settings. Where any of them has
changed, the row is stale. While a run lasts, each of its processes writes its rows to a journal,
`captions.jsonl.partial`, batch by batch. The output is replaced at the end, and then the journals are deleted.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from captions.formats import EXPLANATION, SAID, read_captions, write_captions
from clips.outputs import replaced_whole

Existing = Literal["error", "skip", "overwrite", "append"]


def row_key(stamp: tuple[int, int] | None, checkpoint: dict, settings: dict) -> str:
    """The key of a file's row: 16 hexadecimal digits."""
    identity = checkpoint["fingerprint"] or f"{checkpoint['name']}@{checkpoint['revision']}"
    return _digest([stamp, identity, settings])


@dataclass
class Ledger:
    """
    The files of a run and their rows so far. Reading it changes nothing on the disk.

    Args:
        keys (`dict[str, str]`):
            The key that the row of each file must have, by path, in the order of captioning.
        output (`Path`, *optional*):
            The file to write. Without one nothing is kept.
        existing (`str`, defaults to `"error"`):
            What happens to the rows that `output` holds:

            - `"error"`: they are an error, unless an interrupted run just wrote them;
            - `"skip"`: they stay, a stale one is replaced in its place, and other files come after them;
            - `"overwrite"`: they are replaced;
            - `"append"`: they stay, and all files come after them.

    Attributes:
        rows (`list[dict]`): Rows of `output` that stay.
        todo (`list[str]`): Files without a row in `rows` that holds.
        done (`dict[str, dict]`): Rows of files in `todo` that an interrupted run made, by path.
        stale, dropped (`int`): Rows of `output`, and of an interrupted run, that do not hold any more.

    Raises:
        `FileExistsError`: For `"error"`, if `output` is not empty.
        `ValueError`: If `output` cannot be read or another program wrote it.
    """

    keys: dict[str, str]
    output: Path | None = None
    existing: Existing = "error"
    rows: list[dict[str, Any]] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    stale: int = 0
    dropped: int = 0

    def __post_init__(self):
        self.todo = list(self.keys)
        if self.output is None:
            return
        self.run = _digest([self.existing, list(self.keys.items())])
        self.before = _digest_of(self.output)
        lines = [line for journal in self.journals() for line in _whole_lines(journal)]
        # The run of this journal replaced the output but was killed before it deleted the journal.
        self.finished = any(line.get("run") == self.run and line["before"] != self.before for line in lines)
        if self.before is not None and (self.finished or self.existing in ("skip", "append")):
            self.rows = self.read()
        elif self.before is not None and self.existing == "error":
            raise FileExistsError(
                f"--output {self.output} holds captions: add --existing skip to caption only what is new or changed, "
                "append to add rows, or overwrite to replace them"
            )
        if self.finished and self.existing != "skip":
            self.todo = []
        elif self.existing == "skip":
            latest = {row["path"]: row["key"] for row in self.rows}
            self.todo = [path for path, key in self.keys.items() if latest.get(path) != key]
            self.stale = sum(path in latest for path in self.todo)
        if not self.finished:
            left = [row for line in lines for row in line.get("rows", ())]
            wanted = {*self.todo}
            self.done = {
                row["path"]: row for row in left if row["path"] in wanted and row["key"] == self.keys[row["path"]]
            }
            self.dropped = len({row["path"] for row in left} - {*self.done})

    def read(self) -> list[dict[str, Any]]:
        """Reads the rows of the output."""
        return read_captions(self.output)

    def write(self, rows: list[dict[str, Any]]):
        """Writes the rows of the output."""
        write_captions(self.output, rows)

    @property
    def journal(self) -> Path:
        """The journal of the main process."""
        return self.output.with_name(f"{self.output.name}.partial")

    def journals(self) -> list[Path]:
        """The journals that are there, that of the main process first."""
        if self.output is None or not self.output.parent.is_dir():
            return []
        name = re.compile(re.escape(self.output.name) + r"\.partial(-\d+)?")
        return sorted(path for path in self.output.parent.iterdir() if name.fullmatch(path.name))

    def batches(self, size: int) -> list[list[str]]:
        """
        Cuts the files that have no row yet into batches. All runs and processes cut at the same files, because the
        last digits of a score depend on what else is in a batch.
        """
        whole = (self.todo[start : start + size] for start in range(0, len(self.todo), size))
        return list(filter(None, ([path for path in batch if path not in self.done] for batch in whole)))

    def begin(self):
        """Collects the journals of an interrupted run in one; for the main process, before others write theirs."""
        if self.output is None:
            return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        former = self.journals()
        with replaced_whole(self.journal) as unfinished:
            header, rows = {"run": self.run, "before": self.before}, {"rows": list(self.done.values())}
            unfinished.write_text(_line(header) + _line(rows), encoding="utf-8")
        for path in former:
            if path != self.journal:
                path.unlink()

    def record(self, rows: list[dict[str, Any]], process: int = 0):
        """Notes the rows of a batch, in one line: a kill loses all of them or none."""
        if self.output is not None:
            name = f"{self.output.name}.partial{f'-{process}' if process else ''}"
            with self.output.with_name(name).open("a", encoding="utf-8") as file:
                file.write(_line({"rows": rows}))

    def held(self) -> dict[str, dict[str, Any]]:
        """The rows of `output` that hold for files of this run, by path."""
        return {row["path"]: row for row in self.rows if self.keys.get(row["path"]) == row["key"]}

    def new(self, rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The new rows by path, in order: `rows`, and those of an interrupted run. The same audio has one caption."""
        found = self.done | {row["path"]: row for row in rows}
        first: dict[str, dict[str, Any]] = {}
        for path in self.todo:
            if path in found:  # several processes may have captioned the same audio
                said = first.setdefault(found[path]["audio"], found[path])
                found[path] = found[path] | {name: said[name] for name in (*SAID, EXPLANATION) if name in said}
        return {path: found[path] for path in self.todo if path in found}

    def rekey(self, keys: dict[str, str]):
        """Notes that files of this run have other keys from now on, because it has tagged them."""
        self.keys |= keys
        if self.output is not None:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(_line({"run": _digest([self.existing, list(self.keys.items())]), "before": self.before}))

    def finish(self, new: dict[str, dict[str, Any]]):
        """Writes the output with `new` rows; for the main process."""
        if self.output is None:
            return
        merged = list(self._merged(dict(new)))
        if merged != self.rows:
            self.write(merged)

    def clear(self):
        """Deletes the journals; for the main process, when the run is over."""
        for path in self.journals():
            path.unlink(missing_ok=True)

    def _merged(self, new: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
        replaced = {*new} if self.existing == "skip" or self.finished else set()
        for row in self.rows:
            if row["path"] not in replaced:
                yield row
            elif row["path"] in new:  # the first of several rows of a file
                yield new.pop(row["path"])
        yield from new.values()


def _line(content: dict) -> str:
    # A line begins with its line break, and so never continues one that a kill has cut.
    return "\n" + json.dumps(content, ensure_ascii=False)


def _whole_lines(path: Path) -> list[dict]:
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # empty, or cut by a kill
            continue
    return lines


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _digest_of(path: Path) -> str | None:
    """The digest of a file's content; None for one that is empty or not there."""
    if not path.is_file() or path.stat().st_size == 0:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
