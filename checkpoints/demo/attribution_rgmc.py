"""
Which words of a caption come from the sound and which from the candidate: exact Shapley values of these two players.

Shape letters: `B` clips, `E` numbers of an audio embedding, `L` tokens of the candidates, `C` tokens of a caption.
"""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

try:
    from .captions_rgmc import join_candidates, left_pad
    from .generation_rgmc import prompt_of_neighbor
except ImportError:
    from captions_rgmc import join_candidates, left_pad
    from generation_rgmc import prompt_of_neighbor

COALITIONS = ("nothing", "audio", "candidate", "both")  # what the decoder sees beside the caption so far
UNSUPPORTED = ("num_return_sequences", "return_dict_in_generate", "streamer")
LEAST_COPIED = 2  # words or tokens: a single one is shared by chance


@dataclass
class Explanation:
    """
    Where the tokens of a caption come from. All numbers are in nats, one for each token, the caption's end included.

    Args:
        tokens (`list[int]`):
            The caption.
        ended (`bool`):
            Whether the last token is the caption's end.
        candidates (`list[list[int]]`):
            Tokens of the candidates, without separators.
        log_probs (`dict[str, np.ndarray]`):
            Log-probabilities of the tokens by what the decoder sees: `"nothing"`, `"audio"`, `"candidate"`, `"both"`.
        out_of_distribution (`list[str]`):
            Which of these the model has not learned from: see [`untrained_coalitions`].
        controls (`dict[str, np.ndarray]`):
            `"audio"` and `"candidate"`: what the sound, or the candidate, of random songs would get of the same tokens.
            Empty if there are no songs to draw from.
    """

    tokens: list[int]
    ended: bool
    candidates: list[list[int]]
    log_probs: dict[str, np.ndarray]
    out_of_distribution: list[str]
    controls: dict[str, np.ndarray]

    @property
    def audio(self) -> np.ndarray:
        """What the sound adds to the log-probability of each token: its Shapley value."""
        return shapley_value(*(self.log_probs[name] for name in ("both", "candidate", "audio", "nothing")))

    @property
    def candidate(self) -> np.ndarray:
        """What the candidates add to the log-probability of each token: their Shapley value."""
        return shapley_value(*(self.log_probs[name] for name in ("both", "audio", "candidate", "nothing")))

    @property
    def copied(self) -> list[list[tuple[int, int, int]]]:
        """For each candidate the token spans that the caption shares with it, as [`find_copied`] returns them."""
        return [find_copied(self.tokens, candidate) for candidate in self.candidates]

    def to_dict(self, tokenizer) -> dict[str, Any]:
        """
        The explanation in words, for people and files: each number is the sum over the tokens of a word.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                That of the processor.

        Returns:
            `dict`:

            - `words` (`list[dict]`): each with `word` (None for the caption's end), `audio` and `candidate` (Shapley
              values), `log_probs` (by what the decoder sees) and `controls` (as in [`Explanation`]);
            - `candidates` (`list[str]`): the captions that the decoder was given, in its own spelling;
            - `copied` (`list[dict]`): the longest spans of words that the caption shares with each candidate: `text`,
              `start` and `end` (in the caption), `candidate` (its number, from 0) and `candidate_start`;
            - `out_of_distribution` (`list[str]`): as in [`Explanation`].
        """
        ends = self.ended and not tokenizer.decode(self.tokens[-1:], skip_special_tokens=True)
        words, owners = split_words(self.tokens[:-1] if ends else self.tokens, tokenizer)
        count = len(words) + ends
        owners += [len(words)] * ends

        def summed(values: np.ndarray) -> list[float]:
            return np.bincount(owners, values, count).tolist() if count else []

        audio, candidate = summed(self.audio), summed(self.candidate)
        log_probs = {name: summed(values) for name, values in self.log_probs.items()}
        controls = {name: summed(values) for name, values in self.controls.items()}
        rows = [
            {
                "word": words[index] if index < len(words) else None,
                "audio": audio[index],
                "candidate": candidate[index],
                "log_probs": {name: values[index] for name, values in log_probs.items()},
                "controls": {name: values[index] for name, values in controls.items()},
            }
            for index in range(count)
        ]
        copied = [
            {"text": " ".join(words[start:end]), "start": start, "end": end, "candidate": number, "candidate_start": at}
            for number, tokens in enumerate(self.candidates)
            for start, end, at in find_copied(words, split_words(tokens, tokenizer)[0])
        ]
        candidates = tokenizer.batch_decode(self.candidates)
        return {
            "words": rows,
            "candidates": candidates,
            "copied": copied,
            "out_of_distribution": self.out_of_distribution,
        }


