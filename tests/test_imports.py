"""
The project's own imports point one way: model ← clips ← corpora ← captions, training, evaluation ← listening ← scripts.

`reporting` turns results into documents and does not know where they come from.
"""

import ast
import graphlib
from pathlib import Path

import pytest
from helpers import ROOT

# A file may import from its own room and from those named here. Root files that are not scripts are the model's.
ALLOWED = {
    "model": set(),
    "clips": {"model"},
    "reporting": {"model"},
    "corpora": {"model", "clips", "reporting"},
    "captions": {"model", "clips", "corpora"},
    "baselines": {"model"},
    "training": {"model", "clips", "corpora", "baselines"},
    "evaluation": {"model", "clips", "corpora", "reporting", "baselines"},
    "listening": {"model", "clips", "reporting", "evaluation"},
    "page": {"model", "captions", "evaluation"},
    "metrics": {"model"},
    "scripts": {
        "model",
        "clips",
        "corpora",
        "reporting",
        "captions",
        "training",
        "evaluation",
        "listening",
        "page",
        "baselines",
    },
}
ALLOWED["benchmarks"] = {*ALLOWED} - {"metrics"}


def room_of(path: Path) -> str:
    if path.parent == ROOT:
        return "model" if path.stem.endswith("_rgmc") else "scripts"
    return path.relative_to(ROOT).parts[0]


def imports_of(path: Path, files: dict[str, Path]) -> set[Path]:
    """Lists the project's files that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):  # also `from package import module`
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {files[name] for name in names if name in files}
    return found - {path}


@pytest.fixture(scope="module")
def graph() -> dict[Path, set[Path]]:
    folders = [ROOT, *(ROOT / name for name in ALLOWED if (ROOT / name).is_dir()), *(ROOT / "metrics").iterdir()]
    paths = [path for folder in folders for path in folder.glob("*.py")]
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {path: imports_of(path, files) for path in paths}


def test_no_import_points_upwards(graph):
    upwards = [
        f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
        for path, imported in graph.items()
        for other in imported
        if room_of(other) != room_of(path) and room_of(other) not in ALLOWED[room_of(path)]
    ]
    assert not upwards


def test_no_files_import_each_other_in_a_circle(graph):
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" ← ".join(str(path.relative_to(ROOT)) for path in error.args[1]))


def test_every_file_and_import_is_seen(graph):
    assert {room_of(path) for path in graph} == {*ALLOWED}
    seen = {(path.name, other.name) for path, imported in graph.items() for other in imported}
    assert {("train.py", "eval.py"), ("modeling_rgmc.py", "retrieval_rgmc.py"), ("train.py", "threads.py")} <= seen
