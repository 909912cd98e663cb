"""What prepare_script.py promises: from raw corpora to folders that train.py takes, with every row accounted for."""

import json
import os
import random
import shutil
from collections import defaultdict
from pathlib import Path

import datasets
import pandas
import pytest
from helpers import CAPTIONS, MUSICCAPS, config_file, prepare, read_lines, read_table, write_sound
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare as prepare_script
import train
from clips.rows import load_captions
from corpora.splits import assign_splits, group_rows, natural_key
from corpora.steps import mark_clusters

LONG = "a calm piece of piano music that was recorded in a large hall at night"


def found(report: dict) -> dict[str, int]:
    return {name: split["found"] for name, split in report["splits"].items()}


def train_once(folder: Path, tmp_path: Path):
    train.main([str(config_file(tmp_path, folder, "checkpoint")), "--max_steps", "1", "--num_sample_captions", "0"])
    assert read_lines(tmp_path / "checkpoint" / "log.jsonl")[-1]["step"] == 1
    assert not (tmp_path / "checkpoint" / "skipped.jsonl").exists()


# -- Audiostock -------------------------------------------------------------------------------------------------------


@pytest.fixture
def audiostock(tmp_path):
    """Real shapes of JSON, and what goes wrong in a scrape of 250,000 tracks."""
    raw = tmp_path / "raw"

    def add(stem: str, content, sound: str | None = ".flac"):
        path = raw / f"{stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
        if sound:
            write_sound(raw / f"{stem}{sound}", seed=len(stem))

    original = {"title": "静かな夜", "id": 100, "URL": "https://audiostock.net/audio/100", "impression": "calm, sad"}
    tags = {"tag": ["piano", "solo"], "original_data": {**original, "purpose": ["film"], "scene": "night"}}
    add("a/1", {"text": [f"{LONG} Version 10", "A long text."], **tags})
    add("a/2", {"text": [LONG], "tag": "piano,solo", "original_data": {"id": "20"}})
    add("a/3", {"text": f"{LONG}, version 9", "original_data": {"id": 9}})
    (raw / "a/3.flac").write_bytes(b"no sound")  # the smallest id of its cluster cannot be used
    add("a/4", {"short_text": "Café “Déjà-vu” ♪ 琴", "long_text": "…", "tags": ["koto"]}, ".ogg")
    add("b/4", {"text": ["same stem in another folder"]}, ".mp3")
    add("b/5", {"text": ["no sound beside it"]}, None)
    add("b/6", '{"text": ["cut in the mid')
    add("b/7", ["a list"])
    add("b/8", {"text": ["!!! …"]})
    add("b/10", {"text": ["the id again"], "original_data": {"id": 100}}, None)  # the row with a sound is kept
    add("b/11", {"text": []})
    write_sound(raw / "b/12.wav")
    write_sound(raw / "a/1.wav")
    for number, caption in enumerate(CAPTIONS):
        add(f"c/{1000 + number}", {"text": [caption.title() + "."], "tag": [], "original_data": None})
    return raw


def test_an_audiostock_tree_becomes_a_corpus_and_is_trained_on(audiostock, tmp_path):
    folder = tmp_path / "data" / "audiostock"
    report = prepare("audiostock", "--raw_dir", audiostock, "--output_dir", folder, "--validation", 2, "--test", 3)
    assert report["listed"] == 19 and report["kept"] == 11
    kinds = {"no_audio": 1, "broken_json": 2, "no_caption": 2, "double_id": 1, "duplicate": 1, "broken_audio": 1}
    assert report["rejected"] == {**kinds, "no_json": 1, "second_file": 1}
    assert found(report) == {
        "train": 6,
        "validation": 2,
        "test": 3,
    }
    assert report["clusters"]["clusters"] == 1 and report["clusters"]["largest"][0]["rows"] == 3

    table = read_table(folder)
    assert set(table["id"]) == {"20", "a/4", "b/4", *map(str, range(1000, 1008))}  # 9 is broken, and 20 before 100
    assert (
        table.loc["a/4", "caption"] == "Café “Déjà-vu” ♪ 琴"  # that the processor normalises
        and table.loc["a/4", "caption_original"] == "Café “Déjà-vu” ♪ 琴"
    )
    assert list(table.loc["a/4", "tags"]) == ["koto"] and list(table.loc["20", "tags"]) == ["piano", "solo"]
    (duplicate,) = [line for line in read_lines(folder / "rejected.jsonl") if line["kind"] == "duplicate"]
    assert duplicate["id"] == "100" and " 20 " in duplicate["reason"]
    for split in report["splits"]:
        rows = load_captions(str(folder), split)
        assert rows["captions"][:] == [[table.loc[row_id, "caption"]] for row_id in rows["id"]]
        assert all(os.path.isfile(audio["path"]) for audio in rows["audio"])
    for name in ("report.md", "report.html"):
        assert "audio that cannot be decoded" in (folder / name).read_text("utf-8")
    assert (folder / "report.html").read_text("utf-8").count("data:image/png;base64,") == 5
    train_once(folder, tmp_path)


