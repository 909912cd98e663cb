"""Runs a function on untrusted files in separate processes: one that dies, hangs or takes all memory costs one file."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

SECONDS = 600.0  # for one item: an hour of film on a slow disk takes less
MEMORY = 2**30  # bytes that a process may take on top of what it started with
# Fork where that is safe, because a spawned process imports torch again.
CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def run_isolated(
    function: Callable[[Any], Any], items: Sequence[Any], num_proc: int, seconds: float = SECONDS, memory: int = MEMORY
) -> Iterator[tuple[int, Any, str | None]]:
    """
    Calls `function` on each item in a separate process, and yields the results as they become ready.

    Args:
        function (`Callable`):
            Called with one item. The function, the items and the results must be picklable.
        items (`Sequence`):
            What the function is called with.
        num_proc (`int`):
            Number of processes.
        seconds (`float`, defaults to 600):
            Time after which a process that is still working on an item is killed, in s.
        memory (`int`, defaults to 1 GiB):
            Bytes that a process may take on top of what it started with, where the system can limit them.

    Yields:
        `tuple`: Number of the item, the function's result, and None; or, if its process was lost, None and the reason.

    Raises:
        Whatever `function` raises, except `MemoryError`, which becomes the item's reason.
    """
    waiting = iter(enumerate(items))
    busy: list[_Worker] = []
    try:
        for _, (number, item) in zip(range(num_proc), waiting):
            busy.append(_Worker(function, memory))
            busy[-1].start(number, item, seconds)
        while busy:
            soonest = min(worker.deadline for worker in busy)
            wait([worker.connection for worker in busy], max(0.0, soonest - time.monotonic()))
            for worker in list(busy):
                if not worker.is_done():
                    continue
                number, result, problem = worker.result(seconds)
                following = next(waiting, None)
                if problem is not None or following is None:
                    worker.kill()
                if following is None:
                    busy.remove(worker)
                else:
                    if problem is not None:
                        busy[busy.index(worker)] = worker = _Worker(function, memory)
                    worker.start(*following, seconds)
                yield number, result, problem
    finally:
        for worker in busy:
            worker.kill()


class _Worker:
    """A process and the item it is working on."""

    def __init__(self, function: Callable[[Any], Any], memory: int):
        self.connection, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_work, args=(other, function, memory), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process ends the connection

    def start(self, number: int, item: Any, seconds: float):
        self.number, self.deadline = number, time.monotonic() + seconds
        try:
            self.connection.send(item)
        except OSError:  # the process is dead: `result` will report it
            pass

    def is_done(self) -> bool:
        return self.connection.poll() or time.monotonic() > self.deadline

    def result(self, seconds: float) -> tuple[int, Any, str | None]:
        if not self.connection.poll():
            return self.number, None, f"not done after {seconds:g} s"
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return self.number, None, f"its process died ({_reason(self.process.exitcode)})"
        if isinstance(error, MemoryError):
            return self.number, None, "needs more memory than a file may take"
        if error is not None:
            raise error
        return self.number, result, None

    def kill(self):
        self.process.kill()
        self.process.join()
        self.connection.close()


def _reason(exit_code: int) -> str:
    return f"exit code {exit_code}" if exit_code >= 0 else signal.Signals(-exit_code).name


def _work(connection: Connection, function: Callable[[Any], Any], memory: int):
    """Runs in the process: receives items, sends pairs of a result and an error."""
    # The main process handles Ctrl-C, and `_follow` ends a worker whose main process was killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    _limit_memory(memory)
    while True:
        item = connection.recv()
        try:
            answer: tuple[Any, Exception | None] = (function(item), None)
        except Exception as error:
            answer = None, error
        connection.send(answer)


def _follow():
    multiprocessing.parent_process().join()
    os._exit(1)


def _limit_memory(memory: int):
    try:
        import resource

        with open("/proc/self/statm") as pages:
            held = int(pages.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # not Linux
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, hard))
