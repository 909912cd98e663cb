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
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from captions.arguments import CaptionArguments
from captions.explaining import explain_note
from captions.inputs import find_inputs
from captions.job import Job, find_job
from captions.ledger import Ledger
from captions.messages import Printer, announce, count, is_main_process, report, report_untagged, say
from captions.spans import spans_of
from captions.subtitles import check, render, write_subtitles
from captions.tags import tag_files, write_tags
from clips.locks import only_run
from clips.options import parse, user_errors
from clips.outputs import replaced_whole


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
    if args.picture and len(inputs.files) > 1:
        raise ValueError(f"--picture is of one caption, and {len(inputs.files)} files were found: name one")
    job = find_job(args, inputs)
    announce(inputs, job.ledger, f"{job.model}{job.note}")
    if args.dry_run:
        if is_main_process():
            print(*(path for batch in job.batches for path in batch), sep="\n", end="\n" if job.batches else "")
        return report(inputs)
    if not (job.batches or job.resumed or job.sidecars or args.tags):
        if is_main_process():
            subtitles(args, job.ledger, [])
            draw_picture(args, job.ledger, [])
        return report(inputs)

    # 2. The processes, and what an interrupted run left to them
    accelerator = start_processes(job.ledger)

    # 3. The captions
    own = job.batches[accelerator.process_index :: accelerator.num_processes]
    captioner = load_captioner(args, job, accelerator.device) if own else None
    printer = None if args.output or args.writes_subtitles else Printer(list(job.ledger.keys))
    rows, problems = caption_files(args, job, own, captioner, accelerator, printer)
    if problems and args.strict:
        path, reason = next(iter(problems.items()))
        print(f"{path}: {reason}", file=sys.stderr)
        return 1

    # 4. The files and the messages, by the main process
    rows, problems = gather(rows, problems)
    untagged = {}
    if accelerator.is_main_process:
        untagged = write_files(args, job, rows, lock)
        if printer and accelerator.num_processes > 1:
            printer.show(rows, problems)
        subtitles(args, job.ledger, rows)
        draw_picture(args, job.ledger, rows)
        say_what_captions_are(rows, captioner)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    inputs.problems |= problems
    return report(inputs) | report_untagged(untagged)


def start_processes(ledger: Ledger):
    """Returns the accelerator, once what an interrupted run left is in one journal."""
    from transformers.utils import logging

    from clips.processes import make_accelerator

    logging.disable_progress_bar()  # of loading the weights
    accelerator = make_accelerator()
    accelerator.wait_for_everyone()  # every process has read the journals before one writes
    if accelerator.is_main_process:
        ledger.begin()
    accelerator.wait_for_everyone()
    return accelerator


def load_captioner(args: CaptionArguments, job: Job, device):
    """The captioner of the checkpoint, with the options of the captions."""
    from captions.captioner import Captioner

    generate_kwargs: dict = {"selection": args.selection} if args.selection else {}
    if args.alternatives and (args.alternatives > 1 or args.divides):
        generate_kwargs["num_return_sequences"] = args.alternatives
    if args.explain:
        generate_kwargs["explain"] = True
    where = args.where if args.where in ("middle", "whole") else int(args.where)
    captioner = Captioner(job.model, device, args.start, where, bool(args.int8), **generate_kwargs)
    if not args.divides:
        captioner.remember([*job.ledger.held().values(), *job.ledger.done.values()])
    return captioner


def caption_files(
    args: CaptionArguments, job: Job, batches: list[list[str]], captioner, accelerator, printer: Printer | None
) -> tuple[list[dict], dict[str, str]]:
    """Captions the batches of a process into its journal; returns the rows, and the reasons of unusable files."""
    rows: list[dict] = []
    problems: dict[str, str] = {}
    begun, heard = time.monotonic(), 0.0
    total = sum(map(len, batches))
    hidden = (total < 2 and not args.divides) or not accelerator.is_main_process
    with tqdm(total=total, unit="file", disable=hidden) as progress:
        for found, bad in _results(args, job, batches, captioner, progress):
            found = [_finished(row, job) for row in found]
            job.ledger.record(found, accelerator.process_index)
            rows += found
            problems |= bad
            if printer and accelerator.num_processes == 1:
                printer.show(found, bad)
            heard += sum(row["duration"] for row in found)
            progress.update(len(found) + len(bad))
            progress.set_postfix_str(f"{heard / (time.monotonic() - begun):.0f}x real time")
            if bad and args.strict:
                break
    return rows, problems


