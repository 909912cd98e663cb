"""What RGMCModel promises: the paper's sizes and decoding, batches equal to single clips, and no silent failures."""

import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import CAPTIONS
from huggingface_hub.errors import StrictDataclassError
from transformers import ClapAudioModelWithProjection, ClapConfig, ClapModel, GPT2Config, GPT2LMHeadModel
from transformers.models.clap.modeling_clap import ClapAudioLayer, ClapAudioSelfAttention

from configuration_rgmc import RGMCConfig
from layers_rgmc import RGMCAudioSelfAttention, mask_stripes
from modeling_rgmc import KEEPS_POSITIONS, RGMCModel
from retrieval_rgmc import CaptionDatastore
from training.building import enable_checkpointing


def make_datastore(model, processor, features, captions=CAPTIONS, ids=None) -> CaptionDatastore:
    with torch.no_grad():
        embeds = model.eval().embed_audio(features).numpy()
    rows = Dataset.from_dict(
        {
            "id": ids or [f"song-{row}" for row in range(len(captions))],
            "caption": captions,
            "input_ids": [processor.encode_candidate(caption) for caption in captions],
        }
    )
    return CaptionDatastore(rows, embeds, model.encoder_fingerprint())


def trigrams(tokens: list[int]) -> list[tuple]:
    return list(zip(tokens, tokens[1:], tokens[2:]))


def until_eos(tokens: torch.Tensor, eos: int) -> list[int]:
    tokens = tokens.tolist()
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


# -- configuration ---------------------------------------------------------------------------------------------------


def test_default_configuration_is_the_papers_model():
    config = RGMCConfig()
    with torch.device("meta"):
        model = RGMCModel(config)
    millions = {
        part: sum(weight.numel() for weight in getattr(model, part).parameters()) / 1e6
        for part in ("audio_tower", "mapper", "text_model")
    }
    assert round(millions["audio_tower"], 1) == 68.6
    assert round(millions["text_model"], 1) == 124.4
    assert millions["mapper"] == (512 * 3840 + 3840 + 3840 * 7680 + 7680) / 1e6
    assert (config.prefix_length, config.num_candidates, config.conditioning) == (10, 1, "audio+candidate")
    generation = model.generation_config
    assert (generation.num_beams, generation.no_repeat_ngram_size) == (5, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefix_length": "ten"},
        {"prefix_length": 0},
        {"prefix_length": True},
        {"num_candidates": 0},
        {"mapper_hidden_size": -1},
        {"mapper_hidden_size": 1.5},
        {"conditioning": "text"},
        {"audio_config": {"enable_fusion": True}},
        {"audio_config": {"hidden_size": 100}},
        {"audio_config": {"num_mel_bins": 128}},
        {"audio_config": {"model_type": "gpt2"}},
        {"text_config": {"model_type": "t5"}},
    ],
)
def test_a_wrong_value_is_an_error_when_the_configuration_is_made(wrong):
    with pytest.raises(StrictDataclassError, match=next(iter(wrong))):
        RGMCConfig(**wrong)


@pytest.mark.parametrize("text", ["gpt2", "llama", "qwen2"])
def test_configuration_survives_saving(make_config, text, tmp_path):
    config = make_config(text, num_candidates=2)
    config.save_pretrained(tmp_path)
    loaded = RGMCConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert type(loaded.text_config) is type(config.text_config)


def test_a_decoder_without_bos_uses_its_eos_as_separator(make_config):
    config = make_config("qwen2")
    config.text_config.bos_token_id, config.text_config.eos_token_id = None, [7, 8]
    assert config.separator_token_id == 7
    config.text_config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_id"):
        _ = config.separator_token_id


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["gpt2", "llama", "qwen2"])
def test_batched_captions_equal_single(make_model, processor, log_mels, text):
    model = make_model(text)
    features = log_mels(3)
    candidates = [CAPTIONS[0], "piano", CAPTIONS[5]]
    inputs = processor(candidates=candidates)
    together = model.generate(input_features=features, **inputs)
    for row, candidate in enumerate(candidates):
        alone = model.generate(input_features=features[row : row + 1], **processor(candidates=[candidate]))
        assert until_eos(together[row], 0) == until_eos(alone[0], 0)


