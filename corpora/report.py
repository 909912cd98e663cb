"""Reports on a prepared corpus: `report.json`, `report.md`, and `report.html` with its plots inlined."""

import base64
import html
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
from matplotlib.figure import Figure

from captions_rgmc import normalize_caption
from corpora.leaks import QUANTILES
from corpora.readers import OF_FILES
from reporting.markdown import markdown_table, markdown_text
from reporting.plots import plot_text
from reporting.results import LEAK_TITLES, leak_rule

COLOR = "#34495e"
WORDS, EXAMPLES = 30, 8
KINDS = {
    "broken_json": "JSON that cannot be read",
    "broken_text": "text that cannot be read",
    "broken_row": "a row of the table that cannot be read",
    "no_id": "no id",
    "double_id": "a duplicate id",
    "no_caption": "no caption, or none with words",
    "no_audio": "audio missing",
    "broken_audio": "audio that cannot be decoded",
    "not_the_clip": "longer than its clip: a whole video",
    "not_valid_subset": "not in the valid subset",
    "duplicate": "near-duplicate caption",
    "no_json": "audio file without JSON",
    "second_file": "second audio file of the same stem",
    "other_file": "audio file without a row",
}
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; } img { max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; } th, td { padding: .3rem .7rem; text-align: left;
border-bottom: 1px solid #ddd; vertical-align: top; overflow-wrap: anywhere; }"""


def write_report(output_dir: Path, report: dict, table: pandas.DataFrame, leaks: dict | None = None):
    """
    Writes the three reports and `plots/*.png` to `output_dir`.

    Args:
        output_dir (`Path`):
            Folder to write to.
        report (`dict`):
            Contents of `report.json`.
        table (`pandas.DataFrame`):
            Contents of `metadata.parquet`.
        leaks (`dict`, *optional*):
            Contents of `leakage.json`.
    """
    (output_dir / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    captions = [text for entry in table["caption"] for text in ([entry] if isinstance(entry, str) else entry)]
    captions = list(map(normalize_caption, captions))  # only to count words
    sections = _sections(report, table, captions, leaks)
    title = f"{report['corpus']}: {report['kept']:,} clips, {report['hours']:,.1f} hours"
    markdown, page = [f"# {title}"], [f"<h1>{html.escape(title)}</h1>"]
    for heading, header, rows in sections:
        markdown += [f"## {heading}", markdown_table(header, rows)]
        page += [f"<h2>{html.escape(heading)}</h2>", _html_table(header, rows)]
    markdown.append("## Plots")
    page.append("<h2>Plots</h2>")
    (output_dir / "plots").mkdir(exist_ok=True)
    for name, (text, figure) in _plots(report, table, captions).items():
        path = output_dir / "plots" / f"{name}.png"
        figure.savefig(path, dpi=110)
        data = base64.b64encode(path.read_bytes()).decode()
        markdown.append(f"![{markdown_text(text)}](plots/{name}.png)")
        page.append(f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(text)}"></figure>')
    head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    page = f"{head}<style>{STYLE}</style></head><body>{''.join(page)}</body></html>\n"
    (output_dir / "report.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    (output_dir / "report.html").write_text(page, encoding="utf-8")


def _sections(
    report: dict, table: pandas.DataFrame, captions: list[str], leaks: dict | None
) -> list[tuple[str, list, list]]:
    """Returns headings, each with the header and the rows of its table."""
    rejected, clusters = report["rejected"], report["clusters"]
    count = "{:,}".format
    rows = [["listed", count(report["listed"])]]
    rows += [["captions joined to an earlier row of the same id", count(report["merged"])]] if report["merged"] else []
    left_out = [kind for kind in KINDS if kind in rejected]
    rows += [[f"left out: {KINDS[kind]}", count(rejected[kind])] for kind in left_out if kind not in OF_FILES]
    rows += [["kept", count(report["kept"])]]
    rows += [[f"besides: {KINDS[kind]}", count(rejected[kind])] for kind in left_out if kind in OF_FILES]
    rows += [[f"kept, but {note}", count(number)] for note, number in report["notes"].items()]
    splits = [[name, count(of["found"]), count(of["total"])] for name, of in report["splits"].items()]
    lengths = np.array([len(caption.split()) for caption in captions])
    numbers = [("duration, s", table["duration"].to_numpy(float)), ("words of a caption", lengths)]
    spread = [[name, *(f"{np.quantile(values, q):g}" for q in (0, 0.25, 0.5, 0.75, 1))] for name, values in numbers]
    sections = [
        ("Rows", ["", "rows"], rows),
        ("Splits", ["split", "found", "total"], splits),
        ("Sizes", ["", "least", "25 %", "median", "75 %", "most"], spread),
    ]
    leak_counts, worst_leaks = leak_sections(leaks, EXAMPLES) if leaks else ([], [])
    sections += leak_counts
    if report["tables"]:
        sections.append(("Tables", ["what was guessed"], [[note] for note in report["tables"]]))
    if clusters:
        heading = f"Near-duplicates by the rule paper: {clusters['rows']:,} rows in {clusters['clusters']:,} clusters"
        shown = [[of["id"], count(of["rows"]), " / ".join(of["examples"])] for of in clusters["largest"][:EXAMPLES]]
        sections.append((heading, ["smallest id", "rows", "examples"], shown))
    words = [[word, count(number)] for word, number in _frequent(captions)]
    sections.append(("Most frequent words", ["word", "times"], words))
    drawn = table.iloc[np.linspace(0, len(table) - 1, min(EXAMPLES, len(table))).astype(int)]
    texts = [entry if isinstance(entry, str) else " / ".join(entry) for entry in drawn["caption"]]
    sections.append(("Examples", ["id", "split", "caption"], list(zip(drawn["id"], drawn["split"], texts))))
    options = [[name, str(value)] for name, value in report["options"].items()]
    return [*sections, *worst_leaks, ("Options", ["option", "value"], options)]


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in line) + "</tr>"
        for tag, line in [("th", header), *(("td", row) for row in rows)]
    ]
    return f"<table>{''.join(lines)}</table>"


def _plots(report: dict, table: pandas.DataFrame, captions: list[str]) -> dict[str, tuple[str, Figure]]:
    plots = {
        "durations": ("Duration of the clips, s", _histogram(table["duration"].to_numpy(float))),
        "lengths": ("Words of a caption", _histogram(np.array([len(caption.split()) for caption in captions]))),
        "words": (
            "The most frequent words",
            _bars([(plot_text(word), number) for word, number in _frequent(captions)]),
        ),
        "rows": (
            "Rows",
            _bars([("kept", report["kept"]), *((KINDS[k], n) for k, n in report["rejected"].items())]),
        ),
    }
    if report["clusters"] and report["clusters"]["sizes"]:
        sizes = [(f"{size} rows", number) for size, number in list(report["clusters"]["sizes"].items())[:WORDS]]
        plots["clusters"] = ("Clusters of near-duplicate captions by size", _bars(sizes))
    for text, figure in plots.values():
        figure.axes[0].set_title(text)
    return plots


def _histogram(values: np.ndarray) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    axis.hist(values, bins=min(50, max(5, len(np.unique(values)))), color=COLOR)
    axis.grid(axis="y", alpha=0.3)
    return figure


def _bars(numbers: list[tuple[str, int]]) -> Figure:
    figure = Figure(figsize=(7, 0.8 + 0.2 * len(numbers)), layout="constrained")
    axis = figure.subplots()
    axis.barh(range(len(numbers)), [number for _, number in numbers], color=COLOR)
    axis.set_yticks(range(len(numbers)), [name for name, _ in numbers], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    return figure


def _frequent(captions: list[str]) -> list[tuple[str, int]]:
    return Counter(word for caption in captions for word in caption.split()).most_common(WORDS)


# -- leaks between splits ---------------------------------------------------------------------------------------------


def write_leak_report(output_dir: Path, report: dict) -> str:
    """
    Writes `report.md` from the contents of `leakage.json`.

    Returns:
        `str`: The report without the worst pairs.
    """
    options, title = report["options"], f"Leaks between the splits of {report['dataset']}"
    columns = {"rows": "rows", "captions": "captions", "without_caption": "rows without a caption"}
    columns |= {"without_audio": "rows without audio", "embedded": "clips embedded"}
    splits = [
        [name, *("-" if of[column] is None else f"{of[column]:,}" for column in columns)]
        for name, of in report["splits"].items()
    ]
    counts, worst = leak_sections(report)
    if options["train_dataset"]:
        title += f", {report['train_split']} from {options['train_dataset']}"
    parts = [f"# {markdown_text(title)}"]
    for heading, header, rows in [("Splits", ["split", *columns.values()], splits), *counts]:
        parts += [f"## {heading}", markdown_table(header, rows)]
    parts.append(markdown_text(leak_rule(options)))
    shown = "\n\n".join(parts)
    for heading, header, rows in worst:
        parts += [f"## {heading}", markdown_table(header, rows)]
    (output_dir / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return shown


def leak_sections(report: dict, num_worst: int | None = None) -> tuple[list, list]:
    """Returns headings, each with the header and the rows of its table: of the counts, and of the worst pairs."""
    counted, nearest, worst = [], [], []
    for leak in report["leaks"]:
        one, two = leak["splits"]
        for kind, found in leak["kinds"].items():
            counted.append([f"{one}, {two}: {LEAK_TITLES[kind]}", f"{found['pairs']:,}", *_touched(found["rows"])])
            what = "caption" if kind.endswith("caption") else "file"
            header = ["similarity", "pairs", *(f"{name} in {split}" for name in ("id", what) for split in (one, two))]
            rows = [
                [
                    f"{pair['value']:.3f}",
                    f"{pair['pairs']:,}",
                    *(clip[name] or "-" for name in ("id", what) for clip in pair["clips"]),
                ]
                for pair in found["worst"][:num_worst]
            ]
            worst += [(f"Worst pairs of {one}, {two}: {LEAK_TITLES[kind]}", header, rows)] if rows else []
        counted.append([f"{one}, {two}: any of these", "-", *_touched(leak["rows"])])
        if leak["nearest"]:
            nearest.append([f"of {two} in {one}", *(f"{value:.3f}" for value in leak["nearest"])])
    counts = [("Leaks", ["splits", "pairs", "rows of the first", "rows of the second"], counted)]
    if nearest:
        quantiles = ["least", *(f"{100 * value:g} %" for value in QUANTILES[1:-1]), "most"]
        counts.append(("Cosine of the nearest clip", ["", *quantiles], nearest))
    return counts, worst


def _touched(rows: dict[str, dict]) -> list[str]:
    return [f"{of['count']:,} ({100 * of['share']:.2f} %)" for of in rows.values()]
