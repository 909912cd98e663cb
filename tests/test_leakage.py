"""What the leakage report promises: all pairs that meet the rule and no others, and no lost row."""

import json
import shutil
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
from accelerate import Accelerator
from datasets import Audio, Dataset, DatasetDict
from helpers import CAPTIONS, write_clap, write_corpus, write_tone
from hypothesis import given, settings
from hypothesis import strategies as st

import corpora.leaks
import prepare
from captions_rgmc import normalize_caption
from clips.rows import load_captions
from corpora.leaks import Clips, find_leaks, hash_audio
from evaluation.leak_free import read_leaks
from find_leaks import LeakageArguments, main
from reporting.results import LEAK_TITLES

LONG = "a calm piece of piano music that was recorded in a large hall at night"


def by_hand(splits: dict[str, Clips], ngram: int, threshold: float, audio_threshold: float) -> dict:
    """Compares all captions, files and embeddings: pairs of rows and their values, by pair of splits and kind."""
    limit, found = Fraction(str(threshold)), {}

    def grams(caption: str) -> set:
        words = caption.split()
        return {tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)} or {tuple(words)}

    def texts(clips: Clips, row: int) -> set:
        return {normalize_caption(caption) for caption in clips.captions[row]} - {""}

    for names in combinations(splits, 2):
        a, b = (splits[name] for name in names)
        kinds = found[names] = {kind: [] for kind in LEAK_TITLES}
        for row, other in ((row, other) for row in range(len(a.ids)) for other in range(len(b.ids))):
            for one, two in ((one, two) for one in texts(a, row) for two in texts(b, other)):
                shared, union = len(grams(one) & grams(two)), len(grams(one) | grams(two))
                if one == two:
                    kinds["exact_caption"].append((row, other, 1.0))
                elif Fraction(shared, union) > limit:
                    kinds["near_caption"].append((row, other, shared / union))
            same = a.hashes[row] is not None and a.hashes[row] == b.hashes[other]
            if same:
                kinds["identical_audio"].append((row, other, 1.0))
            elif a.audio_embeds[row] @ b.audio_embeds[other] > audio_threshold:
                kinds["near_audio"].append((row, other, float(a.audio_embeds[row] @ b.audio_embeds[other])))
    return found


words = st.lists(st.sampled_from(["a", "b", "c", "C!", "d"]), max_size=8).map(" ".join)
clip = st.tuples(st.lists(words, max_size=3), st.sampled_from([None, "x", "y", "z"]), st.integers(0, 7))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(clip, max_size=7), min_size=2, max_size=3),
    st.integers(1, 5),
    st.sampled_from([0, 0.3, 0.5, 0.8]),
)
def test_leaks_are_those_of_comparing_all(drawn, ngram, threshold):
    sounds = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    sounds /= np.linalg.norm(sounds, axis=1, keepdims=True)
    sounds[0] = 0  # a clip without an embedding
    splits = {}
    for name, rows in zip(["train", "validation", "test"], drawn):
        captions, hashes, embeds = zip(*rows) if rows else ((), (), ())
        ids, files = [f"{name}-{row}" for row in range(len(rows))], [None] * len(rows)
        splits[name] = Clips(ids, list(captions), files, list(hashes), 0, sounds[list(embeds)])
    report = find_leaks(splits, ngram, threshold, audio_threshold=0.4, num_worst=10**6)
    wanted = by_hand(splits, ngram, threshold, 0.4)
    assert [tuple(leak["splits"]) for leak in report["leaks"]] == list(wanted)
    for leak, kinds in zip(report["leaks"], wanted.values()):
        for side, name in enumerate(leak["splits"]):
            touched = {kind: {splits[name].ids[pair[side]] for pair in pairs} for kind, pairs in kinds.items()}
            assert {kind: set(found["rows"][name]["ids"]) for kind, found in leak["kinds"].items()} == touched
            every = set.union(*touched.values())
            assert leak["rows"][name]["ids"] == [row_id for row_id in splits[name].ids if row_id in every]
            assert leak["rows"][name]["count"] == len(every)
            assert leak["rows"][name]["share"] == pytest.approx(len(every) / max(1, len(splits[name].ids)), abs=1e-6)
        for kind, pairs in kinds.items():
            found = leak["kinds"][kind]
            assert found["pairs"] == sum(pair["pairs"] for pair in found["worst"]) == len(pairs)
            values = [value for pair in found["worst"] for value in [pair["value"]] * pair["pairs"]]
            assert values == pytest.approx(sorted((value for *_, value in pairs), reverse=True), abs=2e-6)


