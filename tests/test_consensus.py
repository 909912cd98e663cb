"""What the consensus of captions promises: the one that shares most with the others, whatever order they are in."""

import pytest

from captions_rgmc import caption_similarity, most_central

CALM = "a calm piano piece".split()
SAD = "a sad piano piece".split()
ROCK = "loud rock".split()


def test_similarity_is_the_mean_f1_of_shared_n_grams():
    assert caption_similarity(CALM, CALM) == 1
    # 3 of 4 words, 1 of 3 pairs ("piano piece"), no three and no four words are shared
    assert caption_similarity(CALM, SAD) == pytest.approx((3 / 4 + 1 / 3 + 0 + 0) / 4)
    assert caption_similarity(ROCK, ["rock"]) == pytest.approx((2 / 3 + 0) / 2)  # neither has three words
    assert caption_similarity(["la", "la"], ["la"], longest=1) == pytest.approx(
        2 / 3
    )  # a word counts as often as it occurs
    assert caption_similarity(CALM, ROCK) == 0
    assert caption_similarity([], []) == 1
    assert caption_similarity([], ROCK) == 0


def test_the_most_central_caption_shares_most_with_the_others():
    between = "a calm piano song".split()
    assert most_central([ROCK, SAD, CALM, between]) == 2
    assert most_central([between, CALM, SAD, ROCK]) == 1
    assert most_central([CALM]) == 0
    assert most_central([ROCK, CALM]) == 0  # the first of several


def test_weights_decide_whom_a_caption_has_to_be_similar_to():
    captions = [CALM, SAD, SAD, ROCK, ROCK]
    assert most_central(captions) == 1
    assert most_central(captions, [0.1, 0.1, 0.1, 1.0, 1.0]) == 3
