"""What listening_test.py promises of a test: balanced, blind, seeded, and of its page: one file, no request."""

import json
import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from helpers import CAPTIONS, write_corpus

import listening_test
from listening.design import FOIL, GOLD, Study, make_study, rotate

SONGS = [f"song-{number}" for number in range(60)]
OLD = {"seed": 3, "songs": 31}


def captions_of(*systems: str) -> dict[str, dict[str, str]]:
    return {system: {song: f"{system} says {song}" for song in SONGS} for system in systems}


GOLD_CAPTIONS = {song: f"a tune of {song} in the key {number}" for number, song in enumerate(SONGS)}


def draw(*systems: str, **options) -> Study:
    return make_study(captions_of(*(systems or ("one", "two"))), GOLD_CAPTIONS, **{**OLD, **options})


# -- the design -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raters", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("systems", [("one", "two"), ("one", "two", "three")])
def test_sides_are_balanced_for_each_rater_and_each_song(systems, raters):
    study = draw(*systems, raters=raters)
    first = Counter()
    for rater, trials in study.raters.items():
        for trial in trials:
            if trial.kind != "repeat":
                pair = tuple(sorted((trial.left, trial.right)))
                for vertex in (rater, trial.song):
                    first[vertex, pair] += 1 if trial.left == pair[0] else -1
    assert len(first) == len(systems) * (len(systems) - 1) / 2 * (raters + 31) + raters + 4
    assert max(map(abs, first.values())) <= 1


@pytest.mark.parametrize(("raters", "per_song"), [(3, 3), (4, 3), (5, 3), (6, 3), (6, 4), (2, 1)])
def test_each_song_has_its_raters_and_loads_differ_by_one(raters, per_song):
    study = draw(raters=raters, raters_per_song=per_song, songs=33)
    asked = [(code, trial.song) for code, trials in study.raters.items() for trial in trials if trial.kind == "song"]
    assert len(set(asked)) == len(asked) == 33 * per_song
    assert set(Counter(song for _, song in asked).values()) == {per_song}
    loads = Counter(code for code, _ in asked)
    assert len(loads) == raters and max(loads.values()) - min(loads.values()) <= 1


def test_the_same_raters_do_not_always_meet():
    assert {tuple(sorted(who)) for who in rotate(31, 6, 3)} > {(0, 1, 2), (3, 4, 5)}


