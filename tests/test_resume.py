"""What a run promises when it is killed, stopped, or out of disk: it resumes as if nothing had happened."""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SPLITS, Script, config_file, read_lines, run, write_corpus
from safetensors.torch import load_file

import train
from training.checkpoints import find_checkpoint, last_checkpoint

EPOCHS = 3
OPTIONS = ["--num_train_epochs", str(EPOCHS), "--max_grad_norm", "1", "--logging_steps", "2"]
# The other tests' models leave these out; here a resumed run must continue its random numbers.
OPTIONS += ["--spec_augment", "true", "--text_config.resid_pdrop", "0.1", "--lr_scheduler_type", "cosine"]
OPTIONS += ["--augment_audio", "true", "--word_loss_weight", "1", "--text_pretraining_steps", "3"]
OPTIONS += ["--candidate_pool", "3", "--candidate_dropout", "0.2", "--prefix_dropout", "0.2", "--own_candidate", "0.2"]
OPTIONS += ["--random_candidate", "0.2", "--candidate_similarity", "true"]
KILLS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), SPLITS)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    """An uninterrupted run. Its folder holds the cache of all other runs."""
    return run(tmp_path_factory.mktemp("whole"), corpus, *OPTIONS)


def timeless(folder: Path) -> list[dict]:
    """The log without times and rates."""
    clocks = ("seconds", "clips_per_second", "tflops_per_second", "mfu")
    return [{name: value for name, value in line.items() if name not in clocks} for line in read_lines(folder)]


def assert_same_run(found: Path, wanted: Path):
    assert timeless(found / "log.jsonl") == timeless(wanted / "log.jsonl")
    assert read_lines(found / "neighbors.jsonl") == read_lines(wanted / "neighbors.jsonl")
    step = max(line["step"] for line in read_lines(wanted / "log.jsonl"))
    for file in ("model.safetensors", f"checkpoint-{step}/model.safetensors", "datastore/embeddings.safetensors"):
        one, two = load_file(found / file), load_file(wanted / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), file
    optimizers = [torch.load(folder / f"checkpoint-{step}" / "optimizer.bin")["state"] for folder in (found, wanted)]
    for one, two in zip(*(state.values() for state in optimizers)):
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def arguments(corpus, whole, tmp_path):
    """The command line of a run that saves each step and resumes from its folder."""

    def get(name: str) -> list[str]:
        argv = [str(config_file(tmp_path, corpus, name)), *OPTIONS, "--cache_dir", str(whole.parent / "cache")]
        return [*argv, "--save_steps", "1", "--save_total_limit", "2", "--resume_from_checkpoint", "last"]

    return get


def test_a_run_killed_at_any_moment_goes_on_to_the_bit(arguments, whole, tmp_path):
    def start(name: str) -> Script:
        return Script("train.py", *arguments(name), output=tmp_path / f"{name}.log")

    start("first").wait()  # which waits for the imports
    started = time.perf_counter()
    start("undisturbed").wait()
    duration = time.perf_counter() - started
    assert_same_run(tmp_path / "undisturbed", whole)
    random, resumed_at = np.random.default_rng(0), []
    steps = last_step(tmp_path / "undisturbed")
    for number in range(KILLS):
        name = f"killed-{number}"
        killed = start(name)
        # From a step and not from a time, because other work on the machine slows a run down.
        while killed.is_alive() and (last_step(tmp_path / name) or 0) < number * steps // KILLS:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 3) * duration / steps)
        killed.kill()
        resumed_at.append(last_step(tmp_path / name))
        assert start(name).wait().returncode == 0
        assert_same_run(tmp_path / name, whole)
    assert len(set(resumed_at)) > 4, resumed_at  # there were kills before, between and after checkpoints


def last_step(folder: Path) -> int | None:
    checkpoint = last_checkpoint(folder)
    return checkpoint and int(checkpoint.name.split("-")[1])


