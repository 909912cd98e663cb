"""What --prefix_embedding_weight promises: prefixes nearer to the token embeddings, and nothing without it."""

import pytest
import torch
from helpers import run, run_in_two_processes
from torch.nn.functional import normalize

from layers_rgmc import embedding_distance
from modeling_rgmc import RGMCModel


@pytest.fixture
def batch(log_mels):
    ids = torch.tensor([[5, 0, 6, 7, 0], [6, 0, 8, 0, 0]])
    labels = torch.tensor([[-100, -100, 6, 7, 0], [-100, -100, 8, 0, -100]])
    return {"input_features": log_mels(2), "input_ids": ids, "labels": labels}


def similarity(model: RGMCModel) -> float:
    """The mean cosine of the prefix vectors of some sounds to the nearest rows of the vocabulary."""
    sounds = normalize(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    table = normalize(model.get_input_embeddings().weight, dim=-1)
    return (normalize(model.mapper(sounds), dim=-1) @ table.T).amax(-1).mean().item()


@pytest.mark.parametrize("fields", [{}, {"candidate_similarity": True}])
def test_the_prefix_loss_is_the_distance_to_the_nearest_tokens(make_model, batch, fields):
    model = make_model(**fields)
    with torch.no_grad():
        prefix = model.mapper(model.embed_audio(batch["input_features"]))
        table, told = model.get_input_embeddings().weight, len(model.config.similarity_token_ids)
        table, others = table.split([len(table) - told, told])
        others[:] = prefix[0, 0]  # a sound is no similarity, however near their tokens are
        outputs = model(**batch, prefix_loss=True)
        assert outputs.word_loss is None and outputs.loss.equal(model(**batch).loss)
        cosines = torch.cosine_similarity(prefix[:, :, None], table, dim=-1).amax(-1)  # (B, P)
        # Of each clip once, divided by the 5 tokens that are learned, as the loss of the captions.
        assert outputs.prefix_loss.item() == pytest.approx((1 - cosines).mean(1).sum().item() / 5, rel=1e-5)
        assert embedding_distance(table[None, :3] * 2, table).abs().max() < 1e-6
        ignored = {**batch, "labels": torch.full_like(batch["labels"], -100), "num_items_in_batch": 5}
        assert model(**ignored, prefix_loss=True).prefix_loss == 0


def test_the_prefix_loss_moves_the_prefixes_alone(make_model, batch):
    model = make_model()
    model(**batch, prefix_loss=True).prefix_loss.backward()
    assert all(weight.grad.any() for weight in model.mapper.parameters())
    others = [*model.text_model.parameters()]
    assert all(weight.grad is None or not weight.grad.any() for weight in others)


def test_prefixes_come_nearer_to_the_tokens_and_without_a_weight_nothing_changes(corpus, tmp_path):
    options = ["--num_sample_captions", "0", "--mapper_learning_rate", "1e-2", "--num_train_epochs", "2"]
    plain, off = (
        RGMCModel.from_pretrained(run(tmp_path, corpus, *options, *more, name=f"run{len(more)}"))
        for more in ([], ["--prefix_embedding_weight", "0"])
    )
    assert all(weight.equal(off.state_dict()[name]) for name, weight in plain.state_dict().items())
    options += ["--prefix_embedding_weight", "20"]
    one = RGMCModel.from_pretrained(run(tmp_path, corpus, *options, name="drawn"))
    assert similarity(one) > similarity(plain) + 0.01
    two = RGMCModel.from_pretrained(run_in_two_processes(tmp_path, corpus, *options))
    for name, weight in two.state_dict().items():
        torch.testing.assert_close(weight, one.state_dict()[name], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="--prefix_embedding_weight must be 0 or more"):
        run(tmp_path, corpus, "--prefix_embedding_weight", "-1")
    with pytest.raises(ValueError, match="nothing but candidates: leave out --prefix_embedding_weight"):
        run(tmp_path, corpus, "--conditioning", "candidate", "--prefix_embedding_weight", "1")