def test_embeddings_are_compared_in_blocks_of_which_none_is_left_out(monkeypatch):
    generator = np.random.default_rng(0)
    splits = {}
    for name, n in (("train", 50), ("test", 23)):
        embeds = generator.standard_normal((n, 4)).astype(np.float32)
        embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
        splits[name] = Clips([f"{name}-{row}" for row in range(n)], [[]] * n, [None] * n, [None] * n, 0, embeds)
    monkeypatch.setattr(corpora.leaks, "BLOCK_ROWS", 7)
    (leak,) = find_leaks(splits, audio_threshold=0.9, num_worst=5)["leaks"]
    similarities = splits["train"].audio_embeds @ splits["test"].audio_embeds.T
    found = leak["kinds"]["near_audio"]
    assert found["pairs"] == (similarities > 0.9).sum() > 5
    for axis, name in enumerate(splits):
        touched = np.flatnonzero((similarities > 0.9).any(axis=1 - axis))
        assert found["rows"][name]["ids"] == [f"{name}-{row}" for row in touched]
    assert [pair["value"] for pair in found["worst"]] == pytest.approx(np.sort(similarities, axis=None)[:-6:-1])
    assert leak["nearest"] == pytest.approx(np.quantile(similarities.max(axis=0), corpora.leaks.QUANTILES), abs=1e-6)


def test_the_worst_captions_are_the_most_similar_and_then_the_longest():
    train = [["Techno."], [LONG], ["techno"], [f"{LONG} in May"], ["a waltz", "a waltz!"]]
    test = [["TECHNO"], [f"{LONG} again", LONG.upper()], ["a waltz"], ["something else"]]
    splits = {
        name: Clips([f"{name}-{row}" for row in range(len(captions))], captions, *[[None] * len(captions)] * 2)
        for name, captions in (("train", train), ("test", test))
    }
    (leak,) = find_leaks(splits, num_worst=2)["leaks"]
    exact, near = leak["kinds"]["exact_caption"], leak["kinds"]["near_caption"]
    assert exact["pairs"] == 2 + 1 + 1 and exact["rows"]["test"]["ids"] == ["test-0", "test-1", "test-2"]
    assert [(pair["pairs"], pair["clips"][0]["caption"]) for pair in exact["worst"]] == [(1, LONG), (1, "a waltz")]
    assert near["rows"]["train"]["ids"] == ["train-1", "train-3"] and near["pairs"] == 2
    assert near["worst"][0]["clips"] == [
        {"split": "train", "id": "train-1", "caption": LONG},
        {"split": "test", "id": "test-1", "caption": f"{LONG} again"},
    ]
    assert near["worst"][0]["value"] == pytest.approx(11 / 12, abs=1e-6)
    for options, message in (({"threshold": 1}, "threshold 1"), ({"audio_threshold": 1}, "audio_threshold 1")):
        with pytest.raises(ValueError, match=message):
            find_leaks(splits, **options)


# -- files ------------------------------------------------------------------------------------------------------------


