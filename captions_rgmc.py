"""Captions as text and as tokens: the rules that normalise them, and the decoder's prompt made of candidates."""

import re
import unicodedata
from collections.abc import Iterable

import torch

NORMALIZATIONS = ("paper", "music")
MUSICAL = "/&#♭'"  # what `music` keeps in its place
SPELLINGS = str.maketrans({**dict.fromkeys("`\u00b4\u2018\u2019\u02bc\u2032\uff07", "'"), "♯": "#"})  # of one character


def normalize_caption(caption: str, normalization: str = "paper") -> str:
    """
    The one form of a caption for training, retrieval and scoring: lower case, without punctuation and symbols (the
    Unicode categories P and S), white space collapsed. An accented letter is one character (NFC), however it was typed.
    What cannot be seen (category Cf: zero-width and bidirectional marks, soft hyphens; variation selectors) is removed,
    also the zero-width joiners of Persian and Indic spelling: with them, one word would be two to the tokenizer.

    Args:
        caption (`str`)
        normalization (`str`, defaults to `"paper"`):
            - `"paper"` (section 5) deletes all punctuation: `"Mid-range, 90's R&B in C#, 4/4!"` becomes `"midrange 90s
              rb in c 44"`.
            - `"music"` keeps what musicians write: `"mid range 90's r&b in c# 4/4"`. Hyphens, dashes and slashes are
              spaces, but for a slash between digits; `&` and the apostrophe, whichever was typed, stay within a word;
              `#` and ♯ stay after a note's letter that begins a word, and ♭ is a `b` there. All else is deleted.

    Returns:
        `str`; normalised again it stays what it is.

    Raises:
        `ValueError`: for another rule.
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


def list_captions(entry: str | Iterable[str]) -> list[str]:
    """A clip's candidates, one or several, as a list."""
    captions = [entry] if isinstance(entry, str) or not isinstance(entry, Iterable) else list(entry)
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"The candidates of a clip are a caption or a list of captions, got {entry!r}")
    return captions


def separator_token_id(bos_token_id: int | list[int] | None, eos_token_id: int | list[int] | None) -> int | None:
    """Token that ends a candidate and starts the caption: the decoder's BOS, or its EOS where it has no BOS."""
    for token_id in (bos_token_id, eos_token_id):
        if token_id is not None:
            return token_id[0] if isinstance(token_id, list) else token_id
    return None


def join_candidates(candidates: list[list[int]], separator_token_id: int) -> list[int]:
    """
    The decoder's prompt: each candidate's tokens and a separator, or the separator alone when there is no
    candidate.
    """
    prompt = [token_id for candidate in candidates for token_id in [*candidate, separator_token_id]]
    return prompt or [separator_token_id]


def left_pad(prompts: list[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Prompts of unequal lengths as `input_ids` and `attention_mask`, each `(B, L)`; generation continues on the
    right.
    """
    length = max(map(len, prompts))
    input_ids = [[pad_token_id] * (length - len(prompt)) + prompt for prompt in prompts]
    attention_mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(input_ids), torch.tensor(attention_mask)
