"""Whether metrics see a false fact: the rewritten captions, and falls computed by hand."""

import json

import numpy as np
import pytest
import yaml
from helpers import CAPTIONS, write_corpus

from clips.options import parse
from evaluation.attributes import Lexicon, find_facts, read_attributes
from evaluation.sanity import (
    SanityArguments,
    SanityRow,
    falsify,
    format_rows,
    main,
    reorder,
    reword,
    rewrite,
    score_rewrites,
)
from reporting.results import Score

WORDS = {
    "categories": {
        "instrument": {
            "strings": ["strings"],
            "violin": {"parent": "strings", "words": ["violin", "violins", "fiddle"]},
            "cello": {"parent": "strings", "words": ["cello"]},
            "flute": ["flute", "pipe"],
            "piano": ["piano", "pianos", "pi-ano"],
        },
        "tempo": {"slow": ["slow", "unhurried"], "fast": ["fast", "quick"]},
    }
}


@pytest.fixture
def lexicon(tmp_path) -> Lexicon:
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(WORDS, sort_keys=False), encoding="utf-8")
    return read_attributes(tmp_path / "words.yaml")


def draws(count: int = 20):
    return [np.random.default_rng(seed) for seed in range(count)]


# -- rewritten captions ----------------------------------------------------------------------------------------------


def test_phrases_change_places_and_keep_their_words(lexicon):
    found = {reorder("A slow tune, with violin and piano.", lexicon, rng) for rng in draws()}
    assert found == {
        "a slow tune and piano with violin",
        "with violin a slow tune and piano",
        "with violin and piano a slow tune",
        "and piano a slow tune with violin",
        "and piano with violin a slow tune",
    }
    assert reorder("slow violin", lexicon, draws()[0]) is None


def test_each_attribute_gets_another_name(lexicon):
    found = {reword("slow violin tune", lexicon, rng) for rng in draws()}
    assert found == {"unhurried fiddle tune"}  # the plural is not another name
    assert reword("a piano", lexicon, draws()[0]) is None


def test_one_attribute_is_false_and_of_no_family_of_a_true_one(lexicon):
    known, true = [*lexicon.concepts], lexicon.claims("violin slow")
    found = {falsify("slow violin tune", true, known, lexicon, rng) for rng in draws(60)}
    assert found == {f"slow {name} tune" for name in ("cello", "flute", "piano")} | {"fast violin tune"}
    # A flute is true, and strings may be a cello.
    true = lexicon.claims("slow strings and flute")
    found = {falsify("slow strings", true, known, lexicon, rng) for rng in draws(60)}
    assert found == {"slow piano", "fast strings"}
    assert falsify("slow strings", true, [("instrument", "cello")], lexicon, draws()[0]) is None
    assert falsify("a song", true, known, lexicon, draws()[0]) is None


def test_only_captions_that_can_be_rewritten_in_all_ways_are_kept(lexicon):
    captions = ["slow violin, a tune", "a piano, a tune", "slow violin", "quick pipe, a song"]
    attributes = find_facts(lexicon, [[caption] for caption in captions])
    found, rows = rewrite(captions, attributes, seed=3)
    assert rows == [0, 3] and found["gold"] == ["slow violin a tune", "quick pipe a song"]
    assert found["reordered"] == ["a tune slow violin", "a song quick pipe"]
    assert found["reworded"] == ["unhurried fiddle a tune", "fast flute a song"]
    again, _ = rewrite([*captions, "slow pipe, a song"], attributes.select([0, 1, 2, 3, 0]), seed=3)
    assert {key: texts[:2] for key, texts in again.items()} == found  # a caption's rewriting is its own


# -- scores ----------------------------------------------------------------------------------------------------------

CASE = {
    "gold": ["slow violin and piano", "quick pipe and piano"],
    "reordered": ["and piano slow violin", "and piano quick pipe"],
    "reworded": ["unhurried fiddle and piano", "fast flute and piano"],
    "falsified": ["slow cello and piano", "quick violin and piano"],
}


def test_falls_by_hand(lexicon):
    rows, unavailable = score_rewrites(CASE, lexicon, samples=0)
    assert not unavailable and all(row.verdict == "-" for row in rows.values())
    # BLEU@1: two of four words are left, and three of four.
    bleu = rows["bleu_1"]
    assert bleu.gold.value == pytest.approx(100)
    assert [score.value for score in (bleu.reordered, bleu.reworded, bleu.falsified)] == pytest.approx([0, 50, 25])
    assert bleu.false_over_wording.value == pytest.approx(-25)
    # Attributes: three facts in each caption, one of which is false.
    found = rows["attribute_f1"]
    falls = [found.reordered.value, found.reworded.value, found.falsified.value, found.false_over_wording.value]
    assert found.gold.value == 100 and falls == pytest.approx([0, 0, 100 / 3, 100 / 3])
    assert "attribute_recall" not in rows and "meteor_1.5" not in rows


def test_the_difference_is_paired(lexicon):
    rows, _ = score_rewrites(CASE, lexicon, samples=50, seed=1)
    for name, wanted in (("bleu_1", "no, less"), ("attribute_f1", "yes")):
        row = rows[name]
        # Both clips fall alike, so that every resample shows the same difference.
        assert row.false_over_wording.low == pytest.approx(row.false_over_wording.value, abs=1e-6)
        assert row.verdict == wanted
    alike, _ = score_rewrites({**CASE, "falsified": CASE["reworded"]}, lexicon, samples=50)
    assert {row.verdict for row in alike.values()} == {"no difference"}


def test_a_row_shows_falls_and_verdict():
    fall = Score(2.0, 1.0, 3.0)
    header, line = format_rows({"rouge_l": SanityRow(Score(100.0), fall, fall, fall, Score(-1.0, -2.0, 0.5))})
    assert line.startswith("ROUGE-L  100.00") and "2.00 [1.00, 3.00]" in line
    assert "-1.00 [-2.00, +0.50]" in line and line.endswith("no difference") and len(header) == len(line)


def test_the_script_writes_what_it_prints(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus", {"test": [*CAPTIONS, "solo flute"]})
    options = ["--dataset", str(corpus), "--output_dir", str(tmp_path / "out"), "--bootstrap", "20"]
    (args,) = parse(SanityArguments, options)
    results = main(args)
    assert results["n"] + results["left_out"] == 9 and results["n"] > 3
    assert json.loads((tmp_path / "out" / "sanity.json").read_text(encoding="utf-8")) == results
    lines = [json.loads(line) for line in (tmp_path / "out" / "sanity.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == results["n"] and list(lines[0]) == ["id", "gold", "reordered", "reworded", "falsified"]
    printed = capsys.readouterr().out
    assert f"{results['n']} of 9 clips" in printed and lines[0]["falsified"] in printed
    assert results["metrics"]["attribute_f1"]["verdict"] == "yes"
    with pytest.raises(SystemExit):
        parse(SanityArguments, [*options, "--bootstrap", "-1"])
    args.attributes = str(tmp_path / "words.yaml")
    (tmp_path / "words.yaml").write_text("categories: {mood: {none: [zzz]}}", encoding="utf-8")
    with pytest.raises(ValueError, match="none of the 9 captions of split 'test' can be rewritten in all three ways"):
        main(args)
