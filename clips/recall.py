"""Retrieval measured apart from captioning: how often a clip's nearest songs have a caption similar to its own."""

from collections.abc import Sequence

import numpy as np

from captions_rgmc import caption_similarity

RECALL_AT = (1, 5, 10)  # numbers of neighbours
RECALL_THRESHOLD = 0.5  # of the token F1 score


def first_similar(
    references: Sequence[Sequence[str]], captions: Sequence[str], neighbors: np.ndarray, threshold: float
) -> np.ndarray:
    """
    Finds the first neighbour of each clip whose caption is similar to one of the clip's own.

    Similar captions share words: the F1 score of their words, each counted as often as it occurs, is `threshold` or
    more.

    Args:
        references (`Sequence[Sequence[str]]`): The captions of each of `B` clips, normalised.
        captions (`Sequence[str]`): The caption of each of `N` songs, normalised.
        neighbors (`np.ndarray` of shape `(B, K)`): Row numbers of songs, the nearest first; -1 for none.
        threshold (`float`): From 0 to 1.

    Returns:
        `np.ndarray` of shape `(B,)`: The rank of that neighbour, from 1; infinite where there is none.
    """
    ranks = np.full(len(references), np.inf)
    for clip, (own, rows) in enumerate(zip(references, neighbors)):
        own_words = [reference.split() for reference in own]
        for rank, row in enumerate(rows, start=1):
            if row < 0:
                continue
            words = captions[row].split()
            if any(caption_similarity(words, other, longest=1) >= threshold for other in own_words):
                ranks[clip] = rank
                break
    return ranks


def recall(ranks: np.ndarray) -> dict[str, float]:
    """The share of clips, from 0 to 1, with a similar caption among their k nearest, for each k of `RECALL_AT`."""
    return {f"recall@{k}": float(np.mean(ranks <= k)) for k in RECALL_AT}
