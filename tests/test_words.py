"""What the word head promises: a loss for the encoder alone, off by default, the same however a batch is cut."""

import json

import pytest
import torch
from helpers import CAPTIONS, run, run_in_two_processes
from huggingface_hub.errors import StrictDataclassError

from clips.batches import TeacherForcingCollator
from modeling_rgmc import RGMCModel
from training.building import frequent_words, label_words

WORDS = ["sad", "piano", "guitar"]
LABELS = torch.tensor([[1.0, 0, 1], [0, 1, 0]])


@pytest.fixture
def batch(log_mels):
    ids = torch.tensor([[5, 0, 6, 7, 0], [6, 0, 8, 0, 0]])
    labels = torch.tensor([[-100, -100, 6, 7, 0], [-100, -100, 8, 0, -100]])
    return {"input_features": log_mels(2), "input_ids": ids, "labels": labels}


def test_the_word_loss_is_the_cross_entropy_of_each_word(make_model, batch):
    model = make_model(words=WORDS)
    with torch.no_grad():
        outputs = model(**batch, word_labels=LABELS)
        embeds = model.embed_audio(batch["input_features"])
        probability = torch.sigmoid(model.word_head.linear(embeds * embeds.shape[1] ** 0.5))
        right = torch.where(LABELS == 1, probability, 1 - probability)
        assert outputs.word_loss.item() == pytest.approx(
            -right.log().sum().item() / 5, rel=1e-5
        )  # 5 tokens are learned
        assert outputs.loss.equal(model(**batch).loss)  # the captions' own loss does not change
        halves = [
            model(**{name: part[row : row + 1] for name, part in batch.items()}, word_labels=LABELS[row : row + 1])
            for row in (0, 1)
        ]
        summed = (3 * halves[0].word_loss + 2 * halves[1].word_loss) / 5
        assert summed.item() == pytest.approx(outputs.word_loss.item(), rel=1e-5)
        ignored = torch.cat([LABELS[:1], torch.full((1, 3), -100.0)])
        assert model(**batch, word_labels=ignored).word_loss.item() == pytest.approx(3 / 5 * halves[0].word_loss.item())


def test_the_word_loss_trains_the_encoder_and_no_decoder(make_model, batch):
    model = make_model(words=WORDS)
    model(**batch, word_labels=LABELS).word_loss.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.audio_tower.parameters())
    others = [*model.mapper.parameters(), *model.text_model.parameters()]
    assert all(weight.grad is None or not weight.grad.any() for weight in others)


def test_words_are_those_of_some_captions_but_not_of_most():
    captions = ["a sad piano", "a sad guitar", "a fast piano", "a slow guitar", "a harp"]
    assert frequent_words(captions, least=2) == ["guitar", "piano", "sad"]
    assert frequent_words(captions, least=2, most=2) == ["guitar", "piano"]
    assert frequent_words(captions, least=2, largest_share=1.0)[0] == "a"
    labels = label_words([*captions, "piano piano"], ["guitar", "piano", "sad"])
    assert labels.tolist() == [[0, 1, 1], [1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_a_batch_carries_the_labels_of_its_rows_and_an_empty_one_none(processor, log_mels):
    class Features:
        def read(self, rows):
            return log_mels(len(rows))

    captions = [processor.encode_caption(text) for text in CAPTIONS[:2]]
    collator = TeacherForcingCollator(Features(), captions, [[], []], processor, torch.tensor([[1, 0], [0, 1]]))
    assert collator([1, 0])["word_labels"].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert collator([])["word_labels"].tolist() == [[-100.0, -100.0]]
    assert "word_labels" not in TeacherForcingCollator(Features(), captions, [[], []], processor)([0])


def test_a_run_with_the_word_loss_keeps_its_words_and_one_without_has_none(corpus, tmp_path):
    plain = run(tmp_path, corpus, name="plain")
    assert RGMCModel.from_pretrained(plain).word_head is None
    assert json.loads((plain / "config.json").read_text())["words"] is None
    options = ["--word_loss_weight", "1", "--num_train_epochs", "2"]
    checkpoint = run(tmp_path, corpus, *options, name="words")
    model = RGMCModel.from_pretrained(checkpoint)
    assert model.config.words == ["with"]
    assert model.word_head.linear.out_features == 1
    assert not model.audio_tower.state_dict()["audio_projection.linear1.weight"].equal(
        RGMCModel.from_pretrained(run(tmp_path, corpus, *options[2:], name="other")).audio_tower.state_dict()[
            "audio_projection.linear1.weight"
        ]
    )
    with pytest.raises(ValueError, match="found no word to predict in the 4 training captions"):
        run(tmp_path, corpus, *options, "--max_train_samples", "4", name="few")


def test_two_processes_learn_the_words_that_one_learns(corpus, tmp_path):
    options = ["--word_loss_weight", "1", "--num_sample_captions", "0"]
    one = RGMCModel.from_pretrained(run(tmp_path, corpus, *options, name="one")).state_dict()
    two = RGMCModel.from_pretrained(run_in_two_processes(tmp_path, corpus, *options)).state_dict()
    for name, weight in two.items():
        torch.testing.assert_close(weight, one[name], atol=1e-4, rtol=0)


def test_a_word_head_without_audio_is_refused(make_config, corpus, tmp_path):
    for fields in ({"words": []}, {"words": WORDS, "conditioning": "candidate"}):
        with pytest.raises(StrictDataclassError, match="`words` are predicted from audio"):
            make_config(**fields)
    for options in (["--freeze_audio_tower", "true"], ["--conditioning", "candidate"]):
        with pytest.raises(ValueError, match="does nothing where the audio encoder is not trained"):
            run(tmp_path, corpus, "--word_loss_weight", "1", *options)
    with pytest.raises(ValueError, match="must be 0 or more"):
        run(tmp_path, corpus, "--word_loss_weight", "-1")
