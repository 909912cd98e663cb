"""The words of a cue: cleaned, decorated, broken into lines at phrases, and shortened without a change of meaning."""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

from captions.profiles import Profile

ARTICLES = frozenset("a an the".split())
CONJUNCTIONS = frozenset("and but or nor so yet while as if because although though when where that which who".split())
PREPOSITIONS = frozenset(
    """
    about above across after against along alongside among amid around at before behind below beneath beside between
    beyond by despite down during except for from in inside into like near of off on onto out outside over per since
    through throughout to toward towards under underneath until up upon versus via vs with within without
    """.split()
)
# A phrase that ends with one of these, or with a word in -ed or -ly, goes on after it.
UNFINISHED = frozenset(
    """
    am are be been being is was were has have had having do does did can could may might must shall should will would
    not no this these those its their his her my our your some any each every such very quite rather more most less
    least too also both either neither whether it they there he she we you only
    featuring features feature including includes include driven led consists consisting comprising made built sung
    using suitable ideal perfect fit fitting great good best appropriate reminiscent similar full rich evoking evokes
    creating creates giving gives making makes adding adds sounds feels seem seems resulting results
    relies rely relying focuses focusing depends depending along together start starts begin begins end ends
    """.split()
)
FINISHED = frozenset("speed bed red melody family".split())
OPEN_END = ARTICLES | CONJUNCTIONS | PREPOSITIONS | UNFINISHED
# What begins with these adds to the words before it.
ADDS = frozenset(
    "with while featuring accompanied backed including over alongside during throughout in for at on".split()
)
RELATIVES = frozenset("that which who where when".split())
# After a comma or "and" these begin a phrase of its own; any other word may continue a list of adjectives.
BEGINS = ARTICLES | frozenset("it its there this these he she they his her their".split())
# What comes after these is a part of what they say.
HALVES = re.compile(
    r"\b(both|between|either|neither|whether|from|no|not|never|none|nothing|nobody|without|lack\w*|missing|absen\w+|"
    r"hardly|barely|few|little|instead|\w+n['\u2019]t)\b",
    re.IGNORECASE,
)
VERBS = re.compile(
    r"\b(is|are|was|were|has|have|had|does|do|can|could|may|might|must|will|would|should|sounds?|features?|contains?|"
    r"plays?|sings?|includes?|consists?|begins?|starts?|ends?|stops?|fades?|goes|go|gets?|lacks?|remains?|seems?|"
    r"feels?|makes?|gives?|creates?|adds?|takes?|comes?|becomes?|changes?|shifts?)\b",
    re.IGNORECASE,
)
CLAUSE = re.compile(r"\b(that|which|who|where|when|while|as|and|but)\b", re.IGNORECASE)
DASHES = "-\u2013\u2014"
QUOTES = (("(", ")"), ("[", "]"), ("“", "”"))

# Control characters, halves of surrogate pairs, and what XML does not hold.
UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")


def clean(text: str) -> str:
    """The text in one line, without control characters."""
    return " ".join(UNPRINTABLE.sub(" ", text).split())


def length(text: str) -> int:
    """How many characters a reader sees: marks on letters and invisible characters do not count."""
    return sum(unicodedata.category(character) not in ("Mn", "Me", "Cf") for character in text)


def decorate(text: str, profile: Profile) -> list[str]:
    """The words of a cue, with the case, prefix and suffix of a profile. Prefix and suffix stay with their words."""
    words = text.split()
    if profile.case == "upper":
        words = [word.upper() for word in words]
    elif profile.case == "phrase":
        if _word(words[0]) in ARTICLES | PREPOSITIONS | BEGINS:
            words[0] = words[0].lower()
        if words[-1].endswith(".") and not re.search(r"[.!?]\s|\.\.$", text):  # the full stop of a single sentence
            words[-1] = words[-1].rstrip(".") or words[-1]
    words[0] = profile.prefix + words[0]
    words[-1] += profile.suffix
    return words


