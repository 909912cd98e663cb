"""What the music-captioning pipeline promises: any kind of audio, batches that change nothing, candidates, scores."""

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from helpers import CAPTIONS, MUSICAL_TEXT, write_tone
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from audio_rgmc import AudioError
from captions_rgmc import NORMALIZATIONS, find_spellings, normalize_caption, present_caption
from hearing_rgmc import window_starts
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    return [str(write_tone(folder / f"{row}.wav", 110 * 2 ** (row / 3))) for row in range(5)]


@pytest.fixture
def make_captioner(make_model, processor, files):
    """Makes a pipeline; with the datastore, each file is its own nearest neighbour."""

    def make(with_datastore=True, conditioning="audio+candidate", **options):
        model = make_model(conditioning=conditioning, max_new_tokens=12)
        for weight in model.text_model.parameters():  # so that captions differ
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.5)
        model.generation_config.eos_token_id = [0, *range(270, 290)]  # and have different lengths
        if with_datastore:
            with torch.no_grad():
                embeddings = model.embed_audio(processor(audio=files)["input_features"]).numpy()
            captions = CAPTIONS[: len(files)]
            tokens = [processor.encode_candidate(caption) for caption in captions]
            ids = [f"song-{row}" for row in range(len(files))]
            licenses = ["CC-BY-4.0", *[None] * (len(files) - 1)]
            rows = Dataset.from_dict({"id": ids, "caption": captions, "input_ids": tokens, "license": licenses})
            model.set_datastore(CaptionDatastore(rows, embeddings, model.encoder_fingerprint()))
        return MusicCaptioningPipeline(model=model, processor=processor, device="cpu", **options)

    return make


def test_transformers_makes_the_pipeline_of_a_model_and_its_processor(make_captioner, files):
    captioner = make_captioner()
    by_name = pipeline("music-captioning", model=captioner.model, processor=captioner.processor, device="cpu")
    assert by_name(files) == captioner(files)


def test_the_pipeline_says_what_the_model_says_and_what_it_was_shown(make_captioner, files):
    captioner = make_captioner()
    found = captioner(files)
    inputs = captioner.processor(audio=files)
    said = captioner.model.generate(**inputs, return_dict_in_generate=True, output_scores=True)
    captions = captioner.processor.batch_decode(said.sequences, skip_special_tokens=True)
    assert [clip["caption"] for clip in found] == [present_caption(caption, {}) for caption in captions]
    assert len({*captions}) > 1
    lengths = {(tokens != captioner.processor.tokenizer.pad_token_id).sum().item() for tokens in said.sequences}
    assert len(lengths) > 1  # scores include the end token but no padding
    assert [clip["score"] for clip in found] == pytest.approx(said.sequences_scores.tolist(), abs=1e-4)
    for row, clip in enumerate(found):
        (candidate,) = clip["candidates"]
        assert (candidate["id"], candidate["text"]) == (f"song-{row}", CAPTIONS[row])
        assert candidate["similarity"] == pytest.approx(1, abs=1e-5)
        assert (candidate["source"], candidate["license"]) == (None, None if row else "CC-BY-4.0")
        assert (clip["path"], clip["duration"], clip["start"]) == (files[row], 10, 0)
        assert (clip["flags"], clip["alternatives"], clip["error"]) == ([], [], None)


