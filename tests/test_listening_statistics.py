"""What the analysis of a listening test promises: the paper's figures, the references' agreement, honest intervals."""

import csv
import io
import json
import math
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from scipy.optimize import minimize
from statsmodels.stats import inter_rater

import listening_test
from evaluation.intervals import draw_clips
from listening import statistics
from listening.answers import read_answers
from listening.design import GOLD, Study, make_study
from listening.power import power_of, preference_needed, songs_needed

SONGS = [f"song-{number}" for number in range(40)]
GOLD_CAPTIONS = {song: f"a tune of {song} in the key {number}" for number, song in enumerate(SONGS)}
FIRST, SECOND, TIE = "Ours", "Theirs", "tie"

# The votes of 31 songs: of the paper's Table 2 (59, 27, 7 and 46, 19, 28 votes; 11 and 12 unanimous songs).
DESCRIPTIVE = ["AAA"] * 10 + ["BBB"] + ["AAB"] * 9 + ["ABB"] * 4 + ["ABT"] * 7
FLUENT = ["AAA"] * 10 + ["BBB", "TTT"] + ["ATT"] * 6 + ["ABT"] * 10 + ["BBT"] * 3


def draw_study(systems=(FIRST, SECOND), **options) -> Study:
    captions = {system: {song: f"{system} says {song}" for song in SONGS} for system in systems}
    return make_study(captions, GOLD_CAPTIONS, **{"repeats": 2, **options})


def answer(study: Study, decide, choose_gold: bool = True) -> dict[str, dict]:
    """The exports of all raters; `decide(rater, trial, criterion)` names a system or a tie."""
    exports = {}
    for number, (code, trials) in enumerate(study.raters.items()):
        answers = []
        for trial in trials:
            choices = {}
            for criterion in study.criteria:
                choice = (GOLD if choose_gold else TIE) if trial.kind == "check" else decide(number, trial, criterion)
                choices[criterion] = {trial.left: "left", trial.right: "right", TIE: "tie"}[choice]
            answers.append({"trial": trial.id, **choices, "seconds": 20.0, "plays": 1})
        exports[code] = {"study": study.id, "rater": code, "answers": answers}
    return exports


def write_exports(folder: Path, study: Study, exports: dict[str, dict]) -> list[str]:
    """Writes key and exports; returns the words of `analyse`."""
    (folder / "key.json").write_text(json.dumps(study.to_dict()))
    files = []
    for code, export in exports.items():
        files.append(folder / f"answers-{code}.json")
        files[-1].write_text(json.dumps(export))
    return ["analyse", *map(str, files), "--key", str(folder / "key.json"), "--output_dir", str(folder / "results")]


def paper_votes(study: Study):
    votes = {
        criterion: dict(zip(study.songs, kinds)) for criterion, kinds in zip(study.criteria, (DESCRIPTIVE, FLUENT))
    }
    rows = {song: row for row, song in enumerate(study.songs)}

    def decide(rater, trial, criterion):
        letters = votes[criterion][trial.song]
        return {"A": FIRST, "B": SECOND, "T": TIE}[letters[(rater + rows[trial.song]) % 3]]

    return decide


# -- the paper --------------------------------------------------------------------------------------------------------


