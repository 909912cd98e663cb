"""What command lines promise: mistakes in one line and exit status 2, and help that can be read."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, Script

import build_datastore
import eval as evaluation_script
import find_leaks
import prepare
import train
from baselines import BASELINES
from captions.arguments import CaptionArguments
from captions.inputs import find_inputs
from captions.job import find_job
from clips import options
from clips.options import CorpusArguments, check_model, fail, parse, user_errors
from training import checkpoints

CLAP = "; --clap_model none leaves out the CLAP scores"
EVALUATION = ["--model", "outputs/demo", "--dataset", "data/demo", "--output_dir", "outputs/eval"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A user's folder: a checkpoint, a corpus, a configuration, and no Hub."""
    for name in ("outputs/demo/config.json", "outputs/demo/model.safetensors", "data/demo/metadata.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])

    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(options, "file_exists", unreachable)
    monkeypatch.setattr(options, "repo_exists", unreachable)
    return tmp_path


@pytest.fixture
def said(capsys):
    """Runs a command and returns the line with which it ends."""

    def run(command, *arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended, user_errors():
            command(*arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        return line

    return run


def run_train(*words: str):
    train.main(["configs/demo.yaml", *words])


def run_evaluation(*words: str):
    (args,) = parse(evaluation_script.EvaluationArguments, [*EVALUATION, *words])
    evaluation_script.check_paths(args)


def run_datastore(*words: str):
    parse(build_datastore.DatastoreArguments, [*EVALUATION, *words])


def run_leaks(*words: str):
    parse(find_leaks.LeakageArguments, [*EVALUATION, *words])


def run_prepare(*words: str):
    prepare.main(["musiccaps", "--csv", "data/demo/metadata.csv", "--audio_dir", "data", "--output_dir", "o", *words])


def run_checkpoints(*words: str):
    checkpoints.parse_options(["outputs/demo", *words])


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        (run_train, "--max_stepz", "--max_steps"),
        (run_train, "--text_confg.n_layer", "--text_config.n_layer"),
        (run_evaluation, "--tabel", "--table"),
        (run_evaluation, "--tabel=3", "--table"),
        (run_datastore, "--storge", "--storage"),
        (run_leaks, "--split", "--splits"),
        (run_prepare, "--dedupe", "--dedup"),
        (run_checkpoints, "--renw", "--renew"),
    ],
)
def test_an_unknown_option_is_one_line_that_says_which_one_may_be_meant(folder, said, command, option, meant):
    assert said(command, option, "1").endswith(f"unknown option {option.split('=')[0]}; did you mean {meant}?")
    assert said(command, "--xyzzy").endswith("unknown option --xyzzy; --help lists the options")


def test_the_beginning_of_an_option_is_not_taken_for_it(folder, said):
    for command, option, value in ((run_train, "--max_step", "2"), (run_evaluation, "--leak", "x")):
        assert f"unknown option {option}" in said(command, option, value)


def test_a_word_in_the_wrong_place_is_one_line(folder, said):
    assert said(run_evaluation, "--masked", "true", "demo").endswith(
        "unexpected 'demo': options are given as --name value"
    )
    assert said(train.main, ["configs/demo"]).endswith("unexpected 'configs/demo'; did you mean configs/demo.yaml?")
    assert "configs/demo.yaml: the yaml file comes first" in said(train.main, ["--seed", "1", "configs/demo.yaml"])
    assert "--text_config.n_layer: expected one argument" in said(run_train, "--text_config.n_layer")
    assert "--text_config.n_layer: expected one argument" in said(run_train, "--text_config.n_layer", "--seed", "1")


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        (run_train, ["--batch_size", "4.5"], "--batch_size: expected a whole number, found '4.5'"),
        (run_train, ["--learning_rate", "fast"], "--learning_rate: expected a number, found 'fast'"),
        (run_train, ["--push_to_hub", "maybe"], "--push_to_hub: expected true or false, found 'maybe'"),
        (run_train, ["--conditioning", "video"], "--conditioning: invalid choice: 'video' (choose from"),
        (run_train, ["--hub_strategy", "often"], "--hub_strategy: invalid choice: 'often'"),
        (run_train, ["--text_config", "4"], "--text_config: expected a mapping such as '{n_layer: 4}', found '4'"),
        (run_train, ["--text_config.n_layer", "{"], "'{' cannot be read as yaml: line 1, "),
        (run_train, ["--text_config.n_layers", "4"], "has no n_layers: see GPT2Config; did you mean n_layer?"),
        (run_train, ["--text_config.n_layer", "abc"], "--text_config cannot be used: "),
        (run_train, ["--text_config.n_head", "3"], "--text_config: a width of 128 cannot be divided among 3 heads"),
        (run_train, ["--audio_config.depths", "3"], "--audio_config cannot be used: "),
        (run_train, ["--max_train_samples", "0"], "--max_train_samples 0: expected 1 or more"),
        (run_train, ["--learning_rate", "-1"], "--learning_rate must be positive, got -1.0"),
        (run_train, ["--warmup_steps", "-1"], "--warmup_steps must be 0 or more, got -1"),
        (run_train, ["--push_to_hub", "true", "--hub_model_id", "a/b/c"], "--hub_model_id a/b/c: expected owner/name"),
        (run_train, ["--report_to", "wandb"], "--report_to wandb: not installed: `pip install wandb`"),
        (run_train, ["--resume_from_checkpoint", "lst"], "lst does not exist: expected a checkpoint-<step> of"),
        (run_train, ["--max_steps", "0"], "--max_steps must be at least 1, got 0"),
        (run_train, ["--prefix_length", "0"], "--prefix_length must be at least 1, got 0"),
        (run_train, ["--refresh", "sometimes"], "--refresh sometimes: expected epoch, never, or a number of epochs"),
        (run_train, ["--lr_scheduler_type", "cosin"], "; did you mean cosine?"),
        (run_train, ["--report_to", "wandb,tensorbord"], "; did you mean tensorboard?"),
        (run_train, ["--output_dir", "configs/demo.yaml/x"], "configs/demo.yaml is a file; name a folder"),
        (run_evaluation, ["--table", "7"], "--table [7]: expected some of [1, 3, 4, 5]"),
        (run_evaluation, ["--table", "x"], "--table: expected a whole number, found 'x'"),
        (run_evaluation, ["--bootstrap", "-1"], "--bootstrap -1: expected 0 or more"),
        (run_evaluation, ["--cache_dtype", "int8"], "--cache_dtype: invalid choice: 'int8'"),
        (run_train, ["--num_proc", "0"], "--num_proc 0: expected 1 or more"),
        (run_datastore, ["--batch_size", "0"], "--batch_size 0: expected 1 or more"),
        (run_leaks, ["--batch_size", "-1"], "--batch_size -1: expected 1 or more"),
        (run_prepare, ["--num_proc", "0"], "--num_proc 0: expected 1 or more"),
        (run_datastore, ["--storage", "int4"], "--storage: invalid choice: 'int4'"),
        (run_leaks, ["--splits", "train"], "--splits train: expected two or more, each once"),
        (run_leaks, ["--threshold", "1"], "threshold 1"),
        (run_prepare, ["--dedup", "of"], "--dedup: invalid choice: 'of'"),
        (run_prepare, ["--validation", "-1"], "expected no negative sizes"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_option(folder, said, command, words, expected):
    assert expected in said(command, *words)


def test_missing_options_are_named_together(folder, said):
    parse_evaluation = said(parse, evaluation_script.EvaluationArguments, ["--model", "outputs/demo"])
    assert parse_evaluation.endswith("missing --dataset, --output_dir; --help lists the options")
    assert "--output_dir is required, on the command line or in the yaml file" in said(train.main, ["--dataset", "x"])
    assert "expected one of audiostock, musiccaps, " in said(prepare.main, [])
    assert said(prepare.main, ["musicaps"]).endswith("found 'musicaps'; did you mean musiccaps?")
    assert "the following arguments are required: checkpoint" in said(checkpoints.parse_options, [])


def test_hyphens_entries_and_no_are_other_ways_to_say_the_same(folder):
    words = ["--batch-size", "9", "--text-config.n_layer", "5", "--text_config.n_inner=7", "--output-dir=x-y"]
    model_args, _, args = train.parse_arguments(["configs/demo.yaml", *words, "--push-to-hub"])
    assert (args.batch_size, args.output_dir, args.push_to_hub) == (9, "x-y", True)
    assert (model_args.text_config["n_layer"], model_args.text_config["n_inner"]) == (5, 7)
    assert model_args.text_config["n_embd"] == 128
    for words in (["--no_masked"], ["--no-masked"], ["--masked", "false"], ["--masked=no"]):
        (args,) = parse(evaluation_script.EvaluationArguments, [*EVALUATION, *words])
        assert args.masked is False and args.table == [3]


# -- the yaml file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("- dataset", "holds a list: expected a line `option: value` for each option"),
        ("dataset", "holds a str: expected"),
        ("batch_sise: 4", "unknown option batch_sise; did you mean batch_size?"),
        ("yes: 4", "unknown option True; --help lists the options"),
        ("batch_size: 4.5", "batch_size: expected a whole number, found 4.5"),
        ("batch_size: fast", "batch_size: expected a whole number, found 'fast'"),
        ("batch_size:", "batch_size: expected a whole number, found nothing"),
        ("batch_size: true", "batch_size: expected a whole number, found True"),
        ("learning_rate: [1e-3]", "learning_rate: expected a number, found ['1e-3']"),
        ("report_to: yes", "report_to: expected text, found True"),
        ("dataset: 2020-01-01", "dataset: expected text, found datetime.date(2020, 1, 1)"),
        ("push_to_hub: 3.5", "push_to_hub: expected true or false, found 3.5"),
        ("mixed_precision: fp8", "mixed_precision: expected one of no, fp16, bf16, found 'fp8'"),
        ("conditioning: no", "conditioning: expected one of audio+candidate, audio, candidate, found False"),
        ("text_config: 3", "text_config: expected a mapping, found 3"),
        ("dataset: [a", "cannot be read as yaml: line 1, expected ',' or ']'"),
    ],
)
def test_a_mistake_in_a_yaml_file_names_file_key_and_both_sides(folder, said, content, expected):
    Path("mine.yaml").write_text(content)
    line = said(train.main, ["mine.yaml"])
    assert "mine.yaml" in line and expected in line


