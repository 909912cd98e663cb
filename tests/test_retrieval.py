"""What CaptionDatastore promises: exact inner-product search, exclusion by id, and files that belong together."""

import json

import faiss
import numpy as np
import pytest
import torch
from datasets import Dataset, are_progress_bars_disabled
from helpers import make_datastore, make_rows, unit_vectors

import retrieval_rgmc
from captions_rgmc import join_candidates, left_pad
from retrieval_rgmc import CaptionDatastore
from search_rgmc import STORAGES, search_exactly


@pytest.mark.parametrize("queries", [3, 400])  # below and above the number from which FAISS multiplies matrices
def test_search_is_exact_and_by_inner_product(queries):
    datastore, vectors = make_datastore(300), unit_vectors(queries, seed=1)
    rows, similarities = datastore.search_rows(2 * vectors, k=3)  # L2 would order queries of another norm differently
    products = vectors @ datastore.embeddings.T
    expected = np.argsort(-products, axis=1)[:, :3]
    assert (rows == expected).all()
    np.testing.assert_allclose(similarities, 2 * np.take_along_axis(products, expected, axis=1), atol=1e-5)


def test_no_row_is_its_own_candidate_even_among_identical_embeddings():
    vectors = np.repeat(unit_vectors(5), 4, axis=0)  # each song four times: any of them may rank first
    datastore = CaptionDatastore(make_rows(20), vectors, "f00d")
    rows, _ = datastore.search_rows(vectors, k=2, exclude_ids=datastore.rows["id"])
    assert (rows != np.arange(20)[:, None]).all()
    assert (rows // 4 == np.arange(20)[:, None] // 4).all()  # the copies with other ids are found


def test_the_same_text_under_another_id_may_be_chosen():
    rows = Dataset.from_dict(
        {"id": ["a", "b", "c"], "caption": ["same", "same", "other"], "input_ids": [[1], [1], [2]]}
    )
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], np.float32)
    datastore = CaptionDatastore(rows, vectors, "f00d")
    assert datastore.search(vectors[:1], exclude_ids=["a"]).ids == [["b"]]
    assert datastore.search(vectors[:1], exclude_ids=["a"]).captions == [["same"]]
    assert datastore.search(vectors[:1]).ids == [["a"]]


def test_fewer_rows_than_candidates_give_fewer_candidates():
    datastore = make_datastore(2)
    found = datastore.search(datastore.embeddings[:1], k=3, exclude_ids=["song-0"])
    assert found.ids == [["song-1"]]
    assert found.input_ids == [[[1, 2]]]
    assert len(found.similarities[0]) == 1
    alone = make_datastore(1)
    assert alone.search(alone.embeddings, exclude_ids=["song-0"]).ids == [[]]


def test_the_search_of_a_gpu_finds_what_faiss_finds():
    datastore, queries = make_datastore(300), unit_vectors(70, seed=1)
    expected_rows, expected_similarities = datastore.search_rows(queries, k=5)
    torch.set_float32_matmul_precision("high")  # as training does on a GPU
    try:
        rows, similarities = search_exactly(datastore.embeddings, queries, 5, "cpu", batch_size=32)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(similarities, expected_similarities, atol=1e-6)
    assert (rows.dtype, similarities.dtype) == (expected_rows.dtype, expected_similarities.dtype)


def test_the_search_of_a_gpu_fills_up_with_no_row():
    vectors = unit_vectors(2)
    rows, similarities = search_exactly(vectors, vectors, 4, "cpu")
    assert rows.tolist() == [[0, 1, -1, -1], [1, 0, -1, -1]]
    assert (similarities[:, 2:] == -np.inf).all()


