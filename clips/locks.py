"""A lock on what a run writes, so that two runs do not write it at once; nor several processes of one run."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK = ".lock"
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # of file systems that cannot lock


@contextmanager
def only_run(folder: str | os.PathLike, output: str, name: str = LOCK) -> Iterator[None]:
    """
    Keeps other runs from writing the same output at the same time.

    The operating system ends the lock with the process that holds it, however that ends: a killed run blocks nobody,
    even if its file is left. Of several processes the main one holds the lock: the others must wait for it before
    they write.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of the output, made if needed.
        output (`str`):
            The option and its value, as the message names them: `"--output_dir outputs/demo"`.
        name (`str`, defaults to `".lock"`):
            Name of the lock's file in `folder`; one of its own where the output is a single file.

    Raises:
        `FileExistsError`: If another run holds the lock.
        `OSError`: If nothing can be written to `folder`.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    path = Path(folder, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not a marker instead of a lock, which a killed run would leave.
        lock = FileLock(path, timeout=0, fallback_to_soft=False, on_acquired=_name_holder)
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"{output} is being written by another run{_holder(path)}: wait for its end, or choose another place"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OSError(f"{output} cannot be written to: {error}") from error
        logger.warning(f"{output} is on a file system without locks: do not start a second run there")
        lock = None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone
        if lock:
            lock.release()


def count_processes() -> int:
    """How many processes `accelerate launch` or `torchrun` has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def check_one_process(what: str):
    """Raises `ValueError` in one of several processes that would all do the same; `what` is a script or an option."""
    if count_processes() > 1:
        raise ValueError(f"{what} is for one process, and {count_processes()} were started: start one, with python")


def _name_holder(descriptor: int):
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(path: Path) -> str:
    try:
        return f" ({path.read_text(encoding='utf-8')})"
    except OSError:  # it has just ended, or the system also locks the content
        return ""
