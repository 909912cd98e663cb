"""The tables of an evaluation: one definition for the terminal, Markdown and HTML."""

from pathlib import Path

import numpy as np

from reporting import published
from reporting.results import (
    LEAK_TITLES,
    METRIC_TITLES,
    EvaluationResults,
    Prediction,
    Score,
    SystemResult,
    leak_rule,
)

COLUMNS = {
    "3": (*("cider_d", "bleu_4", "meteor_1.5", "rouge_l", "clap_at", "clap_tt"), "copy", "distinct", "novel", "words"),
    "4": ("copy", "cider_d", "bleu_4", "meteor_1.5", "rouge_l"),
}
COLUMNS["5"] = COLUMNS["3"]

Table = tuple[list[str], list[list[str]]]


def table(results: EvaluationResults, name: str, intervals: bool = True) -> Table:
    """
    Header and rows of the paper's table `name`: our systems, then the rows that the paper reports.

    Args:
        results: Of an evaluation.
        name: "3", "4" or "5".
        intervals: Whether cells are `value [low, high]` where there is an interval, rather than `value`.

    Where leaks were looked for, each of our systems has a row of all clips, and one of those that do not leak.
    """
    columns = table_columns(results, name)
    header = ["Candidate" if name == "4" else "System", *_of_clips(results, "Clips"), *columns.values()]
    rows = []
    for system in results.tables[name]:
        for clips, systems in scored_clips(results).items():
            if system in systems:
                scores = systems[system].scores
                cells = [format_score(scores.get(key), intervals) for key in columns]
                rows.append([system_title(results, system), *_of_clips(results, clips), *cells])
    for title, reported in published.REPORTED.get(name, {}).items():
        cells = [format_score(Score(reported.get(metric_stem(key))), False) for key in columns]
        rows.append([f"{title} (reported, {published.CORPORA[name]})", *_of_clips(results, "-"), *cells])
    return header, rows


def scored_clips(results: EvaluationResults) -> dict[str, dict[str, SystemResult]]:
    """The systems with the scores of all clips and, where leaks were looked for, of those that do not leak."""
    found = {f"{results.n} all": results.systems}
    if results.without_leaks:
        found[f"{results.without_leaks.n} without leaks"] = results.without_leaks.systems
    return found


def _of_clips(results: EvaluationResults, cell: str) -> list[str]:
    """A cell of the column that says which clips are scored; none where there are no others than all."""
    return [cell] if results.without_leaks else []


def format_table(results: EvaluationResults, name: str) -> str:
    """The table `name` for a terminal: a title, aligned columns without intervals, and the notes."""
    header, rows = table(results, name, intervals=False)
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))
        for row in (["", *header[1:]], *rows)
    ]
    return "\n".join([table_title(results, name), *lines, *table_notes(results, name)])


def table_title(results: EvaluationResults, name: str) -> str:
    """The heading of the table `name`: the split and its size."""
    return f"Table {name} · {results.split}: {results.n} {'clip' if results.n == 1 else 'clips'}"


def table_notes(results: EvaluationResults, name: str) -> list[str]:
    """What a reader of the table `name` has to know: what is missing in it and why, and how CLAP scored."""
    stems = COLUMNS.get(name, COLUMNS["3"])
    elsewhere = {system for other, systems in results.tables.items() if other != name for system in systems}
    elsewhere -= set(results.tables[name])
    reasons = {}
    for key, reason in results.unavailable.items():
        if metric_stem(key) in stems:
            reasons.setdefault(reason, []).append(results.metrics.get(key, key))
    notes = [f"{', '.join(titles)}: not available: {reason}" for reason, titles in reasons.items()]
    notes += [f"no row of {way}" for key, way in results.missing.items() if key not in elsewhere]
    return notes + clap_notes(results, name) + leak_notes(results)


def clap_notes(results: EvaluationResults, name: str) -> list[str]:
    """Which CLAP scored in the table `name`, and whether it cut texts."""
    variants = {}
    for key, title in table_columns(results, name).items():
        if metric_variant(key) and key not in results.unavailable:
            variants.setdefault(metric_variant(key), []).append(title)
    cut = max((system.truncated_texts or 0 for system in results.systems.values()), default=0)
    too_long = f", for which up to {cut} texts of a system and its references were cut" if cut else ""
    return [f"{', '.join(titles)}: by {variant}{too_long}" for variant, titles in variants.items()]


