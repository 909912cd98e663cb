"""What subtitles promise: they keep to the rules of a profile, and say what was captioned or less."""

import csv
import dataclasses
import json
import re

import pytest
import yaml
from helpers import LONG_CAPTION, ROOT, SHARED, make_spans
from hypothesis import given, settings
from hypothesis import strategies as st

from captions import phrases
from captions.checking import check_cues
from captions.phrases import break_lines, decorate, length, shorten
from captions.profiles import OWN, Profile, load_profile
from captions.rendering import Cue, make_cues
from captions.span_rows import Span, read_spans, write_spans
from captions.subtitle_files import WRITERS, read_subtitles

NAMES = ("dcmp", "wai", "netflix", "netflix-children", "bbc", "plain")


def shown(cues: list[Cue]) -> list[tuple]:
    return [(cue.start / 1000, cue.end / 1000, cue.text) for cue in cues]


# -- spans -------------------------------------------------------------------------------------------------------------


def test_spans_are_read_as_they_were_written(tmp_path):
    spans = make_spans((1.5, "A \u2028 “quiet” song\n"), (4, "silence"), (5.25, "other"))
    spans += make_spans(
        (2, LONG_CAPTION, {"alternatives": ["b"], "candidates": [{"text": "c"}], "settings": {"hop": 3.3}}), path="b"
    )
    write_spans(tmp_path / "spans.jsonl", spans)
    assert read_spans(tmp_path / "spans.jsonl") == spans
    assert [path.name for path in tmp_path.iterdir()] == ["spans.jsonl"]
    first = json.loads((tmp_path / "spans.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert list(first) == [field.name for field in dataclasses.fields(Span)]


def test_a_wrong_span_is_refused_with_file_and_line(tmp_path):
    good = [dataclasses.asdict(span) for span in make_spans((2, "a"), (4, "silence"))]
    second = make_spans((1, "a"), path="b.mp3")[0]
    path = tmp_path / "spans.jsonl"
    for line, change, said in (
        (2, {"kind": "speech"}, "line 2: kind is 'speech': expected one of music, silence, other"),
        (2, {"start": 3}, "line 2: start is 3.000: expected 2.000, where the span before ends"),
        (2, {"end": 5}, "line 2: end is 5.0: expected at most the duration, 4.000"),
        (2, {"duration": 6}, "line 2: duration is 6.000: the span before says 4.000"),
        (2, {"caption": "b"}, "line 2: caption is 'b': expected nothing, because the span is not music"),
        (1, {"score": None, "caption": 3}, "line 1: caption is 3: expected text"),
        (1, {"score": float("nan")}, "line 1: score is nan: expected a number"),
        (1, {"alternatives": "b"}, "line 1: alternatives is 'b': expected a list of texts"),
        (1, {"extra": 1}, "line 1: found path, duration"),
        (1, {"start": "0"}, "line 1: start is '0': expected seconds, 0 or more"),
    ):
        rows = [row | change if number == line else row for number, row in enumerate(good, 1)]
        path.write_text("\n".join(json.dumps(row) for row in rows))
        with pytest.raises(ValueError, match=re.escape(f"{path}, {said}")):
            read_spans(path)
    for lines, said in (
        (["{"], "line 1: it is not JSON"),
        ([json.dumps(good[0])], "spans of film.mp4 end at 2.000 s of 4.000"),
        (
            [json.dumps(row) for row in (good[0], dataclasses.asdict(second), good[1])],
            "line 3: the spans of film.mp4 are",
        ),
    ):
        path.write_text("\n".join(lines))
        with pytest.raises(ValueError, match=said):
            read_spans(path)


# -- profiles ----------------------------------------------------------------------------------------------------------


def test_profiles_hold_the_published_limits():
    netflix = load_profile("netflix")
    assert (netflix.min_duration, netflix.max_duration, netflix.gap) == (0.833, 7, 2)
    assert (netflix.characters_per_line, netflix.lines, netflix.characters_per_second) == (42, 2, 20)
    assert dataclasses.replace(netflix, characters_per_second=17) == load_profile("netflix-children")
    assert load_profile("wai").characters_per_line == load_profile("dcmp").characters_per_line == 32
    assert load_profile("bbc").gap_seconds == 1 and load_profile("bbc").prefix == "MUSIC: "


def test_each_figure_of_a_profile_names_its_source():
    lines = OWN.read_text(encoding="utf-8").splitlines()
    figures = [line for line in lines if re.match(r"  \w+: \d", line)]
    assert len(figures) >= 20
    assert not [line for line in figures if not re.search(r"# .{4}", line)]


def test_a_profile_of_ones_own_is_read_and_a_wrong_one_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("like: netflix-children\nlines: 3\nmax_duration: null\n")
    expected = dataclasses.replace(load_profile("netflix-children"), lines=3, max_duration=None)
    assert load_profile(str(path)) == expected
    path.write_text(yaml.safe_dump(dataclasses.asdict(expected)))
    assert load_profile(str(path)) == expected
    for text, said in (
        ("like: netflix\nline: 3", "unknown key line; did you mean lines?"),
        ("like: netflx", "like is 'netflx': expected one of dcmp, wai"),
        ("lines: 3", "lacks prefix, suffix"),
        ("like: bbc\ncase: title", "case is 'title': expected one of keep, phrase, upper"),
        ("like: bbc\ngap: 1.5", "gap is 1.5: expected a whole number of frames, 0 or more"),
        ("like: bbc\nlines: true", "lines is True: expected a whole number, 1 or more, or null"),
        ("like: bbc\nlines: 0", "lines is 0"),
        ("like: bbc\nframe_rate: null", "frame_rate is None: expected a number above 0"),
        ("like: bbc\ncharacters_per_line: 3", "characters_per_line is 3: expected a whole number, 16 or more"),
        ("like: netflix\nmin_duration: 8", "min_duration is 8: expected at most 7, max_duration"),
        ("like: bbc\nmusic: ''", "music is '': expected text in one line"),
        ("- 1", "holds a list"),
        ("a: [", "cannot be read as yaml"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(said)):
            load_profile(str(path))
    with pytest.raises(FileNotFoundError, match=r"did you mean netflix\?"):
        load_profile("netflx")


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_caption_is_cut_only_where_a_phrase_ends():
    for text, cuts in (
        ("A calm piano piece with strings. It is slow.", ["A calm piano piece with strings.", "A calm piano piece"]),
        ("A calm and relaxing piano melody with a soft pad", ["A calm and relaxing piano melody"]),
        ("This is a calm and relaxing tune with a pad", ["This is a calm and relaxing tune"]),
        ("A slow, sad piano ballad for children", ["A slow, sad piano ballad"]),
        ("A man sings, a choir follows and the drums stop", ["A man sings, a choir follows", "A man sings"]),
        ("A flute that is accompanied by a harp", ["A flute"]),
        ("A piano accompanied by a harp", ["A piano"]),
        # Something would be said that is not so, or half a thing.
        ("The drums in the recording are barely audible", []),
        ("There is no percussion while the piano plays", []),
        ("A mix between rock and a waltz", []),
        ("A song that is suitable for children", ["A song"]),
        ('A piece by "a band of the north" of England', []),
        ("It consists of a flute", []),
    ):
        assert list(shorten(text)) == cuts, text


def corpus() -> list[str]:
    path = SHARED / "musiccaps" / "musiccaps-public.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open(encoding="utf-8", newline="") as file:
        return [phrases.clean(row["caption"]) for row in csv.DictReader(file)][:1500]


def test_no_cut_of_real_captions_ends_within_a_phrase():
    cuts = [(text, cut) for text in corpus() for cut in shorten(text)]
    assert len(cuts) > 5000
    for text, cut in cuts:
        assert text.startswith(cut) and re.match(r"\W", text[len(cut) :])
        assert not re.search(r"\b(a|an|the|and|or|but|of|with|in|by|for|on|at|to|is|are|has|no)$|[,;:-]$", cut, re.I), (
            cut
        )


def test_lines_break_at_phrases_and_only_if_they_must():
    netflix = load_profile("netflix")
    broken = break_lines("a slow waltz of flutes and strings with the voice of a woman".split(), netflix)
    assert broken == ["a slow waltz of flutes and strings", "with the voice of a woman"]
    assert break_lines(["x" * 42], netflix) == ["x" * 42]
    assert break_lines(["x" * 43], netflix) is None
    assert break_lines(["x" * 42, "y" * 42], netflix) == ["x" * 42, "y" * 42]
    assert break_lines(["word"] * 18, netflix) is None
    many = break_lines(["word"] * 90, dataclasses.replace(netflix, lines=None))
    assert len(many) == 12 and max(map(len, many)) <= 42
    assert length("e\u0301🎵\u200d") == 2


def test_decoration_follows_the_profile():
    for name, expected in (
        ("netflix", "[a Spanish tune]"),
        ("wai", "♪ a Spanish tune ♪"),
        ("bbc", "MUSIC: A Spanish tune."),
        ("plain", "A Spanish tune."),
    ):
        assert " ".join(decorate("A Spanish tune.", load_profile(name))) == expected
    netflix = load_profile("netflix")
    assert decorate("R&B in C. It is slow.", netflix) == ["[R&B", "in", "C.", "It", "is", "slow.]"]
    assert decorate("In C", dataclasses.replace(netflix, case="upper")) == ["[IN", "C]"]
    line = break_lines(
        decorate("x" * 40 + " " + "y" * 38, load_profile("wai")),
        dataclasses.replace(load_profile("wai"), characters_per_line=42),
    )
    assert line == ["♪ " + "x" * 40, "y" * 38 + " ♪"]


# -- cues --------------------------------------------------------------------------------------------------------------


def test_a_cue_begins_with_the_music_and_lasts_as_the_profile_allows():
    spans = make_spans((10, "silence"), (13.5, "A drum."), (20, "A flute."), (24.2, "other"), (30, "A harp."))
    cues, counts = make_cues(spans, load_profile("netflix"))
    # Two frames at 24 per second are 83.3 ms. "music stops" is shown for 2 s, and not at the end of the file.
    assert shown(cues) == [
        (10, 13.416, "[a drum]"),
        (13.5, 20, "[a flute]"),
        (20.084, 22.084, "[music stops]"),
        (24.2, 30, "[a harp]"),
    ]
    assert counts.shown == 3
    cues, _ = make_cues(make_spans((100, "A drum.")), load_profile("netflix"))
    assert shown(cues) == [(0, 7, "[a drum]")]
    cues, _ = make_cues(make_spans((100, "A drum.")), load_profile("bbc"))
    assert shown(cues) == [(0, 100, "MUSIC: A drum.")]


def test_short_music_is_shown_longer_where_there_is_room_and_else_counted():
    netflix = load_profile("netflix")
    cues, counts = make_cues(make_spans((0.5, "A drum."), (9, "silence")), netflix)
    assert shown(cues) == [(0, 0.833, "[a drum]"), (0.917, 2.917, "[music stops]")]
    cues, counts = make_cues(make_spans((0.5, "A drum."), (9, "A harp.")), netflix)
    assert shown(cues) == [(0.5, 7.5, "[a harp]")] and counts.dropped == 1
    cues, counts = make_cues(make_spans((8.5, "silence"), (9, "A harp.")), netflix)
    assert not cues and counts.dropped == 1


def test_the_first_text_that_fits_is_taken():
    netflix = load_profile("netflix")

    def first(end: float, **fields) -> tuple[str, bool, object]:
        cues, counts = make_cues(make_spans((end, LONG_CAPTION, fields), (60, "silence")), netflix)
        return cues[0].text, cues[0].shortened, counts

    text, shortened, counts = first(10, alternatives=[LONG_CAPTION + " and sand", "A quiet piano.", "A piano."])
    assert (text, shortened, counts.alternatives) == ("[a quiet piano]", False, 1)
    text, shortened, counts = first(10)
    assert (text, shortened, counts.shortened) == ("[a calm piano piece with soft strings and a slow tempo]", True, 1)
    text, shortened, counts = first(2)  # 20 characters per second
    assert (text, shortened) == ("[a calm piano piece with soft strings]", True)
    text, shortened, counts = first(0.9)
    assert (text, shortened, counts.unfit) == ("[music]", True, 1)


def test_a_caption_that_breaks_off_is_not_shown_as_it_is():
    for caption, expected in (
        ("A piano with soft strings and a", "[a piano with soft strings]"),
        ("A piano with strings,", "[a piano]"),
        ("Music to dance to.", "[Music to dance to]"),
        ("The", "[music]"),
    ):
        assert make_cues(make_spans((9, caption)), load_profile("netflix"))[0][0].text == expected


def test_a_caption_below_the_threshold_is_not_shown():
    netflix = load_profile("netflix")
    spans = make_spans((10, "A drum.", {"score": -1.5}))
    assert make_cues(spans, netflix)[0][0].text == "[a drum]"
    cues, counts = make_cues(spans, netflix, score_threshold=-1.0)
    assert cues[0].text == "[music]" and counts.unsure == 1
    strict = dataclasses.replace(netflix, score_threshold=-1.0)
    assert make_cues(spans, strict)[0][0].text == "[music]"
    assert make_cues(spans, strict, score_threshold=-2.0)[0][0].text == "[a drum]"
    spans[0].settings = {"score_threshold": -1.0}
    assert make_cues(spans, netflix)[0][0].text == "[music]"


def test_reminders_come_at_their_times_while_the_music_plays():
    spans = make_spans((30, "A drum."), (60, "silence"))
    cues, _ = make_cues(spans, load_profile("netflix"), remind=10)
    assert shown(cues)[1:] == [(10, 12, "[… continues]"), (20, 22, "[… continues]"), (30, 32, "[music stops]")]
    assert len(make_cues(spans, load_profile("netflix"))[0]) == 2


def test_music_is_described_only_in_gaps_of_the_dialogue():
    netflix = load_profile("netflix")
    spans = make_spans((20, "A calm piano piece with strings."), (40, "silence"))
    cues, _ = make_cues(spans, netflix, busy=[(500, 4000), (5000, 9000), (14_000, 21_000)])
    # 34 characters need 1.7 s: the first gap that is long enough begins after the second cue.
    assert shown(cues) == [(9.084, 13.916, "[a calm piano piece with strings]"), (21.084, 23.084, "[music stops]")]
    cues, counts = make_cues(spans, netflix, busy=[(0, 30_000)])
    assert not cues and counts.dropped == 1


WORDS = st.sampled_from(
    "A the piano, strings with and of in drums. slow is song voice; & <b> --> 🎵 שיר x that featuring no which".split()
)
CAPTIONS = st.lists(WORDS, min_size=1, max_size=40).map(" ".join)


@st.composite
def span_lists(draw) -> list[Span]:
    ends = sorted({draw(st.integers(1, 60_000)) for _ in range(draw(st.integers(1, 12)))})
    parts = []
    for end in ends:
        kind = draw(st.sampled_from(("silence", "other", "music", "music")))
        fields = {"score": draw(st.floats(-3, 0)), "alternatives": draw(st.lists(CAPTIONS, max_size=2))}
        parts.append((end / 1000, draw(CAPTIONS), fields) if kind == "music" else (end / 1000, kind))
    return make_spans(*parts)


@settings(max_examples=500, deadline=None)
@given(
    span_lists(),
    st.sampled_from([load_profile(name) for name in NAMES]),
    st.sampled_from((None, 3, 10)),
    st.lists(st.integers(0, 50_000), max_size=4),
)
def test_our_cues_never_break_a_rule(spans, profile, remind, starts):
    busy = [(start, start + 2000) for start in starts]
    gap = 1000 * profile.gap_seconds
    cues, counts = make_cues(spans, profile, busy, remind, score_threshold=-2)
    assert not check_cues(cues, profile)
    music = [span for span in spans if span.kind == "music"]
    assert sum(vars(counts).values()) == len(music)
    for cue in cues:
        assert 0 <= cue.start < cue.end <= round(1000 * spans[0].duration)
        for start, end in busy:
            assert cue.end + gap <= start or cue.start >= end + gap
        if cue.caption:  # nothing is said that is neither in the caption nor in an alternative
            own = max(
                (span for span in music if span.caption == cue.caption and round(1000 * span.start) <= cue.start),
                key=lambda span: span.start,
            )
            said = cue.text.removeprefix(profile.prefix).removesuffix(profile.suffix).lower()
            texts = [phrases.clean(text).lower() for text in (own.caption, *own.alternatives)]
            assert cue.text == profile.music or any(text.startswith(said) for text in texts)


# -- checker -----------------------------------------------------------------------------------------------------------

RULED = Profile(**dataclasses.asdict(load_profile("netflix")) | {"words_per_minute": 300, "characters_per_second": 20})
PLANTED = [
    ("min_duration", [(0, 0.8, "a")], 0.8, 0.833),
    ("max_duration", [(0, 7.5, "a")], 7.5, 7),
    ("gap", [(0, 2, "a"), (2.05, 4, "b")], 0.05, 0.083),
    ("gap", [(0, 2, "a"), (1.5, 4, "b")], -0.5, 0.083),
    ("characters_per_line", [(0, 5, "x" * 43)], 43, 42),
    ("lines", [(0, 5, "a\nb\nc")], 3, 2),
    ("characters_per_second", [(0, 1, "x" * 21)], 21, 20),
    ("words_per_minute", [(0, 1, "a b c d e f")], 360, 300),
    ("order", [(2, 1, "a")], -1, 0),
    ("text", [(0, 2, "")], 0, 1),
]


@pytest.mark.parametrize("kind", ["vtt", "srt"])
@pytest.mark.parametrize("rule, planted, value, limit", PLANTED)
def test_the_checker_finds_what_is_planted(tmp_path, kind, rule, planted, value, limit):
    good = [(60, 62, "fine"), (62.084, 64, "fine, too")]
    cues = [
        Cue(start=round(1000 * start), end=round(1000 * end), lines=text.split("\n"))
        for start, end, text in (*planted, *good)
    ]
    path = tmp_path / f"film.{kind}"
    path.write_text(WRITERS[kind](cues), encoding="utf-8")
    (found,) = check_cues(read_subtitles(path).cues, RULED)
    assert (found.rule, found.cue, found.value, found.limit) == (rule, 1, value, limit)
    assert not check_cues(read_subtitles(path).cues[len(planted) :], RULED)


def test_cues_that_touch_are_right_where_the_guide_says_so():
    cues = [Cue(start=start, end=end, lines=["a"]) for start, end in ((0, 2000), (2000, 4000), (4500, 6000))]
    assert [(found.rule, found.cue, found.value) for found in check_cues(cues, load_profile("bbc"))] == [
        ("gap", 2, 0.5)
    ]


def test_the_command_checks_a_file(caption_command, tmp_path):
    (tmp_path / "film.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:01.500\n<i>Hello</i> &amp; you\n")
    status, out, err = caption_command("--check", "film.vtt", "--profile", "netflix")
    assert status == 1 and out.splitlines() == [
        "film.vtt: cue 1 at 00:00:01.000: min_duration is 0.5 s, limit 0.833",
        "film.vtt: cue 1 at 00:00:01.000: characters_per_second is 22 characters per second, limit 20",
    ]
    assert err == "1 of 1 cue break rules of netflix\n"
    status, out, _ = caption_command("--check", "film.vtt", "--profile", "netflix", "--json")
    assert json.loads(out)[0] == {"rule": "min_duration", "cue": 1, "time": 1.0, "value": 0.5, "limit": 0.833}
    assert caption_command("--check", "film.vtt", "--profile", "plain")[:2] == (0, "")
    (tmp_path / "film.vtt").write_text("WEBVTT\n\n00:01.000 --> 2\nHello\n")
    status, _, err = caption_command("--check", "film.vtt")
    assert status == 2 and "film.vtt, line 3: '00:01.000 --> 2': expected times such as" in err


def test_options_that_do_not_go_together_are_refused(caption_command, tmp_path):
    (tmp_path / "spans.jsonl").write_text("")
    for words, said in (
        ("--render spans.jsonl --check spans.jsonl", "--render and --check: expected one of them"),
        ("--render spans.jsonl --output x.jsonl", "--output is for captions: subtitles are beside their files"),
        ("--render spans.jsonl song.mp3", "--render and PATH: expected one of them"),
        (
            "--render span.jsonl",
            "--render span.jsonl does not exist: expected a file of spans; did you mean spans.jsonl?",
        ),
        ("--render spans.jsonl --remind 0", "--remind 0: expected 1 or more seconds"),
        ("--render spans.jsonl --profile bcc", "did you mean bbc?"),
        ("--render spans.jsonl --merge spans.jsonl --format ttml", "the result has the format of the dialogue"),
        ("--render spans.jsonl --subtitle_dir spans.jsonl", "spans.jsonl is a file; name a folder"),
    ):
        status, out, err = caption_command(*words.split())
        assert status == 2 and not out and said in err, err


def test_help_names_the_profiles():
    text = (ROOT / "captions" / "subtitles.py").read_text(encoding="utf-8")
    assert ", ".join(NAMES) in text and list(yaml.safe_load(OWN.read_text(encoding="utf-8"))) == list(NAMES)
