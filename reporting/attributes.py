"""The table of attributes: which instruments, genres, moods and tempi systems claim, and how many claims hold."""

from pathlib import Path

from reporting.results import EvaluationResults, Score
from reporting.tables import Table, align_columns, system_title

TITLE = "Attributes"


def attribute_table(results: EvaluationResults) -> Table:
    """Precision, recall and F1 of the attributes that systems claim: a row per system, a column per category."""
    systems = results.attributes.systems
    categories = list(next(iter(systems.values())))
    rows = []
    for name, scores in systems.items():
        cells = [_triple(scores[key].precision, scores[key].recall, scores[key].f1) for key in categories]
        of_all = scores["all"]
        cells.append(_triple(of_all.macro_precision, of_all.macro_recall, of_all.macro_f1))
        rows.append([system_title(results, name), *cells])
    return ["System", *categories, "macro"], rows


def attribute_notes(results: EvaluationResults) -> list[str]:
    """What the table of attributes shows, and where its facts come from."""
    attributes = results.attributes
    origins: dict[str, list[str]] = {}
    for category, source in attributes.sources.items():
        origins.setdefault(source, []).append(category)
    facts = "; ".join(f"{', '.join(categories)} from the {source}" for source, categories in origins.items())
    notes = [
        f"Precision / recall / F1 x 100 of the words of {Path(attributes.file).name}: "
        "the share of claims that hold, the share of facts that are found, and their harmonic mean",
        "macro: the mean over the concepts of all categories that are claimed or true at least once",
        f"facts: {facts}",
    ]
    if results.checkpoints:
        notes.append(
            f"means over {len(results.checkpoints)} checkpoints that differ by seed; ± is the standard deviation of F1"
        )
    return notes


def format_attributes(results: EvaluationResults) -> str:
    """The table of attributes for a terminal."""
    header, rows = attribute_table(results)
    return "\n".join([TITLE, *align_columns(header, rows), *attribute_notes(results)])


def _triple(precision: Score, recall: Score, f1: Score) -> str:
    deviation = "" if f1.deviation is None else f" ± {f1.deviation:.1f}"
    return " / ".join(f"{score.value:.1f}" for score in (precision, recall, f1)) + deviation