def test_tags_of_audiostock_stay_as_columns(audiostock, tmp_path):
    shutil.rmtree(audiostock / "b")
    prepare("audiostock", "--raw_dir", audiostock, "--output_dir", tmp_path / "out", "--dedup", "mark")
    row = read_table(tmp_path / "out").loc["100"]
    lists = {name: list(row[name]) for name in ("tags", "purpose", "impression", "scene")}
    assert lists == {"tags": ["piano", "solo"], "purpose": ["film"], "impression": ["calm", "sad"], "scene": ["night"]}
    assert (row["title"], row["caption_long"], row["source"]) == (
        "静かな夜",
        "A long text.",
        "https://audiostock.net/audio/100",
    )
    assert row["cluster"] == "9" and (row["duration"], row["sampling_rate"]) == (1.0, 8000)


def test_json_as_laion_writes_it(tmp_path):
    """No id but that of the URL, NaN where pandas had nothing, numbers that start again in each folder."""
    for number, stem in ((1150592, "train/0"), (73107, "test/0"), (73107, "test/1")):
        original = {"title": "Audiostock dataset", "URL": f"https://audiostock.net/audio/{number}/play"}
        original |= {"scene": float("nan"), "purpose": "Video"}
        content = {"text": [f"Bubble {number}"], "tag": ["foam", None], "original_data": original}
        write_sound(tmp_path / f"raw/{stem}.flac")
        (tmp_path / f"raw/{stem}.json").write_text(json.dumps(content))
    write_sound(tmp_path / "raw/9.WAV.flac").rename(tmp_path / "raw/9.FLAC")
    (tmp_path / "raw/9.JSON").write_text('{"id": 0, "text": null, "short_text": "Upper case", "long_text": ""}')
    (tmp_path / "raw/8.json").write_text('{"text": ["half a \\ud83d"]}')
    report = prepare("audiostock", "--raw_dir", tmp_path / "raw", "--output_dir", tmp_path / "out")
    assert report["rejected"] == {"broken_json": 1, "double_id": 1}
    table = read_table(tmp_path / "out")
    assert dict(table["caption"]) == {"0": "Upper case", "73107": "Bubble 73107", "1150592": "Bubble 1150592"}
    lists = {name: list(table.loc["73107", name]) for name in ("tags", "purpose", "impression", "scene")}
    assert lists == {"tags": ["foam"], "purpose": ["Video"], "impression": [], "scene": []}
    with pytest.raises(FileNotFoundError, match=r"holds no .json: .* unpack archives"):
        prepare("audiostock", "--raw_dir", tmp_path / "out" / "plots", "--output_dir", tmp_path / "again")


