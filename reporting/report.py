"""
The results of an evaluation to read: tables on the terminal, `report.md`, and `report.html`, one file that holds its
plots and sounds itself.

`results` is what `results.json` holds, `lines` those of `predictions.jsonl`, `item_scores` a score per clip,
`{system: {metric: [float, …]}}`.
"""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reporting import published
from reporting.markdown import markdown_table, markdown_text
from reporting.plots import METRICS, plot_lengths, plot_scores, plot_similarity
from reporting.results import EvaluationResults, ItemScores, Prediction
from reporting.tables import (
    caption_table,
    difference_table,
    draw_examples,
    format_score,
    interval_note,
    metric_stem,
    table,
    table_notes,
    table_title,
)

SAMPLING_RATE = 48_000  # Hz


def write_report(
    output_dir: str | Path,
    results: EvaluationResults,
    lines: list[Prediction],
    item_scores: ItemScores,
    load_clip: Callable[[int], np.ndarray] | None = None,
    num_examples: int = 12,
):
    """
    Writes `report.md`, `plots/*.png` and `report.html` to `output_dir`.

    Args:
        output_dir: A folder; made where there is none.
        results, lines, item_scores: Of an evaluation.
        load_clip: Gives for a row of `lines` the 10 s that the model hears, float32, mono, 48 kHz. A row for which it
            fails has no player but the reason.
        num_examples: Clips to show, drawn with the seed of `results`.
    """
    output_dir = Path(output_dir)
    (output_dir / "plots").mkdir(parents=True, exist_ok=True)
    examples = [
        {**lines[row], **_player(load_clip, row), "source": _candidate_source(lines[row])}
        for row in draw_examples(results, lines, num_examples)
    ]
    figures = {
        "scores": (plot_scores(results), "Scores with their intervals. Gold captions are shown for CLAP A-T only."),
        "similarity": (
            plot_similarity(results, lines, item_scores),
            "CIDEr-D of the clips in bins of about equal size, by how similar their candidates sound.",
        ),
        "lengths": (plot_lengths(results, item_scores), "Length of the captions."),
    }
    plots = []
    for name, (figure, text) in figures.items():
        path = output_dir / "plots" / f"{name}.png"
        path.unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(path, dpi=120)
            data = base64.b64encode(path.read_bytes()).decode()
            plots.append({"path": f"plots/{name}.png", "text": text, "data": data})
    names = results.tables
    report = {
        "title": f"RGMC {results.checkpoint['name']} on {results.dataset}",
        "headline": _headline(results),
        "tables": [(table_title(results, name), *table(results, name), table_notes(results, name)) for name in names],
        "interval_note": interval_note(results),
        "differences": difference_table(results),
        "difference_note": "Paired bootstrap over clips: both systems are scored on the same samples. The intervals do "
        "not cover what another seed of the training would change.",
        "plots": plots,
        "captions": caption_table(results, examples),
        "examples": examples,
        "facts": _facts(results),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name == "report.html.jinja",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(md=markdown_text, md_table=lambda table: markdown_table(*table))
    for name in ("report.md", "report.html"):
        text = environment.get_template(f"{name}.jinja").render(report)
        (output_dir / name).write_text(text.rstrip() + "\n", encoding="utf-8")


def _player(load_clip: Callable | None, row: int) -> dict[str, str | None]:
    """The sound of a row as an mp3 in base64, or why there is none."""
    if load_clip is None:
        return {"audio": None, "silence": None}
    try:
        file = io.BytesIO()
        soundfile.write(file, np.clip(load_clip(row), -1, 1), SAMPLING_RATE, format="MP3")
    except Exception as error:  # decoders raise their own; the report of the other clips is worth having
        return {"audio": None, "silence": f"{type(error).__name__}: {error}"}
    return {"audio": base64.b64encode(file.getvalue()).decode(), "silence": None}


def _candidate_source(line: Prediction) -> str:
    similarity = [] if line["similarity"] is None else [f"similarity {line['similarity']:.3f}"]
    return ", ".join([line["candidate_id"] or "no id", *similarity])


def _headline(results: EvaluationResults) -> str:
    scores = results.systems["rgmc"].scores
    keys = [key for key in results.metrics if metric_stem(key) in METRICS and key in scores]
    shown = ", ".join(f"{results.metrics[key]} {format_score(scores[key], True)}" for key in keys)
    return f"{results.n} clips of {results.split}: {shown}"


def _facts(results: EvaluationResults) -> list[tuple[str, str]]:
    checkpoint, bootstrap = results.checkpoint, results.bootstrap
    return [
        ("Command", results.command),
        ("Checkpoint", checkpoint["name"] + (f", revision {checkpoint['revision']}" if checkpoint["revision"] else "")),
        *((f"SHA-256 of {file}", digest) for file, digest in checkpoint["sha256"].items()),
        ("Data", f"{results.dataset}, split {results.split}, {results.n} clips"),
        ("Seed", str(results.seed)),
        ("Bootstrap", f"{bootstrap['samples']} samples, level {bootstrap['level']:g}, unit {bootstrap['unit']}"),
        ("Text", results.text),
        ("Versions", ", ".join(f"{name} {version}" for name, version in results.versions.items())),
        ("Reported rows", published.SOURCE),
    ]
