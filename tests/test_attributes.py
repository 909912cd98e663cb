"""Attribute scores: what a caption claims, what is true of a clip, and the scores by hand."""

import logging

import numpy as np
import pandas
import pytest
import yaml
from helpers import CAPTIONS, MUSICCAPS, write_corpus

from clips.rows import load_captions
from corpora.demo import BACKINGS, LEADS, MOODS, STYLES, TEMPO_NAMES
from evaluation.attributes import Attributes, Lexicon, find_facts, ratios, read_attributes
from evaluation.leak_free import Leaks, score_without_leaks
from evaluation.scoring import score_systems
from evaluation.systems import System
from reporting.results import Score

WORDS = {
    "negations": ["no", "without"],
    "ignored": ["slow motion", "bass range"],
    "categories": {
        "instrument": {
            "strings": ["strings", "string section"],
            "violin": {"parent": "strings", "words": ["violin", "violins", "fiddle"]},
            "cello": {"parent": "strings", "words": ["cello"]},
            "guitar": ["guitar", "six-string"],
            "bass guitar": ["bass guitar", "e-bass"],
            "bass": ["bass"],
            "drums": ["drums", "bass drum"],
        },
        "genre": {"r&b": ["r&b"], "rock": ["rock"]},
        "tempo": {"slow": ["slow"], "fast": ["fast"]},
    },
}


@pytest.fixture
def write(tmp_path):
    def write(content) -> str:
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        (tmp_path / "words.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "words.yaml")

    return write


@pytest.fixture
def lexicon(write) -> Lexicon:
    return read_attributes(write(WORDS))


def names(concepts) -> set[str]:
    return {name for _, name in concepts}


def facts_of(lexicon: Lexicon, *captions: str) -> Attributes:
    return find_facts(lexicon, [[caption] for caption in captions])


# -- what a caption claims -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "claimed"),
    [
        ("A guitar, a bass guitar and a BASS drum!", {"guitar", "bass guitar", "drums"}),
        ("the bass guitar solo", {"bass guitar"}),
        ("slow bass in the bass range", {"slow", "bass"}),
        ("in slow motion", set()),
        ("six string, sixstring", {"guitar"}),
        ("violinist, guitarists, basso", set()),
        ("violin over a string section", {"violin", "strings"}),
        ("no drums", set()),
        ("rock without a bass or drums but with a guitar", {"rock", "guitar"}),
        ("rock or bass", {"rock", "bass"}),
        ("no drums, then drums", {"drums"}),
        ("", set()),
    ],
)
def test_the_longest_phrase_counts_and_what_is_absent_does_not(lexicon, caption, claimed):
    assert names(lexicon.claims(caption)) == claimed


def test_words_are_compared_by_the_captions_rule(write):
    file = write(WORDS)
    paper, music = read_attributes(file, "paper"), read_attributes(file, "music")
    for lexicon, text in ((paper, "rb"), (music, "r&b"), (paper, "ebass"), (music, "e bass")):
        assert len(lexicon.claims(text)) == 1, text
    assert not music.claims("rb")
    assert names(paper.claims("R&B, E-bass")) == names(music.claims("R&B, E-bass")) == {"r&b", "bass guitar"}


