"""
Captions audio and video files.

    python caption.py song.mp3
    python caption.py album/ film.mp4 --output captions.jsonl
    python caption.py film.mp4 --spans --output spans.jsonl
    python caption.py film.mp4 --format vtt --profile netflix
    python caption.py --render spans.jsonl --format vtt --profile netflix
    python caption.py --check film.vtt --profile netflix

PATH is a file, a folder, a pattern ("music/**/*.mp3"), a list of paths (.m3u, .m3u8, .txt) or - for paths on standard
input. Without --output the captions are printed; all else goes to standard error. The exit status is 1 if files could
not be used. `accelerate launch` and `torchrun` share the files between processes.
"""

from clips import threads  # noqa: F401

# isort: split
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from captions.formats import FORMATS, check_format
from captions.inputs import Inputs, find_inputs
from captions.ledger import Ledger, row_key
from captions.sidecars import Consumer, Sidecars
from captions.spans import SpanArguments, SpanLedger, load_detector, read_music_spans, show, spans_of
from captions.subtitles import SubtitleArguments, check, check_targets, render, write_subtitles
from captions.tags import check_mutagen, write_tag
from clips.checkpoints import fingerprint, newest_checkpoint
from clips.locks import only_run
from clips.options import ROOT, ProcessArguments, check_model, check_output, parse, user_errors

MAKE_ONE = "accelerate launch train.py configs/demo.yaml"


@dataclass
class CaptionArguments(SpanArguments, SubtitleArguments, ProcessArguments):
    group = "files and captions"
    paths: list[str] = field(
        default_factory=list, metadata={"help": "Files, folders, patterns, lists of paths, or - for standard input."}
    )
    csv: str | None = field(default=None, metadata={"help": "Table of paths: csv, tsv, jsonl or parquet."})
    column: str = field(default="path", metadata={"help": "Column of paths in --csv."})
    model: str | None = field(
        default=None, metadata={"help": "Checkpoint: folder or Hub id; the newest in outputs/ if unset."}
    )
    output: str | None = field(
        default=None, metadata={"help": "File of the captions: .jsonl, .csv or .parquet; they are printed if unset."}
    )
    existing: Literal["error", "skip", "overwrite", "append"] = field(
        default="error",
        metadata={"help": "If --output holds captions: skip captions only what is new or has changed since."},
    )
    start: float | None = field(
        default=None, metadata={"help": "Second where the part that is heard begins; the middle is heard if unset."}
    )
    where: str = field(
        default="middle",
        metadata={"help": "What is heard of a file: middle, whole, or a number of windows spread over it."},
    )
    alternatives: int | None = field(
        default=None,
        metadata={
            "help": "Captions per file or span, the best first; needs as many beams. 1, or 3 of spans, if unset."
        },
    )
    selection: Literal["best", "consensus"] | None = field(
        default=None, metadata={"help": "How a caption is chosen; as the checkpoint says if unset."}
    )
    batch_size: int = field(default=16, metadata={"help": "Files per forward pass and process."})
    sidecar: Consumer | None = field(
        default=None, metadata={"help": "Also write a file beside each song, as this program reads captions."}
    )
    tags: bool = field(
        default=False, metadata={"help": "Also write the captions into the files, as the tag RGMC_CAPTION."}
    )
    remove_tags: bool = field(default=False, metadata={"help": "Remove these tags from the files, and stop."})
    strict: bool = field(default=False, metadata={"help": "Stop at the first file that cannot be used."})
    dry_run: bool = field(default=False, metadata={"help": "Print the files that would be captioned, and stop."})

    def __post_init__(self):
        SpanArguments.__post_init__(self)
        ProcessArguments.__post_init__(self)
        if self.alternatives is None and not self.divides:
            self.alternatives = 1
        self.check_least("batch_size", 1)
        if self.alternatives is not None:
            self.check_least("alternatives", 1)
        self.check_spans()
        self.check_subtitles([*self.paths, *filter(None, [self.csv])])
        if not (self.paths or self.csv or self.render or self.check):
            raise ValueError("nothing to caption: name files or folders, as in python caption.py song.mp3")
        if self.start is not None and not self.start >= 0:
            raise ValueError(f"--start {self.start:g}: expected 0 or more seconds")
        for name, unset in (("start", None), ("where", "middle"), ("sidecar", None), ("tags", False)):
            if self.divides and getattr(self, name) != unset:
                raise ValueError(
                    f"--{name} is for one caption a file: leave it out, because spans are of the whole file"
                )
        if self.where not in ("middle", "whole") and not (self.where.isdecimal() and int(self.where)):
            raise ValueError(f"--where {self.where}: expected middle, whole, or a number of windows from 1 up")
        if self.start is not None and self.where != "middle":
            raise ValueError(f"--start {self.start:g} and --where {self.where}: give one of the two")
        if self.output:
            check_format(self.output, (".jsonl",) if self.divides else FORMATS)
            check_output(str(Path(self.output).parent), "--output")
        if self.tags or self.remove_tags:
            check_mutagen()
        if "-" in self.paths and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("- is read by one process: give several a file of paths that ends in .txt")

    @property
    def divides(self) -> bool:
        """Whether files are divided into spans: also to write subtitles."""
        return bool(self.spans or self.writes_subtitles)

    @property
    def writes_subtitles(self) -> bool:
        return bool((self.paths or self.csv) and (self.format or self.merge or self.embed))


