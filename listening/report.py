"""The report of a listening test: `report.md`, `report.html`, and the tables for a terminal."""

from itertools import groupby
from pathlib import Path

from listening.analysis import PairResult, TestResults
from reporting.report import render_report
from reporting.results import Score
from reporting.tables import Table, align_columns, format_score

TITLES = {"descriptive": "Descriptive", "useful": "Useful", "fluent": "Fluent"}
VOTE_NOTE = "The votes on one song depend on each other: the test of the songs is the one to report."


def write_report(output_dir: Path, results: TestResults, command: str):
    """Writes `report.md` and `report.html` to a folder that exists."""
    report = {
        "title": f"Listening test: {', '.join(results.systems)}",
        "summary": summary(results),
        "warning": None,
        "examples": [],
        "captions": None,
        "tables": [
            {"interval_note": "", "reported": None, **table}
            for table in [*pair_tables(results, intervals=True), *strength_tables(results), rater_table(results)]
        ],
        "differences": ([], []),
        "plots": [],
        "facts": facts(results, command),
    }
    render_report(output_dir, report)


def format_results(results: TestResults) -> str:
    """The summary and the tables for a terminal, without intervals."""
    parts = [summary(results)]
    for table in [*pair_tables(results, intervals=False), *strength_tables(results), rater_table(results)]:
        parts.append("\n".join([table["title"], *align_columns(*table["scores"]), *table["notes"]]))
    return "\n\n".join(parts)


def summary(results: TestResults) -> str:
    """What each pair shows by each criterion, in a sentence."""
    excluded = sum(bool(rater.excluded) for rater in results.raters)
    sentences = [f"{len(results.raters)} raters sent answers" + (f"; {excluded} excluded." if excluded else ".")]
    for pair in results.pairs:
        better, worse, shares = pair.first, pair.second, pair.shares
        votes, others, wins = shares["first"], shares["second"], pair.wins
        if votes.value < others.value:
            better, worse, votes, others, wins = worse, better, others, votes, (wins[1], wins[0], wins[2])
        verdict = "" if pair.p_adjusted < 0.05 else ", which may be chance"
        sentences.append(
            f"{TITLES[pair.criterion]}: {better} gets {votes.value:.1f} % of the votes, {worse} {others.value:.1f} %; "
            f"it wins {wins[0]} songs and loses {wins[1]} ({format_p(pair.p_adjusted, 'p')}){verdict}."
        )
    return " ".join(sentences)


def pair_tables(results: TestResults, intervals: bool) -> list[dict]:
    """For each pair the shares of the votes, as in the paper's Table 2, and how far the raters agree."""
    tables = []
    for (first, second), group in groupby(
        sorted(results.pairs, key=lambda pair: _order(results, pair)), lambda pair: (pair.first, pair.second)
    ):
        pairs = list(group)
        title = f"{first} and {second}: {pairs[0].songs} songs, {pairs[0].votes} votes"
        name = f"Table 2 · {title}" if len(results.systems) == 2 else title
        tables.append({"title": name, "scores": shares_table(pairs, intervals), "notes": share_notes(intervals, pairs)})
        tables.append(
            {
                "title": f"Agreement · {first} and {second}",
                "scores": agreement_table(pairs, intervals),
                "notes": agreement_notes(),
            }
        )
    return tables


def _order(results: TestResults, pair: PairResult) -> tuple[int, ...]:
    names = [results.systems.index(name) for name in (pair.first, pair.second)]
    return *names, results.criteria.index(pair.criterion)


def shares_table(pairs: list[PairResult], intervals: bool) -> Table:
    """Votes and sign tests of two systems; a column for each criterion."""
    first, second = pairs[0].first, pairs[0].second

    def score(name: str) -> list[str]:
        return [format_score(pair.shares[name], intervals, ".1f") for pair in pairs]

    rows = [
        [f"{first} %", *score("first")],
        [f"{second} %", *score("second")],
        ["Equal quality %", *score("tie")],
        [f"{first} minus {second}", *score("difference")],
        ["Songs won, lost, undecided", *(", ".join(map(str, pair.wins)) for pair in pairs)],
        ["p, sign test of the songs", *(format_p(pair.p_songs) for pair in pairs)],
    ]
    if any(pair.p_adjusted != pair.p_songs for pair in pairs):
        rows.append(["p, adjusted for all pairs", *(format_p(pair.p_adjusted) for pair in pairs)])
    rows.append(["p, sign test of the votes", *(format_p(pair.p_votes) for pair in pairs)])
    return ["Votes", *(TITLES[pair.criterion] for pair in pairs)], rows