def test_a_member_of_a_family_makes_the_family_true_but_not_the_other_way_round(lexicon):
    attributes = facts_of(lexicon, "violin", "strings")
    row = attributes.count(["strings", "violin"])[:, 0].tolist()
    assert row == [[1, 1, 0, 1], [0, 1, 1, 1]]  # claims that hold, claims, facts found, facts
    assert facts_of(lexicon, "violin").count(["cello"])[0, 0].tolist() == [0, 1, 0, 1]


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [b", "cannot be read as yaml"),
        ({"instrument": {"violin": ["violin"]}}, "expected a mapping with the key 'categories'"),
        ({"categories": {"mood": {"sad": ["sad"]}}, "other": []}, "unknown key 'other'"),
        ({"categories": {"mood": ["sad"]}}, r"words.yaml, mood: expected a mapping of concepts"),
        ({"categories": {"mood": {"sad": []}}}, r"words.yaml, mood: sad: expected a list of words, found None"),
        ({"categories": {"mood": {"sad": "sad"}}}, r"mood: sad: expected a list of words, found 'sad'"),
        ({"categories": {"mood": {"sad": [False]}}}, r"mood: sad: expected words, found False; put it in quotes"),
        ({"categories": {"mood": {"sad": ["?!"]}}}, r"mood: sad: expected words, found '\?!'"),
        ({"categories": {"mood": {"sad": ["low"], "dark": ["Low!"]}}}, r"mood: dark: 'low' is a word of sad too"),
        ({"categories": {"mood": {"sad": {"parent": "x", "words": ["sad"]}}}}, r"sad: the parent 'x' is not a concept"),
        (
            {"categories": {"mood": {"sad": {"words": ["sad"], "of": 1}}}},
            "expected parent and words, found words, of",
        ),
        ({"categories": {"mood": {"sad": ["sad"]}}, "ignored": ["sad"]}, r"ignored: 'sad' is a word of mood: sad"),
        ({"categories": {"mood": {"sad": ["sad"]}}, "negations": [False]}, "negations: expected words, found False"),
        (
            {"categories": {"m": {"a": {"parent": "b", "words": ["a"]}, "b": {"parent": "a", "words": ["b"]}}}},
            "m: a: it is its own ancestor",
        ),
    ],
)
def test_a_mistake_in_the_file_names_file_category_and_concept(write, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_attributes(write(content))
    assert "words.yaml" in str(error.value)


@pytest.mark.parametrize("rule", ["paper", "music"])
def test_our_words_know_what_the_demo_plays(rule):
    lexicon = read_attributes(normalization=rule)
    assert lexicon.categories == ["instrument", "genre", "mood", "tempo"]
    styles = [name for style in STYLES.values() for name in style.names]
    wanted = {
        "instrument": [*LEADS, *BACKINGS],
        "genre": styles,
        "mood": [word for words in MOODS.values() for word in words],
        "tempo": [word for words in TEMPO_NAMES.values() for word in words],
    }
    for category, texts in wanted.items():
        for text in texts:
            assert {own for own, _ in lexicon.claims(text)} == {category}, text
    assert names(lexicon.claims("mid tempo, then slow-motion")) == {"medium"}
    assert names(lexicon.claims("a bass guitar, a bass drum and an electric guitar")) == {
        "bass guitar",
        "kick drum",
        "electric guitar",
    }
    assert lexicon.with_parents({("instrument", "shakuhachi")}) == {
        ("instrument", name) for name in ("shakuhachi", "flute", "woodwind")
    }


@pytest.mark.skipif(not MUSICCAPS.is_file(), reason="MusicCaps is not part of the repository")
def test_our_words_find_something_in_nearly_every_caption_of_musiccaps():
    captions = pandas.read_csv(MUSICCAPS)["caption"][::10]
    lexicon = read_attributes(normalization="music")
    assert np.mean([bool(lexicon.claims(caption)) for caption in captions]) > 0.98


# -- what is true ----------------------------------------------------------------------------------------------------


def test_every_caption_of_a_clip_tells_what_is_true(lexicon):
    attributes = find_facts(lexicon, [["slow violin", "rock"], ["nothing"]])
    assert names(attributes.facts[0]) == {"slow", "violin", "rock"} and attributes.facts[1] == frozenset()
    assert attributes.sources == dict.fromkeys(("instrument", "genre", "tempo"), "captions")


def test_columns_replace_the_captions_in_the_categories_that_they_speak_of(lexicon, caplog):
    columns = {
        "lead": [["fiddle|CELLO"], ["guitar", "bass"], []],
        "has_bass_drum": [["1"], ["0"], ["True"]],
        "style": [["rock"], ["waltz|17|4/4"], ["waltz"]],
        "bpm": [["120"], ["60.5"], []],
    }
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        attributes = find_facts(lexicon, [["slow guitar"], ["slow rock"], ["fast bass"]], columns)
    logging.getLogger("transformers").propagate = False
    assert [names(facts) for facts in attributes.facts] == [
        {"slow", "violin", "cello", "drums", "rock"},
        {"slow", "guitar", "bass"},
        {"fast", "drums"},
    ]
    assert attributes.sources == {
        "instrument": "columns lead, has_bass_drum",
        "genre": "column style",
        "tempo": "captions",
    }
    (said,) = [record.getMessage() for record in caplog.records]
    assert "3 values have no concept in words.yaml" in said and "waltz (style) 2, 4/4 (style) 1" in said


def test_a_value_may_be_the_name_of_a_concept(write):
    lexicon = read_attributes(write({"categories": {"tempo": {"Mid": ["medium tempo"]}}}))
    assert find_facts(lexicon, [["x"]], {"tempo": [["mid"]]}).facts == [frozenset()]
    lexicon = read_attributes(write({"categories": {"tempo": {"mid": ["medium tempo"]}}}))
    assert find_facts(lexicon, [["x"]], {"tempo": [["MID"]]}).facts == [{("tempo", "mid")}]


def test_columns_are_loaded_and_a_missing_one_is_an_error(tmp_path):
    write_corpus(tmp_path, {"test": CAPTIONS[:2]})
    metadata = tmp_path / "test" / "metadata.csv"
    header, *lines = metadata.read_text(encoding="utf-8").splitlines()
    cells = ["flute|harp,1", ","]
    text = "\n".join([f"{header},lead,has_drums", *(f"{line},{cell}" for line, cell in zip(lines, cells))])
    metadata.write_text(text, encoding="utf-8")
    rows = load_captions(str(tmp_path), "test", more_columns=["lead", "has_drums"])
    assert rows["lead"][:] == [["flute|harp"], []] and rows["has_drums"][:] == [["1"], []]
    with pytest.raises(ValueError, match=r"has no column genre: found file_name, id, caption, lead, has_drums"):
        load_captions(str(tmp_path), "test", more_columns=["genre"])
    with pytest.raises(ValueError, match="the column id already has a meaning"):
        load_captions(str(tmp_path), "test", more_columns=["id"])


# -- scores ----------------------------------------------------------------------------------------------------------

GOLD = ["slow violin and drums", "fast rock for guitar", "nothing at all"]
SAID = ["slow cello, strings and drums", "fast fast guitar and bass", "rock"]
# Claims that hold: strings, drums, slow, fast, guitar: 5 of 8. Facts found: drums, slow, fast, guitar: 4 of 6.


def test_scores_are_ratios_of_sums(lexicon):
    scores, _ = facts_of(lexicon, *GOLD).score(SAID)
    precision, recall = 100 * 5 / 8, 100 * 4 / 6
    assert scores == pytest.approx(
        {
            "attribute_precision": precision,
            "attribute_recall": recall,
            "attribute_f1": 2 * precision * recall / (precision + recall),
        }
    )
    assert list(facts_of(lexicon, *GOLD).score(GOLD)[0].values()) == [100, 100, 100]
    assert list(facts_of(lexicon, *GOLD).score([""] * 3)[0].values()) == [0, 0, 0]


def test_a_resample_is_a_ratio_of_sums_too(lexicon):
    draws = np.array([[2, 1, 0], [0, 0, 3]])
    _, resamples = facts_of(lexicon, *GOLD).score(SAID, draws)
    # Twice the first clip (3 of 4, 2 of 3) and once the second (2 of 3, 2 of 3); thrice the third (0 of 1, no fact).
    assert resamples["attribute_precision"] == pytest.approx([100 * 8 / 11, 0])
    assert resamples["attribute_recall"] == pytest.approx([100 * 6 / 9, 0])


def test_categories_and_concepts_are_scored_apart(lexicon):
    found = facts_of(lexicon, *GOLD).describe({"gold": [GOLD], "rgmc": [SAID]})
    scores = found.systems["rgmc"]
    assert scores["instrument"].precision.value == pytest.approx(100 * 3 / 5) and scores["instrument"].claims == 5
    assert scores["instrument"].recall.value == pytest.approx(100 * 2 / 3) and scores["instrument"].facts == 3
    assert (scores["genre"].precision.value, scores["genre"].recall.value, scores["genre"].f1.value) == (0, 0, 0)
    assert (scores["tempo"].precision.value, scores["tempo"].macro_f1.value) == (100, 100)
    # Strings, drums and guitar are right; violin is never claimed; cello and bass are never true.
    assert scores["instrument"].concepts == 6
    assert scores["instrument"].macro_precision.value == scores["instrument"].macro_recall.value == pytest.approx(50)
    assert scores["all"].concepts == 9 and scores["all"].macro_f1.value == pytest.approx(100 * 5 / 9)
    assert found.concepts["rgmc"]["instrument"]["strings"] == {"held": 1, "claims": 1, "facts": 1}
    assert found.concepts["rgmc"]["genre"] == {"rock": {"held": 0, "claims": 1, "facts": 1}}
    assert all(score.f1.value == score.macro_f1.value == 100 for score in found.systems["gold"].values())
    scores = facts_of(lexicon, "violin", "violin").describe({"rgmc": [["violin", "bass"]]}).systems["rgmc"]["all"]
    # Violin and strings: 1 of 1 claim, 1 of 2 facts. Bass: 0 of 1 claim, no fact.
    assert (scores.macro_precision.value, scores.macro_recall.value) == pytest.approx((100 * 2 / 3, 100 / 3))
    assert scores.macro_f1.value == pytest.approx(100 * 2 * (2 / 3) / 3)


def test_attributes_of_several_checkpoints_are_means(lexicon):
    attributes = facts_of(lexicon, "violin", "rock")
    found = attributes.describe({"rgmc": [["violin", "rock"], ["drums", "rock and bass"]]})
    scores = found.systems["rgmc"]
    # 2 of 2 claims hold, then 1 of 3; both facts are found, then one.
    assert scores["all"].precision == Score(
        pytest.approx(100 * 2 / 3),
        deviation=pytest.approx(100 * 2 / 3 / 2**0.5),
        by_checkpoint=[100, pytest.approx(100 / 3)],
    )
    assert scores["all"].recall.by_checkpoint == [100, 50]
    # F1 of each, not of the mean precision and recall.
    assert scores["all"].f1.value == pytest.approx((100 + 40) / 2)
    assert (scores["all"].claims, scores["all"].facts) == (2.5, 2)
    assert found.concepts["rgmc"]["instrument"]["violin"] == {"held": 0.5, "claims": 0.5, "facts": 1}
    assert found.concepts["rgmc"]["instrument"]["drums"] == {"held": 0, "claims": 0.5, "facts": 0}


def test_the_resamples_of_several_checkpoints_are_ratios_of_each(lexicon):
    gold = ["violin", "drums"]
    said = {"gold": (None, gold), "rgmc": (None, ["violin", "violin"]), "rgmc=b": ("rgmc", ["drums", "bass drums"])}
    systems = {key: System("", "", captions, [None] * 2, row) for key, (row, captions) in said.items()}
    described, _, _, resamples = score_systems(
        systems, [[caption] for caption in gold], [], False, 200, 0, attributes=facts_of(lexicon, *gold)
    )
    # The first clip twice: 1 and 0. Both: 1/2 and 1/3. The second clip twice: 0 and 1/2.
    drawn = resamples["rgmc"]["attribute_precision"]
    assert {*drawn.round(6)} == {50, round((50 + 100 / 3) / 2, 6), 25}
    assert described["rgmc"].scores["attribute_precision"].by_checkpoint == [50, pytest.approx(100 / 3)]


def test_a_ratio_of_nothing_is_zero():
    assert [values.tolist() for values in ratios(np.zeros((2, 4)))] == [[0, 0]] * 3


def test_systems_have_intervals_and_paired_differences(lexicon):
    systems = {
        "gold": System("", "", GOLD, [None] * 3),
        "rgmc": System("", "", SAID, [None] * 3),
        "same": System("", "", SAID, [None] * 3),
    }
    attributes = facts_of(lexicon, *GOLD)
    references = [[caption] for caption in GOLD]
    described, _, unavailable, _ = score_systems(systems, references, [], False, 200, 0, attributes=attributes)
    score = described["rgmc"].scores["attribute_precision"]
    assert score.value == pytest.approx(62.5) and score.low < 62.5 < score.high and not unavailable
    same, gold = (described[key].difference["attribute_precision"] for key in ("same", "gold"))
    assert (same.value, same.low, same.high) == (0, 0, 0) and gold.value == pytest.approx(-37.5)
    draws = np.random.default_rng(0).multinomial(3, [1 / 3] * 3, 200)
    resampled = attributes.score(SAID, draws)[1]["attribute_precision"]
    assert (score.low, score.high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])))

    def score_rest(systems, references, **options):
        return score_systems(systems, references, [], False, 0, 0, **options)

    lines = [{"id": str(row), "references": own} for row, own in enumerate(references)]
    rest = score_without_leaks(Leaks({"0": ["x"]}, "train", {}), systems, lines, None, score_rest, attributes)
    assert rest.systems["rgmc"].scores["attribute_precision"].value == pytest.approx(50)  # 2 of 4


def test_a_split_without_attributes_has_a_sentence_in_place_of_scores(lexicon):
    captions = ["a song of words here", "another song of words"]
    systems = {key: System("", "", captions, [None] * 2) for key in ("gold", "rgmc")}
    attributes = facts_of(lexicon, *captions)
    described, _, unavailable, _ = score_systems(
        systems, [[caption] for caption in captions], [], False, 10, 0, attributes=attributes
    )
    assert set(unavailable.values()) == {"no clip has an attribute of words.yaml"} and len(unavailable) == 3
    assert "attribute_f1" not in described["rgmc"].scores and attributes.describe({"rgmc": [captions]}) is None
