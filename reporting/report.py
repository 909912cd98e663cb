"""
The report of an evaluation: `report.md`, and `report.html`, a single file that contains its plots and its sound.

It opens with a plain summary and clips to listen to. Tables, plots and how it was made follow.
"""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reporting import attributes, explaining, listening, published, retrieval
from reporting.markdown import markdown_table, markdown_text
from reporting.plots import plot_coverage, plot_explanation, plot_lengths, plot_scores, plot_similarity
from reporting.results import Checkpoint, EvaluationResults, ItemScores, Prediction, SystemResult
from reporting.sound import mp3_in_base64
from reporting.tables import (
    bootstrap_note,
    caption_table,
    difference_table,
    draw_examples,
    format_score,
    has_reported_rows,
    interval_note,
    public_name,
    reported_table,
    system_title,
    table,
    table_notes,
    table_title,
)


def write_report(
    output_dir: str | Path,
    results: EvaluationResults,
    lines: list[Prediction],
    item_scores: ItemScores,
    load_clip: Callable[[int], np.ndarray] | None = None,
    num_examples: int = 12,
    side_by_side: bool = False,
    warning: str | None = None,
    explanations: list[dict[str, Any]] | None = None,
):
    """
    Writes `report.md`, `plots/*.png` and `report.html` to `output_dir`.

    Args:
        output_dir (`str` or `Path`): A folder; created if it does not exist.
        results ([`EvaluationResults`]), lines (`list[Prediction]`), item_scores (`ItemScores`):
            What the evaluation found: for all clips, and for each clip.
        load_clip (`Callable`, *optional*):
            Returns the 10 s that the model hears of a row of `lines`: float32, mono, 48 kHz. Where it raises, the
            report shows the reason in place of a player. Without it there are no players.
        num_examples (`int`, *optional*, defaults to 12): Clips to show, drawn with the seed of `results`.
        side_by_side (`bool`, *optional*, defaults to `False`):
            Whether Table 1 is added: the captions of every system for the clips that are shown.
        warning (`str`, *optional*): What a reader must know about the model, shown below the summary.
        explanations (`list[dict]`, *optional*): What [`Explanation.to_dict`] returns of each clip; one is drawn.
    """
    output_dir = Path(output_dir)
    (output_dir / "plots").mkdir(parents=True, exist_ok=True)
    drawn = draw_examples(results, lines, num_examples)
    examples = [{**lines[row], **_player(load_clip, row), "source": _candidate_source(lines[row])} for row in drawn]
    of_first = ", by the first checkpoint." if results.checkpoints else "."
    figures = {
        "scores": (
            plot_scores(results),
            "Scores with their intervals, without those that gold captions reach against themselves.",
        ),
        "similarity": (
            plot_similarity(results, lines, item_scores),
            f"CIDEr-D of the clips in bins of about equal size, by how similar their candidates sound{of_first}",
        ),
        "lengths": (plot_lengths(results, item_scores), f"Length of the captions{of_first}"),
    }
    if results.explanation:
        text = "CIDEr-D of the surest clips by how many are captioned. A rank of sureness is no probability of truth."
        figures["coverage"] = (plot_coverage(results), text)
    if explanations and drawn:
        line = lines[drawn[0]]
        text = f"Where the words of the caption of {line['id']} come from, the first of the clips to listen to."
        figures["explained"] = (plot_explanation(explanations[drawn[0]]), text)
    names = [public_name(checkpoint["name"]) for checkpoint in _checkpoints(results)]
    plots = []
    for name, (figure, text) in figures.items():
        path = output_dir / "plots" / f"{name}.png"
        path.unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(path, dpi=120)
            data = base64.b64encode(path.read_bytes()).decode()
            plots.append({"name": name, "path": f"plots/{name}.png", "text": text, "data": data})
    report = {
        "title": f"RGMC {', '.join(names)} on {public_name(results.dataset)}",
        "summary": summary(results),
        "warning": warning,
        "examples": examples,
        "captions": caption_table(results, examples) if side_by_side else None,
        "tables": [
            *(_described_table(results, name) for name in results.tables),
            *_further_tables(results),
        ],
        "source": published.SOURCE,
        "differences": difference_table(results),
        "difference_note": _difference_note(results),
        "plots": plots,
        "facts": _facts(results),
    }
    render_report(output_dir, report)


def render_report(output_dir: Path, report: dict):
    """Writes `report.md` and `report.html` from what their templates show."""
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


def summary(results: EvaluationResults) -> str:
    """
    RGMC's CIDEr-D beside that of its nearest neighbour's captions, and whether the difference is more than chance.

    Where leaks were looked for, the same follows for the clips that do not leak.
    """
    clips = f"the {results.n} clips of {results.split}" if results.n != 1 else f"the one clip of {results.split}"
    found = [_compare(results, results.systems, clips, results.n)]
    without = results.without_leaks
    if without and without.n:
        clips = f"the {without.n} of them that do not leak from {without.train_split}"
        found.append(_compare(results, without.systems, clips, without.n))
    if results.checkpoints:
        found.append(f"Scores are means over {len(results.checkpoints)} checkpoints, ± their standard deviation.")
    return " ".join(found)


