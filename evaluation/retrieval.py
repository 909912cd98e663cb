"""How well encoders retrieve, measured apart from captioning: recall of similar captions, and its ceiling."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from clips.recall import RECALL_AT, first_similar
from evaluation.intervals import draw_clips, mean_share
from evaluation.neighbors import Neighbors
from reporting.results import EncoderRecall, Resamples, RetrievalResults, Score

TITLES = {
    "nearest_neighbor": "RGMC's encoder",
    "nearest_neighbor_frozen": "Frozen encoder",
    "nearest_neighbor_statistics": "Log-mel statistics",
}
MOST_PAIRS = 2_000_000_000  # of captions compared for the ceiling: some 20 s
BLOCK_ROWS = 4096  # songs compared at once; with as many captions of clips, some 100 MB
BLOCK_CLIPS = 1024


def score_retrieval(
    neighbors: dict[str, Neighbors],
    references: list[list[str]],
    threshold: float,
    samples: int,
    seed: int,
    others: Sequence[Neighbors] = (),
) -> tuple[RetrievalResults, Resamples]:
    """
    Computes each encoder's recall of similar captions, its ceiling, and their bootstrap intervals.

    Args:
        neighbors (`dict[str, Neighbors]`): What each encoder retrieves.
        references (`list[list[str]]`): The captions of each clip.
        threshold (`float`): Token F1 from which on two captions are similar.
        samples (`int`): Resamples of the clips; 0 for no intervals.
        seed (`int`): Seed of the resamples, which are those of the systems' scores.
        others (`Sequence[Neighbors]`, *optional*):
            What RGMC's encoder in other checkpoints of the same configuration retrieves from the same songs. Its recall
            is then the mean over all checkpoints.

    Returns:
        `tuple`: the results, and by system of Table 3 the recall in the resamples, as `recall@1` and so on.
    """
    draws = draw_clips(len(references), samples, seed)
    ceilings: dict[tuple, Score] = {}  # encoders that retrieve from the same songs have the same
    encoders, resamples = {}, {}
    for key in TITLES:
        if key not in neighbors:
            continue
        found = neighbors[key]
        songs = (*found.captions, *found.own_rows)
        if songs not in ceilings:
            too_many = sum(map(len, references)) * len(found.captions) > MOST_PAIRS
            ceiling = None if too_many else any_similar(references, found.captions, found.own_rows, threshold)
            ceilings[songs] = Score(None) if ceiling is None else mean_share([ceiling], draws)[0]
        by_checkpoint = [found, *others] if key == "nearest_neighbor" else [found]
        ranks = [first_similar(references, each.captions, each.rows, threshold) for each in by_checkpoint]
        recall, resamples[key] = {}, {}
        for k in RECALL_AT:
            recall[str(k)], drawn = mean_share([own <= k for own in ranks], draws)
            if drawn is not None:
                resamples[key][f"recall@{k}"] = drawn
        encoders[key] = EncoderRecall(TITLES[key], found.source, len(found.captions), recall, ceilings[songs])
    return RetrievalResults(threshold, encoders), resamples


def any_similar(
    references: Sequence[Sequence[str]], captions: Sequence[str], own_rows: Sequence[int], threshold: float
) -> np.ndarray:
    """
    Finds whether any song but a clip's own has a caption similar to one of the clip's, as `first_similar` has it.

    Args:
        references (`Sequence[Sequence[str]]`): The captions of each of `B` clips, normalised.
        captions (`Sequence[str]`): The captions of `N` songs, normalised.
        own_rows (`Sequence[int]`): The song that is the clip itself; -1 for none.
        threshold (`float`): From 0 to 1.

    Returns:
        `np.ndarray` of shape `(B,)`, of `bool`.
    """
    columns: dict[tuple[str, int], int] = {}
    texts = [reference for own in references for reference in own]
    clip_of_text = np.repeat(np.arange(len(references)), [len(own) for own in references])
    own_of_text = np.asarray(own_rows)[clip_of_text]
    counted, lengths = _count_words(texts, columns)
    found = np.zeros(len(references), bool)
    for first_row in range(0, len(captions), BLOCK_ROWS):
        rows, row_lengths = _count_words(captions[first_row : first_row + BLOCK_ROWS], columns)
        counted.resize(len(texts), len(columns))
        for first in range(0, len(texts), BLOCK_CLIPS):
            part = slice(first, first + BLOCK_CLIPS)
            shared = (counted[part] @ rows.T).toarray().astype(np.float64)
            similar = 2 * shared / np.maximum(lengths[part, None] + row_lengths, 1) >= threshold
            similar[own_of_text[part, None] == first_row + np.arange(len(row_lengths))] = False
            found[clip_of_text[part][similar.any(axis=1)]] = True
    return found


def _count_words(texts: Sequence[str], columns: dict[tuple[str, int], int]) -> tuple[sparse.csr_array, np.ndarray]:
    """
    A 0-1 matrix with a column for the first occurrence of each word in a text, one for its second, and so on, and the
    length of each text. The product of two such rows is the number of words that both texts have. New columns are added
    to `columns`.
    """
    indices, ends, lengths = [], [0], []
    for text in texts:
        words = text.split()
        seen: Counter = Counter()
        for word in words:
            seen[word] += 1
            indices.append(columns.setdefault((word, seen[word]), len(columns)))
        ends.append(len(indices))
        lengths.append(len(words))
    matrix = sparse.csr_array((np.ones(len(indices), np.float32), indices, ends), shape=(len(texts), len(columns)))
    return matrix, np.array(lengths)
