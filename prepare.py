"""
Turns a raw corpus into a folder that `train.py --dataset` takes (section 5 of the paper).

    python prepare.py audiostock --raw_dir raw/audiostock --output_dir data/audiostock --num_proc 8
    python prepare.py musiccaps --csv musiccaps-public.csv --audio_dir raw/musiccaps --output_dir data/musiccaps
    python prepare.py song_describer --csv song_describer.csv --audio_dir raw/audio --output_dir data/song_describer
    python prepare.py lp_musiccaps --source seungheondoh/LP-MusicCaps-MTT --audio_dir raw/mtt --output_dir data/lp_mtt
    python prepare.py any --source table.csv --caption_columns text --file_column path --output_dir data/mine

The folder holds `metadata.parquet`, `rejected.jsonl` (a line for each row that is left out), `report.json`,
`report.md`, `report.html` and `leakage.json` (what the splits share). An interrupted run continues from `probed.jsonl`
and `hashed.jsonl`. `python prepare.py any --help` lists the options.
"""

import json
import os
import shlex
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clips.locks import check_one_process, only_run
from clips.options import (
    DuplicateArguments,
    ProcessArguments,
    check_dataset,
    check_file,
    check_folder,
    check_output,
    choose,
    parse,
    user_errors,
)
from clips.outputs import replaced_together
from clips.rows import METADATA_FILES
from clips.tables import PLACEHOLDERS
from corpora.leaks import write_leaks
from corpora.readers import OF_FILES, READERS, Corpus
from corpora.report import write_report
from corpora.splits import HELD_OUT, SPLITS, assign_splits, group_rows
from corpora.steps import (
    HIDDEN,
    clean_captions,
    drop_duplicates,
    find_shared,
    make_table,
    mark_clusters,
    probe_rows,
    sort_rows,
)

GROUP_COLUMNS = ("track_id", "artist_id", "album_id", "artist", "artist_name", "album")
NOBODY = {"", "various artists", "various", "various artist", "va", "v.a.", "v/a", "unknown", "unknown artist"}
NOBODY |= {"unknown album", "untitled", "-", "?", *PLACEHOLDERS}
ALL_REJECTED = "rejected.failed.jsonl"  # of a run without a usable row, beside the files of a former run


@dataclass(kw_only=True)
class DedupArguments(DuplicateArguments):
    group = "near-duplicates"
    dedup: Literal["drop", "mark", "off"] = field(
        default="off",
        metadata={
            "help": "Near-duplicate captions, compared by the rule paper: drop all but the smallest id of a cluster "
            "(section 5), mark clusters, so that no split cuts one, or leave them."
        },
    )


