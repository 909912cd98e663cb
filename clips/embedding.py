"""Embeddings of clips, computed by all processes of a run, and the datastore built from them."""

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
    """Embeds all rows in evaluation mode, each process its share, and returns `(N, E)` on every process."""
    own = list(range(accelerator.process_index, len(features), accelerator.num_processes))
    batches = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    # One array from the start: concatenating the parts would take twice the memory.
    embeds = torch.empty(len(own), model.config.audio_config.projection_dim, device=accelerator.device)
    training = model.training
    model.eval()
    progress = tqdm(total=len(own), desc=description, unit="clip", leave=False, disable=not accelerator.is_main_process)
    with whole_encoder(model):
        for number, rows in enumerate(batches):
            # In float32 (TF32 on a GPU) whatever the training's precision: captioning embeds its queries the same way.
            embeds[number * batch_size :][: len(rows)] = model.embed_audio(features.read(rows))
            progress.update(len(rows))
    progress.close()
    model.train(training)
    return gather_rows(embeds, len(features), accelerator)


def gather_rows(own: torch.Tensor, total: int, accelerator: Accelerator) -> np.ndarray:
    """Gathers rows of which each process holds every world-th one: all `total` of them in order, each once."""
    if accelerator.num_processes == 1:
        return own.cpu().numpy()
    # Some processes hold one row less than others: they add a row of zeros, which is dropped below.
    missing = math.ceil(total / accelerator.num_processes) - len(own)
    padded = torch.cat([own, own.new_zeros(missing, *own.shape[1:])])
    gathered = accelerator.gather(padded)  # (world * ceil(N / world), …), process by process
    in_order = gathered.unflatten(0, (accelerator.num_processes, -1)).transpose(0, 1).flatten(0, 1)
    return in_order[:total].cpu().numpy()


def datastore_rows(features: ClipFeatures, processor: RGMCProcessor) -> Dataset:
    """Makes the rows of a [`CaptionDatastore`] from the first caption of each clip."""
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
    """
    Builds a datastore of the training captions and the current encoder's embeddings of their songs.

    Args:
        model ([`RGMCModel`]):
            Embeds the songs.
        train ([`ClipFeatures`]):
            The training split, `N` clips.
        rows (`Dataset`):
            What [`datastore_rows`] makes of the split, `N` rows.
        accelerator (`Accelerator`):
            Shares the songs out between its processes.
        batch_size (`int`):
            Clips per forward pass and process.
        string_factory (`str`, defaults to `"Flat"`):
            Index of the datastore, as in [`CaptionDatastore`].
        storage (`str`, defaults to `"float32"`):
            Type of the stored embeddings, as in [`CaptionDatastore`].
        search_parameters (`str`, *optional*):
            Parameters of the index, as in [`CaptionDatastore`].
    """
    embeds = embed_rows(model, train, accelerator, batch_size, "Embedding the datastore's songs")
    vocab_size = model.config.text_config.vocab_size
    fingerprint = model.encoder_fingerprint()
    arguments = (string_factory, storage, vocab_size, search_parameters, train.normalization)
    return CaptionDatastore(rows, embeds, fingerprint, *arguments)


@contextmanager
def whole_encoder(model: torch.nn.Module) -> Iterator[None]:
    """Gathers the sharded weights of audio encoder and mapper, for methods of the model other than `forward`."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def is_rgmc_checkpoint(name: str) -> bool:
    """Whether a Hub id, folder or LAION file names an RGMC checkpoint rather than a CLAP."""
    return (
        not is_laion_checkpoint(name) and RGMCConfig.get_config_dict(name)[0].get("model_type") == RGMCConfig.model_type
    )


def with_audio_tower_of(name: str) -> RGMCModel:
    """Makes a model that embeds as this CLAP does. Its decoder is a tiny untrained stand-in."""
    audio_config, audio_weights, _ = load_clap_audio(name)
    decoder = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1}
    model = RGMCModel(RGMCConfig(audio_config=audio_config, text_config=decoder))
    model.audio_tower.load_state_dict(audio_weights)
    return model


def own_ids(clips: ClipFeatures, datastore: CaptionDatastore) -> list[str | None]:
    """
    For each clip the id of its own row in the datastore, which must not be its candidate; None if it has no row there.

    A row is the clip's own if both the id and the caption agree. Where ids are file names, the clips of other splits
    have the same ids.
    """
    captions = dict(zip(datastore.rows["id"][:], datastore.rows["caption"][:]))
    return [row_id if captions.get(row_id) in own else None for row_id, own in zip(clips.ids, clips.captions)]
