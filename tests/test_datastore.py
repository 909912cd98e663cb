"""What a datastore promises: it can be built, changed, stored, shared and swapped without training."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from accelerate import Accelerator
from datasets import Audio, Dataset, DatasetDict
from helpers import CAPTIONS, ROOT, make_datastore, make_rows, unit_vectors, write_corpus, write_tone
from safetensors.torch import load_file, save_file

import build_datastore
import retrieval_rgmc
from clips.rows import load_captions
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import DATASTORE_FILES, CaptionDatastore
from search_rgmc import STORAGES


@pytest.fixture
def songs(tmp_path) -> list[dict]:
    """Four songs as a user would list them."""
    rows = []
    for row, caption in enumerate(CAPTIONS[:4]):
        path = write_tone(tmp_path / "songs" / f"{row}.wav", 110 * 2 ** (row / 2))
        rows.append({"id": f"song-{row}", "audio": str(path), "caption": caption})
    rows[1] |= {"source": "my own", "license": "CC-BY-4.0"}
    return rows


@pytest.fixture
def checkpoint(make_model, processor, tmp_path) -> Path:
    make_model().save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def embed(model, processor, songs: list[dict]) -> torch.Tensor:
    with torch.no_grad():
        return model.embed_audio(processor(audio=[song["audio"] for song in songs])["input_features"])


# -- built ------------------------------------------------------------------------------------------------------------


def test_songs_become_a_datastore_that_finds_them(make_model, processor, songs):
    model = make_model()
    model.train()
    songs[2] |= {"caption": "Slow, AMBIENT: soundscape!", "id": 7}
    datastore = CaptionDatastore.build(model, songs, processor, batch_size=3)
    assert model.training
    assert datastore.rows["id"][:] == ["song-0", "song-1", "7", "song-3"]
    assert datastore.rows["caption"][2] == "slow ambient soundscape"
    assert datastore.rows["input_ids"][2] == processor.encode_candidate("slow ambient soundscape")
    model.eval()
    np.testing.assert_allclose(datastore.embeddings, embed(model, processor, songs), atol=1e-6)
    model.set_datastore(datastore)
    assert model.retrieve(embed(model, processor, songs)).ids == [["song-0"], ["song-1"], ["7"], ["song-3"]]


def test_a_dataset_is_built_as_a_list_is_whatever_its_columns_are(make_model, processor, songs):
    model = make_model()
    expected = CaptionDatastore.build(model, songs, processor)
    audio = Dataset.from_dict({"audio": [song["audio"] for song in songs]}).cast_column("audio", Audio(decode=False))
    audio = audio.cast_column("audio", Audio())  # as load_dataset("audiofolder") returns it
    captions = [[song["caption"], "another caption"] for song in songs]
    datastore = CaptionDatastore.build(model, audio.add_column("captions", captions), processor)
    assert datastore.rows["id"][:] == ["0.wav", "1.wav", "2.wav", "3.wav"]  # without a path of this machine
    assert datastore.rows["caption"][:] == expected.rows["caption"][:]
    np.testing.assert_array_equal(datastore.embeddings, expected.embeddings)


def test_songs_that_cannot_be_used_are_errors_that_name_them(make_model, processor, songs):
    model = make_model()

    def build(**changed):
        return CaptionDatastore.build(model, [songs[0], songs[1] | changed], processor)

    with pytest.raises(ValueError, match=r"Row 1 .*'song-1'.* has no caption"):
        build(caption="?!")
    with pytest.raises(ValueError, match=r"Row 1 .* has no audio"):
        build(audio=None)
    with pytest.raises(ValueError, match="has no id"):
        build(id=None, audio={"array": np.zeros(10), "sampling_rate": 48_000})
    with pytest.raises(ValueError, match=r"'song-1' cannot be embedded: .*nowhere\.wav"):
        build(audio="nowhere.wav")
    with pytest.raises(ValueError, match=r"must be unique.*song-0"):
        build(id="song-0", audio="nowhere.wav")  # raised before hours of decoding
    with pytest.raises(ValueError, match=r"Row 1 .*'song-1'.* has no caption"):
        build(caption=float("nan"))  # pandas' empty cell
    with pytest.raises(ValueError, match=r"Row 1 .*'song-1'.* text as license, got \['MIT'\]"):
        build(license=["MIT"])


def test_songs_in_another_container_are_taken_or_refused_with_what_is_expected(make_model, processor, songs):
    model = make_model()
    expected = CaptionDatastore.build(model, songs, processor)
    rows = [{**song, "captions": captions} for song, captions in zip(songs, ([], None, [None, "?"], float("nan")))]
    for container in (songs, rows):
        datastore = CaptionDatastore.build(model, (row for row in container), processor)
        assert datastore.rows[:] == expected.rows[:]
    for container in (DatasetDict(train=Dataset.from_list(songs)), "corpus", songs[0], pandas.DataFrame(songs)):
        with pytest.raises(ValueError, match=f"in a {type(container).__name__}: expected a datasets.Dataset or a list"):
            CaptionDatastore.build(model, container, processor)
    with pytest.raises(TypeError, match=r"Expected a CaptionDatastore, its folder or Hub id, or None.*build"):
        model.set_datastore(songs)


def test_a_model_takes_its_datastore_from_a_folder(make_model, processor, songs, tmp_path):
    model = make_model()
    CaptionDatastore.build(model, songs, processor).save_pretrained(tmp_path / "store")
    for folder in (tmp_path / "store", str(tmp_path / "store")):
        model.set_datastore(None)
        model.set_datastore(folder)
        assert model.retrieve(embed(model, processor, songs)).ids == [[f"song-{row}"] for row in range(4)]
    with pytest.raises(FileNotFoundError, match="holds no datastore"):
        model.set_datastore(tmp_path)
    assert len(model.datastore) == 4


def test_a_search_that_cannot_be_is_refused_before_any_song_is_decoded(make_model, processor, songs):
    unreadable = [songs[0] | {"audio": "nowhere.wav"}]
    with pytest.raises(ValueError, match="string_factory 'IVF4,Float': expected 'Flat'"):
        CaptionDatastore.build(make_model(), unreadable, processor, string_factory="IVF4,Float")
    with pytest.raises(ValueError, match="'IVF4,Flat' cannot be trained with 1 captions"):
        CaptionDatastore.build(make_model(), unreadable, processor, string_factory="IVF4,Flat")
    with pytest.raises(ValueError, match="'nprobe=4': the index 'HNSW8' has no nprobe"):
        CaptionDatastore.build(
            make_model(), unreadable, processor, string_factory="HNSW8", search_parameters="nprobe=4"
        )
    with pytest.raises(ValueError, match="storage 'int4': expected one of float32, float16, int8"):
        CaptionDatastore.build(make_model(), unreadable, processor, storage="int4")
    with pytest.raises(ValueError, match="string_factory 'IVF4,Float': expected 'Flat'"):
        make_datastore(5, string_factory="IVF4,Float")


def test_the_command_refuses_such_a_search_before_it_looks_at_the_corpus(checkpoint, tmp_path):
    args = build_datastore.DatastoreArguments(
        model=str(checkpoint), dataset="nowhere", output_dir=str(tmp_path / "store"), string_factory="HNSWx"
    )
    with pytest.raises(ValueError, match="string_factory 'HNSWx': expected 'Flat'"):
        build_datastore.main(args, Accelerator())
    args.string_factory, args.search_parameters = "HNSW8", "efSearch=0"
    with pytest.raises(ValueError, match="search_parameters 'efSearch=0' of the index 'HNSW8': expected 'nprobe=32'"):
        build_datastore.main(args, Accelerator())


def test_the_processor_is_that_of_the_models_checkpoint(make_model, processor, checkpoint, songs, monkeypatch):
    model = RGMCModel.from_pretrained(checkpoint)
    loaded = CaptionDatastore.build(model, songs)
    np.testing.assert_array_equal(loaded.embeddings, CaptionDatastore.build(make_model(), songs, processor).embeddings)
    with pytest.raises(ValueError, match="pass processor="):
        CaptionDatastore.build(make_model(), songs)
    asked = []
    monkeypatch.setattr(RGMCProcessor, "from_pretrained", lambda *args, **kwargs: asked.append(kwargs) or processor)
    model.loaded_revision = "c" * 40  # as for a model from the Hub
    CaptionDatastore.build(model, songs[:1])
    assert asked == [{"revision": "c" * 40}]


def test_the_lines_of_docs_run_with_the_code_of_a_checkpoint_alone(checkpoint, tmp_path):
    page = (ROOT / "docs" / "datastore.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    write_tone(tmp_path / "elsewhere" / "song.mp3", 220)
    (tmp_path / "elsewhere" / "outputs").mkdir()
    (tmp_path / "elsewhere" / "outputs" / "demo").symlink_to(checkpoint)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "my own" in done.stdout
    assert (tmp_path / "elsewhere" / "my_datastore" / "datastore.json").is_file()


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = write_corpus(tmp_path / "corpus", {"train": CAPTIONS[:4]})
    lines = (folder / "train" / "metadata.csv").read_text(encoding="utf-8").splitlines()
    lines = [
        f"{line},{','.join(more)}" for line, more in zip(lines, [("source", "license"), ("me", "MIT"), *[("", "")] * 3])
    ]
    (folder / "train" / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_the_command_builds_what_the_class_builds_with_sources_and_licences(checkpoint, corpus, tmp_path):
    options = {"output_dir": str(tmp_path / "store"), "storage": "int8", "cache_dtype": "float32"}
    options |= {"string_factory": "IVF2,Flat", "search_parameters": "nprobe=2"}
    args = build_datastore.DatastoreArguments(
        model=str(checkpoint), dataset=str(corpus), cache_dir=str(tmp_path / "cache"), **options
    )
    build_datastore.main(args, Accelerator())
    datastore = CaptionDatastore.from_pretrained(tmp_path / "store")
    assert (datastore.string_factory, datastore.search_parameters) == ("IVF2,Flat", "nprobe=2")
    rows = load_captions(str(corpus), "train")
    expected = CaptionDatastore.build(RGMCModel.from_pretrained(checkpoint), rows, storage="int8")
    assert datastore.rows[:] == expected.rows[:]
    assert np.abs(datastore.embeddings - expected.embeddings).max() <= 1  # other batches round differently
    assert datastore.rows["source"][:] == ["me", None, None, None]
    found = datastore.search(datastore.read_embeddings(slice(2)))
    assert (found.sources, found.licenses) == ([["me"], [None]], [["MIT"], [None]])


def test_the_command_mends_a_checkpoint_whose_datastore_is_of_another_encoder(checkpoint, corpus, tmp_path):
    store = CaptionDatastore(make_rows(3), unit_vectors(3, size=32), encoder_fingerprint="f00d")
    store.save_pretrained(checkpoint / "datastore")
    with pytest.raises(ValueError, match=r"build_datastore\.py --model(.|\n)*CaptionDatastore\.build"):
        RGMCModel.from_pretrained(checkpoint)
    args = build_datastore.DatastoreArguments(
        model=str(checkpoint),
        dataset=str(corpus),
        output_dir=str(checkpoint / "datastore"),
        cache_dir=str(tmp_path / "cache"),
    )
    build_datastore.main(args, Accelerator())
    assert len(RGMCModel.from_pretrained(checkpoint).datastore) == 4


# -- changed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_added_and_removed_rows_make_what_is_built_anew(make_model, processor, songs, storage, tmp_path):
    model = make_model()
    datastore = CaptionDatastore.build(model, songs[:2], processor, storage=storage)
    model.set_datastore(datastore)
    model.retrieve(embed(model, processor, songs))
    datastore.add(model, songs[2:], processor)
    assert model.retrieve(embed(model, processor, songs)).ids == [["song-0"], ["song-1"], ["song-2"], ["song-3"]]
    datastore.remove(["song-0", "song-2"])
    expected = CaptionDatastore.build(model, [songs[1], songs[3]], processor, storage=storage)
    assert datastore.rows[:] == expected.rows[:]
    assert datastore.rows["license"][:] == ["CC-BY-4.0", None]
    np.testing.assert_allclose(datastore.read_embeddings(slice(None)), expected.read_embeddings(slice(None)), atol=1e-5)
    assert datastore.search(embed(model, processor, songs), exclude_ids=["song-1"] * 4).ids == [["song-3"]] * 4
    model.save_pretrained(tmp_path / "saved")
    assert model.config.datastore_rows == 2
    assert RGMCModel.from_pretrained(tmp_path / "saved").datastore.rows["id"][:] == ["song-1", "song-3"]


def test_a_change_that_is_refused_changes_nothing(make_model, processor, songs):
    model = make_model()
    datastore = CaptionDatastore.build(model, songs[:2], processor)
    with pytest.raises(ValueError, match=r"already in the datastore.*song-1"):
        datastore.add(model, songs[1:], processor)
    with pytest.raises(ValueError, match=r"not in the datastore.*song-3"):
        datastore.remove(["song-0", "song-3"])
    other = make_model()
    with torch.no_grad():
        next(other.audio_tower.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="another audio encoder"):
        datastore.add(other, songs[2:], processor)
    assert datastore.rows["id"][:] == ["song-0", "song-1"]
    assert datastore.embeddings.shape == (2, 32)


def test_ids_may_be_numbers_wherever_they_are_asked_for(make_model, processor, songs):
    model = make_model()
    songs = [song | {"id": number} for number, song in enumerate(songs)]
    datastore = CaptionDatastore.build(model, songs, processor)
    queries = embed(model, processor, songs)
    by_text = datastore.search(queries, exclude_ids=["0", "1", None, "3"])
    assert by_text.ids[0] != ["0"] and by_text.ids[2] == ["2"]
    assert datastore.search(queries, exclude_ids=[0, 1, None, 3]) == by_text
    with pytest.raises(ValueError, match="4 queries but 2 `exclude_ids`"):
        datastore.search(queries, exclude_ids=["0", "1"])
    datastore.remove([0, "2"])
    datastore.remove(3)
    assert datastore.rows["id"][:] == ["1"]


# -- stored -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
@pytest.mark.parametrize("storage", STORAGES)
def test_loaded_embeddings_are_mapped_from_their_file(storage, tmp_path):
    make_datastore(300, storage=storage).save_pretrained(tmp_path)
    address = CaptionDatastore.from_pretrained(tmp_path).embeddings.ctypes.data
    datastore = CaptionDatastore.from_pretrained(tmp_path)
    address = datastore.embeddings.ctypes.data
    ranges = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line
    ]
    assert any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


def test_a_loaded_datastore_may_be_saved_where_it_came_from(tmp_path):
    make_datastore(300).save_pretrained(tmp_path)
    datastore = CaptionDatastore.from_pretrained(tmp_path)
    datastore.remove(["song-0"])
    datastore.save_pretrained(tmp_path)
    np.testing.assert_array_equal(CaptionDatastore.from_pretrained(tmp_path).embeddings, unit_vectors(300)[1:])
    assert len(list(tmp_path.iterdir())) == 3


def test_a_datastore_that_is_not_saved_to_the_end_is_none(tmp_path, monkeypatch):
    make_datastore(300).save_pretrained(tmp_path)
    moved, replace = [], os.replace

    def interrupted(*args):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(replace(*args))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(retrieval_rgmc.os, "replace", interrupted)
        make_datastore(300, storage="float16").save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no datastore: expected the files datastore\.json"):
        CaptionDatastore.from_pretrained(tmp_path)
    make_datastore(200).save_pretrained(tmp_path)
    assert len(CaptionDatastore.from_pretrained(tmp_path)) == 200


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_former_versions_are_read_and_their_index_never(version, tmp_path, monkeypatch):
    vectors = unit_vectors(300)
    save_file({"embeddings": torch.from_numpy(vectors)}, tmp_path / "embeddings.safetensors")
    pyarrow.parquet.write_table(make_rows(300).with_format("arrow")[:], tmp_path / "captions.parquet")
    description = {"format_version": version, "rows": 300, "embedding_size": 16, "metric": "inner_product"}
    description |= {"normalized": True, "encoder_fingerprint": "f00d"}
    description["string_factory"] = {1: "Flat", 2: "IVF4,Flat"}[version]
    if version == 2:
        description |= {"storage": "float32", "vocab_size": None}
    (tmp_path / "datastore.json").write_text(json.dumps(description))
    (tmp_path / "index.faiss").write_bytes(b"IwFl" + b"\xff" * 100)  # claims to hold more than fits into memory
    for name in ("read_index", "read_index_binary", "deserialize_index"):
        monkeypatch.setattr(faiss, name, lambda *args: pytest.fail("a file is given to FAISS"))
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    datastore = CaptionDatastore.from_pretrained(tmp_path)
    datastore.search_parameters = {1: None, 2: "nprobe=4"}[version]
    found = datastore.search(vectors[3:4])
    assert (found.ids, found.sources, datastore.storage) == ([["song-3"]], [[None]], "float32")
    assert str(tmp_path / "datastore.json") in opened and str(tmp_path / "index.faiss") not in opened
    datastore.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(DATASTORE_FILES)
    assert json.loads((tmp_path / "datastore.json").read_text())["format_version"] == 3


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-100])


def change_embeddings(path: Path, change):
    embeddings = load_file(path)["embeddings"].clone()
    save_file({"embeddings": change(embeddings)}, path)


def change_captions(path: Path, change):
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


def repeat_an_id(table):
    return table.set_column(0, "id", pyarrow.array(["song-0", "song-1", "song-0", "song-3", "song-4"]))


def change_description(path: Path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("file", "damage", "error"),
    [
        ("captions.parquet", lambda path: change_captions(path, lambda table: table[:4]), "incomplete.* 4 captions"),
        ("captions.parquet", lambda path: change_captions(path, repeat_an_id), "unique.*song-0"),
        ("captions.parquet", lambda path: change_captions(path, lambda table: table.drop(["input_ids"])), "input_ids"),
        ("captions.parquet", truncate, "damaged"),
        ("captions.parquet", Path.unlink, r"captions\.parquet"),
        (
            "embeddings.safetensors",
            lambda path: change_embeddings(path, lambda rows: rows[:4].clone()),
            r"incomplete.*\(4, 16\)",
        ),
        ("embeddings.safetensors", lambda path: change_embeddings(path, torch.Tensor.half), "float16.*float32"),
        ("embeddings.safetensors", lambda path: change_embeddings(path, torch.zeros_like), "unit vectors.*song-0"),
        ("embeddings.safetensors", truncate, "damaged"),
        ("embeddings.safetensors", Path.unlink, r"embeddings\.safetensors"),
        ("datastore.json", Path.unlink, r"datastore\.json"),
        ("datastore.json", truncate, r"datastore\.json is damaged"),
        ("datastore.json", lambda path: path.write_text("[]"), r"datastore\.json has format version None"),
        ("datastore.json", lambda path: path.write_text('{"format_version": 2}'), "lacks rows, embedding_size, string"),
        (
            "datastore.json",
            lambda path: change_description(path, storage=["int8"]),
            r"\['int8'\] as storage: expected str",
        ),
        ("datastore.json", lambda path: change_description(path, string_factory=None), "None as string_factory"),
        ("datastore.json", lambda path: change_description(path, search_parameters=32), "32 as search_parameters"),
        (
            "datastore.json",
            lambda path: change_description(path, search_parameters="nprobe=4"),
            "'HNSW8' has no nprobe",
        ),
        (
            "datastore.json",
            lambda path: change_description(path, string_factory="LSH"),
            "'LSH': expected 'Flat'.*from_pretrained",
        ),
    ],
)
def test_a_damaged_datastore_is_an_error_that_says_what_is_wrong(file, damage, error, tmp_path):
    make_datastore(5, string_factory="HNSW8").save_pretrained(tmp_path)
    damage(tmp_path / file)
    with pytest.raises((ValueError, OSError), match=error):
        CaptionDatastore.from_pretrained(tmp_path)


# -- empty ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("string_factory", ["Flat", "HNSW8"])
def test_an_empty_datastore_captions_from_the_audio_alone(make_model, processor, songs, string_factory, tmp_path):
    model = make_model()
    features = processor(audio=songs[0]["audio"])["input_features"]
    alone = model.generate(input_features=features)
    datastore = CaptionDatastore.build(model, songs[:1], processor, string_factory=string_factory)
    datastore.remove(["song-0"])
    model.set_datastore(datastore)
    model.save_pretrained(tmp_path / "saved")
    loaded = RGMCModel.from_pretrained(tmp_path / "saved")
    nothing = CaptionDatastore.build(model, [], processor)
    for store in (datastore, loaded.datastore, nothing):
        model.set_datastore(store)
        assert len(store) == 0
        assert store.search(embed(model, processor, songs), k=2, exclude_ids=["a"] * 4).ids == [[]] * 4
        assert model.generate(input_features=features).tolist() == alone.tolist()
    nothing.add(model, songs[:1], processor)
    assert nothing.rows["id"][:] == ["song-0"]
    text_only = make_model(conditioning="candidate")
    text_only.set_datastore(CaptionDatastore.build(text_only, [], processor))
    with pytest.raises(ValueError, match="candidates alone and has none"):
        text_only.generate(input_features=features)


# -- swapped and shared -----------------------------------------------------------------------------------------------


def test_another_datastore_gives_other_candidates_and_captions_unless_candidates_are_given(
    make_model, processor, songs
):
    model = make_model()
    with torch.no_grad():  # with its small weights, an untrained decoder says the same of every clip
        for weight in model.text_model.parameters():
            weight.mul_(20 if weight.ndim > 1 else 1)
    features = processor(audio=songs[0]["audio"])["input_features"]
    given = processor(candidates=["a happy waltz"])
    seen, captions, ignoring = [], [], []
    for texts in (CAPTIONS[:4], CAPTIONS[4:]):
        rows = [song | {"caption": text} for song, text in zip(songs, texts)]
        model.set_datastore(CaptionDatastore.build(model, rows, processor))
        seen.append(model.retrieve(model.embed_audio(features)).captions)
        captions.append(model.generate(input_features=features).tolist())
        ignoring.append(model.generate(input_features=features, **given).tolist())
    assert seen == [[[CAPTIONS[0]]], [[CAPTIONS[4]]]]
    assert captions[0] != captions[1]
    assert ignoring[0] == ignoring[1]


def test_tokens_of_another_decoder_are_refused_where_the_encoder_is_the_same(make_model, processor, songs, tmp_path):
    CaptionDatastore.build(make_model(), songs, processor).save_pretrained(tmp_path / "store")
    other = make_model()
    other.resize_token_embeddings(500)
    assert other.encoder_fingerprint() == make_model().encoder_fingerprint()
    with pytest.raises(ValueError, match=r"tokens for a vocabulary of \d+, but this model's has 500.*Rebuild"):
        other.set_datastore(CaptionDatastore.from_pretrained(tmp_path / "store"))


@pytest.mark.parametrize("folder", ["", "datastore"])
def test_a_pushed_datastore_is_read_back_by_its_id(folder, tmp_path, monkeypatch):
    commit = tmp_path / "models--somebody--store" / "snapshots" / "abc"

    def upload_folder(repo_id, folder_path, path_in_repo, allow_patterns, **kwargs):
        target = commit / (path_in_repo or "")
        target.mkdir(parents=True)
        for path in (path for pattern in allow_patterns for path in Path(folder_path).glob(pattern)):
            os.replace(path, target / path.name)
        assert not list(Path(folder_path).iterdir())

    monkeypatch.setattr(retrieval_rgmc, "create_repo", lambda repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(retrieval_rgmc, "upload_folder", upload_folder)
    datastore = make_datastore(string_factory="HNSW8")
    datastore.push_to_hub("somebody/store", path_in_repo=folder)
    (commit.parent.parent / "refs").mkdir()
    (commit.parent.parent / "refs" / "main").write_text("abc")
    loaded = CaptionDatastore.from_pretrained("somebody/store", cache_dir=tmp_path, local_files_only=True)
    assert loaded.search(unit_vectors(4, seed=1), k=2) == datastore.search(unit_vectors(4, seed=1), k=2)
    assert sorted(path.name for path in (commit / folder).iterdir()) == sorted(DATASTORE_FILES)


# Nothing of the sizes named here is allocated.
@pytest.mark.parametrize(
    "string_factory",
    [
        *("IVF1000000000,Flat", "IVF300000,Flat", "IVF99999999999999999999,Flat", "IVF0,Flat", "IVF-1,Flat"),
        *("HNSW100000", "HNSW1", "HNSW0", "IVF4_HNSW1,Flat", "IVF4_HNSW1000,Flat"),
        *("IVF4,PQ4x30", "IVF4,PQ4x9", "PQ4x30", "IVF4,PQ1000", "IVF4,PQ0", "IVF4,PQ7", "OPQ4_1000,IVF4,PQ4"),
        *("RR99999999,Flat", "Pad100000000,Flat", "PCA8,Flat", "IDMap,Flat", "LSH", "NSG32", "IMI2x30,Flat", "", "("),
        *("Flat\n", "IVF\u0664,Flat"),
    ],
)
def test_an_index_of_absurd_size_or_of_another_family_is_refused_unmade(string_factory, tmp_path, monkeypatch):
    make_datastore(300).save_pretrained(tmp_path)
    change_description(tmp_path / "datastore.json", string_factory=string_factory)
    if string_factory != "IVF4,PQ7":  # FAISS itself reports that 16 is not divisible by 7
        monkeypatch.setattr(faiss, "index_factory", lambda *args: pytest.fail("FAISS is asked"))
    with pytest.raises(ValueError, match=re.escape(repr(string_factory))):
        CaptionDatastore.from_pretrained(tmp_path)
    assert len(CaptionDatastore.from_pretrained(tmp_path, string_factory="Flat")) == 300
