"""What the options for the use of candidates promise: off by default, and the same in any batch and process."""

import shutil

import numpy as np
import pandas
import pytest
import torch
from accelerate import Accelerator
from helpers import CAPTIONS, read_lines, run, run_in_two_processes

import train
from clips.batches import Candidate, CandidateSampling, TeacherForcingCollator, augment
from evaluation.captioning import conditioned_on
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore
from training import text_pretraining
from training.arguments import DROPOUTS, TrainingArguments
from training.checkpoints import RobustnessArguments
from training.text_pretraining import SimilarCaptions

POOL = [([1], 0.9), ([2], 0.8), ([3], 0.7), ([4], 0.6)]
RANDOM = [([5], 0.2), ([6], 0.1)]


class Features:
    """Clips whose log-mels tell the row and the frame."""

    def read(self, rows: list[int]) -> torch.Tensor:
        frames = torch.arange(1001.0)[:, None].expand(1001, 64)
        return torch.stack([frames + 2000 * row for row in rows])[:, None]


def draws(count: int = 2000, **shares) -> list[tuple[list[Candidate], bool]]:
    sampling = CandidateSampling(2, (0, 1), **shares)
    return [sampling.draw(row, POOL, [100 + row], RANDOM) for row in range(count)]


def test_candidates_are_drawn_from_the_pool_without_repetition_and_shuffled():
    found = [candidates for candidates, has_prefix in draws() if has_prefix]
    assert len(found) == 2000
    assert all(len(candidates) == 2 and candidates[0] != candidates[1] for candidates in found)
    assert all(candidate in POOL for candidates in found for candidate in candidates)
    pairs = {tuple(tokens[0] for tokens, _ in candidates) for candidates in found}
    assert len(pairs) == 4 * 3  # every pair in every order
    counts = np.bincount([token for candidates in found for (token,), _ in candidates])[1:]
    assert np.allclose(counts / counts.sum(), 0.25, atol=0.03)


def test_each_kind_of_dropout_has_its_probability_and_they_exclude_each_other():
    found = draws(candidate_dropout=0.3, prefix_dropout=0.2, own_candidate=0.4, random_candidate=0.3)
    without, alone = [not candidates for candidates, _ in found], [not has_prefix for _, has_prefix in found]
    assert np.mean(without) == pytest.approx(0.3, abs=0.03)
    assert np.mean(alone) == pytest.approx(0.2, abs=0.03)
    assert not any(both for both in map(all, zip(without, alone)))
    own = [([100 + row], 1.0) in candidates for row, (candidates, _) in enumerate(found) if candidates]
    assert np.mean(own) == pytest.approx(0.4, abs=0.04)
    drawn = [candidates == RANDOM for candidates, _ in found if candidates]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.04)
    assert draws(candidate_dropout=1.0)[0] == ([], True)
    assert draws(prefix_dropout=1.0)[0][1] is False


def test_dropout_of_both_has_its_probability_and_changes_no_other_draw():
    shares = {"candidate_dropout": 0.3, "prefix_dropout": 0.2, "own_candidate": 0.4, "random_candidate": 0.3}
    without, found = draws(**shares), draws(**shares, both_dropout=0.25)
    neither = [draw == ([], False) for draw in found]
    assert np.mean(neither) == pytest.approx(0.25, abs=0.03)
    assert all(one == other or nothing for one, other, nothing in zip(without, found, neither))
    lacking = [np.mean([not draw[part] for draw in found]) for part in (0, 1)]
    assert lacking == pytest.approx([0.3 + 0.25, 0.2 + 0.25], abs=0.03)


def test_a_draw_depends_on_run_epoch_and_row_alone():
    first = [CandidateSampling(1, (0, 1)).draw(row, POOL, [9]) for row in range(50)]
    assert [CandidateSampling(1, (0, 1)).draw(row, POOL, [9]) for row in reversed(range(50))][::-1] == first
    assert [CandidateSampling(1, (0, 2)).draw(row, POOL, [9]) for row in range(50)] != first
    assert [CandidateSampling(1, (1, 1)).draw(row, POOL, [9]) for row in range(50)] != first


def test_a_masked_prefix_is_as_if_the_model_had_none(make_model, log_mels):
    model = make_model()
    ids = torch.tensor([[5, 0, 6, 7, 0], [6, 0, 8, 0, 0]])
    labels = torch.tensor([[-100, -100, 6, 7, 0], [-100, -100, 8, 0, -100]])
    batch = {"input_features": log_mels(2), "input_ids": ids, "labels": labels, "num_items_in_batch": 1}
    with torch.no_grad():
        heard = model(**batch).loss
        masked = model(**batch, prefix_mask=torch.tensor([0, 0])).loss
        with conditioned_on(model, "candidate"):
            alone = model(**{name: part for name, part in batch.items() if name != "input_features"}).loss
        torch.testing.assert_close(masked, alone, atol=1e-5, rtol=1e-5)
        assert abs(heard - masked) > 1e-4
        assert model(**batch, prefix_mask=torch.tensor([1, 1])).loss.equal(heard)


