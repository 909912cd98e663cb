"""
The pages keep their word: their Python runs, their commands are ones that the scripts take, their links lead somewhere.

The pages are README.md, CONTRIBUTING.md and docs/*.md.
"""

import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from unittest import mock

import pytest
import soundfile
import yaml
from accelerate.commands.launch import launch_command_parser
from helpers import ROOT, Script, write_clap, write_tone
from torch.distributed.run import get_args_parser

import export
from clips.options import OptionParser
from corpora.readers import READERS
from listening_test import COMMANDS
from model_card_rgmc import model_card

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ["train.py", "eval.py", "caption.py", "app.py", "build_datastore.py", "export.py", "find_leaks.py"]
SCRIPTS += [f"prepare.py {name}" for name in READERS]
SCRIPTS += [f"listening_test.py {name}" for name in COMMANDS]
MODULES = [
    "training.checkpoints",
    "evaluation.compare",
    "evaluation.sanity",
    *(f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")),
]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.M | re.S)


def prose(page: Path) -> str:
    """A page without its code blocks and front matter."""
    text = re.sub(r"\A---\n.*?^---\n", "", read(page), flags=re.M | re.S)
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def code_spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


# -- Python ------------------------------------------------------------------------------------------------------------

# Each page begins with nothing defined, and its blocks share what they define.
RUN_PAGES = """
import re, sys
for path in sys.argv[1:]:
    names = {"__name__": "__main__"}
    for block in re.findall(r"^```python\\n(.*?)^```$", open(path, encoding="utf-8").read(), re.M | re.S):
        print("block of", path)
        exec(compile(block, path, "exec"), names)
"""


def test_the_pages_python_runs(make_model, processor, tmp_path):
    make_model(max_new_tokens=8).save_pretrained(tmp_path / "outputs" / "demo")
    processor.save_pretrained(tmp_path / "outputs" / "demo")
    waveform, rate = soundfile.read(write_tone(tmp_path / "song.wav", 220, rate=44_100))
    soundfile.write(tmp_path / "song.mp3", waveform, rate)
    for name in ("metrics", "checkpoints"):  # which pages name relative to the repository
        (tmp_path / name).symlink_to(ROOT / name)
    export.main(export.ExportArguments(str(ROOT / "checkpoints" / "demo"), str(tmp_path / "outputs" / "export")))
    write_clap(tmp_path / "clap")
    make_model().text_model.save_pretrained(tmp_path / "gpt2")
    for repository, folder in (("laion--larger_clap_music", "clap"), ("openai-community--gpt2", "gpt2")):
        cached = tmp_path / "home" / "hub" / f"models--{repository}"  # a tiny one in the place of each
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("a" * 40)
        (cached / "snapshots").mkdir()
        (cached / "snapshots" / ("a" * 40)).symlink_to(tmp_path / folder)
    done = subprocess.run(
        [sys.executable, "-c", RUN_PAGES, *map(str, PAGES)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("block of") == sum(len(blocks(page, "python")) for page in PAGES) >= 8


# -- commands ----------------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """Raised in the place of what a script does with its options."""


def parse(script: str, words: list[str]) -> tuple[ArgumentParser, list[str]]:
    """The parser of a script (`train.py`) or module (`benchmarks.audio`), and the words that it does not know."""
    parse_known_args = ArgumentParser.parse_known_args

    def stop(parser, *args, **kwargs):
        if words and getattr(parser, "options", None):  # of dataclasses: called for each key of a yaml file, too
            return parse_known_args(parser, *args, **kwargs)
        words_too_many = parse_known_args(parser, *args, **kwargs)[1] if words else []
        raise Stopped(parser, words_too_many)

    def stop_at_end(parser, *args, **kwargs):
        raise Stopped(parser, [])

    script, *first = script.split()
    with (
        mock.patch.object(ArgumentParser, "parse_known_args", stop),
        mock.patch.object(OptionParser, "parse_dict", stop_at_end),
        mock.patch.object(sys, "argv", [script, *first, *words]),
        mock.patch.dict(os.environ),
    ):
        try:
            if script.endswith(".py"):
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
        except Stopped as stopped:
            return stopped.args
        except SystemExit as error:
            pytest.fail(f"{script} does not take {shlex.join(words)}: {error}")
    pytest.fail(f"{script} parses no options")


def check_command(command: str):
    """Fails unless a command of a page is one that its program takes."""
    command = re.sub(r"<\(.*\)", "requirements.txt", command)  # a file that the shell makes of another one
    words = [word for word in shlex.split(command, comments=True) if word != "…"]
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    match words:
        case ["pip", "install", *packages]:
            files = [after for option, after in itertools.pairwise(packages) if option == "-r"]
            assert all((ROOT / file).is_file() for file in files), command
            wanted = re.findall(r"^[\w-]+", read(ROOT / "requirements-dev.txt"), re.M)
            assert {*packages} <= {"-r", *files, *wanted, "pre-commit"}, command
        case ["pytest", *options]:
            files = [option.split("::")[0] for option in options if "test_" in option]
            assert all((ROOT / file).is_file() for file in files), command
            assert {*options} <= {"-n", "0", "-s", "-m", "slow", "-q", *files}, command
        case ["make", *targets]:
            assert {*targets} <= {*re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.M)}, command
        case ["bash", script]:
            assert (ROOT / script).is_file(), command
        case ["curl", "$ENDPOINT", "-H", *_]:
            pass
        case ["python3.11", "-m", "venv", ".venv"] | ["source", ".venv/bin/activate"]:
            pass
        case ["accelerate", "config"] | ["pre-commit", "install"]:
            pass
        case ["accelerate", "launch", *options]:
            launched = launch_command_parser().parse_args(options)
            if launched.training_script != "--help":
                check_script(launched.training_script, launched.training_script_args)
        case ["torchrun", *options]:
            launched = get_args_parser().parse_args(options)
            check_script(launched.training_script, launched.training_script_args)
        case ["python", "-m", module, *options]:
            check_script(module, options)
        case ["python", script, *options]:
            check_script(script, options)
        case _:
            pytest.fail(f"{command}: not a program that this test knows")


def unrolled(block: str) -> str:
    """The commands of a block, those in a loop over words with the first of these."""
    for variable, word in re.findall(r"^for (\w+) in (\S+).*; do$", block, re.M):
        block = block.replace(f"${variable}", word)
    return re.sub(r"^(?:for .*; do|done)\n", "", block, flags=re.M)


def check_script(script: str, options: list[str]):
    known = script in MODULES or (ROOT / script).is_file()
    assert known, f"there is no {script}"
    if options and options != ["--help"] and options[-1] != "--help":
        words_too_many = parse(script, options)[1]
        assert not words_too_many, f"{script} does not know {words_too_many}"


@each_page
def test_the_pages_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = [line for block in blocks(page, "bash") for line in unrolled(block.replace("\\\n", " ")).splitlines()]
    programs = ("accelerate launch ", "torchrun ", "python ", "pip install ", "pytest", "make ", "bash ")
    lines += [span for span in code_spans(page) if re.sub(r"^(\w+=\S+ )+", "", span).startswith(programs)]
    for command in (part for line in lines for part in line.split(" && ") if part.split("#")[0].strip()):
        check_command(command)


def test_the_pages_options_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    known = {"--help", *launch_command_parser()._option_string_actions, *get_args_parser()._option_string_actions}
    for script in (*SCRIPTS, *MODULES):
        known |= {*parse(script, [])[0]._option_string_actions}
    spans = [span for page in PAGES for span in code_spans(page) if span.startswith("--")]
    named = {option for span in spans for option in re.findall(r"--\w+", span)}
    assert len(named) > 30 and not named - known


def test_the_readme_has_the_commands_that_ci_runs():
    lines = read(ROOT / "README.md").splitlines()
    assert lines.count("pip install -r requirements.txt && accelerate launch train.py configs/demo.yaml") == 1
    assert lines.count("pip install -r requirements-dev.txt && pytest") == 1
    assert lines.count("pip install -r requirements-app.txt && python app.py") == 1
    assert sum(line.startswith("pip install -r ") for line in lines) == 3  # .ci/run finds them by these words


# -- text --------------------------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """What GitHub and the Hub make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@each_page
def test_the_pages_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, fragment = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists() and linked.is_relative_to(ROOT), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", prose(linked), re.M)
            assert fragment in map(anchor, headings), target


@each_page
def test_the_files_that_a_page_names_exist(page):
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"data", "outputs"}
    for span in code_spans(page):
        is_file = re.fullmatch(r"[\w./-]+\.py", span) or re.fullmatch(r"[\w.-]+/[\w./-]*", span)
        if is_file and (span.endswith(".py") or span.split("/")[0] in rooms):
            assert (ROOT / span).exists(), f"{page.name}: there is no {span}"


