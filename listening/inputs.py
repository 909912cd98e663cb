"""What a listening test is made of: the captions of the systems, and the corpus with its songs and gold captions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captions_rgmc import normalize_caption
from clips.options import did_you_mean
from clips.rows import load_captions, usable_captions


@dataclass
class Material:
    """
    Captions and sounds by the ids of songs.

    Args:
        captions (`dict[str, dict[str, str]]`): Of each system.
        gold (`dict[str, str]`): Of the corpus.
        audio (`dict[str, dict]`): `{"path", "bytes"}` of each song.
        normalization (`str`): Rule by which all captions are normalised, so that none stands out by its spelling.
    """

    captions: dict[str, dict[str, str]]
    gold: dict[str, str]
    audio: dict[str, dict]
    normalization: str


def read_material(
    predictions: Sequence[str], dataset: str, split: str, caption_column: str = "caption", id_column: str = "id"
) -> Material:
    """
    Reads the captions of two systems or more, and the corpus.

    Args:
        predictions (`Sequence[str]`):
            Each `name=file.jsonl`, with lines `{"id": …, "prediction": …}`, or `name=predictions.jsonl:system` for
            another system of an evaluation, by its key.
        dataset (`str`), split (`str`), caption_column (`str`), id_column (`str`): As of `eval.py`.

    Raises:
        `ValueError`: If a file cannot be read, systems share a name, or captions are normalised by different rules.
    """
    found: dict[str, tuple[str, dict[str, str], str | None]] = {}
    for entry in predictions:
        name, _, source = entry.partition("=")
        if not name or not source:
            raise ValueError(f"--predictions {entry}: expected name=file.jsonl")
        if name in found:
            raise ValueError(f"--predictions {entry}: the name '{name}' is taken")
        found[name] = (source, *_read_captions(source))
    rules = {rule: source for source, _, rule in found.values() if rule}
    if len(rules) > 1:
        listed = " and ".join(f"{source} by '{rule}'" for rule, source in rules.items())
        raise ValueError(
            f"--predictions: {listed}: captions of different rules of normalisation look different, and would give the "
            "systems away; evaluate both by one rule"
        )
    rule = next(iter(rules), "paper")
    rows = load_captions(dataset, split, caption_column, id_column)
    usable = {row_id: usable_captions(texts, rule) for row_id, texts in zip(rows["id"], rows["captions"])}
    return Material(
        captions={
            name: {song: text for song, caption in captions.items() if (text := normalize_caption(caption, rule))}
            for name, (_, captions, _) in found.items()
        },
        gold={row_id: texts[0] for row_id, texts in usable.items() if texts},
        audio=dict(zip(rows["id"], rows["audio"])),
        normalization=rule,
    )


def _read_captions(source: str) -> tuple[dict[str, str], str | None]:
    """The captions of a file by id, and the rule by which they are normalised, if it names one."""
    file, system = source, None
    if not Path(source).is_file() and ":" in source:
        file, _, system = source.rpartition(":")
    try:
        content = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--predictions: {file} cannot be read as UTF-8 text: {error}") from error
    captions: dict[str, str] = {}
    rule = None
    # Not splitlines, which also splits at U+2028 and the like: JSON may have these in a caption.
    for number, text in enumerate(content.split("\n"), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            row_id, own = str(line["id"]), line.get("captions", {})
            caption = line["prediction"] if system is None else own.get(system)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{file}, line {number}: expected {{"id": "…", "prediction": "…"}}, found {text[:80]!r}'
            ) from error
        if not isinstance(caption, str):
            what = f"no caption of '{system}'; found {', '.join(own)}" if system else "a prediction that is not a text"
            raise ValueError(f"{file}, line {number}: {what}{did_you_mean(system or '', own)}")
        if row_id in captions:
            raise ValueError(f"{file}, line {number}: duplicate id '{row_id}'")
        captions[row_id], rule = caption, line.get("caption_normalization", rule)
    return captions, rule
