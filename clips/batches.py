"""Training batches, and the order in which an epoch takes the clips."""

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from captions_rgmc import join_candidates
from clips.features import ClipFeatures
from processing_rgmc import RGMCProcessor

Candidate = tuple[list[int], float]  # tokens, and the similarity of the song


@dataclass
class CandidateSampling:
    """
    Draws what a clip is given in an epoch of training, so that the decoder learns to doubt its candidates and to do
    without them ("sample-k", Li et al. 2024, "Understanding Retrieval Robustness for Retrieval-augmented Image
    Captioning").

    Args:
        num_candidates (`int`): How many candidates are drawn from those of the clip and shuffled.
        seed (`tuple[int, int]`): Of the run, and the epoch or step.
        candidate_dropout (`float`, defaults to 0): Probability that a clip is given no candidate.
        prefix_dropout (`float`, defaults to 0):
            Probability that it is given its candidates alone, without the prefix of its sound.
        both_dropout (`float`, defaults to 0): Probability that it is given neither.
        own_candidate (`float`, defaults to 0):
            Probability that one of its candidates, if it is given any, is replaced by its own caption.
        random_candidate (`float`, defaults to 0):
            Probability that all of them are replaced by captions of any songs.
    """

    num_candidates: int
    seed: tuple[int, int]
    candidate_dropout: float = 0.0
    prefix_dropout: float = 0.0
    both_dropout: float = 0.0
    own_candidate: float = 0.0
    random_candidate: float = 0.0

    def draw(
        self, row: int, candidates: Sequence[Candidate], own: list[int], others: Sequence[Candidate] = ()
    ) -> tuple[list[Candidate], bool]:
        """
        Draws the candidates of a row and whether it is given its prefix: the same in any batch and process, and in a
        resumed run. `own` are the tokens of its caption, `others` those of random songs.
        """
        generator = np.random.default_rng([*self.seed, row])
        fate = generator.random()
        if fate < self.candidate_dropout:
            return [], True
        with_prefix = 1 - self.prefix_dropout
        if with_prefix - self.both_dropout <= fate < with_prefix:
            return [], False
        drawn = [candidates[index] for index in generator.permutation(len(candidates))[: self.num_candidates]]
        kind = generator.random()
        if drawn and kind < self.own_candidate:
            drawn[generator.integers(len(drawn))] = (own, 1.0)
        elif kind > 1 - self.random_candidate:
            drawn = list(others[: len(drawn)])
        return drawn, fate < with_prefix


def augment(log_mels: torch.Tensor, rows: list[int], seed: tuple[int, int], most_gain: float = 6.0) -> torch.Tensor:
    """
    Shifts each clip of `(B, 1, T, F)` in time by a random number of frames, wrapping around, and changes its level by
    up to `most_gain` dB. `seed`, of the run and the epoch, and the row decide.
    """
    augmented = torch.empty_like(log_mels)
    for index, row in enumerate(rows):
        generator = np.random.default_rng([*seed, row, 1])  # not the numbers that draw candidates
        shift = int(generator.integers(log_mels.shape[2]))
        augmented[index] = log_mels[index].roll(shift, dims=1) + generator.uniform(-most_gain, most_gain)
    return augmented


