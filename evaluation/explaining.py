"""What `eval.py --explain` adds: sources of the words, words of the prefixes, words to look at twice, confidence."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution_rgmc import untrained_coalitions
from clips.features import Split
from evaluation.attributes import Lexicon
from evaluation.captioning import Captioner
from evaluation.confidence import measure_sureness, measure_validation, score_confidence
from evaluation.prefix_words import read_prefixes, score_lenses
from evaluation.word_sources import explain_split, find_watched, share_by_kind
from reporting.results import ExplanationResults, Prediction


@dataclass
class Explained:
    """
    What a checkpoint tells of its captions.

    Args:
        explanations (`list[dict]`): Of each clip, as `explain_split` returns them.
        out_of_distribution (`list[str]`): Which inputs the model was not trained on.
        prefix_words (`dict[str, list[list[str]]]`): By lens, as `read_prefixes` returns them; empty without sound.
        sureness, validation (`dict[str, np.ndarray]`): Of the clips and of validation clips.
        validation_split (`str`): Name of their split.
        training_captions (`list[str]`): Captions of the datastore.
    """

    explanations: list[dict[str, Any]]
    out_of_distribution: list[str]
    prefix_words: dict[str, list[list[str]]]
    sureness: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    validation_split: str
    training_captions: list[str]


def measure_explanation(captioner: Captioner, lines: list[Prediction], validation: Split, seed: int) -> Explained:
    """
    Explains the captions of a split, and captions a validation split to compare with.

    Args:
        captioner ([`Captioner`]): The checkpoint and the clips, shared among the processes.
        lines (`list[Prediction]`): What it says of each clip.
        validation (`Split`): The validation split.
        seed (`int`): Seed of random songs.

    Returns:
        [`Explained`]: The same on every process.
    """
    captions, config = [line["prediction"] for line in lines], captioner.model.config
    return Explained(
        explanations=explain_split(captioner, captions, seed),
        out_of_distribution=untrained_coalitions(config),
        prefix_words=read_prefixes(captioner, seed) if config.uses_audio else {},
        sureness=measure_sureness(captioner, captions, "Confidence of the captions"),
        validation=measure_validation(captioner, validation),
        validation_split=validation.name,
        training_captions=captioner.model.datastore.rows["caption"][:],
    )


def score_explanation(
    explained: Explained,
    lines: list[Prediction],
    lexicon: Lexicon,
    watched: Lexicon,
    cider_d: list[float],
    samples: int,
    seed: int,
) -> ExplanationResults:
    """
    Sums up what [`measure_explanation`] returns.

    Args:
        explained ([`Explained`]), lines (`list[Prediction]`): Of the clips.
        lexicon, watched ([`Lexicon`]): Words of attributes, and words to look at twice.
        cider_d (`list[float]`): Score of each clip.
        samples, seed (`int`): Resamples of the clips for the intervals, and their seed.
    """
    return ExplanationResults(
        kinds=share_by_kind(explained.explanations, lexicon, samples, seed),
        out_of_distribution=explained.out_of_distribution,
        lenses=score_lenses(explained.prefix_words, lines, explained.training_captions, samples, seed),
        watched=find_watched(lines, explained.explanations, watched),
        confidence=score_confidence(explained.sureness, explained.validation, cider_d, explained.validation_split),
    )


def explanation_lines(explained: Explained, lines: list[Prediction]) -> list[dict[str, Any]]:
    """The lines of `explanations.jsonl`: of each clip its id, its explanation and the words of its prefix by lens."""
    return [
        {
            "id": line["id"],
            **explanation,
            "prefix_words": {lens: words[row] for lens, words in explained.prefix_words.items()},
        }
        for row, (line, explanation) in enumerate(zip(lines, explained.explanations))
    ]
