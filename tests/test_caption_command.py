"""What caption.py promises: the pipeline's captions, any input, and output files that survive anything."""

import functools
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from helpers import CAPTIONS, ROOT, Script, read_lines, saved_pipeline, vary_captions, write_tone

from captions.formats import FORMATS, read_captions, write_captions
from captions.inputs import find_inputs
from captions.job import MAKE_ONE
from captions.ledger import Ledger
from clips.checkpoints import newest_checkpoint
from pipeline_rgmc import MusicCaptioningPipeline
from retrieval_rgmc import CaptionDatastore


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's folder: seven files of music, of which one is silent and one is no sound, and later a checkpoint."""
    folder = tmp_path_factory.mktemp("user")
    for row in range(5):
        write_tone(folder / "music" / f"{row}.wav", 110 * 2 ** (row / 3), seconds=10 + row)
    soundfile.write(folder / "music" / "silent.wav", np.zeros(96_000), 8_000)
    (folder / "music" / "text.mp3").write_text("no music")
    return folder


@pytest.fixture
def captioner(make_model, processor, place):
    """The pipeline of the checkpoint `outputs/demo`, whose captions differ in words and length."""
    model = make_model(max_new_tokens=12)
    vary_captions(model)
    files = [str(place / "music" / f"{row}.wav") for row in range(5)]
    with torch.no_grad():
        embeddings = model.embed_audio(processor(audio=files)["input_features"]).numpy()
    tokens = [processor.encode_candidate(text) for text in CAPTIONS[:5]]
    rows = {"id": list("abcde"), "caption": CAPTIONS[:5], "input_ids": tokens, "license": ["CC0-1.0", *[None] * 4]}
    model.set_datastore(CaptionDatastore(Dataset.from_dict(rows), embeddings, model.encoder_fingerprint()))
    return saved_pipeline(model, processor, place / "outputs" / "demo")


@pytest.fixture
def command(captioner, place, tmp_path, caption_command, monkeypatch):
    """Runs the command in the user's folder, and returns its status and what it prints."""
    monkeypatch.chdir(place)
    return lambda *words: caption_command("--num_proc", 2, *(str(word).replace("OUT", str(tmp_path)) for word in words))


# -- captions ----------------------------------------------------------------------------------------------------------


def test_rows_say_what_the_pipeline_says(command, captioner, place, tmp_path):
    status, out, err = command("music/", "--output", "OUT/rows.jsonl")
    assert status == 1 and not out and "1 of 7 files could not be captioned:\n  music/text.mp3: unreadable" in err
    rows = {row["path"]: row for row in read_lines(tmp_path / "rows.jsonl")}
    assert [*rows] == [*(f"music/{row}.wav" for row in range(5)), "music/silent.wav"]
    silent = rows.pop("music/silent.wav")
    assert (silent["caption"], silent["score"], silent["flags"], silent["candidates"]) == (None, None, ["silence"], [])
    for number, (path, row) in enumerate(rows.items()):
        alone = captioner(str(place / path))
        assert row["caption"] == alone["caption"] and row["score"] == pytest.approx(alone["score"], abs=1e-4)
        (candidate,) = row["candidates"]
        assert candidate["similarity"] == pytest.approx(alone["candidates"][0].pop("similarity"), abs=1e-4)
        assert candidate | alone["candidates"][0] == candidate and candidate["id"] == "abcde"[number]
        assert row["duration"] == 10 + number and row["flags"] == []
        assert row["checkpoint"]["name"] == "outputs/demo" and len(row["checkpoint"]["fingerprint"]) == 16
    assert len({row["caption"] for row in rows.values()}) > 1
    assert not [path.name for path in tmp_path.iterdir() if path.name != "rows.jsonl"]


def test_batches_and_processes_change_nothing(command, tmp_path):
    def rows(*options) -> list[dict]:
        assert command("music", "--output", "OUT/rows.jsonl", "--existing", "overwrite", *options)[0] == 1
        return read_lines(tmp_path / "rows.jsonl")

    expected = rows()
    for options in (["--batch_size", "1"], ["--batch_size", "3", "--num_proc", "1"], ["--num_proc", "5"]):
        for row, other in zip(rows(*options), expected, strict=True):
            assert row.pop("score") == pytest.approx(other["score"], abs=2e-4)
            assert row == {name: value for name, value in other.items() if name != "score"}


