"""What `generate` needs beside the decoder's own: its defaults, and consensus decoding."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig

try:
    from .captions_rgmc import normalize_caption, rank_by_centrality
    from .configuration_rgmc import RGMCConfig
except ImportError:
    from captions_rgmc import normalize_caption, rank_by_centrality
    from configuration_rgmc import RGMCConfig

CACHE_NAMES = ("past_key_values", "cache")  # names of the decoder's key-value cache
SELECTIONS = ("best", "consensus")
LEAST_PROBABILITY = 0.01  # of a word, so that a single one does not decide alone
UNSUPPORTED = ("return_dict_in_generate", "streamer")


def rename_cache(arguments: dict, function: Callable):
    """
    Renames a key-value cache among `arguments` to the name that `function` uses: `cache` since transformers 5.24,
    `past_key_values` before, and still so in some decoders.
    """
    for name, other in (CACHE_NAMES, CACHE_NAMES[::-1]):
        if name in arguments and other not in arguments:
            known = inspect.signature(function).parameters
            if name not in known and other in known:
                arguments[other] = arguments.pop(name)


def default_generation_config(config: RGMCConfig) -> GenerationConfig:
    """Beam search with 5 beams, no repeated trigram (section 3.3), captions of up to 128 tokens."""
    eos_token_id = config.text_config.eos_token_id
    return GenerationConfig(
        num_beams=5,
        no_repeat_ngram_size=3,
        max_new_tokens=128,
        bos_token_id=config.separator_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id[0] if isinstance(eos_token_id, list) else eos_token_id,
    )


def generate_consensus(
    model,
    audio_embeds: torch.Tensor | None,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    exclude_ids: list[str | None] | None = None,
    consensus_neighbors: int = 5,
    word_weight: float = 1.0,
    tokenizer=None,
    num_return_sequences: int | None = None,
    return_neighbors: bool = False,
    **kwargs,
) -> torch.Tensor | tuple[torch.Tensor, list[int]]:
    """
    Captions each clip from the caption of each of its nearest songs in turn, keeps all beams, and chooses the caption
    that is most similar to the others. A beam counts as much as its song is similar to the clip.

    A model with a word head also knows how probable words are, given the sound. With a `tokenizer`, the mean of their
    logarithms over the words of a caption, times `word_weight`, is added to the caption's similarity to the others.

    Decoding takes as many times longer as there are songs. Nothing is drawn, and captions do not depend on the batch.

    Args:
        model ([`RGMCModel`]), audio_embeds, input_ids, attention_mask, exclude_ids, kwargs:
            As in [`~RGMCModel.generate`]. With `input_ids` the choice is among the beams of these candidates.
        consensus_neighbors (`int`, defaults to 5):
            How many songs are used in turn. A model of several candidates is given each with those that follow it.
        word_weight (`float`, defaults to 1.0):
            Weight of the words' mean log-probability beside the similarity to the other captions, 0 to 1.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The processor's: reads the words of a caption.
        num_return_sequences (`int`, defaults to 1):
            How many captions of each clip are returned, the best first, at most as many as there are beams.
        return_neighbors (`bool`, defaults to `False`):
            Whether to return, too, from which song each caption was written: 0 for the nearest.

    Returns:
        `torch.LongTensor` of shape `(B * num_return_sequences, L')` with the tokens of the captions, those of a clip
        one after the other; with `return_neighbors` a tuple of it and a list of as many numbers.

    Raises:
        `ValueError`: If `kwargs` ask for a dictionary or a stream, or for more captions than there are beams.
    """
    wrong = [name for name in UNSUPPORTED if kwargs.get(name) not in (None, False)]
    if wrong:
        raise ValueError(f"a consensus returns tokens alone: leave out {', '.join(wrong)}, or pass `selection='best'`")
    kwargs = {name: value for name, value in kwargs.items() if name not in UNSUPPORTED}
    beams, count = _setting(model, kwargs, "num_beams") or 1, num_return_sequences or 1
    if count > beams:
        raise ValueError(f"`num_return_sequences` is {count}: expected at most `num_beams`, which is {beams}")
    prompts: list[tuple] = [(input_ids, attention_mask, None)]
    if input_ids is None and model.retrieves:
        prompts = neighbor_prompts(model, audio_embeds, exclude_ids, consensus_neighbors)
    end = _setting(model, kwargs, "eos_token_id")
    ends = {end} if isinstance(end, int) else {*end}
    pad_token_id = _setting(model, kwargs, "pad_token_id")
    options = {"num_return_sequences": beams, "return_dict_in_generate": False, "tokenizer": tokenizer}
    hypotheses: list[list[list[int]]] = []
    weights: list[list[float]] = []
    neighbors: list[list[int]] = []
    for neighbor, (ids, mask, similarities) in enumerate(prompts):
        inputs = {"input_ids": ids, "attention_mask": mask, "audio_embeds": audio_embeds, "selection": "best"}
        tokens = model.generate(**inputs, **options, **kwargs)  # (B * beams, L')
        clips = tokens.unflatten(0, (-1, beams)).tolist()
        if not hypotheses:
            hypotheses, weights, neighbors = [[] for _ in clips], [[] for _ in clips], [[] for _ in clips]
        for clip, sequences in enumerate(clips):
            weight = 1.0 if similarities is None else similarities[clip]
            if weight is not None:
                hypotheses[clip] += [_until_end(sequence, ends) for sequence in sequences]
                weights[clip] += [weight] * beams
                neighbors[clip] += [neighbor] * beams
    bonuses: list[list[float] | None] = [None] * len(hypotheses)
    if tokenizer is not None and word_weight and model.word_head is not None and model.config.uses_audio:
        probabilities = model.word_head.logits(audio_embeds).sigmoid().tolist()
        bonuses = [
            [
                word_weight * mean_log_probability(model.config, values, text)
                for text in tokenizer.batch_decode(said, skip_special_tokens=True)
            ]
            for values, said in zip(probabilities, hypotheses)
        ]
    chosen: list[list[int]] = []
    sources: list[int] = []
    for said, numbers, *scores in zip(hypotheses, neighbors, weights, bonuses):
        best: dict[tuple[int, ...], int] = {}
        for index in rank_by_centrality(said, *scores):
            best.setdefault(tuple(said[index]), numbers[index])
        ranks = [min(rank, len(best) - 1) for rank in range(count)]
        chosen += [list([*best][rank]) for rank in ranks]
        sources += [[*best.values()][rank] for rank in ranks]
    length = max(map(len, chosen))
    tokens = torch.tensor([said + [pad_token_id] * (length - len(said)) for said in chosen], device=model.device)
    return (tokens, sources) if return_neighbors else tokens


def prompt_of_neighbor(
    model, audio_embeds: torch.Tensor, exclude_ids: list[str | None] | None, neighbors: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The decoder's prompt from a neighbor of each clip, 0 for the nearest: `input_ids` and `attention_mask`, `(B, L)`.
    """
    k = model.config.num_candidates
    found = model.datastore.search(audio_embeds, max(neighbors) + k, exclude_ids)
    parts = (found.input_ids, found.similarities)
    return model.encode_prompts(*([own[n : n + k] for n, own in zip(neighbors, part)] for part in parts))