@pytest.mark.parametrize("candidates", [None, ["sad", ["a happy waltz", CAPTIONS[5]], [], CAPTIONS[0], "flute"]])
def test_batches_change_nothing(make_captioner, files, candidates):
    captioner = make_captioner()
    alone = [
        captioner(file, candidates=None if candidates is None else candidates[row]) for row, file in enumerate(files)
    ]
    for batch_size in (2, 5):
        together = captioner(files, candidates=candidates, batch_size=batch_size)
        for one, other in zip(alone, together, strict=True):
            assert one["caption"] == other["caption"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert [entry["text"] for entry in one["candidates"]] == [entry["text"] for entry in other["candidates"]]


def test_every_kind_of_input_is_captioned_alike(make_captioner, files):
    captioner = make_captioner()
    expected = captioner(files[0])["caption"]
    content = open(files[0], "rb").read()
    waveform, rate = soundfile.read(files[0], dtype="float32")
    kinds = [
        content,
        {"path": files[0], "bytes": None},
        {"path": None, "bytes": content},
        {"raw": waveform, "sampling_rate": rate},
        {"array": waveform, "sampling_rate": rate, "path": "elsewhere.wav"},
    ]
    assert [clip["caption"] for clip in captioner(kinds, batch_size=5)] == [expected] * 5
    for array in (waveform, np.stack([waveform, waveform]), torch.from_numpy(waveform)):
        assert captioner(array, sampling_rate=rate)["caption"] == expected
    assert captioner((files[0],))[0]["caption"] == expected
    assert captioner([]) == []


def test_datasets_and_generators_are_captioned_as_they_come(make_captioner, files):
    captioner = make_captioner()
    expected = [clip["caption"] for clip in captioner(files)]
    rows = Dataset.from_dict({"audio": files})
    for clips in (KeyDataset(rows, "audio"), rows["audio"], (file for file in files), iter(files)):
        found = captioner(clips, batch_size=2)
        assert not isinstance(found, list)
        assert [clip["caption"] for clip in found] == expected
    found = captioner(KeyDataset(rows, "audio"), candidates=(caption for caption in CAPTIONS[:5]))
    assert [clip["candidates"][0]["text"] for clip in found] == CAPTIONS[:5]


def test_given_candidates_stand_in_for_the_retrieved_ones(make_captioner, files):
    captioner = make_captioner()
    clip = captioner(files[0], candidates="Sad piano!")
    inputs = captioner.processor(audio=files[0], candidates=["Sad piano!"])
    caption = captioner.processor.batch_decode(captioner.model.generate(**inputs), skip_special_tokens=True)[0]
    assert clip["caption"] == present_caption(caption, {}) != captioner(files[0])["caption"]
    unknown = dict.fromkeys(("id", "similarity", "source", "license"))
    assert clip["candidates"] == [{"text": "Sad piano!", **unknown}]
    assert make_captioner(with_datastore=False)(files[0])["candidates"] == []


def test_arguments_of_generate_are_those_of_the_call_before_those_of_the_pipeline(make_captioner, files):
    captioner = make_captioner(num_beams=1, max_new_tokens=3)

    def generated(**options):
        tokens = captioner.model.generate(**captioner.processor(audio=files[0]), **options)
        return present_caption(captioner.processor.batch_decode(tokens, skip_special_tokens=True)[0], {})

    assert captioner(files[0])["caption"] == generated(num_beams=1, max_new_tokens=3)
    call = captioner(files[0], generate_kwargs={"max_new_tokens": 7}, num_beams=2)["caption"]
    assert call == generated(num_beams=2, max_new_tokens=7) != generated(num_beams=1, max_new_tokens=3)


def test_the_score_is_the_mean_log_probability_of_greedy_captions_too(make_captioner, files):
    captioner = make_captioner()
    score = captioner(files[0], num_beams=1, no_repeat_ngram_size=0)["score"]
    options = {"num_beams": 1, "no_repeat_ngram_size": 0, "return_dict_in_generate": True, "output_scores": True}
    said = captioner.model.generate(**captioner.processor(audio=files[0]), **options)
    steps = captioner.model.compute_transition_scores(said.sequences, said.scores, normalize_logits=True)
    assert score == pytest.approx(steps.mean().item(), abs=1e-5)


def test_wrong_calls_say_what_is_expected(make_captioner, files):
    captioner = make_captioner()
    with pytest.raises(AudioError, match="download a URL first"):
        captioner("https://example.org/song.mp3")
    with pytest.raises(AudioError, match="sampling_rate=<Hz>"):
        captioner(np.zeros(8000, np.float32))
    with pytest.raises(ValueError, match="2 clips but candidates for 1: they must match 1:1"):
        captioner(files[:2], candidates="one for both")
    for wrong in (5, ["sad", None], [["sad"]]):
        with pytest.raises(ValueError, match=r"a caption or a list of captions, got (5|\['sad', None|\[\['sad)"):
            captioner(files[0], candidates=wrong)
    with pytest.raises(ValueError, match="num_bems"):
        captioner(files[0], num_bems=2)
    with pytest.raises(ValueError, match="expected 'raise' or 'return'"):
        captioner(files[0], errors="ignore")
    with pytest.raises(ValueError, match="'middle', 'whole', or a number of windows"):
        captioner(files[0], where="end")
    with pytest.raises(ValueError, match="give one of the two"):
        captioner(files[0], where=2, start=1.0)
    with pytest.raises(ValueError, match="audio alone"):
        make_captioner(conditioning="audio")(files[0], candidates="sad piano")


def test_a_saved_pipeline_is_a_whole_checkpoint(make_captioner, files, tmp_path):
    captioner = make_captioner()
    captioner.save_pretrained(tmp_path)
    model, processor = RGMCModel.from_pretrained(tmp_path), RGMCProcessor.from_pretrained(tmp_path)
    again = MusicCaptioningPipeline(model=model, processor=processor, device="cpu")
    one, other = again(files[0]), captioner(files[0])
    assert one["caption"] == other["caption"]
    for found, wanted in zip(one["candidates"], other["candidates"], strict=True):
        assert found == {**wanted, "similarity": pytest.approx(wanted["similarity"])}
    assert (tmp_path / "pipeline_rgmc.py").exists()
    assert "`datastore/` holds 5 captions" in (tmp_path / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text("my own", encoding="utf-8")
    captioner.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "my own"


# -- what is heard -----------------------------------------------------------------------------------------------------


def test_a_bad_clip_among_several_costs_only_itself(make_captioner, files, tmp_path):
    captioner = make_captioner()
    (tmp_path / "text.mp3").write_text("no music")
    clips = [files[0], str(tmp_path / "text.mp3"), str(tmp_path / "gone.wav"), files[1]]
    expected = [captioner(files[0])["caption"], None, None, captioner(files[1])["caption"]]
    for batch_size in (1, 2, 4):
        found = captioner(clips, batch_size=batch_size)
        assert [clip["caption"] for clip in found] == expected
        assert [clip["path"] for clip in found] == clips
        assert "unreadable" in found[1]["error"] and "no such file" in found[2]["error"]
        assert found[0]["error"] is found[3]["error"] is None
    with pytest.raises(AudioError, match="no such file"):
        captioner(clips[2])
    with pytest.raises(AudioError, match="unreadable"):
        captioner(clips, errors="raise")
    assert "unreadable" in captioner(clips[1], errors="return")["error"]
    assert "unreadable" in make_captioner(errors="return")(clips[1])["error"]


def test_silence_has_a_flag_and_no_caption(make_captioner, files, tmp_path):
    captioner = make_captioner()
    soundfile.write(tmp_path / "silent.wav", np.zeros(96_000), 8_000)
    loud, silent = captioner([files[0], str(tmp_path / "silent.wav")], batch_size=2)
    assert loud["caption"] == captioner(files[0])["caption"]
    assert silent["flags"] == ["silence"] and silent["duration"] == 12 and silent["error"] is None
    assert silent["caption"] is silent["score"] is silent["start"] is None and silent["candidates"] == []


def test_steady_noise_has_a_flag_and_no_caption(make_captioner, files, tmp_path):
    captioner = make_captioner()
    noise = 0.1 * np.random.default_rng(0).standard_normal(96_000)
    soundfile.write(tmp_path / "noise.wav", noise, 8_000)
    music, noisy = captioner([files[0], str(tmp_path / "noise.wav")], batch_size=2)
    assert music["caption"] == captioner(files[0])["caption"] and music["flags"] == []
    assert noisy["flags"] == ["no music"] and noisy["error"] is None
    assert noisy["caption"] is noisy["score"] is noisy["start"] is None and noisy["candidates"] == []


def test_a_file_without_exact_times_has_a_flag(make_captioner, files, tmp_path):
    samples = np.tile(soundfile.read(files[0])[0], 3)
    for ending, flags in (("nist", ["decoded from its start"]), ("wav", [])):
        soundfile.write(tmp_path / f"long.{ending}", samples, 8_000)
        assert make_captioner()(str(tmp_path / f"long.{ending}"))["flags"] == flags


def test_start_and_where_choose_what_is_heard(make_captioner, files, tmp_path):
    """A file of three parts: A A B, each 10 s; most of its windows sound like A."""
    captioner = make_captioner()
    parts = [soundfile.read(files[number])[0] for number in (0, 0, 2)]
    path = str(tmp_path / "three.wav")
    soundfile.write(path, np.concatenate(parts), 8_000)
    a, b = captioner(files[0])["caption"], captioner(files[2])["caption"]
    assert a != b
    at_the_end = captioner(path, start=20.0)
    assert at_the_end["caption"] == b and (at_the_end["start"], at_the_end["duration"]) == (20, 30)
    for where in ("whole", 3):
        for batch_size in (1, 2):
            found = captioner([path, files[2]], where=where, batch_size=batch_size)
            assert [clip["caption"] for clip in found] == [a, b] and found[0]["start"] == 0
    assert captioner(path, where=1)["start"] == captioner(path)["start"] == 10
    array, rate = soundfile.read(path)
    assert captioner(array, sampling_rate=rate, start=20.0)["caption"] == b


def test_whole_leaves_no_second_out():
    for duration in (0.5, 9.9, 10.0, 10.1, 25.0, 30.0, 147.3):
        starts = window_starts(duration, "whole", 10.0)
        ends = [0.0, *(start + 10.0 for start in starts)]
        assert all(start <= end + 1e-9 for start, end in zip(starts, ends)) and ends[-1] >= duration
        assert len(starts) == max(1, -(-duration // 10)) and starts[-1] <= max(duration - 10, 0)
    assert window_starts(60.0, 3, 10.0) == [5, 25, 45]


def test_alternatives_are_the_beams_of_one_search(make_captioner, files):
    captioner = make_captioner()
    alone = captioner(files[0])
    for clip in captioner(files[:2], num_return_sequences=3, batch_size=2)[:1]:
        assert len(clip["alternatives"]) == 3 and len({other["caption"] for other in clip["alternatives"]}) > 1
        assert clip["alternatives"][0] == {"caption": clip["caption"], "score": clip["score"]}
        assert clip["caption"] == alone["caption"] and clip["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert clip["candidates"][0]["id"] == "song-0"
    given = captioner(files[0], candidates="sad piano", num_return_sequences=2)
    assert len(given["alternatives"]) == 2


# -- wording -----------------------------------------------------------------------------------------------------------


def test_captions_and_candidates_have_the_wording_of_the_corpus(make_captioner, files):
    """The datastore's captions come back as they were written, and generated words are spelled as there."""
    captioner = make_captioner()
    originals = [
        "A late-night EDM tune, laid-back.",
        "Late-night R&B; laid-back!",
        "An EDM track in 4/4",
        "Jazz.",
        "EDM?",
    ]
    songs = [{"audio": file, "id": str(row), "caption": originals[row]} for row, file in enumerate(files)]
    datastore = CaptionDatastore.build(captioner.model, songs, captioner.processor)
    assert datastore.rows["caption"][0] == "a latenight edm tune laidback"
    captioner.model.set_datastore(datastore)
    for row, clip in enumerate(captioner(files)):
        assert clip["candidates"][0]["text"] == originals[row]
    captioner.processor.batch_decode = lambda *args, **kwargs: ["latenight edm and a laidback rb groove in 44"]
    assert captioner(files[0])["caption"] == "Late-night EDM and a laid-back R&B groove in 4/4."


@given(st.lists(MUSICAL_TEXT, max_size=6), MUSICAL_TEXT, st.sampled_from(NORMALIZATIONS))
@settings(deadline=None)
def test_a_presented_caption_normalises_to_the_words_that_were_said(originals, text, rule):
    caption = normalize_caption(text, rule)
    spellings = find_spellings([*originals, text], rule)
    assert normalize_caption(present_caption(caption, spellings, rule), rule) == caption


def test_spellings_are_those_of_most_captions():
    captions = [
        "Mid-range drums in C#.",
        "The mid-range, not mid range",
        "Drums! Funk (C) of the 80's",
        "midi; MIDI; MIDI",
    ]
    paper, music = (find_spellings(captions, rule) for rule in NORMALIZATIONS)
    assert paper == {("midi",): "MIDI", ("80s",): "80's", ("midrange",): "mid-range"}
    assert music[("mid", "range")] == "mid-range" and music[("c#",)] == "C#" and ("80's",) not in music
    assert ("drums",) not in paper and ("funk",) not in paper  # capitals of a sentence's start