def test_captions_alone_go_to_standard_output(command, captioner, place):
    caption_of = " ".join(captioner(str(place / "music/1.wav"))["caption"].split())
    status, out, err = command("music/1.wav")
    assert (status, out) == (0, f"{caption_of}\n")
    assert err == (
        "1 file to caption with outputs/demo (the newest in outputs)\n"
        "This model was trained from scratch on 5 clips; do not expect useful captions of other music.\n"
    )
    status, out, err = command("music/silent.wav", "music/2.wav", "music/1.wav", "--batch_size", "1")
    lines = [line.split("\t") for line in out.splitlines()]
    assert [path for path, _ in lines] == ["music/silent.wav", "music/2.wav", "music/1.wav"]
    assert lines[0][1] == "" and lines[2][1] == caption_of and "1 file without a caption: silence" in err


def test_start_chooses_what_is_heard(command, captioner, place, tmp_path):
    samples, rate = soundfile.read(place / "music/4.wav")
    samples[: 5 * rate] = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * rate)
    soundfile.write(tmp_path / "long.wav", samples, rate)
    soundfile.write(tmp_path / "first.wav", samples[: 10 * rate], rate)
    command("--start", "0", "OUT/long.wav", "--output", "OUT/start.jsonl")
    command("OUT/long.wav", "--output", "OUT/middle.jsonl")
    (start,), (middle,) = (read_lines(tmp_path / f"{name}.jsonl") for name in ("start", "middle"))
    expected = captioner(str(tmp_path / "first.wav"))
    assert start["caption"] == expected["caption"] and start["duration"] == middle["duration"] == 14
    assert start["score"] == pytest.approx(expected["score"], abs=1e-4) != pytest.approx(middle["score"], abs=1e-4)
    status, _, err = command("--start", "12", "OUT/long.wav", "music/0.wav", "--output", "OUT/late.jsonl")
    assert status == 1 and "music/0.wav: start=12.0 s; expected 0 <= start < 10.00 s, its length" in err
    (row,) = read_lines(tmp_path / "late.jsonl")
    assert row["flags"] == ["short"]  # of its 14 s only two are left


def test_selection_is_passed_on(command, monkeypatch):
    from captions.captioner import Captioner

    seen = []
    monkeypatch.setattr(Captioner, "caption", lambda self, *args: seen.append((self.where, self.generate_kwargs)) or [])
    command("music/0.wav", "--selection", "consensus")
    command("music/0.wav", "--where", "3", "--alternatives", "2")
    command("music/0.wav", "--where", "whole")
    assert seen == [("middle", {"selection": "consensus"}), (3, {"num_return_sequences": 2}), ("whole", {})]


def test_windows_and_alternatives_are_those_of_the_pipeline(command, captioner, place, tmp_path):
    options = ["--where", "2", "--alternatives", "3", "--batch_size", "2"]
    command("music", "--output", "OUT/rows.jsonl", *options)
    for row in read_lines(tmp_path / "rows.jsonl")[:5]:
        alone = captioner(str(place / row["path"]), where=2, num_return_sequences=3)
        assert (row["caption"], row["start"]) == (alone["caption"], alone["start"]) and len(row["alternatives"]) == 3
        assert [other["caption"] for other in row["alternatives"]] == [
            other["caption"] for other in alone["alternatives"]
        ]


