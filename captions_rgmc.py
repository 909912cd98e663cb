"""Captions as text and as tokens: the rules that normalise them, and the decoder's prompt of candidates."""

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import torch

NORMALIZATIONS = ("paper", "music")
# Lower bounds of a similarity's levels, finer where songs are almost the same: 0.999 is the song itself, as it is read
# from compressed embeddings.
SIMILARITY_LEVELS = (0.2, 0.4, 0.55, 0.7, 0.8, 0.87, 0.92, 0.96, 0.98, 0.999)
SIMILARITY_TOKENS = [f"<|similarity {level}|>" for level in range(len(SIMILARITY_LEVELS) + 1)]
MUSICAL = "/&#♭'"  # kept by `music`, where each has a meaning
# Other characters that are typed for the same sign.
SPELLINGS = str.maketrans({**dict.fromkeys("`\u00b4\u2018\u2019\u02bc\u2032\uff07", "'"), "♯": "#"})

SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")
OUTER = ".,;:!?()[]{}'\"\u2018\u2019\u201c\u201d\u00ab\u00bb\u2026"  # around a word
JOINING = "-&'\u2010\u2011\u2019\u02bc"  # within one


def normalize_caption(caption: str, normalization: str = "paper") -> str:
    """
    Normalises a caption to the form used for training, retrieval and scoring.

    It is lower case, without punctuation and symbols (the Unicode categories P and S), and white space is collapsed. An
    accented letter is one character (NFC), however it was typed. Invisible characters (category Cf, with zero-width and
    bidirectional marks and soft hyphens, and the variation selectors) are removed. The zero-width joiners of Persian
    and Indic spelling go too: the tokenizer would split a word at them.

    Args:
        caption (`str`):
            The caption as it was written.
        normalization (`str`, defaults to `"paper"`):
            The rule:

            - `"paper"` (section 5) deletes all punctuation: `"Mid-range, 90's R&B in C#, 4/4!"` becomes
              `"midrange 90s rb in c 44"`.
            - `"music"` keeps what musicians write: `"mid range 90's r&b in c# 4/4"`. Hyphens, dashes and slashes become
              spaces, except a slash between digits. `&` and any kind of apostrophe stay inside a word. `#` and ♯ stay
              as `#`, and ♭ becomes `b`, after a note's letter at the start of a word. Everything else is deleted.

    Returns:
        `str`: The normalised caption. Normalising it again does not change it.

    Raises:
        `ValueError`: If there is no such rule.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization {normalization!r}: expected one of {', '.join(NORMALIZATIONS)}")
    letters = "".join(character for character in caption.lower() if not _is_invisible(character))
    letters = unicodedata.normalize("NFC", letters)
    kept = MUSICAL if normalization == "music" else ""
    if normalization == "music":
        letters = letters.translate(SPELLINGS)
        letters = "".join(" " if unicodedata.category(letter) == "Pd" else letter for letter in letters)
    letters = "".join(letter for letter in letters if letter in kept or unicodedata.category(letter)[0] not in "PS")
    letters = unicodedata.normalize("NFC", letters)
    if normalization == "music":
        letters = re.sub(r"(?<!\d)/|/(?!\d)", " ", letters)
        letters = re.sub(r"(?<!\w)[&']|[&'](?!\w)", "", letters)
        letters = re.sub(r"(?<=(?<!\S)[a-g])♭", "b", letters)
        letters = re.sub(r"(?<!(?<!\S)[a-g])#|♭", "", letters)
    return " ".join(unicodedata.normalize("NFC", letters).split())


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def find_spellings(originals: Iterable[str | None], normalization: str = "paper") -> dict[tuple[str, ...], str]:
    """
    Finds how captions in a corpus's own wording spell what [`normalize_caption`] has made alike: "latenight" is
    "late-night" there, "edm" is "EDM", and by the rule `music` "mid range" is "mid-range".

    The most frequent spelling counts, if it has more than half of the occurrences. That decides hyphens, apostrophes,
    ampersands and capital letters. A spelling with any other sign counts only if all occurrences have it: "c" becomes
    "C#" only if the corpus knows no other C. Words at the start of a sentence do not tell their case.

    Args:
        originals (`Iterable[str | None]`):
            Captions as the corpus writes them; None for one that is not known.
        normalization (`str`, defaults to `"paper"`):
            Rule of [`normalize_caption`].

    Returns:
        `dict[tuple[str, ...], str]`: Spellings by normalised words, without those that the words have anyway.
    """
    texts = [text for text in originals if text]
    counts: Counter[str] = Counter()
    for text in texts:
        for sentence in SENTENCE_END.split(text):
            first, *others = sentence.split() or [""]
            counts[first[:1].lower() + first[1:] if first[1:] == first[1:].lower() else first] += 1
            counts.update(others)
    by_words: dict[tuple[str, ...], Counter[str]] = {}
    for chunk, count in counts.items():
        words = tuple(normalize_caption(chunk, normalization).split())
        spelling = chunk.strip(OUTER)
        if words and tuple(normalize_caption(spelling, normalization).split()) == words:
            by_words.setdefault(words, Counter())[spelling] += count
    longest = max(map(len, by_words), default=1)
    apart: Counter[tuple[str, ...]] = Counter()  # "mid range" in two words
    if longest > 1:
        for text in texts:
            said = normalize_caption(text, normalization).split()
            runs = (tuple(said[at : at + n]) for n in range(2, longest + 1) for at in range(len(said) - n + 1))
            apart.update(run for run in runs if run in by_words)
    spellings = {}
    for words, found in by_words.items():
        total = max(found.total(), apart[words])
        spelling, count = max(found.items(), key=lambda item: (item[1], item[0]))
        plain = all(letter.isalpha() or letter.isdigit() or letter in JOINING for letter in spelling)
        if spelling != " ".join(words) and (2 * count > total if plain else count == total):
            spellings[words] = spelling
    return spellings


def present_caption(caption: str, spellings: dict[tuple[str, ...], str], normalization: str = "paper") -> str:
    """
    Writes a generated caption for people: with the spellings of [`find_spellings`], a capital letter at the start and a
    full stop at the end. Sentences and commas inside are not restored, because the model has not said where they are.

    Nothing is added that [`normalize_caption`] would not remove: the presented caption normalises to the same words.
    """
    left, spelled = caption.split(), []
    longest = max(map(len, spellings), default=1)
    while left:
        sizes = range(min(longest, len(left)), 0, -1)
        size = next((size for size in sizes if tuple(left[:size]) in spellings), 1)
        spelled.append(spellings.get(tuple(left[:size]), left[0]))
        left = left[size:]
    text = " ".join(spelled)
    presented = f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""
    same = normalize_caption(presented, normalization) == normalize_caption(caption, normalization)
    return presented if same else caption


def list_captions(entry: str | Iterable[str]) -> list[str]:
    """Lists the candidates of a clip, given as one caption or as several."""
    captions = [entry] if isinstance(entry, str) or not isinstance(entry, Iterable) else list(entry)
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"The candidates of a clip must be a caption or a list of captions, got {entry!r}")
    return captions


def separator_token_id(bos_token_id: int | list[int] | None, eos_token_id: int | list[int] | None) -> int | None:
    """The token that ends a candidate and starts the caption: the decoder's BOS, or its EOS where it has no BOS."""
    for token_id in (bos_token_id, eos_token_id):
        if token_id is not None:
            return token_id[0] if isinstance(token_id, list) else token_id
    return None


