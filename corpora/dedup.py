"""
Near-duplicate captions (section 5 of the paper) by the Jaccard similarity of their sets of word 5-grams.

The search is exact and covers all pairs. A prefix filter (Chaudhuri et al., 2006; Bayardo et al., 2007) makes it fast:
two sets that are similar enough share one of their rarest 5-grams, so only pairs that do are compared.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy import sparse

from captions_rgmc import normalize_caption

BLOCK_ENTRIES = 4_000_000  # pairs per block: about 100 MB


def deduplicate(
    captions: Sequence[str], ids: Sequence, ngram: int = 5, threshold: float = 0.8
) -> tuple[list, np.ndarray]:
    """
    Clusters near-duplicate captions and keeps the smallest id of each cluster (section 5).

    Two captions are duplicates when the Jaccard similarity of their sets of word n-grams is above `threshold`; clusters
    are joined by such pairs (single link). Words are those of `normalize_caption` by the rule `paper`. A caption with
    fewer than `ngram` words has its whole text as its only n-gram, so that only equal captions are its duplicates. A
    caption without words has no duplicates.

    Args:
        captions (`Sequence[str]`):
            `N` captions.
        ids (`Sequence`):
            Their unique ids, ordered as numbers if all are integers (or text that reads as integers), else as text.
        ngram (`int`, defaults to 5):
            Words of an n-gram.
        threshold (`float`, defaults to 0.8):
            Similarity that duplicates exceed.

    Returns:
        `tuple[list, np.ndarray]`: The ids kept, in the order of the captions, and the cluster of each caption, `(N,)`
        integers from 0 in the order of the clusters' first captions.

    Raises:
        `ValueError`: If the ids are not unique or not one per caption, or an option is out of range.
    """
    if len(captions) != len(ids):
        raise ValueError(f"{len(captions)} captions but {len(ids)} ids: expected one id for each caption")
    if len(set(ids)) != len(ids):
        raise ValueError(f"ids must be unique: {len(ids) - len(set(ids))} of {len(ids)} are duplicates")
    check_options(ngram, threshold)
    sets, set_of_caption = distinct_sets(captions, ngram)
    pairs, _ = similar_pairs(sets, threshold)
    links = sparse.coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(sets), len(sets)))
    _, cluster_of_set = sparse.csgraph.connected_components(links, directed=False)
    return _choose(ids, cluster_of_set[set_of_caption])


def check_options(ngram: int, threshold: float):
    if ngram < 1 or not 0 <= threshold < 1:
        raise ValueError(f"ngram {ngram}, threshold {threshold}: expected at least 1, and 0 or more but below 1")


def similar_pairs(sets: list[frozenset], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Finds all pairs of sets whose Jaccard similarity is above `threshold`.

    Args:
        sets (`list[frozenset]`):
            Distinct sets of n-grams. An empty set is in no pair.
        threshold (`float`):
            Similarity that the pairs exceed.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The pairs `(P, 2)`, the smaller number first, and their similarities `(P,)`.
    """
    limit = Fraction(str(threshold))  # 4/5 is not above 0.8, whatever floats say
    p, q = limit.numerator, limit.denominator
    tokens = _by_rarity(sets)  # (S, V): the columns in order of rarity
    sizes = np.diff(tokens.indptr)
    # A set of s n-grams shares more than s p / q of them with a similar set, so one of its first s - floor(s p / q).
    prefix_sizes = sizes - sizes * p // q
    position = np.arange(tokens.nnz) - np.repeat(tokens.indptr[:-1], sizes)
    in_prefix = position < np.repeat(prefix_sizes, sizes)
    rows = np.repeat(np.arange(len(sets)), sizes)[in_prefix]
    columns = tokens.indices[in_prefix]
    prefixes = sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=tokens.shape)
    by_token = prefixes.T.tocsr()
    # Meetings up to each row, to cut the rows into blocks of at most BLOCK_ENTRIES meetings.
    met = np.cumsum(prefixes @ np.diff(by_token.indptr)) if len(sets) else np.zeros(0)
    found, similarities = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    start = 0
    while start < len(sets):
        limit_met = (met[start - 1] if start else 0) + BLOCK_ENTRIES
        end = max(start + 1, int(np.searchsorted(met, limit_met)))
        meetings = (prefixes[start:end] @ by_token).tocoo()
        first, second = meetings.row + start, meetings.col
        small, large = np.minimum(sizes[first], sizes[second]), np.maximum(sizes[first], sizes[second])
        kept = (first < second) & (q * small > p * large)
        first, second = first[kept], second[kept]
        for part in range(0, len(first), BLOCK_ENTRIES // 16):
            one, two = first[part : part + BLOCK_ENTRIES // 16], second[part : part + BLOCK_ENTRIES // 16]
            overlap = tokens[one].multiply(tokens[two]).sum(axis=1)
            union = sizes[one] + sizes[two] - overlap
            similar = q * overlap > p * union
            found.append(np.stack([one[similar], two[similar]], axis=1))
            similarities.append(overlap[similar] / union[similar])
        start = end
    return np.concatenate(found), np.concatenate(similarities)


def distinct_sets(captions: Sequence[str], ngram: int) -> tuple[list[frozenset], np.ndarray]:
    """Returns the distinct sets of n-grams and each caption's set. Each caption without words has a set of its own."""
    numbers: dict[frozenset, int] = {}
    sets, set_of_caption = [], np.empty(len(captions), np.int64)
    for row, caption in enumerate(captions):
        words = normalize_caption(caption).split()
        grams = frozenset(tuple(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))) if words else ()
        number = numbers.setdefault(grams, len(sets)) if words else len(sets)
        if number == len(sets):
            sets.append(frozenset(grams))
        set_of_caption[row] = number
    return sets, set_of_caption


def _by_rarity(sets: list[frozenset]) -> sparse.csr_array:
    """Turns sets into rows of ones; the n-grams are columns, the rarest first."""
    numbers: dict[tuple, int] = {}
    columns = np.array([numbers.setdefault(gram, len(numbers)) for grams in sets for gram in grams], np.int64)
    counts = np.bincount(columns, minlength=len(numbers))
    rank = np.empty(len(numbers), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(numbers))
    indptr = np.concatenate([[0], np.cumsum([len(grams) for grams in sets])]).astype(np.int64)
    tokens = sparse.csr_array((np.ones(len(columns), np.int32), rank[columns], indptr), (len(sets), len(numbers)))
    tokens.sort_indices()
    return tokens


def _choose(ids: Sequence, clusters: np.ndarray) -> tuple[list, np.ndarray]:
    """Returns the smallest id of each cluster, and the clusters numbered by their first captions."""
    try:
        keys = [int(row_id) for row_id in ids]
    except ValueError:
        keys = [str(row_id) for row_id in ids]
    smallest: dict[int, int] = {}
    labels: dict[int, int] = {}
    for row, cluster in enumerate(clusters.tolist()):
        labels.setdefault(cluster, len(labels))
        best = smallest.setdefault(cluster, row)
        if (keys[row], str(ids[row])) < (keys[best], str(ids[best])):
            smallest[cluster] = row
    kept = [ids[row] for row in sorted(smallest.values())]
    return kept, np.array([labels[cluster] for cluster in clusters.tolist()], np.int64)