def test_the_same_audio_is_captioned_once(command, place, tmp_path, monkeypatch):
    """Also in another format, in another batch, and in a later run."""
    samples, rate = soundfile.read(place / "music" / "0.wav")
    files = [str(tmp_path / name) for name in ("a.wav", "b.flac", "c.wav", "d.wav")]
    for path in files[:3]:
        soundfile.write(path, samples, rate, subtype="PCM_16")
    soundfile.write(files[3], 0.5 * samples, rate)
    captioned, forward = [], MusicCaptioningPipeline.forward

    def counting(self, inputs, **kwargs):
        captioned.extend(inputs["about"])
        return forward(self, inputs, **kwargs)

    monkeypatch.setattr(MusicCaptioningPipeline, "forward", counting)
    output = ["--output", "OUT/rows.jsonl", "--existing", "skip", "--batch_size", "2"]
    command(*files, *output)
    assert len(captioned) == 2
    soundfile.write(tmp_path / "e.wav", samples, rate, subtype="PCM_16")
    command(*files, tmp_path / "e.wav", *output)
    assert len(captioned) == 2
    rows = read_lines(tmp_path / "rows.jsonl")
    assert len({row["audio"] for row in rows}) == 2 and len({row["path"] for row in rows}) == 5
    same = [{name: row[name] for name in ("caption", "score", "candidates", "duration", "start")} for row in rows]
    assert same[0] == same[1] == same[2] == same[4]


