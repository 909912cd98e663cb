"""
Assigns the rows of a corpus to splits without cutting a group in two.

The splits only depend on the seed, the ids and the groups: not on the order of the rows, a machine, or a number of
processes that read them.
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
    """Numbers the groups of `N` rows, `(N,)`: rows that share a label, directly or through others, form a group."""
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
    Assigns each row to `"train"`, `"validation"` or `"test"`. No group is in two splits, unless `given` cuts it.

    Groups are ordered by the SHA-256 of the seed and their smallest id. In this order, the test split takes each group
    that fits into it, then the validation split does; train gets the rest. Groups of one row fill a split exactly.

    Args:
        ids (`Sequence[str]`):
            Unique id of each row.
        groups (`Sequence[int]`):
            Group of each row.
        sizes (`dict[str, float]`):
            Sizes of `"test"` and `"validation"`, in rows or, below 1, as a share of the rows to split.
        seed (`int`, defaults to 0):
            Seed of the order.
        strata (`Sequence`, *optional*):
            A value for each row, of which the splits get equal shares. A group has the value of its smallest id.
        given (`Sequence[str | None]`, *optional*):
            The corpus's own splits. Only train is split further, by the groups that are entirely in it.

    Returns:
        `list[str]`: The split of each row.

    Raises:
        `ValueError`: If the splits are larger than the corpus.
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
            f"The splits ask for {' and '.join(f'{count} {name}' for name, count in counts.items())} rows, "
            f"but there are {total} to split: lower --test or --validation, or give shares below 1"
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
                f"{name} has {found} rows, because the remaining groups are larger than the room left in it; "
                f"the largest of all has {largest} rows with one cluster, file or value of --group_columns"
            )
    return splits


def _count(size: float, total: int) -> int:
    """Returns the number of rows in a split. A share of more than two rows gives at least one."""
    return int(size) if size >= 1 or not size else round(size * total) or int(total > 2)


def _share_out(count: int, weights: dict[str, int]) -> dict[str, int]:
    """Divides `count` into whole numbers in proportion to the weights, by largest remainders."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    shares = {name: int(share) for name, share in exact.items()}
    rest = max(0, min(count, total) - sum(shares.values()))
    for name in sorted(exact, key=lambda name: (shares[name] - exact[name], name))[:rest]:
        shares[name] += 1
    return shares
