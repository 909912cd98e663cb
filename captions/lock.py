"""One run at a time writes to an output file."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class OutputLock:
    """
    Keeps other runs from an output file for as long as a `with` block lasts, by a file beside it,
    `captions.jsonl.lock`. The system forgets the lock of a run that was killed. On Windows, and on file systems without
    locks, nothing is locked. Of several processes of a run, the first one locks.

    Args:
        output (`Path`, *optional*):
            The file. Without one there is nothing to lock.

    Raises:
        `FileExistsError`: If another run holds the lock.
    """

    def __init__(self, output: Path | None):
        self.path = output and output.with_name(f"{output.name}.lock")
        self.file: int | None = None

    def __enter__(self) -> "OutputLock":
        if self.path is None or fcntl is None or os.environ.get("RANK", "0") != "0":
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self.file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                # Not `flock`, whose lock the processes that decode would inherit.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                os.close(file)
                output = self.path.with_suffix("")
                raise FileExistsError(
                    f"--output {output}: another run is writing to it; wait for its end, or name another file"
                ) from error
            except OSError:
                pass
            if self._is_there(file):
                self.file = file
            else:  # deleted by the run that held it until now
                os.close(file)
        return self

    def __exit__(self, *error):
        self.release()

    def release(self):
        """Unlocks the file, and deletes the one beside it."""
        if self.file is None:
            return
        if self._is_there(self.file):
            self.path.unlink()
        os.close(self.file)
        self.file = None

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False
