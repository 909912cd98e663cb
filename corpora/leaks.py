"""
Clips of different splits that are the same, or almost: by their captions, their files, and what a model hears in them.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from tqdm.auto import tqdm

from corpora.dedup import check_options, distinct_sets, similar_pairs
from corpora.probe import hash_file, probe_files
from dataset_rgmc import usable_captions

FORMAT_VERSION = 1  # of leakage.json
KINDS = {
    "exact_caption": "exact captions",
    "near_caption": "near-duplicate captions",
    "identical_audio": "identical audio",
    "near_audio": "near-identical audio",
}
BLOCK_ROWS = 4096  # of each split, whose embeddings are compared together: 64 MB
QUANTILES = (0, 0.25, 0.5, 0.75, 0.95, 1)


@dataclass
class Clips:
    """
    `N` clips of a split.

    Args:
        ids (`list[str]`): Unique.
        captions (`list[list[str]]`): Of each clip, with or without normalisation.
        files (`list[str | None]`): Where their sound is, for the reader of the report.
        hashes (`list[str | None]`): Equal where the sounds are equal, byte for byte; None where no other can be.
        without_audio (`int`, defaults to 0): Clips that have no file, or one that cannot be read.
        audio_embeds (`np.ndarray` of shape `(N, E)`, *optional*): L2-normalised; zeros for a clip that has none.
    """

    ids: list[str]
    captions: list[list[str]]
    files: list[str | None]
    hashes: list[str | None]
    without_audio: int = 0
    audio_embeds: np.ndarray | None = None

    def __post_init__(self):
        self.captions = [usable_captions(texts) for texts in self.captions]


def find_leaks(
    splits: dict[str, Clips],
    ngram: int = 5,
    threshold: float = 0.8,
    audio_threshold: float = 0.99,
    num_worst: int = 20,
    device: torch.device | str = "cpu",
) -> dict:
    """
    Pairs of clips of different splits that have the same caption or sound, or almost.

    Every caption of a clip counts. Captions are compared as in `corpora.dedup.deduplicate`, exactly and all pairs, and
    so are the embeddings of sounds, in blocks. A pair is of one kind of captions and one of sounds at most: what is the
    same is not counted as almost the same. A split is not compared with itself.

    Args:
        splits (`dict[str, Clips]`)
        ngram (`int`, defaults to 5): Words of an n-gram.
        threshold (`float`, defaults to 0.8): Jaccard similarity that near-duplicate captions exceed.
        audio_threshold (`float`, defaults to 0.99): Cosine that near-identical sounds exceed.
        num_worst (`int`, defaults to 20): Pairs of each kind to show: the most similar, the longest captions first.
        device (`torch.device`): Where embeddings are compared.

    Returns:
        `{"splits", "leaks"}` of `leakage.json`: what the splits hold, and for each two of them, by kind, the number of
        pairs, the rows of either split that are in one, and the worst; `near_audio` where there are embeddings.

    Raises:
        `ValueError`: for options out of range.
    """
    check_leak_options(ngram, threshold, audio_threshold, num_worst)
    texts, clips_of_text = _index({name: clips.captions for name, clips in splits.items()})
    hashes, clips_of_hash = _index({name: [[key] if key else [] for key in of.hashes] for name, of in splits.items()})
    near = _near_texts(texts, ngram, threshold)
    lengths = np.array([len(text.split()) for text in texts], np.int64)
    with_embeds = all(clips.audio_embeds is not None for clips in splits.values())
    leaks = []
    for names in combinations(splits, 2):
        pair = [splits[name] for name in names]
        of_text, of_hash = ([clips[name] for name in names] for clips in (clips_of_text, clips_of_hash))
        found = {
            "exact_caption": _meet(*of_text, _same(texts), lengths, num_worst),
            "near_caption": _meet(*of_text, near, lengths, num_worst),
            "identical_audio": _meet(*of_hash, _same(hashes), np.zeros(len(hashes)), num_worst),
        }
        nearest = None
        if with_embeds:
            codes = [_codes(clips) for clips in of_hash]
            embeds = [torch.from_numpy(clips.audio_embeds).to(device) for clips in pair]
            found["near_audio"], nearest = _near_audio(*embeds, codes, audio_threshold, num_worst, " and ".join(names))
        kinds = {}
        for kind, meetings in found.items():
            rows = {name: _rows(splits[name], of) for name, of in zip(names, meetings.rows)}
            worst = [_describe(kind, entry, splits, names, texts) for entry in meetings.worst]
            kinds[kind] = {"pairs": meetings.pairs, "rows": rows, "worst": worst}
        for_any = [np.unique(np.concatenate([of.rows[side] for of in found.values()])) for side in (0, 1)]
        rows = {name: _rows(splits[name], of) for name, of in zip(names, for_any)}
        leaks.append({"splits": list(names), "rows": rows, "kinds": kinds, "nearest": nearest})
    described = {
        name: {
            "rows": len(clips.ids),
            "captions": sum(map(len, clips.captions)),
            "without_caption": sum(not texts for texts in clips.captions),
            "without_audio": clips.without_audio,
            "embedded": int(clips.audio_embeds.any(axis=1).sum()) if with_embeds else None,
            "fingerprint": fingerprint(clips.ids, clips.captions),
        }
        for name, clips in splits.items()
    }
    return {"splits": described, "leaks": leaks}


def check_leak_options(ngram: int, threshold: float, audio_threshold: float, num_worst: int):
    check_options(ngram, threshold)
    if not 0 <= audio_threshold < 1 or num_worst < 0:
        raise ValueError(
            f"audio_threshold {audio_threshold}, num_worst {num_worst}: expected from 0 to below 1, and 0 or more"
        )


def fingerprint(ids: list[str], captions: list[list[str]]) -> str:
    """What identifies a split, in whatever order: SHA-256 of its ids and normalised captions."""
    rows = sorted([row_id, usable_captions(own)] for row_id, own in zip(ids, captions))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def leak_rule(options: dict) -> str:
    """What counts as a leak, by the `options` of `leakage.json`."""
    rule = "Captions are compared as normalised by the rule paper, whatever the model's. "
    rule += f"Near-duplicate captions: Jaccard of word {options['ngram']}-grams above {options['threshold']:g}; "
    rule += "identical audio: files of the same bytes; near-identical audio: "
    if options["model"]:
        rule += f"cosine of the embeddings by {options['model']} above {options['audio_threshold']:g}. "
    else:
        rule += "not looked for (find_leaks.py --model does). "
    return rule + "What is the same is not counted as near."


def hash_audio(
    splits: dict[str, Iterable[dict]], known_file: Path, num_proc: int = 1
) -> dict[str, tuple[list[str | None], list[str | None], int]]:
    """
    Files of clips and the SHA-256 of what is in them. Only a file whose size another split has, too, is read: no other
    can be the same.

    Args:
        splits (`dict[str, Iterable[dict]]`): Of each clip `{"path", "bytes"}`.
        known_file (`Path`): A jsonl file, from which an interrupted run goes on.
        num_proc (`int`, defaults to 1): Processes that read.

    Returns:
        For each split `files`, `hashes` and `without_audio` of [`Clips`].
    """
    contents, splits_of_size = {}, defaultdict(set)
    for name, clips in splits.items():
        contents[name] = [_content(audio) for audio in tqdm(clips, desc=f"Files of {name}", unit="file")]
        for _, size, _ in contents[name]:
            splits_of_size[size].add(name)
    every = [content for of in contents.values() for content in of]
    wanted = [path for path, size, digest in every if size and not digest and len(splits_of_size[size]) > 1]
    probed = dict(zip(wanted, probe_files(wanted, known_file, num_proc, hash_file, "Hashing audio")))
    found = {}
    for name, of in contents.items():
        hashes = [digest or probed.get(path, {}).get("sha256") for path, _, digest in of]
        unread = sum(not size or (path in probed and not digest) for (path, size, _), digest in zip(of, hashes))
        found[name] = [path for path, _, _ in of], hashes, unread
    return found


def _content(audio: dict) -> tuple[str | None, int, str | None]:
    """Path, size in bytes, 0 where there is nothing, and the hash of bytes that are at hand."""
    path, content = audio["path"], audio["bytes"]
    if content is not None:
        return path, len(content), hashlib.sha256(content).hexdigest() if content else None
    try:
        return path, os.path.getsize(path or ""), None
    except (OSError, ValueError):
        return path, 0, None


def write_leaks(output_dir: Path, report: dict):
    """Writes `leakage.json`, which `eval.py --leakage` reads."""
    text = json.dumps({"format_version": FORMAT_VERSION, **report}, indent=1, ensure_ascii=False)
    (output_dir / "leakage.json").write_text(text + "\n", encoding="utf-8")


# -- pairs ------------------------------------------------------------------------------------------------------------


@dataclass
class Links:
    """Which keys of one split go with which of another: `P` pairs of key numbers, and how similar the two are."""

    first: np.ndarray
    second: np.ndarray
    values: np.ndarray


@dataclass
class Meetings:
    """Pairs of two splits: how many, the rows of either that are in one, and `(value, pairs, rows, keys)` of some."""

    pairs: int
    rows: tuple[np.ndarray, np.ndarray]
    worst: list[tuple]


def _index(entries: dict[str, list[list[str]]]) -> tuple[list[str], dict[str, sparse.csc_array]]:
    """All different keys, and for each split a table of ones `(rows, keys)`; a row has a key once."""
    numbers: dict[str, int] = {}
    cells = {
        name: [
            (row, numbers.setdefault(key, len(numbers))) for row, keys in enumerate(of) for key in dict.fromkeys(keys)
        ]
        for name, of in entries.items()
    }
    tables = {}
    for name, of in cells.items():
        rows, keys = np.array(of, np.int64).reshape(-1, 2).T
        tables[name] = sparse.csc_array((np.ones(len(of), bool), (rows, keys)), (len(entries[name]), len(numbers)))
    return list(numbers), tables


def _same(keys: list[str]) -> Links:
    numbers = np.arange(len(keys))
    return Links(numbers, numbers, np.ones(len(keys)))


def _near_texts(texts: list[str], ngram: int, threshold: float) -> Links:
    """Different texts that are similar, in both directions."""
    sets, set_of_text = distinct_sets(texts, ngram)
    pairs, similarities = similar_pairs(sets, threshold)
    links = sparse.coo_array((similarities, (pairs[:, 0], pairs[:, 1])), (len(sets), len(sets))).tocsr()
    links = links + links.T + sparse.eye_array(len(sets))  # a set may be that of several texts
    shape = (len(texts), len(sets))
    has_set = sparse.csr_array((np.ones(len(texts)), (np.arange(len(texts)), set_of_text)), shape)
    found = (has_set @ links @ has_set.T).tocoo()
    different = found.row != found.col
    return Links(found.row[different], found.col[different], found.data[different])


def _meet(one: sparse.csc_array, two: sparse.csc_array, links: Links, sizes: np.ndarray, num_worst: int) -> Meetings:
    """Rows of two splits whose keys are linked."""
    counts = np.diff(one.indptr), np.diff(two.indptr)
    met = (counts[0][links.first] > 0) & (counts[1][links.second] > 0)
    first, second, values = links.first[met], links.second[met], links.values[met]
    pairs = counts[0][first].astype(np.int64) * counts[1][second]
    order = np.lexsort((second, first, -sizes[first], -values))[:num_worst]
    worst = [
        (
            float(values[link]),
            int(pairs[link]),
            [int(side.indices[side.indptr[keys[link]]]) for side, keys in ((one, first), (two, second))],
            (int(first[link]), int(second[link])),
        )
        for link in order
    ]
    rows = [np.unique(side[:, np.unique(keys)].indices) for side, keys in ((one, first), (two, second))]
    return Meetings(int(pairs.sum()), tuple(rows), worst)


def _codes(clips_of_hash: sparse.csc_array) -> np.ndarray:
    """The number of each row's hash, -1 for none."""
    codes = np.full(clips_of_hash.shape[0], -1)
    codes[clips_of_hash.indices] = np.repeat(np.arange(clips_of_hash.shape[1]), np.diff(clips_of_hash.indptr))
    return codes