# -- MusicCaps, Song Describer ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not MUSICCAPS.is_file(), reason=f"{MUSICCAPS} is not there")
def test_musiccaps_has_its_own_splits_whatever_clips_are_there(tmp_path):
    table = pandas.read_csv(MUSICCAPS)
    splits = ["test" if held_out else "train" for held_out in table["is_audioset_eval"]]
    splits = assign_splits(list(table["ytid"]), range(len(table)), {"validation": 487}, seed=3, given=splits)
    ids = defaultdict(list)
    for ytid, split in zip(table["ytid"], splits):
        if ytid[0] in "-_" or split != "test":
            ids[split].append(ytid)
    start = dict(zip(table["ytid"], table["start_s"]))
    a, b, c, d, e = ids["train"][:5]
    v, w = ids["validation"][:2]
    x, y = ids["test"][:2]
    names = [f"{a}.wav", f"[{b}]-[{start[b]}-{start[b] + 10}].wav", f"{c}_{start[c]}_{start[c] + 10}.flac"]
    names += [f"Y{d}_{start[d]}.000_{start[d] + 10}.000.wav", f"My Song [{v}].wav", f"My-Song-{w}.ogg", f"sub/Y{x}.wav"]
    names += [f"{y}_{1000 * start[y]}_{1000 * start[y] + 10000}.wav"]
    for seed, name in enumerate(names):
        write_sound(tmp_path / "clips" / name, 10, seed)
    write_sound(tmp_path / "clips" / f"{e}.wav", 31)  # the whole video
    for name in (f"{ids['test'][2]}_{start[ids['test'][2]] + 1}.wav", "abcdefghijk.wav", f"Copy [{a}].wav"):
        write_sound(tmp_path / "clips" / name)

    folder = tmp_path / "musiccaps"
    options = ["--csv", MUSICCAPS, "--audio_dir", tmp_path / "clips", "--output_dir", folder, "--seed", 3]
    report = prepare("musiccaps", *options)
    assert report["listed"] == 5521
    assert report["rejected"] == {"no_audio": 5521 - 9, "not_the_clip": 1, "other_file": 3}
    assert report["splits"] == {
        "train": {"found": 4, "total": 2663 - 487},
        "validation": {"found": 2, "total": 487},
        "test": {"found": 2, "total": 2858},
    }
    prepared = read_table(folder)
    assert dict(zip(prepared["id"], prepared["split"])) == {
        **dict.fromkeys((a, b, c, d), "train"),
        **dict.fromkeys((v, w), "validation"),
        **dict.fromkeys((x, y), "test"),
    }
    for row in prepared.to_dict("records"):
        assert Path(row["file_name"]).name in {Path(name).name for name in names} and row["id"] in row["file_name"]
        assert len(row["aspect_list"]) and all(isinstance(aspect, str) for aspect in row["aspect_list"])
    train_once(folder, tmp_path)


def test_song_describer_gives_all_references_of_a_track_for_evaluation(tmp_path):
    lines = ["caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration"]
    texts = [
        ("1004034", "A Calm song.", True),
        ("1004034", "Slow; soft", True),
        ("77", "Rock!", True),
        ("5", "x", False),
    ]
    for number, (track, text, valid) in enumerate(texts):
        lines.append(f"{number},{track},{text},{valid},0,artist_1,album_1,{track[-2:]}/{track}.mp3,240")
        write_sound(tmp_path / "audio" / f"{track[-2:]}/{track}.2min.mp3", 2)
    (tmp_path / "song_describer.csv").write_text("\n".join(lines))
    options = ["song_describer", "--csv", tmp_path / "song_describer.csv", "--audio_dir", tmp_path / "audio"]
    report = prepare(*options, "--valid_subset", "true", "--output_dir", tmp_path / "out")
    assert (
        report["merged"] == 1 and report["rejected"] == {"not_valid_subset": 1} and list(report["splits"]) == ["test"]
    )
    rows = load_captions(str(tmp_path / "out"), "test")
    assert dict(zip(rows["id"], rows["captions"])) == {"77": ["Rock!"], "1004034": ["A Calm song.", "Slow; soft"]}
    assert read_table(tmp_path / "out").loc["77", "duration"] < 3  # not the track's 240 s
    report = prepare(*options, "--output_dir", tmp_path / "all")
    assert (report["listed"], report["kept"], report["rejected"]) == (4, 3, {})


