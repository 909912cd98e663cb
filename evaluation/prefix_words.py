"""
Whether the prefix can be read: the words that each of three lenses finds in it, against two floors.

Shape letters: `B` clips, `P` prefix vectors, `D` width of the decoder, `V` tokens of its vocabulary, `S` states.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn.functional import normalize

from attribution_rgmc import split_words
from captions_rgmc import join_candidates
from clips.batches import teacher_forcing_tokens
from clips.embedding import embed_rows
from evaluation.captioning import Captioner
from evaluation.intervals import draw_clips, with_interval
from evaluation.systems import captioning_title
from evaluation.word_sources import FUNCTION_WORDS
from reporting.results import LensResult, Prediction

LENSES = {
    "vocabulary": "Nearest rows of the vocabulary",
    "contextual": "Nearest contextual states",
    "caption": "Caption from the sound alone",
}
MOST_CAPTIONS = 2000  # of the datastore, whose states are compared
AUDIO_ONLY = "rgmc_audio_only_masked"


@torch.no_grad()
def read_prefixes(captioner: Captioner, seed: int) -> dict[str, list[list[str]]]:
    """
    Reads the prefix of each clip as words, by each lens.

    - `vocabulary`: for each prefix vector the row of the token embeddings with the largest cosine, as in ClipCap.
    - `contextual`: for each prefix vector, in the middle layer, the nearest of the states that the words of the
      datastore's captions have there (LatentLens, 2026). The mean is taken off both sides, or all would be alike.
    - `caption`: what the model says without its candidates.

    Args:
        captioner ([`Captioner`]): A checkpoint that hears, and the clips, shared among the processes.
        seed (`int`): Seed of the captions whose states are compared, where the datastore has more than 2,000.

    Returns:
        `dict[str, list[list[str]]]`: By lens the words of each clip, each once, without function words.
    """
    model, tokenizer = captioner.model, captioner.processor.tokenizer
    embeds = embed_rows(model, captioner.features, captioner.accelerator, captioner.batch_size, "Embedding the clips")
    states, words = contextual_states(captioner, seed)
    songs = np.random.default_rng(seed).permutation(len(model.datastore))[:MOST_CAPTIONS]
    others = model.datastore.read_embeddings(songs)
    center = torch.cat([prefix_states(model, part) for part in _batches(others, captioner.batch_size)]).mean((0, 1))
    mean = states.mean(0)
    states = normalize(states - mean, dim=-1)
    read: dict[str, list[list[str]]] = {"vocabulary": [], "contextual": []}
    for part in _batches(embeds, captioner.batch_size):
        read["vocabulary"] += nearest_words(model, tokenizer, part)
        heard = normalize(prefix_states(model, part) - center, dim=-1)  # (B, P, D)
        for rows in (heard @ states.T).argmax(-1).tolist():
            read["contextual"].append(_contentful(words[row] for row in rows))
    lines = captioner.caption(captioning_title(AUDIO_ONLY), masked_to="audio")
    read["caption"] = [_contentful(line["prediction"].split()) for line in lines]
    return read


@torch.no_grad()
def nearest_words(model, tokenizer, embeds: torch.Tensor) -> list[list[str]]:
    """The words of sounds `(B, E)` by the lens `vocabulary` of [`read_prefixes`]."""
    table = normalize(model.get_input_embeddings().weight.float(), dim=-1)  # (V, D)
    prefix = model.mapper(embeds.to(model.device, model.mapper.linear1.weight.dtype)).float()  # (B, P, D)
    nearest = (normalize(prefix, dim=-1) @ table.T).argmax(-1).tolist()
    return [_contentful(tokenizer.decode([token]) for token in tokens) for tokens in nearest]


def _batches(embeds: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(embeds[start : start + size]) for start in range(0, len(embeds), size))


def _contentful(words) -> list[str]:
    """Words, each once, without those that say nothing of a sound."""
    stripped = (word.strip() for word in words)
    return [word for word in dict.fromkeys(stripped) if word and word not in FUNCTION_WORDS]


def _middle(model) -> int:
    return -(-model.config.text_config.num_hidden_layers // 2)


@torch.no_grad()
def prefix_states(model, embeds: torch.Tensor) -> torch.Tensor:
    """States `(B, P, D)` of the prefixes of sounds `(B, E)` after the middle layer of the decoder."""
    prefix = model.mapper(embeds.to(model.device, model.mapper.linear1.weight.dtype))
    inputs = prefix.to(model.get_input_embeddings().weight.dtype)
    return model.text_model(inputs_embeds=inputs, output_hidden_states=True).hidden_states[_middle(model)].float()


@torch.no_grad()
def contextual_states(captioner: Captioner, seed: int) -> tuple[torch.Tensor, list[str]]:
    """
    States `(S, D)` of the last token of each content word in the datastore's captions, after the middle layer of the
    decoder, and these words. The captions follow the separator alone, as a caption without candidates does.
    """
    model, processor, accelerator = captioner.model, captioner.processor, captioner.accelerator
    rows = np.random.default_rng(seed).permutation(len(model.datastore))[:MOST_CAPTIONS]
    captions = model.datastore.rows[sorted(rows.tolist())]["input_ids"]
    own = captions[accelerator.process_index :: accelerator.num_processes]
    prompt = join_candidates([], processor.separator_token_id)
    found: list[tuple[np.ndarray, list[str]]] = []
    for start in range(0, len(own), captioner.batch_size):
        texts = own[start : start + captioner.batch_size]
        batch = teacher_forcing_tokens([prompt] * len(texts), texts, processor.tokenizer.pad_token_id)
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        outputs = model.text_model(**inputs, output_hidden_states=True)
        states = outputs.hidden_states[_middle(model)].float().cpu().numpy()  # (B, L, D)
        for tokens, of_caption in zip(texts, states):
            words, owners = split_words(list(tokens), processor.tokenizer)
            last = {owner: position for position, owner in enumerate(owners)}
            kept = [(word, last[number]) for number, word in enumerate(words) if word not in FUNCTION_WORDS]
            positions = [len(prompt) + position for _, position in kept]
            found.append((of_caption[positions], [word for word, _ in kept]))
    gathered = gather_object(found)
    states = torch.from_numpy(np.concatenate([part for part, _ in gathered])).to(model.device)
    return states, [word for _, own in gathered for word in own]


def score_lenses(
    read: dict[str, list[list[str]]], lines: list[Prediction], training_captions: list[str], samples: int, seed: int
) -> dict[str, LensResult]:
    """
    Scores the words of each lens: the share that the clip's own captions have. Its floors are the share that another
    clip's captions have, and the share of as many of the most frequent words of the training captions.

    Args:
        read (`dict[str, list[list[str]]]`): As [`read_prefixes`] returns it.
        lines (`list[Prediction]`): Of each clip.
        training_captions (`list[str]`): Captions of the datastore.
        samples, seed (`int`): Resamples of the clips for the intervals, and their seed, also of the shuffling.
    """
    gold = [{word for text in line["references"] for word in text.split()} for line in lines]
    order = np.random.default_rng(seed).permutation(len(lines))
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist()))  # a cycle: none keeps its own captions
    counts = Counter(word for caption in training_captions for word in {*caption.split()} - FUNCTION_WORDS)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    draws = draw_clips(len(lines), samples, seed)
    results = {}
    for lens, by_clip in read.items():
        sizes = np.array([len(words) for words in by_clip], float)
        hits = {
            "own": [len(gold[row].intersection(words)) for row, words in enumerate(by_clip)],
            "shuffled": [len(gold[other[row]].intersection(words)) for row, words in enumerate(by_clip)],
            "frequent": [len(gold[row].intersection(frequent[: len(words)])) for row, words in enumerate(by_clip)],
        }
        below = np.maximum(draws @ sizes, 1)
        shares = {name: 100 * np.sum(counted) / max(sizes.sum(), 1) for name, counted in hits.items()}
        drawn = {name: 100 * (draws @ np.array(counted, float)) / below for name, counted in hits.items()}

        def score(name: str, floor: str | None = None, shares=shares, drawn=drawn):
            value, resamples = shares[name], drawn[name]
            if floor is not None:
                value, resamples = value - shares[floor], resamples - drawn[floor]
            return with_interval(float(value), resamples if samples else None)

        results[lens] = LensResult(
            title=LENSES[lens],
            words=int(sizes.sum()),
            hits=score("own"),
            shuffled=score("shuffled"),
            frequent=score("frequent"),
            above_shuffled=score("own", "shuffled"),
            above_frequent=score("own", "frequent"),
        )
    return results