def _compare(results: EvaluationResults, systems: dict[str, SystemResult], clips: str, n: int) -> str:
    title, level = system_title(results, "rgmc"), f"{100 * results.bootstrap['level']:g} %"
    own, nearest = (systems[key].scores["cider_d"] for key in ("rgmc", "nearest_neighbor"))
    text = f"{title} scores {format_score(own, False)} CIDEr-D on {clips}; "
    text += f"the captions of the most similar songs in its datastore score {format_score(nearest, False)}. "
    difference = systems["nearest_neighbor"].difference.get("cider_d")
    if n == 1:
        return text + "A single clip cannot show a difference."
    if difference is None or difference.low is None:
        return text + f"The difference is {own.value - nearest.value:.2f}, without an interval."
    interval = f"{difference.low:.2f} to {difference.high:.2f}"
    if difference.low <= 0 <= difference.high:
        return text + (
            f"The difference of {difference.value:.2f} may be chance: its {level} interval, {interval}, includes zero."
        )
    comparison = "better" if difference.value > 0 else "worse"
    return text + (
        f"{title} is {comparison} by {abs(difference.value):.2f}: the {level} interval of the difference, {interval}, "
        "excludes zero."
    )


def _difference_note(results: EvaluationResults) -> str:
    note = "Paired bootstrap over clips: both systems are scored on the same samples. The intervals do not cover what "
    note += "another seed of the training would change."
    if results.checkpoints:
        note += " ± is the standard deviation of the difference over the checkpoints, which are compared one by one."
    return note


def _checkpoints(results: EvaluationResults) -> list[Checkpoint]:
    return results.checkpoints or [results.checkpoint]


def _described_table(results: EvaluationResults, name: str) -> dict:
    """A table with its notes and, where the paper's rows are about another corpus, those in a table of their own."""
    return {
        "title": table_title(results, name),
        "scores": table(results, name),
        "interval_note": interval_note(results, name),
        "notes": table_notes(results, name),
        "list": None,
        "reported": None if has_reported_rows(results, name) else reported_table(name),
        "reported_corpus": published.CORPORA[name],
    }


def _further_tables(results: EvaluationResults) -> list[dict]:
    """The tables that are not of the paper, where there is what they show."""
    interval_note, found = bootstrap_note(results), []
    if results.attributes:
        scores, notes = attributes.attribute_table(results), attributes.attribute_notes(results)
        found.append({"title": attributes.TITLE, "scores": scores, "interval_note": "", "notes": notes})
    if results.listening:
        scores, notes = listening.listening_table(results.listening), listening.listening_notes(results)
        found.append({"title": listening.TITLE, "scores": scores, "interval_note": interval_note, "notes": notes})
    if results.retrieval:
        title = retrieval.retrieval_title(results)
        scores, notes = retrieval.retrieval_table(results), retrieval.retrieval_notes(results)
        found.append({"title": title, "scores": scores, "interval_note": interval_note, "notes": notes})
    if results.explanation:
        for title, scores, notes in explaining.explanation_tables(results):
            note = interval_note if title in (explaining.KINDS_TITLE, explaining.LENSES_TITLE) else ""
            listed = explaining.watched_list(results) if title == explaining.WATCHED_TITLE else None
            found.append({"title": title, "scores": scores, "interval_note": note, "notes": notes, "list": listed})
    return [{"list": None, **each, "reported": None} for each in found]


def _player(load_clip: Callable | None, row: int) -> dict[str, str | None]:
    """The sound of a row as an mp3 in base64, or why there is none."""
    if load_clip is None:
        return {"audio": None, "silence": None}
    try:
        return {"audio": mp3_in_base64(load_clip(row)), "silence": None}
    except Exception as error:  # decoders raise errors of many types; the report of the other clips is worth having
        return {"audio": None, "silence": f"{type(error).__name__}: {error}"}


def _candidate_source(line: Prediction) -> str:
    similarity = [] if line["similarity"] is None else [f"similarity {line['similarity']:.3f}"]
    return ", ".join([line["candidate_id"] or "no id", *similarity])


def _facts(results: EvaluationResults) -> list[tuple[str, str]]:
    bootstrap, facts = results.bootstrap, [("Command", results.command)]
    for checkpoint in _checkpoints(results):
        revision = f", revision {checkpoint['revision']}" if checkpoint["revision"] else ""
        facts.append(("Checkpoint", checkpoint["name"] + revision))
        facts += [(f"SHA-256 of {file}", digest) for file, digest in checkpoint["sha256"].items()]
    return [
        *facts,
        ("Data", f"{results.dataset}, split {results.split}, {results.n} clips"),
        ("Seed", str(results.seed)),
        ("Bootstrap", f"{bootstrap['samples']} samples, level {bootstrap['level']:g}, unit {bootstrap['unit']}"),
        ("Text", results.text),
        ("Versions", ", ".join(f"{name} {version}" for name, version in results.versions.items())),
    ]
