"""The neighbours of a retrieval refresh (section 3.2): the nearest training songs by the current encoder."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from clips.embedding import embed_rows, gather_rows, own_ids
from clips.features import ClipFeatures
from clips.recall import RECALL_AT, RECALL_THRESHOLD, first_similar, recall
from modeling_rgmc import RGMCModel
from retrieval_rgmc import CaptionDatastore

BLOCK = 4096  # rows whose embeddings are read at once


@dataclass
class Neighbors:
    """
    Candidates of both splits.

    Args:
        train (`np.ndarray` of shape `(N, K)`, or `(N, pool)`):
            For each training clip, row numbers of the training split; -1 for none.
        train_similarities (`np.ndarray` of the same shape):
            Inner products of these rows' embeddings with the clip's.
        validation, validation_similarities (`np.ndarray` of shape `(M, K)`):
            The same for the `M` validation clips.
        random, random_similarities (`np.ndarray` of shape `(N, K)`):
            The same of random songs for each training clip, or of none (`K` is 0).
    """

    train: np.ndarray
    train_similarities: np.ndarray
    validation: np.ndarray
    validation_similarities: np.ndarray
    random: np.ndarray
    random_similarities: np.ndarray

    @classmethod
    def none(cls, train: int, validation: int) -> "Neighbors":
        """Those of so many clips of both splits where the model does not retrieve."""
        sizes = ((train, 1), (validation, 1), (train, 0))
        return cls(*(part for size in sizes for part in (np.full(size, -1), np.zeros(size, np.float32))))


def find_neighbors(
    model: RGMCModel,
    datastore: CaptionDatastore,
    train: ClipFeatures,
    validation: ClipFeatures,
    accelerator: Accelerator,
    batch_size: int,
    pool: int | None = None,
    random_seed: tuple[int, int] | None = None,
) -> tuple[Neighbors, dict[str, float]]:
    """
    Finds the training songs that are most similar to each song of both splits; the song itself is excluded by id.

    It also measures how well the encoder retrieves for the validation clips.

    Args:
        model ([`RGMCModel`]):
            The current encoder; its `num_candidates` is `K`.
        datastore ([`CaptionDatastore`]):
            The training songs, embedded by this encoder.
        train ([`ClipFeatures`]):
            The training split, in the datastore's order.
        validation ([`ClipFeatures`]):
            The validation split, which is embedded here.
        accelerator (`Accelerator`):
            Shares the training queries and the embedding out between its processes.
        batch_size (`int`):
            Clips per forward pass and process.
        pool (`int`, *optional*):
            How many neighbours a training clip has, of which it is given `K` at a time; by default `K`.
        random_seed (`tuple[int, int]`, *optional*):
            Of the run and the epoch: draws `K` random songs for each training clip, too; by default none.

    Returns:
        `tuple`: The [`Neighbors`], and `recall@1` to `recall@10`: the share of validation clips with a similar caption
        (token F1 of 0.5 or more) among those of their 1 to 10 nearest songs. The same on every process.
    """
    k, world = model.config.num_candidates, accelerator.num_processes
    own = slice(accelerator.process_index, None, world)
    size = k if pool is None else pool
    found = datastore.search_rows(
        datastore.embeddings[own], size, exclude_ids=train.ids[own], device=accelerator.device
    )
    neighbors, similarities = (
        gather_rows(torch.from_numpy(part).to(accelerator.device), len(train), accelerator) for part in found
    )
    queries = embed_rows(model, validation, accelerator, batch_size, "Embedding the validation split")
    exclude_ids = own_ids(validation, datastore)  # where a corpus validates on training clips
    found, scores = datastore.search_rows(queries, k, exclude_ids, accelerator.device)
    # Searched again: among equally near songs, a search for more may put another one first.
    nearest, _ = datastore.search_rows(queries, max(RECALL_AT), exclude_ids, accelerator.device)
    ranks = first_similar(validation.captions, datastore.rows["caption"][:], nearest, RECALL_THRESHOLD)
    drawn = draw_random(datastore, k if random_seed else 0, random_seed)
    return Neighbors(neighbors, similarities, found, scores, *drawn), recall(ranks)


def draw_random(datastore: CaptionDatastore, k: int, seed: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Draws `k` rows of the datastore for each of its rows: their numbers and similarities, each `(N, k)`."""
    drawn = np.random.default_rng(seed).integers(len(datastore), size=(len(datastore), k))
    similarities = np.zeros(drawn.shape, np.float32)
    for start in range(0, len(datastore), BLOCK):
        block = drawn[start : start + BLOCK]
        own = datastore.read_embeddings(slice(start, start + BLOCK))
        for column in range(k):
            similarities[start : start + BLOCK, column] = (own * datastore.read_embeddings(block[:, column])).sum(1)
    return drawn, similarities


def write_neighbors(path: Path, ids: list[str], neighbors: Neighbors, epoch: int):
    """Writes the epoch's table: a line for each training clip with its candidates' ids and similarities."""
    with path.open("w", encoding="utf-8") as file:
        for row_id, rows, similarities in zip(ids, neighbors.train, neighbors.train_similarities):
            found = [(ids[row], round(float(score), 6)) for row, score in zip(rows, similarities) if row >= 0]
            line = {
                "epoch": epoch,
                "id": row_id,
                "candidate_ids": [name for name, _ in found],
                "similarities": [score for _, score in found],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