def test_yaml_says_what_the_command_line_says(folder):
    values = {
        "learning_rate": "1e-3",
        "mixed_precision": False,
        "max_steps": None,
        "output_dir": 3,
        "push_to_hub": "yes",
    }
    Path("mine.yaml").write_text(yaml.safe_dump({"dataset": "a-b", **values}))
    _, data_args, args = train.parse_arguments(["mine.yaml"])
    found = (data_args.dataset, args.learning_rate, args.mixed_precision, args.max_steps, args.output_dir)
    assert found == ("a-b", 1e-3, "no", None, "3") and args.push_to_hub is True


def test_a_missing_yaml_file_is_one_line(folder, said):
    expected = "does not exist: expected a yaml file of options; did you mean configs/demo.yaml?"
    for name in ("configs/dmo.yaml", "config/demo.yaml"):
        assert f"{name} {expected}" in said(train.main, [name])
    Path("folder.yaml").mkdir()
    assert "folder.yaml cannot be read as yaml: " in said(train.main, ["folder.yaml"])


# -- files, folders, models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        (
            run_evaluation,
            ["--leakage", "leakge.json"],
            "--leakage leakge.json does not exist: expected the leakage.json",
        ),
        (run_evaluation, ["--leakage", "outputs"], "--leakage outputs is a folder: expected the leakage.json"),
        (run_evaluation, ["--predictions", "x=p.jsonl"], "--predictions x=p.jsonl: p.jsonl does not exist"),
        (run_evaluation, ["--dataset", "data/demoo"], "--dataset data/demoo does not exist"),
        (run_evaluation, ["--dataset", "data/demo.csv"], "; did you mean data/demo?"),
        (
            run_train,
            ["--demo_clips", "0", "--dataset", "my_music"],
            "or the id of a Hub dataset; the Hub cannot be reached (no network)",
        ),
        (run_train, ["--validation_dataset", "./nowhere"], "--validation_dataset ./nowhere does not exist: expected a"),
        (run_prepare, ["--csv", "data/demo/metadata.cvs"], "--csv data/demo/metadata.cvs does not exist"),
        (run_prepare, ["--csv", "data/demo/metadata.cvs"], "; did you mean data/demo/metadata.csv?"),
        (run_prepare, ["--audio_dir", "dat"], "--audio_dir dat does not exist: expected the folder of the audio files"),
        (run_prepare, ["--audio_dir", "configs/demo.yaml"], "--audio_dir configs/demo.yaml is a file"),
    ],
)
def test_what_an_option_names_in_vain_is_one_line(folder, said, command, words, expected):
    assert expected in said(command, *words)


