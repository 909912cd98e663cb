"""
Teaches the decoder to write a caption from candidates before it is given any sound: it costs a fraction of the
training, because nothing is heard, and a decoder from scratch hardly learns to use candidates otherwise.
"""

import math
from collections import Counter

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from scipy import sparse
from tqdm.auto import tqdm
from transformers import get_scheduler

from clips.batches import CandidateSampling, prompt_of, teacher_forcing_tokens
from modeling_rgmc import RGMCModel
from training.arguments import TrainingArguments

POOL = 30  # captions that candidates are drawn from


class SimilarCaptions:
    """Finds the captions of a corpus that share the most and the rarest words: by cosine of their TF-IDF vectors."""

    def __init__(self, captions: list[str]):
        counts = [Counter(caption.split()) for caption in captions]
        frequencies = Counter(word for words in counts for word in words)
        columns = {word: column for column, word in enumerate(frequencies)}
        starts = np.cumsum([0, *map(len, counts)])
        indices = [columns[word] for words in counts for word in words]
        values = [
            count * math.log(len(captions) / frequencies[word]) for words in counts for word, count in words.items()
        ]
        vectors = sparse.csr_array((values, indices, starts), (len(captions), len(columns)), dtype=np.float32)
        norms = np.sqrt(vectors.multiply(vectors).sum(axis=1))
        self.vectors = sparse.diags_array(1 / np.maximum(norms, 1e-12)).dot(vectors).tocsr()

    def nearest(self, rows: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The row numbers of the most similar other captions, the most similar first, and their similarities (0 to 1),
        each `(len(rows), k)`.
        """
        similarity = (self.vectors[rows] @ self.vectors.T).toarray()  # (R, N)
        similarity[range(len(rows)), rows] = -1
        found = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, similarity.shape[1] - 1)]
        return found, np.take_along_axis(similarity, found, axis=1)


def pretrain_decoder(
    model: RGMCModel,
    captions: list[str],
    caption_ids: list[list[int]],
    candidate_ids: list[list[int]],
    args: TrainingArguments,
    accelerator: Accelerator,
):
    """
    Trains the decoder for `args.text_pretraining_steps` steps on the training captions alone: each caption follows
    captions with similar words, as it will follow those of similar songs.

    The main process trains, and the others get its weights.

    Args:
        model ([`RGMCModel`]): The model whose decoder is trained in place, not wrapped yet.
        captions (`list[str]`): The training captions, normalised.
        caption_ids (`list[list[int]]`): Their tokens, with EOS.
        candidate_ids (`list[list[int]]`): Their tokens as candidates.
        args ([`TrainingArguments`]):
            Steps, batch size, learning rate and its schedule, clipping, seed, and the share of own captions.
        accelerator (`Accelerator`): Gives the precision.
    """
    if accelerator.is_main_process:
        _train(model, captions, caption_ids, candidate_ids, args, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        for weight in model.text_model.parameters():
            weight.data.copy_(broadcast(weight.data))


def _train(model, captions, caption_ids, candidate_ids, args: TrainingArguments, accelerator: Accelerator):
    weights = [weight for weight in model.text_model.parameters() if weight.requires_grad]
    rate = args.learning_rate if args.text_learning_rate is None else args.text_learning_rate
    optimizer = torch.optim.Adam(weights, lr=rate, fused=model.device.type in ("cpu", "cuda"))
    steps, separator = args.text_pretraining_steps, model.config.separator_token_id
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, args.warmup_steps, steps)
    scaler = torch.amp.GradScaler(model.device.type, enabled=accelerator.mixed_precision == "fp16")
    similar = SimilarCaptions(captions)
    generator = np.random.default_rng(args.seed)
    order: list[int] = []
    model.train()
    progress = tqdm(range(1, steps + 1), desc="Pretraining the decoder", unit="step")
    for step in progress:
        while len(order) < args.batch_size:
            order += generator.permutation(len(captions)).tolist()
        rows, order = order[: args.batch_size], order[args.batch_size :]
        sampling = CandidateSampling(model.config.num_candidates, (args.seed, step), own_candidate=args.own_candidate)
        drawn = [
            sampling.draw(row, [(candidate_ids[other], score) for other, score in zip(*found)], candidate_ids[row])[0]
            for row, *found in zip(rows, *similar.nearest(rows, POOL))
        ]
        prompts = [prompt_of(candidates, separator, model.config.similarity_token_ids) for candidates in drawn]
        batch = teacher_forcing_tokens(prompts, [caption_ids[row] for row in rows], separator)
        with accelerator.autocast():
            loss = model.text_model(**{name: part.to(model.device) for name, part in batch.items()}).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(weights, args.max_grad_norm or math.inf)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        if step % args.logging_steps == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
