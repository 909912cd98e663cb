"""The options of `caption.py`."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from captions.formats import FORMATS, check_format
from captions.sidecars import Consumer
from captions.spans import SpanArguments
from captions.subtitles import SubtitleArguments
from captions.tags import check_mutagen
from clips.locks import check_one_process, count_processes
from clips.options import ProcessArguments, check_output

PICTURES = (".png", ".svg")


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
    explain: bool = field(
        default=False, metadata={"help": "Also say of each word what the sound and the candidate add to it."}
    )
    picture: str | None = field(
        default=None, metadata={"help": "With --explain: also draw the explanation of a single file, as .png or .svg."}
    )
    int8: Literal["decoder", "encoder"] | None = field(
        default=None,
        metadata={"help": "Part of the model whose weights are stored as int8 in memory: decoder; needs torchao."},
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
        alone = {"start": None, "where": "middle", "sidecar": None, "tags": False, "explain": False}
        for name, unset in alone.items():
            if self.divides and getattr(self, name) != unset:
                raise ValueError(
                    f"--{name} is for one caption a file: leave it out, because spans are of the whole file"
                )
        if self.where not in ("middle", "whole") and not (self.where.isdecimal() and int(self.where)):
            raise ValueError(f"--where {self.where}: expected middle, whole, or a number of windows from 1 up")
        if self.start is not None and self.where != "middle":
            raise ValueError(f"--start {self.start:g} and --where {self.where}: give one of the two")
        if self.output and (self.render or self.check):
            raise ValueError("--output is for captions: subtitles are beside their files, or in --subtitle_dir")
        if self.output:
            check_format(self.output, (".jsonl",) if self.divides or self.explain else FORMATS)
            check_output(str(Path(self.output).parent), "--output")
        if self.tags or self.remove_tags:
            check_mutagen()
        if self.picture:
            if not self.explain:
                raise ValueError("--picture draws an explanation: add --explain")
            check_format(self.picture, PICTURES, "--picture")
            check_output(str(Path(self.picture).parent), "--picture")
        if self.int8:
            check_int8(self.int8)
        for option in ("render", "check", "remove_tags"):
            if getattr(self, option):
                check_one_process(f"--{option}")
        if "-" in self.paths and count_processes() > 1:
            raise ValueError("- is read by one process: give several a file of paths that ends in .txt")

    @property
    def divides(self) -> bool:
        """Whether files are divided into spans: also to write subtitles."""
        return bool(self.spans or self.writes_subtitles)

    @property
    def writes_subtitles(self) -> bool:
        return bool((self.paths or self.csv) and (self.format or self.merge or self.embed))


def check_int8(part: str):
    """Raises `ValueError` for the encoder, which is not quantised, and `ImportError` without torchao."""
    if part == "encoder":
        raise ValueError(
            "--int8 encoder: a quantised encoder would embed songs differently, and the datastore's fingerprint would "
            "no longer hold; give --int8 decoder, or quantise the datastore (build_datastore.py --storage int8)"
        )
    if find_spec("torchao") is None:
        raise ImportError("--int8 needs torchao: pip install torchao")
