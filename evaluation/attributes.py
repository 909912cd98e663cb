"""Attribute scores: which instruments, genres, moods and tempi captions claim, and which of these claims hold."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from transformers.utils import logging

from captions_rgmc import normalize_caption
from evaluation.intervals import mean_score
from reporting.results import AttributeResults, AttributeScores

logger = logging.get_logger(__name__)

ROOT = Path(__file__).parent.parent
FILE = "evaluation/attributes.yaml"  # below ROOT
ARTICLES = {"a", "an", "the", "any"}
BESIDES = {"or", "nor"}  # join what is absent: no drums or bass
TRUE = {"1", "true", "yes"}
METRICS = ("attribute_precision", "attribute_recall", "attribute_f1")

Concept = tuple[str, str]  # category and name


@dataclass(frozen=True)
class Lexicon:
    """
    The words of the concepts, as [`read_attributes`] reads them.

    Args:
        file (`str`): Path of the yaml file.
        normalization (`str`): Rule of the captions, by which the words are normalised too.
        concepts (`dict[Concept, Concept | None]`): Each concept with its parent.
        words (`dict[Concept, list[str]]`): The normalised words and phrases of each concept, in the order of the file.
        phrases (`dict[tuple[str, ...], tuple[Concept, ...]]`): The concepts of each phrase; none for ignored ones.
        negations (`frozenset[str]`): A word before a phrase that turns it around.
    """

    file: str
    normalization: str
    concepts: dict[Concept, Concept | None]
    words: dict[Concept, list[str]]
    phrases: dict[tuple[str, ...], tuple[Concept, ...]]
    negations: frozenset[str]

    @property
    def categories(self) -> list[str]:
        """The categories, in the order of the file."""
        return list(dict.fromkeys(category for category, _ in self.concepts))

    def find(self, caption: str) -> list[tuple[int, int, tuple[Concept, ...]]]:
        """
        Finds the phrases of a caption, the longest first, then from left to right; no word belongs to two phrases.

        Returns:
            `list[tuple[int, int, tuple[Concept, ...]]]`: The first word, the word after the last one, and the concepts
            of each phrase, in the order of the caption. A phrase that is ignored or negated has no concepts.
        """
        words = normalize_caption(caption, self.normalization).split()
        found, taken = {}, set()
        for size in range(min(max(map(len, self.phrases)), len(words)), 0, -1):
            for start in range(len(words) - size + 1):
                phrase, places = tuple(words[start : start + size]), range(start, start + size)
                if phrase in self.phrases and taken.isdisjoint(places):
                    found[start] = (start + size, self.phrases[phrase])
                    taken.update(places)
        phrases, absent = [], None  # the end of the last phrase that the caption says is not there
        for start, (end, concepts) in sorted(found.items()):
            before = start - 1
            while before >= 0 and words[before] in ARTICLES:
                before -= 1
            if before >= 0 and (words[before] in self.negations or (words[before] in BESIDES and before == absent)):
                absent, concepts = end, ()
            phrases.append((start, end, concepts))
        return phrases

    def claims(self, caption: str) -> frozenset[Concept]:
        """The concepts that a caption names, without their parents."""
        return frozenset(concept for _, _, concepts in self.find(caption) for concept in concepts)

    def named(self, text: str) -> frozenset[Concept]:
        """The concepts whose name a text is."""
        return frozenset(concept for concept in self.concepts if concept[1] == text.lower())

    def with_parents(self, concepts: Iterable[Concept]) -> frozenset[Concept]:
        """These concepts, their parents and so on."""
        found = set()
        for concept in concepts:
            while concept is not None and concept not in found:
                found.add(concept)
                concept = self.concepts[concept]
        return frozenset(found)


def read_attributes(
    file: str | Path | None = None, normalization: str = "paper", option: str = "--attributes", default: str = FILE
) -> Lexicon:
    """
    Reads a yaml file of attributes.

    Args:
        file (`str` or `Path`, *optional*, defaults to `evaluation/attributes.yaml`):
            `categories` maps each category to its concepts, and each concept to its words and phrases, or to
            `{parent: concept, words: […]}`. `ignored` and `negations` are optional lists.
        normalization (`str`, *optional*, defaults to `"paper"`): Rule of the captions in which words are looked for.
        option (`str`, *optional*, defaults to `"--attributes"`): The option that names the file.
        default (`str`, *optional*): The repository's file that is read without one.

    Raises:
        `ValueError`: If the file is not such a file, with the category and the concept that is wrong.
    """
    path, where = (Path(file), f"{option} {file}") if file else (ROOT / default, default)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{where} cannot be read as yaml: {error}") from error
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, dict) or not categories:
        raise ValueError(f"{where}: expected a mapping with the key 'categories'")
    unknown = set(content) - {"categories", "ignored", "negations"}
    if unknown:
        raise ValueError(f"{where}: unknown key {sorted(map(str, unknown))[0]!r}")
    concepts, words = {}, {}
    phrases: dict[tuple[str, ...], tuple[Concept, ...]] = {}
    for category, entries in categories.items():
        if not isinstance(category, str) or not isinstance(entries, dict) or not entries:
            raise ValueError(f"{where}, {category}: expected a mapping of concepts")
        for name, entry in entries.items():
            concept, parent = (category, str(name)), None
            here = f"{where}, {category}: {name}"
            if isinstance(entry, dict):
                if set(entry) - {"parent", "words"}:
                    raise ValueError(f"{here}: expected parent and words, found {', '.join(map(str, entry))}")
                entry, parent = entry.get("words"), entry.get("parent")
            if parent is not None and parent not in entries:
                raise ValueError(f"{here}: the parent {parent!r} is not a concept of {category}")
            concepts[concept] = None if parent is None else (category, str(parent))
            words[concept] = _spell(entry or None, normalization, here)
            for phrase in map(tuple, map(str.split, words[concept])):
                others = phrases.get(phrase, ())
                if category in dict(others):
                    raise ValueError(f"{here}: {' '.join(phrase)!r} is a word of {dict(others)[category]} too")
                phrases[phrase] = (*others, concept)
    for concept in concepts:
        above, seen = concepts[concept], set()
        while above is not None and above not in seen:
            seen.add(above)
            above = concepts[above]
        if concept in seen:
            raise ValueError(f"{where}, {': '.join(concept)}: it is its own ancestor")
    for phrase in map(tuple, map(str.split, _spell(content.get("ignored") or [], normalization, f"{where}, ignored"))):
        if phrase in phrases:
            raise ValueError(f"{where}, ignored: {' '.join(phrase)!r} is a word of {': '.join(phrases[phrase][0])}")
        phrases[phrase] = ()
    negations = frozenset(_spell(content.get("negations") or [], normalization, f"{where}, negations"))
    return Lexicon(str(file or default), normalization, concepts, words, phrases, negations)


def _spell(words: list[str], normalization: str, where: str) -> list[str]:
    """Normalises words in each of their spellings: with each hyphen as it is, as a space, and left out."""
    if not isinstance(words, list):
        raise ValueError(f"{where}: expected a list of words, found {words!r}")
    for word in words:
        if not isinstance(word, str) or not normalize_caption(word, normalization):
            raise ValueError(f"{where}: expected words, found {word!r}; put it in quotes")
    spellings = {}  # in this order, each once
    for word in words:
        first, *others = word.split("-")
        for hyphens in itertools.product(("-", " ", ""), repeat=len(others)):
            text = first + "".join(map("".join, zip(hyphens, others)))
            spellings[normalize_caption(text, normalization)] = None
    return list(spellings)


@dataclass(frozen=True)
class Attributes:
    """
    What is true of each clip of a split.

    Args:
        lexicon ([`Lexicon`])
        facts (`list[frozenset[Concept]]`): Per clip the concepts that are true, without their parents.
        sources (`dict[str, str]`): Where the facts of each category come from.
    """

    lexicon: Lexicon
    facts: list[frozenset[Concept]]
    sources: dict[str, str]

    @property
    def problem(self) -> str | None:
        """Why there are no scores; None where there are some."""
        return None if any(self.facts) else f"no clip has an attribute of {Path(self.lexicon.file).name}"

    def select(self, rows: Sequence[int]) -> "Attributes":
        """The same for some of the clips."""
        return replace(self, facts=[self.facts[row] for row in rows])

    def count(self, captions: list[str]) -> np.ndarray:
        """
        Counts the claims of captions and the facts.

        Returns:
            `np.ndarray`: `(clips, categories, 4)`: claims that hold, claims, facts that are found, facts. A claim holds
            if it is a fact or the family of one. A fact is found if it is claimed or the family of a claim.
        """
        column = {category: column for column, category in enumerate(self.lexicon.categories)}
        counts = np.zeros((len(captions), len(column), 4), int)
        for row, (caption, facts) in enumerate(zip(captions, self.facts)):
            claims = self.lexicon.claims(caption)
            held, found = claims & self.lexicon.with_parents(facts), facts & self.lexicon.with_parents(claims)
            for kind, concepts in enumerate((held, claims, found, facts)):
                for category, _ in concepts:
                    counts[row, column[category], kind] += 1
        return counts

    def score(
        self, captions: list[str], draws: np.ndarray | None = None
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """
        Scores captions over all categories.

        Args:
            captions (`list[str]`): One per clip.
            draws (`np.ndarray`, *optional*): `(samples, clips)`: how often each resample draws each clip.

        Returns:
            `tuple`: precision, recall and F1, by metric, and those of each resample, in which sums are resampled before
            they are divided.
        """
        counts = self.count(captions).sum(axis=1)  # (clips, 4)
        scores = {name: float(value) for name, value in zip(METRICS, ratios(counts.sum(axis=0)))}
        resamples = {} if draws is None else dict(zip(METRICS, map(np.ndarray.tolist, ratios(draws @ counts))))
        return scores, resamples

    def describe(self, captions: dict[str, list[list[str]]]) -> AttributeResults | None:
        """
        The scores of systems in each category and in all, and counts of concepts; None where no clip has any.

        Args:
            captions (`dict[str, list[list[str]]]`):
                For each system a caption per clip by each of the checkpoints that share its row, over which scores and
                counts are means.
        """
        if self.problem:
            return None
        truth, scores, concepts = self._mark(self.facts), {}, {}
        for key, by_checkpoint in captions.items():
            counts = [self.count(texts).sum(axis=0) for texts in by_checkpoint]  # each (categories, 4)
            claimed = (self._mark(map(self.lexicon.claims, texts)) for texts in by_checkpoint)
            marks = [np.stack([own & truth, own, truth], axis=-1).sum(axis=0) for own in claimed]  # each (concepts, 3)
            scores[key], concepts[key] = {}, {}
            for row, category in enumerate(self.lexicon.categories):
                members = [index for index, (own, _) in enumerate(self.lexicon.concepts) if own == category]
                scores[key][category] = _scores_of([own[row] for own in counts], [own[members] for own in marks])
                concepts[key][category] = self._count_concepts(members, marks)
            scores[key]["all"] = _scores_of([own.sum(axis=0) for own in counts], marks)
        return AttributeResults(self.lexicon.file, self.sources, scores, concepts)

    def _count_concepts(self, members: list[int], marks: list[np.ndarray]) -> dict[str, dict[str, float]]:
        """Of the concepts in these rows of `marks`, each `(concepts, 3)`, those that are claimed or true."""
        names, kinds = [name for _, name in self.lexicon.concepts], ("held", "claims", "facts")
        return {
            names[row]: {kind: _mean([own[row, i] for own in marks]) for i, kind in enumerate(kinds)}
            for row in members
            if any(own[row].any() for own in marks)
        }

    def _mark(self, sets: Iterable[frozenset[Concept]]) -> np.ndarray:
        """Marks the concepts of each clip and their parents: `(clips, concepts)`, bool."""
        sets = list(map(self.lexicon.with_parents, sets))
        return np.array([[concept in own for concept in self.lexicon.concepts] for own in sets])


def _scores_of(counts: list[np.ndarray], marks: list[np.ndarray]) -> AttributeScores:
    """
    Scores of a category, as means over checkpoints. Each has counts of the category `(4,)`, and for each concept of it
    the claims that hold, claims and facts `(…, 3)`.
    """
    found = []
    for of_category, of_concepts in zip(counts, marks):
        named = of_concepts[of_concepts.any(axis=1)]
        macro = [values.mean() if len(named) else 0.0 for values in ratios(named[:, [0, 1, 0, 2]])]
        found.append(([*ratios(of_category), *macro], [len(named), of_category[1], of_category[3]]))
    scores, sizes = ([*zip(*values)] for values in zip(*found))
    means = [mean_score([(float(value), None) for value in values]) for values in scores]
    return AttributeScores(*means, *map(_mean, sizes))


def _mean(counts: Sequence[int]) -> float:
    """The mean of counts by each checkpoint; a single one stays a whole number."""
    return float(np.mean(counts)) if len(counts) > 1 else int(counts[0])


def ratios(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Precision, recall and F1 x 100, each `(…)`, of the counts `(…, 4)` of claims that hold, claims, facts that are
    found, and facts. A ratio of nothing is 0.
    """
    held, claims, found, facts = np.moveaxis(np.asarray(counts, float), -1, 0)
    precision, recall = 100 * held / np.maximum(claims, 1), 100 * found / np.maximum(facts, 1)
    total = precision + recall
    return precision, recall, 2 * precision * recall / np.where(total > 0, total, 1)


