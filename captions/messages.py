"""What `caption.py` says of its work: messages on standard error, and captions on standard output."""

import os
import sys
from collections import deque

from tqdm.auto import tqdm

from captions.explaining import explain_lines
from captions.formats import EXPLANATION
from captions.inputs import Inputs
from captions.ledger import Ledger
from captions.spans import show


def is_main_process() -> bool:
    """Whether this is the main one of the processes that share the files, before accelerate is loaded."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str):
    """Writes a line to standard error, from the main process alone."""
    if is_main_process():
        print(text, file=sys.stderr)


def count(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}{'s'[: number != 1]}"


def announce(inputs: Inputs, ledger: Ledger, model: str):
    to_do = sum(path not in ledger.done for path in ledger.todo)
    parts = [f"{count(to_do, 'file')} to caption with {model}"]
    if inputs.duplicates:
        parts.append(f"{inputs.duplicates} named more than once")
    if inputs.finished:
        parts.append(f"{len(inputs.finished)} with subtitles already")
    if len(ledger.keys) > len(ledger.todo):
        parts.append(f"{len(ledger.keys) - len(ledger.todo)} with a caption in {ledger.output}")
    if ledger.done:
        parts.append(f"{len(ledger.done)} captioned by an interrupted run")
    if ledger.stale:
        parts.append(f"{ledger.stale} again, because the file, the model or a setting has changed")
    if ledger.dropped:
        parts.append(f"{ledger.dropped} of an interrupted run with other files, model or settings dropped")
    say("; ".join(parts))


def report(inputs: Inputs) -> int:
    """Lists the files that cannot be used, and returns the exit status."""
    if inputs.problems:
        total = len({*inputs.files, *inputs.problems})
        say(f"{len(inputs.problems)} of {count(total, 'file')} could not be captioned:")
        for path, reason in sorted(inputs.problems.items()):
            say(f"  {path}: {reason}")
    return int(bool(inputs.problems))


def report_untagged(problems: dict[str, str]) -> int:
    """Lists the files whose tags cannot be changed, and returns the exit status."""
    for path, reason in problems.items():
        say(f"not tagged: {path}: {reason}")
    return int(bool(problems))


class Printer:
    """Prints captions in the order of the files, after their paths if there are several."""

    def __init__(self, paths: list[str]):
        self.waiting, self.plain = deque(paths), len(paths) == 1
        self.lines: dict[str, str | None] = {}

    def show(self, rows: list[dict], problems: dict[str, str]):
        for row in rows:
            lines = show(row) if "spans" in row else [" ".join((row["caption"] or "").split())]  # one line
            if row.get(EXPLANATION):
                lines += explain_lines(row[EXPLANATION])
            self.lines[row["path"]] = "\n".join(line if self.plain else f"{row['path']}\t{line}" for line in lines)
        self.lines |= dict.fromkeys(problems)
        while self.waiting and self.waiting[0] in self.lines:
            line = self.lines[self.waiting.popleft()]
            if line is not None:
                tqdm.write(line, sys.stdout)  # above the progress bar
        sys.stdout.flush()
