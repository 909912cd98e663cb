"""The retrieval refresh (section 3.2): embed every training song with the current encoder, look up its neighbours."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from tqdm.auto import tqdm

from dataset_rgmc import ClipFeatures
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore, make_rows
from training.sharding import whole_encoder


@dataclass
class Neighbors:
    """Candidates of both splits: row numbers of the training split `(N, K)`, -1 for none, and similarities `(N, K)`."""

    train: np.ndarray
    train_similarities: np.ndarray
    validation: np.ndarray


@torch.no_grad()
def embed_rows(
    model: RGMCModel, features: ClipFeatures, accelerator: Accelerator, batch_size: int, description: str
) -> np.ndarray:
    """Embeddings `(N, E)` of all rows in evaluation mode, shared by the processes."""
    own = list(range(accelerator.process_index, len(features), accelerator.num_processes))
    batches = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    # Written into one array: its parts and their concatenation would take twice the memory.
    embeds = torch.empty(len(own), model.config.audio_config.projection_dim, device=accelerator.device)
    training = model.training
    model.eval()
    progress = tqdm(total=len(own), desc=description, unit="clip", leave=False, disable=not accelerator.is_main_process)
    with whole_encoder(model):
        for number, rows in enumerate(batches):
            # In float32 (on a GPU: TF32), whatever the training's precision, as captioning embeds its queries.
            embeds[number * batch_size :][: len(rows)] = model.embed_audio(features.read(rows))
            progress.update(len(rows))
    progress.close()
    model.train(training)
    return gather_rows(embeds, len(features), accelerator)


def gather_rows(own: torch.Tensor, total: int, accelerator: Accelerator) -> np.ndarray:
    """The rows of all processes, of which each holds every world-th one, in order and each once."""
    if accelerator.num_processes == 1:
        return own.cpu().numpy()
    # Processes hold the same number of rows, or one less: that one is made up, and dropped again.
    missing = math.ceil(total / accelerator.num_processes) - len(own)
    padded = torch.cat([own, own.new_zeros(missing, *own.shape[1:])])
    gathered = accelerator.gather(padded)  # (world * ceil(N / world), …), process by process
    in_order = gathered.unflatten(0, (accelerator.num_processes, -1)).transpose(0, 1).flatten(0, 1)
    return in_order[:total].cpu().numpy()


def datastore_rows(features: ClipFeatures, processor: RGMCProcessor) -> Dataset:
    """The first caption of each clip, as a [`CaptionDatastore`] holds it."""
    return make_rows(features.ids, [captions[0] for captions in features.captions], processor, **features.provenance)


def build_datastore(
    model: RGMCModel,
    train: ClipFeatures,
    rows: Dataset,
    accelerator: Accelerator,
    batch_size: int,
    string_factory: str = "Flat",
    storage: str = "float32",
    search_parameters: str | None = None,
) -> CaptionDatastore:
    """The training captions with the current encoder's embeddings of their songs."""
    embeds = embed_rows(model, train, accelerator, batch_size, "Embedding the datastore's songs")
    vocab_size = model.config.text_config.vocab_size
    fingerprint = model.encoder_fingerprint()
    arguments = (string_factory, storage, vocab_size, search_parameters, train.normalization)
    return CaptionDatastore(rows, embeds, fingerprint, *arguments)


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
