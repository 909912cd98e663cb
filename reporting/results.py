"""The results of an evaluation: what `results.json` and `predictions.jsonl` hold, and what its parts are called."""

from dataclasses import asdict, dataclass
from typing import NotRequired, TypedDict

import numpy as np

METRIC_TITLES = {
    "cider_d": "CIDEr-D",
    **{f"bleu_{n}": f"BLEU@{n}" for n in range(1, 5)},
    "meteor_1.5": "METEOR 1.5",
    "rouge_l": "ROUGE-L",
    "clap_at": "CLAP A-T",  # results name the CLAP in the key: `clap_at[checkpoint]`
    "clap_tt": "CLAP T-T",
    "sentence": "Sentence sim.",  # likewise names the model
    "attribute_precision": "Attr. P",
    "attribute_recall": "Attr. R",
    "attribute_f1": "Attr. F1",
    "copy": "Copy %",
    "distinct": "Distinct %",
    "novel": "Novel %",
    "words": "Words",
}
LEAK_TITLES = {
    "exact_caption": "exact captions",
    "near_caption": "near-duplicate captions",
    "identical_audio": "identical audio",
    "near_audio": "near-identical audio",
}
LISTENING_TITLES = {
    "choice_random": "4-way, random %",
    "choice_nearest": "4-way, similar sound %",
    "audio_swap": "Audio swap %",
}
# Fields that results.json may lack.
OPTIONAL = {"low", "high", "truncated_texts", "difference", "without_leaks", "attributes", "listening", "retrieval"}
OPTIONAL |= {"explanation", "consensus_time", "costs"}
OPTIONAL |= {"deviation", "by_checkpoint", "checkpoints"}  # of several checkpoints

# A score for each clip: `{system: {metric: [value of the first clip, …]}}`.
ItemScores = dict[str, dict[str, list[float]]]
# A score for each resample of the clips: `{system: {metric: (samples,)}}`.
Resamples = dict[str, dict[str, np.ndarray]]


class CheckpointPrediction(TypedDict):
    """
    What another checkpoint of `--model` says of a clip.

    Args:
        checkpoint (`str`): Its name, as given to `--model`.
        prediction, candidate, candidate_id, similarity, beams: As in [`Prediction`].
        captions (`dict[str, str]`): The caption of each system that depends on the checkpoint.
    """

    checkpoint: str
    prediction: str
    candidate: str | None
    candidate_id: str | None
    similarity: float | None
    beams: NotRequired[list[str]]
    captions: dict[str, str]


class Prediction(TypedDict):
    """
    A line of `predictions.jsonl`: a clip and what is said of it.

    Args:
        id (`str`): Of the clip.
        caption_normalization (`str`): Rule by which the captions of the line are normalised.
        prediction (`str`): The model's caption.
        references (`list[str]`): The captions of the corpus, one or more.
        candidate (`str`, *optional*): The caption that the model was shown.
        candidate_id, similarity (`str` and `float`, *optional*): Of the clip's nearest neighbour.
        beams (`list[str]`): The captions of all beams, the most probable first, where the oracle is asked for.
        captions (`dict[str, str]`): The caption of each system.
        leaks (`list[str]`): The kinds of leaks that the clip is part of, where leaks were looked for.
        other_checkpoints (`list[CheckpointPrediction]`):
            Where `--model` names several checkpoints, what each after the first says; the rest of the line is about the
            first.
    """

    id: str
    caption_normalization: str
    prediction: str
    references: list[str]
    candidate: str | None
    candidate_id: str | None
    similarity: float | None
    beams: NotRequired[list[str]]
    captions: NotRequired[dict[str, str]]
    leaks: NotRequired[list[str]]
    other_checkpoints: NotRequired[list[CheckpointPrediction]]


class Checkpoint(TypedDict):
    """Name, commit on the Hub (None for a folder) and the SHA-256 of each file of a checkpoint."""

    name: str
    revision: str | None
    sha256: dict[str, str]


class Bootstrap(TypedDict):
    """How the intervals were made: resamples, level from 0 to 1, and what is resampled."""

    samples: int
    level: float
    unit: str