class ExplainsCaptions:
    """Gives a model the method `explain`."""

    @torch.no_grad()
    def explain(
        self,
        input_features: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        tokens: torch.Tensor | None = None,
        exclude_ids: list[str | None] | None = None,
        neighbors: list[int] | None = None,
        random_songs: int = 1,
        seed: int = 0,
        **kwargs,
    ) -> list[Explanation]:
        """
        Captions clips and divides the log-probability of each token of the captions between sound and candidates.

        With `v(S)` the log-probability of a token when the decoder sees `S`, `a` the sound and `c` the candidates, the
        sound gets `½[(v(a) - v(∅)) + (v(ac) - v(c))]`, and the candidates likewise: the Shapley value, exact for two
        players, which sums to `v(ac) - v(∅)`. It costs four passes over the finished caption.

        A source is taken away as training takes it away: without its candidates a clip has the separator alone
        (`--candidate_dropout`), and without its sound the prefix is masked (`--prefix_dropout`). The prefix of a
        mapper that gives nothing but zeros holds no sound and stays.

        Each of `random_songs` costs four passes more. Their shares say what *any* sound or candidate would get; what a
        clip's own sound gets beyond that is the sound's. Songs with a caption of the clip's candidates are not drawn.

        Args:
            input_features, input_ids, attention_mask, audio_embeds, exclude_ids:
                As in [`~RGMCModel.generate`].
            tokens (`torch.LongTensor` of shape `(B, C)`, *optional*):
                Captions to explain, as `generate` returns them; by default it is called.
            neighbors (`list[int]`, *optional*):
                With `tokens` of a consensus, which takes the captions of several songs in turn: the song that each
                was written from, as `generate(..., return_neighbors=True)` returns them. By default the nearest.
            random_songs (`int`, defaults to 1):
                Songs of the datastore for the controls; 0 for no controls.
            seed (`int`, defaults to 0):
                Seed of these songs. A clip gets the same ones in any batch.
            kwargs:
                Arguments of [`~RGMCModel.generate`].

        Returns:
            `list[Explanation]`: One per clip, the same whatever else is in the batch, up to rounding.

        Raises:
            `ValueError`: As [`~RGMCModel.generate`], and if `kwargs` ask for more than one caption of a clip.
        """
        model: Any = self
        wrong = [name for name in UNSUPPORTED if kwargs.get(name) not in (None, False, 1)]
        if wrong:
            raise ValueError(f"`explain` is of one caption per clip: leave out {', '.join(wrong)}")
        if audio_embeds is None and input_features is not None:
            audio_embeds = model.embed_audio(input_features)
        if audio_embeds is not None:
            audio_embeds = audio_embeds.to(model.device)
        prompt = {"input_ids": input_ids, "attention_mask": attention_mask}
        if tokens is None:
            consensus = (kwargs.get("selection") or model.config.selection) == "consensus"
            options = {**kwargs, "return_neighbors": True} if consensus else kwargs
            tokens = model.generate(audio_embeds=audio_embeds, exclude_ids=exclude_ids, **prompt, **options)
            tokens, neighbors = tokens if consensus else (tokens, None)
        if input_ids is None and neighbors is not None and model.retrieves:
            input_ids, attention_mask = prompt_of_neighbor(model, audio_embeds, exclude_ids, neighbors)
        elif input_ids is None:
            found = model.retrieve(audio_embeds, exclude_ids) if model.retrieves else None
            input_ids, attention_mask = model.prompt_ids(audio_embeds, found)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        tokens, input_ids, attention_mask = (part.to(model.device) for part in (tokens, input_ids, attention_mask))
        return _explain(model, tokens, audio_embeds, input_ids, attention_mask, random_songs, seed)


