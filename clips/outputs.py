"""How a script replaces what a former run left."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """
    Yields a path to write a file to, which then takes the place of `path`: that file is whole at any time. After an
    error it is as it was.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, path)


@contextmanager
def replaced_together(folder: Path, last: str, stale: tuple[str, ...] = ()) -> Iterator[Path]:
    """
    Yields an empty folder to write a run's files to, and moves them to `folder` once they are all there. If an error
    or a kill comes before, the files of the former run are as they were.

    Args:
        folder (`Path`):
            Folder of the output, made if needed.
        last (`str`):
            Name of the file that is moved last: the one that the others belong to.
        stale (`tuple[str, ...]`, defaults to `()`):
            Names of files of a former run that are deleted if this run has none of that name.
    """
    staging = folder / ".incomplete"
    shutil.rmtree(staging, ignore_errors=True)  # of a killed run
    staging.mkdir(parents=True)
    try:
        yield staging
        for name in stale:
            if not (staging / name).exists():
                (folder / name).unlink(missing_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == last):
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