# -- tables, folders, datasets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "bytes", "audiofolder", "txt", "saved"])
def test_a_corpus_of_any_kind(kind, tmp_path):
    raw = tmp_path / "raw"
    texts = {"one": "A Slow Song!", "two": "Fast, loud", "three": "3rd: odd"}
    sounds = [str(write_sound(raw / f"{name}.wav", seed=seed)) for seed, name in enumerate(texts)]
    names = [f"{name}.wav" for name in texts]
    table = pandas.DataFrame(
        {"key": list(texts), "words": list(texts.values()), "path": names, "audio": ["x", "y", "z"]}
    )
    options = ["--source", raw / f"table.{kind}", "--id_column", "key", "--caption_columns", "words"]
    options += ["--file_column", "path"]
    rows = datasets.Dataset.from_dict({"key": table["key"], "words": table["words"], "audio": sounds})
    rows = rows.cast_column("audio", datasets.Audio())
    if kind == "csv":
        table.to_csv(raw / "table.csv", index=False)
    elif kind == "jsonl":
        table.to_json(raw / "table.jsonl", orient="records", lines=True)
    elif kind == "parquet":
        table.to_parquet(raw / "table.parquet")
    elif kind in ("bytes", "saved"):
        rows = rows.cast_column("audio", datasets.Audio(decode=False))
        held = [{"path": name, "bytes": Path(sound).read_bytes()} for name, sound in zip(names, sounds)]
        rows = rows.remove_columns("audio").add_column("audio", held)
        if kind == "saved":
            rows.cast_column("audio", datasets.Audio()).save_to_disk(tmp_path / "saved")
        else:
            rows.to_parquet(tmp_path / "table.parquet")
        options[1] = tmp_path / ("saved" if kind == "saved" else "table.parquet")
        options[-1] = "audio"
    elif kind == "audiofolder":
        for number, split in enumerate(("train", "val", "test")):
            (tmp_path / "folder" / split).mkdir(parents=True)
            shutil.copy(sounds[number], tmp_path / "folder" / split / "0.wav")
            text = f'file_name,key,words\n0.wav,{table["key"][number]},"{table["words"][number]}"\n'
            (tmp_path / "folder" / split / "metadata.csv").write_text(text)
        options[1], options[-1] = tmp_path / "folder", "file_name"
    else:
        for name, text in texts.items():
            (raw / f"{name}.txt").write_text(text)
        options = ["--source", raw]
    report = prepare("any", *options, "--output_dir", tmp_path / "out", "--validation", 1, "--test", 1)
    assert found(report) == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }
    rows = [row for split in report["splits"] for row in load_captions(str(tmp_path / "out"), split)]
    assert {row["id"]: row["captions"] for row in rows} == {
        "one": ["A Slow Song!"],
        "two": ["Fast, loud"],
        "three": ["3rd: odd"],
    }
    for row in rows:
        assert Path(row["audio"]["path"]).read_bytes() == (raw / f"{row['id']}.wav").read_bytes()


def test_pseudo_captions_are_references_of_one_clip(tmp_path):
    names = ["caption_writing", "caption_summary", "caption_paraphrase"]
    table = pandas.DataFrame(
        {"track_id": ["TRA", "TRB"], "tag": [["pop"], ["folk", "calm"]], "path": ["f/a.mp3", None]}
    )
    table = table.assign(**{name: [f"{name} 1", ""] for name in names})
    table.loc[1, "caption_summary"] = "only one"
    table.to_parquet(tmp_path / "table.parquet")
    write_sound(tmp_path / "audio/f/a.mp3", 2)
    write_sound(tmp_path / "audio/x/TRB.clip.mp3", 2)
    options = ["--source", tmp_path / "table.parquet", "--audio_dir", tmp_path / "audio"]
    report = prepare("lp_musiccaps", *options, "--output_dir", tmp_path / "out")
    assert list(report["splits"]) == ["train"] and report["notes"]["some of its captions have no words"] == 1
    rows = load_captions(str(tmp_path / "out"), "train")
    assert dict(zip(rows["id"], rows["captions"])) == {"TRA": [f"{name} 1" for name in names], "TRB": ["only one"]}


def test_pseudo_captions_of_musiccaps_are_found_by_their_files_names(tmp_path):
    ytids = ["-0Gj8-vB1q4", "abcdefghijk", "a_b-c_30_40"]
    table = pandas.DataFrame({"ytid": ytids, "fname": [f"[{ytid}]-[30-40]" for ytid in ytids]})
    table = table.assign(caption_writing="a", caption_summary="b", caption_paraphrase="c")
    table.to_parquet(tmp_path / "table.parquet")
    for name in table["fname"]:
        write_sound(tmp_path / f"audio/{name}.wav")
    options = ["--source", tmp_path / "table.parquet", "--audio_dir", tmp_path / "audio", "--output_dir"]
    report = prepare("lp_musiccaps", *options, tmp_path / "out", "--id_column", "ytid", "--file_column", "fname")
    assert found(report) == {"train": 3} and set(read_table(tmp_path / "out")["id"]) == set(ytids)