def _explain(
    model,
    tokens: torch.Tensor,
    audio_embeds: torch.Tensor | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    random_songs: int,
    seed: int,
) -> list[Explanation]:
    separator = model.config.separator_token_id
    kept = caption_mask(model, tokens)
    alone = torch.full_like(input_ids[:, :1], separator)
    no_candidate = (alone, torch.ones_like(alone))
    given = (input_ids, attention_mask) if model.config.uses_candidate else no_candidate
    no_sound = None
    if model.config.uses_audio:
        prefix = model.mapper(audio_embeds.to(model.mapper.linear1.weight.dtype))  # (B, P, D)
        no_sound = prefix.flatten(1).eq(0).all(1).long()  # masks the prefixes in which there is something

    def log_probs(prompt, sound: torch.Tensor | None = audio_embeds, prefix_mask: torch.Tensor | None = None):
        found = caption_log_probs(model, tokens, sound, *prompt, prefix_mask=prefix_mask)
        return found.double().cpu().numpy()

    values = {
        "nothing": log_probs(no_candidate, prefix_mask=no_sound),
        "audio": log_probs(no_candidate),
        "candidate": log_probs(given, prefix_mask=no_sound),
        "both": log_probs(given),
    }
    parts = [
        split_candidates(ids[mask.bool()].tolist(), separator) for ids, mask in zip(given[0].cpu(), given[1].cpu())
    ]
    told = model.config.similarity_token_ids
    candidates = [[[token for token in part if token not in told] for part in own] for own in parts]
    # Of each candidate, the token before it; of further ones, that of the clip's own caption.
    further = [told[-1:]] * model.config.num_candidates
    similarities = [[[token for token in part if token in told] for part in own] + further for own in parts]
    drawn = draw_songs(model, candidates, random_songs, seed, tokens.shape[1])
    controls: dict[str, np.ndarray] = {}
    for songs in drawn:
        sounds = None
        if audio_embeds is not None:
            first = np.array([rows[0] for rows in songs])
            sounds = torch.from_numpy(model.datastore.read_embeddings(first)).to(model.device)
        rows_of = model.datastore.rows
        # As similar as the candidates in whose place they are, so that only their words differ.
        prompts = [
            join_candidates([[*told, *rows_of[row]["input_ids"]] for told, row in zip(of_clip, rows)], separator)
            for of_clip, rows in zip(similarities, songs)
        ]
        other = left_pad(prompts, separator) if model.config.uses_candidate else no_candidate
        other = tuple(part.to(model.device) for part in other)
        other_audio = log_probs(no_candidate, sounds), log_probs(given, sounds)
        other_candidate = log_probs(other, prefix_mask=no_sound), log_probs(other)
        shares = {
            "audio": shapley_value(other_audio[1], values["candidate"], other_audio[0], values["nothing"]),
            "candidate": shapley_value(other_candidate[1], values["audio"], other_candidate[0], values["nothing"]),
        }
        controls = {name: controls.get(name, 0.0) + share / len(drawn) for name, share in shares.items()}
    untrained, ends = untrained_coalitions(model.config), _ends(model, tokens)
    explanations = []
    for row, length in enumerate(kept.sum(1).tolist()):
        of_row = [{name: array[row, :length] for name, array in part.items()} for part in (values, controls)]
        ended = bool(length and ends[row, length - 1])
        said = tokens[row, :length].tolist()
        explanations.append(Explanation(said, ended, candidates[row], of_row[0], untrained, of_row[1]))
    return explanations