def _near_audio(
    one: torch.Tensor, two: torch.Tensor, codes: list[np.ndarray], threshold: float, num_worst: int, title: str
) -> tuple[Meetings, list[float]]:
    """
    Rows of two splits whose embeddings are similar and whose files are not the same, and quantiles of how similar the
    nearest of the first split is to each row of the second.
    """
    pairs, nearest = 0, torch.full((len(two),), -1.0, device=two.device)
    touched = np.zeros(len(one), bool), np.zeros(len(two), bool)
    worst = np.zeros((0, 3))
    starts = [(i, j) for i in range(0, len(one), BLOCK_ROWS) for j in range(0, len(two), BLOCK_ROWS)]
    for i, j in tqdm(starts, desc=f"Sounds of {title}", unit="block"):
        similarities = one[i : i + BLOCK_ROWS] @ two[j : j + BLOCK_ROWS].T
        block = nearest[j : j + BLOCK_ROWS]
        torch.maximum(block, similarities.amax(dim=0), out=block)
        first, second = (similarities > threshold).nonzero(as_tuple=True)
        values = similarities[first, second].cpu().numpy()
        first, second = first.cpu().numpy() + i, second.cpu().numpy() + j
        different = (codes[0][first] != codes[1][second]) | (codes[0][first] < 0)
        values, first, second = values[different], first[different], second[different]
        pairs += len(values)
        touched[0][first], touched[1][second] = True, True
        worst = np.concatenate([worst, np.stack([values, first, second], axis=1)])
        worst = worst[np.lexsort((worst[:, 2], worst[:, 1], -worst[:, 0]))[:num_worst]]
    quantiles = np.quantile(nearest[two.any(dim=1)].cpu().numpy(), QUANTILES) if two.any() else []
    shown = [(value, 1, [int(first), int(second)], None) for value, first, second in worst.tolist()]
    return Meetings(pairs, tuple(map(np.flatnonzero, touched)), shown), [round(float(value), 6) for value in quantiles]


def _rows(clips: Clips, rows: np.ndarray) -> dict:
    ids = [clips.ids[row] for row in rows]
    return {"count": len(ids), "share": round(len(ids) / len(clips.ids), 6) if clips.ids else 0.0, "ids": ids}


def _describe(kind: str, entry: tuple, splits: dict[str, Clips], names: tuple[str, str], texts: list[str]) -> dict:
    """A pair of the worst: for captions the first two clips that have these."""
    value, pairs, rows, keys = entry
    clips = []
    for side, (name, row) in enumerate(zip(names, rows)):
        shown = {"caption": texts[keys[side]]} if kind.endswith("caption") else {"file": splits[name].files[row]}
        clips.append({"split": name, "id": splits[name].ids[row], **shown})
    return {"value": round(value, 6), "pairs": pairs, "clips": clips}