def test_a_song_comes_in_another_third_of_the_test_for_each_of_its_raters():
    study = draw(checks=0, repeats=0, songs=30)
    thirds = {song: set() for song in study.songs}
    for trials in study.raters.values():
        assert [trial.song for trial in trials] != study.songs
        for place, trial in enumerate(trials):
            thirds[trial.song].add(place // 10)
    assert all(found == {0, 1, 2} for found in thirds.values())


def test_checks_are_on_songs_of_their_own_and_repeats_swap_the_sides():
    study = draw(checks=4, repeats=5)
    for trials in study.raters.values():
        assert Counter(trial.kind for trial in trials) == {"song": 31, "check": 4, "repeat": 5}
        by_id = {trial.id: place for place, trial in enumerate(trials)}
        for place, trial in enumerate(trials):
            if trial.kind == "check":
                assert {trial.left, trial.right} == {GOLD, FOIL} and trial.song not in study.songs
                assert study.captions[trial.song][GOLD] == GOLD_CAPTIONS[trial.song]
            if trial.kind == "repeat":
                original = trials[by_id[trial.repeats]]
                assert (original.song, original.left, original.right) == (trial.song, trial.right, trial.left)
                assert place - by_id[trial.repeats] > len(trials) / 5


def test_the_wrong_caption_is_another_songs_or_without_sound_the_same_words_scrambled():
    for variant in ("hearing", "text"):
        study = draw(variant=variant)
        for song in study.captions.keys() - {*study.songs}:
            gold, foil = study.captions[song][GOLD], study.captions[song][FOIL]
            assert gold != foil and (foil in GOLD_CAPTIONS.values()) == (variant == "hearing")
            assert (sorted(gold.split()) == sorted(foil.split())) == (variant == "text")
        assert study.criteria == [{"hearing": "descriptive", "text": "useful"}[variant], "fluent"]


def test_the_seed_decides_all():
    assert draw() == draw() == Study.from_dict(json.loads(json.dumps(draw().to_dict())))
    other = draw(seed=4)
    assert other.id != draw().id and other.songs != draw().songs and [*other.raters] != [*draw().raters]
    assert draw("one", "2").id != draw().id


def test_songs_of_which_two_systems_say_the_same_are_left_out_and_counted():
    captions = captions_of("one", "two")
    for song in SONGS[:20]:
        captions["two"][song] = captions["one"][song]
    study = make_study(captions, GOLD_CAPTIONS, songs=40, checks=4)
    assert {*study.songs} == {*SONGS[20:]} and "20 of 60" in study.facts.values()
    with pytest.raises(
        ValueError, match="--songs 41: of 60 songs that all systems caption, 40 have captions that differ"
    ):
        make_study(captions, GOLD_CAPTIONS, songs=41)
    with pytest.raises(ValueError, match=r"--repeats 12: a rater makes 31 comparisons, .*: expected 11 or fewer"):
        draw(repeats=12)
    with pytest.raises(ValueError, match=r"--checks 21: expected as many songs .* found 20"):
        make_study(captions, GOLD_CAPTIONS, songs=40, checks=21)


# -- the page ---------------------------------------------------------------------------------------------------------

NAMES = ("Wolfgang", "Amadeus")


def write_inputs(folder, names=NAMES) -> list[str]:
    """A corpus of 8 tones and the captions of systems, as options of `make`."""
    corpus = write_corpus(folder / "corpus", {"test": CAPTIONS})
    entries = []
    for number, name in enumerate(names):
        lines = [
            {"id": f"test-{row}", "prediction": " ".join([*caption.split()[number:], f"take {number}"])}
            for row, caption in enumerate(CAPTIONS)
        ]
        (folder / f"{name}-captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
        entries.append(f"{name}={folder / name}-captions.jsonl")
    return [
        "make",
        "--predictions",
        *entries,
        "--dataset",
        str(corpus),
        "--songs",
        "4",
        "--checks",
        "2",
        "--repeats",
        "1",
    ]


@pytest.mark.parametrize("variant", ["hearing", "picture", "text"])
def test_the_page_names_no_system_file_or_id_and_may_request_nothing(tmp_path, variant, capsys):
    listening_test.main([*write_inputs(tmp_path), "--output_dir", str(tmp_path / "out"), "--variant", variant])
    page = (tmp_path / "out" / "listening_test.html").read_text()
    study = Study.from_dict(json.loads((tmp_path / "out" / "key.json").read_text()))
    text = re.sub(r"data:\w+/\w+;base64,[\w+/=]+", "", page)
    for secret in (*NAMES, "test-", "corpus", ".wav", ".jsonl", GOLD, FOIL, "rgmc", str(tmp_path)):
        assert secret.lower() not in text.lower()
    data = json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', page)[1])
    trials = [words for plan in data["raters"].values() for words in plan]
    tokens = [data["id"], *data["texts"], *data["clips"], *(word for words in trials for word in words)]
    assert {len(words) for words in trials} == {4} and all(re.fullmatch("[0-9a-f]{12}", token) for token in tokens)
    assert page.count("data:audio/mpeg;base64,") == {"hearing": 6}.get(variant, 0)
    assert page.count("data:image/png;base64,") == {"picture": 6}.get(variant, 0)
    assert "default-src 'none'" in page and not re.search(r"https?:|//\w|url\(|@import", text)
    for song in study.songs:
        assert all(caption in page for caption in study.captions[song].values())
    assert all(code in page for code in study.raters) and len(study.raters) == 3
    assert not {*study.raters} & {*capsys.readouterr().err.split()}
    rows = (tmp_path / "out" / "raters.csv").read_text().splitlines()
    assert rows == ["code,page", *(f"{code},listening_test.html#{code}" for code in study.raters)]


def test_a_caption_cannot_end_the_pages_data(tmp_path):
    from listening.page import write_page

    captions = captions_of("one", "two")
    captions["one"] = dict.fromkeys(SONGS, "</script><script>alert(1)</script>")
    study = make_study(captions, GOLD_CAPTIONS, variant="text", songs=3, repeats=1)
    write_page(tmp_path / "page.html", study, None, "<b>me</b>", "one\n\n<i>two</i>")
    page = (tmp_path / "page.html").read_text()
    assert "alert(1)</script>" not in page and page.count("<script") == 2
    assert "&lt;b&gt;me" in page and "<p>&lt;i&gt;two" in page


def test_the_data_sheet_has_what_is_known_and_says_what_is_not(tmp_path):
    listening_test.main([*write_inputs(tmp_path), "--output_dir", str(tmp_path / "out"), "--variant", "text"])
    sheet = (tmp_path / "out" / "data_sheet.md").read_text()
    for known in (*NAMES, "4 songs", "Attention checks for each rater: 2", "Useful: ", "Approval: TODO"):
        assert known in sheet
    assert "Descriptive" not in sheet and sheet.count("TODO") > 15


def test_a_test_is_not_overwritten(tmp_path):
    words = [*write_inputs(tmp_path), "--output_dir", str(tmp_path / "out"), "--variant", "text"]
    listening_test.main(words)
    with pytest.raises(FileExistsError, match="holds a test"):
        listening_test.main(words)


# -- the captions -----------------------------------------------------------------------------------------------------


def test_systems_of_one_evaluation_are_named_by_their_keys(tmp_path):
    words = write_inputs(tmp_path)
    lines = [
        {
            "id": f"test-{row}",
            "prediction": caption,
            "captions": {"nearest": f"Near {row}"},
            "caption_normalization": "music",
        }
        for row, caption in enumerate(CAPTIONS)
    ]
    file = tmp_path / "predictions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    words[2:4] = [f"model={file}", f"neighbor={file}:nearest"]
    listening_test.main([*words, "--output_dir", str(tmp_path / "out"), "--variant", "text"])
    study = Study.from_dict(json.loads((tmp_path / "out" / "key.json").read_text()))
    for song in study.songs:
        row = int(song.removeprefix("test-"))
        assert study.captions[song] == {"model": CAPTIONS[row], "neighbor": f"near {row}"}
    words[3] = f"neighbor={file}:neares"
    with pytest.raises(ValueError, match="no caption of 'neares'; found nearest; did you mean nearest"):
        listening_test.main([*words, "--output_dir", str(tmp_path / "other")])


def test_captions_that_look_different_by_their_rule_are_refused(tmp_path):
    files = []
    for rule in ("paper", "music"):
        files.append(tmp_path / f"{rule}.jsonl")
        files[-1].write_text(json.dumps({"id": "test-0", "prediction": "a", "caption_normalization": rule}))
    words = write_inputs(tmp_path)
    words[2:4] = [f"a={files[0]}", f"b={files[1]}"]
    with pytest.raises(ValueError, match="different rules of normalisation"):
        listening_test.main([*words, "--output_dir", str(tmp_path / "out")])
    files[0].write_text("{}")
    with pytest.raises(ValueError, match="line 1: expected"):
        listening_test.main([*words, "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected one of make, analyse, power, found nothing"),
        (["analyze"], "found 'analyze'; did you mean analyse?"),
        (["make", "--predictions", "a=b.jsonl", "--dataset", "x", "--output_dir", "y"], "expected two systems or more"),
        (["analyse", "--key", "k", "--output_dir", "y"], "no answers: name the files that raters saved"),
        (["power", "--preference", "0.5"], "--preference 0.5: expected a share above 0.5, up to 1"),
        (["power", "--undecided", "1"], "--undecided 1: expected a share from 0 to below 1"),
    ],
)
def test_a_mistake_is_one_line(words, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        listening_test.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and expected in line


def test_every_pair_of_systems_is_compared_on_every_song():
    study = draw("one", "two", "three")
    asked = Counter(
        (trial.song, *sorted((trial.left, trial.right)))
        for trials in study.raters.values()
        for trial in trials
        if trial.kind == "song"
    )
    expected = {(song, *sorted(pair)) for song in study.songs for pair in combinations(study.systems, 2)}
    assert {*asked} == expected and set(asked.values()) == {3}
    assert np.array_equal(study.pairs, [*combinations(study.systems, 2)])