def _results(
    args: CaptionArguments, job: Job, batches: list[list[str]], captioner, progress: tqdm
) -> Iterable[tuple[list[dict], dict[str, str]]]:
    """What is said of the files, and the problems, as [`Captioner`] yields them."""
    if captioner is None:
        return ()
    if not args.divides:
        return captioner.caption(batches, args.num_proc)
    return captioner.spans(
        [path for batch in batches for path in batch],
        args.settings(),
        job.music,
        job.detector,
        args.batch_size,
        args.num_proc,
        lambda path, share: progress.set_postfix_str(f"{Path(path).name} {share:.0%}"),
    )


def _finished(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """A row with the checkpoint and what it depends on; of a file in spans, each span has them."""
    path, duration, checkpoint = row["path"], row["duration"], job.checkpoint
    key = job.ledger.keys[path]
    if "spans" not in row:
        return row | {"checkpoint": checkpoint, "key": key}
    shared = {"checkpoint": checkpoint, "settings": {**job.settings[path], "key": key}}
    spans = [{"path": path, "duration": duration} | span | shared for span in row["spans"]]
    return {"path": path, "duration": duration, "key": key, "spans": spans}


def gather(rows: list[dict], problems: dict[str, str]) -> tuple[list[dict], dict[str, str]]:
    """Collects the rows and the problems of all processes."""
    from accelerate.utils import gather_object

    return gather_object(rows), dict(gather_object(list(problems.items())))


def write_files(args: CaptionArguments, job: Job, rows: list[dict], lock: ExitStack) -> dict[str, str]:
    """Writes tags, sidecars and the output, and ends the run; returns the reasons of files that were not tagged."""
    ledger, sidecars = job.ledger, job.sidecars
    new = ledger.new(rows)
    untagged = write_tags(ledger, new, job.checkpoint, job.settings) if args.tags else {}
    if sidecars:
        sidecars.write(({row["path"]: row for row in ledger.rows} | new).values(), former=ledger.rows)
        if sidecars.kept:
            say(f"{count(len(sidecars.kept), 'file')} beside the songs kept, such as {sidecars.kept[0]}")
    ledger.finish(new)
    lock.close()  # before the journals go: a kill between the two would leave the lock's file for good
    ledger.clear()
    return untagged


def subtitles(args: CaptionArguments, ledger: Ledger, rows: list[dict]):
    """Writes the subtitles of all files that have spans, those of earlier runs too, and prints their paths."""
    if not args.writes_subtitles:
        return
    found = all_rows(ledger, rows)
    if found:
        print(*write_subtitles(spans_of(found), args), sep="\n")


def all_rows(ledger: Ledger, rows: list[dict]) -> list[dict]:
    """The rows of all files, those of earlier runs too."""
    known = {row["path"]: row for row in (*ledger.rows, *ledger.done.values(), *rows)}
    return [known[path] for path in ledger.keys if path in known]


def draw_picture(args: CaptionArguments, ledger: Ledger, rows: list[dict]):
    """Draws the explanation of the file, if `--picture` asks for it and the file has a caption."""
    if not args.picture:
        return
    for row in all_rows(ledger, rows):
        if row.get("explanation"):
            from reporting.plots import plot_explanation

            with replaced_whole(Path(args.picture)) as path:
                plot_explanation(row["explanation"]).savefig(path, format=Path(args.picture).suffix[1:], dpi=120)
            say(f"drew {args.picture}")


def say_what_captions_are(rows: list[dict], captioner):
    """Says how many files have no music, how to read explanations, and that a model was trained from scratch."""
    from model_card_rgmc import from_scratch_warning

    for flag in ("silence", "no music"):
        files = sum(flag in row.get("flags", ()) for row in rows)
        if files:
            say(f"{count(files, 'file')} without a caption: {flag}")
    explained = next((row["explanation"] for row in rows if row.get("explanation")), None)
    if explained:
        say(explain_note(explained))
    if captioner and any(part["caption"] for row in rows for part in row.get("spans", [row])):
        warning = from_scratch_warning(captioner.pipeline.model.config)
        if warning:
            say(warning)


if __name__ == "__main__":
    with user_errors():
        (caption_args,) = parse(CaptionArguments, sys.argv[1:], __doc__, positional="paths")
        sys.exit(run(caption_args))