def test_the_search_of_a_gpu_excludes_by_id(monkeypatch):
    devices = []

    def search_on_the_cpu(embeddings, queries, k, device):
        devices.append(device)
        return search_exactly(embeddings, queries, k, "cpu")

    monkeypatch.setattr(retrieval_rgmc, "search_exactly", search_on_the_cpu)
    monkeypatch.setattr(faiss, "knn", lambda *args, **kwargs: pytest.fail("FAISS searches"))
    vectors = np.repeat(unit_vectors(5), 4, axis=0)  # each song four times: any of them may rank first
    datastore = CaptionDatastore(make_rows(20), vectors, "f00d")
    rows, _ = datastore.search_rows(vectors.astype(np.float64), k=2, exclude_ids=datastore.rows["id"], device="cuda")
    assert devices == ["cuda"]
    assert (rows != np.arange(20)[:, None]).all()
    assert (rows // 4 == np.arange(20)[:, None] // 4).all()
    alone = make_datastore(1)
    assert alone.search_rows(alone.embeddings, exclude_ids=["song-0"], device="cuda")[0].tolist() == [[-1]]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("string_factory", ["Flat", "HNSW8"])
def test_the_rows_are_a_dataset_whose_index_is_the_search(storage, string_factory, tmp_path):
    datastore = make_datastore(300, storage=storage, string_factory=string_factory)
    datastore.save_pretrained(tmp_path)
    queries = unit_vectors(40, seed=1)
    for store in (datastore, CaptionDatastore.from_pretrained(tmp_path)):
        found, (rows, similarities) = store.search(queries, k=3), store.search_rows(queries, k=3)
        by_dataset = store.rows.search_batch("embeddings", queries, 3)
        np.testing.assert_array_equal(by_dataset.total_indices, rows)
        np.testing.assert_array_equal(by_dataset.total_scores, similarities)
        scores, examples = store.rows.get_nearest_examples("embeddings", queries[7], 3)
        assert (examples["id"], examples["caption"]) == (found.ids[7], found.captions[7])
        np.testing.assert_allclose(scores, similarities[7], atol=1e-6)  # a single query is multiplied in another order
        if string_factory == "Flat":
            products = queries @ store.read_embeddings(slice(None)).T
            np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :3])


@pytest.mark.parametrize("string_factory", ["Flat", "HNSW8"])
def test_queries_of_any_number_type_and_layout_are_searched(string_factory):
    datastore, queries = make_datastore(300, string_factory=string_factory), unit_vectors(40, seed=1)
    expected = datastore.search_rows(queries, k=3)[0]
    for given in (queries.astype(np.float64), np.asfortranarray(queries), queries[::-1].copy()[::-1]):
        np.testing.assert_array_equal(datastore.search_rows(given, k=3)[0], expected)
        np.testing.assert_array_equal(datastore.rows.search_batch("embeddings", given, 3)[1], expected)
    with pytest.raises(ValueError, match=r"shape \(B, 16\), got \(40, 8\)"):
        datastore.rows.search_batch("embeddings", queries[:, :8], 3)


def test_a_dataset_of_rows_finds_fewer_examples_where_there_are_fewer():
    datastore = make_datastore(2)
    assert len(datastore.rows.get_nearest_examples("embeddings", unit_vectors(1)[0], 5).scores) == 2
    datastore.remove(["song-0", "song-1"])
    assert datastore.rows.get_nearest_examples("embeddings", unit_vectors(1)[0], 5).examples["id"] == []


@pytest.mark.parametrize("storage", STORAGES)
def test_the_index_of_the_rows_shares_the_embeddings_whatever_view_of_them_is_made(storage, tmp_path):
    make_datastore(300, storage=storage).save_pretrained(tmp_path)
    datastore = CaptionDatastore.from_pretrained(tmp_path)
    for rows in (datastore.rows, datastore.rows.with_format("torch")):
        index = rows.get_index("embeddings").faiss_index
        assert np.shares_memory(index.embeddings, datastore.embeddings)
        assert (index.ntotal, index.d, index.metric_type) == (300, 16, faiss.METRIC_INNER_PRODUCT)
    assert datastore.rows.column_names == ["id", "caption", "input_ids", "source", "license", "original"]
    with pytest.raises(ValueError, match="1 vectors for the index"):
        index.add(unit_vectors(1))
    with pytest.raises(ValueError, match="exact search has no parameters"):
        datastore.rows.search_batch("embeddings", unit_vectors(1), 1, params=faiss.SearchParameters())


