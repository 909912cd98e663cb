"""What the recall of similar captions promises: it is counted right, and training logs what the evaluation finds."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from helpers import CAPTIONS, SPLITS, read_lines, run
from test_report import make_item_scores, make_lines, make_results, results_json

import evaluation.retrieval
from clips.recall import first_similar, recall
from eval import EvaluationArguments, evaluate_checkpoint
from evaluation.retrieval import any_similar, score_retrieval
from reporting.report import write_report
from reporting.results import EvaluationResults, Score
from reporting.retrieval import format_retrieval, retrieval_table
from retrieval_rgmc import CaptionDatastore

SONGS = ["a sad piano", "la la la", "loud rock", "a sad slow song"]
CLIPS = [
    ["a sad song"],  # 2 of 3 words of the first song, 3 of 3 and 4 of the last: F1 of 2/3 and 6/7
    ["la la oh oh oh"],  # la twice: F1 of 2 · 2 / (3 + 5) = 1/2
    ["quiet folk", "very loud rock"],  # the second caption: F1 of 4/5
    ["silence"],
]
NEIGHBORS = np.array([[2, 0, 3], [0, 1, 2], [3, -1, 2], [1, 2, 3]])


def neighbors(**changes) -> SimpleNamespace:
    found = {"source": "x", "captions": SONGS, "own_rows": [-1] * 4, "rows": NEIGHBORS}
    return SimpleNamespace(**{**found, **changes})


def test_the_first_similar_neighbor_is_found_by_its_words():
    assert first_similar(CLIPS, SONGS, NEIGHBORS, 0.5).tolist() == [2, 2, 3, np.inf]
    assert first_similar(CLIPS, SONGS, NEIGHBORS, 0.51).tolist() == [2, np.inf, 3, np.inf]
    assert first_similar(CLIPS, SONGS, NEIGHBORS, 0.8).tolist() == [3, np.inf, 3, np.inf]  # 4/5 is 0.8 or more
    assert first_similar(CLIPS, SONGS, NEIGHBORS[:, :2], 0.5).tolist() == [2, 2, np.inf, np.inf]
    assert first_similar(CLIPS[:1], SONGS, np.array([[2, -1]]), 0.5).tolist() == [np.inf]  # -1 is not the last song


def test_recall_counts_the_clips_within_the_first_k():
    ranks = np.array([1, 5, 6, 10, 11, np.inf, np.inf, 1])
    assert recall(ranks) == {"recall@1": 2 / 8, "recall@5": 3 / 8, "recall@10": 5 / 8}


def test_the_ceiling_asks_every_song_but_the_clips_own(monkeypatch):
    assert any_similar(CLIPS, SONGS, [-1] * 4, 0.5).tolist() == [True, True, True, False]
    assert any_similar(CLIPS, SONGS, [-1] * 4, 0.51).tolist() == [True, False, True, False]
    assert any_similar(CLIPS, SONGS, [3, 1, 2, 3], 0.5).tolist() == [True, False, False, False]
    assert any_similar(CLIPS, SONGS, [3, 1, 2, 3], 0.7).tolist() == [False, False, False, False]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.retrieval, "BLOCK_ROWS", 2)
        assert any_similar(CLIPS, SONGS, [3, 1, 2, 3], 0.7).tolist() == [False, False, False, False]
    words = np.random.default_rng(0)
    clips, songs = (
        [" ".join(words.choice(list("abcdefgh"), words.integers(1, 9))) for _ in range(n)] for n in (40, 90)
    )
    references = [clips[row : row + 1 + row % 3] for row in range(40)]  # one to three captions of each
    everything = np.tile(np.arange(90), (40, 1))
    for threshold in (0.4, 0.6, 2 / 3, 0.75, 0.9):
        wanted = np.isfinite(first_similar(references, songs, everything, threshold))
        assert wanted.any()
        assert (any_similar(references, songs, [-1] * 40, threshold) == wanted).all()
        with monkeypatch.context() as patch:
            patch.setattr(evaluation.retrieval, "BLOCK_ROWS", 7)
            patch.setattr(evaluation.retrieval, "BLOCK_CLIPS", 3)
            assert (any_similar(references, songs, [-1] * 40, threshold) == wanted).all()
            own = [row % 90 for row in range(40)]
            without = np.where(everything == np.array(own)[:, None], -1, everything)
            wanted = np.isfinite(first_similar(references, songs, without, threshold))
            assert (any_similar(references, songs, own, threshold) == wanted).all()


def test_recall_has_a_ceiling_and_intervals(monkeypatch):
    found = {"nearest_neighbor_statistics": neighbors(rows=NEIGHBORS[:, :1]), "nearest_neighbor": neighbors()}
    scored, _ = score_retrieval(found, CLIPS, 0.5, samples=200, seed=0)
    assert list(scored.encoders) == ["nearest_neighbor", "nearest_neighbor_statistics"]
    own = scored.encoders["nearest_neighbor"]
    assert {k: score.value for k, score in own.recall.items()} == {"1": 0, "5": 75, "10": 75}
    assert own.ceiling.value == 75 and own.rows == 4
    assert own.recall["5"].low < 75 < own.recall["5"].high <= 100 and own.recall["1"].high == 0
    assert scored.encoders["nearest_neighbor_statistics"].recall["10"].value == 0
    # The interval by hand: percentiles of the share of similar clips among those drawn.
    draws = np.random.default_rng(0).multinomial(4, [0.25] * 4, 200)
    assert own.recall["5"].low == pytest.approx(np.percentile(draws[:, :3].sum(axis=1) * 25, 2.5))
    plain = score_retrieval(found, CLIPS, 0.5, samples=0, seed=0)[0].encoders["nearest_neighbor"]
    assert plain.recall["5"] == plain.ceiling == Score(75)
    pairs = 5 * 4  # captions of clips and of songs
    for most, ceiling in ((pairs, Score(75)), (pairs - 1, Score(None))):
        monkeypatch.setattr(evaluation.retrieval, "MOST_PAIRS", most)
        assert score_retrieval(found, CLIPS, 0.5, 0, 0)[0].encoders["nearest_neighbor"].ceiling == ceiling
    # Encoders of different songs have different ceilings.
    monkeypatch.setattr(evaluation.retrieval, "MOST_PAIRS", pairs)
    other = {**found, "nearest_neighbor_frozen": neighbors(captions=["silence"], rows=np.zeros((4, 1), int))}
    ceilings = [encoder.ceiling.value for encoder in score_retrieval(other, CLIPS, 0.5, 0, 0)[0].encoders.values()]
    assert ceilings == [75, 25, 75]


def test_recall_of_several_checkpoints_is_their_mean():
    found = {"nearest_neighbor": neighbors(), "nearest_neighbor_statistics": neighbors()}
    other = neighbors(rows=NEIGHBORS[:, :2])  # without the third clip's neighbour
    scored, resamples = score_retrieval(found, CLIPS, 0.5, samples=200, seed=0, others=[other])
    own, shared = scored.encoders["nearest_neighbor"], scored.encoders["nearest_neighbor_statistics"]
    assert own.recall["5"].by_checkpoint == [75, 50] and own.recall["5"].value == 62.5
    assert own.recall["5"].deviation == pytest.approx(25 / 2**0.5)
    draws = np.random.default_rng(0).multinomial(4, [0.25] * 4, 200)
    drawn = draws @ [25, 25, 12.5, 0]
    assert resamples["nearest_neighbor"]["recall@5"] == pytest.approx(drawn)
    assert (own.recall["5"].low, own.recall["5"].high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    assert shared.recall["5"].value == 75 and shared.recall["5"].deviation is own.ceiling.deviation is None


# -- in the reports ----------------------------------------------------------------------------------------------------


def with_retrieval(**changes) -> EvaluationResults:
    found = {"nearest_neighbor": neighbors(), "nearest_neighbor_statistics": neighbors(rows=NEIGHBORS[:, :1])}
    return make_results(retrieval=asdict(score_retrieval(found, CLIPS, **{"threshold": 0.5, **changes})[0]))


def test_the_table_of_retrieval_states_its_threshold(tmp_path, monkeypatch):
    results = with_retrieval(samples=20, seed=0)
    header, rows = retrieval_table(results)
    assert header == ["Encoder", "Songs", "Recall@1 %", "Recall@5 %", "Recall@10 %", "Ceiling %"]
    assert rows[0][:3] == ["RGMC's encoder", "4", "0.00 [0.00, 0.00]"] and rows[0][3].startswith("75.00 [")
    printed = format_retrieval(results)
    assert printed.startswith("Retrieval · test: 60 clips\n") and "[" not in printed
    assert len({len(line) for line in printed.split("\n")[1:4]}) == 1
    write_report(tmp_path, results, make_lines(), make_item_scores())
    for text in (printed, *((tmp_path / f"report.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))):
        assert "Log-mel statistics" in text and "token F1 of 0.5 or more" in text and "Not computed" not in text
    monkeypatch.setattr(evaluation.retrieval, "MOST_PAIRS", 0)
    printed = format_retrieval(with_retrieval(samples=0, seed=0, threshold=0.7))
    assert "F1 of 0.7 or more" in printed and "too many pairs" in printed and printed.split("\n")[2].endswith("-")
    write_report(tmp_path, make_results(), make_lines(), make_item_scores())  # results of an earlier version
    assert "Recall" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_retrieval_survives_a_round_trip_through_json(monkeypatch):
    monkeypatch.setattr(evaluation.retrieval, "MOST_PAIRS", 0)
    text = json.dumps(with_retrieval(samples=20, seed=0).to_dict())
    again = EvaluationResults.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text and again == with_retrieval(samples=20, seed=0)
    assert EvaluationResults.from_dict(results_json()).retrieval is None


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01])
def test_a_threshold_without_sense_is_refused(threshold):
    with pytest.raises(ValueError, match=r"--recall_threshold .*: expected more than 0 and at most 1"):
        EvaluationArguments("model", "data", "out", recall_threshold=threshold)


# -- in training and evaluation ----------------------------------------------------------------------------------------


def test_training_logs_the_recall_that_the_evaluation_finds(corpus, tmp_path, capsys):
    folder = run(tmp_path, corpus, "--num_train_epochs", "2", "--refresh", "2")
    first, last = read_lines(folder / "log.jsonl")
    assert not any(name.startswith("recall") for name in first)  # no refresh, no recall
    assert "recall@5 " in capsys.readouterr().out
    options = {"split": "validation", "cache_dir": str(tmp_path / "cache"), "meteor": False, "clap_model": None}
    args = EvaluationArguments(str(folder), str(corpus), str(tmp_path / "eval"), masked=False, **options)
    encoders = evaluate_checkpoint(args, Accelerator()).retrieval.encoders
    assert list(encoders) == ["nearest_neighbor"] and encoders["nearest_neighbor"].rows == 13
    found = {f"recall@{k}": score.value / 100 for k, score in encoders["nearest_neighbor"].recall.items()}
    assert found == pytest.approx({name: value for name, value in last.items() if name.startswith("recall")})
    assert set(SPLITS["validation"]) <= set(CAPTIONS) and encoders["nearest_neighbor"].ceiling.value == 100
    printed = capsys.readouterr().out
    assert "Retrieval · validation: 3 clips" in printed and "RGMC's encoder" in printed


def test_measuring_recall_leaves_the_candidates_of_training_alone(corpus, tmp_path, monkeypatch):
    search_rows, wanted = CaptionDatastore.search_rows, []

    def find_nothing(self, queries, k=1, *args, **options):
        wanted.append(k)
        rows, similarities = search_rows(self, queries, k, *args, **options)
        return (np.full_like(rows, -1), similarities) if k == 10 else (rows, similarities)

    folder = run(tmp_path, corpus, "--num_train_epochs", "2", name="plain")
    monkeypatch.setattr(CaptionDatastore, "search_rows", find_nothing)
    other = run(tmp_path, corpus, "--num_train_epochs", "2", name="other")
    assert wanted == [1, 1, 10] * 3
    assert (folder / "neighbors.jsonl").read_bytes() == (other / "neighbors.jsonl").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert read_lines(other / "log.jsonl")[0]["recall@10"] == 0 < read_lines(folder / "log.jsonl")[0]["recall@10"]