def test_votes_like_the_papers_print_the_papers_table(tmp_path, capsys):
    study = draw_study(songs=31)
    listening_test.main(write_exports(tmp_path, study, answer(study, paper_votes(study))))
    lines = {line.split("  ")[0]: line.split()[-2:] for line in capsys.readouterr().out.splitlines() if "  " in line}
    assert lines["Ours %"] == ["63.4", "49.5"]
    assert lines["Theirs %"] == ["29.0", "20.4"]
    assert lines["Equal quality %"] == ["7.5", "30.1"]
    assert lines["Unanimous %"] == ["35.5", "38.7"]
    assert lines["by chance, uniform %"] == ["11.1", "11.1"]
    assert lines["by chance, these shares %"] == ["28.0", "15.7"]
    assert lines["p, sign test of the votes"] == [".0007", ".0011"]
    # 19 songs to 5, and 16 to 4: twice the binomial tail by hand.
    tails = [2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n for n, least in ((24, 5), (20, 4))]
    found = [f"{tail:.4f}".removeprefix("0") for tail in tails]
    assert lines["p, sign test of the songs"] == found == [".0066", ".0118"]
    report = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [pair["unanimous"] for pair in report["pairs"]] == [11, 12]
    for name in ("report.md", "report.html"):
        text = (tmp_path / "results" / name).read_text()
        assert "63.4" in text and "49.5" in text and ".0007" in text
    votes = list(csv.DictReader(io.StringIO((tmp_path / "results" / "votes.csv").read_text())))
    assert len(votes) == 2 * 93
    assert sum(vote["choice"] == FIRST for vote in votes if vote["criterion"] == "descriptive") == 59


# -- against the references -------------------------------------------------------------------------------------------


def draw_votes(generator: np.random.Generator, songs: int, raters: int) -> np.ndarray:
    """The answers 0, 1, 2 of raters who agree more or less often, `(songs, raters)`."""
    truth = generator.choice(3, (songs, 1), p=generator.dirichlet(np.ones(3)))
    return np.where(
        generator.random((songs, raters)) < generator.random(), truth, generator.integers(0, 3, (songs, raters))
    )


def counts_of(answers: np.ndarray) -> np.ndarray:
    return np.stack([(answers == value).sum(axis=1) for value in range(3)], axis=1)


@pytest.mark.parametrize("seed", range(20))
def test_kappa_and_alpha_are_those_of_statsmodels_and_krippendorff(seed):
    generator = np.random.default_rng(seed)
    songs, raters = generator.integers(5, 60), generator.integers(2, 7)
    answers = draw_votes(generator, songs, raters)
    counts, once = counts_of(answers), np.ones(songs)
    assert abs(statistics.fleiss_kappa(counts, once) - inter_rater.fleiss_kappa(counts)) < 1e-9
    expected = krippendorff.alpha(reliability_data=answers.T, value_domain=[0, 1, 2], level_of_measurement="nominal")
    assert abs(statistics.krippendorff_alpha(counts, once) - expected) < 1e-9
    missing = np.where(generator.random(answers.shape) < 0.3, np.nan, answers)
    expected = krippendorff.alpha(reliability_data=missing.T, value_domain=[0, 1, 2], level_of_measurement="nominal")
    assert abs(statistics.krippendorff_alpha(counts_of(missing), once) - expected) < 1e-9
    # A song that is drawn twice counts as two songs.
    draw = draw_clips(songs, 1, seed)
    repeated = np.repeat(counts, draw[0], axis=0)
    assert abs(statistics.fleiss_kappa(counts, draw)[0] - inter_rater.fleiss_kappa(repeated)) < 1e-9


def test_statistics_of_songs_without_disagreement_or_enough_votes():
    same = np.array([[3, 0, 0], [3, 0, 0]])
    assert np.isnan(statistics.fleiss_kappa(same, np.ones(2)))
    assert statistics.with_interval(float("nan"), np.array([np.nan]), 2).value is None
    assert statistics.with_interval(50.0, np.array([50.0, 50.0]), 1).low is None
    one_each = np.array([[1, 0, 0], [2, 0, 0], [1, 1, 0]])
    assert statistics.unanimity(one_each, np.ones(3)) == 0.5  # the song with one vote has no agreement
    assert statistics.sign_test(0, 0) == 1
    assert np.isnan(statistics.chance_unanimity(np.array([[1, 0, 0], [0, 1, 0]]))).all()


def test_holm_is_as_computed_by_hand():
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert statistics.holm([0.9, 0.6]) == [1, 1]


# -- strengths --------------------------------------------------------------------------------------------------------