def test_a_model_that_is_nowhere_is_one_line(folder, said, monkeypatch):
    for option in ("--model", "--audio_only_model", "--clap_model"):
        table = ["--table", "3"] if option == "--audio_only_model" else []
        line = said(run_evaluation, option, "outputs/demoo", *table)
        expected = f"{option} outputs/demoo: no such folder, and the Hub cannot be reached (no network); did you mean "
        assert line.endswith(f"{expected}outputs/demo?{CLAP if option == '--clap_model' else ''}")
    monkeypatch.setattr(options, "file_exists", lambda *of: False)
    for name in ("outputs/demoo", "output/demo", "outputs/demo/x", "../demo"):
        line = said(check_model, "--model", name)
        hub = "the Hub has no model of that name" if name.count("/") == 1 and name[0] != "." else "not an id on the Hub"
        assert f"--model {name}: no such folder, and {hub}" in line
    monkeypatch.setattr(options, "file_exists", lambda *of: True)
    check_model("--model", "somebody/rgmc")
    check_model("--model", "outputs/demo")


def test_a_folder_that_is_no_trained_checkpoint_is_one_line(folder, said):
    line = said(check_model, "--model", str(ROOT))
    assert line.endswith(
        f"--model {ROOT} is the code, without weights: give a trained checkpoint, such as outputs/demo"
    )
    assert "outputs has no config.json: expected a trained checkpoint; did you mean outputs/demo?" in said(
        check_model, "--model", "outputs"
    )
    os.remove("outputs/demo/model.safetensors")
    assert "outputs/demo holds a configuration but no weights" in said(check_model, "--model", "outputs/demo")
    assert "--model configs/demo.yaml is a file: expected the folder or the Hub id" in said(
        check_model, "--model", "configs/demo.yaml"
    )
    check_model("--audio_model", "configs/demo.yaml", may_be_file=True)  # its reader knows whether it is LAION's
    check_model("--audio_model", "lukewys/laion_clap/x.pt", may_be_file=True)


