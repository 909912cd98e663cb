"""
Checks whether the metrics see a false fact: scores gold captions that were reordered, reworded and falsified.

    python -m evaluation.sanity --dataset data/demo --split test --output_dir outputs/sanity

A reordered caption has the phrases of the original in another order. A reworded one calls each instrument, genre, mood
and tempo by another name. Both are as true as the original. A falsified caption repeats the original, but one of
them is false. A metric that judges facts falls furthest for the falsified caption.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from captions_rgmc import NORMALIZATIONS, normalize_caption
from clips.locks import only_run
from clips.options import check_dataset, check_file, check_output, parse, user_errors
from clips.outputs import replaced_together
from clips.rows import load_captions, usable_captions
from clips.tables import clean_caption
from evaluation.attributes import METRICS, Attributes, Concept, Lexicon, find_facts, read_attributes
from evaluation.intervals import with_interval
from evaluation.scoring import load_metric
from reporting.results import METRIC_TITLES, Score
from reporting.tables import align_columns, format_score

REWRITES = ("reordered", "reworded", "falsified")
JOINTS = {"and", "with", "by", "of", "for", "in", "on", "over", "to", "from", "while", "featuring"}  # begin a phrase
DRAWS = 20  # of an order or a word, before a caption is given up


@dataclass(kw_only=True)
class SanityArguments:
    group = "sanity of the metrics"
    dataset: str = field(metadata={"help": "Corpus, as for eval.py."})
    split: str = field(default="test", metadata={"help": "Split whose captions are rewritten."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder of sanity.json and sanity.jsonl."})
    caption_column: str = field(default="caption", metadata={"help": "Column of the caption, or of a list of them."})
    id_column: str = field(default="id", metadata={"help": "Column of unique ids; file names if there is none."})
    caption_normalization: Literal[NORMALIZATIONS] = field(
        default="paper", metadata={"help": "Rule by which captions are normalised."}
    )
    attributes: str | None = field(
        default=None, metadata={"help": "Words of the attributes, a yaml file; evaluation/attributes.yaml if unset."}
    )
    attribute_columns: list[str] = field(
        default_factory=list, metadata={"help": "Columns that say what is true of a clip, as for eval.py."}
    )
    meteor: bool = field(default=False, metadata={"help": "METEOR 1.5, which needs Java and about 1 GB."})
    bootstrap: int = field(default=1000, metadata={"help": "Resamples for the 95 %% intervals; 0 for no intervals."})
    seed: int = field(default=0, metadata={"help": "Seed of the rewriting and of the resamples."})

    def __post_init__(self):
        if self.bootstrap < 0:
            raise ValueError(f"--bootstrap {self.bootstrap}: expected 0 or more")


@dataclass
class SanityRow:
    """
    What a metric makes of rewritten gold captions. Scores are x 100.

    Args:
        gold ([`Score`]): Of the captions against themselves.
        reordered, reworded, falsified ([`Score`]): How far the score falls from `gold`.
        false_over_wording ([`Score`]): The fall of `falsified` minus that of `reworded`.
    """

    gold: Score
    reordered: Score
    reworded: Score
    falsified: Score
    false_over_wording: Score

    @property
    def verdict(self) -> str:
        """Whether the metric punishes the false fact more than the wording."""
        score = self.false_over_wording
        if score.low is None:
            return "-"
        return "yes" if score.low > 0 else "no, less" if score.high < 0 else "no difference"


def reorder(caption: str, lexicon: Lexicon, rng: np.random.Generator) -> str | None:
    """
    Puts the phrases of a caption in another order. Phrases end at punctuation and before words such as "with".

    Args:
        caption (`str`): As the corpus writes it.
        lexicon ([`Lexicon`]): What the caption says by it stays the same.
        rng (`np.random.Generator`): Draws the order.

    Returns:
        The normalised caption, or None where there is no such order.
    """
    original = normalize_caption(caption, lexicon.normalization)
    phrases: list[list[str]] = [[]]
    for word in caption.split():
        text = normalize_caption(word, lexicon.normalization)
        if phrases[-1] and text in JOINTS:
            phrases.append([])
        if text:
            phrases[-1].append(text)
        if phrases[-1] and word.endswith((".", ",", ";", ":", "!", "?")):
            phrases.append([])
    phrases = [phrase for phrase in phrases if phrase]
    for _ in range(DRAWS):
        text = " ".join(word for row in rng.permutation(len(phrases)) for word in phrases[row])
        if text != original and lexicon.claims(text) == lexicon.claims(original):
            return text
    return None


def reword(caption: str, lexicon: Lexicon, rng: np.random.Generator) -> str | None:
    """
    Gives each attribute of a caption another name of the same concept, where it has one.

    Args:
        caption (`str`): Normalised.
        lexicon ([`Lexicon`]): Has the names. What the caption says by it stays the same.
        rng (`np.random.Generator`): Draws the names, if possible some that share no word with the former.

    Returns:
        The caption, or None where no attribute has another name.
    """
    words, claims = caption.split(), lexicon.claims(caption)
    for start, end, concepts in reversed(lexicon.find(caption)):
        own = words[start:end]
        names = [name for concept in concepts[:1] for name in lexicon.words[concept]]
        names = [name for name in names if _bare(name) != _bare(" ".join(own))]
        fitting = [name for name in names if lexicon.claims(_replace(words, start, end, name)) == claims]
        fitting = [name for name in fitting if name.endswith("s") == own[-1].endswith("s")] or fitting
        fitting = [name for name in fitting if not {*name.split()} & {*own}] or fitting
        if fitting:
            words[start:end] = str(rng.choice(fitting)).split()
    text = " ".join(words)
    return text if text != caption else None


def falsify(
    caption: str, facts: frozenset[Concept], known: list[Concept], lexicon: Lexicon, rng: np.random.Generator
) -> str | None:
    """
    Puts a false attribute in the place of one attribute of a caption. It is of the same category, and neither true of
    the clip nor the family or a member of something true.

    Args:
        caption (`str`): Normalised.
        facts (`frozenset[Concept]`): What is true of the clip.
        known (`list[Concept]`): The false concept is one of these.
        lexicon ([`Lexicon`]): Has the words; the first of a concept is used.
        rng (`np.random.Generator`): Draws the place and the concept.

    Returns:
        The caption, or None where there is no such attribute.
    """
    words, claims = caption.split(), lexicon.claims(caption)
    stated = facts | claims
    true = lexicon.with_parents(stated)
    false = [concept for concept in known if concept not in true and not lexicon.with_parents([concept]) & stated]
    places = [
        (start, end, concepts[0], concept)
        for start, end, concepts in lexicon.find(caption)
        for concept in false
        if [category for category, _ in concepts] == [concept[0]]
    ]
    for place in rng.permutation(len(places)):
        start, end, own, concept = places[place]
        text = _replace(words, start, end, lexicon.words[concept][0])
        if lexicon.claims(text) == claims - {own} | {concept}:  # which also fails where the caption names `own` twice
            return text
    return None


def _replace(words: list[str], start: int, end: int, text: str) -> str:
    return " ".join([*words[:start], text, *words[end:]])


def _bare(name: str) -> str:
    """A name without what does not make it another one: spaces, hyphens and the s of a plural."""
    return name.replace(" ", "").replace("-", "").removesuffix("s")


def rewrite(captions: list[str], attributes: Attributes, seed: int = 0) -> tuple[dict[str, list[str]], list[int]]:
    """
    Rewrites captions in all three ways.

    Args:
        captions (`list[str]`): The first caption of each clip, as the corpus writes it.
        attributes ([`Attributes`]): What is true of each clip. What is true of another clip serves as a false fact.
        seed (`int`, *optional*, defaults to 0): With the row, the seed of a caption's rewriting.

    Returns:
        `tuple`: the normalised captions by key, `gold` and those of `REWRITES`, and their rows. A caption that cannot
        be rewritten in all three ways is left out.
    """
    lexicon = attributes.lexicon
    known = [concept for concept in lexicon.concepts if any(concept in facts for facts in attributes.facts)]
    found: dict[str, list[str]] = {key: [] for key in ("gold", *REWRITES)}
    rows = []
    for row, (caption, facts) in enumerate(zip(captions, attributes.facts)):
        rng = np.random.default_rng([seed, row])
        gold = normalize_caption(caption, lexicon.normalization)
        texts = (gold, reorder(caption, lexicon, rng), reword(gold, lexicon, rng))
        texts = (*texts, falsify(gold, facts, known, lexicon, rng))
        if all(texts):
            rows.append(row)
            for own, text in zip(found.values(), texts):
                own.append(text)
    return found, rows


def score_rewrites(
    captions: dict[str, list[str]], lexicon: Lexicon, meteor: bool = False, samples: int = 1000, seed: int = 0
) -> tuple[dict[str, SanityRow], dict[str, str]]:
    """
    Scores rewritten captions against the gold captions, each the only reference and truth of its clip.

    Args:
        captions (`dict[str, list[str]]`): What [`rewrite`] returns.
        lexicon ([`Lexicon`]): For the attribute F1.
        meteor (`bool`, *optional*, defaults to `False`): Whether METEOR is computed.
        samples (`int`, *optional*, defaults to 1000): Resamples of the clips, the same for all; 0 for no intervals.
        seed (`int`, *optional*, defaults to 0): Seed of the resamples.

    Returns:
        `tuple`: a [`SanityRow`] for each metric, and for each metric that cannot be computed the reason.
    """
    metric, n = load_metric("caption_metrics"), len(captions["gold"])
    options = {"normalization": lexicon.normalization, "bootstrap": samples, "seed": seed, "meteor": meteor}
    attributes = find_facts(lexicon, [[caption] for caption in captions["gold"]])
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), samples)  # the metric draws the same
    scores, resamples, unavailable = {}, {}, {}
    for key, texts in captions.items():
        found = metric.compute(predictions=texts, references=captions["gold"], **options)
        unavailable |= found.get("unavailable", {})
        f1, resampled_f1 = attributes.score(texts, draws if samples else None)
        scores[key] = {**found, **f1}
        resamples[key] = {**found.get("resamples", {}), **resampled_f1}
    rows = {}
    for name in METRIC_TITLES:
        if scores["gold"].get(name) is not None and name not in METRICS[:2]:  # of the attributes the F1 alone

            def fall(key: str, start: str = "gold", name: str = name) -> Score:
                difference = np.subtract(resamples[start][name], resamples[key][name]) if samples else None
                return with_interval(scores[start][name] - scores[key][name], difference)

            gold = with_interval(scores["gold"][name], resamples["gold"].get(name))
            rows[name] = SanityRow(gold, *map(fall, REWRITES), fall("falsified", start="reworded"))
    return rows, unavailable


def format_rows(rows: dict[str, SanityRow]) -> list[str]:
    """The lines of the table, for a terminal."""
    header = ["Metric", "Gold", "Reordered", "Reworded", "Falsified", "Falsified - reworded", "Fact over wording"]
    cells = []
    for name, row in rows.items():
        falls = [format_score(score, True) for score in (row.reordered, row.reworded, row.falsified)]
        difference = format_score(row.false_over_wording, True, "+.2f")
        cells.append([METRIC_TITLES[name], format_score(row.gold, False), *falls, difference, row.verdict])
    return align_columns(header, cells)


def main(args: SanityArguments) -> dict:
    """Prints the table, writes `sanity.json` and `sanity.jsonl` to `args.output_dir`, and returns `sanity.json`."""
    # 1. The captions and what is true
    lexicon = read_attributes(args.attributes, args.caption_normalization)
    rows = load_captions(args.dataset, args.split, args.caption_column, args.id_column, args.attribute_columns)
    texts = [[text for text in own if usable_captions([text], lexicon.normalization)] for own in rows["captions"]]
    usable = [row for row, own in enumerate(texts) if own]
    rows, texts = rows.select(usable), [[clean_caption(text) for text in texts[row]] for row in usable]
    attributes = find_facts(lexicon, texts, {name: rows[name][:] for name in args.attribute_columns})

    # 2. The captions rewritten
    captions, kept = rewrite([own[0] for own in texts], attributes, args.seed)
    if not kept:
        raise ValueError(
            f"none of the {len(texts)} captions of split '{args.split}' can be rewritten in all three ways: "
            f"expected captions of two phrases or more that name an attribute of {lexicon.file}"
        )

    # 3. Scores
    found, unavailable = score_rewrites(captions, lexicon, args.meteor, args.bootstrap, args.seed)
    print(f"Fall from the score of the gold captions · {args.split}: {len(kept)} of {len(texts)} clips")
    print("\n".join(format_rows(found)))
    for name, reason in unavailable.items():
        print(f"{METRIC_TITLES[name]}: left out: {reason}")
    print(f"Clip {rows['id'][kept[0]]}")
    for key, own in captions.items():
        print(f"  {key:9}  {own[0]}")
    results = {
        "options": asdict(args),
        "n": len(kept),
        "left_out": len(texts) - len(kept),
        "unavailable": unavailable,
        "metrics": {name: {**asdict(row), "verdict": row.verdict} for name, row in found.items()},
    }

    # 4. Files
    if args.output_dir:
        ids = rows.select(kept)["id"][:]
        lines = [{"id": row_id, **dict(zip(captions, own))} for row_id, own in zip(ids, zip(*captions.values()))]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with (
            only_run(args.output_dir, f"--output_dir {args.output_dir}"),
            replaced_together(Path(args.output_dir), last="sanity.json") as staging,
        ):
            (staging / "sanity.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            (staging / "sanity.jsonl").write_text(text, encoding="utf-8")
    return results


if __name__ == "__main__":
    with user_errors():
        (sanity_args,) = parse(SanityArguments, sys.argv[1:], __doc__, prog="python -m evaluation.sanity")
        check_dataset("--dataset", sanity_args.dataset)
        check_file("--attributes", sanity_args.attributes, "a yaml file such as evaluation/attributes.yaml")
        if sanity_args.output_dir:
            check_output(sanity_args.output_dir)
        main(sanity_args)
