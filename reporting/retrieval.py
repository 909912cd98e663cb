"""The table of how well encoders retrieve, for the terminal, Markdown and HTML."""

from reporting.results import EvaluationResults
from reporting.tables import Table, align_columns, format_score, seed_notes


def retrieval_title(results: EvaluationResults) -> str:
    """The heading of the table: the split and its size."""
    return f"Retrieval · {results.split}: {results.n} {'clip' if results.n == 1 else 'clips'}"


def retrieval_table(results: EvaluationResults, intervals: bool = True) -> Table:
    """A row per encoder."""
    encoders = list(results.retrieval.encoders.values())
    header = ["Encoder", "Songs", *(f"Recall@{k} %" for k in encoders[0].recall), "Ceiling %"]
    rows = [
        [
            encoder.title,
            str(encoder.rows),
            *(format_score(score, intervals) for score in [*encoder.recall.values(), encoder.ceiling]),
        ]
        for encoder in encoders
    ]
    return header, rows


def retrieval_notes(results: EvaluationResults) -> list[str]:
    """What the columns mean, and what "±" means."""
    threshold = results.retrieval.threshold
    notes = [
        "Recall@k: share of the clips with a similar caption among those of their k nearest songs. "
        f"Similar captions have a token F1 of {threshold:g} or more.",
        "Ceiling: share of the clips with a similar caption among those of all songs.",
    ]
    if any(encoder.ceiling.value is None for encoder in results.retrieval.encoders.values()):
        notes[-1] += " Not computed where there are too many pairs of captions to compare."
    return notes + seed_notes(results)


def format_retrieval(results: EvaluationResults) -> str:
    """The table for a terminal: a title, aligned columns without intervals, and the notes."""
    header, rows = retrieval_table(results, intervals=False)
    return "\n".join([retrieval_title(results), *align_columns(header, rows), *retrieval_notes(results)])
