"""What the consensus of captions promises: the one that shares most with the others, whatever order they are in."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import CAPTIONS
from transformers import GenerationConfig

from captions_rgmc import caption_similarity, left_pad, most_central, normalize_caption
from evaluation.captioning import conditioned_on
from generation_rgmc import mean_log_probability, neighbor_prompts
from modeling_rgmc import RGMCModel
from retrieval_rgmc import CaptionDatastore
from songs_rgmc import make_rows

CALM = "a calm piano piece".split()
SAD = "a sad piano piece".split()
ROCK = "loud rock".split()


def test_similarity_is_the_mean_f1_of_shared_n_grams():
    assert caption_similarity(CALM, CALM) == 1
    # 3 of 4 words, 1 of 3 pairs ("piano piece"), no three and no four words are shared
    assert caption_similarity(CALM, SAD) == pytest.approx((3 / 4 + 1 / 3 + 0 + 0) / 4)
    assert caption_similarity(ROCK, ["rock"]) == pytest.approx((2 / 3 + 0) / 2)  # neither has three words
    assert caption_similarity(["la", "la"], ["la"], longest=1) == pytest.approx(
        2 / 3
    )  # a word counts as often as it occurs
    assert caption_similarity(CALM, ROCK) == 0
    assert caption_similarity([], []) == 1
    assert caption_similarity([], ROCK) == 0


def test_the_most_central_caption_shares_most_with_the_others():
    between = "a calm piano song".split()
    assert most_central([ROCK, SAD, CALM, between]) == 2
    assert most_central([between, CALM, SAD, ROCK]) == 1
    assert most_central([CALM]) == 0
    assert most_central([ROCK, CALM]) == 0  # the first of several


def test_weights_decide_whom_a_caption_has_to_be_similar_to():
    captions = [CALM, SAD, SAD, ROCK, ROCK]
    assert most_central(captions) == 1
    assert most_central(captions, [0.1, 0.1, 0.1, 1.0, 1.0]) == 3
    assert most_central([ROCK, CALM, SAD], [9.0, 1.0, 1.0]) == 1  # a caption does not speak for itself


@pytest.fixture
def songs(make_model, processor, log_mels):
    """A model with lively weights and a datastore of 8 songs, and the embeddings of three clips."""
    model = make_model(max_new_tokens=8)
    model.generation_config.num_beams = 3
    for weight in model.text_model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)
    rows = make_rows([f"song-{row}" for row in range(8)], CAPTIONS[:8], processor)
    embeds = model.embed_audio(log_mels(8)).detach()
    model.set_datastore(CaptionDatastore(rows, embeds.numpy(), model.encoder_fingerprint()))
    return model, model.embed_audio(log_mels(3, seed=1)).detach()


def test_consensus_chooses_among_all_beams_of_each_neighbor(songs):
    model, embeds = songs
    found = model.datastore.search(embeds, 4)
    for clip in range(len(embeds)):
        said, weights = [], []
        for candidate, similarity in zip(found.input_ids[clip], found.similarities[clip]):
            ids, mask = left_pad([[*candidate, model.config.separator_token_id]], 0)
            beams = model.generate(
                audio_embeds=embeds[clip : clip + 1], input_ids=ids, attention_mask=mask, num_return_sequences=3
            )
            said += [until_end(tokens, model) for tokens in beams.tolist()]
            weights += [similarity] * 3
        expected = said[most_central(said, weights)]
        chosen = model.generate(
            audio_embeds=embeds[clip : clip + 1], selection="consensus", consensus_neighbors=4
        ).tolist()
        assert chosen == [expected]


def until_end(tokens, model):
    end = model.generation_config.eos_token_id
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def test_consensus_is_the_same_one_by_one_and_in_a_batch(songs):
    model, embeds = songs
    batch = model.generate(audio_embeds=embeds, selection="consensus").tolist()
    alone = [model.generate(audio_embeds=embeds[i : i + 1], selection="consensus").tolist()[0] for i in range(3)]
    assert [until_end(tokens, model) for tokens in batch] == [until_end(tokens, model) for tokens in alone]
    assert len({tuple(tokens) for tokens in batch}) > 1  # the model says different things of these clips


def test_consensus_never_sees_the_clip_s_own_row(songs, monkeypatch):
    model, embeds = songs
    nearest = model.retrieve(embeds).ids
    asked = []
    search = model.datastore.search
    monkeypatch.setattr(model.datastore, "search", lambda *args, **kw: asked.append(search(*args, **kw)) or asked[-1])
    model.generate(audio_embeds=embeds, selection="consensus", exclude_ids=[ids[0] for ids in nearest])
    assert all(ids[0] not in found for ids, found in zip(nearest, asked[0].ids))
    model.generate(audio_embeds=embeds, exclude_ids=[ids[0] for ids in nearest])
    assert all(ids[0] not in found for ids, found in zip(nearest, asked[1].ids))


def test_consensus_with_few_songs_or_none_takes_what_there_is(songs):
    model, embeds = songs
    model.datastore.remove([f"song-{row}" for row in range(2, 8)])
    two = model.generate(audio_embeds=embeds, selection="consensus", consensus_neighbors=2)
    assert model.generate(audio_embeds=embeds, selection="consensus", consensus_neighbors=5).equal(two)
    model.set_datastore(None)
    beams = model.generate(audio_embeds=embeds[:1], num_return_sequences=3).tolist()
    said = [until_end(tokens, model) for tokens in beams]
    chosen = model.generate(audio_embeds=embeds[:1], selection="consensus").tolist()
    assert chosen == [said[most_central(said)]]


def test_consensus_of_given_candidates_is_among_their_beams(songs):
    model, embeds = songs
    prompt = dict(zip(("input_ids", "attention_mask"), left_pad([[5, 6, 0]], 0)))
    said = model.generate(audio_embeds=embeds[:1], **prompt, num_return_sequences=3).tolist()
    said = [until_end(tokens, model) for tokens in said]
    chosen = model.generate(audio_embeds=embeds[:1], **prompt, selection="consensus").tolist()
    assert chosen == [said[most_central(said)]]


def test_a_selection_that_cannot_be_made_is_refused(songs):
    model, embeds = songs
    with pytest.raises(ValueError, match="expected one of best, consensus"):
        model.generate(audio_embeds=embeds, selection="mean")
    with pytest.raises(ValueError, match="tokens alone: leave out return_dict_in_generate"):
        model.generate(audio_embeds=embeds, selection="consensus", return_dict_in_generate=True)
    with pytest.raises(ValueError, match="`num_return_sequences` is 4: expected at most `num_beams`, which is 3"):
        model.generate(audio_embeds=embeds, selection="consensus", num_return_sequences=4)


def test_several_captions_of_a_consensus_begin_with_it_and_differ(songs):
    model, embeds = songs
    (one, three) = (
        [until_end(tokens, model) for tokens in model.generate(**options, num_return_sequences=count).tolist()]
        for options in [{"audio_embeds": embeds, "selection": "consensus"}]
        for count in (1, 3)
    )
    assert three[::3] == one
    for clip in range(len(embeds)):
        assert len({*map(tuple, three[3 * clip : 3 * clip + 3])}) == 3


def test_a_consensus_tells_from_which_song_each_caption_was_written(songs):
    model, embeds = songs
    options = {"audio_embeds": embeds, "selection": "consensus", "num_return_sequences": 2}
    tokens, neighbors = model.generate(**options, return_neighbors=True)
    assert tokens.equal(model.generate(**options)) and len(neighbors) == len(tokens) and {*neighbors} - {0}
    found = model.datastore.search(embeds, 5)
    for row, (said, neighbor) in enumerate(zip(tokens.tolist(), neighbors)):
        clip = slice(row // 2, row // 2 + 1)
        ids = torch.tensor([[*found.input_ids[row // 2][neighbor], model.config.separator_token_id]])
        beams = model.generate(audio_embeds=embeds[clip], input_ids=ids, selection="best", num_return_sequences=3)
        assert until_end(said, model) in [until_end(beam, model) for beam in beams.tolist()]


def test_the_words_that_the_sound_speaks_for_decide_between_captions(songs, processor):
    model, embeds = songs
    model.set_datastore(None)
    beams = [
        until_end(tokens, model) for tokens in model.generate(audio_embeds=embeds, num_return_sequences=3).tolist()
    ]
    words = [{*normalize_caption(text).split()} for text in processor.batch_decode(beams, skip_special_tokens=True)]
    own = [words[3 * clip + 2] - words[3 * clip] - words[3 * clip + 1] for clip in range(3)]
    clip, told = next((clip, told) for clip, told in enumerate(own) if told)  # words of the third beam alone
    model.set_words(sorted(told))
    options = {"audio_embeds": embeds[clip : clip + 1], "selection": "consensus"}
    plain = model.generate(**options)
    with torch.no_grad():
        model.word_head.linear.weight.zero_()
        model.word_head.linear.bias.fill_(5.0)  # each word is almost certain
    heard = model.generate(**options, tokenizer=processor.tokenizer, word_weight=100.0).tolist()
    assert heard == [beams[3 * clip + 2]]
    assert model.generate(**options, tokenizer=processor.tokenizer, word_weight=0.0).equal(plain)
    assert model.generate(**options).equal(plain)  # without a tokenizer there are no words


def test_a_checkpoint_says_how_it_chooses(songs, tmp_path):
    model, embeds = songs
    plain, chosen = (model.generate(audio_embeds=embeds, selection=name) for name in ("best", "consensus"))
    assert model.generate(audio_embeds=embeds).equal(plain)
    model.config.selection = "consensus"
    assert model.generate(audio_embeds=embeds).equal(chosen)
    assert not plain.equal(chosen)
    assert model.generate(audio_embeds=embeds, selection="best").equal(plain)
    model.save_pretrained(tmp_path)
    assert RGMCModel.from_pretrained(tmp_path).generate(audio_embeds=embeds).equal(chosen)


def test_the_log_probability_of_a_caption_is_the_mean_over_its_words(make_config):
    config = make_config(words=["sad", "piano", "guitar"], caption_normalization="music")
    assert mean_log_probability(config, [0.1, 0.2, 0.4], "A sad, sad piano!") == pytest.approx(math.log(0.02) / 2)
    assert mean_log_probability(config, [0.1, 0.2, 0.4], "guitar") == pytest.approx(math.log(0.4))
    assert mean_log_probability(config, [0.1, 0.2, 0.0], "guitar") == pytest.approx(math.log(0.01))
    assert mean_log_probability(config, [0.1, 0.2, 0.4], "drums") == pytest.approx(math.log(0.01))


@pytest.mark.parametrize("text", ["llama", "qwen2", "gemma2"])
def test_consensus_works_with_any_decoder(make_model, processor, log_mels, text):
    model = make_model(text, max_new_tokens=4)
    rows = make_rows([f"song-{row}" for row in range(4)], CAPTIONS[:4], processor)
    embeds = model.embed_audio(log_mels(4)).detach()
    model.set_datastore(CaptionDatastore(rows, embeds.numpy(), model.encoder_fingerprint()))
    options = {"selection": "consensus", "num_beams": 2, "consensus_neighbors": 3}
    batch = model.generate(audio_embeds=embeds[:2], **options).tolist()
    alone = [model.generate(audio_embeds=embeds[row : row + 1], **options).tolist()[0] for row in range(2)]
    assert [until_end(tokens, model) for tokens in batch] == [until_end(tokens, model) for tokens in alone]


def test_a_generation_config_of_the_caller_is_filled_up_by_the_model_s_own(songs):
    model, embeds = songs
    model.set_datastore(None)
    config = GenerationConfig(max_new_tokens=5)
    beams = model.generate(audio_embeds=embeds[:1], generation_config=config, num_return_sequences=3).tolist()
    said = [until_end(tokens, model) for tokens in beams]
    chosen = model.generate(audio_embeds=embeds[:1], generation_config=config, selection="consensus").tolist()
    assert chosen == [said[most_central(said)]] and len(said[0]) <= 5


def test_a_song_that_is_unlike_the_clip_has_no_say(songs, monkeypatch):
    model, embeds = songs
    search = model.datastore.search

    def negated(*args, **kwargs):
        found = search(*args, **kwargs)
        return replace(found, similarities=[[0.5, *[-0.9] * (len(own) - 1)] for own in found.similarities])

    monkeypatch.setattr(model.datastore, "search", negated)
    _, _, first = neighbor_prompts(model, embeds, None, 3)[0]
    _, _, second = neighbor_prompts(model, embeds, None, 3)[1]
    assert first == [0.5] * 3 and second == [0.0] * 3


def test_a_model_that_must_not_hear_does_not_hear_by_its_words(songs, processor):
    model, embeds = songs
    prompt = dict(zip(("input_ids", "attention_mask"), left_pad([[5, 6, 0]], 0)))
    options = {"audio_embeds": embeds[:1], **prompt, "selection": "consensus"}
    with conditioned_on(model, "candidate"):
        plain = model.generate(**options).tolist()
        beams = model.generate(**{**options, "selection": "best"}, num_return_sequences=3)
        words = [{*normalize_caption(text).split()} for text in processor.batch_decode(beams, skip_special_tokens=True)]
        chosen = [until_end(tokens, model) for tokens in beams.tolist()].index(plain[0])
        told = sorted(set().union(*words) - words[chosen])  # words of the other beams
        assert told
    model.set_words(told)
    with torch.no_grad():
        model.word_head.linear.bias.fill_(20.0)
    with conditioned_on(model, "candidate"):
        heard = model.generate(**options, tokenizer=processor.tokenizer, word_weight=100.0).tolist()
    assert heard == plain
