"""What eval.py --explain promises: shares by kind of word, lenses with floors, watched words, ranks, and a report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import CAPTIONS, read_lines, run, write_corpus

from eval import EvaluationArguments, evaluate_checkpoint
from evaluation import prefix_words
from evaluation.attributes import read_attributes
from evaluation.captioning import Captioner
from evaluation.confidence import coverage_curve, quantiles, score_confidence
from evaluation.listening import mean_log_probs
from evaluation.prefix_words import contextual_states, read_prefixes, score_lenses
from evaluation.word_sources import (
    BIAS_FILE,
    FUNCTION_WORDS,
    concepts_of_words,
    find_watched,
    kinds_of_words,
    share_by_kind,
)
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from reporting.results import EvaluationResults

SONGS = [*CAPTIONS, "an exotic flute"]


def explained(caption: str, audio: float = 1.0, candidate: float = 0.5, any_audio: float = 0.25) -> dict:
    """An explanation in which each word has these shares."""
    shares = {"audio": audio, "candidate": candidate, "controls": {"audio": any_audio, "candidate": 0.5}}
    return {"words": [{"word": word, **shares} for word in [*caption.split(), None]]}


# -- the sources of words ---------------------------------------------------------------------------------------------


def test_words_have_the_kinds_of_their_phrases():
    lexicon = read_attributes()
    explanation = explained("a sad song with hip-hop beat and bass guitar")
    kinds = [kind for (kind,) in kinds_of_words(explanation, lexicon)]
    function, other = "function words", "other words"
    instrument = ["instrument", "instrument", "end of the caption"]
    assert kinds == [function, "mood", other, function, "genre", other, function, *instrument]
    assert concepts_of_words(explained("no drums"), lexicon) == [[], [], []]  # it does not claim them


def test_shares_are_means_over_the_words_of_a_kind():
    explanations = [explained("a sad piano", 1.0), explained("sad sad flute", 3.0, -0.5), explained("a flute", 1.0)]
    found = share_by_kind(explanations, read_attributes(), 200, 0)
    mood = found["mood"]
    assert mood.words == 3 and mood.audio.value == pytest.approx((1 + 3 + 3) / 3)
    assert mood.audio_beyond.value == pytest.approx(mood.audio.value - 0.25)
    assert mood.candidate_beyond.value == pytest.approx(mood.candidate.value - 0.5)
    assert mood.candidate.value == pytest.approx(-0.5 / 3) and mood.share is None  # it makes them less probable
    assert found["instrument"].share.value == pytest.approx(100 * 5 / (5 + 0.5))
    assert found["function words"].share.value == pytest.approx(100 * 2 / 3)
    assert found["all"].words == 8 + 3 and found["tempo"].words == 0 and found["tempo"].audio is None
    assert mood.audio.low <= mood.audio.value <= mood.audio.high and mood.audio.low < mood.audio.high
    without = [{"words": [{**word, "controls": {}} for word in each["words"]]} for each in explanations]
    assert share_by_kind(without, read_attributes(), 200, 0)["mood"].audio_beyond is None


def test_watched_words_are_listed_with_the_candidates_that_brought_them():
    lexicon = read_attributes(None, "paper", "--watched_words", BIAS_FILE)
    texts = [
        ("an exotic tune sung by a woman", "exotic flute", ["a female vocal"]),
        ("a male voice", "a choir", ["a choir"]),
        ("a choir", "an oriental choir", ["a choir"]),
    ]
    lines = [
        {"id": str(row), "prediction": said, "candidate": shown, "candidate_id": f"song-{row}", "references": gold}
        for row, (said, shown, gold) in enumerate(texts)
    ]
    found = find_watched(lines, [explained(said) for said, _, _ in texts], lexicon)
    listed = [(word.word, word.id, word.candidate_id, word.in_candidate, word.in_gold) for word in found.found]
    assert listed == [
        ("exotic", "0", "song-0", True, False),
        ("woman", "0", "song-0", False, True),
        ("male", "1", "song-1", False, False),
    ]
    assert found.counts["exoticising: exotic"] == {"captions": 1, "candidates": 1, "brought": 1, "gold": 0}
    assert found.counts["exoticising: oriental"] == {"captions": 0, "candidates": 1, "brought": 0, "gold": 0}
    assert "exoticising: tribal" not in found.counts


# -- the words of the prefix ------------------------------------------------------------------------------------------


def test_a_lens_at_or_below_a_floor_is_labelled_so():
    generator, words = np.random.default_rng(0), [f"w{number}" for number in range(40)]
    gold = [[" ".join(["common", *generator.choice(words, 4, replace=False)])] for _ in range(80)]
    lines = [{"references": captions} for captions in gold]
    read = {
        "vocabulary": [generator.choice(words, 4, replace=False).tolist() for _ in gold],  # reads at random
        "contextual": [["common"]] * len(gold),  # always right, as the most frequent word is
        "caption": [captions[0].split()[1:3] for captions in gold],
    }
    found = score_lenses(read, lines, [text for (text,) in gold], 500, 0)
    assert [found[lens].reads_nothing for lens in read] == [True, True, False]
    assert found["contextual"].hits.value == found["contextual"].frequent.value == 100
    assert found["caption"].hits.value == 100 and found["caption"].words == 160
    assert found["caption"].above_shuffled.value == pytest.approx(100 - found["caption"].shuffled.value)
    assert 0 < found["caption"].shuffled.value < 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    splits = {
        "train": SONGS,
        "validation": CAPTIONS[:6],
        "test": [*CAPTIONS[2:], "a male choir"],
    }
    return write_corpus(tmp_path_factory.mktemp("corpus"), splits)


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("run"), corpus, "--candidate_dropout", "0.5", "--num_sample_captions", "0")


@pytest.fixture
def captioner(checkpoint, log_mels, tmp_path) -> Captioner:
    model, processor = RGMCModel.from_pretrained(checkpoint).eval(), RGMCProcessor.from_pretrained(checkpoint)
    clips = log_mels(4)

    class Features:
        ids, captions = list("abcd"), [[caption] for caption in CAPTIONS[:4]]

        def __len__(self):
            return len(clips)

        def read(self, rows):
            return clips[rows]

    return Captioner(str(checkpoint), model, processor, Features(), Accelerator(cpu=True), 3, tmp_path)


def test_lenses_read_what_is_written_in_the_prefix(captioner, monkeypatch):
    model, tokenizer = captioner.model, captioner.processor.tokenizer
    (token,) = tokenizer(" flute")["input_ids"]
    with torch.no_grad():
        model.mapper.linear2.weight.zero_()
        model.mapper.linear2.bias.copy_(model.get_input_embeddings().weight[token].repeat(3))
    states, words = contextual_states(captioner, 0)
    assert len(states) == len(words) and {"ballad", "exotic"} <= {*words} and FUNCTION_WORDS.isdisjoint(words)
    chosen = [words.index("ballad"), words.index("flute"), words.index("flute")]
    # The mean of the songs' prefixes is that of the states, and the prefixes of the clips are three of the states.
    songs = len(model.datastore)
    mean, left = states.mean(0).expand(1, 3, -1), iter(range(-(-songs // 3)))
    monkeypatch.setattr(
        prefix_words,
        "prefix_states",
        lambda _, part: (mean if next(left, None) is not None else states[chosen][None]).expand(len(part), -1, -1),
    )
    read = read_prefixes(captioner, 0)
    assert read["vocabulary"] == [["flute"]] * 4
    assert read["contextual"] == [["ballad", "flute"]] * 4
    assert len(read["caption"]) == 4


# -- confidence -------------------------------------------------------------------------------------------------------


def test_ranks_are_quantiles_among_the_validation_clips():
    assert quantiles(np.array([0.0, 1.0, 2.5, 9.0, np.nan]), np.array([1.0, 2.0, 3.0, 4.0, np.nan])).tolist() == [
        *(0, 1 / 8, 1 / 2, 1),
        0,  # nothing to compare
    ]


def test_the_surest_clips_come_first_and_equal_ones_count_as_their_mean():
    points = coverage_curve(np.array([0.1, 0.9, 0.5, 0.5]), np.array([1.0, 8.0, 2.0, 4.0]))
    assert [(point.clips, point.cider_d) for point in points[::3]] == [(1, 8.0), (2, 5.5), (3, 14 / 3), (4, 3.75)]
    sureness = {"log_prob": np.array([-1.0, -3.0]), "similarity": np.array([0.1, 0.9])}
    validation = {"log_prob": np.array([-4.0, -2.0]), "similarity": np.array([0.5, 0.95])}
    found = score_confidence(sureness, validation, [10.0, 20.0], "validation")
    assert found.quantiles == {"log_prob": [1.0, 0.5], "similarity": [0.0, 0.5], "both": [0.0, 0.5]}
    assert (found.nothing_similar, found.nothing_similar_cider_d) == (1, 10.0)
    assert [point.cider_d for point in found.curves["both"]][::9] == [20.0, 15.0]


# -- the evaluation ---------------------------------------------------------------------------------------------------


def test_the_report_explains_the_captions(checkpoint, corpus, tmp_path, capsys):
    args = EvaluationArguments(
        model=str(checkpoint),
        dataset=str(corpus),
        output_dir=str(tmp_path),
        explain=True,
        clap_model=None,
        meteor=False,
        listening=False,
        masked=False,
        bootstrap=50,
        num_examples=1,
        num_proc=1,
    )
    results = evaluate_checkpoint(args, Accelerator(cpu=True))
    again = EvaluationResults.from_dict(json.loads((tmp_path / "results.json").read_text()))
    assert again.explanation == results.explanation
    found = results.explanation
    assert found.out_of_distribution == ["nothing", "candidate"]
    assert found.confidence.validation_clips == 6 and len(found.confidence.quantiles["both"]) == results.n
    assert {*found.lenses} == {"vocabulary", "contextual", "caption"}
    lines, predictions = (read_lines(tmp_path / name) for name in ("explanations.jsonl", "predictions.jsonl"))
    assert [line["id"] for line in lines] == [line["id"] for line in predictions]
    for line, said in zip(lines, predictions):
        assert " ".join(word["word"] for word in line["words"] if word["word"]) == said["prediction"]
    model, processor = RGMCModel.from_pretrained(checkpoint).eval(), RGMCProcessor.from_pretrained(checkpoint)
    sound = model.embed_audio(processor(audio=str(corpus / "test" / "0.wav"))["input_features"])
    tokens = processor.encode_caption(predictions[0]["prediction"])
    shown = processor.encode_prompt([predictions[0]["candidate"]])
    total = sum(word["log_probs"]["both"] for word in lines[0]["words"])
    expected = mean_log_probs(model, sound, [shown], [tokens], processor.tokenizer.pad_token_id).item()
    assert total / len(tokens) == pytest.approx(expected, abs=1e-3)
    out, report, html = capsys.readouterr().out, *((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    for title in ("Where the words come from", "Words of the prefix", "Words to look at twice", "Confidence"):
        assert f"## {title}" in report and f"<h2>{title}</h2>" in html
    assert "out of distribution" in out and "out of distribution" in report
    assert "not the probability that it is true" in report and 'id="coverage"' in html and 'id="explained"' in html
    assert found.watched.counts["gender of performers: male"]["gold"] == 1