def test_two_processes_resume_where_they_were_killed(arguments, whole, tmp_path):
    def start(name: str) -> Script:
        return Script("train.py", *arguments(name), output=tmp_path / f"{name}.log", world_size=2)

    undisturbed = start("undisturbed").wait()
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = start("killed")
    deadline = time.monotonic() + 240
    while (last_step(tmp_path / "killed") or 0) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    assert 5 <= last_step(tmp_path / "killed") < 12
    resumed = start("killed").wait()
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")


TERMINATED = """
import os, signal, sys
os.setsid()
import torch
import train

step = torch.optim.lr_scheduler.LambdaLR.step

def terminate(self, *args):
    step(self, *args)
    if self.last_epoch == 6:  # steps
        os.killpg(0, signal.SIGTERM)  # as a scheduler does: the loader's workers get it, too

torch.optim.lr_scheduler.LambdaLR.step = terminate
train.main(sys.argv[1:])
"""


def test_sigterm_ends_a_run_with_a_checkpoint_that_goes_on_to_the_bit(arguments, whole, tmp_path):
    argv = arguments("stopped")
    argv[argv.index("--save_steps") + 1] = "1000"
    (tmp_path / "driver.py").write_text(TERMINATED)
    argv += ["--dataloader_num_workers", "2"]
    done = Script(str(tmp_path / "driver.py"), *argv, output=tmp_path / "stopped.log").wait()
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert last_step(tmp_path / "stopped") == 6
    train.main(arguments("stopped"))
    assert_same_run(tmp_path / "stopped", whole)


LIMITED = """
import resource, signal, sys
import train
from training import checkpoints

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = train.save_state

def save_on_a_disk_that_fills_up(output_dir, accelerator, state, *args):
    if state.step == 4:  # of which the log has a line already
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save(output_dir, accelerator, state, *args)

train.save_state = save_on_a_disk_that_fills_up
train.main(sys.argv[1:])
"""


def test_a_full_disk_leaves_the_last_good_checkpoint(arguments, whole, tmp_path):
    (tmp_path / "driver.py").write_text(LIMITED)
    driver = str(tmp_path / "driver.py")
    done = Script(driver, *arguments("full"), output=tmp_path / "full.log").wait()
    assert done.returncode != 0
    assert "checkpoint-4 cannot be written" in done.stderr
    assert "checkpoint-3 is whole: free some space, then run again with --resume_from_checkpoint last" in done.stderr
    assert last_step(tmp_path / "full") == 3
    assert not list((tmp_path / "full").glob(".incomplete*"))
    train.main(arguments("full"))
    assert_same_run(tmp_path / "full", whole)


