"""What a run of prepare.py promises: it can be killed and started again, and says what is wrong and what to do next."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from helpers import MUSICCAPS, ROOT, prepare, read_lines, read_table, write_sound

import corpora.probe
import prepare as prepare_script
import train
from audio_rgmc import probe_audio
from clips.rows import load_captions
from corpora.splits import assign_splits


@pytest.fixture
def tracks(tmp_path):
    """A folder of many sounds beside texts."""
    first = write_sound(tmp_path / "raw/0.wav", 12)
    for number in range(120):
        (tmp_path / f"raw/{number}.txt").write_text(f"caption of number {number}")
        if number:
            shutil.copy(first, tmp_path / f"raw/{number}.wav")
    return tmp_path / "raw"


def test_a_run_killed_while_it_probes_goes_on_and_ends_the_same(tracks, tmp_path, monkeypatch):
    options = ["any", "--source", tracks, "--num_proc", 1, "--output_dir"]
    whole = prepare(*options, tmp_path / "whole")
    known_file = tmp_path / "killed" / "probed.jsonl"
    files = [str(tracks / f"{number}.wav") for number in range(120)]
    code = f"from corpora.probe import *; probe_files({files}, Path({str(known_file)!r}), num_proc=2)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: known_file.is_file() and known_file.stat().st_size > 0, 120)
    process.kill()
    process.wait()
    wait_for(lambda: not is_alive(process.pid), 30)  # its workers, too

    done = len(known_file.read_bytes().splitlines())
    with open(known_file, "a") as file:
        file.write('{"key": "cut in the mid')
    probed = []
    monkeypatch.setattr(corpora.probe, "probe_audio", lambda file: probed.append(file) or probe_audio(file))
    resumed = prepare(*options, tmp_path / "killed")
    assert len(probed) == 120 - done and done > 0
    corpora.probe.probe_files(files, known_file)
    assert len(probed) == 120 - done
    assert read_table(tmp_path / "killed").equals(read_table(tmp_path / "whole"))
    assert {**resumed, "options": None} == {**whole, "options": None}


def wait_for(condition, seconds: float):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_loses_no_finished_file_and_a_changed_one_is_probed_anew(tracks, tmp_path, monkeypatch):
    calls, known_file = [], tmp_path / "probed.jsonl"

    def probe(file):
        calls.append(Path(file).name)
        done = known_file.read_bytes().count(b"\n")
        assert done == len(calls) - 1 or len(calls) > 50  # what is found is written at once
        if len(calls) == 50:
            signal.raise_signal(signal.SIGINT)
        return probe_audio(file)

    monkeypatch.setattr(corpora.probe, "probe_audio", probe)
    files = [str(tracks / f"{number}.wav") for number in range(120)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):
        corpora.probe.probe_files(files, known_file)
    signal.signal(signal.SIGINT, before)
    found = corpora.probe.probe_files(random.Random(0).sample(files, 120), known_file)
    assert len(calls) == 121 and {line["duration"] for line in found} == {12.0}
    write_sound(tracks / "7.wav", 3)
    found = corpora.probe.probe_files(files, known_file)
    assert calls[121:] == ["7.wav"] and found[7]["duration"] == 3.0
    time_of_change = (tracks / "7.wav").stat().st_mtime_ns
    write_sound(tracks / "7.wav", 3, seed=2)  # as large as before
    os.utime(tracks / "7.wav", ns=(time_of_change + 10**9,) * 2)
    corpora.probe.probe_files(files, known_file)
    assert calls[122:] == ["7.wav"]


def test_a_corpus_without_a_usable_row_says_why(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("id,caption\n1,a song\n2,!\n")
    with pytest.raises(ValueError, match=r"no row of 2 can be used .*no_caption.*no_audio.*rejected.jsonl"):
        prepare("any", "--source", tmp_path / "table.csv", "--output_dir", tmp_path / "out")
    assert len(read_lines(tmp_path / "out" / "rejected.jsonl")) == 2
    with pytest.raises(ValueError, match=r"columns id, caption: expected the captions \['text'\]"):
        prepare(
            "any", "--source", tmp_path / "table.csv", "--output_dir", tmp_path / "out", "--caption_columns", "text"
        )
    with pytest.raises(SystemExit):
        prepare_script.main(["audioset"])
    assert "expected one of audiostock, musiccaps, " in capsys.readouterr().err


def printed_command(text: str) -> list[str]:
    """The words of the command that is printed last."""
    return shlex.split(text.rstrip().splitlines()[-1])


def check_command(command: list[str]):
    """Whether train.py finds the splits that a printed command names."""
    assert command[:3] == ["accelerate", "launch", "train.py"]
    model_args, data_args, args = train.parse_arguments([str(ROOT / command[3]), *command[4:]])
    train.check_arguments(model_args, args)
    for split in filter(None, (data_args.train_split, data_args.validation_split, args.test_split)):
        assert len(load_captions(data_args.dataset, split)), split


@pytest.mark.skipif(not MUSICCAPS.is_file(), reason=f"{MUSICCAPS} is not there")
def test_few_clips_of_musiccaps_are_explained_and_the_printed_command_works(tmp_path, capsys):
    table = pandas.read_csv(MUSICCAPS)
    splits = ["test" if held_out else "train" for held_out in table["is_audioset_eval"]]
    splits = assign_splits(list(table["ytid"]), range(len(table)), {"validation": 487}, given=splits)
    rows = dict(zip(splits, table.itertuples()))  # one clip of each split
    names = {split: f"{row.ytid}.wav" for split, row in rows.items()}
    options = ["--csv", MUSICCAPS, "--audio_dir", tmp_path / "clips", "--output_dir", tmp_path / "out"]
    for number, split in enumerate(("train", "test", "validation")):
        write_sound(tmp_path / "clips" / names[split], 10, number)
        prepare("musiccaps", *options)
        text = capsys.readouterr().out
        check_command(command := printed_command(text))
        assert f"{5520 - number:,} of 5,521 rows are left out, such as " in text
        assert text.count("no audio file was found") == text.count("MusicCaps comes without audio.") == 1
        example = re.search(
            r"(\d+) to (\d+) s of https://youtu.be/([\w-]{11}): name it ([\w-]{11}).wav, (\S+).wav", text
        )
        start, end, ytid, named, other = example.groups()
        assert ytid == named and other == f"[{ytid}]-[{start}-{end}]" and f"{ytid}.wav" not in names.values()
        stands_in = ["train", "test", None][number]
        assert ("The split 'validation' is empty: no clip of its 487 rows is there" in text) == (stands_in is not None)
        assert command[command.index("--validation_split") + 1 :][:1] == [stands_in] if stands_in else True
        assert stands_in or "--validation_split" not in command
    (tmp_path / "none").mkdir()
    options[3] = tmp_path / "none"
    with pytest.raises(ValueError, match=r"'no_audio': 5521.*MusicCaps comes without audio"):
        prepare("musiccaps", *options)


def test_the_printed_command_takes_the_splits_that_there_are(tmp_path, capsys):
    for row in range(4):
        write_sound(tmp_path / f"{row}.wav", seed=row)
    lines = ["id,caption,path", *(f"{row},song number {row},{row}.wav" for row in range(4)), "4,lost,4.wav"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    options = ["any", "--source", tmp_path / "table.csv", "--output_dir", tmp_path / "two words"]
    for validation, test in ((1, 1), (1, 0), (0, 1), (0, 0)):
        prepare(*options, "--validation", validation, "--test", test)
        text = capsys.readouterr().out
        check_command(command := printed_command(text))
        assert ("--validation_split" in command) == (validation == 0) and ("--test_split" in command) == (test == 0)
        assert "1 of 5 rows are left out, such as 4: no audio file was found: none in " in text
    (tmp_path / "table.csv").write_text("\n".join(["id,caption,path,split", "0,a song,0.wav,test"]))
    prepare(*options)
    text = capsys.readouterr().out
    assert "There is no training split" in text and "left out" not in text
    command = printed_command(text)
    assert command[:5] == ["accelerate", "launch", "eval.py", "--model", "<checkpoint>"]
    assert command[command.index("--split") + 1] == "test"


def test_what_a_corpus_says_is_no_markup_in_the_reports(tmp_path):
    write_sound(tmp_path / "1.wav")
    row = {"id": "<b>|`x`\n$y$", "caption": "<script>alert(1)</script> R&B", "path": "1.wav"}
    (tmp_path / "table.jsonl").write_text(json.dumps(row))
    prepare("any", "--source", tmp_path / "table.jsonl", "--output_dir", tmp_path / "out", "--license", "<i>")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<b>" not in page and "<i>" not in page and "&lt;b&gt;|`x`" in page
    assert r"| \<b>\|\`x\` \$y\$ |" in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_the_commands_of_the_pages_are_understood():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8") + prepare_script.__doc__
    commands = [shlex.split(command) for command in re.findall(r"python prepare.py (\w+ --(?!help)[^`\n]+)", text)]
    assert {prepare_script.parse_arguments(command)[0] for command in commands} == set(prepare_script.READERS)
    assert len(commands) >= 11