def test_only_files_of_a_size_that_two_splits_have_are_read_and_each_once(tmp_path, monkeypatch):
    contents = {"a": b"11", "b": b"22", "c": b"333", "d": b"11", "e": b"4444", "f": b"", "g": b"55555", "h": b"55556"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    read, hash_file = [], corpora.leaks.hash_file
    monkeypatch.setattr(corpora.leaks, "hash_file", lambda file: read.append(Path(file).name) or hash_file(file))

    def find(train: str, test: str) -> dict:
        splits = {"train": [*train], "test": [*test]}
        audio = {name: [{"path": str(tmp_path / file), "bytes": None} for file in of] for name, of in splits.items()}
        audio["test"] += [{"path": None, "bytes": b"333"}, {"path": "nowhere", "bytes": None}]
        return hash_audio(audio, tmp_path / "hashed.jsonl")

    found = find("abcgh", "def")
    assert sorted(read) == ["a", "b", "c", "d"]  # g and h are in one split
    _, train, without = found["train"]
    files, test, without_test = found["test"]
    assert train[0] == test[0] != train[1] and train[2] == test[3] and train[3:] == [None, None]
    assert test[1:3] == [None, None] and (without, without_test) == (
        0,
        2,
    )  # the empty file, and the missing one
    assert files[3:] == [None, "nowhere"]
    assert find("abcgh", "def") == found and len(read) == 4  # known files are not read again
    (tmp_path / "d").write_bytes(b"99")
    assert find("abcgh", "def")["test"][1][0] != test[0] and read[4:] == ["d"]


def report_of(folder: Path) -> dict:
    return json.loads((folder / "leakage.json").read_text(encoding="utf-8"))


def run(dataset: Path, output_dir: Path, **options) -> dict:
    """Runs the command, and returns the leaks by their two splits."""
    args = LeakageArguments(str(dataset), str(output_dir), **options)
    report = main(args, Accelerator())
    written = report_of(output_dir)
    assert written == {"format_version": 1, **json.loads(json.dumps(report))}
    return {tuple(leak["splits"]): leak for leak in report["leaks"]}


def counts(leak: dict) -> dict[str, tuple]:
    return {kind: (of["pairs"], *(rows["ids"] for rows in of["rows"].values())) for kind, of in leak["kinds"].items()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Splits that share a caption, an edited caption, and a file under another name."""
    captions = {"train": [*CAPTIONS, LONG], "validation": ["fresh one", CAPTIONS[5]], "test": ["new", "x", "y", "z"]}
    captions["test"][1:3] = [CAPTIONS[2].upper() + "!", f"{LONG} again"]
    folder = write_corpus(tmp_path / "corpus", captions)
    shutil.copy(folder / "train" / "4.wav", folder / "test" / "3.wav")
    return folder


@pytest.mark.parametrize("kind", ["audiofolder", "saved", "table"])
def test_what_is_planted_is_found_in_a_corpus_of_any_kind(kind, folder, tmp_path, capsys):
    if kind != "audiofolder":
        saved, tables = {}, []
        for split in ("train", "validation", "test"):
            rows = load_captions(str(folder), split)
            sounds = [{"path": Path(a["path"]).name, "bytes": Path(a["path"]).read_bytes()} for a in rows["audio"]]
            table = {"id": rows["id"][:], "caption": rows["captions"][:], "audio": sounds}
            saved[split] = Dataset.from_dict(table).cast_column("audio", Audio(decode=False))
            tables.append(pandas.DataFrame(table).assign(split=split))
        folder = tmp_path / kind
        if kind == "saved":
            DatasetDict(saved).save_to_disk(folder)
        else:
            folder = tmp_path / "table.parquet"
            pandas.concat(tables).to_parquet(folder)
    leaks = run(folder, tmp_path / "out")
    assert counts(leaks["train", "test"]) == {
        "exact_caption": (1, ["train-2"], ["test-1"]),
        "near_caption": (1, ["train-8"], ["test-2"]),
        "identical_audio": (1, ["train-4"], ["test-3"]),
    }
    assert counts(leaks["train", "validation"])["exact_caption"] == (1, ["train-5"], ["validation-1"])
    assert leaks["validation", "test"]["rows"]["test"]["count"] == 0
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert (
        text.startswith(printed.strip()) and "| train, test: any of these | - | 3 (33.33 %) | 3 (75.00 %) |" in printed
    )
    assert f"| 0.917 | 1 | train-8 | test-2 | {LONG} | {LONG} again |" in text.partition("Worst pairs")[2]
    assert "Worst" not in printed and "near-identical audio: not looked for" in printed
    assert "| 1.000 | 1 | train-4 | test-3 |" in text


def test_training_on_another_corpus_can_be_compared(folder, tmp_path):
    other = write_corpus(tmp_path / "other", {"train": ["x", "an other caption"]})
    leaks = run(folder, tmp_path / "out", train_dataset=str(other), splits=["train", "test"])
    assert counts(leaks["train", "test"])["exact_caption"][0] == 0
    assert counts(leaks["train", "test"])["identical_audio"][0] == 0
    (other / "train" / "1.wav").write_bytes((folder / "test" / "0.wav").read_bytes())
    leaks = run(folder, tmp_path / "out", train_dataset=str(other), splits=["train", "test"])
    assert counts(leaks["train", "test"])["identical_audio"] == (1, ["train-1"], ["test-0"])
    assert f"train from {other}" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8").replace("\\", "")


@pytest.mark.parametrize("model", ["rgmc", "clap"])
def test_a_recording_in_another_format_is_near_and_not_identical(model, make_model, processor, tmp_path):
    if model == "rgmc":
        make_model().save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
    else:
        write_clap(tmp_path / "model")
    folder = write_corpus(tmp_path / "corpus", {"train": CAPTIONS[:3], "test": CAPTIONS[3:7]})
    noise = np.random.default_rng(0).standard_normal(10 * 44_100) * np.linspace(0, 0.2, 10 * 44_100)
    soundfile.write(folder / "train" / "2.wav", noise, 44_100)
    (folder / "test" / "0.wav").write_bytes(b"no sound")
    soundfile.write(folder / "test" / "1.mp3", noise, 44_100)
    shutil.move(folder / "test" / "1.mp3", folder / "test" / "1.wav")
    write_tone(folder / "test" / "2.wav", 1700)
    shutil.copy(folder / "train" / "2.wav", folder / "test" / "3.wav")
    options = {"splits": ["train", "test"], "cache_dir": str(tmp_path / "cache"), "model": str(tmp_path / "model")}
    leaks = run(folder, tmp_path / "out", audio_threshold=0.999, max_skipped=0.5, **options)
    assert counts(leaks["train", "test"]) == {
        "exact_caption": (0, [], []),
        "near_caption": (0, [], []),
        "identical_audio": (1, ["train-2"], ["test-3"]),
        "near_audio": (1, ["train-2"], ["test-1"]),
    }
    splits = report_of(tmp_path / "out")["splits"]
    assert [splits[name]["embedded"] for name in ("train", "test")] == [3, 3]
    assert "test-0" in (tmp_path / "out" / "skipped.jsonl").read_text(encoding="utf-8")


def test_what_cannot_be_compared_is_an_error(folder, tmp_path):
    for options, message in (
        ({"splits": ["train"]}, "--splits train: expected two or more"),
        ({"splits": ["train", "test", "test"]}, "--splits train test test: expected two or more, each once"),
        ({"splits": ["validation", "test"]}, "--train_split train: expected one of --splits validation test"),
        ({"threshold": 1.0}, r"threshold 1.0: expected"),
        ({"audio_threshold": -0.1}, r"audio_threshold -0.1, .*: expected 0 or more"),
        ({"splits": ["train", "dev2"]}, "no split 'dev2'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run(folder, tmp_path / "out", **options)


# -- what eval.py reads -----------------------------------------------------------------------------------------------


def test_a_report_is_read_for_the_split_that_it_is_about_and_for_no_other(folder, tmp_path):
    run(folder, tmp_path / "out")
    file = tmp_path / "out" / "leakage.json"
    rows = {split: load_captions(str(folder), split) for split in ("train", "validation", "test")}
    kinds = {"test-1": ["exact_caption"], "test-2": ["near_caption"], "test-3": ["identical_audio"]}
    leaks = read_leaks(str(file), "test", rows["test"])
    assert leaks.kinds == kinds and leaks.train_split == "train" and leaks.options["threshold"] == 0.8
    assert read_leaks(str(file), "val", rows["validation"]).kinds == {"validation-1": ["exact_caption"]}
    assert read_leaks(str(file), "test", rows["test"].select([2, 0, 3, 1])).kinds == kinds

    changed = rows["test"].map(lambda row: {"captions": [text.replace("new", "newer") for text in row["captions"]]})
    for split, other in (("test", changed), ("test", rows["test"].select([0, 1, 2])), ("train", rows["train"])):
        with pytest.raises(
            ValueError, match=rf"other clips or captions: split '{split}' has {len(other)} rows, .*make it again"
        ):
            read_leaks(str(file), split, other)
    report = json.loads(file.read_text(encoding="utf-8"))
    broken = {"not a report": "[1]", "not a report ": "{", "has format version 0": {"format_version": 0}}
    broken |= {"expected version 1 and the training split 'x'": {"train_split": "x"}}
    (leak,) = (leak for leak in report["leaks"] if leak["splits"] == ["train", "test"])
    leak["kinds"]["exact_caption"]["rows"]["test"]["ids"].append("test-9")
    broken |= {r"1 ids are not in split 'test': \['test-9'\]": {}}
    for message, content in broken.items():
        file.write_text(content if isinstance(content, str) else json.dumps({**report, **content}), encoding="utf-8")
        with pytest.raises(ValueError, match=message.strip()):
            read_leaks(str(file), "test", rows["test"])
    with pytest.raises(ValueError, match="nowhere is not a report of leaks"):
        read_leaks("nowhere", "test", rows["test"])


def test_prepare_reports_the_leaks_of_its_splits(folder, tmp_path):
    rows = [
        {"id": row["id"], "caption": row["captions"][0], "path": row["audio"]["path"], "split": split}
        for split in ("train", "test")
        for row in load_captions(str(folder), split)
    ]
    pandas.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    options = [
        "any",
        "--source",
        str(tmp_path / "table.csv"),
        "--file_column",
        "path",
        "--validation",
        "0",
        "--test",
        "0",
    ]
    prepare.main([*options, "--output_dir", str(tmp_path / "out")])
    kinds = {"test-1": ["exact_caption"], "test-2": ["near_caption"], "test-3": ["identical_audio"]}
    prepared = load_captions(str(tmp_path / "out"), "test")
    assert read_leaks(str(tmp_path / "out" / "leakage.json"), "test", prepared).kinds == kinds
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    pairs = {"exact_caption": 1, "near_caption": 1, "identical_audio": 1}
    assert report["leaks"] == [{"splits": ["train", "test"], "pairs": pairs}]
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "3 (75.00 %)" in text and f"{normalize_caption(LONG)} again" in text

    pandas.DataFrame(rows).assign(split="train").to_csv(tmp_path / "table.csv", index=False)
    prepare.main([*options, "--output_dir", str(tmp_path / "out")])  # only one split: the former file is deleted
    assert not (tmp_path / "out" / "leakage.json").exists()