def run(args: CaptionArguments) -> int:
    """Runs [`main`], and returns the exit status of an interruption too."""
    writes = args.output and not (args.dry_run or args.remove_tags)
    try:
        with ExitStack() as lock:
            if writes:
                lock.enter_context(lock_output(Path(args.output)))
            return check(args) if args.check else render(args) if args.render else main(args, lock)
    except KeyboardInterrupt:
        kept = f": what is done is kept in {args.output}.partial, and the same command resumes"
        say(f"interrupted{kept if args.output else '; with --output it could be resumed'}")
        return 130
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def lock_output(output: Path) -> AbstractContextManager:
    return only_run(output.parent, f"--output {output}", f".{output.name}.lock")


def main(args: CaptionArguments, lock: ExitStack) -> int:
    """Captions the files, and returns the exit status: 1 if some could not be used."""
    # 1. What there is to do, before torch is loaded
    inputs = find_inputs(args.paths, args.csv, args.column)
    if not inputs.files:
        say("nothing to do: no audio or video files found")
        return report(inputs)
    if args.remove_tags:
        untagged = tag_files(dict.fromkeys(inputs.files))
        return report(inputs) | report_untagged(untagged)
    model, note = (args.model, "") if args.model else find_model()
    check_model("--model", model)
    checkpoint = fingerprint(model)
    settings = {name: getattr(args, name) for name in ("start", "where", "alternatives", "selection")}
    music = None
    if args.divides:
        music = read_music_spans(args.music_spans, inputs.files) if args.music_spans else None
        names = ("alternatives", "selection", "music_detector")
        settings = {name: getattr(args, name) for name in names} | asdict(args.settings())
    own_settings = {path: settings | ({"music": music[path]} if music else {}) for path in inputs.files}
    keys = {path: row_key(stamp, checkpoint, own_settings[path]) for path, stamp in inputs.files.items()}
    if args.writes_subtitles:
        check_targets([*inputs.files], args)
    make_ledger = SpanLedger if args.divides else Ledger
    ledger = make_ledger(keys, Path(args.output) if args.output else None, args.existing)
    batches = ledger.batches(1 if args.divides else args.batch_size)
    resumed = bool(ledger.journals())
    sidecars = Sidecars(args.sidecar, list(keys), args.existing, resumed) if args.sidecar else None
    announce(inputs, ledger, f"{model}{note}")
    if args.dry_run:
        print(*(path for batch in batches for path in batch), sep="\n", end="\n" if batches else "")
        return report(inputs)
    if not (batches or resumed or sidecars or args.tags):
        subtitles(args, ledger, [])
        return report(inputs)

    # 2. The processes, and what an interrupted run left to them
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, gather_object
    from transformers.utils import logging

    from captions.captioner import Captioner
    from model_card_rgmc import from_scratch_warning

    logging.disable_progress_bar()  # of loading the weights
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    accelerator.wait_for_everyone()  # every process has read the journals before one writes
    if accelerator.is_main_process:
        ledger.begin()
    accelerator.wait_for_everyone()

    # 3. The captions
    own = batches[accelerator.process_index :: accelerator.num_processes]
    total = sum(map(len, own))
    printer = Printer(list(keys), plain=len(keys) == 1) if not (args.output or args.writes_subtitles) else None
    rows: list[dict] = []
    problems: dict[str, str] = {}
    untagged: dict[str, str] = {}
    begun, heard = time.monotonic(), 0.0
    generate_kwargs: dict = {"selection": args.selection} if args.selection else {}
    if args.alternatives and (args.alternatives > 1 or args.divides):
        generate_kwargs["num_return_sequences"] = args.alternatives
    where = args.where if args.where in ("middle", "whole") else int(args.where)
    captioner = Captioner(model, accelerator.device, args.start, where, **generate_kwargs) if own else None
    if captioner and not args.divides:
        captioner.remember([*ledger.held().values(), *ledger.done.values()])
    hidden = (total < 2 and not args.divides) or not accelerator.is_main_process
    with tqdm(total=total, unit="file", disable=hidden) as progress:
        for found, bad in _results(args, captioner, own, music, progress):
            found = [_finished(row, checkpoint, own_settings, keys) for row in found]
            ledger.record(found, accelerator.process_index)
            rows += found
            problems |= bad
            if printer and accelerator.num_processes == 1:
                printer.show(found, bad)
            heard += sum(row["duration"] for row in found)
            progress.update(len(found) + len(bad))
            progress.set_postfix_str(f"{heard / (time.monotonic() - begun):.0f}x real time")
            if bad and args.strict:
                break
    if problems and args.strict:
        path, reason = next(iter(problems.items()))
        print(f"{path}: {reason}", file=sys.stderr)
        return 1

    # 4. The files
    rows, problems = gather_object(rows), dict(gather_object(list(problems.items())))
    if accelerator.is_main_process:
        new = ledger.new(rows)
        if args.tags:
            untagged = write_tags(ledger, new, checkpoint, settings)
        if sidecars:
            sidecars.write(({row["path"]: row for row in ledger.rows} | new).values(), former=ledger.rows)
            if sidecars.kept:
                say(f"{_files(len(sidecars.kept))} beside the songs kept, such as {sidecars.kept[0]}")
        ledger.finish(new)
        lock.close()  # before the journals go: a kill between the two would leave the lock's file for good
        ledger.clear()
        if printer and accelerator.num_processes > 1:
            printer.show(rows, problems)
        subtitles(args, ledger, rows)
        silent = sum("silence" in row.get("flags", ()) for row in rows)
        if silent:
            say(f"{_files(silent)} without a caption: silence")
        if captioner and any(part["caption"] for row in rows for part in row.get("spans", [row])):
            warning = from_scratch_warning(captioner.pipeline.model.config)
            if warning:
                say(warning)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    inputs.problems |= problems
    return report(inputs) | report_untagged(untagged)