def test_opposite_phases_are_flagged(command, tmp_path):
    tone, rate = soundfile.read(write_tone(tmp_path / "tone.wav", 220))
    soundfile.write(tmp_path / "opposite.wav", np.stack([tone, -tone], 1), rate)
    soundfile.write(tmp_path / "quiet.wav", tone * 0.003, rate)  # 60 dB below full scale: quiet, but music
    command("OUT/opposite.wav", "OUT/quiet.wav", "--output", "OUT/rows.jsonl")
    opposite, quiet = read_lines(tmp_path / "rows.jsonl")
    assert opposite["flags"] == ["silence", "opposite phase"] and opposite["caption"] is None
    assert quiet["flags"] == [] and quiet["caption"]


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path, monkeypatch):
    for name in ("b/2.MP3", "b/10.flac", "b/cd 2/x.mkv", "a.wav", "b/cover.jpg", "b/.trash/y.mp3", "b/._2.mp3", "odd"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    (tmp_path / "same.mp3").symlink_to(tmp_path / "b" / "2.MP3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_files_and_patterns_are_found_once(library):
    in_b = ["b/10.flac", "b/2.MP3", "b/cd 2/x.mkv"]
    assert [*find_inputs(["b"]).files] == [*find_inputs(["b/"]).files] == in_b
    assert [*find_inputs(["."]).files] == ["a.wav", "same.mp3", "b/10.flac", "b/cd 2/x.mkv"]
    assert [*find_inputs([str(library / "b")]).files] == [str(library / name) for name in in_b]
    assert [*find_inputs(["odd", "b/cover.jpg"]).files] == ["odd", "b/cover.jpg"]  # as they were named
    assert [*find_inputs(["b/*.flac", "**/*.mkv"]).files] == ["b/10.flac", "b/cd 2/x.mkv"]
    found = find_inputs(["a.wav", "b/2.MP3", "same.mp3", "./a.wav", "b"])
    assert [*found.files] == ["a.wav", "b/2.MP3", "b/10.flac", "b/cd 2/x.mkv"] and found.duplicates == 3
    assert found.files["b/2.MP3"] == (7, (library / "b/2.MP3").stat().st_mtime_ns)


def test_lists_tables_and_standard_input_name_files(library, monkeypatch):
    (library / "lists").mkdir()
    lines = f"#EXTM3U\n#EXTINF:1,A\n../a.wav\n\n../b/cd 2\n../gone.mp3\n{library}/odd\n"
    found = ["lists/../a.wav", "lists/../b/cd 2/x.mkv", "lists/../gone.mp3", f"{library}/odd"]
    for name, text in (("p.m3u", lines), ("p.m3u8", "\ufeff" + lines), ("p.txt", lines.partition("A\n")[2])):
        (library / "lists" / name).write_text(text, encoding="utf-8")
        assert [*find_inputs([f"lists/{name}"]).files] == found
    assert find_inputs(["lists/p.txt"]).files["lists/../gone.mp3"] is None
    (library / "lists" / "old.m3u").write_bytes("../Café.mp3".encode("latin-1"))
    assert [*find_inputs(["lists/old.m3u"]).files] == ["lists/../Café.mp3"]
    (library / "lists" / "t.csv").write_text("title,file\nA,../a.wav\nB,\n")
    assert [*find_inputs([], "lists/t.csv", "file").files] == ["lists/../a.wav"]
    with pytest.raises(ValueError, match="no column 'flie': found title, file; did you mean --column file"):
        find_inputs([], "lists/t.csv", "flie")
    for text in ("a.wav\nb\n", "a.wav\0b\0"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert [*find_inputs(["-"]).files] == ["a.wav", "b/10.flac", "b/2.MP3", "b/cd 2/x.mkv"]


def test_standard_input_that_is_not_text_is_an_error_that_says_where(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a.wav\nCafé.mp3\n".encode("latin-1")), "utf-8"))
    with pytest.raises(ValueError, match=r"standard input is not UTF-8: found b'\\xe9' after b'a.wav\\nCaf'"):
        find_inputs(["-"])


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    (tmp_path / "rows.jsonl").write_text("former")
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_captions(tmp_path / "rows.jsonl", [{"path": "a.wav"}, {"path": object()}])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["former"]


def test_paths_that_do_not_exist_are_errors_that_name_them(library):
    for path, words in (("a.wave", "a.wave does not exist; did you mean a.wav"), ("*.ogg", r"\*.ogg matches no file")):
        with pytest.raises(FileNotFoundError, match=words):
            find_inputs(["b", path])
    with pytest.raises(FileNotFoundError, match="download it first"):
        find_inputs(["https://example.org/song.mp3"])


def test_names_that_no_table_can_hold_cost_only_themselves(library):
    os.rename(b"b/10.flac", b"b/\xff.flac")
    for paths in (["b"], [os.fsdecode(b"b/\xff.flac"), "b/2.MP3", "b/cd 2"]):
        found = find_inputs(paths)
        assert [*found.files] == ["b/2.MP3", "b/cd 2/x.mkv"]
        assert found.problems == {"b/\\xff.flac": "its name is not UTF-8; rename it"}


# -- before torch is loaded --------------------------------------------------------------------------------------------

IMPORTS = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    print("status", ended.code, "torch" in sys.modules, file=sys.stderr)
"""


def test_what_there_is_to_do_is_said_before_torch_is_loaded(command, place, tmp_path):
    (tmp_path / "empty").mkdir()
    command("music/0.wav", "music/1.wav", "--output", "OUT/rows.csv")
    done = "0 files to caption with outputs/demo (the newest in outputs); 2 with a caption in OUT/rows.csv"
    for words, said in (
        ("--dry-run music", "7 files to caption with outputs/demo (the newest in outputs)"),
        ("OUT/empty", "nothing to do: no audio or video files found"),
        ("music/1.wav music/0.wav --output OUT/rows.csv --existing skip", done),
    ):
        words = words.replace("OUT", str(tmp_path)).split()
        before = os.times()
        code = f"import sys; sys.argv = {[str(ROOT / 'caption.py'), *words]}\n{IMPORTS}"
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert ended.stderr.splitlines() == [said.replace("OUT", str(tmp_path)), "status 0 False"]
        after = os.times()
        assert after.children_user + after.children_system - before.children_user - before.children_system < 2
        assert len(ended.stdout.splitlines()) == (7 if "--dry-run" in words else 0)


def test_mistakes_end_with_one_line_and_status_2(command, tmp_path, monkeypatch, place):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2,3\n")
    for words, said in (
        ("", "nothing to caption: name files or folders, as in python caption.py song.mp3"),
        ("musik", "musik does not exist; did you mean music?"),
        ("music --output OUT/rows.txt", "expected a file that ends in .jsonl, .csv, .parquet"),
        ("music --output OUT/table.csv", "add --existing skip to caption only what is new or changed"),
        ("music --output OUT/table.csv --existing skip", "row 1 is not a caption of this command (found a, b)"),
        ("music --output OUT/ragged.csv --existing skip", "row 1 is not a caption of this command (found a, b, None)"),
        ("music --output OUT/table.csv/rows.csv", "table.csv is a file; name a folder"),
        ("music --start -1", "--start -1: expected 0 or more seconds"),
        ("music --where end", "--where end: expected middle, whole, or a number of windows from 1 up"),
        ("music --where 2 --start 1", "--start 1 and --where 2: give one of the two"),
        ("music --sidecar kohia", "kohia"),
        ("music --batch_size 0", "--batch_size 0: expected 1 or more"),
        ("music --model outputs/dmo", "did you mean outputs/demo?"),
    ):
        status, out, err = command(*words.split())
        assert status == 2 and not out and err.count("\n") == 1 and said in err, err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "- is read by one process" in command("-")[2]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captions.job.ROOT", tmp_path)
    monkeypatch.setattr("captions.job.BUNDLED", tmp_path / "checkpoints")
    status, _, err = command(place / "music")
    assert status == 2 and "make one with `accelerate launch train.py configs/demo.yaml`" in err
    assert MAKE_ONE in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    assert newest_checkpoint(tmp_path / "outputs") is None
    for age, name in enumerate(("new", "old", "without_weights", "without_processor", "other_model")):
        run = tmp_path / name
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"model_type": "clap" if name == "other_model" else "rgmc"}))
        for file in ("model.safetensors", "processor_config.json"):
            if not file.startswith(name.removeprefix("without_").replace("weights", "model")):
                (run / file).touch()
        os.utime(run / "config.json", (1000, 1000 + age if age > 1 else 1000 - age))
    assert newest_checkpoint(tmp_path) == tmp_path / "new"


# -- output ------------------------------------------------------------------------------------------------------------


def test_all_formats_hold_the_same_rows(command, tmp_path):
    for ending in FORMATS:
        command("music", "--output", f"OUT/rows{ending}")
    jsonl, csv, parquet = (read_captions(tmp_path / f"rows{ending}") for ending in FORMATS)
    assert len(jsonl) == 6 and jsonl == csv == parquet


def test_any_text_survives_any_format(tmp_path):
    texts = ['a,b;"c"\t\'', "two\nlines\r\n", "a\rb", "\u2028 名前 \u0085 😀", "=1+1", "null"]
    candidates = [{"text": text, "id": text, "similarity": 0.5, "source": text, "license": None} for text in texts]
    checkpoint = {"name": "o/m", "revision": "c0ffee", "fingerprint": None}
    rows = [
        {"path": text, "duration": 1.5, "start": 0.25, "caption": text, "score": -0.25, "flags": [text]}
        | {"candidates": candidates, "alternatives": [{"caption": text, "score": -0.5}], "audio": "1"}
        | {"checkpoint": checkpoint, "key": "0"}
        for text in texts
    ]
    for ending in FORMATS:
        write_captions(tmp_path / f"rows{ending}", rows)
        assert read_captions(tmp_path / f"rows{ending}") == rows


def test_existing_rows_are_kept_replaced_or_extended(command, tmp_path):
    output = tmp_path / "rows.jsonl"

    def paths() -> list[str]:
        return [row["path"] for row in read_lines(output)]

    command("music/2.wav", "music/1.wav", "--output", output)
    first = output.read_bytes()
    status, _, err = command("music/1.wav", "--output", output)
    assert status == 2 and "append to add rows, or overwrite to replace them" in err
    assert output.read_bytes() == first
    _, _, err = command("music/0.wav", "music/1.wav", "--output", output, "--existing", "skip")
    assert "1 file to caption" in err and "1 with a caption in" in err
    assert paths() == ["music/2.wav", "music/1.wav", "music/0.wav"] and output.read_bytes().startswith(first)
    command("music/1.wav", "--output", output, "--existing", "append")
    assert paths() == ["music/2.wav", "music/1.wav", "music/0.wav", "music/1.wav"]
    command("music/1.wav", "--output", output, "--existing", "overwrite")
    assert paths() == ["music/1.wav"]


def test_a_changed_file_setting_or_model_makes_rows_stale(command, captioner, place, tmp_path):
    files = [write_tone(tmp_path / f"{row}.wav", 200 + 100 * row, seconds=12) for row in range(3)]
    options = [*files, "--output", tmp_path / "rows.jsonl", "--existing", "skip"]

    def stale(*more) -> int:
        _, _, err = command(*options, *more)
        (count,) = [int(part.split()[0]) for part in err.split("; ") if "again, because" in part] or [0]
        assert [row["path"] for row in read_lines(tmp_path / "rows.jsonl")] == [*map(str, files)]
        return count

    assert (stale(), stale()) == (0, 0)
    before = read_lines(tmp_path / "rows.jsonl")
    write_tone(files[1], 900, seconds=12)
    os.utime(files[2], ns=(1, 1))
    assert stale() == 2 and stale() == 0
    after = read_lines(tmp_path / "rows.jsonl")
    assert after[0] == before[0] and after[1]["candidates"] != before[1]["candidates"]
    assert stale("--start", "0") == 3
    captioner.model.mapper.linear1.weight.data *= 2
    captioner.save_pretrained(tmp_path / "other")
    assert stale("--start", "0", "--model", tmp_path / "other") == 3 and stale("--start", "0") == 3


def test_strict_stops_at_the_first_bad_file(command, tmp_path):
    status, _, err = command("music/text.mp3", "music/1.wav", "--strict", "--batch_size", "1", "--output", "OUT/r.csv")
    assert status == 1 and err.splitlines()[-1].startswith("music/text.mp3: unreadable")
    assert not (tmp_path / "r.csv").exists()


def test_an_interruption_says_how_to_go_on(command, tmp_path, monkeypatch):
    record, calls = Ledger.record, []

    def interrupted(self, *args):
        record(self, *args)
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    options = ["music", "--output", "OUT/rows.jsonl", "--batch_size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", interrupted)
        status, _, err = command(*options)
    assert status == 130
    assert err.endswith(f"kept in {tmp_path}/rows.jsonl.partial, and the same command resumes\n")
    status, _, err = command(*options)
    assert status == 1 and "4 captioned by an interrupted run" in err and "3 files to caption" in err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


# -- sidecars and tags -------------------------------------------------------------------------------------------------


def songs(folder: Path, count: int = 3) -> list[Path]:
    """Songs as FLAC, which has tags."""
    paths = []
    for row in range(count):
        samples, rate = soundfile.read(write_tone(folder / "tone.wav", 110 * 2 ** (row / 3), seconds=10 + row))
        paths.append(folder / f"{row}.flac")
        soundfile.write(paths[-1], samples, rate)
    (folder / "tone.wav").unlink()
    return paths


def test_sidecars_are_written_kept_and_renewed(command, tmp_path):
    files = songs(tmp_path / "songs")
    options = [*files, "--output", "OUT/rows.jsonl", "--sidecar", "kohya"]
    assert command(*options)[0] == 0
    rows = read_lines(tmp_path / "rows.jsonl")
    texts = [path.with_suffix(".txt") for path in files]
    assert [path.read_text().strip() for path in texts] == [" ".join(row["caption"].split()) for row in rows]
    (tmp_path / "rows.jsonl").unlink()
    status, _, err = command(*options)
    assert status == 2 and "0.txt is there already (3 of 3)" in err and not (tmp_path / "rows.jsonl").exists()
    texts[0].write_text("by hand")
    texts[1].unlink()
    status, _, err = command(*options, "--existing", "skip")
    assert texts[0].read_text() == "by hand" and "1 file beside the songs kept" in err and texts[1].exists()
    status, _, err = command(files[2], *options[-4:], "--existing", "skip", "--start", "0")  # a stale row's is ours
    assert "kept" not in err
    last = read_lines(tmp_path / "rows.jsonl")[2]
    assert texts[2].read_text().strip() == " ".join(last["caption"].split())


def test_a_part_of_a_folder_leaves_the_rest_in_its_table(command, tmp_path):
    files = songs(tmp_path / "songs")
    options = ["--output", "OUT/rows.csv", "--sidecar", "audiofolder", "--existing", "skip"]
    command(*files, *options)
    table = (tmp_path / "songs" / "metadata.csv").read_text()
    assert len(table.splitlines()) == 4
    command(files[1], *options)
    assert (tmp_path / "songs" / "metadata.csv").read_text() == table


def test_tagged_files_are_not_captioned_again(command, tmp_path):
    files = songs(tmp_path / "songs")
    options = [*files, "--output", "OUT/rows.jsonl", "--existing", "skip", "--tags"]
    assert command(*options)[0] == 0
    rows = read_lines(tmp_path / "rows.jsonl")
    for path, row in zip(files, rows, strict=True):
        assert mutagen.File(path)["RGMC_CAPTION"] == [" ".join(row["caption"].split())]
    written = (tmp_path / "rows.jsonl").read_bytes()
    _, _, err = command(*options)
    assert "0 files to caption" in err and (tmp_path / "rows.jsonl").read_bytes() == written
    assert command(*files, "--remove_tags")[0] == 0
    assert not any("RGMC_CAPTION" in (mutagen.File(path).tags or {}) for path in files)
    status, _, err = command("music/0.wav", "--tags")
    assert status == 1 and "not tagged: music/0.wav: tags are written to mp3, flac, ogg, opus and m4a only" in err


def test_a_run_killed_while_tagging_captions_nothing_again(command, tmp_path, monkeypatch):
    files = songs(tmp_path / "songs")
    options = [*files, "--output", "OUT/rows.jsonl", "--tags"]
    replace = os.replace

    def killed(moment, source, target):
        if str(target).endswith(moment):
            raise KeyboardInterrupt
        replace(source, target)

    for moment in ("1.flac", "rows.jsonl"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", functools.partial(killed, moment))
            assert command(*options)[0] == 130
        assert not (tmp_path / "rows.jsonl").exists()
    monkeypatch.setattr("captions.captioner.Captioner.caption", None)  # not called
    assert command(*options)[0] == 0
    assert len(read_lines(tmp_path / "rows.jsonl")) == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.flac", "1.flac", "2.flac", "rows.jsonl", "songs"]


# -- two runs ----------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from caption import lock_output
with lock_output(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(100)
"""


def test_a_second_run_to_the_same_output_is_told_before_it_starts(command, tmp_path):
    output = tmp_path / "rows.jsonl"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"locked\n"
        status, _, err = command("music/1.wav", "--output", output)
        assert status == 2 and "rows.jsonl is being written by another run (process " in err and err.count("\n") == 1
        assert command("music/1.wav", "--output", output, "--dry_run")[0] == 0
        assert command("music/1.wav", "--output", tmp_path / "others.jsonl")[0] == 0
    finally:
        other.kill()
        other.wait()
    assert (tmp_path / ".rows.jsonl.lock").exists()  # of the killed run: it does not keep anybody out
    assert command("music/1.wav", "--output", output)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["others.jsonl", "rows.jsonl"]


# -- kills -------------------------------------------------------------------------------------------------------------

# Runs the command in forked processes, of which one is killed: at the n-th write, rename or deletion, before, in or
# after it, or after some time. Then it runs again.
KILLS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import caption, captions.captioner
from captions import ledger
from captions.captioner import Captioner
from clips.options import parse

words, folder, points, before = json.loads(sys.argv[1])
folder = Path(folder)
output = folder / "rows.jsonl"
steps = 0

def tick():
    global steps
    steps += 1
    if steps == point:
        os.kill(os.getpid(), signal.SIGKILL)

def around(function):
    def call(*args, **kwargs):
        tick()
        result = function(*args, **kwargs)
        tick()
        return result
    return call

def record(self, rows, process=0):
    journal = Path(f"{self.output}.partial")
    text = ledger._line({"rows": rows})
    for part in ("", text[: len(text) // 2], text[len(text) // 2 :]):
        with journal.open("a") as file:
            file.write(part)
        tick()

def caption_batch(self, batch, original=Captioner._caption_batch):
    with (folder / "captioned").open("a") as file:
        file.write("".join(path + "\\n" for path in batch if not path.endswith(".mp3")))
    return original(self, batch)

def start():
    child = os.fork()
    if child:
        return child
    os.replace, Path.unlink = around(os.replace), around(Path.unlink)
    ledger.Ledger.record, Captioner._caption_batch = record, caption_batch
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        caption.run(*parse(caption.CaptionArguments, words, positional="paths"))
        (folder / "steps").write_text(str(steps))
    finally:
        os._exit(0)

def captioned():
    file = folder / "captioned"
    found = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return found

def prepare():
    output.unlink(missing_ok=True)
    if before is not None:
        output.write_text(before)

point = 0
taken = float("inf")
for _ in range(2):  # the first run is slower
    prepare()
    begun = time.monotonic()
    os.waitpid(start(), 0)
    taken = min(taken, time.monotonic() - begun)
wanted = output.read_bytes()
captioned()
total = int((folder / "steps").read_text())
(folder / "steps").unlink()
for choice in points:
    prepare()
    point = choice % total + 1 if isinstance(choice, int) else 0
    child = start()
    if not point:
        time.sleep(0.8 * choice * taken)  # what is later may come after the end
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    journal = Path(f"{output}.partial")
    lines = ledger._whole_lines(journal) if journal.exists() else []
    kept = [row["path"] for line in lines for row in line.get("rows", ())]
    captioned()
    (folder / "steps").unlink(missing_ok=True)
    finished = output.exists() and output.read_bytes() == wanted
    point = 0
    if not (finished and not journal.exists()):
        os.waitpid(start(), 0)
    (folder / "steps").unlink(missing_ok=True)
    again = captioned()
    print(json.dumps({
        "point": choice, "killed": os.WIFSIGNALED(status), "same": output.read_bytes() == wanted, "rows": len(kept),
        "twice": [path for path in again if path in kept], "captioned": len(again), "finished": finished,
        "stray": [path.name for path in folder.iterdir() if path != output],
    }))
"""


def killed_runs(place: Path, folder: Path, points: list, existing: str, before: str | None) -> list[dict]:
    words = ["music", "--output", str(folder / "rows.jsonl"), "--batch_size", "2", "--num_proc", "1"]
    settings = json.dumps([[*words, "--existing", existing], str(folder), points, before])
    driver = folder.parent / "driver.py"
    driver.write_text(KILLS)
    ended = Script(str(driver), settings, cwd=place, output=folder.parent / "log").wait(500)
    assert ended.returncode == 0, ended.stderr
    runs = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(runs) == len(points)
    for run in runs:
        assert run["same"] and not run["twice"] and not run["stray"], run
        if not run["finished"]:
            assert run["captioned"] == 6 - run["rows"] or existing == "skip", run
    return runs


def written_before(command, tmp_path) -> str:
    """An output file with a row that holds, one that is stale, and one of a file that is not among the inputs."""
    command("music/1.wav", "music/2.wav", "music/3.wav", "--output", "OUT/before.jsonl")
    rows = read_lines(tmp_path / "before.jsonl")
    rows[1]["key"], rows[2]["path"] = "other", "elsewhere.wav"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# In the journal's line of the first batch, after that of the second, before the output is replaced, and after it.
@pytest.mark.parametrize("existing, points", [("error", [3, 7, -6, -3]), ("skip", [7]), ("append", [-3])])
def test_a_killed_run_ends_as_an_undisturbed_one(command, place, tmp_path, existing, points):
    before = None if existing == "error" else written_before(command, tmp_path)
    folder = tmp_path / "killed"
    folder.mkdir()
    for run in killed_runs(place, folder, points, existing, before):
        assert run["killed"] and run["finished"] == (run["point"] == -3)
        assert run["rows"] >= {3: 0, 7: 2, -6: 5, -3: 5}[run["point"]]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one(command, place, tmp_path):
    draw = random.Random(0)
    (tmp_path / "killed").mkdir()
    runs = killed_runs(place, tmp_path / "killed", [draw.random() for _ in range(20)], "error", None)
    assert sum(run["killed"] for run in runs) > 15


# -- several processes -------------------------------------------------------------------------------------------------


def test_two_processes_write_what_one_writes(command, place, tmp_path):
    command("music", "--output", "OUT/one.jsonl", "--batch_size", "2")
    words = ["music", "--output", str(tmp_path / "two.jsonl"), "--batch_size", "2", "--num_proc", "1"]
    said = Script("caption.py", *words, cwd=place, output=tmp_path / "log", world_size=2).wait().stderr
    assert said.count("7 files to caption") == 1 and said.count("music/text.mp3: unreadable") == 1
    assert "4/4 [" in said  # two of the four batches, by the main process
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert not [*tmp_path.glob("*.partial*"), *tmp_path.glob("*.unfinished")]