def test_clips_are_duplicates_where_any_two_of_their_captions_are():
    captions = [["slow song", "sad piano"], ["rock", "sad piano"], ["sad", "rock"], ["piano"]]
    rows = [{"id": str(row), "caption": texts} for row, texts in enumerate(captions)]
    assert mark_clusters(rows, 5, 0.8)["sizes"] == {3: 1}
    assert [row["cluster"] for row in rows] == ["0", "0", "0", "3"]


def test_rows_without_ids_have_some_that_no_folder_changes(tmp_path):
    for split in ("train", "test"):
        sound = write_sound(tmp_path / "folder" / split / "0.wav")
        (tmp_path / "folder" / split / "metadata.csv").write_text("file_name,caption\n0.wav,a song\n")
    prepare("any", "--source", tmp_path / "folder", "--output_dir", tmp_path / "out")
    assert dict(read_table(tmp_path / "out")["split"]) == {"train/0.wav": "train", "test/0.wav": "test"}
    rows = datasets.Dataset.from_dict({"caption": ["a"], "audio": [{"path": "0.wav", "bytes": sound.read_bytes()}]})
    rows.to_parquet(tmp_path / "table.parquet")
    prepare(
        "any", "--source", tmp_path / "table.parquet", "--output_dir", tmp_path / "held", "--validation", 0, "--test", 0
    )
    assert list(read_table(tmp_path / "held")["id"]) == ["row-000000"]


