"""Embeddings of clips, shared by the processes of a run, and the datastore made of them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule
from tqdm.auto import tqdm

from clips.features import ClipFeatures
from configuration_rgmc import RGMCConfig
from modeling_rgmc import RGMCModel
from pretrained_rgmc import is_laion_checkpoint, load_clap_audio
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore
from songs_rgmc import make_rows


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


@contextmanager
def whole_encoder(model: torch.nn.Module) -> Iterator[None]:
    """Inside, methods of the model other than `forward` find the weights of audio encoder and mapper gathered."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def is_rgmc_checkpoint(name: str) -> bool:
    """Whether this is a checkpoint of ours, not a CLAP: a Hub id, a folder, or LAION's file."""
    return (
        not is_laion_checkpoint(name) and RGMCConfig.get_config_dict(name)[0].get("model_type") == RGMCConfig.model_type
    )


def with_audio_tower_of(name: str) -> RGMCModel:
    """A model that embeds as this CLAP does; its decoder says nothing."""
    audio_config, audio_weights, _ = load_clap_audio(name)
    decoder = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1}
    model = RGMCModel(RGMCConfig(audio_config=audio_config, text_config=decoder))
    model.audio_tower.load_state_dict(audio_weights)
    return model
