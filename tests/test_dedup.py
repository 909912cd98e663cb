"""Deduplication is exact for all captions, and its clusters and kept ids follow the rule."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from captions_rgmc import normalize_caption
from corpora.dedup import deduplicate

PHRASES = ["a calm piano", "with soft strings", "in a minor key", "for a film", "slow and sad", "that builds up"]


def by_hand(captions: list[str], ngram: int = 5, threshold: float = 0.8) -> np.ndarray:
    """Compares every caption with every other, and labels the clusters in the order of their first captions."""
    sets = []
    for row, caption in enumerate(captions):
        words = normalize_caption(caption).split()
        grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)] or [tuple(words)]
        sets.append(set(grams) if words else {row})
    names = {gram: column for column, gram in enumerate({gram for grams in sets for gram in grams})}
    rows = np.repeat(np.arange(len(sets)), [len(grams) for grams in sets])
    columns = [names[gram] for grams in sets for gram in grams]
    table = sparse.csr_array((np.ones(len(rows), int), (rows, columns)), shape=(len(sets), len(names)))
    sizes = table.sum(axis=1)
    limit = Fraction(str(threshold))
    links = []
    for start in range(0, len(sets), 500):
        overlap = (table[start : start + 500] @ table.T).toarray()
        union = sizes[start : start + 500, None] + sizes[None] - overlap
        one, two = np.nonzero(limit.denominator * overlap > limit.numerator * union)
        links.append((one + start, two))
    one, two = (np.concatenate(side) for side in zip(*links))
    links = sparse.coo_array((np.ones(len(one), bool), (one, two)), shape=(len(sets), len(sets)))
    _, clusters = sparse.csgraph.connected_components(links, directed=False)
    order = {}
    return np.array([order.setdefault(cluster, len(order)) for cluster in clusters.tolist()])


def recombined(n: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    captions = []
    for kind in generator.random(n):
        if captions and kind < 0.35:
            words = captions[int(generator.integers(len(captions)))].split()
            if kind > 0.1:
                words[int(generator.integers(len(words)))] = str(generator.integers(4))
            captions.append(" ".join(words))
        else:
            parts = generator.choice(PHRASES, size=int(generator.integers(1, 12)))
            captions.append(" ".join([*parts, *map(str, generator.integers(30, size=int(generator.integers(3))))]))
    return captions


@pytest.mark.parametrize("captions", [recombined(10_000), None], ids=["recombined", "near copies"])
def test_ten_thousand_captions_are_clustered_as_by_comparing_all(captions):
    if captions is None:  # 2,000 near copies of one caption, among others
        generator = np.random.default_rng(1)
        base = [str(word) for word in generator.integers(1000, size=40)]
        copies = [" ".join([*base, *map(str, generator.integers(20, size=n))]) for n in generator.integers(1, 5, 2000)]
        captions = recombined(8_000, seed=2) + copies
    ids = np.random.default_rng(3).permutation(len(captions)).tolist()
    kept, labels = deduplicate(captions, ids)
    wanted = by_hand(captions)
    assert 0.1 < (wanted.max() + 1) / len(captions) < 0.95  # there are duplicates to find
    assert (labels == wanted).all()
    assert sorted(kept) == sorted(min(np.array(ids)[labels == label]) for label in range(labels.max() + 1))


words = st.sampled_from("a b c d".split())


@given(
    st.lists(st.lists(words, max_size=9).map(" ".join), max_size=25),
    st.integers(1, 5),
    st.sampled_from([0, 0.3, 0.5, 2 / 3, 0.8, 0.9]),
)
def test_any_captions_and_options(captions, ngram, threshold):
    _, labels = deduplicate(captions, range(len(captions)), ngram, threshold)
    assert labels.tolist() == (by_hand(captions, ngram, threshold).tolist() if captions else [])


def test_the_rule_at_its_edges():
    eight = "one two three four five six seven eight"
    captions = [
        "Piano, solo!",  # one n-gram: its whole text
        "piano solo",
        "piano solo live",
        "",  # has no duplicates
        "",
        "…",
        eight,  # 4 of 5 5-grams: 0.8 is not above 0.8
        f"{eight} nine",
        f"{eight} nine ten",  # 5 of 6
    ]
    kept, labels = deduplicate(captions, ["b", "a", "c", "d", "e", "f", "g", "h", "i"])
    assert labels.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 6]
    assert kept == ["a", "c", "d", "e", "f", "g", "h"]
    _, joined = deduplicate(captions[6:], "ghi", threshold=0.79)
    assert joined.tolist() == [0, 0, 0]  # through links from one to the next
    _, long = deduplicate([f"{eight} {end}" for end in ("x", "y")], "xy", ngram=2, threshold=0.7)
    assert long.tolist() == [0, 0]


def test_the_smallest_id_is_that_of_a_number_where_all_are_numbers():
    assert deduplicate(["x"] * 3, ["10", "9", "090"])[0] == ["9"]
    assert deduplicate(["x"] * 3, ["10", "9", "a"])[0] == ["10"]
    assert deduplicate(["x", "y", "x"], [12, 3, 4])[0] == [3, 4]


def test_what_cannot_be_deduplicated_is_an_error():
    for arguments, message in (
        ((["x"], []), "1 captions but 0 ids"),
        ((["x", "y"], [1, 1]), "must be unique: 1 of 2"),
        ((["x"], [1], 0), "ngram 0"),
        ((["x"], [1], 5, 1), "threshold 1"),
    ):
        with pytest.raises(ValueError, match=message):
            deduplicate(*arguments)
