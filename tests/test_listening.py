"""What eval.py promises about listening: a choice is won as counted by hand, and a deaf model scores chance."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Array2D, Dataset, Features
from helpers import CAPTIONS, TEXT, unit_vectors

from clips.batches import teacher_forcing_tokens
from clips.features import ClipFeatures
from evaluation.captioning import Captioner
from evaluation.listening import (
    TIE,
    Heard,
    draw_distractors,
    mean_log_probs,
    measure_listening,
    nearest_distractors,
    pair_captions,
    score_listening,
    share_of_first,
)
from modeling_rgmc import RGMCModel
from reporting.results import ListeningResults, Score
from retrieval_rgmc import CaptionDatastore

# -- a model whose probabilities are known ----------------------------------------------------------------------------

LETTERS = "$abcdx"  # the tokens; $ is EOS, separator and padding
# The probability of each token, for the sound of each of four clips.
HEARD = [
    [0.1, 0.3, 0.4, 0.05, 0.1, 0.05],
    [0.1, 0.1, 0.5, 0.1, 0.1, 0.1],
    [0.1, 0.1, 0.1, 0.02, 0.1, 0.58],
    [0.1, 0.1, 0.1, 0.1, 0.1, 0.5],
]
OWN = [["aaa"], ["b"], ["c"], ["d"]]


class Letters:
    """A processor whose tokens are letters."""

    tokenizer = SimpleNamespace(pad_token_id=0)

    def encode_caption(self, caption: str) -> list[int]:
        return [*map(LETTERS.index, caption), 0]

    def encode_prompt(self, candidates: list[str], similarities: list[float]) -> list[int]:
        return [token for caption in candidates for token in self.encode_caption(caption)] or [0]


class Clips:
    def __init__(self, captions: list[list[str]]):
        self.captions = captions

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, rows: list[int]) -> torch.Tensor:
        return torch.tensor(rows)


class Known(torch.nn.Module):
    """A model that gives each token the probability of `HEARD`, or the same one where the audio is masked."""

    device = torch.device("cpu")

    def __init__(self, config, heard=HEARD):
        super().__init__()
        self.config = config
        self.heard = torch.tensor(heard)
        self.embeds = torch.nn.functional.one_hot(torch.arange(len(heard)), 32).float()
        self.asked = []  # conditioning, tokens, sound

    def embed_audio(self, rows: torch.Tensor) -> torch.Tensor:
        return self.embeds[rows]

    def retrieve(self, audio_embeds: torch.Tensor, exclude_ids: list[str]):
        sounds = audio_embeds.argmax(dim=1).tolist()
        assert exclude_ids == [f"row of {sound}" for sound in sounds]
        return SimpleNamespace(captions=[["x" * (1 + sound)] for sound in sounds], similarities=[[0.5]] * len(sounds))

    def forward(self, input_ids, attention_mask, audio_embeds, logits_to_keep, use_cache):
        sounds = audio_embeds.argmax(dim=1)
        for row, mask, sound in zip(input_ids, attention_mask, sounds.tolist()):
            text = "".join(LETTERS[token] for token in row[mask.bool()])
            self.asked.append((self.config.conditioning, text, sound))
        logits = self.heard.log()[sounds] if self.config.uses_audio else torch.zeros(len(sounds), len(LETTERS))
        return SimpleNamespace(logits=logits.unsqueeze(1).expand(-1, logits_to_keep, -1))


@pytest.fixture
def listen_with(make_config):
    """Measures a model of known probabilities, and returns the results and the model."""

    def listen_with(heard=HEARD, captions=OWN, conditioning="audio+candidate", samples=0):
        model = Known(make_config(conditioning=conditioning), heard)
        own_ids = [f"row of {row}" for row in range(len(captions))]
        parts = {"processor": Letters(), "features": Clips(captions), "own_ids": own_ids, "name": "a model"}
        captioner = SimpleNamespace(model=model, accelerator=Accelerator(), batch_size=3, **parts)
        results, _ = score_listening([measure_listening(captioner, seed=0)], samples, seed=0)
        return results, model

    return listen_with


def shares(results: ListeningResults) -> dict[str, list[float | None]]:
    """Of each row the 4-way choice with random and with similar captions, and the audio swap."""
    return {key: [score.value for score in system.scores.values()] for key, system in results.systems.items()}


def test_shares_are_those_counted_by_hand(listen_with):
    results, model = listen_with(samples=200)
    # aaa is more probable than b per token with its EOS, but not as a whole (0.3³ · 0.1 < 0.4 · 0.1) nor without EOS.
    # b wins; c is the least probable; d is as probable as the three others.
    choice = 100 * (1 + 1 + 0 + 1 / 4) / 4
    # aaa and b have their own sound as the best, c as the worst; d is as probable with any.
    swap = 100 * (1 + 1 + 0 + 1 / 2) / 4
    assert shares(results) == {
        "rgmc": pytest.approx([choice, choice, swap]),
        "rgmc_text_only_masked": [25, 25, None],
        "rgmc_audio_only_masked": pytest.approx([choice, choice, swap]),
    }
    titles = [system.title for system in results.systems.values()]
    assert titles == ["RGMC", "RGMC, audio masked", "RGMC, candidate masked"] and not results.unavailable
    for score in results.systems["rgmc"].scores.values():
        assert 0 <= score.low < score.value < score.high <= 100
    assert model.config.conditioning == "audio+candidate"


def test_shares_of_several_checkpoints_are_their_mean():
    def heard(*shares: float) -> Heard:
        return Heard("a model", {"rgmc": "RGMC"}, {"rgmc": {"choice_random": np.array(shares)}}, {})

    results, resamples = score_listening([heard(1, 0), heard(1, 1)], samples=200, seed=0)
    scores = results.systems["rgmc"].scores
    # 50 and 100. Of two clips, a resample has the first twice, both, or the second twice: 100, 75 or 50.
    assert scores["choice_random"] == Score(75, 50, 100, pytest.approx(50 / 2**0.5), [50, 100])
    assert {*resamples["rgmc"]["choice_random"].tolist()} == {50, 75, 100}
    assert scores["audio_swap"] == Score(None)
    alone, nothing = score_listening([heard(1, 0)], samples=0, seed=0)
    assert alone.systems["rgmc"].scores["choice_random"] == Score(50) and nothing == {"rgmc": {}}


def test_each_caption_follows_the_candidate_of_its_clip(listen_with):
    _, model = listen_with()
    for conditioning in ("audio+candidate", "candidate"):
        for clip, (own,) in enumerate(OWN):
            prompt = "x" * (1 + clip) + "$"
            asked = [(text, sound) for kind, text, sound in model.asked if kind == conditioning]
            asked = [(text.removeprefix(prompt), sound) for text, sound in asked if text.startswith(prompt)]
            with_own_sound = Counter(text for text, sound in asked if sound == clip)
            assert with_own_sound == {f"{caption}$": 1 if caption == own else 2 for (caption,) in OWN}
            with_another = [text for text, sound in asked if sound != clip]
            assert with_another == ([f"{own}$"] if conditioning == "audio+candidate" else [])
    without = [text for kind, text, _ in model.asked if kind == "audio"]
    assert len(without) == 4 * (1 + 3 + 3 + 1) and all(text.startswith("$") for text in without)


@pytest.mark.parametrize(
    ("heard", "swap"),
    [([HEARD[0]] * 4, 50), (np.full((4, 6), 0.1) + 0.4 * np.eye(4, 6, 1), 100), (0.2 - 0.1 * np.eye(4, 6, 1), 0)],
)
def test_the_swap_tells_a_deaf_model_from_one_that_hears(listen_with, heard, swap):
    heard = np.asarray(heard, np.float32).tolist()
    assert shares(listen_with(heard, [["a"], ["b"], ["c"], ["d"]])[0])["rgmc"][2] == swap


def test_a_model_of_one_input_has_one_row(listen_with):
    by_audio, _ = listen_with(conditioning="audio")
    assert list(by_audio.systems) == ["rgmc"] and by_audio.systems["rgmc"].title == "RGMC (Audio Only)"
    assert shares(by_audio)["rgmc"] == pytest.approx([56.25, 56.25, 62.5])
    by_candidate, _ = listen_with(conditioning="candidate")
    assert shares(by_candidate) == {"rgmc": [25, 25, None]}


def test_a_split_with_too_few_captions_has_no_choice(listen_with):
    results, _ = listen_with(captions=[["a"], ["b"], ["c"], ["a"]], samples=20)
    assert shares(results)["rgmc"][:2] == [None, None] and shares(results)["rgmc"][2] is not None
    reason = "4 of 4 clips lack 3 captions of other clips that differ from their own"
    assert results.unavailable == {"choice_random": reason, "choice_nearest": reason}
    results, _ = listen_with(captions=[["a", "b"], ["b"], ["c"], ["d"]])
    assert results.unavailable["choice_random"].startswith("1 of 4 clips lack")
    results, _ = listen_with(captions=[["a"]], samples=20)
    assert shares(results)["rgmc"] == [None] * 3
    assert results.unavailable["audio_swap"] == "a single clip has no other sound"


def test_the_most_probable_wins_and_equal_ones_share():
    log_probs = [[-1, -2, -3, -4], [-2, -1, -3, -4], [-1, -1 - TIE / 2, -5, -1], [-1, -1 - 2 * TIE, -5, -6], [-7] * 4]
    assert share_of_first(np.array(log_probs)) == pytest.approx([1, 0, 1 / 3, 1, 1 / 4])


# -- what competes ----------------------------------------------------------------------------------------------------


def test_the_nearest_captions_are_those_of_the_most_similar_sounds():
    captions = [["a", "e"], ["b"], ["e"], ["b"], ["c"], ["d"]]
    angles = np.radians([0, 10, 20, 30, 40, 100])
    embeds = np.column_stack([np.cos(angles), np.sin(angles)])
    # The first clip may not take e, its own second caption, and takes b once.
    assert nearest_distractors(captions, embeds)[0] == ["b", "c", "d"]
    assert nearest_distractors(captions, embeds)[4] == ["b", "e", "a"]
    assert nearest_distractors(captions, embeds)[5] == ["c", "b", "e"]


def test_random_captions_are_of_other_clips_and_any_of_them():
    captions = [["a", "b"], ["b"], ["c"], ["d"], ["e"], ["e"], ["f"]]
    seen = [set() for _ in captions]
    for seed in range(50):
        for own, texts, found in zip(captions, draw_distractors(captions, np.random.default_rng(seed)), seen):
            assert len(set(texts)) == 3 and not set(texts) & set(own)
            found |= set(texts)
    assert [len(found) for found in seen] == [4, 5, 5, 5, 5, 5, 5]


def test_the_seed_decides_what_competes_and_no_clip_keeps_its_sound():
    captions, embeds = [[f"caption {row}"] for row in range(20)], unit_vectors(20)
    pairs, _ = pair_captions(captions, embeds, seed=3)
    assert pairs == pair_captions(captions, embeds, seed=3)[0]
    other, _ = pair_captions(captions, embeds, seed=4)
    assert [column for column in pairs if pairs[column] == other[column]] == ["choice_nearest"]
    swapped = [sound for ((caption, sound),) in pairs["audio_swap"]]
    assert sorted(swapped) == list(range(20)) and all(sound != row for row, sound in enumerate(swapped))
    assert [caption for ((caption, _),) in pairs["audio_swap"]] == [caption for (caption,) in captions]


# -- the model itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXT)
def test_log_probabilities_are_the_models_own_loss(make_model, processor, text):
    model = make_model(text)
    embeds = torch.from_numpy(unit_vectors(3, 32))
    prompts = [processor.encode_prompt(candidates) for candidates in (["solo flute"], [], ["warm organ", "a harp"])]
    captions = [processor.encode_caption(caption) for caption in CAPTIONS[:3]]
    pad_token_id = processor.tokenizer.pad_token_id
    with torch.no_grad():
        found = mean_log_probs(model, embeds, prompts, captions, pad_token_id)
        for row in range(3):
            alone = teacher_forcing_tokens([prompts[row]], [captions[row]], pad_token_id)
            loss = model(**alone, audio_embeds=embeds[row : row + 1]).loss  # the mean over the caption and its EOS
            assert found[row].item() == pytest.approx(-loss.item(), abs=1e-5)
    assert len({round(value, 3) for value in found.tolist()}) == 3


@pytest.fixture
def listen(make_model, processor, log_mels):
    """Measures an untrained model, changed by a function, on six clips."""

    def listen(batch_size=4, change=lambda model: None) -> ListeningResults:
        model = make_model()
        for parameter in model.text_model.parameters():
            parameter.data *= 4  # large enough for the untrained decoder to tell its inputs apart
        change(model)
        rows = {"id": ["x", "y", "clip-1"], "caption": ["solo flute", "warm organ", CAPTIONS[1]]}
        rows["input_ids"] = [processor.encode_candidate(caption) for caption in rows["caption"]]
        embeds = unit_vectors(3, 32)
        model.set_datastore(CaptionDatastore(Dataset.from_dict(rows), embeds, model.encoder_fingerprint()))
        shape = Features({"log_mel": Array2D((1001, 64), "float32")})
        sounds = Dataset.from_dict({"log_mel": log_mels(6).squeeze(1).numpy()}, features=shape)
        clips = ClipFeatures([f"clip-{row}" for row in range(6)], [[caption] for caption in CAPTIONS[:6]], sounds)
        captioner = Captioner("a model", model, processor, clips, Accelerator(), batch_size, None)
        return score_listening([measure_listening(captioner, seed=0)], samples=20, seed=0)[0]

    return listen


def test_the_batch_size_changes_nothing(listen, monkeypatch):
    found = []
    monkeypatch.setattr("evaluation.listening.share_of_first", lambda log_probs: found.append(log_probs) or np.ones(6))
    for batch_size in (1, 4, 100):
        listen(batch_size)
    alone, *batched = (np.hstack(found[start : start + 8]) for start in (0, 8, 16))
    assert alone.shape == (6, 3 * (4 + 4) + 2 * 2) and len(found) == 24
    for log_probs in batched:
        np.testing.assert_allclose(log_probs, alone, atol=1e-5)
    assert len(np.unique(alone.round(3))) > 50  # or nothing was told apart


def test_a_deaf_model_scores_exactly_half_in_the_swap(listen):
    def deafen(model: RGMCModel):
        model.mapper.linear2.weight.data.zero_()

    assert shares(listen(change=deafen))["rgmc"][2] == 50
    assert shares(listen())["rgmc"][2] != 50