PAIRS = [(0, 1), (0, 2), (1, 2)]
STRENGTHS, TIES = np.array([0.8, 0.1, -0.9]), -1.0


def test_strengths_have_the_highest_probability():
    counts = np.random.default_rng(0).integers(1, 30, (3, 3))

    def minus_log_posterior(values):
        total = (values**2).sum() / (2 * statistics.PRIOR**2)
        for (first, second), votes in zip(PAIRS, counts):
            logits = np.array([values[first], values[second], values[3] + (values[first] + values[second]) / 2])
            total -= votes @ (logits - np.log(np.exp(logits).sum()))
        return total

    expected = minimize(minus_log_posterior, np.zeros(4), tol=1e-12).x[:3]
    assert np.allclose(statistics.bradley_terry(counts, PAIRS, 3), expected - expected.mean(), atol=1e-5)
    # Without ties, the odds of two systems are those of their votes.
    strengths = statistics.bradley_terry(np.array([[3000, 1000, 0]]), [(0, 1)], 2)
    assert strengths[0] - strengths[1] == pytest.approx(math.log(3), abs=0.01)


def test_a_system_that_wins_all_votes_has_a_finite_strength():
    strengths = statistics.bradley_terry(np.array([[9, 0, 0], [9, 0, 0], [5, 4, 0]]), PAIRS, 3)
    assert np.isfinite(strengths).all() and strengths.argmax() == 0


def simulate(generator: np.random.Generator, songs: int = 31, raters: int = 3) -> np.ndarray:
    """Votes `(songs, 3, 3)` of raters on three systems; a system is better or worse on each song."""
    strengths = STRENGTHS + 0.7 * generator.standard_normal((songs, 3))
    counts = []
    for first, second in PAIRS:
        one, other = strengths[:, first], strengths[:, second]
        weights = np.exp(np.stack([one, other, TIES + (one + other) / 2], axis=1))
        counts.append(generator.multinomial(raters, weights / weights.sum(axis=1, keepdims=True)))
    return np.stack(counts, axis=1)


def test_intervals_of_the_shares_cover_the_truth_in_93_to_97_percent_of_simulations():
    generator = np.random.default_rng(0)
    truth = simulate(generator, songs=200_000)[:, 0].sum(axis=0) / 600_000
    draws, once, covered = draw_clips(31, 1000, 0).astype(float), np.ones(31), []
    for _ in range(1000):
        counts = simulate(generator)[:, 0]
        value, drawn = statistics.vote_shares(counts, once), statistics.vote_shares(counts, draws)
        intervals = [statistics.with_interval(value[i], drawn[:, i], 31) for i in range(2)]
        covered.append([found.low <= truth[i] <= found.high for i, found in enumerate(intervals)])
    assert np.all((np.mean(covered, axis=0) >= 0.93) & (np.mean(covered, axis=0) <= 0.97))


@pytest.mark.slow
def test_strengths_recover_the_planted_order_and_their_intervals_cover_the_truth():
    generator = np.random.default_rng(0)
    truth = statistics.bradley_terry(simulate(generator, songs=200_000).sum(axis=0), PAIRS, 3)
    draws, covered, ordered = draw_clips(31, 500, 0).astype(float), [], []
    for _ in range(500):
        counts = simulate(generator)
        found = statistics.bradley_terry(counts.sum(axis=0), PAIRS, 3)
        drawn = statistics.bradley_terry(np.einsum("sn,npc->spc", draws, counts), PAIRS, 3)
        intervals = [statistics.with_interval(found[i], drawn[:, i], 31) for i in range(3)]
        covered.append([each.low <= truth[i] <= each.high for i, each in enumerate(intervals)])
        ordered.append([*np.argsort(-found)] == [0, 1, 2])
    assert 0.93 <= np.mean(covered) <= 0.97 and np.mean(ordered) > 0.95