@dataclass
class Score:
    """
    A score of a system, or the difference between two.

    Args:
        value (`float`, *optional*): x 100, except for `words`; None where it cannot be computed.
        low, high (`float`, *optional*): Limits of the bootstrap interval; None where there is none.
        deviation (`float`, *optional*):
            Standard deviation (n - 1) over several checkpoints, of which `value` is the mean; None for one checkpoint.
        by_checkpoint (`list[float]`, *optional*): The score by each of them.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    deviation: float | None = None
    by_checkpoint: list[float] | None = None


@dataclass
class SystemResult:
    """
    The scores of one system.

    Args:
        title (`str`): Its row in a table.
        source (`str`): Where its captions come from.
        scores (`dict[str, Score]`): By metric.
        truncated_texts (`int`, *optional*): How many of its texts and of the references' CLAP cut.
        difference (`dict[str, Score]`, *optional*): RGMC minus this system, by metric, from the same resamples.
    """

    title: str
    source: str
    scores: dict[str, Score]
    truncated_texts: int | None = None
    difference: dict[str, Score] | None = None

    @classmethod
    def from_dict(cls, values: dict) -> "SystemResult":
        fields = {"scores", "difference"} & values.keys()
        scores = {name: {key: Score(**score) for key, score in values[name].items()} for name in fields}
        return cls(**{**values, **scores})


@dataclass
class Cost:
    """
    What a trained system costs on the machine at hand.

    Args:
        training_seconds (`float`, *optional*):
            Wall time of the training's steps by its log, without refreshes and validations; of several checkpoints the
            mean. None where there is no log.
        captions_per_second (`float`, *optional*): None where this run did not caption.
    """

    training_seconds: float | None = None
    captions_per_second: float | None = None


@dataclass
class LeakFreeResults:
    """
    The scores of the clips that do not leak from the training split.

    Args:
        n (`int`): Clips that are left.
        left_out (`dict[str, int]`): Clips left out, by kind of leak; a clip may be of several kinds.
        train_split (`str`), options (`dict`): What the clips were compared with, and how: those of `leakage.json`.
        systems (`dict[str, SystemResult]`): Empty where no clip is left.
    """

    n: int
    left_out: dict[str, int]
    train_split: str
    options: dict
    systems: dict[str, SystemResult]

    @classmethod
    def from_dict(cls, values: dict) -> "LeakFreeResults":
        return cls(**{**values, "systems": _systems(values)})


@dataclass
class ListeningResults:
    """
    Whether the model tells a clip's own caption and its own sound from others.

    Args:
        systems (`dict[str, SystemResult]`):
            The model, as it is and with one of its inputs masked. The scores are shares of clips, by the keys of
            `LISTENING_TITLES`; None where there are none.
        unavailable (`dict[str, str]`): Why no system has such a score.
    """

    systems: dict[str, SystemResult]
    unavailable: dict[str, str]

    @classmethod
    def from_dict(cls, values: dict) -> "ListeningResults":
        return cls(**{**values, "systems": _systems(values)})


@dataclass
class EncoderRecall:
    """
    How well an encoder retrieves.

    Args:
        title (`str`), source (`str`): The encoder, and where it comes from.
        rows (`int`): Songs that it retrieves from.
        recall (`dict[str, Score]`): By the number of neighbours.
        ceiling (`Score`): What the best encoder would reach; without a value where it was not computed.
    """

    title: str
    source: str
    rows: int
    recall: dict[str, Score]
    ceiling: Score

    @classmethod
    def from_dict(cls, values: dict) -> "EncoderRecall":
        recall = {k: Score(**score) for k, score in values["recall"].items()}
        return cls(**{**values, "recall": recall, "ceiling": Score(**values["ceiling"])})


@dataclass
class RetrievalResults:
    """
    How often clips have a similar caption among those of their nearest training songs.

    Args:
        threshold (`float`): Token F1 from which on two captions are similar.
        encoders (`dict[str, EncoderRecall]`): By the system of Table 3 that repeats the nearest caption.
    """

    threshold: float
    encoders: dict[str, EncoderRecall]

    @classmethod
    def from_dict(cls, values: dict) -> "RetrievalResults":
        encoders = {key: EncoderRecall.from_dict(encoder) for key, encoder in values["encoders"].items()}
        return cls(**{**values, "encoders": encoders})


@dataclass
class AttributeScores:
    """
    How many of a system's claims about a category hold. Scores are x 100; a ratio of nothing is 0.

    Args:
        precision ([`Score`]): Claims that hold, as a share of the claims.
        recall ([`Score`]): Facts that are found, as a share of the facts.
        f1 ([`Score`]): Harmonic mean of both.
        macro_precision, macro_recall, macro_f1 ([`Score`]):
            Means over the concepts that are claimed or true of a clip at least once. A concept counts where it is named
            itself or by a member of its family.
        concepts, claims, facts (`float`):
            Over how many concepts, claims and facts; of several checkpoints the mean.
    """

    precision: Score
    recall: Score
    f1: Score
    macro_precision: Score
    macro_recall: Score
    macro_f1: Score
    concepts: float
    claims: float
    facts: float

    @classmethod
    def from_dict(cls, values: dict) -> "AttributeScores":
        return cls(**{name: Score(**found) if isinstance(found, dict) else found for name, found in values.items()})


@dataclass
class AttributeResults:
    """
    The attributes that captions claim: instruments, genres, moods, tempi.

    Args:
        file (`str`): The yaml file of the words.
        sources (`dict[str, str]`): Where the facts of each category come from: captions, or columns of the corpus.
        systems (`dict[str, dict[str, AttributeScores]]`): By system and category; `all` is all categories.
        concepts (`dict[str, dict[str, dict[str, dict[str, float]]]]`):
            By system, category and concept the clips of which it is claimed and true (`held`), claimed (`claims`), and
            true (`facts`); of several checkpoints the mean.
    """

    file: str
    sources: dict[str, str]
    systems: dict[str, dict[str, AttributeScores]]
    concepts: dict[str, dict[str, dict[str, dict[str, float]]]]

    @classmethod
    def from_dict(cls, values: dict) -> "AttributeResults":
        systems = {
            system: {category: AttributeScores.from_dict(scores) for category, scores in categories.items()}
            for system, categories in values["systems"].items()
        }
        return cls(**{**values, "systems": systems})


@dataclass
class SourceShares:
    """
    What sound and candidates add to the words of one kind: means over the words, in nats.

    Args:
        words (`int`): How many there are.
        audio, candidate (`Score`, *optional*): Shapley values; None where there is no such word.
        audio_beyond, candidate_beyond (`Score`, *optional*):
            How much more they add than those of a random song, from the same resamples; None without other songs.
        share (`Score`, *optional*): Per cent of the sum of both that the sound adds; None where one is negative.
    """

    words: int
    audio: Score | None = None
    candidate: Score | None = None
    audio_beyond: Score | None = None
    candidate_beyond: Score | None = None
    share: Score | None = None

    @classmethod
    def from_dict(cls, values: dict) -> "SourceShares":
        return cls(**{name: Score(**found) if isinstance(found, dict) else found for name, found in values.items()})


@dataclass
class LensResult:
    """
    How many of the words that a lens reads in the prefixes are words of the clips' own captions.

    Args:
        title (`str`): What the lens looks at.
        words (`int`): How many words it reads.
        hits, shuffled, frequent (`Score`):
            Per cent of these words that the clip's own captions have, and the floors: that another clip's captions
            have, and that the clip's captions have of as many of the most frequent words.
        above_shuffled, above_frequent (`Score`): Hits minus each floor, from the same resamples.
    """

    title: str
    words: int
    hits: Score
    shuffled: Score
    frequent: Score
    above_shuffled: Score
    above_frequent: Score

    @property
    def reads_nothing(self) -> bool:
        """Whether the lens is at or below a floor, as far as the intervals tell."""
        floors = (self.above_shuffled, self.above_frequent)
        return any((floor.value if floor.low is None else floor.low) <= 0 for floor in floors)

    @classmethod
    def from_dict(cls, values: dict) -> "LensResult":
        return cls(**{name: Score(**found) if isinstance(found, dict) else found for name, found in values.items()})


@dataclass
class WatchedWord:
    """
    A watched word in a caption.

    Args:
        group, word (`str`): What it is watched for, and the word.
        id, caption (`str`): The clip and its caption.
        candidate, candidate_id (`str`, *optional*): The caption that the model was shown.
        in_candidate, in_gold (`bool`): Whether that candidate, and the clip's own captions, have the word or one alike.
        audio, by_candidate (`float`): What sound and candidate add to its log-probability, in nats.
    """

    group: str
    word: str
    id: str
    caption: str
    candidate: str | None
    candidate_id: str | None
    in_candidate: bool
    in_gold: bool
    audio: float
    by_candidate: float


@dataclass
class WatchedWords:
    """
    The watched words, such as exoticising ones.

    Args:
        file (`str`), concepts (`int`): The yaml file, and how many concepts it watches.
        counts (`dict[str, dict[str, int]]`):
            By concept the clips whose caption, candidate and own captions have it: `captions`, `candidates`, `gold`;
            `brought` where caption and candidate both do.
        found (`list[WatchedWord]`): Each in a caption.
    """

    file: str
    concepts: int
    counts: dict[str, dict[str, int]]
    found: list[WatchedWord]

    @classmethod
    def from_dict(cls, values: dict) -> "WatchedWords":
        return cls(**{**values, "found": [WatchedWord(**word) for word in values["found"]]})


@dataclass
class CoveragePoint:
    """The mean CIDEr-D of the surest clips: their share of all clips (0 to 1), their number, the score."""

    coverage: float
    clips: int
    cider_d: float


@dataclass
class ConfidenceResults:
    """
    Ranks of the clips among validation clips, by the log-probability of their caption and the similarity of their
    nearest song. A rank is not a probability of truth.

    Args:
        split (`str`), validation_clips (`int`): The validation split and its size.
        curves (`dict[str, list[CoveragePoint]]`): By `log_prob`, `similarity`, and `both`, the weaker of the two.
        nothing_similar (`int`), nothing_similar_cider_d (`float`, *optional*):
            Clips to which nothing similar is in the datastore, and their mean CIDEr-D.
        quantiles (`dict[str, list[float]]`): The rank of each clip, from 0 to 1.
    """

    split: str
    validation_clips: int
    curves: dict[str, list[CoveragePoint]]
    nothing_similar: int
    nothing_similar_cider_d: float | None
    quantiles: dict[str, list[float]]

    @classmethod
    def from_dict(cls, values: dict) -> "ConfidenceResults":
        curves = {name: [CoveragePoint(**point) for point in points] for name, points in values["curves"].items()}
        return cls(**{**values, "curves": curves})


@dataclass
class ExplanationResults:
    """
    Where the words of the model's captions come from.

    Args:
        kinds (`dict[str, SourceShares]`): By kind of word: categories of attributes, function words, others, all.
        out_of_distribution (`list[str]`): Which inputs the model was not trained on, as in [`Explanation`].
        lenses (`dict[str, LensResult]`): What each lens reads in the prefixes; empty for a model without sound.
        watched ([`WatchedWords`]): Words to look at twice.
        confidence ([`ConfidenceResults`]): How sure the captions are.
    """

    kinds: dict[str, SourceShares]
    out_of_distribution: list[str]
    lenses: dict[str, LensResult]
    watched: WatchedWords
    confidence: ConfidenceResults

    @classmethod
    def from_dict(cls, values: dict) -> "ExplanationResults":
        return cls(
            kinds={kind: SourceShares.from_dict(shares) for kind, shares in values["kinds"].items()},
            out_of_distribution=values["out_of_distribution"],
            lenses={lens: LensResult.from_dict(found) for lens, found in values["lenses"].items()},
            watched=WatchedWords.from_dict(values["watched"]),
            confidence=ConfidenceResults.from_dict(values["confidence"]),
        )


@dataclass(kw_only=True)
class EvaluationResults:
    """
    What `results.json` holds.

    Args:
        model, dataset, split, seed: Options of the evaluation; of several models the first.
        checkpoint ([`Checkpoint`]): That of `model`.
        checkpoints (`list[Checkpoint]`, *optional*):
            Where there are several, all of them, that of `model` included. Scores are then means over them.
        command (`str`): The command that makes these results.
        caption_normalization, text (`str`): Rule of the captions, and in words how they are compared.
        versions (`dict[str, str]`): Of Python and the packages that the scores depend on.
        bootstrap ([`Bootstrap`])
        n, skipped (`int`): Clips that are scored, and rows that cannot be used.
        metrics (`dict[str, str]`): Title by metric, in the order of the columns.
        unavailable (`dict[str, str]`): Why a metric has no scores.
        systems (`dict[str, SystemResult]`): In the order of a table.
        without_leaks ([`LeakFreeResults`], *optional*): Where leaks were looked for.
        attributes ([`AttributeResults`], *optional*): Where a clip has an attribute.
        listening ([`ListeningResults`], *optional*): Where it was measured.
        retrieval ([`RetrievalResults`], *optional*): None in files of earlier versions.
        explanation ([`ExplanationResults`], *optional*): Where it was asked for; of several models the first.
        consensus_time (`float`, *optional*):
            How many times as long consensus decoding took as the most probable captions, where a run made both.
        costs (`dict[str, Cost]`, *optional*): By trained system, where `--baseline` compares them.
        tables (`dict[str, list[str]]`): By number of the paper's table the systems that are its rows.
        side_by_side (`list[str]`): The systems of Table 1.
        missing (`dict[str, str]`): Rows that are not made, with the option that makes them.
    """

    model: str
    checkpoint: Checkpoint
    checkpoints: list[Checkpoint] | None = None
    dataset: str
    split: str
    seed: int
    command: str
    caption_normalization: str
    text: str
    versions: dict[str, str]
    bootstrap: Bootstrap
    n: int
    skipped: int
    metrics: dict[str, str]
    unavailable: dict[str, str]
    systems: dict[str, SystemResult]
    without_leaks: LeakFreeResults | None = None
    attributes: AttributeResults | None = None
    listening: ListeningResults | None = None
    retrieval: RetrievalResults | None = None
    explanation: ExplanationResults | None = None
    consensus_time: float | None = None
    costs: dict[str, Cost] | None = None
    tables: dict[str, list[str]]
    side_by_side: list[str]
    missing: dict[str, str]

    def to_dict(self) -> dict:
        """As `results.json` has it."""
        return asdict(self, dict_factory=_without_absent)

    @classmethod
    def from_dict(cls, values: dict) -> "EvaluationResults":
        """The inverse of [`~EvaluationResults.to_dict`]."""
        parts = {
            "without_leaks": LeakFreeResults,
            "attributes": AttributeResults,
            "listening": ListeningResults,
            "retrieval": RetrievalResults,
            "explanation": ExplanationResults,
        }
        found = {name: kind.from_dict(values[name]) for name, kind in parts.items() if values.get(name)}
        if values.get("costs"):
            found["costs"] = {row: Cost(**cost) for row, cost in values["costs"].items()}
        return cls(**{**values, "systems": _systems(values), **found})


def leak_rule(options: dict) -> str:
    """What counts as a leak, by the `options` of `leakage.json`."""
    rule = "Captions are compared after normalisation by the rule paper, whatever the model's rule. "
    rule += f"Near-duplicate captions: Jaccard of word {options['ngram']}-grams above {options['threshold']:g}; "
    rule += "identical audio: files with the same bytes; near-identical audio: "
    if options["model"]:
        rule += f"cosine of the embeddings by {options['model']} above {options['audio_threshold']:g}. "
    else:
        rule += "not looked for (find_leaks.py --model does). "
    return rule + "What is identical is not counted as near."


def _systems(values: dict) -> dict[str, SystemResult]:
    return {key: SystemResult.from_dict(system) for key, system in values["systems"].items()}


def _without_absent(fields: list[tuple]) -> dict:
    return {name: value for name, value in fields if value is not None or name not in OPTIONAL}