@dataclass(kw_only=True)
class SplitArguments:
    group = "splits"
    validation: float = field(default=0.05, metadata={"help": "Rows of the validation split; below 1: a share."})
    test: float = field(
        default=0.05,
        metadata={"help": "Rows of the test split; below 1: a share. Unused if the corpus has its own test split."},
    )
    stratify_column: str | None = field(
        default=None, metadata={"help": "Column whose values each split gets equal shares of."}
    )
    group_columns: list[str] = field(
        default_factory=lambda: list(GROUP_COLUMNS),
        metadata={
            "help": "Columns, if there, whose values stay in one split. Placeholders such as 'Various Artists' and "
            "'unknown' do not count; each entry of a list does."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the splits."})


@dataclass
class PrepareArguments(SplitArguments, DedupArguments, ProcessArguments):
    group = "output"
    output_dir: str = field(metadata={"help": "Folder to write."})

    def __post_init__(self):
        super().__post_init__()
        if min(self.validation, self.test) < 0:
            raise ValueError(f"--validation {self.validation} --test {self.test}: expected no negative sizes")


def prepare(corpus: Corpus, args: PrepareArguments, name: str, source: dict) -> dict:
    """
    Writes the files of `args.output_dir`.

    Args:
        corpus ([`Corpus`]):
            What a reader found.
        args ([`PrepareArguments`]):
            What to do with it.
        name (`str`), source (`dict`):
            The corpus's name and the options of its reader, for the report.

    Returns:
        `dict`: What `report.json` holds.

    Raises:
        `ValueError`: If no row can be used, or if splits are larger than the corpus.
    """
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    listed = len(corpus.rows) + corpus.merged + sum(line["kind"] not in OF_FILES for line in corpus.rejected)

    # 1. Rows with an id and a caption, in the order of their ids
    rows = sort_rows(corpus, clean_captions(corpus, corpus.rows))

    # 2. Near-duplicate captions
    clusters = None if args.dedup == "off" else mark_clusters(rows, args.ngram, args.threshold)

    # 3. A corpus's own splits, before files are read: the splits do not depend on which clips somebody lacks
    given = any(row.get("split") for row in rows)
    if given:
        set_splits(rows, args)
    before = Counter(row.get("split") for row in rows)

    # 4. Files that can be decoded, and one of each cluster
    rows = probe_rows(corpus, rows, output_dir / "probed.jsonl", args.num_proc)
    if args.dedup == "drop":
        rows = drop_duplicates(corpus, rows)
    kinds = dict(Counter(line["kind"] for line in corpus.rejected))
    if not rows:
        about = f". {corpus.about_audio}" if "no_audio" in kinds and corpus.about_audio else ""
        is_new = not (output_dir / "metadata.parquet").exists()
        reasons = output_dir / ("rejected.jsonl" if is_new else ALL_REJECTED)
        write_lines(reasons, corpus.rejected)
        raise ValueError(f"no row of {listed} can be used ({kinds}): {reasons} says why{about}")

    # 5. Splits of a corpus that has none
    if not given:
        set_splits(rows, args)
    splits = Counter(row["split"] for row in rows)
    before = sorted((before if given else splits).items(), key=lambda split: (*SPLITS, split[0]).index(split[0]))

    # 6. What the splits share
    leaks = find_shared(rows, output_dir, args.ngram, args.threshold, args.num_proc)

    # 7. The files, in place of a former run's
    table = make_table(rows, corpus.license, output_dir)
    report = {
        "corpus": name,
        "options": {**source, **asdict(args)},
        "listed": listed,
        "merged": corpus.merged,
        "rejected": kinds,
        "kept": len(rows),
        "splits": {split: {"found": splits[split], "total": total} for split, total in before},
        "hours": round(float(table["duration"].sum()) / 3600, 3),
        "tables": corpus.notes,
        "notes": dict(Counter(note for row in rows for note in row["notes"])),
        "clusters": clusters,
        "leaks": [
            {"splits": leak["splits"], "pairs": {kind: found["pairs"] for kind, found in leak["kinds"].items()}}
            for leak in (leaks["leaks"] if leaks else [])
        ],
    }
    with replaced_together(output_dir, last="metadata.parquet", stale=("leakage.json", ALL_REJECTED)) as staging:
        write_lines(staging / "rejected.jsonl", corpus.rejected)
        if leaks:
            write_leaks(staging, leaks)
        write_report(staging, report, table, leaks)
        table.to_parquet(staging / "metadata.parquet", index=False)
    return report


def set_splits(rows: list[dict], args: PrepareArguments):
    """Sets `split` of each row. The corpus's own splits are kept; only those that it lacks are drawn."""
    asked = [("--stratify_column", args.stratify_column)] if args.stratify_column else []
    asked += [("--group_columns", name) for name in args.group_columns if name not in GROUP_COLUMNS]
    for option, name in asked:
        if all(row.get(name) is None for row in rows):
            raise ValueError(
                f"{option} {name}: no row has such a column; found {', '.join(sorted(rows[0].keys() - HIDDEN))}"
            )
    strata = [row[args.stratify_column] for row in rows] if args.stratify_column else None
    own = [row.get("split") for row in rows]
    sizes = {name: 0 if name in own else getattr(args, name) for name in HELD_OUT}
    groups = group_rows([group_labels(row, args.group_columns) for row in rows])
    for row, split in zip(
        rows, assign_splits([row["id"] for row in rows], groups.tolist(), sizes, args.seed, strata, own)
    ):
        row["split"] = split


def group_labels(row: dict, columns: list[str]) -> list[tuple[str, str]]:
    """Returns what puts a row into a group with others: its cluster, its file, and its values in these columns."""
    labels = [("cluster", row["cluster"])] if "cluster" in row else []
    labels += [("file", os.path.realpath(row["file"]))] if row["file"] else []
    for name in columns:
        values = row.get(name)
        for value in values if isinstance(values, list) else [values]:
            text = " ".join(str("" if value is None else value).casefold().split())
            labels += [(name, text)] if text not in NOBODY else []
    return labels


def write_lines(path: Path, lines: list[dict]):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def parse_arguments(argv: list[str]) -> tuple[str, Any, PrepareArguments]:
    """Parses the name of a corpus, the options of its reader, and what to do with it."""
    corpora = f"The corpora: {', '.join(READERS)}. `python prepare.py any --help` lists the options of one."
    name = choose(argv, READERS, "prepare.py", f"{__doc__}\n{corpora}")
    source_class, _, defaults = READERS[name]
    return name, *parse(
        (source_class, PrepareArguments), argv[1:], __doc__, defaults=defaults, prog=f"prepare.py {name}"
    )


def check_paths(source: Any):
    """Raises `FileNotFoundError` if a file or folder that a reader's option names does not exist."""
    expected = {"csv": "the table of the corpus", "raw_dir": "the folder of the raw corpus"}
    expected["audio_dir"] = "the folder of the audio files"
    for name, value in asdict(source).items():
        if name == "source":
            check_dataset("--source", value)
        elif name in expected:
            (check_file if name == "csv" else check_folder)(f"--{name}", value, expected[name])


def check_output_dir(output_dir: Path, source: Any):
    """Raises `ValueError` if the output would be read as raw files, or other files as the output."""
    for raw in (getattr(source, name, None) for name in ("raw_dir", "source")):
        if raw and Path(raw).is_dir() and Path(raw).resolve() in (output_dir.resolve(), *output_dir.resolve().parents):
            raise ValueError(f"--output_dir {output_dir} lies in the raw corpus {raw}: name a folder outside it")
    others = [output_dir / name for name in (*METADATA_FILES, "dataset_dict.json", "state.json")]
    others = [path for path in others if path.is_file() and path.name != "metadata.parquet"]
    others += [path for name in METADATA_FILES for path in output_dir.glob(f"*/{name}")]
    if others:
        raise ValueError(f"--output_dir {output_dir} is another corpus, which holds {others[0]}: name an empty folder")


def missing_audio(corpus: Corpus, report: dict) -> list[str]:
    """Explains, once for all of them, the rows whose file was not found."""
    missing = [line for line in corpus.rejected if line["kind"] == "no_audio"]
    if not missing:
        return []
    told = f"{len(missing):,} of {report['listed']:,} rows are left out, such as {missing[0]['id']}: "
    return [told + missing[0]["reason"], *([corpus.about_audio] if corpus.about_audio else [])]


def next_command(corpus: str, output_dir: str, report: dict) -> list[str]:
    """Returns the command to run next, for the splits that have clips, and why it is not the usual one."""
    sizes = report["splits"]
    lines = [
        f"The split '{name}' is empty: no clip of its {split['total']:,} rows is there"
        for name, split in sizes.items()
        if not split["found"]
    ]
    found = [name for name, split in sizes.items() if split["found"]]
    output = f"outputs/{Path(output_dir).resolve().name}"
    if "train" not in found:
        options = shlex.join(["--dataset", output_dir, "--split", found[0], "--output_dir", output])
        lines.append("There is no training split. To evaluate a model on this corpus:")
        return [*lines, f"    accelerate launch eval.py --model <checkpoint> {options}"]
    config = f"configs/{corpus}.yaml" if corpus in ("audiostock", "musiccaps") else "configs/small.yaml"
    command = ["accelerate", "launch", "train.py", config, "--dataset", output_dir, "--output_dir", output]
    if "test" not in found:
        command += ["--test_split", ""]
    if "validation" in found:
        lines.append("To train on this corpus:")
    else:
        other = "test" if "test" in found else "train"
        command += ["--validation_split", other]
        lines += [
            "train.py needs a validation split to know when to stop: add audio or raise --validation, and run",
            f"prepare.py again. Just to try it, use the split '{other}' in its place:",
        ]
    return [*lines, f"    {shlex.join(command)}"]


def main(argv: list[str]):
    name, source, args = parse_arguments(argv)
    check_one_process("prepare.py")
    check_paths(source)
    check_output(args.output_dir)
    check_output_dir(Path(args.output_dir), source)
    with only_run(args.output_dir, f"--output_dir {args.output_dir}"):
        corpus = READERS[name][1](source, Path(args.output_dir))
        report = prepare(corpus, args, name, asdict(source))
    print(Path(args.output_dir, "report.md").read_text(encoding="utf-8").partition("\n## Examples")[0])
    print(f"\n{report['kept']} clips; more in {args.output_dir}/report.html")
    print("\n".join([*missing_audio(corpus, report), *next_command(name, args.output_dir, report)]))


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