class TeacherForcingCollator:
    """
    Collates row numbers into a training batch of [`RGMCModel`].

    A batch holds the log-mels and, padded on the right, the tokens of candidate, separator, caption and EOS. Labels are
    the caption's tokens and its EOS; the decoder's prompt and the padding are -100 (section 3.3).

    Args:
        features ([`ClipFeatures`]):
            Log-mels of the split.
        caption_ids (`list[list[int]]`):
            Tokens of each row's caption, with EOS.
        candidates (`list[list[Candidate]]`):
            Tokens of each row's candidates, and the similarities of their songs.
        processor ([`RGMCProcessor`]):
            Gives the separator and the padding token.
        word_labels (`torch.Tensor` of shape `(N, W)`, *optional*):
            Which of the words that the word head predicts the caption of each row has: 1 or 0.
        sampling ([`CandidateSampling`], *optional*):
            What a row is given; by default its prefix and all its candidates.
        caption_candidates (`list[list[int]]`, *optional*):
            With `sampling`: tokens of the caption of each row as a candidate.
        random_candidates (`list[list[Candidate]]`, *optional*):
            With `sampling`: the captions of random songs for each row.
        augment_seed (`tuple[int, int]`, *optional*):
            Of the run and the epoch: changes the log-mels as [`augment`] does.
    """

    def __init__(
        self,
        features: ClipFeatures,
        caption_ids: list[list[int]],
        candidates: list[list[Candidate]],
        processor: RGMCProcessor,
        word_labels: torch.Tensor | None = None,
        sampling: CandidateSampling | None = None,
        caption_candidates: list[list[int]] | None = None,
        random_candidates: list[list[Candidate]] | None = None,
        augment_seed: tuple[int, int] | None = None,
    ):
        self.features = features
        self.caption_ids = caption_ids
        self.candidates = candidates
        self.word_labels = word_labels
        self.sampling = sampling
        self.caption_candidates = caption_candidates
        self.random_candidates = random_candidates or [[]] * len(candidates)
        self.augment_seed = augment_seed
        self.prompt_tokens = processor.separator_token_id, processor.similarity_token_ids
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor | int]:
        if not rows:
            # Every process takes part in the last step; one without rows has nothing to learn in it.
            batch = self([0])
            return {**batch, **{name: torch.full_like(batch[name], -100) for name in batch if name.endswith("labels")}}
        given = [(self.candidates[row], True) for row in rows]
        if self.sampling is not None:
            given = [
                self.sampling.draw(row, self.candidates[row], self.caption_candidates[row], self.random_candidates[row])
                for row in rows
            ]
        prompts = [prompt_of(candidates, *self.prompt_tokens) for candidates, _ in given]
        captions = [self.caption_ids[row] for row in rows]
        log_mels = self.features.read(rows)
        if self.augment_seed is not None:
            log_mels = augment(log_mels, rows, self.augment_seed)
        batch = {
            "input_features": log_mels,
            **teacher_forcing_tokens(prompts, captions, self.pad_token_id),
            "max_label_length": max(map(len, captions)),
        }
        if self.sampling is not None and (self.sampling.prefix_dropout or self.sampling.both_dropout):
            batch["prefix_mask"] = torch.tensor([int(has_prefix) for _, has_prefix in given])
        if self.word_labels is not None:
            batch["word_labels"] = self.word_labels[rows].float()
        return batch


def prompt_of(
    candidates: Sequence[Candidate], separator_token_id: int, similarity_token_ids: Sequence[int]
) -> list[int]:
    """The tokens of candidates as [`join_candidates`] joins them."""
    token_ids, similarities = [tokens for tokens, _ in candidates], [similarity for _, similarity in candidates]
    return join_candidates(token_ids, separator_token_id, similarities, similarity_token_ids)


def teacher_forcing_tokens(
    prompts: list[list[int]], captions: list[list[int]], pad_token_id: int
) -> dict[str, torch.Tensor]:
    """
    Joins each prompt and the caption that follows it, padded on the right: `input_ids`, `attention_mask` and `labels`
    of [`RGMCModel`], each `(B, L)`. Labels are the caption's tokens; those of prompt and padding are -100.
    """
    shape = (len(prompts), max(len(prompt) + len(caption) for prompt, caption in zip(prompts, captions)))
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for i, (prompt, caption) in enumerate(zip(prompts, captions)):
        start, end = len(prompt), len(prompt) + len(caption)
        input_ids[i, :end] = torch.tensor(prompt + caption)
        attention_mask[i, :end] = 1  # by length: the pad token is EOS in GPT-2, and EOS is learned
        labels[i, start:end] = torch.tensor(caption)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def plan_epoch(
    rows: np.ndarray, lengths: np.ndarray, batch_size: int, micro_batch_size: int | None, accelerator: Accelerator
) -> list[list[list[int]]]:
    """
    Cuts the rows of an epoch into steps of `batch_size`, and this process's share of each step into micro-batches.

    Every process gets the same number of micro-batches per step, because all take part in each step; the last ones may
    be empty. Clips whose captions have similar lengths (`lengths`, by row) share a micro-batch, to keep padding low.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    steps = []
    for start in range(0, len(rows), batch_size):
        step = rows[start : start + batch_size]
        step = step[np.argsort(-lengths[step], kind="stable")]
        share = math.ceil(len(step) / world)
        micro = min(micro_batch_size or share, share)
        own = step[rank::world].tolist()
        steps.append([own[first : first + micro] for first in range(0, share, micro)])
    return steps


def _ignore_sigterm(worker: int):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to every process of a job: the training process decides


def load_batches(steps: list[list[list[int]]], collator: TeacherForcingCollator, num_workers: int) -> DataLoader:
    """Loads the micro-batches of one epoch: workers that outlived it would keep its candidates."""
    return DataLoader(
        range(len(collator.caption_ids)),
        batch_sampler=[micro_batch for step in steps for micro_batch in step],
        collate_fn=collator,
        num_workers=num_workers,
        worker_init_fn=_ignore_sigterm,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # drawing from the global one would make a resumed run differ
    )
