"""
Splits of a corpus that cut no group in two and depend on nothing but the seed and the ids: not on the order of the
rows, a machine, or a number of processes.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import sparse
from transformers.utils import logging

logger = logging.get_logger(__name__)

HELD_OUT = ("test", "validation")
SPLITS = ("train", *reversed(HELD_OUT))


def natural_key(row_id: str) -> tuple:
    """Orders ids as people do: `"9"` before `"10"`, `"b/9"` before `"b/10"`."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", row_id))], row_id


def group_rows(labels: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Numbers `(N,)` of groups: rows that share a label, or are linked by rows that do, are of one group."""
    numbers: dict[Hashable, int] = {}
    rows = np.repeat(np.arange(len(labels)), [len(entry) for entry in labels])
    columns = [len(labels) + numbers.setdefault(label, len(numbers)) for entry in labels for label in entry]
    shape = (len(labels) + len(numbers),) * 2
    links = sparse.coo_array((np.ones(len(rows), bool), (rows, columns)), shape=shape)
    return sparse.csgraph.connected_components(links, directed=False)[1][: len(labels)]


def assign_splits(
    ids: Sequence[str],
    groups: Sequence[int],
    sizes: dict[str, float],
    seed: int = 0,
    strata: Sequence[Hashable] | None = None,
    given: Sequence[str | None] | None = None,
) -> list[str]:
    """
    `"train"`, `"validation"` or `"test"` for each row; no group stands in two splits, unless `given` cuts it.

    Groups are lined up by the SHA-256 of the seed and their smallest id. The test split takes from the beginning of the
    line what fits into it, then the validation split; train gets the rest. Groups of one row fill a split exactly.

    Args:
        ids (`Sequence[str]`): Unique.
        groups (`Sequence[int]`): The group of each row.
        sizes (`dict[str, float]`):
            Of `"test"` and `"validation"`: rows, or shares where below 1, of the rows that are to be split.
        seed (`int`, defaults to 0)
        strata (`Sequence`, *optional*):
            A value for each row: the splits have equal shares of each value. That of a group is its smallest id's.
        given (`Sequence[str | None]`, *optional*):
            The corpus's own splits: of them train alone is split further, by groups that lie in it wholly.

    Raises:
        `ValueError`: when more rows are asked for than there are.
    """
    splits = [split or "train" for split in given] if given is not None else ["train"] * len(ids)
    members = defaultdict(list)
    for row in sorted(range(len(ids)), key=lambda row: natural_key(ids[row])):
        members[groups[row]].append(row)
    free = [rows for rows in members.values() if all(splits[row] == "train" for row in rows)]
    total = splits.count("train")
    counts = {name: _count(sizes.get(name, 0), total) for name in HELD_OUT}
    if sum(counts.values()) > total:
        raise ValueError(
            f"splits of {' and '.join(f'{count} {name}' for name, count in counts.items())} rows are asked for, "
            f"and there are {total} to be split: lower --test or --validation, or give shares below 1"
        )
    free.sort(key=lambda rows: hashlib.sha256(f"{seed} {ids[rows[0]]}".encode()).digest())
    by_stratum = defaultdict(list)
    for rows in free:
        by_stratum[str(strata[rows[0]]) if strata is not None else ""].append(rows)
    weights = {stratum: sum(map(len, lines)) for stratum, lines in sorted(by_stratum.items())}
    for name in HELD_OUT:
        room = _share_out(counts[name], weights)
        for stratum, lines in by_stratum.items():
            left = []
            for rows in lines:
                if len(rows) <= room[stratum]:
                    room[stratum] -= len(rows)
                    for row in rows:
                        splits[row] = name
                else:
                    left.append(rows)
            by_stratum[stratum] = left
        if splits.count(name) < counts[name]:
            found = f"{splits.count(name)} of {counts[name]}"
            largest = max(map(len, members.values()))
            logger.warning(
                f"{name} has {found} rows: the groups that are left are larger than the room in it; the largest of all "
                f"has {largest} rows of one cluster, file or --group_columns"
            )
    return splits


def _count(size: float, total: int) -> int:
    """Rows of a split; a share of more than two rows is at least one."""
    return int(size) if size >= 1 or not size else round(size * total) or int(total > 2)


def _share_out(count: int, weights: dict[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to the weights with the sum `count`, by largest remainders."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    shares = {name: int(share) for name, share in exact.items()}
    rest = max(0, min(count, total) - sum(shares.values()))
    for name in sorted(exact, key=lambda name: (shares[name] - exact[name], name))[:rest]:
        shares[name] += 1
    return shares