def test_a_plain_dataset_of_the_rows_leaves_the_datastore_its_index():
    datastore = make_datastore()
    plain = datastore.rows.with_format(None)
    plain.drop_index("embeddings")
    assert plain.select([3])["id"] == ["song-3"]
    assert datastore.search(datastore.embeddings[3:4]).ids == [["song-3"]]


def test_attaching_the_index_shows_no_progress_bar_and_leaves_the_setting(capsys):
    assert not are_progress_bars_disabled()
    make_datastore()
    assert not are_progress_bars_disabled()
    assert capsys.readouterr().err == ""


def test_rows_of_a_datastore_make_another():
    former = make_datastore()
    vectors = unit_vectors(50, seed=1)
    rows, _ = CaptionDatastore(former.rows, vectors, "beef").search_rows(vectors)
    assert (rows[:, 0] == np.arange(50)).all()
    assert former.search(former.embeddings[3:4]).ids == [["song-3"]]


def test_a_saved_datastore_finds_the_same(tmp_path):
    datastore = make_datastore()
    datastore.save_pretrained(tmp_path / "datastore")
    assert sorted(path.name for path in (tmp_path / "datastore").iterdir()) == [
        "captions.parquet",
        "datastore.json",
        "embeddings.safetensors",
    ]
    for folder in (tmp_path, tmp_path / "datastore"):
        loaded = CaptionDatastore.from_pretrained(folder)
        queries = unit_vectors(5, seed=2)
        assert loaded.search(queries, k=3) == datastore.search(queries, k=3)
        assert (loaded.encoder_fingerprint, len(loaded)) == ("f00d", 50)


def test_saving_after_a_search_works(tmp_path):
    datastore = make_datastore()
    datastore.search(datastore.embeddings[:1])
    datastore.save_pretrained(tmp_path)
    assert len(CaptionDatastore.from_pretrained(tmp_path)) == 50


def test_files_that_do_not_belong_together_are_an_error(tmp_path):
    make_datastore(50).save_pretrained(tmp_path / "a")
    make_datastore(49).save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "embeddings.safetensors").replace(tmp_path / "a" / "embeddings.safetensors")
    with pytest.raises(ValueError, match="incomplete"):
        CaptionDatastore.from_pretrained(tmp_path / "a")
    description = json.loads((tmp_path / "b" / "datastore.json").read_text())
    (tmp_path / "b" / "datastore.json").write_text(json.dumps({**description, "format_version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        CaptionDatastore.from_pretrained(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"datastore\.json"):
        CaptionDatastore.from_pretrained(tmp_path)


def test_rows_that_cannot_be_searched_are_errors_that_name_them():
    with pytest.raises(ValueError, match="input_ids"):
        CaptionDatastore(make_rows(3).remove_columns("input_ids"), unit_vectors(3), "f00d")
    with pytest.raises(ValueError, match="one embedding per caption"):
        CaptionDatastore(make_rows(3), unit_vectors(4), "f00d")
    vectors = unit_vectors(3)
    vectors[1] *= 2
    with pytest.raises(ValueError, match="song-1"):
        CaptionDatastore(make_rows(3), vectors, "f00d")
    vectors[1] = np.nan
    with pytest.raises(ValueError, match="song-1"):
        CaptionDatastore(make_rows(3), vectors, "f00d")
    twice = make_rows(3).remove_columns("id").add_column("id", ["a", "b", "a"])
    with pytest.raises(ValueError, match="'a'"):
        CaptionDatastore(twice, unit_vectors(3), "f00d")
    with pytest.raises(ValueError, match=r"\(B, 16\)"):
        make_datastore().search_rows(unit_vectors(2, size=8))


def test_prompts_end_each_candidate_with_a_separator():
    assert join_candidates([], 0) == [0]
    assert join_candidates([[5, 6]], 0) == [5, 6, 0]
    assert join_candidates([[5, 6], [7]], 0) == [5, 6, 0, 7, 0]


def test_prompts_are_padded_on_the_left_by_length():
    input_ids, mask = left_pad([[5, 0], [0]], pad_token_id=0)
    assert input_ids.tolist() == [[5, 0], [0, 0]]
    assert mask.tolist() == [[1, 1], [0, 1]]
