"""The oracle of n-best captions: how good the model would be if it knew which of its beams is the best."""

import evaluate
import numpy as np

from evaluation.scoring import score_captions
from reporting.results import Prediction


def best_captions(
    lines: list[Prediction], metric: evaluate.EvaluationModule, normalization: str = "paper"
) -> list[str]:
    """
    Chooses for each clip the caption of the beam with the best CIDEr-D against the references: an upper bound of what
    choosing among the beams can reach, not a system.

    Args:
        lines (`list[Prediction]`): One per clip, each with its `beams`, as many for each clip.
        metric (`EvaluationModule`): A loaded `caption_metrics`.
        normalization (`str`, *optional*, defaults to `"paper"`): Rule by which the captions are normalised.

    Returns:
        `list[str]`: A caption per clip; the most probable of several that are equally good.
    """
    references = [line["references"] for line in lines]
    options = {"per_item": True, "meteor": False, "normalization": normalization}
    scores = [
        score_captions(metric, list(captions), references, options)["per_item"]["cider_d"]
        for captions in zip(*(line["beams"] for line in lines))
    ]
    return [line["beams"][best] for line, best in zip(lines, np.argmax(scores, axis=0).tolist())]