def test_a_batch_has_the_drawn_candidates_and_tells_whose_prefix_is_masked(processor):
    captions = [processor.encode_caption(text) for text in CAPTIONS[:4]]
    candidates = [[([50 + row], 0.5), ([60 + row], 0.9)] for row in range(4)]
    sampling = CandidateSampling(1, (0, 4), prefix_dropout=0.5)
    collator = TeacherForcingCollator(
        Features(),
        captions,
        candidates,
        processor,
        sampling=sampling,
        caption_candidates=[[70 + row] for row in range(4)],
    )
    batch = collator([3, 0, 2, 1])
    for index, row in enumerate([3, 0, 2, 1]):
        ((tokens, _),), has_prefix = sampling.draw(row, candidates[row], [])
        assert batch["input_ids"][index, :2].tolist() == [*tokens, processor.separator_token_id]
        assert batch["prefix_mask"][index].item() == has_prefix
    assert {*batch["prefix_mask"].tolist()} == {0, 1}
    assert "prefix_mask" not in TeacherForcingCollator(Features(), captions, candidates, processor)([0])


def test_augmentation_shifts_a_clip_in_a_circle_and_changes_its_level():
    clips = Features().read([0, 1, 2])
    augmented = augment(clips, [0, 1, 2], (0, 1))
    shifts, gains = set(), set()
    for clip, changed in zip(clips, augmented):
        start = int(changed[0, :, 0].argmin())
        gain = (changed.roll(-start, dims=1) - clip)[0]
        torch.testing.assert_close(gain, gain[:1, :1].expand_as(gain), atol=1e-2, rtol=0)
        assert abs(gain[0, 0]) <= 6
        shifts.add(start)
        gains.add(round(gain[0, 0].item(), 2))
    assert len(shifts) == 3 and len(gains) == 3
    assert augment(clips[1:2], [1], (0, 1)).equal(augmented[1:2])  # whatever the batch
    assert not augment(clips, [0, 1, 2], (0, 2)).equal(augmented)


def test_similar_captions_share_rare_words():
    captions = ["a sad piano", "a sad guitar", "a happy piano", "a tuba", "tuba"]
    found, similarities = SimilarCaptions(captions).nearest([0, 3], 2)
    assert {*found[0].tolist()} == {1, 2}
    assert found[1].tolist()[0] == 4
    assert similarities[0][0] == similarities[0][1]  # each shares one of two words
    assert 0 < similarities[1][1] < similarities[1][0] < 1
    found, _ = SimilarCaptions(captions).nearest([0], 30)
    assert found.shape == (1, 4) and 0 not in found  # all others, and never itself


def test_text_pretraining_teaches_the_decoder_alone_and_before_the_first_step(corpus, tmp_path, monkeypatch):
    seen = []
    pretrain = text_pretraining.pretrain_decoder

    def watched(model, *args):
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        pretrain(model, *args)
        seen.append({name for name, weight in model.state_dict().items() if not weight.equal(before[name])})

    monkeypatch.setattr(train, "pretrain_decoder", watched)
    options = ["--text_pretraining_steps", "40", "--own_candidate", "1", "--max_steps", "1"]
    taught = run(tmp_path, corpus, *options, name="taught")
    assert seen and seen[0] and all(name.startswith("text_model.") for name in seen[0])
    plain = run(tmp_path, corpus, *options[2:], name="plain")
    losses = [read_lines(folder / "log.jsonl")[-1]["loss"] for folder in (taught, plain)]
    assert losses[0] < 0.9 * losses[1]  # the own caption is the candidate, and the decoder has learned to copy


