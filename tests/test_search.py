"""What the search promises: smaller storage and every index find the same, and unusable options are refused."""

import re

import faiss
import numpy as np
import pytest
from helpers import make_datastore, make_rows, unit_vectors

import search_rgmc
from retrieval_rgmc import DATASTORE_FILES, CaptionDatastore
from search_rgmc import STORAGES, check_search, search_exactly


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_index_that_is_not_filled_to_the_end_is_not_searched(error, monkeypatch):
    datastore = make_datastore(50, string_factory="HNSW8", storage="float16")
    expected = make_datastore(50, storage="float16").search(unit_vectors(4, seed=1)).ids
    blocks = search_rgmc._blocks

    def interrupted(*args):
        yield next(blocks(*args))
        raise error

    monkeypatch.setattr(search_rgmc, "BLOCK_ROWS", 8)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(search_rgmc, "_blocks", interrupted)
        datastore.search(unit_vectors(4, seed=1))
    assert datastore.search(unit_vectors(4, seed=1)).ids == expected
    assert datastore.index.ntotal == 50


def test_an_index_for_which_there_are_too_few_captions_is_an_error_and_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"'IVF8,Flat' cannot be trained with 5 captions.*fewer cells, or 'Flat'"):
        make_datastore(5, string_factory="IVF8,Flat")
    datastore = make_datastore(8, string_factory="IVF8,Flat", search_parameters="nprobe=8")
    with pytest.raises(ValueError, match="cannot be trained with 7 captions"):
        datastore.remove("song-0")
    assert datastore.search(unit_vectors(8)).ids == [[f"song-{row}"] for row in range(8)]
    datastore.remove(datastore.rows["id"])
    datastore.save_pretrained(tmp_path)
    assert CaptionDatastore.from_pretrained(tmp_path).search(unit_vectors(1)).ids == [[]]


def test_an_index_follows_the_rows():
    datastore = make_datastore(50, string_factory="HNSW8", search_parameters="efSearch=40")
    assert datastore.search(datastore.embeddings[7:8]).ids == [["song-7"]]
    vectors = datastore.embeddings[7:8].copy()
    datastore.remove("song-7")
    assert datastore.index.ntotal == datastore.rows.get_index("embeddings").faiss_index.ntotal == 49
    assert faiss.downcast_index(datastore.index).hnsw.efSearch == 40
    assert datastore.rows.get_nearest_examples("embeddings", vectors[0], 1).examples["id"] != ["song-7"]
    assert datastore.search(vectors).ids != [["song-7"]]
    assert datastore.search(datastore.embeddings[7:8]).ids == [["song-8"]]


