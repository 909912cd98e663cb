"""The retrieval refresh (section 3.2): embed every training song with the current encoder, look up its neighbours."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from clips.embedding import embed_rows, gather_rows
from clips.features import ClipFeatures
from modeling_rgmc import RGMCModel
from retrieval_rgmc import CaptionDatastore


@dataclass
class Neighbors:
    """Candidates of both splits: row numbers of the training split `(N, K)`, -1 for none, and similarities `(N, K)`."""

    train: np.ndarray
    train_similarities: np.ndarray
    validation: np.ndarray


def find_neighbors(
    model: RGMCModel,
    datastore: CaptionDatastore,
    train: ClipFeatures,
    validation: ClipFeatures,
    accelerator: Accelerator,
    batch_size: int,
) -> Neighbors:
    """The most similar training songs of every song of both splits, itself excluded by id."""
    k, world = model.config.num_candidates, accelerator.num_processes
    own = slice(accelerator.process_index, None, world)
    found = datastore.search_rows(datastore.embeddings[own], k, exclude_ids=train.ids[own], device=accelerator.device)
    neighbors, similarities = (
        gather_rows(torch.from_numpy(part).to(accelerator.device), len(train), accelerator) for part in found
    )
    queries = embed_rows(model, validation, accelerator, batch_size, "Embedding the validation split")
    return Neighbors(neighbors, similarities, datastore.search_rows(queries, k, device=accelerator.device)[0])


def write_neighbors(path: Path, ids: list[str], neighbors: Neighbors, epoch: int):
    """The table of the epoch: for each training clip the ids of its candidates and their similarities, a line each."""
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
