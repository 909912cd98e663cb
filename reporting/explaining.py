"""The tables of where words come from, what prefixes say, which words to look at twice, and how sure captions are."""

from reporting.results import EvaluationResults, Score
from reporting.tables import Table, align_columns, format_score

KINDS_TITLE = "Where the words come from"
LENSES_TITLE = "Words of the prefix"
WATCHED_TITLE = "Words to look at twice"
CONFIDENCE_TITLE = "Confidence"
UNTRAINED = {"candidate": "without its sound", "audio": "without candidates", "nothing": "without both"}
CURVES = {"both": "Both, the weaker", "log_prob": "Log-probability", "similarity": "Similarity"}
MOST_WATCHED = 200  # rows of the list in the report; results.json has all


def kinds_table(results: EvaluationResults, intervals: bool = True) -> Table:
    """What sound and candidates add to the words of each kind."""
    header = ["Words", "Number", "Sound", "beyond any sound", "Candidate", "beyond any candidate", "Sound's share %"]
    rows = []
    for kind, shares in results.explanation.kinds.items():
        scores = (shares.audio, shares.audio_beyond, shares.candidate, shares.candidate_beyond)
        cells = [format_score(score, intervals, "+.2f") for score in scores]
        rows.append([kind, str(shares.words), *cells, format_score(shares.share, intervals)])
    return header, rows


def kinds_notes(results: EvaluationResults) -> list[str]:
    """How to read the table."""
    notes = [
        "Sound, Candidate: Shapley values in nats a word, a word's tokens taken together: what each adds to the "
        "log-probability of the model's words. Both sum to what the two change.",
        "Beyond any: how much more the clip's own sound or candidate adds to these words than that of a random song of "
        "the datastore. The rest is due to there being one at all. It is larger than the whole where a random song's "
        "makes the words less probable.",
        "Sound's share: of the sum of both; none where one of them makes these words less probable.",
    ]
    missing = [what for name, what in UNTRAINED.items() if name in results.explanation.out_of_distribution]
    if missing:
        notes.append(
            f"The model was not trained {', '.join(missing)}: these absences are out of distribution, "
            "and the values depend on what the decoder guesses there."
        )
    if results.checkpoints:
        notes.append("Of the first checkpoint, as all of these explanations.")
    return notes


def lenses_table(results: EvaluationResults, intervals: bool = True) -> Table:
    """What each lens reads in the prefixes, against its floors."""
    header = ["Lens", "Words", "In gold %", "Shuffled %", "Frequent %", "Minus shuffled", "Minus frequent", "Verdict"]
    rows = []
    for lens in results.explanation.lenses.values():
        shares = (lens.hits, lens.shuffled, lens.frequent)
        cells = [format_score(score, intervals) for score in shares]
        cells += [format_score(score, intervals, "+.2f") for score in (lens.above_shuffled, lens.above_frequent)]
        verdict = "at or below its floor" if lens.reads_nothing else "above both floors"
        rows.append([lens.title, str(lens.words), *cells, verdict])
    return header, rows


LENSES_NOTES = [
    "In gold: share of the words that the lens reads in the prefix of a clip that the clip's own captions have. "
    "Function words are left out.",
    "Floors: the share that another clip's captions have (shuffled), and the share for as many of the most frequent "
    "words of the training captions (frequent). A lens whose interval does not clear both reads nothing.",
    "Nearest rows of the vocabulary: by cosine, one per prefix vector. Nearest contextual states: among those of the "
    "words of the datastore's captions in the middle layer, as in LatentLens (2026).",
]


def watched_table(results: EvaluationResults) -> Table:
    """How many captions, candidates and gold captions have each watched word."""
    header = ["Concept", "Captions", "Candidates", "Captions and their candidates", "Gold captions"]
    names = ("captions", "candidates", "brought", "gold")
    counts = results.explanation.watched.counts
    return header, [[concept, *(str(own[name]) for name in names)] for concept, own in counts.items()]


def watched_notes(results: EvaluationResults) -> list[str]:
    """What is watched and why."""
    watched = results.explanation.watched
    notes = [
        f"Clips whose texts have one of the {watched.concepts} concepts of {watched.file}. The paper warns of "
        "Eurocentric phrases and of misgendered vocalists. A listed word is not wrong by itself.",
    ]
    if not watched.counts:
        notes.append("None occurs in a caption, a candidate or a gold caption.")
    if len(watched.found) > MOST_WATCHED:
        notes.append(f"The list shows {MOST_WATCHED} of {len(watched.found)} words; results.json has all.")
    return notes


def watched_list(results: EvaluationResults) -> Table:
    """Each watched word in a caption, with the candidate that brought it or did not."""
    header = ["Word", "Clip", "Caption", "Candidate shown", "In it", "In gold", "Candidate adds", "Sound adds"]
    rows = [
        [
            f"{word.word} ({word.group})",
            word.id,
            word.caption,
            f"{word.candidate} ({word.candidate_id or 'no id'})" if word.candidate else "-",
            "yes" if word.in_candidate else "no",
            "yes" if word.in_gold else "no",
            f"{word.by_candidate:+.2f}",
            f"{word.audio:+.2f}",
        ]
        for word in results.explanation.watched.found[:MOST_WATCHED]
    ]
    return header, rows


def confidence_table(results: EvaluationResults) -> Table:
    """CIDEr-D of the surest clips, by how many are captioned."""
    curves = results.explanation.confidence.curves
    points = next(iter(curves.values()))
    rows = [
        [f"{point.coverage:.0%}", str(point.clips), *(f"{curves[name][row].cider_d:.2f}" for name in CURVES)]
        for row, point in enumerate(points)
    ]
    return ["Coverage", "Clips", *CURVES.values()], rows


def confidence_notes(results: EvaluationResults) -> list[str]:
    """What the ranks are, and what they are not."""
    found = results.explanation.confidence
    alone = f"{found.nothing_similar} of {results.n} clips have nothing similar in the datastore"
    if found.nothing_similar_cider_d is not None:
        alone += f", and a CIDEr-D of {format_score(Score(found.nothing_similar_cider_d), False)}"
    return [
        "CIDEr-D of the surest clips alone. A clip is ranked by the quantile of its caption's mean log-probability, or "
        f"of its nearest song's similarity, among the {found.validation_clips} clips of {found.split}.",
        "A rank says how a caption compares with others of this model. It is not the probability that it is true.",
        f"{alone}: less similar than nearly all validation clips are to theirs.",
    ]


def explanation_tables(results: EvaluationResults) -> list[tuple[str, Table, list[str]]]:
    """The title, the table and the notes of each part, with intervals."""
    parts = [(KINDS_TITLE, kinds_table(results), kinds_notes(results))]
    if results.explanation.lenses:
        parts.append((LENSES_TITLE, lenses_table(results), LENSES_NOTES))
    parts.append((WATCHED_TITLE, watched_table(results), watched_notes(results)))
    parts.append((CONFIDENCE_TITLE, confidence_table(results), confidence_notes(results)))
    return parts


def format_explanation(results: EvaluationResults) -> str:
    """The tables of words and prefixes for a terminal, without intervals."""
    lines = [KINDS_TITLE, *align_columns(*kinds_table(results, intervals=False)), *kinds_notes(results)]
    if results.explanation.lenses:
        lines += [LENSES_TITLE, *align_columns(*lenses_table(results, intervals=False)), *LENSES_NOTES]
    return "\n".join(lines)
