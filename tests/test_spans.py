"""What spans promise: where music starts, changes and stops, captions of its parts, and bounded memory."""

import csv
import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from datasets import Dataset
from encoders import write_film
from helpers import CAPTIONS, read_lines, saved_pipeline, vary_captions

import spans_rgmc
from captions.captioner import Captioner
from captions.span_rows import Span, read_spans, write_spans
from captions.spans import SpanLedger, load_detector, read_music_spans, show
from captions.subtitle_files import read_subtitles
from retrieval_rgmc import CaptionDatastore
from span_settings_rgmc import SpanSettings
from spans_rgmc import (
    average_states,
    cut,
    divide,
    find_changes,
    find_silences,
    merge_equal,
    novelty,
    overlapping_starts,
)

RATE = 16_000
# Silence, A, silence, B, noise, with their ends in seconds.
PARTS = {"silence": 4.0, "a": 24.0, "silence again": 28.3, "b": 50.1, "noise": 70.0}
EDGES = [*PARTS.values()]


def melody(seconds: float, lowest: float, seed: int) -> np.ndarray:
    """Four notes a second, of a scale above `lowest` Hz, with overtones."""
    generator, time = np.random.default_rng(seed), np.arange(RATE // 4) / RATE
    notes = lowest * 2 ** (generator.choice([0, 2, 4, 7, 9, 12], round(4 * seconds) + 1) / 12)
    sound = [sum(np.sin(2 * np.pi * note * k * time) / k for k in (1, 2, 3)) * np.exp(-4 * time) for note in notes]
    return 0.2 * np.concatenate(sound)[: round(seconds * RATE)]


def write_track(path: Path) -> str:
    sounds = [
        np.zeros(round(4.0 * RATE)),
        melody(20.0, 110, seed=1),
        np.zeros(round(4.3 * RATE)),
        melody(21.8, 440, seed=2),
        0.05 * np.random.default_rng(3).standard_normal(round(19.9 * RATE)),
    ]
    soundfile.write(path, np.concatenate(sounds), RATE)
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's folder: the track, and a file that is no sound; later a checkpoint."""
    folder = tmp_path_factory.mktemp("films")
    write_track(folder / "track.wav")
    (folder / "broken.mp3").write_text("no music")
    return folder


@pytest.fixture
def captioner(make_model, processor, place):
    """The pipeline of the checkpoint `outputs/demo`, whose captions differ."""
    model = make_model(max_new_tokens=12)
    vary_captions(model)
    model.set_log_mel_statistics(torch.full((64,), -40.0), torch.full((64,), 400.0))
    vectors = torch.nn.functional.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    tokens = [processor.encode_candidate(text) for text in CAPTIONS[:5]]
    rows = Dataset.from_dict({"id": list("abcde"), "caption": CAPTIONS[:5], "input_ids": tokens})
    model.set_datastore(CaptionDatastore(rows, vectors.numpy(), model.encoder_fingerprint()))
    return saved_pipeline(model, processor, place / "outputs" / "demo")


@pytest.fixture
def command(captioner, place, tmp_path, caption_command, monkeypatch):
    """Runs the command in the user's folder, and returns its status and what it prints."""
    monkeypatch.chdir(place)
    return lambda *words: caption_command("--num_proc", 2, *(str(word).replace("OUT", str(tmp_path)) for word in words))


# -- parts of a stream -------------------------------------------------------------------------------------------------


def test_parts_are_cut_wherever_blocks_end():
    sound = np.arange(1000, dtype=np.float32)
    parts = [(0, 10), (5, 205), (5, 300), (700, 710), (990, 1200)]
    for size in (1, 7, 1000):
        blocks = (sound[first : first + size] for first in range(0, 1000, size))
        for part, (first, end) in zip(cut(blocks, parts), parts):
            assert np.array_equal(part, sound[first:end])


# -- silence -----------------------------------------------------------------------------------------------------------


def test_silence_starts_and_stops_to_a_frame():
    levels = np.concatenate([np.full(100, -20.0), np.full(75, -90.0), np.full(200, -20.0), np.full(30, -90.0)])
    assert find_silences(levels, -60.0, 1.0) == [(2.0, 3.5)]
    assert find_silences(levels, -60.0, 0.6) == [(2.0, 3.5), (7.5, 8.1)]


def test_a_click_and_a_level_at_the_threshold_do_not_end_silence():
    levels = np.full(500, -90.0)
    levels[:50] = levels[450:] = -20.0
    levels[200:205] = -10.0  # a click of 0.1 s
    levels[300:350] = -57.0  # above the threshold, but not by 6 dB
    assert find_silences(levels, -60.0, 1.0) == [(1.0, 9.0)]
    levels[200:230] = -10.0  # 0.6 s of sound
    assert np.allclose(find_silences(levels, -60.0, 1.0), [(1.0, 4.0), (4.6, 9.0)])


def test_a_track_is_divided_without_gaps_and_silence_comes_first():
    parts = divide(30.0, [(0.0, 2.0), (10.0, 12.0)], [(1.0, 11.0), (15.0, 40.0)])
    wanted = [(0, 2, "silence"), (2, 10, "music"), (10, 12, "silence"), (12, 15, "other"), (15, 30, "music")]
    assert parts == wanted
    assert divide(5.0, []) == [(0.0, 5.0, "music")]
    assert divide(5.0, [], [(0.05, 4.95)]) == [(0.0, 5.0, "music")]  # no spans of 50 ms
    assert divide(5.0, [], []) == [(0.0, 5.0, "other")]


# -- changes -----------------------------------------------------------------------------------------------------------


def test_a_hop_at_which_the_encoder_folds_time_is_refused():
    for hop in (2.5, 5.0, 7.5):
        with pytest.raises(ValueError, match=f"hop {hop:g} is a multiple of 2.5 s, at which the encoder folds time"):
            SpanSettings(hop=hop)
    SpanSettings(hop=3.1)
    for wrong in ({"hop": 11}, {"silence": 3.0}, {"kernel": 0}, {"min_span": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SpanSettings(**wrong)


def test_windows_cover_a_track_and_keep_its_tail():
    assert overlapping_starts(100, 10, 31) == [0, 31, 62, 90]
    assert overlapping_starts(10, 10, 3) == [0] and overlapping_starts(4, 10, 3) == [0]


def test_the_encoders_steps_are_in_the_order_of_time(make_model, log_mels):
    model = make_model()
    clips = log_mels(3)
    embeds, states = model.embed_steps(clips)
    assert torch.equal(embeds, model.embed_audio(clips)) and states.shape[:2] == (3, 32)
    for step in (3, 12, 21, 30):  # each in another of the four folds
        other = clips.clone()
        middle = round((step + 0.5) * 1001 / 32)
        other[:, :, middle - 12 : middle + 12] += 15
        difference = (model.embed_steps(other)[1] - states).norm(dim=2).mean(0)
        assert difference.argmax() == step


def test_overlapping_windows_are_averaged_at_the_same_time():
    # A ramp in time, heard by windows of four steps of 1 s that start anywhere, is that ramp again.
    ramp = lambda start: np.stack([start + 0.5 + np.arange(4), np.ones(4)], axis=1)  # noqa: E731
    starts = [0.0, 1.3, 2.6, 4.7, 5.2]
    parts = list(average_states(((start, ramp(start)) for start in starts), 1.0, 9))
    assert [first for first, _ in parts] == list(np.cumsum([0, *(len(states) for _, states in parts)])[:-1])
    averaged = np.concatenate([states for _, states in parts])
    np.testing.assert_allclose(averaged, np.stack([np.arange(9) + 0.5, np.ones(9)], axis=1), atol=0.2)
    np.testing.assert_allclose(averaged[2:4, 0], [2.5, 3.5])
    a, b = np.zeros((4, 1)), np.ones((4, 1))
    (_, first), (place, second) = average_states([(0.0, a), (2.0, b)], 1.0, 6)
    assert first.ravel().tolist() == [0, 0] and second.ravel().tolist() == [0.5, 0.5, 1, 1] and place == 2


def test_a_gap_between_windows_is_a_gap_between_parts():
    ones = np.ones((4, 1))
    assert [(first, len(states)) for first, states in average_states([(0.0, ones), (10.0, ones)], 1.0, 14)] == [
        (0, 4),
        (10, 4),
    ]


def test_novelty_is_footes_over_the_variance():
    states = np.random.default_rng(0).standard_normal((40, 3)) + np.repeat([[0.0], [2.0]], 20, axis=0)
    half = 8
    values = novelty([(0, states)], np.zeros(40, int), half)
    for at in (12, 20, 25):
        places = np.arange(at - half, at + half)
        taper = np.exp(-2 * ((places - at + 0.5) / half) ** 2)
        taper /= taper[half:].sum()
        signs = np.where(places < at, -1, 1)
        similarity = states[places] @ states[places].T  # the self-similarity matrix
        checkerboard = np.outer(signs * taper, signs * taper)
        variance = sum(
            np.sum(taper[side] * ((states[places[side]] - taper[side] @ states[places[side]]) ** 2).sum(1))
            for side in (signs < 0, signs > 0)
        )
        assert values[at] == pytest.approx((checkerboard * similarity).sum() / variance)
    assert values.argmax() == 20
    pieces = [(first, states[first : first + 7]) for first in range(0, 40, 7)]
    np.testing.assert_allclose(novelty(pieces, np.zeros(40, int), half), values)


def test_steps_are_compared_within_their_section_alone():
    states = np.random.default_rng(0).standard_normal((60, 3))
    sections = np.repeat([0, -1, 1], 20)
    loud = states.copy()
    loud[20:40] += 100
    values = novelty([(0, loud)], sections, 8)
    assert not values[20:40].any()
    np.testing.assert_allclose(values[1:20], novelty([(0, states[:20])], sections[:20], 8)[1:])
    separate = novelty([(0, states[:20]), (40, states[40:])], sections, 8)
    np.testing.assert_allclose(separate, values)


def test_changes_are_peaks_apart_from_each_other_and_from_the_ends():
    values = np.zeros(100)
    values[[4, 30, 33, 70, 97]] = [9, 5, 6, 2, 9]
    assert find_changes(values, np.zeros(100, int), 1.0, 10) == [33, 70]
    assert find_changes(values, np.zeros(100, int), 3.0, 10) == [33]
    assert find_changes(values, np.repeat([0, 1], 50), 1.0, 20) == [30, 70]


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_music_starts_changes_and_stops_within_half_a_second(captioner, place):
    spans = captioner(str(place / "track.wav"), spans=True)
    assert [span["kind"] for span in spans] == ["silence", "music", "silence", "music", "other"]
    assert [span["end"] for span in spans] == pytest.approx(EDGES, abs=0.5)
    assert [span["end"] for span in spans][:3] == pytest.approx(EDGES[:3], abs=0.021)
    assert spans[0]["start"] == 0 and all(before["end"] == after["start"] for before, after in pairwise(spans))
    for span in spans:
        if span["kind"] != "music":
            assert not (span["caption"] or span["score"] or span["alternatives"] or span["candidates"])
        else:
            assert span["caption"] and span["score"] < 0 and 1 <= len(span["alternatives"]) <= 2
            assert span["caption"] not in span["alternatives"]


def test_spans_of_a_film_whose_sound_starts_late_are_on_its_clock(captioner, tmp_path):
    sound = soxr.resample(np.concatenate([melody(8, 110, 1), np.zeros(2 * RATE), melody(8, 440, 2)]), RATE, 48_000)
    write_film(tmp_path / "film.mp4", sound, delay=3.3)
    spans = captioner(str(tmp_path / "film.mp4"), spans=True)
    assert [span["kind"] for span in spans] == ["silence", "music", "silence", "music"]
    assert [span["end"] for span in spans] == pytest.approx([3.3, 11.3, 13.3, 21.3], abs=0.1)


def test_a_change_of_the_music_is_found_within_half_a_second(captioner, tmp_path):
    soundfile.write(tmp_path / "two.wav", np.concatenate([melody(20.3, 110, 1), melody(20, 440, 2)]), RATE)
    spans = captioner(str(tmp_path / "two.wav"), spans=True)
    assert [span["kind"] for span in spans] == ["music", "music"]
    assert spans[0]["end"] == pytest.approx(20.3, abs=0.5)


def test_a_span_is_captioned_like_a_file_of_its_own(captioner, place, tmp_path):
    sound = soundfile.read(place / "track.wav")[0]
    for span in captioner(str(place / "track.wav"), spans=True):
        if span["kind"] == "music":
            soundfile.write(tmp_path / "cut.wav", sound[round(span["start"] * RATE) : round(span["end"] * RATE)], RATE)
            alone = captioner(str(tmp_path / "cut.wav"))
            assert span["caption"] == alone["caption"].strip()
            assert span["score"] == pytest.approx(alone["score"], abs=0.01)  # resampled from another sample on
            ids = [candidate["id"] for candidate in span["candidates"]]
            assert ids == [candidate["id"] for candidate in alone["candidates"]]


def test_batches_and_a_consensus_change_no_boundary(captioner, place):
    track = str(place / "track.wav")
    one, many = (captioner(track, spans=True, batch_size=size) for size in (1, 16))
    other = captioner(track, spans=True, batch_size=5, selection="consensus", num_beams=2)
    for spans in (many, other):
        assert [(span["start"], span["end"]) for span in spans] == [(span["start"], span["end"]) for span in one]
    assert [span["caption"] for span in one] == [span["caption"] for span in many]
    assert all(len(span["alternatives"]) <= 2 for span in other)


def test_short_and_silent_files_have_one_span(captioner, tmp_path):
    soundfile.write(tmp_path / "short.wav", melody(3.0, 220, 0), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(3 * RATE), RATE)
    short, silent = captioner([str(tmp_path / name) for name in ("short.wav", "silent.wav")], spans={})
    assert [(span["start"], span["end"], span["kind"]) for span in short] == [(0, 3, "music")]
    assert [(span["start"], span["end"], span["kind"]) for span in silent] == [(0, 3, "silence")]
    assert short[0]["caption"] == captioner(str(tmp_path / "short.wav"))["caption"].strip()


@pytest.mark.parametrize("option", [{"start": 1.0}, {"where": "whole"}, {"errors": "return"}, {"sampling_rate": 8000}])
def test_what_spans_would_ignore_is_refused(captioner, option):
    with pytest.raises(ValueError, match=f"`spans` are of whole files: leave out {next(iter(option))}"):
        captioner("any.wav", spans=True, **option)


def test_equal_neighbours_are_one_span():
    def span(start, end, text, kind="music", score=-1.0):
        return {"start": start, "end": end, "kind": kind, "caption": text, "score": score}

    spans = [span(0, 5, "a", score=-2.0), span(5, 20, "a"), span(20, 22, None, "silence"), span(22, 30, "a")]
    merged = merge_equal([*spans, span(30, 40, "b")])
    assert merged == [span(0, 20, "a"), spans[2], spans[3], span(30, 40, "b")]


def test_a_long_file_takes_no_more_memory_than_a_short_one(captioner, tmp_path):
    peaks = []
    for repeats in (3, 9):
        soundfile.write(tmp_path / "long.wav", np.tile(melody(20.0, 220, 0), repeats), RATE)
        tracemalloc.start()
        try:
            captioner(str(tmp_path / "long.wav"), spans=True, batch_size=2)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1e6  # the other 120 s would take 23 MB


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_spans_of_the_pipeline(command, captioner, tmp_path):
    status, out, err = command("track.wav", "broken.mp3", "--spans", "--output", "OUT/spans.jsonl")
    assert status == 1 and not out and "broken.mp3: unreadable" in err and "1 of 2 files could not be captioned" in err
    rows = read_lines(tmp_path / "spans.jsonl")
    assert [row["path"] for row in rows] == ["track.wav"] * 5 and {row["duration"] for row in rows} == {70.0}
    assert len(read_spans(tmp_path / "spans.jsonl")) == 5
    for row, span in zip(rows, captioner("track.wav", spans=True), strict=True):
        assert {name: row[name] for name in ("start", "end", "kind", "caption", "alternatives")} == {
            name: span[name] for name in ("start", "end", "kind", "caption", "alternatives")
        }
        assert row["score"] == (span["score"] and pytest.approx(span["score"], abs=1e-3))
        assert row["checkpoint"]["name"] == "outputs/demo" and row["settings"]["hop"] == 3.1
    status, out, _ = command("track.wav", "--spans")
    assert status == 0 and out.splitlines()[0] == "0:00.0 - 0:04.0\t[silence]"
    assert out.splitlines()[-1] == f"{show({'spans': rows})[-1]}"


def test_spans_that_hold_are_not_made_again(command, tmp_path, monkeypatch):
    options = ["track.wav", "--spans", "--output", "OUT/spans.jsonl", "--existing", "skip"]
    command(*options)
    before = (tmp_path / "spans.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Captioner, "spans", lambda *args: pytest.fail("made again"))
        status, _, err = command(*options)
    assert status == 0 and "1 with a caption in" in err and (tmp_path / "spans.jsonl").read_bytes() == before
    _, _, err = command(*options, "--hop", "4.2")
    assert "1 again, because" in err
    assert {row["settings"]["hop"] for row in read_lines(tmp_path / "spans.jsonl")} == {4.2}


def test_an_interrupted_run_resumes_with_the_next_file(command, place, tmp_path, monkeypatch):
    write_track(place / "other.wav")
    options = ["track.wav", "other.wav", "--spans", "--output", "OUT/spans.jsonl"]
    find, calls = spans_rgmc.find_spans, []

    def interrupted(captioner, path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find(captioner, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("captions.captioner.find_spans", interrupted)
        assert command(*options)[0] == 130
    with monkeypatch.context() as patch:
        patch.setattr(
            "captions.captioner.find_spans", lambda *args, **kwargs: calls.append(args[1]) or find(*args, **kwargs)
        )
        status, _, err = command(*options)
    assert status == 0 and "1 captioned by an interrupted run" in err and {*calls} == {"track.wav", "other.wav"}
    assert calls[2:] == calls[1:2]
    assert [row["path"] for row in read_lines(tmp_path / "spans.jsonl")] == ["track.wav"] * 5 + ["other.wav"] * 5
    assert [path.name for path in tmp_path.iterdir()] == ["spans.jsonl"]


def test_one_command_makes_subtitles_without_a_cue_in_silence_and_noise(command, tmp_path):
    status, out, _ = command("track.wav", "--format", "vtt", "--profile", "netflix", "--subtitle_dir", "OUT")
    assert status == 0 and out == f"{tmp_path / 'track.vtt'}\n"
    cues = [cue for cue in read_subtitles(tmp_path / "track.vtt").cues if "music stops" not in " ".join(cue.lines)]
    times = [(cue.start / 1000, cue.end / 1000) for cue in cues]
    assert len(times) == 2 and all(
        (4.0 <= start and end <= 24.03) or (start >= 28.27 and end <= 50.6) for start, end in times
    )


def test_the_checkpoint_says_below_which_score_a_cue_is_only_music(command, captioner, place, tmp_path):
    config = place / "outputs" / "demo" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"score_threshold": -0.001}))
    try:
        _, _, err = command("track.wav", "--format", "vtt", "--subtitle_dir", "OUT", "--output", "OUT/spans.jsonl")
        assert "2 only [music], because the score is below the threshold" in err
        assert {row["settings"]["score_threshold"] for row in read_lines(tmp_path / "spans.jsonl")} == {-0.001}
        option = ["--score_threshold", "-100", "--existing", "overwrite"]
        _, _, err = command("--render", tmp_path / "spans.jsonl", "--subtitle_dir", "OUT", *option)
        assert "below the threshold" not in err
    finally:
        config.write_text(before)


def test_subtitles_that_exist_are_refused_before_the_model_runs(command, tmp_path, monkeypatch):
    (tmp_path / "track.vtt").write_text("WEBVTT")
    monkeypatch.setattr(Captioner, "spans", lambda *args: pytest.fail("the model runs"))
    status, _, err = command("track.wav", "--format", "vtt", "--subtitle_dir", "OUT")
    assert status == 2 and "track.vtt exists: --existing overwrite replaces it" in err


@pytest.mark.parametrize("existing", ["error", "append"])
def test_a_copied_film_that_exists_is_found_before_the_model_runs(command, tmp_path, monkeypatch, existing):
    (tmp_path / "film.mp4").touch()
    (tmp_path / "film.captioned.mp4").touch()
    monkeypatch.setattr(Captioner, "spans", lambda *args: pytest.fail("the model runs"))
    status, _, err = command("OUT/film.mp4", "--embed", "--existing", existing)
    assert status == 2 and "film.captioned.mp4 exists: --existing overwrite replaces it" in err


def test_skip_leaves_films_that_have_their_subtitles_alone(command, place, tmp_path, monkeypatch):
    write_film(tmp_path / "film.mp4", soxr.resample(melody(8, 110, 1), RATE, 48_000))
    words = ["OUT/film.mp4", "--format", "vtt", "--embed", "--existing", "skip"]
    assert command(*words)[0] == 0
    first = (tmp_path / "film.captioned.mp4").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(Captioner, "spans", lambda *args: pytest.fail("the model runs"))
        status, out, err = command(*words)
    assert (status, out) == (0, "") and "0 files to caption" in err and "1 with subtitles already" in err
    (tmp_path / "film.vtt").unlink()
    status, out, _ = command(*words)
    assert status == 0 and out.splitlines() == [str(tmp_path / f"film.{name}") for name in ("vtt", "captioned.mp4")]
    assert (tmp_path / "film.captioned.mp4").stat().st_mtime_ns == first


def test_wrong_options_are_refused_before_anything_is_captioned(command, tmp_path):
    for words, problem in {
        ("--hop", "5"): "hop 5 is a multiple of 2.5 s",
        ("--output", "OUT/spans.csv"): "expected a file that ends in .jsonl",
        ("--start", "3"): "--start is for one caption a file: leave it out",
        ("--where", "whole"): "--where is for one caption a file",
        ("--music_spans", "nothing.csv"): "--music_spans nothing.csv does not exist",
        ("--music_detector", "json"): "expected module:function",
        ("--music_detector", "json:nothing", "--output", "OUT/spans.jsonl"): "json has no function nothing",
    }.items():
        status, _, err = command("track.wav", "--spans", *words)
        assert status == 2 and problem in err, err
    assert not [*tmp_path.iterdir()]


# -- music and other sound ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_what_a_user_says_is_no_music_is_other(command, tmp_path, ending):
    rows = [{"path": "track.wav", "start": 2.0, "end": 26.0}, {"path": "elsewhere.wav", "start": 30, "end": 60}]
    file = tmp_path / f"music.{ending}"
    if ending == "json":
        file.write_text(json.dumps(rows))
    else:
        with file.open("w", newline="") as table:
            writer = csv.DictWriter(table, ["path", "start", "end"])
            writer.writeheader()
            writer.writerows(rows)
    assert command("track.wav", "--spans", "--music_spans", file, "--output", "OUT/spans.jsonl")[0] == 0
    found = [(row["kind"], row["end"]) for row in read_lines(tmp_path / "spans.jsonl")]
    assert [kind for kind, _ in found] == ["silence", "music", "silence", "other"]
    assert [end for _, end in found] == pytest.approx([4.0, 24.0, 28.3, 70.0], abs=0.021)


def test_wrong_music_spans_name_the_row(tmp_path):
    file = tmp_path / "music.csv"
    for text, problem in {
        "start,end\n0,5\n9,3\n": "row 2: from 9 to 3 s; expected 0 <= start < end",
        "from,to\n0,5\n": "has no times; expected the columns start and end",
        "start,end\nnan,5\n": "from nan to 5",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=problem):
            read_music_spans(str(file), ["a.wav"])
    file.write_text("start,end\n0,5\n")
    assert read_music_spans(str(file), ["a.wav"]) == {"a.wav": [(0.0, 5.0)]}
    for text in ("start,end\n0,5\n", "start,end,path\n0,5,\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match="no path, but there are 2 files"):
            read_music_spans(str(file), ["a.wav", "b.wav"])
    (tmp_path / "music.json").write_text('[{"start": 0, "end": 5, "path": 1}]')
    with pytest.raises(ValueError, match="row 1: path is 1; expected text"):
        read_music_spans(str(tmp_path / "music.json"), ["a.wav"])


def test_spans_of_a_file_are_not_appended_twice(tmp_path):
    whole = Span(path="a.wav", duration=5, start=0, end=5, kind="silence", settings={"key": "1"})
    write_spans(tmp_path / "spans.jsonl", [whole])
    assert SpanLedger({"b.wav": "2"}, tmp_path / "spans.jsonl", "append").todo == ["b.wav"]
    with pytest.raises(FileExistsError, match=r"holds spans of a\.wav, and a file of spans has each file once"):
        SpanLedger({"b.wav": "2", "a.wav": "1"}, tmp_path / "spans.jsonl", "append")


def test_a_detector_hears_the_file_and_says_where_music_is(command, place, tmp_path, monkeypatch):
    (tmp_path / "detector.py").write_text(
        "def loud(blocks, sampling_rate):\n"
        "    assert sampling_rate == 48_000\n"
        "    seconds = sum(len(block) for block in blocks) / sampling_rate\n"
        "    return [(0.0, seconds - 20)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_detector("detector:loud")(iter([np.zeros(48_000 * 30)]), 48_000) == [(0.0, 10.0)]
    _, out, _ = command("track.wav", "--spans", "--music_detector", "detector:loud")
    assert out.splitlines()[-1] == "0:50.0 - 1:10.0\t[other]"