def _results(
    args: CaptionArguments, captioner, batches: list[list[str]], music: dict | None, progress: tqdm
) -> Iterable[tuple[list[dict], dict[str, str]]]:
    """What is said of the files, and the problems, as [`Captioner`] yields them."""
    if captioner is None:
        return ()
    if not args.divides:
        return captioner.caption(batches, args.num_proc)
    return captioner.spans(
        [path for batch in batches for path in batch],
        args.settings(),
        music,
        load_detector(args.music_detector) if args.music_detector else None,
        args.batch_size,
        args.num_proc,
        lambda path, share: progress.set_postfix_str(f"{Path(path).name} {share:.0%}"),
    )


def _finished(row: dict[str, Any], checkpoint: dict, settings: dict[str, dict], keys: dict[str, str]) -> dict[str, Any]:
    """A row with the checkpoint and what it depends on; of a file in spans, each span has them."""
    path, duration = row["path"], row["duration"]
    if "spans" not in row:
        return row | {"checkpoint": checkpoint, "key": keys[path]}
    shared = {"checkpoint": checkpoint, "settings": {**settings[path], "key": keys[path]}}
    spans = [{"path": path, "duration": duration} | span | shared for span in row["spans"]]
    return {"path": path, "duration": duration, "key": keys[path], "spans": spans}


def subtitles(args: CaptionArguments, ledger: Ledger, rows: list[dict]):
    """Writes the subtitles of all files that have spans, those of earlier runs too, and prints their paths."""
    if not args.writes_subtitles:
        return
    known = {row["path"]: row for row in (*ledger.rows, *ledger.done.values(), *rows)}
    found = [known[path] for path in ledger.keys if path in known]
    if found:
        print(*write_subtitles(spans_of(found), args), sep="\n")


