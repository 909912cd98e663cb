"""
Whether a model listens: a clip's own caption should be more probable than captions of other clips, and more probable
with the clip's own sound than with another. No caption is generated or compared with a reference.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from clips.batches import teacher_forcing_tokens
from clips.embedding import embed_rows, gather_rows
from evaluation.captioning import Captioner, conditioned_on
from evaluation.intervals import draw_clips, mean_share
from evaluation.systems import TITLE_OF_CONDITIONING, TITLES
from modeling_rgmc import RGMCModel
from reporting.results import LISTENING_TITLES, ListeningResults, Resamples, Score, SystemResult

DISTRACTORS = 3
TIE = 1e-4  # nats per token: rounding changes a log-probability by less from one batch to another
MASKED_TO = {"rgmc_text_only_masked": "candidate", "rgmc_audio_only_masked": "audio"}

# A caption, and the row of the clip whose sound it is heard with.
Pair = tuple[str, int]


@dataclass
class Heard:
    """
    What a checkpoint hears.

    Args:
        source (`str`): Name of the checkpoint.
        titles (`dict[str, str]`): The model, as it is and with one of its inputs masked.
        shares (`dict[str, dict[str, np.ndarray]]`):
            For each of these, by column, what each clip counts: 1 where its own caption or sound is the most probable,
            0 where it is not, `1 / k` where it is one of `k`.
        unavailable (`dict[str, str]`): Why a column cannot be made.
    """

    source: str
    titles: dict[str, str]
    shares: dict[str, dict[str, np.ndarray]]
    unavailable: dict[str, str]


def measure_listening(captioner: Captioner, seed: int) -> Heard:
    """
    Measures the 4-way choice and the audio swap, with the audio or the candidate masked, too.

    In the 4-way choice, the first reference of each clip competes with three captions of other clips: random ones, and
    those of the clips that sound most similar to the model's own encoder. They differ from each other and from all
    captions of the clip. In the audio swap, it competes with itself, heard with the sound of another clip. What is
    compared is the mean log-probability of the tokens and the EOS. The prompt is always the clip's own candidates.

    Args:
        captioner ([`Captioner`]): The checkpoint and the clips, shared among the processes.
        seed (`int`): Seed of the random captions and the swap.

    Returns:
        [`Heard`]: The same on every process.
    """
    model, features, processor = captioner.model, captioner.features, captioner.processor
    n, trained_on = len(features), model.config.conditioning
    embeds = embed_rows(model, features, captioner.accelerator, captioner.batch_size, "Embedding the clips")  # (N, E)
    found = model.retrieve(torch.from_numpy(embeds), exclude_ids=captioner.own_ids)
    pairs, unavailable = pair_captions(features.captions, embeds, seed)
    titles = {"rgmc": TITLE_OF_CONDITIONING[trained_on]}
    if trained_on == "audio+candidate":
        titles |= {key: TITLES[key] for key in MASKED_TO}
    shares = {}
    for key, title in titles.items():
        with conditioned_on(model, MASKED_TO.get(key)):
            columns = [column for column in pairs if column != "audio_swap" or model.config.uses_audio]
            shown, scores = (found.captions, found.similarities) if model.config.uses_candidate else ([[]] * n,) * 2
            prompts = [*map(processor.encode_prompt, shown, scores)]
            asked = [
                [(features.captions[row][0], row), *(pair for column in columns for pair in pairs[column][row])]
                for row in range(n)
            ]
            log_probs = pair_log_probs(captioner, embeds, prompts, asked, f"Listening: {title}")  # (N, W)
        widths = [1, *(len(pairs[column][0]) for column in columns)]
        own, *others = np.split(log_probs, np.cumsum(widths)[:-1], axis=1)
        shares[key] = {
            column: share_of_first(np.hstack([own, competing])) for column, competing in zip(columns, others)
        }
    return Heard(captioner.name, titles, shares, unavailable)


def score_listening(heard: list[Heard], samples: int, seed: int) -> tuple[ListeningResults, Resamples]:
    """
    Scores what the checkpoints of one configuration hear, as means over them.

    Args:
        heard (`list[Heard]`): What each checkpoint hears of the same clips.
        samples (`int`): Resamples of the clips for the intervals; 0 for no intervals.
        seed (`int`): Seed of the resamples, which are those of the systems' scores.

    Returns:
        `tuple`: the results, and for each system and column the scores of the resamples.
    """
    first, systems, resamples = heard[0], {}, {}
    for key, title in first.titles.items():
        scores, resamples[key] = dict.fromkeys(LISTENING_TITLES, Score(None)), {}
        for column, shares in first.shares[key].items():
            draws = draw_clips(len(shares), samples, seed)
            scores[column], drawn = mean_share([each.shares[key][column] for each in heard], draws)
            if drawn is not None:
                resamples[key][column] = drawn
        systems[key] = SystemResult(title, first.source, scores)
    return ListeningResults(systems, first.unavailable), resamples


def pair_captions(
    captions: list[list[str]], embeds: np.ndarray, seed: int
) -> tuple[dict[str, list[list[Pair]]], dict[str, str]]:
    """
    What competes with each clip's own caption and sound, by column, and why a column cannot be made.

    Args:
        captions (`list[list[str]]`): Normalised captions of each clip; the first is the one that competes.
        embeds (`np.ndarray` of shape `(N, E)`): Embeddings of the clips.
        seed (`int`): Seed of the random captions and the swap.
    """
    generator, n = np.random.default_rng(seed), len(captions)
    pairs, unavailable = {}, {}
    distractors = {
        "choice_random": draw_distractors(captions, generator),
        "choice_nearest": nearest_distractors(captions, embeds),
    }
    for column, found in distractors.items():
        lacking = sum(len(texts) < DISTRACTORS for texts in found)
        if lacking:
            wanted = f"{DISTRACTORS} captions of other clips that differ from their own"
            unavailable[column] = f"{lacking} of {n} clips lack {wanted}"
        else:
            pairs[column] = [[(text, row) for text in texts] for row, texts in enumerate(found)]
    if n > 1:
        order = generator.permutation(n)
        sounds = dict(zip(order.tolist(), np.roll(order, 1).tolist()))  # a cycle: none keeps its own sound
        pairs["audio_swap"] = [[(captions[row][0], sounds[row])] for row in range(n)]
    else:
        unavailable["audio_swap"] = "a single clip has no other sound"
    return pairs, unavailable


def draw_distractors(captions: list[list[str]], generator: np.random.Generator) -> list[list[str]]:
    """For each clip 3 random ones of the first captions of other clips, or fewer if there are not as many others."""
    distinct = list(dict.fromkeys(own[0] for own in captions))
    drawn = []
    for own in captions:
        # At most `len(own)` of them are dropped, and those that stay are as random as before.
        size = min(DISTRACTORS + len(own), len(distinct))
        texts = [distinct[index] for index in generator.choice(len(distinct), size, replace=False)]
        drawn.append([text for text in texts if text not in own][:DISTRACTORS])
    return drawn


def nearest_distractors(captions: list[list[str]], embeds: np.ndarray) -> list[list[str]]:
    """As `draw_distractors`, but from the clips whose embeddings, rows of `(N, E)`, are most similar."""
    nearest = []
    for own, embed in zip(captions, embeds):
        texts: list[str] = []
        # Rounded, so that equal sounds keep their order: the last digits of an embedding depend on its batch.
        for row in np.argsort(-np.round(embeds @ embed, 5), kind="stable").tolist():
            if captions[row][0] not in own and captions[row][0] not in texts:
                texts.append(captions[row][0])
                if len(texts) == DISTRACTORS:
                    break
        nearest.append(texts)
    return nearest


def share_of_first(log_probs: np.ndarray) -> np.ndarray:
    """
    For each row of `(N, W)` 1 where its first number is the largest, 0 where it is not, and `1 / k` where it is one of
    `k` that are the largest up to rounding.
    """
    wins = log_probs >= log_probs.max(axis=1, keepdims=True) - TIE
    return wins[:, 0] / wins.sum(axis=1)


@torch.no_grad()
def pair_log_probs(
    captioner: Captioner, embeds: np.ndarray, prompts: list[list[int]], pairs: list[list[Pair]], title: str
) -> np.ndarray:
    """
    The mean log-probability per token of each clip's captions after its prompt.

    Args:
        captioner ([`Captioner`]): The model and the clips, shared among the processes.
        embeds (`np.ndarray` of shape `(N, E)`): Embeddings of the clips.
        prompts (`list[list[int]]`): Tokens of each clip's prompt, with the separator.
        pairs (`list[list[Pair]]`): `W` captions of each clip, and the row whose sound each is heard with.
        title (`str`): Title of the progress bar.

    Returns:
        `np.ndarray` of shape `(N, W)`: in nats, on every process.
    """
    model, processor, accelerator = captioner.model, captioner.processor, captioner.accelerator
    own = range(accelerator.process_index, len(pairs), accelerator.num_processes)
    asked = [(prompts[row], processor.encode_caption(caption), sound) for row in own for caption, sound in pairs[row]]
    log_probs = torch.empty(len(asked), device=accelerator.device)
    order = sorted(range(len(asked)), key=lambda index: len(asked[index][0]) + len(asked[index][1]))  # less padding
    progress = tqdm(total=len(asked), desc=title, unit="caption", disable=not accelerator.is_main_process)
    for start in range(0, len(order), captioner.batch_size):
        batch = order[start : start + captioner.batch_size]
        shown, captions, sounds = zip(*(asked[index] for index in batch))
        heard = torch.from_numpy(embeds[list(sounds)])
        log_probs[batch] = mean_log_probs(model, heard, shown, captions, processor.tokenizer.pad_token_id)
        progress.update(len(batch))
    progress.close()
    return gather_rows(log_probs.view(len(own), len(pairs[0])), len(pairs), accelerator)


def mean_log_probs(
    model: RGMCModel, audio_embeds: torch.Tensor, prompts: list[list[int]], captions: list[list[int]], pad_token_id: int
) -> torch.Tensor:
    """The mean log-probability of the tokens of each caption, `(B,)` in nats, after its prompt and its sound."""
    batch = teacher_forcing_tokens(prompts, captions, pad_token_id)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, min(map(len, prompts)) :]  # (B, M)
    # The logits of each position predict the next token.
    kept = {"logits_to_keep": labels.shape[1] + 1, "use_cache": False}
    logits = model(**batch, audio_embeds=audio_embeds.to(model.device), **kept).logits[:, :-1]  # (B, M, vocabulary)
    losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    return -losses.view_as(labels).sum(dim=1) / labels.ne(-100).sum(dim=1)
