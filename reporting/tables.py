"""The tables of an evaluation: one definition for the terminal, Markdown, HTML and the model card."""

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

ATTRIBUTE_METRICS = ("attribute_precision", "attribute_recall", "attribute_f1")
COLUMNS = {
    "3": (
        *("cider_d", "bleu_4", "meteor_1.5", "rouge_l", "clap_at", "clap_tt", "sentence"),
        *ATTRIBUTE_METRICS,
        "copy",
        "distinct",
        "novel",
        "words",
    ),
    "4": ("copy", "cider_d", "bleu_4", "meteor_1.5", "rouge_l", *ATTRIBUTE_METRICS),
}
COLUMNS["5"] = COLUMNS["3"]
COSTS = {"training_seconds": "Training s", "captions_per_second": "Captions/s"}  # fields of `Cost`

Table = tuple[list[str], list[list[str]]]


def table(results: EvaluationResults, name: str, intervals: bool = True) -> Table:
    """
    Header and rows of the paper's table `name`. A column without any value is left out.

    Where leaks were looked for, each system has a row for all clips and one for those that do not leak. The paper's
    rows follow ours where the corpus is the paper's.

    Args:
        results ([`EvaluationResults`]): What `results.json` holds.
        name (`str`): `"3"`, `"4"` or `"5"`.
        intervals (`bool`, *optional*, defaults to `True`):
            Whether cells are `value [low, high]` where there is an interval, rather than `value`. With or without, the
            value of several checkpoints is `mean ± deviation`.
    """
    columns = table_columns(results, name)
    costs = results.costs or {}
    header = [_first_column(name), *_of_clips(results, "Clips"), *columns.values(), *COSTS.values()]
    rows = []
    for system in results.tables[name]:
        for clips, systems in scored_clips(results).items():
            if system in systems:
                scores = systems[system].scores
                cells = [format_score(scores.get(key), intervals) for key in columns]
                cost = [format_score(Score(getattr(costs.get(system), key, None)), False, ".0f") for key in COSTS]
                rows.append([system_title(results, system), *_of_clips(results, clips), *cells, *cost])
    if has_reported_rows(results, name):
        for title, cells in _reported(name, columns):
            title = f"{title} (reported, {published.CORPORA[name]})"
            rows.append([title, *_of_clips(results, "-"), *cells, *("-" for _ in COSTS)])
    return _without_empty_columns(header, rows)


def has_reported_rows(results: EvaluationResults, name: str) -> bool:
    """Whether the paper's rows stand in the table `name`: only where both are about the same corpus."""
    return published.is_corpus(results.dataset, published.CORPORA[name])


def reported_table(name: str) -> Table:
    """The paper's own table `name`, without our systems."""
    columns = {key: METRIC_TITLES[key] for key in COLUMNS[name]}
    header = [_first_column(name), *columns.values()]
    return _without_empty_columns(header, [[title, *cells] for title, cells in _reported(name, columns)])


def scored_clips(results: EvaluationResults) -> dict[str, dict[str, SystemResult]]:
    """The systems with the scores of all clips and, where leaks were looked for, of those that do not leak."""
    found = {f"{results.n} all": results.systems}
    if results.without_leaks:
        found[f"{results.without_leaks.n} without leaks"] = results.without_leaks.systems
    return found


def format_table(results: EvaluationResults, name: str) -> str:
    """The table `name` for a terminal: a title, aligned columns without intervals, and the notes."""
    lines = align_columns(*table(results, name, intervals=False))
    return "\n".join([table_title(results, name), *lines, *table_notes(results, name)])


def align_columns(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table for a terminal; the first column has no header there."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    return [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))
        for row in (["", *header[1:]], *rows)
    ]


def table_title(results: EvaluationResults, name: str) -> str:
    """The heading of the table `name`: the split and its size."""
    return f"Table {name} · {results.split}: {results.n} {'clip' if results.n == 1 else 'clips'}"


def table_notes(results: EvaluationResults, name: str) -> list[str]:
    """What a reader of the table `name` has to know: what is missing and why, which models scored, and what leaks."""
    elsewhere = {system for other, systems in results.tables.items() if other != name for system in systems}
    elsewhere -= set(results.tables[name])
    reasons = {}
    for key, reason in results.unavailable.items():
        if metric_stem(key) in COLUMNS[name]:
            reasons.setdefault(reason, []).append(results.metrics.get(key, key))
    notes = [f"{', '.join(titles)}: left out: {reason}" for reason, titles in reasons.items()]
    notes += [f"no row of {way}" for key, way in results.missing.items() if key not in elsewhere]
    if results.consensus_time and {"rgmc_consensus", "rgmc_best"} & {*results.tables[name]}:
        notes.append(
            f"consensus decoding took {results.consensus_time:.1f} times as long as the most probable captions"
        )
    return notes + seed_notes(results) + model_notes(results, name) + leak_notes(results)


def seed_notes(results: EvaluationResults) -> list[str]:
    """What "±" means; nothing where a single checkpoint is evaluated."""
    if not results.checkpoints:
        return []
    return [f"a ± b: mean and standard deviation over {len(results.checkpoints)} checkpoints that differ by seed"]


