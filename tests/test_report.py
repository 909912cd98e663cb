"""The report, the published numbers beside ours, and the results in a model card."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from model_card_rgmc import from_scratch_warning, model_card
from reporting.listening import format_listening
from reporting.model_card import eval_result_entries, model_index, update_model_card, write_eval_results
from reporting.plots import plot_lengths, plot_similarity
from reporting.published import REPORTED, is_corpus
from reporting.report import summary, write_report
from reporting.results import LISTENING_TITLES, EvaluationResults, Score
from reporting.tables import format_table, interval_note, leak_notes, table

HOSTILE = "a <script>alert(1)</script> | *loud*\nsong [x](http://example.org/x.png) & `more`"
SYSTEMS = {
    "gold": "Gold Caption",
    "random": "Random Caption",
    "nearest_neighbor": "Nearest Neighbor",
    "lp": "LP | Music/Caps <b>\n$\\frac$",
    "rgmc": "RGMC",
}
TITLES = {
    **{"cider_d": "CIDEr-D", "bleu_4": "BLEU@4", "meteor_1.5": "METEOR 1.5", "rouge_l": "ROUGE-L"},
    **{"clap_at[org/clap@1a2b]": "CLAP A-T", "bleu_1": "BLEU@1", "copy": "Copy %", "distinct": "Distinct %"},
    **{"novel": "Novel %", "words": "Words"},
}


def make_results(n: int = 60, **changes) -> EvaluationResults:
    return EvaluationResults.from_dict({**results_json(n), **changes})


def results_json(n: int = 60) -> dict:
    generator = np.random.default_rng(0)

    def scores(shift: float = 0) -> dict:
        values = {key: round(float(generator.uniform(5, 60)), 3) - shift for key in TITLES}
        found = {key: {"value": value, "low": value - 2.5, "high": value + 3.25} for key, value in values.items()}
        return {**found, "distinct": {"value": 80.0}, "meteor_1.5": {"value": None}}

    systems = {
        name: {"title": title, "source": "a file", "scores": scores(), "difference": scores(30)}
        for name, title in SYSTEMS.items()
    }
    del systems["rgmc"]["difference"]
    return {
        "model": "/somewhere/outputs/demo",
        "checkpoint": {"name": "outputs/demo", "revision": None, "sha256": {"model.safetensors": "ab" * 32}},
        "dataset": "/somewhere/data/tunes",
        "split": "test",
        "seed": 0,
        "command": "accelerate launch eval.py --model=/somewhere/outputs/demo --dataset '/somewhere/my data/tunes'",
        "caption_normalization": "paper",
        "text": "lower case",
        "versions": {"python": "3.11.7"},
        "bootstrap": {"samples": 1000, "level": 0.95, "unit": "clip"},
        "n": n,
        "skipped": 0,
        "metrics": TITLES,
        "unavailable": {"meteor_1.5": "no java on the PATH"},
        "systems": systems,
        "tables": {"3": [*SYSTEMS, "rgmc_audio_only"], "4": ["rgmc"]},
        "side_by_side": [*SYSTEMS],
        "missing": {"rgmc_audio_only": "RGMC (Audio Only): give --audio_only_model"},
    }


def make_lines(n: int = 60, candidates: bool = True) -> list[dict]:
    return [
        {
            "id": f"test-{row}",
            "references": ["a calm song", HOSTILE],
            "prediction": HOSTILE,
            "candidate": "a slow song" if candidates else None,
            "candidate_id": f"train-{row}" if candidates else None,
            "similarity": 0.5 + row / 200 if candidates else None,
            "captions": {**dict.fromkeys(SYSTEMS, HOSTILE), "random": None},
        }
        for row in range(n)
    ]


def make_item_scores(n: int = 60) -> dict:
    generator = np.random.default_rng(1)
    return {
        name: {"cider_d": generator.uniform(0, 90, n).tolist(), "words": generator.integers(3, 12, n).tolist()}
        for name in SYSTEMS
    }


def tone(row: int) -> np.ndarray:
    return 0.1 * np.sin(0.03 * (1 + row) * np.arange(48_000, dtype=np.float32))


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def markdown_tables(text: str) -> list[list[str]]:
    """The tables of a Markdown text, each a list of its lines."""
    return [block.strip().split("\n") for block in re.findall(r"(?:^\|.*\n?)+", text, re.M)]


def count_columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


# -- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    results = make_results(dataset="data/audiostock")
    options = {"side_by_side": True, "warning": "No use <to> you."}
    write_report(folder, results, make_lines(), make_item_scores(), tone, num_examples=3, **options)
    return folder


def test_page_plays_every_example_and_needs_nothing_else(folder):
    page = Page(folder / "report.html")
    players = page.all("audio")
    assert len(players) == 3 and len(page.all("article")) == 3
    assert all(player["src"].startswith("data:audio/mpeg;base64,") and "controls" in player for player in players)
    assert len({player["src"] for player in players}) == 3
    links = [tag[name] for _, tag in page.tags for name in ("src", "href") if name in tag]
    assert len(links) == 3 + 3 and all(link.startswith("data:") for link in links)
    assert not page.all("link") and "url(" not in (folder / "report.html").read_text(encoding="utf-8")


def test_captions_are_text_in_the_page(folder):
    page = Page(folder / "report.html")
    assert not page.all("script") and not page.all("b")
    assert HOSTILE in page.text and "LP | Music/Caps <b>" in page.text


def test_ids_and_candidates_of_a_stranger_are_text_too(tmp_path):
    strange = [
        {**line, "id": f"{HOSTILE} {row}", "candidate": HOSTILE, "candidate_id": f"<b>{HOSTILE}</b>"}
        for row, line in enumerate(make_lines())
    ]
    results = make_results(dataset=f"data/<b>{HOSTILE}")
    write_report(tmp_path, results, strange, make_item_scores(), tone, num_examples=3, side_by_side=True)
    page = Page(tmp_path / "report.html")
    assert not page.all("script") and not page.all("b") and len(page.all("article")) == 3
    assert page.text.count(f"{HOSTILE} ") >= 3
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for lines in markdown_tables(text):
        assert len({count_columns(line) for line in lines}) == 1
    assert not re.search(r"(?<!\\)<|\]\(http", text)


def test_captions_break_no_markdown_table(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    tables = markdown_tables(text)
    assert len(tables) == 4  # captions, Tables 3 and 4, differences
    for lines in tables:
        assert {count_columns(line) for line in lines} == {count_columns(lines[0])}
    assert len(tables[0]) == 2 + 3 * len(SYSTEMS)
    assert not re.search(r"(?<!\\)<|\]\(http", text)


def test_plots_are_files_that_markdown_names(folder):
    named = re.findall(r"!\[.*\]\((.*)\)", (folder / "report.md").read_text(encoding="utf-8"))
    assert named == ["plots/scores.png", "plots/similarity.png", "plots/lengths.png"]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in named)


def test_report_is_the_same_for_the_same_seed(tmp_path):
    def page_of(seed: int) -> str:
        write_report(tmp_path, make_results(seed=seed), make_lines(), make_item_scores(), tone, num_examples=3)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    first = page_of(0)
    assert page_of(0) == first
    chosen = re.findall(r"<h3>(.*)</h3>", first)
    assert len(chosen) == 3 and re.findall(r"<h3>(.*)</h3>", page_of(1)) != chosen


def test_summary_and_clips_come_before_the_tables(folder, tmp_path):
    for name, heading in (("report.html", "<h2>"), ("report.md", "## ")):
        text = (folder / name).read_text(encoding="utf-8")
        parts = ["RGMC scores ", "No use ", "Clips", "Table 1 ·", "Table 3 ·", "Table 4 ·", "RGMC minus each system"]
        places = [text.index(parts[0]), text.index(parts[1]), *(text.index(heading + part) for part in parts[2:])]
        places += [text.index(f"{heading}Plots"), text.index(f"{heading}How this was made")]
        assert places == sorted(places), name
    write_report(tmp_path, make_results(), make_lines(), make_item_scores(), num_examples=3)
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "Table 1" not in text and "No use" not in text and "None" not in text
    assert 'class="warning"' not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_summary_says_whether_the_difference_is_more_than_chance():
    def summarize(difference: Score | None, n: int = 60, **changes) -> str:
        results = make_results(n, **changes)
        results.systems["rgmc"].scores["cider_d"] = Score(204.7)
        results.systems["nearest_neighbor"].scores["cider_d"] = Score(170.2)
        results.systems["nearest_neighbor"].difference = {"cider_d": difference} if difference else {}
        return summary(results)

    scores = "; the captions of the most similar songs in its datastore score 170.20. "
    ours = f"RGMC scores 204.70 CIDEr-D on the 60 clips of test{scores}"
    interval = "the 95 % interval of the difference"
    better = f"RGMC is better by 34.50: {interval}, 12.10 to 57.00, excludes zero."
    assert summarize(Score(34.5, 12.1, 57)) == ours + better
    assert summarize(Score(-4, -5, -3)) == f"{ours}RGMC is worse by 4.00: {interval}, -5.00 to -3.00, excludes zero."
    for low, high in ((-2, 6), (-2, 0), (0, 6)):
        text = f"{ours}The difference of 2.00 may be chance: its 95 % interval, {low:.2f} to {high:.2f}, includes zero."
        assert summarize(Score(2, low, high)) == text
    assert summarize(None) == f"{ours}The difference is 34.50, without an interval."
    one = f"RGMC scores 204.70 CIDEr-D on the one clip of test{scores}"
    assert summarize(Score(34.5, 34.5, 34.5), n=1) == f"{one}A single clip cannot show a difference."


def test_summary_says_what_is_left_without_leaks():
    results = results_json()
    without = json.loads(json.dumps(results["systems"]))
    without["nearest_neighbor"]["difference"]["cider_d"] = {"value": 1.0, "low": -1.0, "high": 3.0}
    leaks = {"n": 48, "left_out": {}, "train_split": "train", "options": {}, "systems": without}
    text = summary(make_results(without_leaks=leaks))
    assert text.startswith(summary(make_results())) and "48 of them that do not leak from train" in text
    assert text.endswith("may be chance: its 95 % interval, -1.00 to 3.00, includes zero.")
    assert summary(make_results(without_leaks={**leaks, "n": 0, "systems": {}})) == summary(make_results())


def test_first_column_of_scores_stays_in_view(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r"\.scores th:first-child \{[^}]*position: sticky; left: 0;", text)
    bodies = re.findall(r'<table class="scores">.*?</table>', text, re.S)
    assert len(bodies) == 3  # Tables 3 and 4, differences
    for body in bodies:
        rows = re.findall(r"<tr[^>]*>\s*(<[^>]*>)", body)
        assert len(rows) > 1 and set(rows[1:]) == {'<th scope="row">'}


def test_legends_lie_beside_the_axes_and_within_the_figure():
    results, lines, scores = make_results(), make_lines(), make_item_scores()
    for figure in (plot_similarity(results, lines, scores), plot_lengths(results, scores)):
        figure.draw_without_rendering()
        (legend,), (axis,) = figure.legends, figure.axes
        box = legend.get_window_extent()
        assert not box.overlaps(axis.get_window_extent()) and axis.get_legend() is None
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_a_clip_that_cannot_be_read_has_no_player_but_the_reason(tmp_path):
    drawn = []

    def load_clip(row: int) -> np.ndarray:
        drawn.append(row)
        if len(drawn) == 1:
            raise OSError("the file is gone")
        return tone(row)

    write_report(tmp_path, make_results(), make_lines(), make_item_scores(), load_clip, num_examples=2)
    page = Page(tmp_path / "report.html")
    assert len(page.all("audio")) == 1 and "OSError: the file is gone" in page.text


@pytest.mark.parametrize("candidates", [True, False])
def test_one_clip_makes_a_report(tmp_path, candidates):
    write_report(tmp_path, make_results(1), make_lines(1, candidates), make_item_scores(1))
    page = Page(tmp_path / "report.html")
    assert len(page.all("article")) == 1 and not page.all("audio")
    assert (tmp_path / "plots" / "similarity.png").exists() == candidates
    assert ("train-0, similarity 0.500" in page.text) == candidates and "None" not in page.text


def test_listening_is_a_table_with_what_it_means(tmp_path):
    own, masked = {"choice_random": 62.5, "choice_nearest": None, "audio_swap": 80.0}, {"choice_random": 25.0}
    listening = {
        "systems": {
            key: {
                "title": title,
                "source": "a file",
                "scores": {
                    name: {"value": values.get(name), **({"low": 1.25, "high": 99.5} if values.get(name) else {})}
                    for name in LISTENING_TITLES
                },
            }
            for key, title, values in (("rgmc", "RGMC", own), ("rgmc_text_only_masked", "RGMC, audio masked", masked))
        },
        "unavailable": {"choice_nearest": "2 of 60 clips lack captions"},
    }
    results = make_results(listening=listening)
    assert results.to_dict()["listening"] == listening
    printed = format_listening(results).splitlines()
    assert printed[0] == "Listening" and printed[1].split("  ")[-1] == "Audio swap %"
    assert printed[2].split() == ["RGMC", "62.50", "-", "80.00"]
    assert printed[3].split() == ["RGMC,", "audio", "masked", "25.00", "-", "-"]
    assert printed[-1] == "4-way, similar sound %: left out: 2 of 60 clips lack captions"
    write_report(tmp_path, results, make_lines(), make_item_scores())
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    section = report.split("## Listening\n")[1].split("\n## ")[0]
    assert "| RGMC | 62.50 [1.25, 99.50] | - | 80.00 [1.25, 99.50] |" in section
    assert "95 % bootstrap interval" in section and "Chance is 50 %." in section and printed[-1] in section
    page = Page(tmp_path / "report.html")
    assert "Listening" in page.text and "Chance is 25 %." in page.text and "2 of 60 clips lack captions" in page.text
    write_report(tmp_path, make_results(), make_lines(), make_item_scores())
    assert "Listening" not in (tmp_path / "report.md").read_text(encoding="utf-8")


# -- results.json ----------------------------------------------------------------------------------------------------


def test_results_are_the_same_after_a_round_trip_through_json():
    plain = results_json()
    difference = plain["systems"]["lp"].pop("difference")
    plain["systems"]["lp"] |= {"truncated_texts": 0, "difference": difference}
    plain["systems"]["random"]["difference"] = {}  # without resamples
    options = {"ngram": 5, "model": None}
    leaks = {"n": 2, "left_out": {}, "train_split": "train", "options": options, "systems": plain["systems"]}
    with_leaks = {}
    for key, value in plain.items():
        with_leaks |= {key: value, "without_leaks": leaks} if key == "systems" else {key: value}
    for values in (plain, with_leaks):
        text = json.dumps(values)
        assert json.dumps(EvaluationResults.from_dict(json.loads(text)).to_dict()) == text
    assert EvaluationResults.from_dict(plain).systems["rgmc"].scores["distinct"] == Score(80.0)


# -- the tables -------------------------------------------------------------------------------------------------------


def test_reported_rows_are_those_of_the_paper():
    tables = {"3": ["rgmc"], "4": ["rgmc"], "5": ["rgmc"]}
    header, rows = table(make_results(dataset="data/audiostock", tables=tables), "3")
    rows = {row[0]: dict(zip(header, row)) for row in rows}
    row = rows["RGMC (Audio Only) (reported, Audiostock)"]
    scores = (row["CIDEr-D"], row["METEOR 1.5"], row["CLAP A-T"], row["CLAP T-T"])
    assert scores == ("41.63", "8.56", "27.68", "45.61")
    assert row["Copy %"] == row["Words"] == "-"
    gold = {"copy": 9.76, "cider_d": 231.28, "bleu_4": 22.04, "meteor_1.5": 20.25, "rouge_l": 36.42}
    assert REPORTED["4"]["Gold"] == gold
    assert REPORTED["5"]["LP-MusicCaps Supervised"]["cider_d"] is None
    assert REPORTED["5"]["RGMC (Transfer)"]["clap_tt"] == 57.06
    assert [len(rows) for rows in REPORTED.values()] == [7, 3, 9]


def test_our_rows_come_first_with_intervals():
    results = make_results(dataset="data/audiostock")
    header, rows = table(results, "3")
    assert [row[0] for row in rows[:5]] == [" ".join(title.split()) for title in SYSTEMS.values()]
    for row, system in enumerate(SYSTEMS):
        score = results.systems[system].scores["cider_d"]
        cells = dict(zip(header, rows[row]))
        assert cells["CIDEr-D"] == f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
    assert cells["METEOR 1.5"] == "-" and cells["Distinct %"] == "80.00"


def test_terminal_table_is_aligned_and_says_what_is_missing():
    title, *lines = format_table(make_results(dataset="data/audiostock"), "3").split("\n")
    assert title == "Table 3 · test: 60 clips"
    assert len({len(line) for line in lines[: 1 + 5 + 7]}) == 1
    assert not any("[" in line for line in lines[:13])
    assert lines[13:] == [
        "METEOR 1.5: left out: no java on the PATH",
        "no row of RGMC (Audio Only): give --audio_only_model",
        "CLAP A-T: by org/clap@1a2b",
    ]
    results = make_results()
    results.systems["rgmc"].truncated_texts = 4
    cut = "it cut up to 4 texts of a system and its references"
    assert format_table(results, "3").endswith(f"CLAP A-T: by org/clap@1a2b; {cut}")


def test_a_column_without_any_value_is_left_out_and_the_reason_stays(tmp_path):
    results = make_results()
    header, rows = table(results, "3")
    assert header == ["System", "CIDEr-D", "BLEU@4", "ROUGE-L", "CLAP A-T", "Copy %", "Distinct %", "Novel %", "Words"]
    assert {len(row) for row in rows} == {len(header)} and rows[0][header.index("Distinct %")] == "80.00"
    write_report(tmp_path, results, make_lines(), make_item_scores())
    (markdown, *_), page = markdown_tables((tmp_path / "report.md").read_text("utf-8")), Page(tmp_path / "report.html")
    assert "METEOR" not in markdown[0] and "BLEU@4" in markdown[0]
    assert "METEOR" not in format_table(results, "3").split("\n")[1]
    note = "METEOR 1.5: left out: no java on the PATH"
    for text in (page.text, (tmp_path / "report.md").read_text("utf-8"), format_table(results, "3")):
        assert note in text
    results.systems["random"].scores["meteor_1.5"] = Score(0.0)
    assert "METEOR 1.5" in table(results, "3")[0]


@pytest.mark.parametrize(
    ("dataset", "name", "reported"),
    [
        ("data/audiostock", "3", True),
        ("owner/AudioStock", "4", True),
        ("google/MusicCaps", "5", True),
        ("/somewhere/musiccaps/", "5", True),
        ("data/audiostock", "5", False),
        ("data/musiccaps", "3", False),
        ("audiostock/demo", "3", False),
        ("data/my_audiostock", "3", False),
    ],
)
def test_reported_rows_stand_only_under_the_papers_corpus(checkpoint, dataset, name, reported):
    results = make_results(dataset=dataset, tables={name: ["gold", "rgmc"]})
    card = update_model_card(checkpoint, results).read_text("utf-8")
    assert [row[0] for row in table(results, name)[1][:2]] == ["Gold Caption", "RGMC"]
    assert ("(reported, " in format_table(results, name)) == ("(reported, " in card) == reported
    assert ("Rows marked as reported" in interval_note(results, name)) == ("Rows marked as" in card) == reported


def test_the_page_folds_what_the_paper_reports_on_another_corpus(tmp_path):
    none = {"samples": 0, "level": 0.95, "unit": "clip"}
    for dataset, reported in (("data/audiostock", True), ("data/tunes", False)):
        write_report(tmp_path, make_results(dataset=dataset, bootstrap=none), make_lines(), make_item_scores())
        text = (tmp_path / "report.html").read_text("utf-8")
        assert ("(reported, Audiostock)" in text) == ("(reported, " in (tmp_path / "report.md").read_text()) == reported
        assert (text.count("<details>"), text.count("Rows marked as reported")) == ((0, 2) if reported else (2, 0))
        assert "Srivatsan et al." in text and '<p class="note"></p>' not in text
    first, second = re.findall(r"<details>.*?</details>", text, re.S)
    assert "<summary>What the paper reports on Audiostock: another corpus, not comparable</summary>" in first
    assert '<th scope="row">MusCaps</th><td>26.98</td>' in first and "MusCaps" not in text.replace(first, "")
    assert '<th scope="row">NN</th><td>12.66</td><td>59.69</td>' in second and "Copy %" in second
    assert "Words" not in first


def test_a_file_has_the_name_of_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "MusicCaps"
    folder.mkdir()
    (folder / "metadata.parquet").touch()
    (tmp_path / "musiccaps.csv").touch()
    assert is_corpus(str(folder / "metadata.parquet"), "MusicCaps") and is_corpus(str(folder), "MusicCaps")
    for other in (folder / "raw", tmp_path / "musiccaps.csv"):
        assert not is_corpus(str(other), "MusicCaps")
    monkeypatch.chdir(folder)
    assert is_corpus(".", "MusicCaps") and is_corpus("metadata.parquet", "MusicCaps")
    assert not is_corpus(str(folder), "Audiostock")


def test_two_variants_of_a_metric_are_two_columns():
    variants = {"clap_at[a]": "CLAP A-T", "clap_at[/x/b]": "CLAP A-T"}
    header, rows = table(make_results(dataset="data/audiostock", metrics=variants), "3")
    assert [title for title in header if title.startswith("CLAP A-T")] == ["CLAP A-T [a]", "CLAP A-T [b]"]
    assert rows[-1][header.index("CLAP A-T [b]")] == "27.00"


def test_clips_that_do_not_leak_have_rows_of_their_own(tmp_path):
    plain = results_json()
    without = {name: {**system, "scores": {"cider_d": {"value": 1.5}}} for name, system in plain["systems"].items()}
    options = {"ngram": 5, "threshold": 0.8, "model": "/somewhere/clap", "audio_threshold": 0.9}
    leaks = {"n": 48, "left_out": {"near_audio": 12}, "train_split": "train", "options": options, "systems": without}
    plain = make_results(dataset="data/audiostock")
    results = make_results(dataset="data/audiostock", without_leaks=leaks)
    header, rows = table(results, "3")
    assert header[:2] == ["System", "Clips"] and "Clips" not in table(plain, "3")[0]
    ours = [dict(zip(header, row)) for row in rows[: 2 * len(SYSTEMS)]]
    assert [row["Clips"] for row in ours] == ["60 all", "48 without leaks"] * len(SYSTEMS)
    assert [row["CIDEr-D"] for row in ours[1::2]] == ["1.50"] * len(SYSTEMS)
    assert [[row[0], *row[2:]] for row in rows[: 2 * len(SYSTEMS) : 2]] == table(plain, "3")[1][: len(SYSTEMS)]
    assert [row[1] for row in rows[2 * len(SYSTEMS) :]] == ["-"] * 7
    write_report(tmp_path, results, make_lines(), make_item_scores())
    for lines in markdown_tables((tmp_path / "report.md").read_text(encoding="utf-8")):
        assert {count_columns(line) for line in lines} == {count_columns(lines[0])}
    (tmp_path / "README.md").write_text(model_card("demo"), "utf-8")
    card = update_model_card(tmp_path, results).read_text(encoding="utf-8")
    assert "| 48 without leaks |" in card and "12 of 60 clips leak from the split train" in card
    assert "near-identical audio 12" in card and "somewhere" not in card
    (note,) = leak_notes(results)
    assert "by clap above 0.9" in note
    results.without_leaks.options["model"] = None
    (note,) = leak_notes(results)
    assert "near-identical audio: not looked for" in note and "None" not in note


# -- the model card ---------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "README.md").write_text(model_card("demo", sections="## Training\n\n"), "utf-8")
    return folder


def test_card_holds_the_results_and_the_rest_of_it_unchanged(checkpoint):
    before = ModelCard.load(checkpoint / "README.md")
    card = ModelCard.load(update_model_card(checkpoint, make_results()))
    assert card.text.startswith(before.text)
    assert card.data.pipeline_tag == before.data.pipeline_tag and card.data.tags == before.data.tags
    found = {entry.metric_type: entry for entry in card.data.eval_results}
    assert set(found) == {key.partition("[")[0] for key in TITLES} - {"meteor_1.5"}
    assert found["clap_at"].metric_config == "org/clap@1a2b"
    assert found["cider_d"].dataset_type == "tunes" and found["cider_d"].metric_args["high"] > 3
    assert found["cider_d"].task_type == before.data.pipeline_tag
    (lines,) = markdown_tables(card.text)
    assert {count_columns(line) for line in lines} == {9}
    assert "\n\nCLAP A-T: by org/clap@1a2b\n\n" in card.text


def test_a_model_trained_from_scratch_is_said_to_be_of_no_use_elsewhere(make_config):
    pretrained = {"name": "owner/clap", "revision": "a" * 40, "sha256": {}}
    warning = "This model was trained from scratch on 1,152 clips; do not expect useful captions of other music."
    config = make_config(datastore_rows=1152)
    assert from_scratch_warning(config) == warning
    assert model_card("demo", config, sections="## Training\n\n").count(f"\n\n{warning}\n\n## Training\n\n") == 1
    assert "from scratch; do not" in from_scratch_warning(make_config())
    for name in ("audio_model_source", "text_model_source"):
        config = make_config(datastore_rows=1152, **{name: pretrained})
        assert from_scratch_warning(config) is None and "from scratch" not in model_card("demo", config)
    assert from_scratch_warning(None) is None


def test_card_names_no_place_of_the_machine(checkpoint):
    text = update_model_card(checkpoint, make_results()).read_text(encoding="utf-8")
    assert "somewhere" not in text and "--model=demo --dataset tunes" in text
    words = ["--dataset", "/home/o'brien, (x)/my tunes", "--predictions", "a b=/home/o'brien=x/p.jsonl", "c=d/e.jsonl"]
    results = make_results(command=shlex.join(["eval.py", *words]))
    text = update_model_card(checkpoint, results).read_text(encoding="utf-8")
    assert shlex.join(["eval.py", "--dataset", "my tunes", "--predictions", "a b=p.jsonl", "c=d/e.jsonl"]) in text
    assert "brien" not in text


def test_results_of_another_split_stay_in_the_card(checkpoint):
    for split in ("validation", "test"):
        path = update_model_card(checkpoint, make_results(split=split))
    card = ModelCard.load(path)
    assert {entry.dataset_split for entry in card.data.eval_results} == {"validation", "test"}
    assert card.data.model_name == "demo"


def test_writing_a_card_again_changes_no_byte(checkpoint):
    once = update_model_card(checkpoint, make_results()).read_bytes()
    assert update_model_card(checkpoint, make_results()).read_bytes() == once


def test_results_of_other_corpora_stay_in_the_card(checkpoint):
    first, second = make_results(), make_results(dataset="owner/other", tables={"4": ["rgmc"]})
    update_model_card(checkpoint, first)
    path = update_model_card(checkpoint, second)
    path.write_text(path.read_text("utf-8") + "\n## Thanks\n\nTo all.\n", "utf-8")
    once = path.read_bytes()
    first.systems["rgmc"].scores["cider_d"] = Score(77.77)
    update_model_card(checkpoint, first)
    card = ModelCard.load(path)
    found = [entry for entry in card.data.eval_results if entry.metric_type == "cider_d"]
    scores = {entry.dataset_type: entry.metric_value for entry in found}
    assert scores["tunes"] == 77.77 and set(scores) == {"tunes", "owner/other"}
    headings = re.findall(r"^##.*", card.text, re.M)
    assert headings == [
        "## Training",
        "## Limits and biases",
        "## Licence",
        "## Results",
        "### tunes, test",
        "### owner/other, test",
        "## Thanks",
    ]
    update_model_card(checkpoint, make_results())
    update_model_card(checkpoint, second)
    assert path.read_bytes() == once


def test_a_card_of_windows_lines_and_own_results_keeps_them(checkpoint):
    path = checkpoint / "README.md"
    text = path.read_text("utf-8") + "\n## Results\n\nIt sounds fine.\n\n## Thanks\n\nTo all.\n"
    path.write_bytes(text.replace("\n", "\r\n").encode())
    once = update_model_card(checkpoint, make_results()).read_bytes()
    assert b"\r\n\r\n## Results\r\n\r\nIt sounds fine.\r\n\r\n### tunes, test\r\n" in once
    assert once.endswith(b"```\r\n\r\n## Thanks\r\n\r\nTo all.\r\n") and b"\n" not in once.replace(b"\r\n", b"")
    assert update_model_card(checkpoint, make_results()).read_bytes() == once


def test_model_index_names_model_and_data():
    name, entries = model_index_to_eval_results(model_index(make_results(dataset="owner/music"), "demo"))
    assert name == "demo" and {(entry.dataset_type, entry.dataset_split) for entry in entries} == {
        ("owner/music", "test")
    }


def test_result_files_are_for_datasets_of_the_hub_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    for local in ("data/demo", "/demo", "/somewhere/demo", "demo"):
        assert write_eval_results(tmp_path, make_results(dataset=local)) is None
    assert not (tmp_path / ".eval_results").exists()
    results = make_results(dataset="owner/music")
    path = write_eval_results(tmp_path, results)
    assert path == tmp_path / ".eval_results" / "owner--music-test.yaml"
    assert parse_eval_result_entries(yaml.safe_load(path.read_text("utf-8"))) == eval_result_entries(results)
    assert "test-clap_at-org-clap-1a2b" in [entry.task_id for entry in eval_result_entries(results)]


def test_no_place_on_the_machine_is_in_the_title(tmp_path):
    results = make_results(
        dataset=str(tmp_path / "music"), checkpoint={"name": str(tmp_path / "demo"), "revision": None, "sha256": {}}
    )
    write_report(tmp_path, results, [], {}, None, 0)
    assert "<title>RGMC demo on music</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