def run_caption(*words: str):
    Path("song.mp3").touch()
    (args,) = parse(CaptionArguments, ["song.mp3", *words], positional="paths")
    find_job(args, find_inputs(args.paths))


@pytest.mark.parametrize("kind", BASELINES)
def test_a_baseline_in_the_place_of_a_model_is_one_line_that_says_where_it_belongs(folder, said, kind):
    BASELINES[kind][0].config_class().save_pretrained("outputs/demo")
    expected = f"outputs/demo is a baseline ({kind}) and no RGMC: `eval.py --baseline {kind}=outputs/demo` scores it"
    training = ["--dataset", "data/demo", "--output_dir", "outputs/new"]
    for command in (run_caption, run_evaluation, lambda *words: train.main([*words, *training])):
        assert f"--model {expected}" in said(command, "--model", "outputs/demo")
    Path("outputs/demo/config.json").write_text('{"model_type": "clap"}')
    assert "is a model of the type clap: expected a trained checkpoint" in said(run_caption, "--model", "outputs/demo")


# -- which errors are the user's --------------------------------------------------------------------------------------


def test_an_error_of_the_program_keeps_its_traceback(folder, monkeypatch):
    def fails():
        return int("x")

    for error in (fails, lambda: {}["key"], lambda: Path("nowhere").read_text(), lambda: yaml.safe_load("[")):
        with pytest.raises((ValueError, KeyError, OSError, yaml.YAMLError)), user_errors():
            error()
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    with pytest.raises(FileNotFoundError), user_errors():
        check_model("--model", "outputs/a/b")


def test_a_script_ends_in_one_line_whatever_it_is_that_the_user_can_mend(folder):
    """Before and after the libraries are loaded: a misspelt option, and a run that is there already."""
    for words, expected in (
        (["--max_step", "2"], "train.py: error: unknown option --max_step; did you mean --max_steps?"),
        (["--overwrite_output_dir", "no"], "train.py: error: outputs/demo holds a run (config.json): "),
    ):
        done = Script("train.py", "configs/demo.yaml", *words, cwd=folder, output=folder / words[0]).wait()
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith(expected)


@pytest.mark.parametrize("line", ["", "import sys; sys.exit(3)"])
def test_a_reader_that_ends_early_ends_a_script_without_a_message(line):
    script = f"from clips.options import user_errors\nwith user_errors():\n    print('a' * 9)\n    {line or 'pass'}"
    first, second = os.pipe()
    os.close(first)  # as `head` does
    try:
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # as usual: written when the script ends
        options = {"cwd": ROOT, "env": buffered, "stdout": second, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run([sys.executable, "-c", script], **options)
    finally:
        os.close(second)
    assert (done.returncode, done.stderr) == (1, "")


def test_of_several_processes_the_main_one_speaks(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err)))
    for rank, expected in (("0", []), ("1", [(options.PATIENCE, "")])):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            fail("a mistake", "train.py")
        assert waited == expected  # the launcher ends those that wait
        assert capsys.readouterr().err == "train.py: error: a mistake\n"


