"""What `candidate_similarity` promises: the decoder is told how similar the song of each candidate is."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import CAPTIONS, make_datastore, run, write_clap
from transformers import AutoConfig, AutoModelForCausalLM

from captions_rgmc import SIMILARITY_LEVELS, SIMILARITY_TOKENS, join_candidates
from clips.batches import CandidateSampling, TeacherForcingCollator
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from training import building
from training.arguments import ModelArguments
from training.refresh import draw_random

LEVELS = [*range(900, 900 + len(SIMILARITY_TOKENS))]


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    options = ["--candidate_similarity", "true", "--own_candidate", "0.3", "--random_candidate", "0.3"]
    options += ["--candidate_pool", "3", "--text_pretraining_steps", "3"]
    return run(tmp_path_factory.mktemp("similarity"), corpus, *options)


def test_each_candidate_follows_the_token_of_its_level():
    def level(similarity: float) -> int:
        (first, *_) = join_candidates([[5]], 0, [similarity], LEVELS)
        return LEVELS.index(first)

    assert level(-1.0) == 0
    assert [level(bound) for bound in SIMILARITY_LEVELS] == [*range(1, len(SIMILARITY_TOKENS))]
    assert [level(bound - 1e-6) for bound in SIMILARITY_LEVELS] == [*range(len(SIMILARITY_TOKENS) - 1)]
    assert level(1.0) == level(1.0 + 1e-6) == len(LEVELS) - 1
    assert join_candidates([[5, 6], [7]], 0, [0.9995, 0.1], LEVELS) == [LEVELS[-1], 5, 6, 0, LEVELS[0], 7, 0]
    assert join_candidates([], 0, [], LEVELS) == [0]
    assert join_candidates([[5, 6], [7]], 0, [0.9995, 0.1]) == [5, 6, 0, 7, 0]
    with pytest.raises(ValueError):
        join_candidates([[5], [6]], 0, [0.5], LEVELS)


def test_a_training_gives_tokenizer_and_decoder_the_tokens(checkpoint):
    model, processor = RGMCModel.from_pretrained(checkpoint), RGMCProcessor.from_pretrained(checkpoint)
    assert model.config.candidate_similarity
    assert (
        model.get_input_embeddings().weight.shape[0] == len(processor.tokenizer) == model.config.text_config.vocab_size
    )
    assert model.config.similarity_token_ids == processor.similarity_token_ids
    tokens = processor.tokenizer.convert_ids_to_tokens(processor.similarity_token_ids)
    assert tokens == SIMILARITY_TOKENS
    assert processor.batch_decode([processor.similarity_token_ids], skip_special_tokens=True) == [""]
    assert not set(processor.encode_candidate(" ".join(SIMILARITY_TOKENS))) & set(processor.similarity_token_ids)


def test_a_prompt_tells_the_similarity_that_was_found_and_1_for_a_candidate_that_is_given(checkpoint):
    model, processor = RGMCModel.from_pretrained(checkpoint).eval(), RGMCProcessor.from_pretrained(checkpoint)
    told = model.config.similarity_token_ids
    embeds = torch.nn.functional.normalize(torch.randn(4, model.datastore.embeddings.shape[1]), dim=-1)
    embeds[0] = torch.from_numpy(model.datastore.read_embeddings(np.array([2])))[0]
    found = model.retrieve(embeds)
    ids, mask = model.prompt_ids(embeds, found)
    firsts = [row[own.bool()][0].item() for row, own in zip(ids, mask)]
    levels = np.digitize([own[0] for own in found.similarities], SIMILARITY_LEVELS)
    assert firsts == [told[level] for level in levels]
    assert firsts[0] == told[-1] and len({*firsts}) > 1
    given = processor(candidates=["a sad song", "a waltz"])["input_ids"]
    assert {row[row != processor.tokenizer.pad_token_id][0].item() for row in given} == {told[-1]}
    low = processor(candidates=["a sad song"], similarities=[[0.3]])["input_ids"]
    assert low[0, 0].item() == told[1]


def test_training_tells_the_similarities_of_neighbors_own_and_random_captions(processor):
    processor = copy.deepcopy(processor)  # all tests share its tokenizer
    processor.tokenizer.add_tokens(SIMILARITY_TOKENS, special_tokens=True)
    told = processor.similarity_token_ids
    features = SimpleNamespace(read=lambda rows: torch.zeros(len(rows), 1, 1001, 64))
    captions = [processor.encode_caption(text) for text in CAPTIONS[:8]]
    candidates = [[([50 + row], 0.6)] for row in range(8)]
    kinds = set()
    for epoch in range(6):
        sampling = CandidateSampling(1, (0, epoch), own_candidate=0.4, random_candidate=0.3)
        collator = TeacherForcingCollator(
            features,
            captions,
            candidates,
            processor,
            sampling=sampling,
            caption_candidates=[[70 + row] for row in range(8)],
            random_candidates=[[([90 + row], 0.1)] for row in range(8)],
        )
        for row, ids in enumerate(collator([*range(8)])["input_ids"].tolist()):
            expected = {50 + row: told[3], 70 + row: told[-1], 90 + row: told[0]}
            assert ids[0] == expected[ids[1]]
            kinds.add(ids[1] // 10)
    assert kinds == {5, 7, 9}


def test_random_songs_are_drawn_with_their_similarities():
    datastore = make_datastore(30)
    rows, similarities = draw_random(datastore, 2, (0, 1))
    assert rows.shape == similarities.shape == (30, 2)
    embeddings = datastore.read_embeddings(np.arange(30))
    np.testing.assert_allclose(similarities, np.einsum("ne,nke->nk", embeddings, embeddings[rows]), atol=1e-6)
    again, _ = draw_random(datastore, 2, (0, 1))
    other, _ = draw_random(datastore, 2, (0, 2))
    assert (again == rows).all() and (other != rows).any()


def test_captions_are_the_same_one_by_one_and_explanations_add_up(checkpoint, log_mels):
    model, processor = RGMCModel.from_pretrained(checkpoint).eval(), RGMCProcessor.from_pretrained(checkpoint)
    clips = log_mels(3)
    together = model.generate(clips)
    for row in range(3):
        alone = model.generate(clips[row : row + 1])[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()
    for explanation in model.explain(clips, random_songs=2):
        values = explanation.log_probs
        np.testing.assert_allclose(
            explanation.audio + explanation.candidate, values["both"] - values["nothing"], atol=1e-5
        )
        assert not {*model.config.similarity_token_ids} & {token for own in explanation.candidates for token in own}
    result = model.explain(audio_embeds=model.embed_audio(clips), **processor(candidates=["a waltz"] * 3))
    assert [processor.decode(own.candidates[0]) for own in result] == ["a waltz"] * 3


def test_a_pretrained_decoder_gets_the_tokens_and_keeps_its_own(tmp_path, tokenizer, monkeypatch):
    text = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=256)
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(text)
    decoder.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    arguments = ModelArguments(
        audio_model=write_clap(tmp_path / "clap"),
        text_model=str(tmp_path / "text"),
        caption_normalization="music",
        candidate_similarity=True,
        max_candidate_length=24,
        max_caption_length=24,
    )
    processor = building.build_processor(arguments, CAPTIONS)
    model = building.build_model(arguments, processor, train=None)
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == len(tokenizer) + len(SIMILARITY_TOKENS) == model.config.text_config.vocab_size
    assert weight[: len(tokenizer)].equal(decoder.get_input_embeddings().weight)
    assert model.config.similarity_token_ids == processor.similarity_token_ids
    assert model.text_model.lm_head.weight is weight