def test_the_file_of_a_row_is_its_own_or_none(tmp_path):
    files = ["song.v1", "song.v2", "a/5", "b/5", "x/34/7.2min", "8.a", "8.b", "Ame\u0301lie", "n/9"]
    for seconds, name in enumerate(files, 1):
        write_sound(tmp_path / f"audio/{name}.wav", seconds)
    write_sound(tmp_path / "audio/n/9.ogg", 20)  # the same in another form
    named = {"song.v1": "", "song.v2": "", "song.v3": "", "5": "", "b5": "b/5.mp3", "7": "34/7.mp3", "8": "", "9": ""}
    named |= {"long": "x" * 300, "accent": "Am\u00e9lie.mp3"}
    table = pandas.DataFrame(
        {"id": list(named), "caption": [f"caption {row}" for row in named], "path": named.values()}
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    options = ["--source", tmp_path / "table.csv", "--audio_dir", tmp_path / "audio", "--output_dir", tmp_path / "out"]
    prepare("any", *options)
    found = dict(read_table(tmp_path / "out")["duration"])
    assert found == {"song.v1": 1, "song.v2": 2, "b5": 4, "7": 5, "9": 20, "accent": 8}
    reasons = {line["id"]: line["reason"] for line in read_lines(tmp_path / "out" / "rejected.jsonl")}
    assert set(reasons) == {"song.v3", "5", "8", "long"}
    assert "2 files have its name" in reasons["5"] and "2 files have its name" in reasons["8"]
    assert f"none in {tmp_path / 'audio'}" in reasons["song.v3"]


def test_rows_that_cannot_be_read_are_counted_and_the_others_are_as_they_were(tmp_path):
    write_sound(tmp_path / "1.wav")
    good = {
        "id": 17,
        "caption": "A “Café”",
        "path": "1.wav",
        "created_at": 12345,
        "meta": {},
        "big": 10**30,
        "cluster": 3,
    }
    lines = [json.dumps(good), '{"id": 2, "capt', "", "[1]", '{"id": 3, "caption": "half a \\ud83d"}']
    lines += ['{"id": null, "caption": "no id"}', '{"id": 4, "caption": null, "path": "1.wav"}']
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    report = prepare("any", "--source", tmp_path / "table.jsonl", "--output_dir", tmp_path / "jsonl", "--test", 0)
    assert report["rejected"] == {"broken_row": 3, "no_id": 1, "no_caption": 1} and report["listed"] == 6
    row = read_table(tmp_path / "jsonl").loc["17"]
    assert (row["created_at"], row["meta"], row["big"], row["their_cluster"]) == (12345, "{}", str(10**30), 3)
    assert "line 2 of" in (tmp_path / "jsonl" / "rejected.jsonl").read_text()

    rows = ["\ufeffid,text,caption,path", '007,"A ""big""\r\nsong",theirs,1.wav', "2,b, and more,c,1.wav", "", "3,c"]
    rows += [f"8,{'word ' * 60_000},x,", '9,"a"b,x,1.wav', ""]
    (tmp_path / "table.csv").write_bytes("\r\n".join(rows).encode())
    options = ["any", "--source", tmp_path / "table.csv", "--caption_columns", "text", "--output_dir", tmp_path / "csv"]
    report = prepare(*options)
    assert report["rejected"] == {"broken_row": 3, "no_audio": 1}
    row = read_table(tmp_path / "csv").loc["007"]
    assert (row["caption"], row["caption_original"], row["their_caption"]) == (
        'A "big"\r\nsong',
        'A "big"\r\nsong',
        "theirs",
    )
    (tmp_path / "table.csv").write_text('id,text,path\n1,a,1.wav\n2,"never closed,1.wav\n3,c,1.wav\n')
    with pytest.raises(ValueError, match="quotation mark of line 3 is never closed"):
        prepare(*options)
    (tmp_path / "table.csv").write_bytes("id,text\n1,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"table.csv, line 2: byte 6 is 0xe9, which is not UTF-8"):
        prepare(*options)


def test_broken_rows_of_musiccaps_are_counted(tmp_path):
    columns = "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset"
    lines = [
        f"{columns},is_audioset_eval",
        "-0Gj8-vB1q4,30,40,/m,['a'],One,4,False,True",
        "abcdefghijk,x,4,/m,['a'],b,4,T,True",
    ]
    lines += ["abcdefghijl,0,10,/m,['a',b,4,False,True", "abcdefghijm,0,10,/m,['a'],b,4,False,yes", "abcdefghijn,0"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    write_sound(tmp_path / "clips/-0Gj8-vB1q4.wav", 10)
    options = ["--csv", tmp_path / "table.csv", "--audio_dir", tmp_path / "clips", "--output_dir", tmp_path / "out"]
    report = prepare("musiccaps", *options, "--validation", 0)
    assert report["rejected"] == {"broken_row": 4} and list(read_table(tmp_path / "out")["id"]) == ["-0Gj8-vB1q4"]
    (tmp_path / "table.csv").write_text("id,caption\n1,a\n")
    for name in ("musiccaps", "song_describer"):
        with pytest.raises(ValueError, match=r"has no column (ytid|track_id), .*found id, caption"):
            prepare(name, *options)


def test_a_dataset_may_lack_sounds_and_ids(tmp_path):
    content = write_sound(tmp_path / "one.wav").read_bytes()
    sounds = [None, {"path": "one.wav", "bytes": content}, {"path": None, "bytes": content}]
    features = datasets.Features(
        {
            "caption": datasets.Value("string"),
            "audio": {k: datasets.Value(v) for k, v in (("path", "string"), ("bytes", "binary"))},
        }
    )
    rows = datasets.Dataset.from_dict({"caption": ["a", "b", "c"], "audio": sounds}, features=features)
    copy = tmp_path / "copy" / "data"  # of a Hub dataset
    copy.mkdir(parents=True)
    rows.to_parquet(copy / "train-00000-of-00001.parquet")
    rows.cast_column("audio", datasets.Audio()).save_to_disk(tmp_path / "saved")
    for source, name in (("copy", "train"), ("saved", "row"), ("copy/data/train-00000-of-00001.parquet", "row")):
        report = prepare("any", "--source", tmp_path / source, "--output_dir", tmp_path / "out", "--validation", 0)
        assert report["rejected"] == {"no_id": 1}
        table = read_table(tmp_path / "out")
        assert list(table["id"]) == [f"{name}-000001", f"{name}-000002"] and list(table["caption"]) == ["b", "c"]
    sounds[1]["bytes"] = write_sound(tmp_path / "one.wav", 3).read_bytes()
    datasets.Dataset.from_dict({"caption": ["a", "b", "c"], "audio": sounds}, features=features).to_parquet(
        tmp_path / "changed.parquet"
    )
    prepare("any", "--source", tmp_path / "changed.parquet", "--output_dir", tmp_path / "out", "--validation", 0)
    assert list(read_table(tmp_path / "out")["duration"]) == [3, 1]


def test_columns_that_were_named_have_to_be_there(tmp_path):
    write_sound(tmp_path / "1.wav")
    (tmp_path / "table.csv").write_text("id,caption,path\n1,a,1.wav\n")
    options = ["any", "--source", tmp_path / "table.csv", "--output_dir", tmp_path / "out"]
    for option in ("caption_columns", "file_column", "id_column", "split_column", "group_columns", "stratify_column"):
        with pytest.raises(ValueError, match="nope"):
            prepare(*options, f"--{option}", "nope")
    for source in ("raw/nothere.csv", "/nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"{source} does not exist"):
            prepare_script.main(["any", "--source", source, "--output_dir", str(tmp_path / "out")])


def test_what_is_written_is_never_read_as_raw_nor_hidden_by_other_files(tmp_path):
    write_sound(tmp_path / "raw/1.wav")
    (tmp_path / "raw/1.json").write_text('{"text": ["a song"]}')
    (tmp_path / "raw/metadata.csv").write_text("file_name,caption\n1.wav,a song\n")
    for name, option in (("audiostock", "--raw_dir"), ("any", "--source")):
        for folder in ("raw", "raw/out"):
            with pytest.raises(ValueError, match="lies in the raw corpus"):
                prepare(name, option, tmp_path / "raw", "--output_dir", tmp_path / folder)
    (tmp_path / "other/train").mkdir(parents=True)
    shutil.copy(tmp_path / "raw/metadata.csv", tmp_path / "other/train/metadata.csv")
    options = ["any", "--source", tmp_path / "raw", "--output_dir"]
    with pytest.raises(ValueError, match=r"is another corpus, which holds .*train/metadata.csv"):
        prepare(*options, tmp_path / "other")


def test_folders_are_walked_once_and_completely(tmp_path, monkeypatch):
    write_sound(tmp_path / "raw/sub/1.wav")
    (tmp_path / "raw/sub/1.txt").write_text("a song")
    (tmp_path / "raw/sub/up").symlink_to("..")
    (tmp_path / "linked").symlink_to("raw")
    options = ["any", "--source", tmp_path / "linked", "--output_dir", tmp_path / "out"]
    assert prepare(*options)["listed"] == 1
    with (
        open(os.fsencode(tmp_path / "raw") + b"/\xff.wav", "w"),
        pytest.raises(ValueError, match=r"\\xff.wav.*not UTF-8"),
    ):
        prepare(*options)
    os.remove(os.fsencode(tmp_path / "raw") + b"/\xff.wav")
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("sub"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="sub"):
        prepare(*options)


# -- splits -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc"), st.booleans()), min_size=3, max_size=60),
    seed=st.integers(0, 99),
    stratified=st.booleans(),
    own=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_splits_cut_no_group_and_depend_on_seed_and_ids_alone(labels, seed, stratified, own, order):
    rows = [(str(row), cluster, artist, half) for row, (cluster, artist, half) in enumerate(labels)]

    def split(rows):
        groups = group_rows(
            [[("cluster", cluster), ("artist", (artist, cluster % 5))] for _, cluster, artist, _ in rows]
        )
        given = ["test" if cluster == 0 else None for _, cluster, *_ in rows] if own else None
        sizes = {"validation": 0.2} if own else {"validation": 0.2, "test": 0.25}
        strata = [half for *_, half in rows] if stratified else None
        found = assign_splits([row_id for row_id, *_ in rows], groups, sizes, seed, strata, given)
        return {row[0]: (name, group, row) for row, name, group in zip(rows, found, groups)}

    splits, again = split(rows), split(order.sample(rows, len(rows)))
    assert all(again[row_id][0] == name for row_id, (name, *_) in splits.items())
    members = defaultdict(set)
    for name, group, (_, cluster, artist, _) in splits.values():
        for label in (("group", group), ("cluster", cluster), (artist, cluster % 5)):
            members[label].add(name)
    assert not own or all(name == "test" for name, _, (_, cluster, *_) in splits.values() if cluster == 0)
    cut = [names for names in members.values() if len(names) > 1]
    assert all(own and names == {"train", "test"} for names in cut)  # the corpus's own test split may cut one


def test_groups_of_one_row_fill_the_splits_exactly():
    ids = [str(number) for number in range(1000)]
    halves = [number % 4 == 0 for number in range(1000)]
    splits = assign_splits(ids, range(1000), {"test": 40, "validation": 0.05}, 0, halves)
    assert [splits.count(name) for name in ("train", "validation", "test")] == [910, 50, 40]
    assert sum(half for half, split in zip(halves, splits) if split == "test") == 10
    assert splits != assign_splits(ids, range(1000), {"test": 40, "validation": 0.05}, 1, halves)
    with pytest.raises(ValueError, match="there are 1000"):
        assign_splits(ids, range(1000), {"test": 999, "validation": 2})


def test_a_group_that_reaches_into_the_corpus_own_test_split_is_not_held_out():
    ids, own = [str(number) for number in range(100)], ["test", None] * 40 + [None] * 20
    splits = assign_splits(ids, [number // 2 for number in range(100)], {"validation": 30}, given=own)
    assert splits == [split or "train" for split in own[:80]] + ["validation"] * 20


def test_shares_are_rounded_and_at_least_a_row():
    for rows, share, expected in ((10, 0.05, 1), (18, 0.1, 2), (3, 0.05, 1), (2, 0.05, 0), (10, 0, 0), (10, 1, 1)):
        splits = assign_splits([str(row) for row in range(rows)], range(rows), {"test": share})
        assert splits.count("test") == expected


def test_a_split_that_no_group_fits_into_is_announced(caplog):
    splits = assign_splits([str(row) for row in range(20)], [0] * 18 + [1, 2], {"test": 3})
    assert splits.count("test") == 2
    assert "test has 2 of 3 rows" in caplog.text and "largest of all has 18 rows" in caplog.text


def test_the_default_shares_are_the_papers_counts():
    defaults = prepare_script.READERS["audiostock"][2]
    splits = assign_splits([str(row) for row in range(200_170)], range(200_170), defaults)
    assert [splits.count(name) for name in ("train", "validation", "test")] == [184_242, 7_925, 8_003]


def test_ids_are_ordered_as_numbers():
    assert sorted(["b/10", "10", "9", "b/9", "a"], key=natural_key) == ["9", "10", "a", "b/9", "b/10"]


def test_no_split_cuts_a_cluster_or_an_artist_in_whatever_order_the_rows_come(tmp_path):
    draw, tables = random.Random(0), []
    lines = [(f"{row}", f"{LONG} in style {draw.randrange(12)}", f"artist {draw.randrange(25)}") for row in range(60)]
    for name in ("straight", "shuffled"):
        table = pandas.DataFrame(lines, columns=["id", "caption", "artist"])
        table["path"] = [str(write_sound(tmp_path / f"{row}.wav")) for row in table["id"]]
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        options = ["--dedup", "mark", "--threshold", "0.95", "--validation", "0.2", "--test", "0.2", "--seed", "5"]
        prepare("any", "--source", tmp_path / f"{name}.csv", "--output_dir", tmp_path / name, *options)
        tables.append(read_table(tmp_path / name))
        draw.shuffle(lines)
    assert tables[0].equals(tables[1]) and set(tables[0]["split"]) >= {"train", "test"}
    for column in ("cluster", "artist", "caption"):
        assert tables[0].groupby(column)["split"].nunique().max() == 1


def test_placeholders_are_no_artist_and_lists_name_several():
    artists = [["Various Artists"], "VA ", ["unknown"], [], None, ["Ann"], ["Bob", " ann"], "BOB", "Cy", "Dee"]
    found = set()
    for seed in range(20):
        rows = [{"id": str(row), "file": f"{row % 9}.wav", "artist": artist} for row, artist in enumerate(artists)]
        rows[4]["file"] = None
        prepare_script.set_splits(rows, prepare_script.PrepareArguments("out", validation=0.5, test=0, seed=seed))
        splits = [row["split"] for row in rows]
        assert splits[5] == splits[6] == splits[7]
        assert splits[0] == splits[9]  # two captions of one file
        found.add(tuple(splits[:5]))
    assert len(found) > 8  # each on its own
