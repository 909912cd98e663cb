"""Batches of clips: what a training step learns from, and in which order an epoch takes the clips."""

import math
import signal

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from captions_rgmc import join_candidates
from clips.features import ClipFeatures
from processing_rgmc import RGMCProcessor


class TeacherForcingCollator:
    """
    Row numbers to a training batch of [`RGMCModel`]: log-mels, and candidate, separator, caption and EOS, padded on
    the right.

    Labels are the caption's tokens and its EOS; what the decoder is given, and padding, is -100 (section 3.3).

    Args:
        features ([`ClipFeatures`])
        caption_ids (`list[list[int]]`): For each row its caption's tokens with EOS.
        candidate_ids (`list[list[list[int]]]`): For each row its candidates' tokens.
        processor ([`RGMCProcessor`])
    """

    def __init__(
        self,
        features: ClipFeatures,
        caption_ids: list[list[int]],
        candidate_ids: list[list[list[int]]],
        processor: RGMCProcessor,
    ):
        self.features = features
        self.caption_ids = caption_ids
        self.candidate_ids = candidate_ids
        self.separator_token_id = processor.separator_token_id
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor | int]:
        if not rows:
            # A process without rows in the last step: every process takes part in it, this one with nothing to learn.
            batch = self([0])
            return {**batch, "labels": torch.full_like(batch["labels"], -100)}
        prompts = [join_candidates(self.candidate_ids[row], self.separator_token_id) for row in rows]
        captions = [self.caption_ids[row] for row in rows]
        shape = (len(rows), max(len(prompt) + len(caption) for prompt, caption in zip(prompts, captions)))
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for i, (prompt, caption) in enumerate(zip(prompts, captions)):
            start, end = len(prompt), len(prompt) + len(caption)
            input_ids[i, :end] = torch.tensor(prompt + caption)
            attention_mask[i, :end] = 1  # by length: the pad token is EOS in GPT-2, and EOS is learned
            labels[i, start:end] = torch.tensor(caption)
        return {
            "input_features": self.features.read(rows),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "max_label_length": max(map(len, captions)),
        }


def plan_epoch(
    rows: np.ndarray, lengths: np.ndarray, batch_size: int, micro_batch_size: int | None, accelerator: Accelerator
) -> list[list[list[int]]]:
    """
    Cuts the rows of an epoch into steps of `batch_size`, and this process's share of each into micro-batches.

    Every process gets equally many micro-batches per step, the last ones possibly empty: all take part in each step.
    Clips of similar caption length (`lengths`, by row) share a micro-batch, so that little of it is padding.
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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all processes of a job: the training decides when it ends


def load_batches(steps: list[list[list[int]]], collator: TeacherForcingCollator, num_workers: int) -> DataLoader:
    """
    The micro-batches of an epoch. A new loader for each epoch: workers that outlive it would keep its candidates.
    """
    return DataLoader(
        range(len(collator.caption_ids)),
        batch_sampler=[micro_batch for step in steps for micro_batch in step],
        collate_fn=collator,
        num_workers=num_workers,
        worker_init_fn=_ignore_sigterm,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the global one would be drawn from here, and a resumed run would differ
    )
