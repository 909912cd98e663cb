"""The scores of the resamples of an evaluation, in a file from which differences to another evaluation are paired."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from reporting.results import Resamples

RESAMPLES_FILE = "resamples.parquet"
SCHEMA = pyarrow.schema(
    [("system", pyarrow.string()), ("metric", pyarrow.string()), ("scores", pyarrow.list_(pyarrow.float32()))]
)


def write_resamples(output_dir: Path, *resamples: Resamples):
    """
    Writes `resamples.parquet`: a row for each system and metric with the score of each resample of the clips.

    Args:
        output_dir (`Path`)
        resamples (`Resamples`): One or more, each with other metrics.
    """
    rows = [
        {"system": system, "metric": metric, "scores": np.asarray(scores, np.float32)}
        for part in resamples
        for system, found in part.items()
        for metric, scores in found.items()
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), output_dir / RESAMPLES_FILE)


def read_resamples(output_dir: Path) -> Resamples:
    """
    The inverse of [`write_resamples`], in float32.

    Raises:
        `ValueError`: If there is no such file, as in an evaluation by an earlier version, or it cannot be read.
    """
    path = output_dir / RESAMPLES_FILE
    try:
        rows = pyarrow.parquet.read_table(path, schema=SCHEMA).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}): run eval.py again to write it") from error
    found: Resamples = {}
    for row in rows:
        found.setdefault(row["system"], {})[row["metric"]] = np.array(row["scores"], np.float32)
    return found
