"""What an explanation promises: shares that add up, absences as in training, controls, words, files that hold it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import CAPTIONS, read_lines, saved_pipeline, vary_captions, write_tone
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution_rgmc import COALITIONS, find_copied, split_words, untrained_coalitions
from captions.explaining import explain_lines, explain_note
from clips.batches import CandidateSampling, TeacherForcingCollator
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from reporting.plots import plot_explanation
from retrieval_rgmc import CaptionDatastore

CLIPS = 4


@pytest.fixture
def songs(make_model, processor, log_mels):
    """Makes a lively model with a datastore of 8 songs, and log-mels of four other clips."""

    def make(**fields) -> tuple[RGMCModel, torch.Tensor]:
        model = make_model(max_new_tokens=12, **fields)
        vary_captions(model)
        with torch.no_grad():
            for weight in model.text_model.parameters():
                weight *= 0.5  # else rounding alone changes a log-probability of -10 by 1e-5
            embeddings = model.embed_audio(log_mels(len(CAPTIONS))).numpy()
        tokens = [processor.encode_candidate(caption) for caption in CAPTIONS]
        rows = {"id": [str(row) for row in range(len(CAPTIONS))], "caption": CAPTIONS, "input_ids": tokens}
        model.set_datastore(CaptionDatastore(Dataset.from_dict(rows), embeddings, model.encoder_fingerprint()))
        return model, log_mels(CLIPS, seed=1)

    return make


def same(one, other, within: float = 1e-5):
    assert one.tokens == other.tokens and one.ended == other.ended and one.candidates == other.candidates
    for mine, theirs in ((one.log_probs, other.log_probs), (one.controls, other.controls)):
        assert mine.keys() == theirs.keys()
        assert all(np.allclose(mine[name], theirs[name], atol=within, rtol=0) for name in mine)


# -- the shares -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["gpt2", "llama"])
def test_shares_add_up_to_what_both_sources_change(songs, text):
    model, log_mels = songs(text=text)
    said = model.generate(log_mels, return_dict_in_generate=True, output_scores=True)
    found = model.explain(log_mels)
    for explanation, score in zip(found, said.sequences_scores.tolist()):
        gained = explanation.log_probs["both"] - explanation.log_probs["nothing"]
        assert explanation.audio + explanation.candidate == pytest.approx(gained, abs=1e-5)
        assert explanation.log_probs["both"].mean() == pytest.approx(score, abs=1e-4)
        assert explanation.log_probs.keys() == {*COALITIONS}
        assert all(len(values) == len(explanation.tokens) for values in explanation.log_probs.values())
    lengths = {len(explanation.tokens) for explanation in found}
    assert len(lengths) > 1 and any(explanation.ended for explanation in found)
    assert min(np.abs(explanation.audio).max() for explanation in found) > 1e-3
    assert min(np.abs(explanation.candidate).max() for explanation in found) > 1e-3


@pytest.mark.parametrize(
    "fields", [{}, {"num_candidates": 2}, {"conditioning": "audio"}, {"conditioning": "candidate"}]
)
def test_a_batch_is_explained_as_one_clip_after_the_other(songs, fields):
    model, log_mels = songs(**fields)
    together = model.explain(log_mels, random_songs=2)
    for row, explanation in enumerate(together):
        (alone,) = model.explain(log_mels[row : row + 1], random_songs=2)
        same(explanation, alone)
        assert len(explanation.candidates) == (model.config.num_candidates if model.config.uses_candidate else 0)


def test_captions_and_candidates_can_be_given(songs, processor):
    model, log_mels = songs()
    prompt = processor(candidates=[CAPTIONS[:1], ["solo flute", CAPTIONS[1]], [], "warm organ"])
    tokens = model.generate(log_mels, **prompt)
    for one, other in zip(model.explain(log_mels, **prompt), model.explain(log_mels, tokens=tokens, **prompt)):
        same(one, other)
    found = model.explain(log_mels, **prompt)
    assert [len(explanation.candidates) for explanation in found] == [1, 2, 0, 1]
    assert found[2].candidate == pytest.approx(0, abs=1e-6)  # there is none
    with pytest.raises(ValueError, match="one caption per clip: leave out num_return_sequences"):
        model.explain(log_mels, num_return_sequences=2)


def test_a_consensus_is_explained_by_the_song_that_it_was_written_from(songs, processor):
    model, log_mels = songs()
    options = {"selection": "consensus", "tokenizer": processor.tokenizer}
    embeds = model.embed_audio(log_mels)
    tokens, neighbors = model.generate(audio_embeds=embeds, **options, return_neighbors=True)
    shown = [own[number] for own, number in zip(model.datastore.search(embeds, 5).captions, neighbors)]
    assert any(neighbors)  # not the nearest of each clip
    captioner = MusicCaptioningPipeline(model=model, processor=processor, device="cpu")
    said = captioner._caption(log_mels[:1], {}, True, options)
    for row, explanation in enumerate(model.explain(log_mels, **options)):
        assert explanation.to_dict(processor.tokenizer)["candidates"] == [shown[row]]
        of_row = {"audio_embeds": embeds[row : row + 1], "tokens": tokens[row : row + 1]}
        same(explanation, model.explain(**of_row, neighbors=[neighbors[row]])[0])
    assert said[0]["explanation"]["candidates"] == [shown[0]]


# -- absences ---------------------------------------------------------------------------------------------------------


def test_a_source_is_absent_as_in_training(songs, processor):
    model, log_mels = songs()
    explained = model.explain(log_mels)
    captions = [explanation.tokens for explanation in explained]
    candidates = [[(tokens, 1.0) for tokens in explanation.candidates] for explanation in explained]
    features = SimpleNamespace(read=lambda rows: log_mels[rows])
    for coalition, dropped in {
        "both": {},
        "audio": {"candidate_dropout": 1.0},
        "candidate": {"prefix_dropout": 1.0},
        "nothing": {"both_dropout": 1.0},
    }.items():
        sampling = CandidateSampling(1, (0, 0), **dropped)
        collator = TeacherForcingCollator(
            features, captions, candidates, processor, sampling=sampling, caption_candidates=captions
        )
        for row, explanation in enumerate(explained):
            batch = collator([row])
            with torch.no_grad():
                loss = model(**batch, num_items_in_batch=1).loss.item()
            assert -explanation.log_probs[coalition].sum() == pytest.approx(loss, abs=1e-3, rel=1e-5), coalition


@pytest.mark.parametrize(
    "fields, untrained",
    [
        ({}, ["nothing", "audio", "candidate"]),
        ({"candidate_dropout": 0.1}, ["nothing", "candidate"]),
        ({"candidate_dropout": 0.1, "prefix_dropout": 0.1}, ["nothing"]),
        ({"candidate_dropout": 0.1, "prefix_dropout": 0.1, "both_dropout": 0.1}, []),
        ({"conditioning": "audio"}, ["nothing", "candidate"]),
        ({"conditioning": "candidate"}, ["nothing", "audio"]),
    ],
)
def test_an_explanation_says_which_absences_the_model_was_not_trained_with(songs, fields, untrained):
    model, log_mels = songs(**fields)
    assert untrained_coalitions(model.config) == untrained
    assert model.explain(log_mels[:1])[0].out_of_distribution == untrained


# -- controls ---------------------------------------------------------------------------------------------------------


def test_a_mapper_of_zeros_leaves_the_sound_nothing(songs):
    model, log_mels = songs()
    with torch.no_grad():
        model.mapper.linear2.weight.zero_()
        model.mapper.linear2.bias.zero_()
    for explanation in model.explain(log_mels):
        assert explanation.audio == pytest.approx(0, abs=1e-6)
        assert np.abs(explanation.candidate).max() > 1e-3


def test_a_mapper_that_ignores_the_sound_gives_it_no_more_than_any_sound(songs):
    model, log_mels = songs()
    with torch.no_grad():
        model.mapper.linear2.weight.zero_()  # and not its bias: the prefix is the same for all sounds
    for explanation in model.explain(log_mels):
        assert np.abs(explanation.audio).max() > 1e-3  # that there is a prefix at all changes the decoder
        assert explanation.audio == pytest.approx(explanation.controls["audio"], abs=1e-5)


def test_a_decoder_that_ignores_the_candidate_leaves_it_nothing(songs, monkeypatch):
    model, log_mels = songs()
    tokens = model.generate(log_mels)
    join = model.join_inputs

    def blind(audio_embeds, input_ids, attention_mask, prefix_mask=None):
        seen = attention_mask.clone()
        seen[:, : -tokens.shape[1] - 1] = 0  # all before the last separator and the caption
        return join(audio_embeds, input_ids, seen, prefix_mask)

    monkeypatch.setattr(model, "join_inputs", blind)
    for explanation in model.explain(log_mels, tokens=tokens):
        assert explanation.candidate == pytest.approx(0, abs=1e-6)
        assert explanation.controls["candidate"] == pytest.approx(0, abs=1e-6)
        assert np.abs(explanation.audio).max() > 1e-3


@pytest.mark.parametrize("conditioning, other", [("audio", "candidate"), ("candidate", "audio")])
def test_a_model_of_one_source_leaves_the_other_nothing(songs, conditioning, other):
    model, log_mels = songs(conditioning=conditioning)
    for explanation in model.explain(log_mels):
        assert getattr(explanation, other) == pytest.approx(0, abs=1e-6)
        assert np.abs(getattr(explanation, conditioning)).max() > 1e-3


def test_controls_are_the_shares_of_random_songs(songs, processor):
    model, log_mels = songs()
    tokens = model.generate(log_mels)
    found = model.explain(log_mels, tokens=tokens, seed=3)
    order = np.random.default_rng(3).permutation(len(CAPTIONS)).tolist()
    own = model.retrieve(model.embed_audio(log_mels))
    for row, explanation in enumerate(found):
        song = next(song for song in order if CAPTIONS[song] not in own.captions[row])
        options = {"tokens": tokens[row : row + 1], "random_songs": 0}
        candidate = processor(candidates=[own.captions[row]])
        sound = torch.from_numpy(model.datastore.read_embeddings(np.array([song])))
        (shuffled,) = model.explain(audio_embeds=sound, **candidate, **options)
        (random,) = model.explain(log_mels[row : row + 1], **processor(candidates=[CAPTIONS[song]]), **options)
        assert explanation.controls["audio"] == pytest.approx(shuffled.audio, abs=1e-5)
        assert explanation.controls["candidate"] == pytest.approx(random.candidate, abs=1e-5)
        assert shuffled.controls == {}


def test_without_other_songs_there_are_no_controls(songs):
    model, log_mels = songs()
    assert all(explanation.controls for explanation in model.explain(log_mels, random_songs=7))
    assert not any(explanation.controls for explanation in model.explain(log_mels, random_songs=0))
    model.datastore.remove([str(row) for row in range(1, 8)])
    assert not any(explanation.controls for explanation in model.explain(log_mels))  # only the candidate itself


# -- words ------------------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_word_are_sums_over_its_tokens(songs, processor):
    model, log_mels = songs()
    for explanation in model.explain(log_mels):
        found = explanation.to_dict(processor.tokenizer)
        said = processor.tokenizer.decode(explanation.tokens, skip_special_tokens=True)
        assert [row["word"] for row in found["words"]] == said.split() + [None] * (explanation.tokens[-1] == 0)
        for source in ("audio", "candidate"):
            total = getattr(explanation, source).sum()
            assert sum(row[source] for row in found["words"]) == pytest.approx(total, abs=1e-9)
        for row in found["words"]:
            gained = row["log_probs"]["both"] - row["log_probs"]["nothing"]
            assert row["audio"] + row["candidate"] == pytest.approx(gained, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab é名😀 ♯'-"), max_size=24))
def test_tokens_belong_to_the_words_that_they_spell(tokenizer, text):
    tokens = tokenizer(text)["input_ids"]
    words, owners = split_words(tokens, tokenizer)
    assert words == (text.split() or [""] * bool(tokens))
    assert len(owners) == len(tokens) and owners == sorted(owners)
    for word in {*owners}:  # a word's tokens hold it, with white space around at most
        spelled = tokenizer.decode([token for token, owner in zip(tokens, owners) if owner == word])
        assert spelled.strip() == words[word]


def test_the_longest_copied_spans_are_found():
    caption = "a sad ballad of piano and soft strings".split()
    candidate = "a slow sad ballad of piano with soft strings and a sad ballad".split()
    assert find_copied(caption, candidate) == [(0, 3, 10), (1, 5, 2), (6, 8, 7)]
    assert find_copied(caption, candidate, least=4) == [(1, 5, 2)]
    assert find_copied(caption, []) == find_copied([], candidate) == []
    assert find_copied(caption, caption) == [(0, 8, 0)]


# -- the pipeline and the command --------------------------------------------------------------------------------------


@pytest.fixture
def captioner(songs, processor):
    return MusicCaptioningPipeline(model=songs()[0], processor=processor, device="cpu")


def test_the_pipeline_explains_the_caption_that_it_returns(captioner, tmp_path):
    files = [str(write_tone(tmp_path / f"{row}.wav", 110 * 2 ** (row / 3))) for row in range(3)]
    plain = captioner(files)
    for path, before in zip(files, plain):
        found = captioner(path, explain=True, num_return_sequences=2)
        explanation = found.pop("explanation")
        assert (found["caption"], found["score"]) == (before["caption"], pytest.approx(before["score"], abs=1e-5))
        assert len(found["alternatives"]) == 2 and "explanation" not in before
        words = " ".join(row["word"] for row in explanation["words"] if row["word"])
        assert captioner.processor.normalize(found["caption"]) == captioner.processor.normalize(words)
    many = captioner(files, explain=True, batch_size=3, where=2)
    assert all(result["explanation"]["words"] for result in many)
    assert captioner(np.zeros(480_000, np.float32), sampling_rate=48_000, explain=True)["explanation"] is None
    with pytest.raises(ValueError, match="leave out explain"):
        captioner(files, spans=True, explain=True)


def test_the_command_prints_and_keeps_explanations(captioner, caption_command, tmp_path):
    for row in range(2):
        write_tone(tmp_path / "music" / f"{row}.wav", 110 * 2 ** (row / 3))
    saved_pipeline(captioner.model, captioner.processor, tmp_path / "outputs" / "demo")
    options = ["music/", "--num_proc", 1, "--output", "rows.jsonl"]
    assert caption_command(*options)[0] == 0
    status, _, err = caption_command(*options, "--explain", "--existing", "skip")
    assert status == 0 and "2 again" in err and "not trained without its sound and without its candidate" in err
    rows = read_lines(tmp_path / "rows.jsonl")
    captions = [captioner(row["path"])["caption"] for row in rows]
    assert [row["caption"] for row in rows] == captions
    for row in rows:
        shares = [share["audio"] + share["candidate"] for share in row["explanation"]["words"]]
        totals = [share["log_probs"]["both"] - share["log_probs"]["nothing"] for share in row["explanation"]["words"]]
        assert shares == pytest.approx(totals, abs=4e-4)  # four digits
    status, out, _ = caption_command("music/0.wav", "--num_proc", 1, "--explain")
    assert status == 0 and out.splitlines() == [captions[0], *explain_lines(rows[0]["explanation"])]
    assert caption_command("music", "--explain", "--output", "rows.csv")[0] == 2
    for name, start in (("one.png", b"\x89PNG"), ("one.svg", b"<?xml")):
        assert caption_command("music/0.wav", "--num_proc", 1, "--explain", "--picture", name)[0] == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    for words, reason in (
        (["music/0.wav", "--picture", "one.png"], "add --explain"),
        (["music/0.wav", "--explain", "--picture", "one.gif"], "--picture one.gif: expected a file that ends in .png"),
        (["music", "--explain", "--picture", "one.png"], "2 files were found: name one"),
    ):
        status, _, err = caption_command(*words)
        assert status == 2 and reason in err
    assert caption_command("music", "--explain", "--spans")[0] == 2


def test_the_table_of_words_marks_what_was_copied():
    words = [
        {
            "word": "sad",
            "audio": 1.0,
            "candidate": -0.5,
            "log_probs": {},
            "controls": {"audio": 0.25, "candidate": 0.0},
        },
        {"word": None, "audio": 0.0, "candidate": 0.126, "log_probs": {}, "controls": {}},
    ]
    copied = [{"text": "sad", "start": 0, "end": 1, "candidate": 0, "candidate_start": 3}]
    explanation = {"words": words, "candidates": ["a sad song"], "copied": copied, "out_of_distribution": []}
    assert [line.split() for line in explain_lines(explanation)] == [
        ["sound", "random", "candidate", "random", "copied"],
        ["sad", "+1.00", "+0.25", "-0.50", "+0.00", "+"],
        ["(end)", "+0.00", "-", "+0.13", "-"],
        ["candidate:", "a", "sad", "song"],
    ]
    assert "out of distribution" not in explain_note(explanation)


def test_a_picture_has_a_bar_for_each_share_and_marks_what_was_copied_and_what_any_song_adds():
    words = [
        {"word": "sad", "audio": 1.0, "candidate": -0.5, "controls": {"audio": 0.25, "candidate": -9.0}},
        {"word": "$x$", "audio": 0.5, "candidate": 2.0, "controls": {"audio": 0.0, "candidate": 0.5}},
        {"word": None, "audio": 0.0, "candidate": 0.0, "controls": {"audio": 9.0, "candidate": 0.0}},
    ]
    copied = [{"text": "sad", "start": 0, "end": 1, "candidate": 0, "candidate_start": 3}]
    axis = plot_explanation({"words": words, "candidates": ["a sad song"], "copied": copied}).axes[0]
    sound, candidate = axis.containers
    assert [bar.get_width() for bar in sound] == [1.0, 0.5, 0.0]
    assert [bar.get_width() for bar in candidate] == [-0.5, 2.0, 0.0]
    labels = [(label.get_text(), label.get_fontweight()) for label in axis.get_yticklabels()]
    assert labels == [("sad", "bold"), (r"\$x\$", "normal"), ("(end)", "normal")]
    marks = [line.get_marker() for line in axis.lines for _ in line.get_xdata()]
    assert [marks.count(mark) for mark in "|<>"] == [4, 1, 1]  # two controls are far outside
    assert axis.get_xlim()[0] > -1 and "a sad song" in axis.get_title(loc="left")
    bare = [{**row, "controls": {}} for row in words]
    axis = plot_explanation({"words": bare, "candidates": [], "copied": []}).axes[0]
    assert axis.get_title(loc="left") == "No candidate"
