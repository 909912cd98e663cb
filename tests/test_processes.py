"""Several processes share a script's work, or are refused before one of them writes; none is a run of its own."""

import re

import pytest
import torch
from helpers import ROOT, Script

from clips.processes import make_accelerator


def test_processes_that_would_each_be_a_run_are_refused(monkeypatch):
    # As on a machine with a GPU that accelerate does not share out.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, and each would be a run of its own on cpu: start"):
        make_accelerator()


@pytest.mark.parametrize(
    "script, options",
    [
        ("prepare.py", ["any", "--source", "songs.csv", "--output_dir", "corpus"]),
        ("export.py", ["--model", "checkpoint", "--output_dir", "encoder"]),
        ("caption.py", ["--render", "spans.jsonl"]),
        ("caption.py", ["songs.csv", "--remove_tags"]),
    ],
)
def test_what_one_process_does_is_refused_to_several(tmp_path, script, options):
    place = tmp_path / "place"
    place.mkdir()
    for name in ("songs.csv", "spans.jsonl"):
        (place / name).write_text("path,caption\n")
    done = Script(script, *options, cwd=place, output=tmp_path / "log", world_size=2).wait(60)
    (said,) = done.stderr.splitlines()
    assert done.returncode == 2 and "is for one process, and 2 were started: start one, with python" in said
    assert sorted(path.name for path in place.iterdir()) == ["songs.csv", "spans.jsonl"]


def test_every_script_joins_its_processes_by_one_function():
    for pattern in ("*.py", "training/*.py", "evaluation/*.py"):
        for path in ROOT.glob(pattern):
            assert not re.search(r"\bAccelerator\(", path.read_text(encoding="utf-8")), path