def leak_notes(results: EvaluationResults) -> list[str]:
    """Which clips leak from the training split; nothing where leaks were not looked for."""
    if not results.without_leaks:
        return []
    without = results.without_leaks
    kinds = [f"{LEAK_TITLES[kind]} {count}" for kind, count in without.left_out.items()]
    note = f"Without leaks: {results.n - without.n} of {results.n} clips leak from the split "
    note += f"{without.train_split} and are left out{': ' + ', '.join(kinds) if kinds else ''}. "
    if not without.systems:
        note += "None is left to score. "
    return [note + leak_rule({**without.options, "model": metric_variant(f"[{without.options['model']}]")})]


def interval_note(results: EvaluationResults) -> str:
    """What the intervals of a table are, and where its last rows are from."""
    bootstrap = results.bootstrap
    intervals = (
        f"[low, high]: {100 * bootstrap['level']:g} % bootstrap interval, {bootstrap['samples']} samples over "
        f"{bootstrap['unit']}s. "
    )
    reported = "Rows marked as reported are those of the paper, on its own test split."
    return intervals * bool(bootstrap["samples"]) + reported


def difference_table(results: EvaluationResults) -> Table:
    """RGMC minus each other system, a row per system, with the intervals of the paired bootstrap."""
    systems = {name: system.difference for name, system in results.systems.items() if system.difference}
    keys = [key for key in results.metrics if any(key in difference for difference in systems.values())]
    rows = []
    for name in systems:
        for clips, scored in scored_clips(results).items():
            if name in scored:
                cells = [format_score(scored[name].difference.get(key), True, "+.2f") for key in keys]
                rows.append([system_title(results, name), *_of_clips(results, clips), *cells])
    return ["RGMC minus", *_of_clips(results, "Clips"), *(results.metrics[key] for key in keys)], rows


def caption_table(results: EvaluationResults, lines: list[Prediction]) -> Table:
    """Table 1: what systems say about the same clips."""
    rows = [
        [line["id"] if i == 0 else "", system_title(results, system), line["captions"][system] or "-"]
        for line in lines
        for i, system in enumerate(results.side_by_side)
    ]
    return ["Clip", "System", "Caption"], rows


def format_caption_table(results: EvaluationResults, lines: list[Prediction]) -> str:
    """Table 1 for a terminal."""
    _, rows = caption_table(results, lines)
    widths = [max(map(len, column)) for column in zip(*rows)][:2]
    return "\n".join(["Table 1", *(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows)])


def draw_examples(results: EvaluationResults, lines: list[Prediction], number: int) -> list[int]:
    """Rows of `lines` to show, by the seed of `results`, in their order."""
    return sorted(np.random.default_rng(results.seed).permutation(len(lines))[:number].tolist())


def table_columns(results: EvaluationResults, name: str) -> dict[str, str]:
    """`{metric: title}`; a metric of several variants, `clap_at[checkpoint]`, has a column for each."""
    columns = {}
    for stem in COLUMNS.get(name, COLUMNS["3"]):
        keys = [key for key in results.metrics if metric_stem(key) == stem]
        for key in keys or [stem] * (stem in published.METRICS):
            title = results.metrics.get(key) or METRIC_TITLES[stem]
            columns[key] = f"{title} [{metric_variant(key)}]" if len(keys) > 1 else title
    return columns


def metric_stem(key: str) -> str:
    """`clap_at` of `clap_at[checkpoint]`."""
    return key.partition("[")[0]


def metric_variant(key: str) -> str:
    """The checkpoint that a metric key names, of an absolute path the folder's name."""
    variant = key.partition("[")[2].removesuffix("]")
    return Path(variant).name if Path(variant).is_absolute() else variant


def system_title(results: EvaluationResults, system: str) -> str:
    """The title of a system on one line; its name where it has none."""
    title = results.systems[system].title if system in results.systems else system
    return " ".join(title.split())


def format_score(score: Score | None, interval: bool, form: str = ".2f") -> str:
    """`value`, `value [low, high]`, or "-" where there is no value."""
    if score is None or score.value is None:
        return "-"
    text = format(score.value, form)
    if interval and score.low is not None:
        text += f" [{score.low:{form}}, {score.high:{form}}]"
    return text
