"""
The score below which timed captions say only that there is music.

It is the 10 % quantile of the scores of validation captions: a caption is held back if the model is less sure of it
than of nine in ten captions of clips that it is meant for. It marks music that is unlike the corpus, and costs a tenth
of the captions of music that is like it. `train.py` stores it in the checkpoint's `config.json`, where `caption.py`
reads it.
"""

import json
from pathlib import Path

import numpy as np
import torch

from clips.features import ClipFeatures
from clips.outputs import replaced_whole
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor

QUANTILE = 0.1
CLIPS = 200  # that are captioned at most


def score_threshold(checkpoint: str, features: ClipFeatures, batch_size: int, device: torch.device) -> float:
    """
    Captions clips as the pipeline does, and returns the 10 % quantile of the scores, in nats per token.

    Args:
        checkpoint (`str`): A folder with the model, its datastore and its processor.
        features ([`ClipFeatures`]): The clips; the first 200 count.
        batch_size (`int`): Clips per forward pass.
        device (`torch.device`): Where the model runs.
    """
    model = RGMCModel.from_pretrained(checkpoint).eval()
    processor = RGMCProcessor.from_pretrained(checkpoint)
    pipeline = MusicCaptioningPipeline(model=model, processor=processor, device=device)
    about = {"path": None, "duration": None, "flags": [], "error": None, "starts": [0.0]}
    scores: list[float] = []
    count = min(len(features), CLIPS)
    for start in range(0, count, batch_size):
        log_mels = features.read([*range(start, min(start + batch_size, count))])
        clips = pipeline.forward({"input_features": log_mels, "about": [about] * len(log_mels)})["clips"]
        scores += [clip["score"] for clip in clips]
    return round(float(np.quantile(scores, QUANTILE)), 3)


def store_threshold(checkpoint: str, threshold: float):
    """Writes the threshold into `config.json`."""
    path = Path(checkpoint, "config.json")
    content = json.loads(path.read_text(encoding="utf-8")) | {"score_threshold": threshold}
    with replaced_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