@pytest.mark.parametrize(("storage", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_a_smaller_storage_is_smaller_and_finds_the_same(storage, size, tmp_path, monkeypatch):
    exact = make_datastore(300)
    datastore = make_datastore(300, storage=storage)
    queries = unit_vectors(40, seed=1)
    found = datastore.search(queries, k=2)
    similarities = np.array(exact.search(queries, k=1).similarities)
    assert np.abs(np.array(found.similarities)[:, :1] - similarities).max() < {4: 1e-7, 2: 1e-3, 1: 0.02}[size]
    np.testing.assert_allclose(np.linalg.norm(datastore.read_embeddings(slice(None)), axis=1), 1, atol=1e-6)
    assert datastore.embeddings.nbytes == 300 * 16 * size
    if storage == "int8":  # the whole range is used, although the 512 numbers of a unit vector are small
        assert (np.abs(datastore.embeddings).max(axis=1) == 127).all()
    datastore.save_pretrained(tmp_path)
    assert (tmp_path / "embeddings.safetensors").stat().st_size < 300 * 16 * size + 200
    loaded = CaptionDatastore.from_pretrained(tmp_path)
    assert (loaded.storage, loaded.embeddings.dtype) == (storage, storage)
    assert loaded.search(queries, k=2) == found
    # In blocks of any size, on any device
    monkeypatch.setattr(search_rgmc, "BLOCK_ROWS", 64)
    assert loaded.search(queries, k=2).ids == found.ids
    rows, similarities = search_exactly(loaded.embeddings, queries, 2, "cpu", batch_size=16, block_rows=7)
    assert [[f"song-{row}" for row in query] for query in rows] == found.ids
    np.testing.assert_allclose(similarities, found.similarities, atol=1e-6)


def test_blocks_smaller_than_k_find_all_rows_in_order(monkeypatch):
    datastore, queries = make_datastore(10), unit_vectors(3, seed=1)
    expected = datastore.search_rows(queries, k=12)
    monkeypatch.setattr(search_rgmc, "BLOCK_ROWS", 4)
    rows, similarities = datastore.search_rows(queries, k=12)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(similarities, expected[1])
    assert (rows[:, 10:] == -1).all() and (rows[:, :10] >= 0).all()
    np.testing.assert_array_equal(search_exactly(datastore.embeddings, queries, 12, "cpu", block_rows=4)[0], rows)


@pytest.mark.parametrize("storage", STORAGES)
def test_an_embedding_that_is_no_unit_vector_is_refused_in_every_storage(storage):
    for wrong in (0, np.nan, 2):
        vectors = unit_vectors(3)
        vectors[1] *= wrong
        with pytest.raises(ValueError, match="song-1"):
            CaptionDatastore(make_rows(3), vectors, "f00d", storage=storage)
    with pytest.raises(ValueError, match="float32, float16, int8"):
        make_datastore(3, storage="float64")


def test_embeddings_of_one_storage_are_read_into_another():
    stored, queries = make_datastore(300, storage="int8"), unit_vectors(40, seed=1)
    expected = stored.search(queries)
    for storage in STORAGES:
        datastore = CaptionDatastore(stored.rows, stored.embeddings, "f00d", storage=storage)
        found = datastore.search(queries)
        assert found.ids == expected.ids
        np.testing.assert_allclose(found.similarities, expected.similarities, atol=1e-3)


def test_an_index_is_not_saved_but_its_settings_and_made_at_the_first_search(tmp_path, monkeypatch):
    datastore = make_datastore(300, string_factory="IVF4,Flat", storage="float16", search_parameters="nprobe=4")
    made, make = [], search_rgmc._make_index
    monkeypatch.setattr(search_rgmc.EmbeddingIndex, "make", lambda self: pytest.fail("the index is made"))
    datastore.save_pretrained(tmp_path)
    loaded = CaptionDatastore.from_pretrained(tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(DATASTORE_FILES)
    queries = unit_vectors(50, seed=1)
    monkeypatch.setattr(search_rgmc, "_make_index", lambda *args: made.append(args) or make(*args))
    expected = make_datastore(300, storage="float16").search(queries).ids
    assert loaded.search(queries).ids == loaded.search(queries).ids == expected
    assert made == [(16, "IVF4,Flat")]
    for search_parameters, nprobe in (("nprobe=2", 2), (None, 1)):
        loaded.search_parameters = search_parameters
        assert faiss.downcast_index(loaded.index).nprobe == nprobe
        loaded.save_pretrained(tmp_path)
        assert CaptionDatastore.from_pretrained(tmp_path).search_parameters == search_parameters
    assert loaded.search(queries).ids != expected
    with pytest.raises(ValueError, match="'IVF4,Flat' has no efSearch"):
        loaded.search_parameters = "efSearch=8"
    assert loaded.search_parameters is None


def test_another_index_may_be_asked_for_when_a_datastore_is_loaded(tmp_path):
    make_datastore(300, string_factory="IVF4,Flat", search_parameters="nprobe=3").save_pretrained(tmp_path)
    for given, expected in (
        ({}, ("IVF4,Flat", "nprobe=3")),
        ({"search_parameters": "nprobe=2"}, ("IVF4,Flat", "nprobe=2")),
        ({"string_factory": "HNSW8"}, ("HNSW8", None)),
    ):
        loaded = CaptionDatastore.from_pretrained(tmp_path, **given)
        assert (loaded.string_factory, loaded.search_parameters) == expected


def test_an_index_that_takes_more_rows_than_there_are_is_refused_unmade(monkeypatch):
    monkeypatch.setattr(faiss, "index_factory", lambda *args: pytest.fail("FAISS is asked"))
    for string_factory, rows in (("IVF301,Flat", 300), ("HNSW8,PQ4", 255), ("OPQ4,Flat", 255), ("IVF4,PQ4x4", 15)):
        with pytest.raises(ValueError, match=f"cannot be trained with {rows} captions"):
            check_search(16, string_factory, "float32", rows=rows)


@pytest.mark.parametrize(
    "string_factory",
    [
        *("Flat", "HNSW8", "HNSW2", "HNSW256", "HNSW8,Flat", "HNSW8,SQ8", "HNSW8,PQ8"),
        *("IVF4,Flat", "IVF4,SQ4", "IVF4,SQ6", "IVF4,SQ8", "IVF4,SQfp16", "IVF4,PQ8x6"),
        *("IVF4_HNSW8,Flat", "IVF300,Flat", "OPQ4,IVF4,PQ4", "OPQ4_8,IVF4_HNSW8,SQ8", "OPQ4,HNSW8,SQ8"),
    ],
)
def test_every_family_of_index_finds_most_of_the_nearest(string_factory):
    datastore, exact = make_datastore(300, string_factory=string_factory), make_datastore(300)
    index = datastore.index
    if "IVF" in string_factory:
        datastore.search_parameters = "nprobe=300"
    queries = datastore.embeddings + 0.02 * unit_vectors(300, seed=1)
    found = datastore.search_rows(queries, k=5)[0]
    own = (found == exact.search_rows(queries)[0]).any(axis=1)
    assert own.mean() > 0.8, own.mean()
    assert datastore.index is index


@pytest.mark.parametrize(
    "search_parameters",
    ["nprobe=1000000", "nprobe=-1", "nprobe=0", "nprobe=abc", "nprobe", "", "verbose=1", "nprobe=2;efSearch=4"],
)
def test_search_parameters_of_another_form_are_refused(search_parameters):
    with pytest.raises(ValueError, match=re.escape(repr(search_parameters)) + " of the index 'IVF4_HNSW8,Flat'"):
        make_datastore(300, string_factory="IVF4_HNSW8,Flat", search_parameters=search_parameters)
    with pytest.raises(ValueError, match="the index 'Flat' has no nprobe"):
        make_datastore(300, search_parameters="nprobe=2")


def test_search_parameters_that_are_not_named_are_those_of_a_new_index():
    datastore = make_datastore(300, string_factory="IVF4_HNSW8,Flat", search_parameters="nprobe=3, efSearch=99")
    index = faiss.downcast_index(datastore.index)
    new = faiss.index_factory(16, "IVF4_HNSW8,Flat", faiss.METRIC_INNER_PRODUCT)
    seen = []
    for search_parameters in ("nprobe=3, efSearch=99", "nprobe=2", None):
        datastore.search_parameters = search_parameters
        seen.append((index.nprobe, faiss.downcast_index(index.quantizer).hnsw.efSearch))
    defaults = (new.nprobe, faiss.downcast_index(new.quantizer).hnsw.efSearch)
    assert seen == [(3, 99), (2, defaults[1]), defaults]
