"""The table of what a model hears."""

from reporting.results import LISTENING_TITLES, EvaluationResults, ListeningResults
from reporting.tables import Table, align_columns, format_score, seed_notes

TITLE = "Listening"
NOTES = [
    "4-way: share of clips whose own caption is more probable, per token, than three captions of other clips: random "
    "ones, or those of the clips that sound most similar to the model's encoder. Chance is 25 %.",
    "Audio swap: share of clips whose own caption is more probable with their own sound than with another clip's. "
    "Chance is 50 %.",
]


def listening_table(listening: ListeningResults, intervals: bool = True) -> Table:
    """Header and rows, one for the model and one for each of its inputs that is masked."""
    rows = [
        [system.title, *(format_score(system.scores[name], intervals) for name in LISTENING_TITLES)]
        for system in listening.systems.values()
    ]
    return ["System", *LISTENING_TITLES.values()], rows


def listening_notes(results: EvaluationResults) -> list[str]:
    """What the columns measure, why one of them is empty, and what "±" means."""
    reasons = [f"{LISTENING_TITLES[name]}: left out: {why}" for name, why in results.listening.unavailable.items()]
    return NOTES + reasons + seed_notes(results)


def format_listening(results: EvaluationResults) -> str:
    """The table for a terminal, without intervals."""
    lines = align_columns(*listening_table(results.listening, intervals=False))
    return "\n".join([TITLE, *lines, *listening_notes(results)])