def shapley_value(both: np.ndarray, without: np.ndarray, alone: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    """
    The Shapley value of one of two players (Shapley 1953): the mean of what it adds to nothing and to the other.

    Args:
        both, without, alone, nothing (`np.ndarray`):
            Values with both players, without this one, with this one alone, and with neither.
    """
    return 0.5 * ((alone - nothing) + (both - without))


def untrained_coalitions(config) -> list[str]:
    """
    Which of `COALITIONS` a model has not learned captions from, as far as its configuration tells. The decoder's
    probabilities are a guess there.

    A training clip lacks its candidates with the probability `candidate_dropout`, its sound with `prefix_dropout`, and
    both with `both_dropout`. A model of one source has learned from it alone.
    """
    if not config.uses_candidate:
        return [] if config.prefix_dropout else ["nothing", "candidate"]
    if not config.uses_audio:
        return ["nothing", "audio"]
    seen = (config.both_dropout, config.candidate_dropout, config.prefix_dropout, 1.0)
    return [name for name, share in zip(COALITIONS, seen) if not share]


def caption_mask(model, tokens: torch.Tensor) -> torch.Tensor:
    """1 for the tokens `(B, C)` of a caption and its end, 0 for the padding that follows."""
    ends = _ends(model, tokens)
    return (ends.cumsum(1) - ends.long() == 0).long()


def _ends(model, tokens: torch.Tensor) -> torch.Tensor:
    return torch.isin(tokens, torch.tensor(model.generation_config.eos_token_id, device=tokens.device))


@torch.no_grad()
def caption_log_probs(
    model,
    tokens: torch.Tensor,
    audio_embeds: torch.Tensor | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    prefix_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Computes the log-probability of each token of finished captions in one pass.

    Args:
        model ([`RGMCModel`])
        tokens (`torch.LongTensor` of shape `(B, C)`):
            Captions, as `generate` returns them.
        audio_embeds (`torch.FloatTensor` of shape `(B, E)`, *optional*):
            Not needed by a model of candidates alone.
        input_ids, attention_mask (`torch.LongTensor` of shape `(B, L)`):
            Candidates and separators, padded on the left.
        prefix_mask (`torch.LongTensor` of shape `(B,)`, *optional*):
            As in [`~RGMCModel.forward`].

    Returns:
        `torch.FloatTensor` of shape `(B, C)`: in nats; 0 for the padding after a caption's end.
    """
    kept = caption_mask(model, tokens)
    logits = model(
        input_ids=torch.cat([input_ids, tokens], dim=1),
        attention_mask=torch.cat([attention_mask, kept], dim=1),
        audio_embeds=audio_embeds,
        prefix_mask=prefix_mask,
        logits_to_keep=tokens.shape[1] + 1,
        use_cache=False,
    ).logits[:, :-1]  # (B, C, vocabulary)
    return logits.float().log_softmax(-1).gather(2, tokens.unsqueeze(2)).squeeze(2) * kept


def split_candidates(prompt: list[int], separator_token_id: int) -> list[list[int]]:
    """The inverse of [`join_candidates`]: the tokens of each candidate, without those of no tokens."""
    candidates: list[list[int]] = [[]]
    for token in prompt:
        if token == separator_token_id:
            candidates.append([])
        else:
            candidates[-1].append(token)
    return [candidate for candidate in candidates if candidate]


def draw_songs(
    model, candidates: list[list[list[int]]], songs: int, seed: int, caption_length: int
) -> list[list[list[int]]]:
    """
    Draws random songs of the datastore for each clip, in an order that depends on the seed alone, without those whose
    caption is among the clip's `candidates`, or too long for the decoder with a caption of `caption_length` tokens.

    Returns:
        `list[list[list[int]]]`: For each of the `songs`, and for each clip, the rows of `config.num_candidates` songs;
        fewer or none if the datastore is too small.
    """
    if not songs or not model.datastore:
        return []
    order = np.random.default_rng(seed).permutation(len(model.datastore)).tolist()
    k, by_clip, count = model.config.num_candidates, [], songs
    positions = getattr(model.config.text_config, "max_position_embeddings", None) or 2**31
    longest = (positions - model.config.prefix_length - caption_length) // k - 1 - model.config.candidate_similarity
    for own in candidates:
        rows: list[int] = []
        for row in order:
            if len(rows) == songs * k:
                break
            token_ids = list(model.datastore.rows[row]["input_ids"])
            if token_ids not in own and len(token_ids) <= longest:
                rows.append(row)
        count = min(count, len(rows) // k)
        by_clip.append([rows[start : start + k] for start in range(0, len(rows), k)])
    return [[rows[song] for rows in by_clip] for song in range(count)]


def find_copied(
    caption: Sequence[Hashable], candidate: Sequence[Hashable], least: int = LEAST_COPIED
) -> list[tuple[int, int, int]]:
    """
    Finds the spans of a caption that a candidate has too, and that are not part of a longer one.

    Args:
        caption, candidate (`Sequence[Hashable]`):
            Words or tokens.
        least (`int`, defaults to 2):
            The shortest span.

    Returns:
        `list[tuple[int, int, int]]`: Start and end in the caption, and the first start in the candidate.
    """
    spans: list[tuple[int, int, int]] = []
    for start in range(len(caption)):
        lengths = [_common(caption[start:], candidate[at:]) for at in range(len(candidate))]
        length = max(lengths, default=0)
        if length >= least and start + length > (spans[-1][1] if spans else 0):
            spans.append((start, start + length, lengths.index(length)))
    return spans


def _common(one: Iterable[Hashable], other: Iterable[Hashable]) -> int:
    """How many items two sequences share from their start on."""
    count = 0
    for left, right in zip(one, other):
        if left != right:
            break
        count += 1
    return count


def split_words(tokens: list[int], tokenizer) -> tuple[list[str], list[int]]:
    """
    Splits a caption into words.

    Args:
        tokens (`list[int]`):
            The caption, without its end.
        tokenizer (`PreTrainedTokenizerBase`):
            That of the processor.

    Returns:
        `tuple`: The words, and for each token the number of its word. White space belongs to the word that follows, or
        to the last one.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    ends = [len(tokenizer.decode(tokens[:count], **options)) for count in range(1, len(tokens) + 1)]
    found = list(re.finditer(r"\S+", tokenizer.decode(tokens, **options)))
    owners, word = [], 0
    for end in ends:
        while word + 1 < len(found) and found[word].end() < end:
            word += 1
        owners.append(word)
    return [match.group() for match in found] or [""] * bool(tokens), owners