def mean_log_probability(config: RGMCConfig, probabilities: list[float], caption: str) -> float:
    """
    The mean log-probability of the words of a caption, each at least `LEAST_PROBABILITY`; that of the least probable
    word for a caption without any of `config.words`.
    """
    columns = {word: column for column, word in enumerate(config.words)}
    words = {*normalize_caption(caption, config.caption_normalization).split()}
    found = [probabilities[columns[word]] for word in sorted(words) if word in columns] or [0.0]
    return sum(math.log(max(probability, LEAST_PROBABILITY)) for probability in found) / len(found)


def neighbor_prompts(
    model, audio_embeds: torch.Tensor, exclude_ids: list[str | None] | None, neighbors: int
) -> list[tuple[torch.Tensor, torch.Tensor, list[float | None]]]:
    """
    The decoder's prompts from the nearest song of each clip, from the second nearest, and so on: `input_ids` and
    `attention_mask`, each `(B, L)`, and the songs' similarities, at least 0; None for a clip with fewer songs.
    """
    k = model.config.num_candidates
    found = model.datastore.search(audio_embeds, neighbors + k - 1, exclude_ids)
    prompts = []
    for first in range(neighbors):
        similarities = [scores[first] if first < len(scores) else None for scores in found.similarities]
        if first and not any(score is not None for score in similarities):
            break
        candidates, scores = (
            [of_clip[first : first + k] for of_clip in part] for part in (found.input_ids, found.similarities)
        )
        weights = [1.0 if score is None and not first else score and max(score, 0.0) for score in similarities]
        prompts.append((*model.encode_prompts(candidates, scores), weights))
    return prompts


def _setting(model, kwargs: dict[str, Any], name: str) -> Any:
    """A setting of `generate`: the caller's, that of the caller's generation configuration, or the model's own."""
    places = (kwargs.get("generation_config"), model.generation_config)
    values = (kwargs.get(name), *(getattr(place, name, None) for place in places))
    return next((value for value in values if value is not None), None)


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens of a caption with its end, without the padding that follows."""
    last = next((position for position, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]