def test_raters_of_three_systems_recover_the_planted_order(tmp_path, capsys):
    study = draw_study(("worst", "best", "middle"), songs=31, raters=5)
    quality = {"best": 1.0, "middle": 0.0, "worst": -1.0}
    generator = np.random.default_rng(0)

    def decide(rater, trial, criterion):
        left, right = quality[trial.left], quality[trial.right]
        weights = np.exp([left, right, -1 + (left + right) / 2])
        return generator.choice([trial.left, trial.right, TIE], p=weights / weights.sum())

    listening_test.main(write_exports(tmp_path, study, answer(study, decide)))
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    for strengths in results["strengths"].values():
        assert sorted(strengths, key=lambda name: -strengths[name]["value"]) == ["best", "middle", "worst"]
        assert strengths["best"]["low"] > strengths["middle"]["high"] > strengths["middle"]["low"]
    assert len(results["pairs"]) == 6 and all(pair["p_adjusted"] >= pair["p_songs"] for pair in results["pairs"])
    out = capsys.readouterr().out
    assert "Strength · Fluent" in out and "p, adjusted for all pairs" in out and "Table 2" not in out


# -- the raters -------------------------------------------------------------------------------------------------------


def test_a_test_of_one_rater_has_shares_and_no_agreement(tmp_path):
    study = draw_study(songs=6, raters=1, raters_per_song=1)
    listening_test.main(write_exports(tmp_path, study, answer(study, always_first)))
    text = (tmp_path / "results" / "results.json").read_text()
    assert json.loads(text)["pairs"][0]["shares"]["first"]["value"] == 100 and "NaN" not in text
    assert "| by chance, uniform % | - | - |" in (tmp_path / "results" / "report.md").read_text()


def always_first(rater, trial, criterion):
    return FIRST


def test_raters_are_excluded_by_the_rules_of_the_key_alone(tmp_path):
    study = draw_study(songs=6, raters=4, raters_per_song=4, checks=4, max_failed_checks=1)
    exports = answer(study, always_first)
    fails, stops, nearly, good = exports.values()
    by_id = {trial.id: trial for trials in study.raters.values() for trial in trials}
    for export, wrong in ((fails, 2), (nearly, 1)):
        checks = [line for line in export["answers"] if by_id[line["trial"]].kind == "check"]
        for line in checks[:wrong]:
            line["descriptive"] = "tie"
        for line in checks:
            line["fluent"] = "tie"  # both captions of a check may be equally well written
    stops["answers"] = stops["answers"][:5]
    listening_test.main(write_exports(tmp_path, study, exports))
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    raters = {rater["code"]: rater for rater in results["raters"]}
    assert raters[fails["rater"]]["excluded"] == "failed 2 of 4 attention checks"
    assert raters[stops["rater"]]["excluded"] == "answered 5 of 12 trials"
    assert raters[nearly["rater"]]["excluded"] is raters[good["rater"]]["excluded"] is None
    assert (raters[nearly["rater"]]["checks_passed"], raters[good["rater"]]["checks_passed"]) == (3, 4)
    assert [pair["votes"] for pair in results["pairs"]] == [12, 12]
    assert "2 excluded" in (tmp_path / "results" / "report.md").read_text()


def test_self_agreement_compares_systems_and_not_sides(tmp_path):
    study = draw_study(songs=12, repeats=4)

    def decide(rater, trial, criterion):
        if criterion == "fluent":
            return trial.left  # the first caption, whichever it is: never the same system again
        return FIRST

    listening_test.main(write_exports(tmp_path, study, answer(study, decide)))
    for rater in json.loads((tmp_path / "results" / "results.json").read_text())["raters"]:
        assert rater["same"] == {"descriptive": 4, "fluent": 0} and rater["repeats"] == 4
        assert rater["first"] > 0.6  # half of the descriptive votes, all of the fluent ones


def test_repeats_and_checks_have_no_vote(tmp_path):
    study = draw_study(songs=12, repeats=4)
    listening_test.main(write_exports(tmp_path, study, answer(study, always_first)))
    pair, _ = json.loads((tmp_path / "results" / "results.json").read_text())["pairs"]
    assert pair["votes"] == 36 and pair["shares"]["first"]["value"] == 100 and pair["wins"] == [12, 0, 0]


