"""
Where the words of a split's captions come from: how much sound and candidates add to each kind of word, and which words
to look at twice.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from captions_rgmc import normalize_caption
from clips.embedding import embed_rows
from evaluation.attributes import Lexicon
from evaluation.captioning import Captioner
from evaluation.intervals import draw_clips, with_interval
from reporting.results import Prediction, SourceShares, WatchedWord, WatchedWords

BIAS_FILE = "evaluation/bias.yaml"
FUNCTION_WORDS = frozenset(
    "a an the this that these those it its is are was were be been being has have having there which who whose and or "
    "but nor so as at by for from in into of off on onto out over to through up upon with within without while "
    "throughout during between among about like than then also both each some other another very".split()
)
KINDS = ("function words", "other words", "end of the caption", "all")
COLUMNS = ("words", "audio", "candidate", "audio_beyond", "candidate_beyond")


@torch.no_grad()
def explain_split(captioner: Captioner, captions: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """
    Explains a caption of each clip by the clip's own sound and candidates.

    Args:
        captioner ([`Captioner`]): The checkpoint and the clips, shared among the processes.
        captions (`Sequence[str]`): One per clip, normalised.
        seed (`int`): Seed of the random songs of the controls.

    Returns:
        `list[dict]`: What [`Explanation.to_dict`] returns for each clip, on every process.
    """
    model, processor, accelerator = captioner.model, captioner.processor, captioner.accelerator
    embeds = embed_rows(model, captioner.features, accelerator, captioner.batch_size, "Embedding the clips")  # (N, E)
    own = range(accelerator.process_index, len(captions), accelerator.num_processes)
    found: list[tuple[int, dict[str, Any]]] = []
    progress = tqdm(total=len(own), desc="Explaining", unit="clip", disable=not accelerator.is_main_process)
    for start in range(0, len(own), captioner.batch_size):
        rows = list(own[start : start + captioner.batch_size])
        said = [torch.tensor(processor.encode_caption(captions[row])) for row in rows]
        tokens = torch.nn.utils.rnn.pad_sequence(said, True, processor.tokenizer.eos_token_id)
        exclude_ids = [captioner.own_ids[row] for row in rows]
        sounds = torch.from_numpy(embeds[rows])
        explained = model.explain(audio_embeds=sounds, tokens=tokens, exclude_ids=exclude_ids, seed=seed)
        found += [(row, explanation.to_dict(processor.tokenizer)) for row, explanation in zip(rows, explained)]
        progress.update(len(rows))
    progress.close()
    return [explanation for _, explanation in sorted(gather_object(found), key=lambda item: item[0])]


def share_by_kind(
    explanations: list[dict[str, Any]], lexicon: Lexicon, samples: int, seed: int
) -> dict[str, SourceShares]:
    """
    What sound and candidates add to the words of each kind: the categories of `lexicon`, function words, the others,
    and the caption's end. A word of several categories counts in each.

    Args:
        explanations (`list[dict]`): Of each clip.
        lexicon ([`Lexicon`]): The words of attributes.
        samples, seed (`int`): Resamples of the clips for the intervals, and their seed.
    """
    kinds = [*lexicon.categories, *KINDS]
    sums = np.zeros((len(explanations), len(kinds), len(COLUMNS)))
    for row, explanation in enumerate(explanations):
        for word, of_word in zip(explanation["words"], kinds_of_words(explanation, lexicon)):
            controls = word["controls"] or {"audio": np.nan, "candidate": np.nan}
            shares = np.array([word["audio"], word["candidate"]])
            values = (1, *shares, *(shares - (controls["audio"], controls["candidate"])))
            for kind in (*of_word, "all"):
                sums[row, kinds.index(kind)] += values
    draws = draw_clips(len(explanations), samples, seed)
    return {kind: _shares(sums[:, column], draws) for column, kind in enumerate(kinds)}


def _shares(sums: np.ndarray, draws: np.ndarray) -> SourceShares:
    """The shares of one kind from its sums in each clip, `(clips, COLUMNS)`."""
    total = sums.sum(axis=0)
    if not total[0]:
        return SourceShares(0)

    def ratio(numerator: np.ndarray, denominator: np.ndarray, scale: float = 1.0):
        """A ratio of sums over the clips; resamples without the kind, or with nothing to share, are left out."""
        if not np.isfinite(numerator).all() or denominator.sum() <= 0:
            return None
        above, below = draws @ numerator, draws @ denominator
        resamples = scale * above[below > 0] / below[below > 0]
        return with_interval(scale * numerator.sum() / denominator.sum(), resamples if len(resamples) else None)

    words, audio, candidate = sums.T[:3]
    means = [ratio(values, words) for values in sums.T[1:]]
    both_add = min(audio.sum(), candidate.sum()) >= 0
    return SourceShares(int(total[0]), *means, share=ratio(audio, audio + candidate, 100.0) if both_add else None)


def kinds_of_words(explanation: dict[str, Any], lexicon: Lexicon) -> list[tuple[str, ...]]:
    """The kinds of each word of an explanation."""
    kinds = []
    for row, concepts in zip(explanation["words"], concepts_of_words(explanation, lexicon)):
        if row["word"] is None:
            kinds.append(("end of the caption",))
        elif concepts:
            kinds.append(tuple(dict.fromkeys(category for category, _ in concepts)))
        elif normalize_caption(row["word"], lexicon.normalization) in FUNCTION_WORDS:
            kinds.append(("function words",))
        else:
            kinds.append(("other words",))
    return kinds


def concepts_of_words(explanation: dict[str, Any], lexicon: Lexicon) -> list[list[tuple[str, str]]]:
    """The concepts that each word of an explanation names, alone or as a part of a phrase."""
    owners: list[int] = []  # of the normalised words
    parts: list[str] = []
    for number, row in enumerate(explanation["words"]):
        own = normalize_caption(row["word"] or "", lexicon.normalization).split()
        parts += own
        owners += [number] * len(own)
    found: list[list[tuple[str, str]]] = [[] for _ in explanation["words"]]
    for start, end, concepts in lexicon.find(" ".join(parts)):
        for number in dict.fromkeys(owners[start:end]):
            found[number] += concepts
    return found


def find_watched(lines: list[Prediction], explanations: list[dict[str, Any]], lexicon: Lexicon) -> WatchedWords:
    """
    Finds the watched words in the captions, and whether the candidate that the model was shown has them, too.

    Args:
        lines (`list[Prediction]`), explanations (`list[dict]`): Of each clip.
        lexicon ([`Lexicon`]): The watched words, as `read_attributes` reads them.
    """
    counts: dict[str, Counter] = {": ".join(concept): Counter() for concept in lexicon.concepts}
    found = []
    for line, explanation in zip(lines, explanations):
        texts = {"captions": [line["prediction"]], "candidates": [line["candidate"] or ""], "gold": line["references"]}
        named = {kind: {concept for text in said for concept in lexicon.claims(text)} for kind, said in texts.items()}
        for kind, concepts in named.items():
            for concept in concepts:
                counts[": ".join(concept)][kind] += 1
        for concept in named["captions"] & named["candidates"]:
            counts[": ".join(concept)]["brought"] += 1
        for row, concepts in zip(explanation["words"], concepts_of_words(explanation, lexicon)):
            for concept in concepts:
                found.append(
                    WatchedWord(
                        group=concept[0],
                        word=row["word"],
                        id=line["id"],
                        caption=line["prediction"],
                        candidate=line["candidate"],
                        candidate_id=line["candidate_id"],
                        in_candidate=concept in named["candidates"],
                        in_gold=concept in named["gold"],
                        audio=row["audio"],
                        by_candidate=row["candidate"],
                    )
                )
    names = ("captions", "candidates", "brought", "gold")
    occurring = {word: {name: own[name] for name in names} for word, own in counts.items() if own}
    return WatchedWords(Path(lexicon.file).name, len(lexicon.concepts), occurring, found)
