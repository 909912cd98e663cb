"""
Each kind of `generate` call writes what the decoder's own `generate` writes after the same prefix and candidate.

This must hold whatever transformers calls the key-value cache: `cache` since 5.24, `past_key_values` before.
"""

import functools
import inspect

import pytest
import torch
from transformers import DynamicCache, GPT2LMHeadModel, StaticCache

from generation_rgmc import CACHE_NAMES, rename_cache
from modeling_rgmc import RGMCModel


@pytest.fixture
def make_lively(make_model):
    """Makes models say something different of each clip; random weights of the usual size do not."""

    def make(**fields) -> RGMCModel:
        model = make_model(max_new_tokens=8, **fields)
        model.generation_config.min_new_tokens = 3
        for weight in model.text_model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.5)
        return model

    return make


class Tokens:
    """A streamer that keeps the tokens it receives."""

    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


GREEDY = {"num_beams": 1}
CALLS = {
    "beams": {},
    "greedy": GREEDY,
    "sampling": {"num_beams": 1, "do_sample": True},
    "beams_and_sampling": {"do_sample": True},
    "several_sequences": {"num_return_sequences": 3},
    "streamer": {**GREEDY, "streamer": Tokens},
    "static_cache": {"cache_implementation": "static"},
    "static_cache_greedy": {**GREEDY, "cache_implementation": "static"},
    "no_cache": {"use_cache": False},
    "scores": {"return_dict_in_generate": True, "output_scores": True},
}


@pytest.fixture
def prompts(processor):
    def make(model) -> dict:
        prompts = [processor.encode_prompt([text]) for text in ("a sad ballad of piano", "folk", "dark low brass")]
        length = max(map(len, prompts))
        pad = processor.tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in prompts]),
            "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts]),
        }

    return make


def call(generate, inputs: dict, options: dict):
    """Generates; returns the tokens, the streamer's tokens, and the scores."""
    options = {name: value() if isinstance(value, type) else value for name, value in options.items()}
    torch.manual_seed(0)
    with torch.no_grad():
        made = generate(**inputs, **options)
    streamed = options["streamer"].tokens if "streamer" in options else None
    if torch.is_tensor(made):
        return made, streamed, None
    return made.sequences, streamed, torch.stack(made.scores)


def respell(monkeypatch, model: RGMCModel, spelling: str):
    """Passes a cache to `model.forward` as `spelling`, as a transformers that uses this name does."""
    forward = RGMCModel.forward
    got = []

    @functools.wraps(forward)  # transformers reads its signature
    def respelled(self, *args, **kwargs):
        for name in CACHE_NAMES:
            if kwargs.get(name) is not None:
                kwargs[spelling] = kwargs.pop(name)
                got.append(spelling)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(RGMCModel, "forward", respelled)
    return got


@pytest.mark.parametrize("spelling", CACHE_NAMES)
@pytest.mark.parametrize("conditioning", ["audio+candidate", "candidate"])
@pytest.mark.parametrize("kind", CALLS)
def test_each_kind_of_call_equals_the_decoders_own(
    make_lively, log_mels, prompts, monkeypatch, kind, conditioning, spelling
):
    model = make_lively(conditioning=conditioning)
    inputs, options = prompts(model), CALLS[kind]
    if "streamer" in options:  # a streamer takes one clip
        inputs = {name: tensor[-1:] for name, tensor in inputs.items()}
    embeds = model.embed_audio(log_mels(len(inputs["input_ids"])))
    inputs_embeds, attention_mask = model.join_inputs(embeds, **inputs)
    decoder = model.text_model
    decoder.generation_config = model.generation_config
    expected = call(decoder.generate, {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}, options)

    got = respell(monkeypatch, model, spelling)
    tokens, streamed, scores = call(model.generate, {**inputs, "audio_embeds": embeds}, options)
    assert got, "no step came with a cache: this test tells nothing of its name"
    assert tokens.tolist() == expected[0].tolist()
    assert len(set(map(tuple, tokens.tolist()))) > 1 or len(tokens) == 1
    assert streamed == expected[1]
    if scores is not None:
        torch.testing.assert_close(scores, expected[2])


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("spelling", CACHE_NAMES)
def test_a_cache_of_the_callers_own_is_taken_by_either_name(make_lively, log_mels, prompts, kind, spelling):
    model = make_lively()
    inputs = {**prompts(model), "audio_embeds": model.embed_audio(log_mels(3)), "num_beams": 1}
    expected = model.generate(**inputs)
    cache = kind(config=model.config.text_config, **({"max_cache_len": 64} if kind is StaticCache else {}))
    assert model.generate(**inputs, **{spelling: cache}).tolist() == expected.tolist()
    length = model.config.prefix_length + inputs["input_ids"].shape[1] + expected.shape[1]
    assert int(cache.get_seq_length()) == length - 1, "the caller's cache is not the one that was filled"