def test_a_table_says_what_json_says_and_a_later_export_completes_an_earlier_one(tmp_path):
    study = draw_study(songs=6)
    export = next(iter(answer(study, always_first).values()))
    rows = [{"study": study.id, "rater": export["rater"], **line} for line in export["answers"]]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "a.json").write_text(json.dumps(export))
    (tmp_path / "half.json").write_text(json.dumps({**export, "answers": export["answers"][:4]}))
    found = read_answers([tmp_path / "a.csv"], study)
    assert found == read_answers([tmp_path / "half.json", tmp_path / "a.json"], study)
    assert [len(trials) for trials in found.values()] == [len(rows)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda export: export.update(study="other"), "is of the test other, and the key of"),
        (lambda export: export.update(rater="NOBOD"), "rater NOBOD, trial"),
        (
            lambda export: export["answers"][0].update(fluent="both"),
            "left both: expected a trial of that rater, and left",
        ),
        (lambda export: export["answers"][0].pop("fluent"), "is not an export of the page (KeyError: 'fluent')"),
        (lambda export: export["answers"][0].update(fluent="tie"), "otherwise than in"),
    ],
)
def test_an_export_that_does_not_fit_is_named(tmp_path, change, expected):
    study = draw_study(songs=6)
    good = next(iter(answer(study, lambda rater, trial, criterion: trial.left, choose_gold=True).values()))
    good["answers"][0].update(descriptive="left", fluent="left")
    bad = json.loads(json.dumps(good))
    change(bad)
    for name, export in (("good.json", good), ("bad.json", bad)):
        (tmp_path / name).write_text(json.dumps(export))
    with pytest.raises(ValueError, match=r"bad\.json") as raised:
        read_answers([tmp_path / "good.json", tmp_path / "bad.json"], study)
    assert expected in str(raised.value)


def test_no_votes_is_an_error_that_says_why(tmp_path):
    study = draw_study(songs=6)
    words = write_exports(tmp_path, study, answer(study, always_first, choose_gold=False))
    with pytest.raises(ValueError, match="3 raters sent answers, 3 are excluded; wait for more answers"):
        listening_test.main(words)
    (tmp_path / "key.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not the key\.json of a test"):
        listening_test.main(words)


# -- power ------------------------------------------------------------------------------------------------------------


def test_songs_needed_are_those_of_the_exact_sign_test():
    assert songs_needed(0.60) == (199, 210)
    assert songs_needed(0.65) == (90, 97)
    assert songs_needed(0.70) == (49, 54)
    assert power_of(31, 0.75) < 0.8 < power_of(31, 0.76)
    assert preference_needed(31) == 0.76 and preference_needed(5) is None
    assert songs_needed(0.501) is None
    assert 49 / 0.8 < songs_needed(0.7, undecided=0.2)[0] < 54 / 0.8


def test_power_is_that_of_a_simulation():
    generator = np.random.default_rng(0)
    decided = generator.binomial(60, 0.7, 20_000)
    wins = generator.binomial(decided, 0.75)
    seen, times = np.unique(np.stack([wins, decided - wins], axis=1), axis=0, return_counts=True)
    significant = sum(n for pair, n in zip(seen.tolist(), times) if statistics.sign_test(*pair) < 0.05) / times.sum()
    assert power_of(60, 0.75, undecided=0.3) == pytest.approx(significant, abs=0.01)


def test_power_prints_what_a_test_needs_before_it_is_run(capsys):
    listening_test.main(["power", "--preference", "0.6", "0.65", "0.7"])
    out = capsys.readouterr().out
    assert all(text in out for text in ("60/40       199-210", "65/35       90-97", "70/30       49-54"))
    assert "31 songs reach a power of 80 % from a preference of 76/24 on" in out
