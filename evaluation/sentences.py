"""How near captions are to their references in meaning, by any model of `sentence-transformers`."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from captions_rgmc import normalize_caption
from evaluation.systems import System
from reporting.results import Prediction


class SentenceScorer:
    """
    A model that embeds sentences.

    Args:
        folder (`str`): A folder of `sentence-transformers`, or of a text model of `transformers`, whose states are
            averaged then. Nothing is downloaded.
        device (`torch.device`): Where it runs.
    """

    def __init__(self, folder: str, device: torch.device):
        from sentence_transformers import SentenceTransformer

        weights = hashlib.sha256()
        for path in sorted(path for kind in ("*.safetensors", "*.bin") for path in Path(folder).rglob(kind)):
            weights.update(path.read_bytes())
        self.metric = f"sentence[{Path(folder).resolve().name}@{weights.hexdigest()[:12]}]"
        self.model = SentenceTransformer(folder, device=str(device), local_files_only=True)

    def add_scores(
        self, scores: dict[str, dict] | None, systems: dict[str, System], lines: list[Prediction], rule: str
    ) -> dict[str, dict]:
        """
        Adds the cosine (x 100) of each clip's caption and its references, their mean where there are several.

        Args:
            scores (`dict[str, dict]`, *optional*): By system what `score_systems` takes of other models.
            systems (`dict[str, System]`): The captions.
            lines (`list[Prediction]`): The references, one line per clip.
            rule (`str`): By which captions and references are normalised.
        """
        references = [[normalize_caption(text, rule) for text in line["references"]] for line in lines]
        said = {text for system in systems.values() for text in system.captions}
        texts = sorted(said.union(*references))
        embeds = dict(zip(texts, self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)))
        merged = {}
        for key, system in systems.items():
            others = (scores or {}).get(key, {})
            own = [
                float(100 * np.mean([embeds[caption] @ embeds[text] for text in texts]))
                for caption, texts in zip(system.captions, references)
            ]
            merged[key] = {**others, "per_item": {**others.get("per_item", {}), self.metric: own}}
        return merged
