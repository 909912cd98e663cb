"""What keeps two runs from writing the same output at once."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from clips.locks import only_run

HOLDER = """
import multiprocessing, sys, time
from clips.locks import only_run

with only_run(sys.argv[1], "--output_dir first"):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> tuple[subprocess.Popen, int]:
    """Starts a process that holds the lock, and returns it and the id of its own child."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
    return process, int(process.stdout.readline())


def test_a_second_run_is_told_who_writes_and_a_killed_one_blocks_nobody(tmp_path):
    process, child = hold(tmp_path / "out")
    try:
        message = rf"--output_dir out is being written by another run \(process {process.pid} on .+\): wait"
        with pytest.raises(FileExistsError, match=message), only_run(tmp_path / "out", "--output_dir out"):
            pass
        process.kill()
        process.wait()
        with only_run(tmp_path / "out", "--output_dir out"):  # although a child of the killed run is still there
            os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()
    assert not list((tmp_path / "out").iterdir())


def test_outputs_of_other_names_and_runs_one_after_the_other_do_not_meet(tmp_path):
    with only_run(tmp_path, "--output a", ".a.lock"), only_run(tmp_path, "--output b", ".b.lock"):
        pass
    with pytest.raises(ZeroDivisionError), only_run(tmp_path, "--output a", ".a.lock"):
        raise ZeroDivisionError
    with only_run(tmp_path, "--output a", ".a.lock"):
        pass
    assert not list(tmp_path.iterdir())


def test_of_several_processes_the_main_one_holds_the_lock(tmp_path, monkeypatch):
    with only_run(tmp_path, "--output_dir out"):
        monkeypatch.setenv("RANK", "1")
        with only_run(tmp_path, "--output_dir out"):
            pass


def test_a_file_system_without_locks_is_announced_and_used(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    said = []
    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr("clips.locks.logger.warning", said.append)
    with only_run(tmp_path, "--output_dir out"):
        pass
    assert said == ["--output_dir out is on a file system without locks: do not start a second run there"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="--output_dir out cannot be written to"):
        with only_run(tmp_path / "file" / "out", "--output_dir out"):
            pass