def test_a_half_written_checkpoint_is_never_picked_up(whole, tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / ".incomplete-checkpoint-3").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    assert find_checkpoint("last", tmp_path) == tmp_path / "checkpoint-2"
    assert find_checkpoint(None, tmp_path) is None
    with pytest.raises(FileNotFoundError, match="is not a checkpoint-<step>"):
        find_checkpoint(str(tmp_path / "checkpoint-2"), tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"):
        find_checkpoint(str(tmp_path / "checkpoint-2"), tmp_path / "elsewhere")


def test_resuming_with_other_options_or_rows_is_refused(arguments, whole, tmp_path):
    train.main([*arguments("run"), "--max_steps", "2"])
    with pytest.raises(ValueError, match=r"learning_rate was 0\.001, is 0\.01"):
        train.main([*arguments("run"), "--learning_rate", "1e-2"])
    with pytest.raises(ValueError, match="another run: clips was"):
        train.main([*arguments("run"), "--max_train_samples", "12"])
    with pytest.raises(FileExistsError, match="resume it with --resume_from_checkpoint last"):
        argv = arguments("run")
        train.main(argv[: argv.index("--resume_from_checkpoint")])


def test_only_the_newest_checkpoints_are_kept(arguments, tmp_path):
    train.main([*arguments("run"), "--max_steps", "5"])
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    assert max(line["step"] for line in read_lines(tmp_path / "run" / "log.jsonl")) == 5


def test_max_steps_within_an_epoch_can_be_raised(arguments, whole, tmp_path):
    argv = arguments("raised")
    argv = argv[: argv.index("--save_steps")] + argv[argv.index("--resume_from_checkpoint") :]
    argv += ["--lr_scheduler_type", "constant"]  # other schedules depend on the number of steps, so resuming is refused
    train.main([*argv, "--max_steps", "6"])
    train.main([*argv, "--max_steps", "12"])
    undisturbed = [argument.replace("raised.yaml", "undisturbed.yaml") for argument in argv]
    arguments("undisturbed")
    train.main([*undisturbed, "--max_steps", "12"])
    assert_same_run(tmp_path / "raised", tmp_path / "undisturbed")


def test_a_run_without_a_checkpoint_begins_anew_when_resumed(arguments, whole, tmp_path):
    argv = arguments("run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")  # a best model was saved, but no checkpoint-<step> yet
    (tmp_path / "run" / ".unfinished").touch()
    train.main(argv)
    assert_same_run(tmp_path / "run", whole)


def test_a_line_of_the_log_that_was_cut_off_does_not_matter(arguments, whole, tmp_path):
    train.main([*arguments("run"), "--max_steps", "12"])
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    train.main([*arguments("run"), "--max_steps", "12"])
    read_lines(tmp_path / "run" / "log.jsonl")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_fails_before_it_has_saved_anything_leaves_the_former_one(corpus, tmp_path, monkeypatch, capsys):
    options = ["--num_train_epochs", "2"]
    folder = run(tmp_path, corpus, *options)
    former = contents(folder)
    again = ["--overwrite_output_dir", "true", "--seed", "1"]
    for step in ("find_neighbors", "train_epoch"):  # while its parts are made, and in its first epoch
        with monkeypatch.context() as patch:
            patch.setattr(train, step, lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(tmp_path, corpus, *again)
        longer = [*options[:1], "3", "--resume_from_checkpoint", "last"]
        with monkeypatch.context() as patch:  # a resumed run finds all that it needs
            patch.setattr(train, "train_epoch", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(tmp_path, corpus, *longer)
        said = capsys.readouterr().out
        restored = f"The last run in {folder} ended before it had saved anything, so the run before it is back"
        assert said.count(restored) == (step == "train_epoch") and f"Resumed from {folder}" in said
        found = contents(folder)
        assert {*found} == {*former}
        assert {name for name in former if found[name] != former[name]} <= {"neighbors.jsonl"}
    run(tmp_path, corpus, *again, "--num_train_epochs", "1")
    assert contents(folder)["model.safetensors"] != former["model.safetensors"]
    assert not [name for name in contents(folder) if name.startswith(".")]
    assert len(list(folder.glob("checkpoint-*"))) == 1


def test_a_finished_model_without_a_checkpoint_is_not_replaced_by_resuming(corpus, tmp_path):
    folder = run(tmp_path, corpus)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    before = contents(folder)
    with pytest.raises(FileExistsError, match="holds a finished model but no checkpoint-<step> to resume from"):
        run(tmp_path, corpus, "--resume_from_checkpoint", "last")
    assert contents(folder) == before
    (folder / ".unfinished").touch()  # killed between its first model and its first checkpoint
    run(tmp_path, corpus, "--resume_from_checkpoint", "last", "--seed", "1")
    assert contents(folder)["model.safetensors"] != before["model.safetensors"]


def test_a_kill_before_the_former_run_is_deleted_leaves_the_new_one(corpus, tmp_path, monkeypatch):
    folder = run(tmp_path, corpus, "--num_train_epochs", "2")
    again = ["--overwrite_output_dir", "true", "--seed", "1", "--num_train_epochs", "2"]
    with monkeypatch.context() as patch:
        patch.setattr("training.checkpoints.end_former_run", lambda folder: 1 / 0)
        patch.setattr(train, "end_former_run", lambda folder: None)
        with pytest.raises((ZeroDivisionError, OSError)):
            run(tmp_path, corpus, *again)
    assert (folder / ".former-run").is_dir()
    run(tmp_path, corpus, *again, "--resume_from_checkpoint", "last")
    assert not (folder / ".former-run").exists()
    assert (
        contents(folder)["model.safetensors"]
        == contents(run(tmp_path, corpus, *again[2:], name="other"))["model.safetensors"]
    )