def find_facts(
    lexicon: Lexicon, references: list[list[str]], columns: dict[str, list[list[str]]] | None = None
) -> Attributes:
    """
    Finds what is true of each clip: the concepts of all its captions or, in the categories that columns speak of, the
    concepts of these columns.

    Args:
        lexicon ([`Lexicon`])
        references (`list[list[str]]`): The captions of each clip.
        columns (`dict[str, list[list[str]]]`, *optional*):
            Columns of the corpus with the texts of each clip's cell. "|" separates values, which are phrases or names
            of concepts. Numbers are ignored, except in a column `has_…`: there 1, true or yes make true what the rest
            of the name says. Values without a concept are announced.
    """
    said = [frozenset().union(*map(lexicon.claims, captions)) for captions in references]
    told: list[frozenset[Concept]] = [frozenset()] * len(references)
    columns_of: dict[str, list[str]] = {}
    unknown = Counter()
    for column, cells in (columns or {}).items():
        found = []
        for cell in cells:
            values = [_value_of(part.strip(), column) for text in cell for part in text.split("|")]
            concepts = {value: lexicon.claims(value) or lexicon.named(value) for value in values if value}
            unknown.update(f"{value} ({column})" for value, own in concepts.items() if not own)
            found.append(frozenset().union(*concepts.values()))
        for category in sorted({category for own in found for category, _ in own}):
            columns_of.setdefault(category, []).append(column)
        told = [before | own for before, own in zip(told, found)]
    if unknown:
        examples = ", ".join(f"{value} {count}" for value, count in unknown.most_common(5))
        logger.warning_once(
            f"--attribute_columns: {unknown.total()} values have no concept in {Path(lexicon.file).name} "
            f"and are left out, such as {examples}"
        )
    facts = [frozenset(fact for fact in own if fact[0] not in columns_of) | more for own, more in zip(said, told)]
    sources = dict.fromkeys(lexicon.categories, "captions")
    for category, names in columns_of.items():
        sources[category] = f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return Attributes(lexicon, facts, sources)


def _value_of(value: str, column: str) -> str:
    """What a value of a cell says; nothing if it is a number, except for the yes of a column `has_…`."""
    if column.startswith("has_"):
        return column.removeprefix("has_").replace("_", " ") if value.lower() in TRUE else ""
    try:
        float(value)
    except ValueError:
        return value
    return ""
