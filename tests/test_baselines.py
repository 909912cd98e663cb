"""What the rows beside the models promise: each is what its name says, and the model's own captions stay the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from datasets import Array2D, Dataset, Features
from helpers import run
from test_report import make_item_scores, make_lines, make_results

from clips.features import ClipFeatures
from clips.recall import RECALL_AT
from eval import EvaluationArguments, evaluate_checkpoint
from evaluation.log_mel_statistics import embed_statistics, summarize, summarize_rows
from evaluation.neighbors import NEIGHBORS, Neighbors
from evaluation.oracle import best_captions
from evaluation.scoring import load_metric
from evaluation.systems import make_systems
from processing_rgmc import RGMCProcessor
from reporting.plots import plot_similarity
from retrieval_rgmc import CaptionDatastore


def make_clips(log_mels: np.ndarray, captions: list[str] | None = None) -> ClipFeatures:
    shape = log_mels.shape[-2:]
    features = Features({"log_mel": Array2D(shape, "float32")})
    rows = Dataset.from_dict({"log_mel": log_mels.reshape(-1, *shape)}, features=features)
    ids = [f"clip-{row}" for row in range(len(rows))]
    return ClipFeatures(ids, [[caption] for caption in captions or ["a song"] * len(rows)], rows)


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("trained"), corpus)


@pytest.fixture
def evaluate(corpus, checkpoint, tmp_path):
    def evaluate(name="eval", **options):
        options = {"meteor": False, "clap_model": None, "bootstrap": 0, "num_examples": 1, "masked": False, **options}
        args = EvaluationArguments(
            str(checkpoint), str(corpus), str(tmp_path / name), cache_dir=str(checkpoint.parent / "cache"), **options
        )
        results = evaluate_checkpoint(args, Accelerator())
        lines = (tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return results, [json.loads(line) for line in lines]

    return evaluate


# -- log-mel statistics ----------------------------------------------------------------------------------------------


def test_the_statistics_of_a_clip_are_those_that_can_be_computed_by_hand():
    log_mel = np.zeros((1, 1, 5, 2), np.float32)
    log_mel[0, 0, :, 0] = [0, 1, 3, 2, 4]  # rises by 1, 2, 0 and 2
    log_mel[0, 0, :, 1] = -7
    found = summarize(log_mel)
    mean, deviation, rise, percentile = found[0, :8].reshape(4, 2).tolist()
    assert mean == [2, -7] and rise == [1.25, 0]
    assert deviation == pytest.approx([np.sqrt(2), 0])
    assert percentile == pytest.approx([3 + 0.6 * (4 - 3), -7])  # 0.9 of the way through 0 1 2 3 4
    assert found.shape == (1, 8) and found.dtype == np.float32  # 5 frames are shorter than the shortest lag


def test_onsets_at_a_regular_distance_correlate_at_that_distance():
    log_mel = np.full((1, 1, 301, 4), -60.0, np.float32)
    log_mel[0, 0, ::25] = 0
    correlation = summarize(log_mel)[0, 4 * 4 :]
    assert len(correlation) == 190 and 10 + correlation.argmax() == 25
    # 12 rises, of which 11 have another one 25 frames later; the mean is taken off.
    onsets = np.zeros(300)
    onsets[24::25] = 60
    onsets -= onsets.mean()
    assert correlation[15] == pytest.approx(onsets[25:] @ onsets[:-25] / (onsets @ onsets), abs=1e-5)
    assert correlation[-1] == pytest.approx(onsets[199:] @ onsets[:-199] / (onsets @ onsets), abs=1e-5)  # no wrapping


def test_statistics_are_standardized_by_the_songs_and_what_never_varies_does_not_count():
    songs = np.array([[1, 10, 5], [3, 10, 5], [1, 30, 5], [3, 30, 5]], np.float32)
    embeds, queries = embed_statistics(songs, np.array([[2, 25, 99], [2, 20, 0]], np.float32))
    half = np.sqrt(0.5)
    assert embeds == pytest.approx(half * np.array([[-1, -1, 0], [1, -1, 0], [-1, 1, 0], [1, 1, 0]]))
    assert queries[0] == pytest.approx([0, 1, 0])
    assert queries[1] == pytest.approx(np.full(3, np.sqrt(1 / 3)))  # the mean itself has no direction
    embeds, _ = embed_statistics(songs[:1], songs[:1])
    assert np.linalg.norm(embeds) == pytest.approx(1)


def test_the_statistics_of_all_clips_come_in_their_order():
    log_mels = np.random.default_rng(0).normal(-40, 10, (19, 1, 41, 3)).astype(np.float32)
    found = summarize_rows(make_clips(log_mels), Accelerator(), "")
    assert found == pytest.approx(np.concatenate([summarize(log_mel[None]) for log_mel in log_mels]))


def test_the_statistics_neighbor_repeats_the_caption_of_the_nearest_training_song(evaluate, corpus, checkpoint):
    results, lines = evaluate(statistics_neighbor=True)
    store = CaptionDatastore.from_pretrained(checkpoint)
    processor = RGMCProcessor.from_pretrained(checkpoint)
    songs, clips = (
        summarize(processor(audio=[str(corpus / split / f"{row}.wav") for row in range(n)])["input_features"].numpy())
        for split, n in (("train", 13), ("test", 4))
    )
    scaled = [(part - songs.mean(axis=0)) / (songs.std(axis=0) + 1e-4) for part in (songs, clips)]
    songs, clips = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in scaled)
    nearest = [store.rows[row]["caption"] for row in (clips @ songs.T).argmax(axis=1).tolist()]
    assert [line["captions"]["nearest_neighbor_statistics"] for line in lines] == nearest
    assert results.systems["nearest_neighbor_statistics"].scores["copy"].value == 100
    assert "nearest_neighbor_statistics" in results.tables["3"] and "nearest_neighbor_statistics" not in results.missing


# -- consensus and the most frequent caption --------------------------------------------------------------------------


def search(captions: list[str], angles: list[float], own: list[str] | None = None) -> Neighbors:
    """Neighbours of clips at the angle 0, among songs at these angles (in degrees)."""
    radians = np.radians(np.array(angles))
    rows = {"id": [f"clip-{row}" for row in range(len(captions))], "caption": captions}
    rows = Dataset.from_dict({**rows, "input_ids": [[0]] * len(captions)})
    embeds = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    clips = make_clips(np.zeros((1, 1, 2, 2)), own or ["a caption of its own"])
    return Neighbors.search("an encoder", CaptionDatastore(rows, embeds, "f00d"), np.array([[1, 0]]), clips)


def test_the_consensus_is_the_neighbor_most_like_the_near_ones():
    assert NEIGHBORS == max(RECALL_AT) == 10
    captions = ["loud rock", "a calm piano piece", "a calm piano song", "a sad piano song"]
    assert search(captions, [1, 2, 3, 4]).nearest == ["loud rock"]
    assert search(captions, [1, 2, 3, 4]).consensus() == ["a calm piano song"]
    # Two songs near the clip outweigh four that are almost at a right angle to it.
    captions = ["fast metal", "fast metal riff", *["a calm piano song"] * 4]
    assert search(captions, [1, 2, 89, 89.1, 89.2, 89.3]).consensus() == ["fast metal riff"]
    assert search(captions, [1, 2, 3, 4, 5, 6]).consensus() == ["a calm piano song"]
    # A song on the other side does not speak against the captions that are like its own.
    captions = ["one two three four five six seven", "one two", "three four", "five six seven"]
    assert search(captions, [1, 2, 3, 170]).consensus() == captions[:1]
    # Only the ten nearest are asked.
    crowd = ["fast metal", *["a slow waltz"] * 9, *["a calm piano song"] * 30]
    assert search(crowd, list(range(40))).consensus() == ["a slow waltz"]


def test_a_clip_is_not_among_its_own_neighbors():
    captions = ["loud rock", "a calm piano piece", "a calm piano song"]
    found = search(captions, [0, 5, 9], own=["loud rock"])
    assert found.own_rows == [0] and found.rows[0, :3].tolist() == [1, 2, -1]
    assert found.nearest == ["a calm piano piece"]
    alone = search(["loud rock"], [0], own=["loud rock"])
    assert alone.nearest == alone.consensus() == [None]
    assert search(captions, [0, 5, 9]).own_rows == [-1]  # an equal id alone is not the same clip


def test_the_most_frequent_caption_is_the_first_of_several(evaluate, monkeypatch):
    _, lines = evaluate()
    # The training split has its first caption twice.
    assert {line["captions"]["most_frequent"] for line in lines} == {"a sad ballad of piano and strings"}
    rows = {"caption": ["c", "b", "a", "b", "a"]}
    line = {"references": ["x"], "candidate": "b", "prediction": "y"}
    captioner = SimpleNamespace(
        name="",
        caption=lambda *args, **options: [dict(line)],
        accelerator=Accelerator(),
        model=SimpleNamespace(config=SimpleNamespace(conditioning="audio"), datastore=SimpleNamespace(rows=rows)),
    )
    neighbors = {"nearest_neighbor": SimpleNamespace(nearest=["b"], consensus=lambda: ["b"], source="")}
    systems, _ = make_systems(captioner, [3], {}, None, neighbors, {}, masked=False, seed=0)
    assert systems["most_frequent"].captions == ["b"]


# -- the oracle --------------------------------------------------------------------------------------------------------


def test_the_oracle_takes_the_beam_that_the_references_like_best():
    lines = [
        {"beams": ["a sad song", "a happy piano song", "a happy song"], "references": ["a happy piano song", "joy"]},
        {"beams": ["slow drums", "slow drums", "fast drums"], "references": ["very slow drums"]},
        {"beams": ["nothing", "at all", ""], "references": ["a loud trumpet"]},
    ]
    best = ["a happy piano song", "slow drums", "nothing"]  # the most probable one where none is better
    assert best_captions(lines, load_metric("caption_metrics")) == best
    silent = [{"beams": ["", ""], "references": ["a loud trumpet"]}]
    assert best_captions(silent, load_metric("caption_metrics")) == [""]


def test_the_oracle_changes_no_caption_of_the_model_and_is_never_worse(evaluate):
    plain, wanted = evaluate("plain")
    results, lines = evaluate("oracle", oracle=True)
    assert [line["prediction"] for line in lines] == [line["prediction"] for line in wanted]
    assert not any("beams" in line for line in wanted) and "rgmc_oracle" not in plain.systems
    for line in lines:
        assert len(line["beams"]) == 5 and line["beams"][0] == line["prediction"] and len(set(line["beams"])) > 1
        assert line["captions"]["rgmc_oracle"] in line["beams"]
    assert results.systems["rgmc"].scores == plain.systems["rgmc"].scores
    assert "upper bound" in results.systems["rgmc_oracle"].title
    assert results.systems["rgmc_oracle"].scores["cider_d"].value >= results.systems["rgmc"].scores["cider_d"].value
    assert results.tables["3"].index("rgmc_oracle") == results.tables["3"].index("rgmc") + 1


@pytest.mark.parametrize("option", ["oracle", "statistics_neighbor"])
def test_a_row_that_no_table_has_is_refused(option):
    with pytest.raises(ValueError, match=rf"--{option} makes no row of --table \[4\]: expected one of \[3, 5\] there"):
        EvaluationArguments("model", "data", "out", table=[4], **{option: True})


# -- the plot ----------------------------------------------------------------------------------------------------------


def test_the_plot_shows_the_model_without_its_candidate_where_that_row_exists():
    lines, scores = make_lines(), make_item_scores()
    results = make_results()
    labels = [text.get_text() for text in plot_similarity(results, lines, scores).legends[0].get_texts()]
    assert labels == ["RGMC", "Nearest Neighbor"]
    scores["rgmc_audio_only_masked"] = {"cider_d": [10.0] * 30 + [50.0] * 30}
    figure = plot_similarity(results, lines, scores)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*labels, "rgmc_audio_only_masked"]
    drawn = [line.get_ydata().tolist() for line in figure.axes[0].lines if len(line.get_ydata()) == 6]
    assert [10.0] * 3 + [50.0] * 3 in drawn