@pytest.mark.parametrize("spelling", CACHE_NAMES)
def test_forward_continues_a_cache_of_either_name(make_model, log_mels, prompts, spelling):
    model = make_model()
    inputs, embeds = prompts(model), model.embed_audio(log_mels(3))
    more = torch.tensor([[5, 6], [7, 8], [9, 10]])
    mask = inputs["attention_mask"]
    with torch.no_grad():
        whole = model(
            input_ids=torch.cat([inputs["input_ids"], more], 1),
            attention_mask=torch.cat([mask, torch.ones_like(more)], 1),
            audio_embeds=embeds,
        ).logits[:, -2:]
        first = model(**inputs, audio_embeds=embeds, use_cache=True)
        cache = getattr(first, CACHE_NAMES[1], None) or first.past_key_values
        prefix = mask.new_ones(3, model.config.prefix_length)
        attention_mask = torch.cat([prefix, mask, torch.ones_like(more)], 1)
        continued = model(input_ids=more, attention_mask=attention_mask, **{spelling: cache}).logits
    torch.testing.assert_close(continued, whole)


@pytest.mark.parametrize("spelling", CACHE_NAMES)
def test_a_decoder_of_either_habit_gets_the_cache(make_lively, log_mels, prompts, monkeypatch, spelling):
    """A decoder's code on the Hub may use another name than this version of transformers."""
    model = make_lively()
    inputs = {**prompts(model), "audio_embeds": model.embed_audio(log_mels(3))}
    expected = model.generate(**inputs)
    own = model.text_model.forward
    name = next(name for name in CACHE_NAMES if name in inspect.signature(GPT2LMHeadModel.forward).parameters)
    got = []

    def old(inputs_embeds=None, attention_mask=None, past_key_values=None, **kwargs):
        got.append(past_key_values)
        return own(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **{name: past_key_values}, **kwargs)

    def new(inputs_embeds=None, attention_mask=None, cache=None, **kwargs):
        got.append(cache)
        return own(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **{name: cache}, **kwargs)

    monkeypatch.setattr(model.text_model, "forward", old if spelling == "past_key_values" else new)
    assert model.generate(**inputs).tolist() == expected.tolist()
    assert len(got) > 1 and all(cache is not None for cache in got)


def test_a_first_call_without_sound_says_what_it_needs(make_model):
    with pytest.raises(ValueError, match="needs `input_features` or `audio_embeds`"):
        make_model()(input_ids=torch.tensor([[5, 6]]))


def test_a_misspelt_argument_of_generate_is_an_error(make_model, log_mels, prompts):
    model = make_model()
    with pytest.raises(ValueError, match="num_beam"):
        model.generate(**prompts(model), audio_embeds=model.embed_audio(log_mels(3)), num_beam=3)


def test_a_cache_is_renamed_only_where_the_other_name_is_the_known_one():
    for known, other in (CACHE_NAMES, CACHE_NAMES[::-1]):
        for given in CACHE_NAMES:
            arguments = {given: 1, "x": 2}
            namespace = {}
            exec(f"def function({known}=None, x=None): pass", namespace)
            rename_cache(arguments, namespace["function"])
            assert arguments == {known: 1, "x": 2}
        both = {known: 1, other: 2}
        rename_cache(both, namespace["function"])
        assert both == {known: 1, other: 2}
    arguments = {"cache": 1}
    rename_cache(arguments, lambda **kwargs: None)
    assert arguments == {"cache": 1}