def test_by_default_nothing_of_this_happens(corpus, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("used, but off by default")

    monkeypatch.setattr(train, "CandidateSampling", fail)
    monkeypatch.setattr(train, "pretrain_decoder", fail)
    monkeypatch.setattr("clips.batches.augment", fail)
    checkpoint = run(tmp_path, corpus, "--logging_steps", "1", name="default")
    off = [text for name, value in vars(RobustnessArguments()).items() if value == 0 for text in (f"--{name}", "0")]
    assert len(off) == 12
    other = run(tmp_path, corpus, "--logging_steps", "1", *off, "--augment_audio", "false", name="off")
    losses = [[line["loss"] for line in read_lines(folder / "log.jsonl")] for folder in (checkpoint, other)]
    assert losses[0] == losses[1]


def test_two_processes_learn_what_one_learns(corpus, tmp_path):
    options = ["--text_pretraining_steps", "3", "--candidate_pool", "3", "--candidate_dropout", "0.2"]
    options += ["--prefix_dropout", "0.2", "--both_dropout", "0.1", "--own_candidate", "0.2", "--augment_audio", "true"]
    options += ["--num_sample_captions", "0"]
    model = RGMCModel.from_pretrained(run(tmp_path, corpus, *options, name="one"))
    assert [getattr(model.config, name) for name in DROPOUTS] == [0.2, 0.2, 0.1]
    one = model.state_dict()
    two = RGMCModel.from_pretrained(run_in_two_processes(tmp_path, corpus, *options)).state_dict()
    for name, weight in two.items():
        torch.testing.assert_close(weight, one[name], atol=1e-4, rtol=0)


def test_in_text_pretraining_a_caption_follows_one_with_similar_words(make_model, processor, monkeypatch):
    seen = []
    join = text_pretraining.teacher_forcing_tokens
    monkeypatch.setattr(text_pretraining, "POOL", 1)
    monkeypatch.setattr(text_pretraining, "teacher_forcing_tokens", lambda *args: seen.append(args[:2]) or join(*args))
    captions = ["sad piano", "sad guitar piano", "loud rock", "loud rock song"]
    ids = [processor.encode_caption(caption) for caption in captions]
    candidates = [processor.encode_candidate(caption) for caption in captions]
    args = TrainingArguments(text_pretraining_steps=3, batch_size=3, learning_rate=1e-3)
    text_pretraining.pretrain_decoder(make_model(), captions, ids, candidates, args, Accelerator(cpu=True))
    similar = {0: 1, 1: 0, 2: 3, 3: 2}
    for prompts, taught in seen:
        for prompt, caption in zip(prompts, taught, strict=True):
            assert prompt == [*candidates[similar[ids.index(caption)]], processor.separator_token_id]
    assert len(seen) == 3 and {ids.index(caption) for _, taught in seen for caption in taught} == {0, 1, 2, 3}


@pytest.mark.parametrize("text", ["llama", "gemma2"])
def test_any_decoder_is_pretrained(make_model, processor, text, monkeypatch):
    model = make_model(text)
    ids = [processor.encode_caption(caption) for caption in CAPTIONS]
    args = TrainingArguments(text_pretraining_steps=2, batch_size=4, learning_rate=1e-3)
    before = model.text_model.lm_head.weight.clone()
    text_pretraining.pretrain_decoder(model, CAPTIONS, ids, [own[:-1] for own in ids], args, Accelerator(cpu=True))
    assert not model.text_model.lm_head.weight.equal(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--candidate_dropout", "1.5"], "--candidate_dropout is a probability: expected 0 to 1, got 1.5"),
        (["--candidate_dropout", "0.6", "--prefix_dropout", "0.6"], "exclude each other: their sum"),
        (["--candidate_dropout", "0.4", "--prefix_dropout", "0.4", "--both_dropout", "0.4"], "and --both_dropout excl"),
        (["--candidate_pool", "1", "--num_candidates", "2"], "--candidate_pool must be at least --num_candidates, 2"),
        (["--conditioning", "audio", "--own_candidate", "0.1"], "--conditioning audio has no candidates"),
        (["--conditioning", "candidate", "--prefix_dropout", "0.1"], "has nothing but candidates"),
        (["--text_pretraining_steps", "5", "--freeze_text_model", "true"], "trains the decoder"),
        (["--text_pretraining_steps", "-1"], "--text_pretraining_steps must be 0 or more"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(corpus, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, corpus, *options)


def test_a_training_goes_on_from_short_captions_to_long_ones(corpus, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(corpus, both)
    for file in both.glob("*/metadata.csv"):
        table = pandas.read_csv(file)
        table["short"] = table["caption"].str.split().str[:2].str.join(" ")
        table.to_csv(file, index=False)
    short = run(tmp_path, both, "--caption_column", "short", "--max_steps", "2", name="short")
    lengths = ["--max_candidate_length", "40", "--max_caption_length", "40"]
    long = run(tmp_path, both, "--model", str(short), *lengths, "--max_steps", "1", name="long")
    spoken = [CaptionDatastore.from_pretrained(folder).rows["caption"][0] for folder in (short, long)]
    assert spoken == ["a sad", "a sad ballad of piano and strings"]
    ids = CaptionDatastore.from_pretrained(long).rows["input_ids"][0]
    assert RGMCProcessor.from_pretrained(long).tokenizer.decode(ids) == spoken[1]  # in the tokens of the short ones