# -- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "dataclasses", "first", "groups"),
    [
        (
            lambda *words: train.parse_arguments([*words], "Trains"),
            None,
            "model",
            ["model", "data", "optimisation", "Hub"],
        ),
        (run_evaluation, evaluation_script.EvaluationArguments, "model, split and report", ["data", "metrics"]),
        (run_datastore, build_datastore.DatastoreArguments, "model, split and datastore", ["data", "retrieval", "Hub"]),
        (run_leaks, find_leaks.LeakageArguments, "splits and report", ["data", "near-duplicates"]),
        (run_prepare, prepare.PrepareArguments, "corpus", ["corpus", "splits", "near-duplicates", "output"]),
    ],
)
def test_help_has_groups_one_spelling_and_each_default_once(capsys, command, dataclasses, first, groups):
    with pytest.raises(SystemExit) as ended:
        command("--help")
    text = capsys.readouterr().out
    assert ended.value.code == 0 and {*groups} <= {*re.findall(r"^(\S[^\n]*):$", text, re.M)}
    assert re.findall(r"^(\S[^\n]*):$", text, re.M)[1] == first
    assert "default: None" not in text and "default: False" not in text
    listed = Counter(re.findall(r"^  (--\S+)", text, re.M))
    assert listed.total() == len(listed) and not any("-" in option[2:] or "--no_" in option for option in listed)
    wanted = (
        [train.ModelArguments, train.DataArguments, train.TrainingArguments] if dataclasses is None else [dataclasses]
    )
    assert {f"--{option.name}" for kind in wanted for option in fields(kind)} <= {*listed}
    for entry in re.split(r"^  (?=--)", text, flags=re.M)[1:]:
        assert entry.count("(default:") <= 1 and "%%" not in entry
    assert {"corpus": "(default: 487)", "model, split and report": "the 95 % intervals"}.get(first, "") in text


def test_options_of_several_scripts_are_the_same_everywhere():
    scripts = [train.DataArguments, evaluation_script.EvaluationArguments, build_datastore.DatastoreArguments]
    shared = {option.name: option for option in fields(CorpusArguments)}
    for script in (*scripts, find_leaks.LeakageArguments):
        own = {option.name: option for option in fields(script)}
        for name, option in shared.items():
            assert own[name].metadata is option.metadata and own[name].default == option.default, (script, name)
    assert CorpusArguments().num_proc == prepare.PrepareArguments("out").num_proc == options.available_cpus()


def test_defaults_of_a_script_replace_those_of_the_fields(capsys):
    @dataclass
    class Arguments:
        group = "some"
        share: float = field(default=0.5, metadata={"help": "100 %% of it."})

    assert parse(Arguments, [], defaults={"share": 0.25})[0].share == 0.25
    with pytest.raises(SystemExit):
        parse(Arguments, ["--help"], defaults={"share": 0.25})
    assert "--share X  " in (text := capsys.readouterr().out) and "100 % of it. (default: 0.25)" in text


@dataclass
class PathArguments:
    group = "files"
    paths: list[str] = field(default_factory=list, metadata={"help": "Files."})
    output: str | None = field(default=None, metadata={"help": "A file."})
    strict: bool = field(default=False, metadata={"help": "Stop."})


def test_paths_may_stand_anywhere_among_the_options(capsys):
    for words, expected in (
        ("a b", PathArguments(["a", "b"])),
        ("a --output o b", PathArguments(["a", "b"], "o")),
        ("--strict a --output=o", PathArguments(["a"], "o", True)),
        ("-", PathArguments(["-"])),
        ("--output o -- -a.ogg --b", PathArguments(["-a.ogg", "--b"], "o")),
        ("", PathArguments()),
    ):
        assert parse(PathArguments, words.split(), positional="paths") == (expected,)
    with pytest.raises(SystemExit):
        parse(PathArguments, ["a", "--ouput", "o"], positional="paths", prog="script.py")
    assert capsys.readouterr().err == "script.py: error: unknown option --ouput; did you mean --output?\n"
    with pytest.raises(SystemExit):
        parse(PathArguments, ["--help"], positional="paths", prog="script.py")
    out = capsys.readouterr().out
    assert "usage: script.py PATH ... --option value ..." in out and re.search(r"^  PATH +Files\.$", out, re.M)