def find_model() -> tuple[str, str]:
    """The newest checkpoint in `outputs/`, of the working folder or of the repository, and how it was found."""
    for folder in (Path("outputs"), ROOT / "outputs"):
        found = newest_checkpoint(folder)
        if found:
            return str(found), f" (the newest in {folder})"
    raise FileNotFoundError(
        f"there is no checkpoint in outputs/: name one with --model, or make one with `{MAKE_ONE}` (about 8 minutes)"
    )


def announce(inputs: Inputs, ledger: Ledger, model: str):
    to_do = sum(path not in ledger.done for path in ledger.todo)
    parts = [f"{_files(to_do)} to caption with {model}"]
    if inputs.duplicates:
        parts.append(f"{inputs.duplicates} named more than once")
    if len(inputs.files) > len(ledger.todo):
        parts.append(f"{len(inputs.files) - len(ledger.todo)} with a caption in {ledger.output}")
    if ledger.done:
        parts.append(f"{len(ledger.done)} captioned by an interrupted run")
    if ledger.stale:
        parts.append(f"{ledger.stale} again, because the file, the model or a setting has changed")
    if ledger.dropped:
        parts.append(f"{ledger.dropped} of an interrupted run with other files, model or settings dropped")
    say("; ".join(parts))


def write_tags(ledger: Ledger, new: dict[str, dict], checkpoint: dict, settings: dict) -> dict[str, str]:
    """Tags the files of all valid rows. That changes their keys, which `new` and the journal note before a file is."""
    valid = ledger.held() | new

    def note(path: str, status: os.stat_result):
        new[path] = valid[path] | {"key": row_key((status.st_size, status.st_mtime_ns), checkpoint, settings)}
        ledger.record([new[path]])

    problems = tag_files({path: row["caption"] for path, row in valid.items() if row["caption"] is not None}, note)
    ledger.rekey({path: row["key"] for path, row in new.items()})
    return problems


def tag_files(captions: dict[str, str | None], note: Callable | None = None) -> dict[str, str]:
    """Writes captions into the tags of files, or removes them; returns the reasons of files that have no such tags."""
    problems = {}
    for path, caption in captions.items():
        try:
            write_tag(path, caption and " ".join(caption.split()), note and functools.partial(note, path))
        except (ValueError, OSError) as error:
            problems[path] = str(error)
    return problems


def report(inputs: Inputs) -> int:
    """Lists the files that cannot be used, and returns the exit status."""
    if inputs.problems:
        total = len({*inputs.files, *inputs.problems})
        say(f"{len(inputs.problems)} of {_files(total)} could not be captioned:")
        for path, reason in sorted(inputs.problems.items()):
            say(f"  {path}: {reason}")
    return int(bool(inputs.problems))


def report_untagged(problems: dict[str, str]) -> int:
    """Lists the files whose tags cannot be changed, and returns the exit status."""
    for path, reason in problems.items():
        say(f"not tagged: {path}: {reason}")
    return int(bool(problems))


def say(text: str):
    if int(os.environ.get("RANK", "0")) == 0:
        print(text, file=sys.stderr)


def _files(count: int) -> str:
    return f"{count} file{'s'[: count != 1]}"


class Printer:
    """Prints captions in the order of the files."""

    def __init__(self, paths: list[str], plain: bool):
        self.waiting, self.plain = deque(paths), plain
        self.lines: dict[str, str | None] = {}

    def show(self, rows: list[dict], problems: dict[str, str]):
        for row in rows:
            lines = show(row) if "spans" in row else [" ".join((row["caption"] or "").split())]  # one line
            self.lines[row["path"]] = "\n".join(line if self.plain else f"{row['path']}\t{line}" for line in lines)
        self.lines |= dict.fromkeys(problems)
        while self.waiting and self.waiting[0] in self.lines:
            line = self.lines[self.waiting.popleft()]
            if line is not None:
                tqdm.write(line, sys.stdout)  # above the progress bar
        sys.stdout.flush()


if __name__ == "__main__":
    with user_errors():
        (caption_args,) = parse(CaptionArguments, sys.argv[1:], __doc__, positional="paths")
        sys.exit(run(caption_args))