def share_notes(intervals: bool, pairs: list[PairResult]) -> list[str]:
    notes = [VOTE_NOTE]
    if intervals:
        notes.append("[low, high]: 95 % interval over the songs, which are resampled with all of their votes.")
    if any(pair.p_adjusted != pair.p_songs for pair in pairs):
        notes.append("Adjusted by Holm's method, for each criterion by itself.")
    return notes


def agreement_table(pairs: list[PairResult], intervals: bool) -> Table:
    """Agreement of the raters, and what chance would give; a column for each criterion."""

    def score(name: str, form: str = ".1f") -> list[str]:
        return [format_score(getattr(pair, name), intervals, form) for pair in pairs]

    rows = [
        ["Unanimous songs", *(f"{pair.unanimous} of {pair.songs}" for pair in pairs)],
        ["Unanimous %", *score("unanimity")],
        ["by chance, uniform %", *(format_score(pair.chance[0], False, ".1f") for pair in pairs)],
        ["by chance, these shares %", *(format_score(pair.chance[1], False, ".1f") for pair in pairs)],
        ["Pairs of raters who agree %", *score("agreement")],
        ["Fleiss' kappa", *score("kappa", ".3f")],
        ["Krippendorff's alpha", *score("alpha", ".3f")],
    ]
    return ["Agreement", *(TITLES[pair.criterion] for pair in pairs)], rows


def agreement_notes() -> list[str]:
    return [
        "By chance, uniform: if each rater chose each of the three answers a third of the time. These shares: if each "
        "chose them as often as all raters together did, which is the fairer comparison.",
    ]


def strength_tables(results: TestResults) -> list[dict]:
    """The strengths of more than two systems, the best first."""
    tables = []
    for criterion, strengths in results.strengths.items():
        order = sorted(strengths, key=lambda name: -strengths[name].value)
        rows = [[name, format_score(strengths[name], True)] for name in order]
        notes = [
            "θ of Davidson's model, which is that of Bradley and Terry with ties, over all pairs; the mean is 0. A "
            "system wins against one whose θ is smaller by 1 in 73 % of the votes that are no ties.",
            "[low, high]: 95 % interval over the songs.",
        ]
        tables.append({"title": f"Strength · {TITLES[criterion]}", "scores": (["System", "θ"], rows), "notes": notes})
    return tables


def rater_table(results: TestResults) -> dict:
    """What each rater's answers are worth."""
    header = ["Rater", "Answered", "Checks passed"]
    header += [f"Same again, {TITLES[name].lower()}" for name in results.criteria]
    header += ["First description %", "Median s", "Excluded"]
    rows = [
        [
            rater.code,
            f"{rater.answered} of {rater.asked}",
            f"{rater.checks_passed} of {rater.checks}",
            *(f"{rater.same[name]} of {rater.repeats}" for name in results.criteria),
            format_score(Score(None if rater.first is None else 100 * rater.first), False, ".0f"),
            f"{rater.seconds:.0f}",
            rater.excluded or "-",
        ]
        for rater in results.raters
    ]
    rules = results.rules
    notes = [
        f"Excluded, by rules fixed before the test: who fails more than {rules['max_failed_checks']:g} attention "
        f"checks, or answers less than {100 * rules['min_answered']:g} % of the trials.",
        "Same again: repeated trials with the sides swapped. First description: far from 50, a rater favours a side.",
    ]
    return {"title": "Raters", "scores": (header, rows), "notes": notes}


def facts(results: TestResults, command: str) -> list[tuple[str, str]]:
    """How the test was made and analysed."""
    bootstrap = results.bootstrap
    return [
        ("Command", command),
        ("Test", f"{results.study}, variant {results.variant}, {results.raters_per_song} raters a song"),
        *results.facts.items(),
        ("Bootstrap", f"{bootstrap['samples']} samples, unit {bootstrap['unit']}, seed {bootstrap['seed']}"),
    ]


def format_p(p: float, name: str = "") -> str:
    """A p value as in `.0007` or, with a name, `p = .0007`."""
    if p < 0.0001:
        return f"{name} < .0001".strip()
    return (f"{name} = " if name else "") + f"{p:.4f}".removeprefix("0")