@each_page
def test_the_names_that_a_page_finds_in_files_are_there(page):
    for name, file in re.findall(r"`(\w+)` (?:in|into) `([\w./-]+\.py)`", " ".join(prose(page).split())):
        assert re.search(rf"^\s*(?:class |def )?{name}\b(?: =|:|\()", read(ROOT / file), re.M), f"no {name} in {file}"


def test_every_place_states_the_same_version():
    version = re.search(r'^version = "(.*)"$', read(ROOT / "pyproject.toml"), re.M)[1]
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    newest = re.findall(r"^## \[(\d.*)\] - (.*)$", read(ROOT / "CHANGELOG.md"), re.M)[0]
    assert newest == (version, citation["date-released"]) and citation["version"] == version
    assert citation["preferred-citation"]["doi"] in read(ROOT / "README.md")


@each_page
def test_the_pages_lines_are_short(page):
    long = [line for line in prose(page).splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


def test_the_readme_is_one_screen():
    assert (ROOT / "README.md").stat().st_size <= 8192


def test_the_hub_files_the_repository_where_it_files_its_checkpoints():
    card, page = (yaml.safe_load(text.split("---\n")[1]) for text in (model_card("a"), read(ROOT / "README.md")))
    assert {key: card[key] for key in ("library_name", "pipeline_tag", "tags")} == {
        key: page[key] for key in ("library_name", "pipeline_tag", "tags")
    }


# -- help --------------------------------------------------------------------------------------------------------------


def test_each_script_says_how_it_is_used(tmp_path):
    scripts = [
        "train.py",
        "eval.py",
        "caption.py",
        "prepare.py",
        "build_datastore.py",
        "export.py",
        "find_leaks.py",
        "listening_test.py",
        "-m training.checkpoints",
        "-m evaluation.compare",
        "-m evaluation.sanity",
    ]
    for script in scripts:
        done = Script(script, "--help", output=tmp_path / script).wait()
        assert done.returncode == 0 and len(done.stdout.splitlines()) > 5, (script, done.stderr)
        assert f"usage: {script.replace('-m ', 'python -m ')}" in done.stdout or script == "prepare.py"
        assert "Traceback" not in done.stderr
