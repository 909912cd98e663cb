"""
What there is to do: the files, the checkpoint, and what has been captioned already. Nothing here loads torch, unless
a `--music_detector` does.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captions.arguments import CaptionArguments
from captions.inputs import Inputs
from captions.ledger import Ledger, row_key
from captions.sidecars import Sidecars
from captions.spans import Pairs, SpanLedger, load_detector, read_music_spans
from captions.subtitles import check_targets
from clips.checkpoints import check_rgmc, fingerprint, newest_checkpoint, score_threshold
from clips.options import ROOT

MAKE_ONE = "accelerate launch train.py configs/demo.yaml"
BUNDLED = ROOT / "checkpoints" / "demo"  # what this command once made


@dataclass
class Job:
    """
    What there is to do.

    Args:
        model (`str`): The checkpoint: folder or Hub id.
        note (`str`): How it was found, if it was not named.
        checkpoint (`dict`): What identifies it.
        settings (`dict[str, dict]`): What else the caption of each file depends on, by path.
        music (`dict[str, list[tuple[float, float]]]`, *optional*): Where there is music, as `--music_spans` says.
        detector (`Callable`, *optional*): What finds the music, as `--music_detector` says.
        ledger ([`Ledger`]): The files and their rows so far.
        batches (`list[list[str]]`): Files to caption.
        resumed (`bool`): Whether an interrupted run left something.
        sidecars ([`Sidecars`], *optional*): Files to write beside the songs.
    """

    model: str
    note: str
    checkpoint: dict[str, str | None]
    settings: dict[str, dict[str, Any]]
    music: dict[str, Pairs] | None
    detector: Callable[..., Iterable[tuple[float, float]]] | None
    ledger: Ledger
    batches: list[list[str]]
    resumed: bool
    sidecars: Sidecars | None


def find_job(args: CaptionArguments, inputs: Inputs) -> Job:
    """Finds what there is to do, and raises what would stop it halfway; nothing on the disk is changed."""
    model, note = (args.model, "") if args.model else find_model()
    check_rgmc("--model", model)
    checkpoint = fingerprint(model)
    names = ("start", "where", "alternatives", "selection")
    common, music = {name: getattr(args, name) for name in names}, None
    if args.explain:
        common["explain"] = True
    if args.divides:
        music = read_music_spans(args.music_spans, inputs.files) if args.music_spans else None
        names = ("alternatives", "selection", "music_detector")
        common = {name: getattr(args, name) for name in names} | asdict(args.settings())
        threshold = score_threshold(model)
        common |= {} if threshold is None else {"score_threshold": threshold}
    if args.int8:
        common["int8"] = args.int8
    detector = load_detector(args.music_detector) if args.music_detector else None
    settings = {path: common | ({"music": music[path]} if music else {}) for path in inputs.files}
    if args.writes_subtitles:
        inputs.finished = check_targets([*inputs.files], args)
    todo = {path: stamp for path, stamp in inputs.files.items() if path not in inputs.finished}
    keys = {path: row_key(stamp, checkpoint, settings[path]) for path, stamp in todo.items()}
    make_ledger = SpanLedger if args.divides else Ledger
    ledger = make_ledger(keys, Path(args.output) if args.output else None, args.existing)
    batches = ledger.batches(1 if args.divides else args.batch_size)
    resumed = bool(ledger.journals())
    sidecars = Sidecars(args.sidecar, list(keys), args.existing, resumed) if args.sidecar else None
    return Job(model, note, checkpoint, settings, music, detector, ledger, batches, resumed, sidecars)


def find_model() -> tuple[str, str]:
    """
    The newest checkpoint in `outputs/`, of the working folder or of the repository, or else the one that is part of the
    repository, and how it was found.
    """
    for folder in (Path("outputs"), ROOT / "outputs"):
        found = newest_checkpoint(folder)
        if found:
            return str(found), f" (the newest in {folder})"
    if (BUNDLED / "config.json").is_file():
        return str(BUNDLED), " (part of this repository: it knows only synthesised tunes, see README.md)"
    raise FileNotFoundError(
        f"there is no checkpoint in outputs/: name one with --model, or make one with `{MAKE_ONE}` (about 8 minutes)"
    )
