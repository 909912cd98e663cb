"""What a datastore, a checkpoint or a corpus of somebody else cannot do: each is refused before use, or harmless."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import faiss
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from helpers import CAPTIONS, make_datastore, prepare, unit_vectors, write_sound, write_tone
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from captions.formats import read_captions, write_captions
from corpora.leaks import Clips, find_leaks
from corpora.report import write_leak_report
from model_card_rgmc import model_card
from retrieval_rgmc import INDEX_FILE, CaptionDatastore
from training.arguments import DataArguments, TrainingArguments
from training.checkpoints import run_card

HOSTILE = "a <script>alert(1)</script> song | *loud* [x](http://example.org) ![y](http://example.org/y.png) `code` $z$"


# -- the index --------------------------------------------------------------------------------------------------------


def by_distance(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return index


def permuted(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors[::-1]))
    return index


@pytest.mark.parametrize("make", [by_distance, permuted, None])
@pytest.mark.parametrize("string_factory", ["Flat", "HNSW8"])
def test_an_index_file_changes_nothing_whatever_it_holds(make, string_factory, tmp_path, monkeypatch):
    datastore = make_datastore(40, string_factory=string_factory)
    datastore.save_pretrained(tmp_path)
    if make:
        faiss.write_index(make(unit_vectors(40)), str(tmp_path / INDEX_FILE))
    else:
        (tmp_path / INDEX_FILE).write_bytes(b"IxF2" + b"\xff" * 64)
    monkeypatch.setattr(faiss, "read_index", lambda *args: pytest.fail("the file is read"))
    found = CaptionDatastore.from_pretrained(tmp_path).search(unit_vectors(6, seed=1), k=3)
    assert found == datastore.search(unit_vectors(6, seed=1), k=3)


# -- its rows ---------------------------------------------------------------------------------------------------------


def change_rows(folder: Path, **columns):
    path = folder / "captions.parquet"
    table = pyarrow.parquet.read_table(path).to_pydict()
    pyarrow.parquet.write_table(pyarrow.table(table | columns), path)


@pytest.fixture
def model_and_store(make_model, processor, tmp_path):
    """A model, and the folder of a datastore that it takes."""
    model = make_model()
    songs = [
        {"id": str(row), "audio": str(write_tone(tmp_path / f"{row}.wav", 200 + 90 * row)), "caption": CAPTIONS[row]}
        for row in range(3)
    ]
    CaptionDatastore.build(model, songs, processor).save_pretrained(tmp_path / "store")
    model.set_datastore(tmp_path / "store")
    return model, tmp_path / "store"


def test_tokens_beyond_the_vocabulary_are_refused_before_they_are_used(model_and_store):
    model, folder = model_and_store
    size = model.config.text_config.vocab_size
    change_rows(folder, input_ids=[[1], [], [size - 1]])
    model.set_datastore(folder)
    former = model.datastore
    change_rows(folder, input_ids=[[1], [], [size]])
    for vocab_size in (size, None):  # what datastore.json says of itself
        description = json.loads((folder / "datastore.json").read_text()) | {"vocab_size": vocab_size}
        (folder / "datastore.json").write_text(json.dumps(description))
        with pytest.raises(ValueError, match=f"holds the token {size}, .* vocabulary ends at {size - 1}: rebuild it"):
            model.set_datastore(folder)
    assert model.datastore is former
    model.save_pretrained(folder.parent / "checkpoint")
    change_rows(folder.parent / "checkpoint" / "datastore", input_ids=[[1], [size + 5], [2]])
    with pytest.raises(ValueError, match=f"holds the token {size + 5}"):
        type(model).from_pretrained(folder.parent / "checkpoint")


def test_a_caption_that_the_decoder_has_no_positions_for_is_refused_before_it_is_used(model_and_store):
    model, folder = model_and_store
    longest = model.config.text_config.max_position_embeddings - model.config.prefix_length - 2  # and a separator
    change_rows(folder, input_ids=[[1] * longest, [1], [2]])
    model.set_datastore(folder)
    with pytest.raises(ValueError, match="Prefix and candidate take 127 positions and `max_new_tokens` is 24"):
        model.generate(audio_embeds=torch.from_numpy(model.datastore.read_embeddings(slice(0, 1))))
    change_rows(folder, input_ids=[[1] * (longest + 1), [1], [2]])
    with pytest.raises(ValueError, match=rf"a caption of {longest + 1} tokens, which takes 128 .* has only 128"):
        model.set_datastore(folder)
    model.config.conditioning = "audio"  # which reads no candidate
    model.set_datastore(folder)


@pytest.mark.parametrize(
    "columns, error",
    [
        ({"input_ids": [[1], [-1], [2]]}, "smallest token: -1"),
        ({"input_ids": [[1], None, [2]]}, "empty in some row: input_ids"),
        ({"input_ids": [[1], [None], [2]]}, "needs id, caption, input_ids"),
        ({"input_ids": ["1", "2", "3"]}, "need texts and lists of tokens"),
        ({"input_ids": [[0.5], [1.0], [2.0]]}, "need texts and lists of tokens"),
        ({"caption": ["a", None, "c"]}, "empty in some row: caption"),
        ({"caption": [["a"], ["b"], ["c"]]}, "need texts and lists of tokens"),
        ({"id": ["0", "0", "1"]}, "ids must be unique"),
    ],
)
def test_rows_that_are_not_captions_with_their_tokens_are_refused(columns, error, tmp_path):
    make_datastore(3).save_pretrained(tmp_path)
    change_rows(tmp_path, **columns)
    with pytest.raises(ValueError, match=error):
        CaptionDatastore.from_pretrained(tmp_path)


def test_files_of_other_types_or_with_damaged_pages_are_refused(tmp_path):
    make_datastore(300).save_pretrained(tmp_path)
    path = tmp_path / "embeddings.safetensors"
    save_file({"embeddings": load_file(path)["embeddings"].clone().bfloat16()}, path)
    with pytest.raises(ValueError, match=r"is damaged .*BFloat16"):
        CaptionDatastore.from_pretrained(tmp_path)
    make_datastore(300).save_pretrained(tmp_path)
    content = bytearray((tmp_path / "captions.parquet").read_bytes())
    content[8:200] = b"\xff" * 192
    (tmp_path / "captions.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)is damaged .*copy it again"):
        CaptionDatastore.from_pretrained(tmp_path)


# -- markup -----------------------------------------------------------------------------------------------------------


def tags_and_text(path: Path) -> tuple[set[str], str]:
    tags, texts = set(), []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.add(tag)
    parser.handle_data = texts.append
    parser.feed(path.read_text(encoding="utf-8"))
    return tags, "".join(texts)


def is_harmless(markdown: str) -> bool:
    """Whether no tag, link, image, code or formula is left in what comes from `HOSTILE`."""
    return not re.search(r"(?<!\\)<script|\]\(http|(?<!\\)`code|(?<!\\)\$z|(?<!\\)\| \*loud", markdown)


def test_captions_and_ids_are_text_in_the_reports_of_a_corpus(tmp_path):
    for number in range(3):
        write_sound(tmp_path / f"raw/{number}.wav", seed=number)
    lines = [{"id": f"{HOSTILE} {number}", "text": HOSTILE, "file": f"{number}.wav"} for number in range(3)]
    (tmp_path / "raw" / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--source", tmp_path / "raw" / "table.jsonl", "--caption_columns", "text", "--file_column", "file"]
    prepare("any", *options, "--num_proc", 1, "--output_dir", tmp_path / "out")
    tags, text = tags_and_text(tmp_path / "out" / "report.html")
    assert "script" not in tags and "a" not in tags and f"{HOSTILE} 0" in text
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "alert(1)" in markdown and is_harmless(markdown)
    clips = {name: Clips([f"{name} {HOSTILE}"], [[HOSTILE]], [f"{HOSTILE}.wav"], ["00"]) for name in ("train", "test")}
    report = {"dataset": HOSTILE, "train_split": "train", **find_leaks(clips)}
    report["options"] = {"train_dataset": HOSTILE, "ngram": 5, "threshold": 0.8, "model": None, "audio_threshold": None}
    write_leak_report(tmp_path, report)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "alert(1)" in markdown and is_harmless(markdown)


def test_what_a_checkpoint_says_of_its_origin_is_text_in_the_card_of_the_next(make_config, tmp_path):
    source = {"name": f"{HOSTILE}\n\n# `title`\n---", "revision": "0" * 40}
    config = make_config(audio_model_source=source, text_model_source=source)
    arguments = (TrainingArguments(output_dir=str(tmp_path)), DataArguments(dataset="tunes"))
    card = run_card((arguments[0], arguments[1], arguments[0]), config, 1.0, 1)
    (line,) = (line for line in card.splitlines() if line.startswith("It started with"))
    assert line.count("`") == 6 and "# 'title' ---`" in line
    source["name"] = "x\n---\nlicense: of-somebody\n---\n# title"
    front = ModelCard(model_card("name", make_config(text_model_source=source), model_license="mit")).data
    assert front.license == "mit" and front.base_model == [source["name"]]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-1", "'tis", "a = b", "'"])
def test_no_text_of_a_csv_is_a_formula_and_each_is_read_back(text, tmp_path):
    row = {"path": f"{text}.mp3", "duration": 1.5, "start": 0.5, "caption": text, "score": -0.5, "audio": text}
    row |= {"flags": [], "candidates": [], "alternatives": [], "key": text}
    row |= {"checkpoint": {"name": text, "revision": None, "fingerprint": text}}
    write_captions(tmp_path / "captions.csv", [row])
    assert read_captions(tmp_path / "captions.csv") == [row]
    written = (tmp_path / "captions.csv").read_bytes().decode().split("\n", 1)[1]
    assert not re.search(r'(^|,)"[=+\-@\t\r]', written)
