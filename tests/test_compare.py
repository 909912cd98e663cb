"""What `python -m evaluation.compare` promises: differences that are paired clip by clip, or a reason why not."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.compare import Evaluation, compare, deviation_of_difference, main, parse_options
from evaluation.resamples import read_resamples, write_resamples
from evaluation.scoring import score_systems
from evaluation.systems import System
from reporting.results import (
    METRIC_TITLES,
    AttributeResults,
    EncoderRecall,
    EvaluationResults,
    ListeningResults,
    RetrievalResults,
    Score,
    SystemResult,
)

REFERENCES = ["a b c d", "e f g h"]
OTHER = "rgmc=other"


def words(*counts: int) -> list[str]:
    return [" ".join("stuvwxyz"[:count]) for count in counts]


def write_evaluation(folder: Path, *said: list[str], shuffled: list[str] | None = None, **changes) -> Path:
    """An evaluation of two clips, in which each checkpoint says other captions; `changes` are fields of its results."""
    references = changes.pop("references", REFERENCES)
    systems = {"gold": System("Gold Caption", "corpus", references, [None] * 2)}
    for seed, captions in enumerate(said):
        key, row = (f"rgmc={seed}", "rgmc") if seed else ("rgmc", None)
        systems[key] = System("RGMC", "", captions, [None] * 2, row)
    systems["rgmc_shuffled"] = System("RGMC, shuffled", "", shuffled or words(1, 1), [None] * 2)
    seed, samples = changes.pop("seed", 0), changes.pop("samples", 400)
    described, _, _, resamples = score_systems(systems, [[text] for text in references], [], False, samples, seed)
    checkpoints = [
        {"name": f"/x/{folder.name}{i}", "revision": None, "sha256": {"w": str(i)}} for i in range(len(said))
    ]
    values = {
        **{"model": "m", "checkpoint": checkpoints[0], "checkpoints": checkpoints if len(said) > 1 else None},
        **{"dataset": "d", "split": "test", "seed": seed, "command": "", "caption_normalization": "paper", "text": ""},
        **{"versions": {}, "bootstrap": {"samples": samples, "level": 0.95, "unit": "clip"}, "n": 2, "skipped": 0},
        **{"metrics": {key: METRIC_TITLES[key] for key in described["rgmc"].scores}, "unavailable": {}},
        **{"systems": described, "tables": {}, "side_by_side": [], "missing": {}},
    }
    results = EvaluationResults(**{**values, **changes})
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results.to_dict()))
    ids = changes.get("ids", ["first", "second\u2028"])
    lines = [{"id": row_id, "references": [text]} for row_id, text in zip(ids, references)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
    write_resamples(folder, resamples)
    return folder


def compared(a: Path, b: Path, *systems: str, metrics: tuple[str, ...] = ("words",)) -> list:
    system_a, system_b = systems or ("rgmc", "rgmc")
    return compare(Evaluation.read(a), Evaluation.read(b), system_a, system_b, list(metrics))


def test_differences_of_groups_are_those_computed_by_hand(tmp_path):
    a = write_evaluation(tmp_path / "a", words(2, 4), words(3, 7))  # means 3 and 5
    b = write_evaluation(tmp_path / "b", words(1, 1), words(2, 2), words(3, 3))  # means 1, 2 and 3
    (found,) = compared(a, b)
    assert (found.title, found.verdict) == ("Words", "A is higher")
    assert found.a == Score(4, 2.5, 5.5, pytest.approx(2**0.5), [3, 5])
    assert found.b == Score(2, 2, 2, 1, [1, 2, 3])
    # Clip by clip 2.5 - 2 and 5.5 - 2; of two clips, a resample has the first twice, both, or the second twice.
    assert found.difference == Score(2, 0.5, 3.5, pytest.approx((2 + 1) ** 0.5))
    (found,) = compared(b, a)
    assert found.difference == Score(-2, -3.5, -0.5, pytest.approx(3**0.5)) and found.verdict == "B is higher"


def test_the_interval_is_paired(tmp_path):
    """Each system varies by 6 words from clip to clip, but always by one from the other."""
    a, b = write_evaluation(tmp_path / "a", words(2, 8)), write_evaluation(tmp_path / "b", words(1, 7))
    (found,) = compared(a, b)
    assert found.difference == Score(1, 1, 1) and found.a == Score(5, 2, 8)


def test_an_interval_with_zero_shows_no_difference(tmp_path):
    a, b = write_evaluation(tmp_path / "a", words(2, 4)), write_evaluation(tmp_path / "b", words(3, 2))
    (found,) = compared(a, b)
    assert found.difference == Score(0.5, -1, 2) and found.verdict == "no difference shown"
    (same,) = compared(a, a)
    assert same.difference == Score(0, 0, 0) and same.verdict == "no difference shown"
    (found,) = compared(a, b, metrics=("distinct",))
    assert found.difference == Score(0) and found.verdict == "no interval"
    for low, high, verdict in (
        (-3, -0.001, "no difference shown"),
        (0.001, 1, "no difference shown"),
        (0.01, 1, "A is"),
    ):
        found.difference = Score(0.5, low, high)
        assert found.verdict.startswith(verdict)


def test_systems_of_the_same_checkpoints_are_paired_by_checkpoint():
    a, b = Score(2, 0, 4, 2**0.5, [1, 3]), Score(4, 0, 9, 2**0.5, [3, 5])
    assert deviation_of_difference(a, b, paired=True) == 0
    assert deviation_of_difference(a, b, paired=False) == pytest.approx(2)
    assert deviation_of_difference(a, Score(4), paired=True) is deviation_of_difference(Score(4), a, False) is None


def test_two_systems_of_one_evaluation_are_compared_as_the_evaluation_does(tmp_path):
    folder = write_evaluation(tmp_path / "a", ["a b x", "e y"], ["c d", "e f g z"], shuffled=["c d x y", "f g"])
    evaluation = Evaluation.read(folder)
    found = compare(evaluation, evaluation, "rgmc", "rgmc_shuffled", [])
    wanted = evaluation.results.systems["rgmc_shuffled"].difference
    assert [each.title for each in found] == [*evaluation.results.metrics.values()]
    by_title = {each.title: each.difference for each in found}
    for key, score in wanted.items():
        difference = by_title[METRIC_TITLES[key]]
        for name in ("value", "low", "high"):
            assert getattr(difference, name) == pytest.approx(getattr(score, name), abs=1e-3), key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["first", "third"]}, "not about the same clips in the same order: 2 and 2, 1 of them in both"),
        ({"ids": ["second\u2028", "first"]}, "not about the same clips in the same order: 2 and 2, 2 of them in both"),
        (
            {"references": ["a b c d", "e f g i"]},
            r"different references for second.: \['e f g h'\] and \['e f g i'\]; evaluate both on the same corpus",
        ),
        ({"caption_normalization": "music"}, "by the rules 'paper' and 'music': their scores cannot be compared"),
        ({"seed": 3}, r"drew different resamples, with \(--seed, --bootstrap\) \(0, 400\) and \(3, 400\): run eval.py"),
        ({"samples": 500}, r"\(0, 400\) and \(0, 500\): run eval.py again with the same values"),
        ({"samples": 0}, "b has no resamples: run eval.py again without --bootstrap 0"),
    ],
)
def test_what_cannot_be_paired_is_refused(tmp_path, changes, message):
    a = write_evaluation(tmp_path / "a", words(2, 4))
    ids = changes.pop("ids", None)
    b = write_evaluation(tmp_path / "b", words(2, 4), **changes)
    if ids:
        lines = [json.dumps({"id": row_id, "references": [text]}) for row_id, text in zip(ids, REFERENCES)]
        (b / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=message):
        compared(a, b)


def test_resamples_of_other_draws_are_noticed_though_the_options_are_the_same(tmp_path, monkeypatch):
    references = ["a b c d", "e f"]  # of two lengths, which show which clips were drawn
    a = write_evaluation(tmp_path / "a", words(2, 4), references=references)
    draw = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: draw(seed + 1))
    b = write_evaluation(tmp_path / "b", words(2, 4), references=references)
    with pytest.raises(ValueError, match=r"drew different resamples.*the same version of numpy"):
        compared(a, b)


def test_an_unknown_folder_system_or_metric_is_named_with_what_there_is(tmp_path):
    a = write_evaluation(tmp_path / "a", words(2, 4))
    with pytest.raises(ValueError, match=r"--system rmgc is not in .*/a: expected one of gold, rgmc, .*mean rgmc\?"):
        compared(a, a, "rgmc", "rmgc")
    with pytest.raises(ValueError, match=r"--metric cider is not in both .*: expected some of cider_d.*mean cider_d\?"):
        compared(a, a, metrics=("words", "cider"))
    with pytest.raises(ValueError, match=r"is not an evaluation .FileNotFoundError.*expected the --output_dir of eval"):
        Evaluation.read(tmp_path)
    (a / "resamples.parquet").unlink()
    with pytest.raises(ValueError, match=r"resamples.parquet cannot be read .*: run eval.py again"):
        Evaluation.read(a)


def measured(checkpoints: int, recall: float, threshold: float = 0.5, sources: str = "captions") -> dict:
    """What beside the tables is in the results of an evaluation."""
    by_checkpoint = [recall - 1, recall + 1] if checkpoints > 1 else None
    score = Score(recall, recall - 5, recall + 5, by_checkpoint and 2**0.5, by_checkpoint)
    heard = {"choice_random": score, "choice_nearest": Score(40), "audio_swap": Score(None)}
    systems = {key: SystemResult(key, "", heard) for key in ("rgmc", "rgmc_audio_only_masked")}
    encoders = {"rgmc_shuffled": EncoderRecall("", "", 3, {"1": score}, Score(None))}
    return {
        "listening": ListeningResults(systems, {}),
        "retrieval": RetrievalResults(threshold, encoders),
        "attributes": AttributeResults("words.yaml", {"mood": sources}, {}, {"gold": {"mood": {}}}),
    }


def add_drawn(folder: Path, *drawn: float):
    """Adds resamples of what is not in the tables."""
    found = read_resamples(folder)
    more = {"rgmc": {"choice_random": np.array(drawn)}, "rgmc_shuffled": {"recall@1": np.array(drawn)}}
    write_resamples(folder, found, more)


def test_what_is_heard_and_retrieved_is_compared_too(tmp_path):
    a = write_evaluation(tmp_path / "a", words(2, 4), words(3, 7), **measured(2, 70))
    b = write_evaluation(tmp_path / "b", words(1, 1), words(2, 2), words(3, 3), **measured(2, 60))
    add_drawn(a, *[70 - 5, 70 + 5] * 200)
    add_drawn(b, *[60 - 3, 60 + 3] * 200)
    (found,) = compared(a, b, metrics=("choice_random",))
    assert found.title == "4-way, random %" and found.verdict == "A is higher"
    assert found.difference == Score(10, 8, 12, pytest.approx(2))  # paired: 65 - 57 and 75 - 63
    (found,) = compared(a, b, "rgmc_shuffled", "rgmc_shuffled", metrics=("recall@1",))
    assert found.title == "Recall@1 %" and found.difference == Score(10, 8, 12, pytest.approx(2))
    # A row that only listening has, whose resamples are not there.
    (found,) = compared(a, b, "rgmc_audio_only_masked", "rgmc_audio_only_masked", metrics=())
    assert found.title == "4-way, random %" and found.verdict == "no interval"
    titles = [each.title for each in compared(a, b, metrics=())]
    assert "4-way, random %" in titles and "4-way, similar sound %" not in titles  # of two models
    assert [each.title for each in compared(a, a, metrics=())] == [*titles, "4-way, similar sound %"]


def test_what_was_measured_in_other_ways_is_left_out_with_the_reason(tmp_path, capsys):
    a = write_evaluation(tmp_path / "a", words(2, 4), words(3, 7), **measured(2, 70))
    b = write_evaluation(tmp_path / "b", words(1, 1), **measured(1, 60, 0.7, "column mood"))
    with pytest.raises(ValueError, match="--metric choice_nearest cannot be compared: the encoder of each model"):
        compared(a, b, metrics=("choice_nearest",))
    with pytest.raises(ValueError, match=r"recall@1 cannot be compared: other --recall_threshold: 0\.5 and 0\.7"):
        compared(a, b, metrics=("recall@1",))
    with pytest.raises(ValueError, match="attribute_f1 cannot be compared: other --attributes or --attribute_columns"):
        compared(a, b, metrics=("attribute_f1",))
    main([str(a), str(b)])
    assert "4-way, similar sound %: left out: the encoder of each model" in capsys.readouterr().out
    main([str(a), str(b), "--system", "rgmc_shuffled"])
    printed = capsys.readouterr().out
    assert "Recall@1 %: left out: other --recall_threshold: 0.5 and 0.7" in printed and "4-way" not in printed
    main([str(a), str(b), "--metric", "words"])
    assert "left out" not in capsys.readouterr().out


def test_the_command_prints_a_line_for_each_metric(tmp_path, capsys):
    a = write_evaluation(tmp_path / "a", words(2, 4), words(3, 7))
    b = write_evaluation(tmp_path / "b", words(1, 1))
    main([str(a), str(b), "--metric", "words", "distinct"])
    first, second, clips, *lines = capsys.readouterr().out.splitlines()
    assert first == f"A: RGMC, {a} (a0, a1)" and second == f"B: RGMC, {b} (b0)" and clips == "2 clips"
    assert lines == [
        "                        A      B                 A - B",
        "Words         4.00 ± 1.41   1.00  +3.00 [+1.50, +4.50]  A is higher",
        "Distinct %  100.00 ± 0.00  50.00                +50.00  no interval",
        "[low, high]: paired 95 % interval, 400 samples of the clips",
        "±: standard deviation over checkpoints that differ by seed; the intervals do not cover it",
    ]
    main([str(b), str(b), "--system", "rgmc", "rgmc_shuffled"])
    printed = capsys.readouterr().out
    assert f"B: RGMC, shuffled, {b} (b0)" in printed and "±" not in printed
    with pytest.raises(SystemExit):
        parse_options([str(a), str(b), "--system", "x", "y", "z"])