def join_candidates(
    candidates: list[list[int]],
    separator_token_id: int,
    similarities: Sequence[float] = (),
    similarity_token_ids: Sequence[int] = (),
) -> list[int]:
    """
    Builds the decoder's prompt: the tokens of each candidate and a separator, or the separator alone. With
    `similarity_token_ids`, those of `SIMILARITY_TOKENS`, each candidate follows that of its similarity.
    """
    if similarity_token_ids:
        candidates = [
            [similarity_token_ids[bisect_right(SIMILARITY_LEVELS, similarity)], *candidate]
            for candidate, similarity in zip(candidates, similarities, strict=True)
        ]
    prompt = [token_id for candidate in candidates for token_id in [*candidate, separator_token_id]]
    return prompt or [separator_token_id]


def left_pad(prompts: list[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads prompts on the left, so that generation continues them: `input_ids` and `attention_mask`, each `(B, L)`."""
    length = max(map(len, prompts))
    input_ids = [[pad_token_id] * (length - len(prompt)) + prompt for prompt in prompts]
    attention_mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(input_ids), torch.tensor(attention_mask)


def caption_similarity(one: Sequence[Hashable], other: Sequence[Hashable], longest: int = 4) -> float:
    """The F1 score of the n-grams that two captions share, from 0 to 1, averaged over n = 1 to `longest`."""
    scores = []
    for n in range(1, longest + 1):
        grams, others = (Counter(zip(*(words[start:] for start in range(n)))) for words in (one, other))
        total = grams.total() + others.total()
        if total:
            scores.append(2 * (grams & others).total() / total)
    return sum(scores) / len(scores) if scores else 1.0


def centralities(captions: Sequence[Sequence[Hashable]], weights: Sequence[float] | None = None) -> list[float]:
    """
    How similar each of several captions is to the others, as in [`most_central`]: weighted means of
    [`caption_similarity`], from 0 to 1.
    """
    weights = [1.0] * len(captions) if weights is None else weights
    unique = list(dict.fromkeys(map(tuple, captions)))
    similarity = {(one, other): caption_similarity(one, other) for one in unique for other in unique}
    found = []
    for i, caption in enumerate(captions):
        others = [(tuple(other), weight) for j, (other, weight) in enumerate(zip(captions, weights)) if j != i]
        total = sum(weight for _, weight in others)
        found.append(sum(weight * similarity[tuple(caption), other] for other, weight in others) / (total or 1.0))
    return found


def most_central(captions: Sequence[Sequence[Hashable]], weights: Sequence[float] | None = None) -> int:
    """The index of the caption that is most similar to the others, as [`rank_by_centrality`] ranks them."""
    return rank_by_centrality(captions, weights)[0]


def rank_by_centrality(
    captions: Sequence[Sequence[Hashable]],
    weights: Sequence[float] | None = None,
    bonus: Sequence[float] | None = None,
) -> list[int]:
    """
    Ranks captions by how similar they are to the others; the first is their consensus (Devlin et al. 2015, "Exploring
    Nearest Neighbor Approaches for Image Captioning", section 3).

    Args:
        captions (`Sequence[Sequence[Hashable]]`):
            One or more captions, each as words or as tokens.
        weights (`Sequence[float]`, *optional*):
            How much similarity to each caption counts, 0 or more; by default all count the same.
        bonus (`Sequence[float]`, *optional*):
            What is added to the mean similarity of each caption, 0 to 1, before they are compared.

    Returns:
        `list[int]`: Indices, that of the largest weighted mean of `caption_similarity` to the others first; the first
        of several with the same.
    """
    scores = centralities(captions, weights)
    if bonus is not None:
        scores = [score + extra for score, extra in zip(scores, bonus)]
    return sorted(range(len(captions)), key=lambda index: (-round(scores[index], 9), index))
