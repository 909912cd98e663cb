"""The nearest training songs of each clip, by each encoder that the evaluation compares."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from captions_rgmc import most_central
from clips.embedding import (
    build_datastore,
    datastore_rows,
    embed_rows,
    is_rgmc_checkpoint,
    own_ids,
    with_audio_tower_of,
)
from clips.features import ClipFeatures, Split
from clips.recall import RECALL_AT
from evaluation.captioning import Captioner
from evaluation.log_mel_statistics import embed_statistics, summarize_rows
from modeling_rgmc import RGMCModel
from retrieval_rgmc import CaptionDatastore

NEIGHBORS = max(RECALL_AT)


@dataclass
class Neighbors:
    """
    What an encoder retrieves for `B` clips; a clip's own row is not among it.

    Args:
        source (`str`): Name of the encoder.
        captions (`list[str]`): Of the `N` training songs.
        own_rows (`list[int]`): The row of each clip itself; -1 for none.
        nearest (`list[str | None]`): The caption of each clip's nearest song; None where there is no other song.
        rows, similarities (`np.ndarray` of shape `(B, NEIGHBORS)`):
            Row numbers of songs, the nearest first, and dot products; -1 in `rows` for none.
    """

    source: str
    captions: list[str]
    own_rows: list[int]
    nearest: list[str | None]
    rows: np.ndarray
    similarities: np.ndarray

    @classmethod
    def search(cls, source: str, datastore: CaptionDatastore, queries: np.ndarray, clips: ClipFeatures) -> "Neighbors":
        """Searches a datastore with the embeddings `(B, E)` of clips."""
        own = own_ids(clips, datastore)
        row_of_id = {row_id: row for row, row_id in enumerate(datastore.rows["id"][:])}
        # On its own: among equally near songs, a search for more may put another one first.
        found = datastore.search(queries, k=1, exclude_ids=own)
        nearest = [next(iter(captions), None) for captions in found.captions]
        rows, similarities = datastore.search_rows(queries, NEIGHBORS, exclude_ids=own)
        own_rows = [row_of_id.get(row_id, -1) for row_id in own]
        return cls(source, datastore.rows["caption"][:], own_rows, nearest, rows, similarities)

    def consensus(self) -> list[str | None]:
        """
        For each clip, of the captions of its nearest songs, the one most similar to the others, where the others count
        by how near they are (Devlin et al. 2015, section 3); None where there is no other song.
        """
        chosen = []
        for rows, similarities in zip(self.rows, self.similarities):
            captions = [self.captions[row] for row in rows if row >= 0]
            weights = similarities[rows >= 0].clip(min=0).tolist()
            words = [caption.split() for caption in captions]
            chosen.append(captions[most_central(words, weights)] if captions else None)
        return chosen


def retrieve_by_encoders(
    captioner: Captioner,
    frozen_encoder: str | None = None,
    statistics: bool = False,
    train: Callable[[], Split] | None = None,
) -> dict[str, Neighbors]:
    """
    Retrieves for every clip with each encoder.

    Args:
        captioner ([`Captioner`]):
            Has the clips, and the model whose encoder and datastore are the first.
        frozen_encoder (`str`, *optional*):
            A CLAP, as [`RGMCModel.from_audio_text_pretrained`] takes it, which embeds the training split first, or the
            Hub id or folder of an RGMC checkpoint, whose encoder and datastore are used as they are (section 6.1,
            "Nearest Neighbor").
        statistics (`bool`, *optional*, defaults to `False`):
            Whether statistics of the log-mels retrieve from the training split, too.
        train (`Callable`, *optional*):
            Loads the training split; called, and needed, where another encoder than the model's embeds it.

    Returns:
        `dict[str, Neighbors]`: By the system of Table 3 that repeats the nearest caption.

    Raises:
        `ValueError`: If the RGMC checkpoint has no datastore.
    """
    accelerator, clips, batch_size = captioner.accelerator, captioner.features, captioner.batch_size

    def by_encoder(name: str, model: RGMCModel, datastore: CaptionDatastore) -> Neighbors:
        queries = embed_rows(model, clips, accelerator, batch_size, "Embedding the clips")
        return Neighbors.search(name, datastore, queries, clips)

    found = {"nearest_neighbor": by_encoder(captioner.name, captioner.model, captioner.model.datastore)}
    if frozen_encoder is not None and is_rgmc_checkpoint(frozen_encoder):
        model = RGMCModel.from_pretrained(frozen_encoder).to(accelerator.device).eval()
        if model.datastore is None:
            raise ValueError(f"--frozen_encoder {frozen_encoder} has no datastore to retrieve from")
        found["nearest_neighbor_frozen"] = by_encoder(frozen_encoder, model, model.datastore)
        frozen_encoder = None
    if frozen_encoder is None and not statistics:
        return found
    songs = train().features(captioner.processor, accelerator)
    rows = datastore_rows(songs, captioner.processor)
    if frozen_encoder is not None:
        model = with_audio_tower_of(frozen_encoder).to(accelerator.device).eval()
        datastore = build_datastore(model, songs, rows, accelerator, batch_size)
        found["nearest_neighbor_frozen"] = by_encoder(frozen_encoder, model, datastore)
    if statistics:
        embeds, queries = embed_statistics(
            summarize_rows(songs, accelerator, "Statistics of the training split"),
            summarize_rows(clips, accelerator, "Statistics of the clips"),
        )
        source = "log-mel statistics"
        datastore = CaptionDatastore(rows, embeds, source, caption_normalization=songs.normalization)
        found["nearest_neighbor_statistics"] = Neighbors.search(source, datastore, queries, clips)
    return found