def model_notes(results: EvaluationResults, name: str) -> list[str]:
    """Which CLAP, and which model of sentences, scored in the table `name`, and how many texts CLAP cut."""
    variants = {}
    for key, title in table_columns(results, name).items():
        if metric_variant(key) and key not in results.unavailable:
            variants.setdefault((metric_stem(key).partition("_")[0], metric_variant(key)), []).append(title)
    cut = max((system.truncated_texts or 0 for system in results.systems.values()), default=0)
    too_long = {"clap": f"; it cut up to {cut} texts of a system and its references"} if cut else {}
    return [f"{', '.join(titles)}: by {name}{too_long.get(kind, '')}" for (kind, name), titles in variants.items()]


def leak_notes(results: EvaluationResults) -> list[str]:
    """Which clips leak from the training split; nothing where leaks were not looked for."""
    without = results.without_leaks
    if without is None:
        return []
    kinds = [f"{LEAK_TITLES[kind]} {count}" for kind, count in without.left_out.items()]
    note = f"Without leaks: {results.n - without.n} of {results.n} clips leak from the split "
    note += f"{without.train_split} and are left out{': ' + ', '.join(kinds) if kinds else ''}. "
    if not without.systems:
        note += "None is left to score. "
    model = without.options["model"]
    return [note + leak_rule({**without.options, "model": model and public_name(model)})]


def interval_note(results: EvaluationResults, name: str) -> str:
    """What the brackets in the table `name` mean and where its last rows come from; empty if it has neither."""
    notes = [bootstrap_note(results)]
    if has_reported_rows(results, name):
        notes.append(f"Rows marked as reported are those of the paper, on its own test split ({published.SOURCE}).")
    return " ".join(filter(None, notes))


def bootstrap_note(results: EvaluationResults) -> str:
    """What the brackets mean; empty if there are none."""
    bootstrap = results.bootstrap
    if not bootstrap["samples"]:
        return ""
    interval = f"{100 * bootstrap['level']:g} % bootstrap interval"
    return f"[low, high]: {interval}, {bootstrap['samples']} samples over {bootstrap['unit']}s."


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
    """Table 1: what the systems say about the same clips."""
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
    """Row numbers of the clips to show, in ascending order, drawn with the seed of `results`."""
    return sorted(np.random.default_rng(results.seed).permutation(len(lines))[:number].tolist())


def table_columns(results: EvaluationResults, name: str) -> dict[str, str]:
    """
    `{metric: title}` of the columns that the table `name` may have.

    A metric of several variants, `clap_at[checkpoint]`, has a column for each.
    """
    columns = {}
    for stem in COLUMNS[name]:
        keys = [key for key in results.metrics if metric_stem(key) == stem] or [stem]
        for key in keys:
            title = results.metrics.get(key, METRIC_TITLES[stem])
            columns[key] = f"{title} [{metric_variant(key)}]" if len(keys) > 1 else title
    return columns


def metric_stem(key: str) -> str:
    """`clap_at` of `clap_at[checkpoint]`."""
    return key.partition("[")[0]


def metric_variant(key: str) -> str:
    """The checkpoint that a metric's key names, as it is shown; empty where it names none."""
    return public_name(key.partition("[")[2].removesuffix("]"))


def public_name(checkpoint: str) -> str:
    """The name of a checkpoint or corpus as it is shown: of an absolute path only the last part."""
    return Path(checkpoint).name if Path(checkpoint).is_absolute() else checkpoint


def system_title(results: EvaluationResults, system: str) -> str:
    """The title of a system on one line; its key where it was not scored."""
    title = results.systems[system].title if system in results.systems else system
    return " ".join(title.split())


def format_score(score: Score | None, interval: bool, form: str = ".2f") -> str:
    """`value`, with ` ± deviation` and ` [low, high]` where there are such, or "-" where there is no value."""
    if score is None or score.value is None:
        return "-"
    text = format(score.value, form)
    if score.deviation is not None:
        text += f" ± {score.deviation:.2f}"
    if interval and score.low is not None:
        text += f" [{score.low:{form}}, {score.high:{form}}]"
    return text


def _first_column(name: str) -> str:
    return "Candidate" if name == "4" else "System"


def _of_clips(results: EvaluationResults, cell: str) -> list[str]:
    """A cell of the column that says which clips are scored; that column exists where leaks were looked for."""
    return [cell] if results.without_leaks else []


def _reported(name: str, columns: dict[str, str]) -> list[tuple[str, list[str]]]:
    """The paper's rows of the table `name`: a title and a cell for each of `columns`."""
    return [
        (title, [format_score(Score(scores.get(metric_stem(key))), interval=False) for key in columns])
        for title, scores in published.REPORTED[name].items()
    ]


def _without_empty_columns(header: list[str], rows: list[list[str]]) -> Table:
    kept = [0, *(column for column in range(1, len(header)) if any(row[column] != "-" for row in rows))]
    return [header[column] for column in kept], [[row[column] for column in kept] for row in rows]
