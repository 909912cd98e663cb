"""The plots of an evaluation's report."""

import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

from reporting.explaining import CURVES
from reporting.results import EvaluationResults, ItemScores, Prediction
from reporting.tables import metric_stem, system_title, table_columns

METRICS = ("cider_d", "bleu_4", "meteor_1.5", "rouge_l", "clap_at", "clap_tt")
SOURCES = {"audio": ("the sound", "#c0392b"), "candidate": ("the candidate", "#34495e")}
COLORS = {
    "gold": "#d4a017",
    "nearest_neighbor": "#34495e",
    "rgmc": "#c0392b",
    "rgmc_audio_only_masked": "#e59866",
}


def plot_scores(results: EvaluationResults) -> Figure | None:
    """For each metric a point and an interval per system; None without a score to show."""
    shown = {}
    for key, title in table_columns(results, "3").items():
        scores = {name: system.scores[key] for name, system in results.systems.items() if key in system.scores}
        # The gold captions are perfect against themselves, which would squeeze the other systems together.
        if metric_stem(key) != "clap_at":
            scores.pop("gold", None)
        if metric_stem(key) in METRICS and any(score.value is not None for score in scores.values()):
            shown[title] = scores
    if not shown:
        return None
    systems = [name for name in results.systems if any(name in scores for scores in shown.values())]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.5 + 3 * columns, rows * (0.9 + 0.28 * len(systems))), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    for axis, (title, scores) in zip(axes, shown.items()):
        for y, name in enumerate(systems):
            score = scores.get(name)
            if score is None or score.value is None:
                continue
            color = COLORS["rgmc" if name == "rgmc" else "nearest_neighbor"]
            if score.low is not None:
                axis.hlines(y, score.low, score.high, color=color, linewidth=2)
            axis.plot(score.value, y, "o", color=color, markersize=5)
        axis.set_title(_short(title), fontsize=10)
        axis.set_yticks(range(len(systems)), [_short(system_title(results, name)) for name in systems], fontsize=9)
        axis.set_ylim(len(systems) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
    return figure


def plot_similarity(results: EvaluationResults, lines: list[Prediction], item_scores: ItemScores) -> Figure | None:
    """Mean CIDEr-D of the clips, in bins of about equal size by how similar the candidate sounds; None without any."""
    similarity = np.array([np.nan if line["similarity"] is None else line["similarity"] for line in lines], float)
    found = np.flatnonzero(np.isfinite(similarity))
    systems = ("rgmc", "nearest_neighbor", "rgmc_audio_only_masked")  # the last is the model without the candidate
    systems = [name for name in systems if "cider_d" in item_scores.get(name, {})]
    if not len(found) or not systems:
        return None
    order = found[np.argsort(similarity[found], kind="stable")]
    bins = np.array_split(order, max(1, min(8, len(order) // 10)))
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(systems):
        scores = [np.asarray(item_scores[name]["cider_d"], float)[rows] for rows in bins]
        axis.errorbar(
            np.arange(len(bins)) + 0.1 * (i - (len(systems) - 1) / 2),
            [values.mean() for values in scores],
            [values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 for values in scores],
            fmt="o-",
            capsize=3,
            color=COLORS[name],
            label=_short(system_title(results, name)),
        )
    labels = [f"{similarity[rows[0]]:.3f} to\n{similarity[rows[-1]]:.3f}\nn = {len(rows)}" for rows in bins]
    axis.set_xticks(np.arange(len(bins)), labels, fontsize=8)
    axis.set_xlabel("similarity of the candidate's audio")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("CIDEr-D, mean ± standard error")
    axis.grid(axis="y", alpha=0.3)
    _add_legend(figure)
    return figure


def plot_coverage(results: EvaluationResults) -> Figure:
    """Mean CIDEr-D of the surest clips, by the share of the clips that are captioned."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axis = figure.subplots()
    for (name, label), color in zip(CURVES.items(), ("#c0392b", "#34495e", "#d4a017")):
        points = results.explanation.confidence.curves[name]
        coverage = [100 * point.coverage for point in points]
        axis.plot(coverage, [point.cider_d for point in points], "o-", color=color, markersize=4, label=label)
    axis.set_xlabel("% of clips that are captioned, the surest first")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("CIDEr-D")
    axis.grid(axis="y", alpha=0.3)
    _add_legend(figure)
    return figure


def plot_explanation(explanation: dict[str, Any]) -> Figure:
    """
    Draws the words of a caption, from top to bottom, and what sound and candidates add to each.

    Args:
        explanation (`dict`): What [`Explanation.to_dict`] returns.
    """
    words, copied = explanation["words"], [range(span["start"], span["end"]) for span in explanation["copied"]]
    quotes = [textwrap.fill(f"Candidate: “{text}”", 80) for text in explanation["candidates"]]
    title = "\n".join(quotes) or "No candidate"
    figure = Figure(figsize=(6.4, 1.2 + 0.17 * title.count("\n") + 0.34 * len(words)), layout="constrained")
    axis = figure.subplots()
    shares = [row[source] for row in words for source in SOURCES]
    margin = 0.1 * (max(0, *shares) - min(0, *shares)) or 1
    limits = min(0, *shares) - margin, max(0, *shares) + margin
    edges = [0.96 * limit + 0.04 * np.mean(limits) for limit in limits]  # for arrows, in place of what is outside
    handles = []
    for offset, (source, (label, color)) in zip((-0.2, 0.2), SOURCES.items()):
        places = np.arange(len(words)) + offset
        handles.append(axis.barh(places, [row[source] for row in words], 0.38, color=color, label=f"added by {label}"))
        values = np.array([row["controls"].get(source, np.nan) for row in words])
        marks = {"linestyle": "", "color": "black", "markersize": 8, "label": "by that of a random song"}
        within = (values >= limits[0]) & (values <= limits[1])
        (random,) = axis.plot(values[within], places[within], marker="|", markeredgewidth=1.5, **marks)
        for edge, sign, outside in zip(edges, "<>", (values < limits[0], values > limits[1])):
            axis.plot(np.full(outside.sum(), edge), places[outside], marker=sign, **marks)
    handles += [random] if np.isfinite(values).any() else []
    axis.set_xlim(limits)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(words)), [plot_text(row["word"] or "(end)") for row in words])
    for place, label in enumerate(axis.get_yticklabels()):
        if any(place in span for span in copied):
            label.set_fontweight("bold")
    axis.set_ylim(len(words) - 0.4, -0.6)
    axis.set_xlabel("log-probability of the word, nats; bold: in a phrase of the candidate", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(plot_text(title), fontsize=9, loc="left")
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure


def plot_lengths(results: EvaluationResults, item_scores: ItemScores) -> Figure | None:
    """Histograms of the number of words in a caption; None without any."""
    systems = [name for name in ("gold", "nearest_neighbor", "rgmc") if "words" in item_scores.get(name, {})]
    if not systems:
        return None
    words = {name: np.asarray(item_scores[name]["words"], float) for name in systems}
    low, high = (int(limit(np.concatenate(list(words.values())))) for limit in (np.min, np.max))
    step = 1 + (high - low) // 40
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, counts in words.items():
        shares, edges = np.histogram(counts, np.arange(low - 0.5, high + step + 0.5, step))
        label = _short(system_title(results, name))
        axis.stairs(100 * shares / len(counts), edges, color=COLORS[name], linewidth=2, label=label)
    axis.set_xlabel("words of a caption")
    axis.set_ylabel("% of clips")
    axis.grid(axis="y", alpha=0.3)
    _add_legend(figure)
    return figure


def plot_text(text: str) -> str:
    """`text` for a plot: a box in place of a letter that the font lacks, and no `$` that would begin a formula."""
    glyphs = FT2Font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in glyphs else "□" for letter in text).replace("$", r"\$")


def _short(text: str) -> str:
    return plot_text(textwrap.shorten(text, 40, placeholder=" …"))


def _add_legend(figure: Figure):
    """Above the axes, where it covers nothing."""
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