@pytest.mark.parametrize("text", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_the_logits_of_tokens_alone(make_model, log_mels, text, side):
    # Guards positions: by default GPT-2 counts them from the left edge of the batch, including padding.
    model = make_model(text)
    features = log_mels(1)
    tokens = torch.tensor([[5, 6, 7, 8]])
    padding = torch.zeros(1, 6, dtype=torch.long)
    parts = [padding, tokens] if side == "left" else [tokens, padding]
    mask = torch.cat([torch.ones_like(part) if part is tokens else torch.zeros_like(part) for part in parts], dim=1)
    with torch.no_grad():
        plain = model(input_ids=tokens, input_features=features).logits[:, -4:]
        padded = model(input_ids=torch.cat(parts, dim=1), attention_mask=mask, input_features=features).logits
    start = 3 + 6 if side == "left" else 3
    torch.testing.assert_close(padded[:, start : start + 4], plain, atol=2e-5, rtol=0)


def test_candidates_padded_on_the_right_are_refused(make_model, log_mels):
    model = make_model()
    input_ids = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 0]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    with pytest.raises(ValueError, match="left"):
        model.generate(input_features=log_mels(2), input_ids=input_ids, attention_mask=mask)


def test_the_loss_is_that_of_the_captions_tokens_alone(make_model, log_mels):
    model = make_model()
    features = log_mels(1)
    input_ids = torch.tensor([[5, 6, 0, 9, 10, 0]])
    labels = torch.tensor([[-100, -100, -100, 9, 10, 0]])
    with torch.no_grad():
        output = model(input_ids=input_ids, labels=labels, input_features=features)
        logits = output.logits[0, 3 + 2 : -1]  # the positions before each label: the prefix takes 3
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([9, 10, 0]))
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("text", ["gpt2", "llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("items", [None, 20])
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_the_captions_alone_give_the_same_loss_and_gradients(make_model, log_mels, text, items, side):
    model = make_model(text)
    embeds = model.embed_audio(log_mels(4)).detach()
    rows = [(3, 5), (8, 2), (1, 1), (6, 0)]  # tokens of candidate and caption; the last row is not learned
    input_ids, mask, labels = (torch.full((4, 10), value) for value in (0, 0, -100))
    for row, (candidate, caption) in enumerate(rows):
        start = 10 - candidate - caption if side == "left" else 0
        input_ids[row, start : start + candidate + caption] = torch.arange(candidate + caption) + 5 + row
        mask[row, start : start + candidate + caption] = 1
        labels[row, start + candidate : start + candidate + caption] = input_ids[row, mask[row] == 1][candidate:]
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "audio_embeds": embeds}
    found = []
    for options in ({}, {"max_label_length": 5}, {"max_label_length": 7}):
        output = model(**batch, num_items_in_batch=items, **options)
        output.loss.backward()
        found.append((output.loss.detach(), [weight.grad for weight in model.parameters() if weight.grad is not None]))
        kept = options.get("max_label_length", 13) if KEEPS_POSITIONS else 13
        assert output.logits.shape[:2] == (4, kept)
        model.zero_grad()
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(gradients, found[0][1])


# -- window attention of the encoder ---------------------------------------------------------------------------------


def attention_pair(make_config) -> tuple[ClapAudioSelfAttention, RGMCAudioSelfAttention]:
    """The original attention and ours, with the same weights."""
    torch.manual_seed(0)
    pair = [make(make_config().audio_config, 16, 2, 8) for make in (ClapAudioSelfAttention, RGMCAudioSelfAttention)]
    torch.nn.init.normal_(pair[0].relative_position_bias_table)
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


def shift_mask(config, shifted: bool) -> torch.Tensor | None:
    layer = ClapAudioLayer(config, 16, (16, 16), 2, shift_size=4 if shifted else 0)
    return layer.get_attn_mask(16, 16, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("shifted", [False, True])
def test_fused_attention_has_the_output_and_the_gradients_of_claps(make_config, shifted):
    original, ours = attention_pair(make_config)
    mask = shift_mask(make_config().audio_config, shifted)
    assert (mask is not None) == shifted
    windows = torch.randn(3 * 4, 64, 16)
    upstream = torch.randn_like(windows)
    results = []
    for module, forward in ((original, lambda x: original(x, mask)[0]), (ours, lambda x: ours.fused_forward(x, mask))):
        hidden_states = windows.clone().requires_grad_()
        output = forward(hidden_states)
        output.backward(upstream)
        gradients = {name: weight.grad for name, weight in module.named_parameters()}
        results.append({"output": output.detach(), "input": hidden_states.grad, **gradients})
    assert results[0]["relative_position_bias_table"].abs().max() > 0
    torch.testing.assert_close(results[1], results[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(results[1]["output"], results[0]["output"], atol=1e-6, rtol=0)
    with torch.no_grad():  # without gradients the CPU has a fused kernel
        torch.testing.assert_close(ours(windows, mask)[0], results[0]["output"], atol=1e-6, rtol=0)
    attended = ours(windows, mask, output_attentions=True)
    torch.testing.assert_close(attended, original(windows, mask, output_attentions=True), atol=0, rtol=0)


@pytest.mark.parametrize("shifted", [False, True])
def test_fused_attention_under_bfloat16_autocast(make_config, shifted):
    original, ours = attention_pair(make_config)
    mask = shift_mask(make_config().audio_config, shifted)
    windows = torch.randn(3 * 4, 64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours.fused_forward(windows, mask)
        expected = original(windows, mask)[0]
        with torch.no_grad():
            inferred = ours(windows, mask)[0]
    assert output.dtype == inferred.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(inferred, expected, atol=0.02, rtol=0.02)
    output.float().sum().backward()
    assert ours.relative_position_bias_table.grad.abs().max() > 0


@pytest.fixture
def count_fused(monkeypatch):
    calls = []
    fused = RGMCAudioSelfAttention.fused_forward
    monkeypatch.setattr(
        RGMCAudioSelfAttention, "fused_forward", lambda self, *args: calls.append(self) or fused(self, *args)
    )
    return calls


def test_the_encoder_runs_fused_attention_unless_eager_is_asked_for(make_config, log_mels, count_fused, tmp_path):
    # Guards against a tower that falls back to CLAP's own attention, which is correct but slow.
    config = make_config(audio={"depths": [2, 2]})  # the second layer has shifted windows
    RGMCModel(config).save_pretrained(tmp_path)
    features = log_mels(2)
    embeds = {}
    for attention in (None, "sdpa", {"text_config": "eager"}, {"audio_config": "eager"}, "eager"):
        model = RGMCModel.from_pretrained(tmp_path, **({} if attention is None else {"attn_implementation": attention}))
        eager = "eager" in (attention, attention.get("audio_config") if isinstance(attention, dict) else None)
        count_fused.clear()
        with torch.no_grad():
            embeds[str(attention)] = model.embed_audio(features)
        assert len(count_fused) == (0 if eager else 4), attention
        assert model.audio_tower.config._attn_implementation == ("eager" if eager else "sdpa")
        torch.testing.assert_close(embeds[str(attention)], embeds["None"], atol=1e-6, rtol=0)
    again = RGMCModel(config)  # from a configuration that has already made a model
    with torch.no_grad():
        again.eval().embed_audio(features)
    assert len(count_fused) == 4
    assert list(again.audio_tower.state_dict()) == list(
        ClapAudioModelWithProjection(make_config(audio={"depths": [2, 2]}).audio_config).state_dict()
    )


def test_fused_attention_starts_as_claps_does(make_config):
    config = make_config()
    expected = (config.audio_config.hidden_size * 2 * config.audio_config.num_hidden_layers) ** -0.5
    for module in RGMCModel(config).audio_tower.modules():
        if isinstance(module, ClapAudioSelfAttention):
            assert type(module) is RGMCAudioSelfAttention
            assert not module.relative_position_bias_table.any() and not module.query.bias.any()
            assert module.relative_position_index.dtype == torch.long
            assert torch.equal(module.relative_position_index, module.create_relative_position_index())
            assert module.query.weight.std().item() == pytest.approx(expected, rel=0.3)


def test_gradient_checkpointing_leaves_the_gradients_of_fused_attention_alone(make_model, log_mels, monkeypatch):
    # On a GPU training uses the fused path; on the CPU the path has to be forced.
    monkeypatch.setattr(
        RGMCAudioSelfAttention, "forward", lambda self, states, mask=None, _=False: (self.fused_forward(states, mask),)
    )
    model = make_model(audio={"depths": [2, 2], "hidden_dropout_prob": 0.0}).train()
    features = log_mels(2)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model)
        model.embed_audio(features)[:, 0].sum().backward()
        found.append({name: weight.grad for name, weight in model.audio_tower.named_parameters()})
        model.zero_grad()
    tables = [name for name in found[0] if name.endswith("bias_table")]
    assert len(tables) == 4 and all(found[0][name].abs().max() > 0 for name in tables)
    torch.testing.assert_close(found[1], found[0])


# -- decoding --------------------------------------------------------------------------------------------------------


def force_copy(model, monkeypatch, script: list[int]):
    """Makes the decoder continue with the tokens of `script` on any input, as far as the generation rules allow."""
    forward = type(model.text_model).forward

    def scripted(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        scripted.step += 1
        output.logits = torch.full_like(output.logits, -30.0)
        output.logits[..., script[(scripted.step - 1) % len(script)]] = 0.0
        output.logits[..., 20] = -20.0  # the second best
        return output

    scripted.step = 0
    monkeypatch.setattr(type(model.text_model), "forward", scripted)


def test_trigrams_of_the_candidate_may_appear_in_the_caption(make_model, processor, log_mels, monkeypatch):
    model = make_model()
    candidate = processor.encode_candidate(CAPTIONS[0])
    force_copy(model, monkeypatch, [*candidate, 0])
    inputs = processor(candidates=[CAPTIONS[0]])
    tokens = model.generate(input_features=log_mels(1), **inputs, num_beams=1)
    assert until_eos(tokens[0], 0) == candidate
    assert len(trigrams(candidate)) > 0


@pytest.mark.parametrize("num_beams", [1, 5])
def test_no_trigram_appears_twice_in_a_caption(make_model, processor, log_mels, num_beams):
    model = make_model(max_new_tokens=60)
    inputs = processor(candidates=CAPTIONS[:4])
    model.generation_config.min_new_tokens = 60
    arguments = {"input_features": log_mels(4), **inputs, "num_beams": num_beams}
    found = [trigrams(tokens.tolist()) for tokens in model.generate(**arguments)]
    assert all(len(set(caption)) == len(caption) for caption in found)
    free = [trigrams(tokens.tolist()) for tokens in model.generate(**arguments, no_repeat_ngram_size=0)]
    assert any(len(set(caption)) < len(caption) for caption in free)  # otherwise the rule would have nothing to do


def test_saved_generation_configuration_is_applied_after_a_reload(make_model, log_mels, tmp_path):
    model = make_model(max_new_tokens=7)
    model.generation_config.update(num_beams=3, min_new_tokens=7)
    model.save_pretrained(tmp_path)
    loaded = RGMCModel.from_pretrained(tmp_path)
    rows = []
    loaded.text_model.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(output.logits)), with_kwargs=True
    )
    tokens = loaded.generate(input_features=log_mels(2))
    assert tokens.shape == (2, 7)
    assert set(rows) == {6}  # 2 clips x 3 beams


def test_the_encoder_runs_once_per_clip_and_not_per_beam(make_model, log_mels):
    model = make_model()
    rows = []
    model.audio_tower.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(output.audio_embeds)), with_kwargs=True
    )
    model.generate(input_features=log_mels(3))
    assert rows == [3]


def test_a_prompt_that_leaves_no_room_for_the_caption_is_an_error(make_model, log_mels):
    model = make_model(max_new_tokens=100)
    with pytest.raises(ValueError, match="128"):
        model.generate(input_features=log_mels(1), input_ids=torch.full((1, 26), 5))


def test_generate_without_audio_says_what_it_needs(make_model):
    model = make_model()
    for shape in ((2, 64, 1001), (2, 480_000), (2, 2, 1001, 64), (2, 1, 64, 1001)):
        with pytest.raises(ValueError, match=rf"log-mels of shape \(B, 1, T, 64\), got {re.escape(str(shape))}"):
            model.generate(torch.zeros(shape))
    with pytest.raises(ValueError, match="2 clips but candidates for 1: they must match 1:1"):
        model.generate(torch.zeros(2, 1, 1001, 64), input_ids=torch.tensor([[5, 0]]))
    with pytest.raises(ValueError, match="input_features"):
        model.generate()


# -- retrieval inside the model --------------------------------------------------------------------------------------


def test_the_model_retrieves_from_its_own_datastore_and_explicit_candidates_win(
    make_model, processor, log_mels, tmp_path
):
    model = make_model()
    features = log_mels(8)
    model.set_datastore(make_datastore(model, processor, features))
    model.save_pretrained(tmp_path)
    loaded = RGMCModel.from_pretrained(tmp_path)
    retrieved = loaded.retrieve(loaded.embed_audio(features))
    assert [captions[0] for captions in retrieved.captions] == CAPTIONS
    assert np.allclose(retrieved.similarities, 1)
    seen = []
    loaded.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loaded.generate(input_features=features[:2])
    expected = processor(candidates=CAPTIONS[:2])["input_ids"]
    assert seen[0].tolist() == expected.tolist()
    seen.clear()
    loaded.generate(input_features=features[:2], **processor(candidates=CAPTIONS[4:6]))
    assert seen[0].tolist() == processor(candidates=CAPTIONS[4:6])["input_ids"].tolist()


def test_several_candidates_are_joined_by_separators(make_model, processor, log_mels):
    model = make_model(num_candidates=2)
    features = log_mels(8)
    model.set_datastore(make_datastore(model, processor, features))
    embeds = model.embed_audio(features[:1])
    input_ids, _ = model.prompt_ids(embeds)
    first, second = model.retrieve(embeds).captions[0]
    assert first == CAPTIONS[0]
    assert input_ids[0].tolist() == [*processor.encode_candidate(first), 0, *processor.encode_candidate(second), 0]
    assert processor(candidates=[[first, second]])["input_ids"].tolist() == input_ids.tolist()


def test_a_datastore_of_another_encoder_is_refused(make_model, processor, log_mels):
    model = make_model()
    datastore = make_datastore(model, processor, log_mels(8))
    with torch.no_grad():
        next(model.audio_tower.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="another audio encoder"):
        model.set_datastore(datastore)


def test_a_checkpoint_whose_datastore_is_gone_is_an_error(make_model, processor, log_mels, tmp_path):
    model = make_model()
    model.set_datastore(make_datastore(model, processor, log_mels(8)))
    model.save_pretrained(tmp_path)
    (tmp_path / "datastore" / "datastore.json").unlink()
    with pytest.raises(OSError, match="datastore of 8 captions"):
        RGMCModel.from_pretrained(tmp_path)
    model.set_datastore(None)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "datastore").exists()
    assert RGMCModel.from_pretrained(tmp_path).datastore is None