def break_lines(words: list[str], profile: Profile) -> list[str] | None:
    """
    Breaks words into as few lines as the profile's `characters_per_line` allows, at phrases where it can: after
    punctuation, or else before a conjunction or preposition, and not after an article. None if they need more lines
    than the profile has.
    """
    width = profile.characters_per_line
    if width is None or length(" ".join(words)) <= width:
        return [" ".join(words)]

    @cache
    def best(begin: int, count: int) -> tuple[float, list[str]] | None:
        """The cost and the lines of the words from `begin` on, in `count` lines."""
        found = None
        for end in range(begin + 1, len(words) + 1) if count > 1 else [len(words)]:
            line = " ".join(words[begin:end])
            if length(line) > width:
                break
            rest = best(end, count - 1) if count > 1 else (0.0, [])
            if (end == len(words) and count > 1) or rest is None:
                continue
            cost = rest[0] + (length(line) / width) ** 2 + _break_cost(words[end - 1], words[end : end + 1])
            if found is None or cost < found[0]:
                found = (cost, [line, *rest[1]])
        return found

    for count in range(2, min(profile.lines or len(words), len(words)) + 1):
        if best(0, count):
            return best(0, count)[1]
    return None


def _break_cost(last: str, following: list[str]) -> float:
    if not following or last[-1] in ",;:.!?":
        return 0.0
    if _word(last) in ARTICLES | CONJUNCTIONS | PREPOSITIONS:
        return 2.0
    return 0.2 if _word(following[0]) in CONJUNCTIONS | PREPOSITIONS else 0.5


def is_finished(text: str) -> bool:
    """Whether a caption does not break off, as one that a model was not allowed to end."""
    last = text.split()[-1]
    return last[-1] in ".!?" or not (last[-1] in f",{DASHES}" or _word(last) in ARTICLES | PREPOSITIONS | CONJUNCTIONS)


def shorten(text: str) -> Iterator[str]:
    """
    The text cut at the end of a phrase, the longest first. What is left out adds to what is kept and does not change
    it. No cut ends in an article, a preposition, a conjunction or a comma.
    """
    words = text.split()
    for count in range(len(words) - 1, 1, -1):
        kept, left = words[:count], words[count:]
        if _word(kept[-1]) in OPEN_END or not _word(kept[-1]) or not _is_closed(" ".join(kept)):
            continue
        if kept[-1][-1] in ".!?" or (_ends_phrase(kept, left) and _says_the_same(kept, left)):
            yield " ".join(kept).rstrip(f",;:{DASHES}")


def _ends_phrase(kept: list[str], left: list[str]) -> bool:
    last, following = _word(kept[-1]), _word(left[0])
    if kept[-1][-1] in ";:":
        return True
    if last.endswith(("ed", "ly")) and last not in FINISHED:
        return False
    if following in ADDS | RELATIVES:
        return True
    if len(kept) < 3 and _word(kept[0]) in ARTICLES:  # "a slow, ..."
        return False
    if following in ("and", "but"):
        return _word(" ".join(left[1:2])) in BEGINS
    return kept[-1][-1] in f",{DASHES}" and following in BEGINS


def _says_the_same(kept: list[str], left: list[str]) -> bool:
    """Whether the last sentence that is kept has its verb and no word that needs what is left out of it."""
    sentence = re.split(r"[.!?;:]\s", " ".join(kept))[-1]
    rest = re.split(r"[.!?;:](?:\s|$)", " ".join(left))[0]
    if HALVES.search(sentence):
        return False
    verb = VERBS.search(rest)
    if VERBS.search(sentence) or not verb:
        return True
    return _word(sentence.split()[0]) != "the" and CLAUSE.search(rest[: verb.start()]) is not None


def _is_closed(kept: str) -> bool:
    return all(kept.count(opening) == kept.count(closing) for opening, closing in QUOTES) and kept.count('"') % 2 == 0


def _word(text: str) -> str:
    return re.sub(r"^\W+|\W+$", "", text).lower()