def test_a_datastore_that_the_encoder_was_trained_away_from_is_not_saved(make_model, processor, log_mels, tmp_path):
    model = make_model()
    model.set_datastore(make_datastore(model, processor, log_mels(8)))
    with torch.no_grad():
        next(model.audio_tower.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="another audio encoder"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_without_datastore_captions_from_audio_alone_and_says_so(make_model, log_mels, monkeypatch):
    messages = []
    monkeypatch.setattr("modeling_rgmc.logger.warning_once", messages.append)
    model = make_model()
    model.generate(input_features=log_mels(1))
    assert len(messages) == 1 and "no datastore" in messages[0]


def test_the_ablations_see_only_their_side(make_model, processor, log_mels):
    features, inputs = log_mels(2), processor(candidates=CAPTIONS[:2])
    audio_only = make_model(conditioning="audio")
    audio_only.set_datastore(make_datastore(audio_only, processor, log_mels(8)))
    assert audio_only.prompt_ids(audio_only.embed_audio(features))[0].tolist() == [[0], [0]]
    text_only = make_model(conditioning="candidate")
    assert text_only.mapper is None
    assert not any(weight.requires_grad for weight in text_only.audio_tower.parameters())
    first = text_only.generate(input_features=features, **inputs)
    assert first.tolist() == text_only.generate(input_features=features.flip(0), **inputs).tolist()
    with pytest.raises(ValueError, match="candidate"):
        text_only.generate(input_features=features)


# -- training mode and parts -----------------------------------------------------------------------------------------


def test_a_frozen_encoder_stays_asleep_under_model_train(make_model, log_mels):
    model = make_model()
    model.freeze_audio_tower()
    before = {name: tensor.clone() for name, tensor in model.audio_tower.state_dict().items()}
    model.train()
    features = log_mels(4)
    torch.testing.assert_close(model.embed_audio(features), model.embed_audio(features), rtol=0, atol=0)  # no dropout
    for name, tensor in model.audio_tower.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_trained_encoder_has_dropout_but_fixed_mel_statistics(make_model, log_mels):
    model = make_model().train()
    features = log_mels(4)
    assert not torch.equal(model.embed_audio(features), model.embed_audio(features))
    assert model.audio_tower.audio_model.audio_encoder.batch_norm.num_batches_tracked == 0


def test_stripes_are_masked_in_training_alone(make_model, log_mels):
    features = log_mels(4) + 200  # dB, unlike any mean
    mean = torch.arange(64.0)
    masked = mask_stripes(features, mean)
    changed = masked != features
    assert torch.equal(masked[changed], mean.expand_as(features)[changed])
    for clip in changed[:, 0]:
        frames, bins = clip.all(dim=1).sum(), clip.all(dim=0).sum()
        assert frames <= 2 * 63 and bins <= 2 * 7
        assert clip.sum() == frames * 64 + bins * 1001 - frames * bins  # whole stripes and nothing else
    assert changed.any() and len({clip.sum().item() for clip in changed}) > 1  # each clip has its own stripes
    model = make_model(spec_augment=True, audio={"hidden_dropout_prob": 0.0})
    features = log_mels(2)
    assert torch.equal(model.embed_audio(features), model.embed_audio(features))
    model.train()
    assert not torch.equal(model.embed_audio(features), model.embed_audio(features))


def test_embeddings_are_unit_vectors(make_model, log_mels):
    norms = make_model().embed_audio(log_mels(3)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(3))


def test_the_mapper_starts_from_pytorchs_initialisation(make_config):
    config = make_config()
    config.text_config.initializer_range = 0.5
    bound = config.audio_config.projection_dim**-0.5
    weight = RGMCModel(config).mapper.linear1.weight.detach()
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_parts_keep_their_weights_and_their_attention(make_config, tmp_path):
    config = make_config()
    clap_text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    clap = ClapModel(ClapConfig(audio_config=config.audio_config.to_dict(), text_config=clap_text, projection_dim=32))
    clap.save_pretrained(tmp_path / "clap")
    gpt2 = GPT2LMHeadModel(GPT2Config.from_dict(config.text_config.to_dict()))
    gpt2.save_pretrained(tmp_path / "gpt2")
    model = RGMCModel.from_audio_text_pretrained(str(tmp_path / "clap"), str(tmp_path / "gpt2"), prefix_length=4)
    for name, tensor in clap.audio_model.state_dict().items():
        assert torch.equal(tensor, model.audio_tower.audio_model.state_dict()[name])
    for name, tensor in gpt2.state_dict().items():
        assert torch.equal(tensor, model.text_model.state_dict()[name])
    assert model.text_model.config._attn_implementation == "sdpa"
    assert model.text_model.lm_head.weight is model.text_model.transformer.wte.weight
    model.save_pretrained(tmp_path / "rgmc")
    loaded = RGMCModel.from_pretrained(tmp_path / "rgmc")
    assert loaded.text_model.config._attn_implementation == "sdpa"
    assert loaded.text_model.lm_head.weight is loaded.text_model.transformer.wte.weight


def test_loading_in_bfloat16_keeps_the_encoder_and_its_datastore(make_model, processor, log_mels, tmp_path):
    model = make_model()
    features = log_mels(8)
    model.set_datastore(make_datastore(model, processor, features))
    model.save_pretrained(tmp_path)
    loaded = RGMCModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.text_model.dtype == torch.bfloat16
    assert torch.equal(loaded.embed_audio(features), model.embed_audio(features))
    assert loaded.generate(input_features=features[:2]).shape[0] == 2


def test_eight_clips_are_learnt_until_beam_search_repeats_their_captions(make_model, processor, log_mels):
    model = make_model(max_new_tokens=40)
    processor.max_caption_length = processor.max_candidate_length = 40
    features = log_mels(8)
    model.set_log_mel_statistics(features.mean(dim=(0, 1, 2)), features.var(dim=(0, 1, 2)))
    candidates = CAPTIONS[1:] + CAPTIONS[:1]  # each is the caption of another clip
    prompts = [processor.encode_prompt([candidate]) for candidate in candidates]
    captions = [processor.encode_caption(caption) for caption in CAPTIONS]
    length = max(len(prompt) + len(caption) for prompt, caption in zip(prompts, captions))
    rows = [(prompt + caption, len(prompt)) for prompt, caption in zip(prompts, captions)]
    input_ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in rows])
    labels = torch.tensor([[-100] * start + row[start:] + [-100] * (length - len(row)) for row, start in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(150):
        model(input_ids=input_ids, attention_mask=mask, labels=labels, input_features=features).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tokens = model.eval().generate(input_features=features, **processor(candidates=candidates))
    assert processor.batch_decode(tokens, skip_special_tokens=True) == CAPTIONS
    assert tokens.shape[1] < 40  # every caption ended by its EOS, not by the length limit
