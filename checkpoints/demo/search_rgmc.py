"""
Searches among embeddings (section 3.2): how they are stored, exact search by dot product, and FAISS indexes.

Shape letters: `N` rows, `B` queries, `E` numbers of an embedding, `K` candidates.
"""

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.utils import logging

if TYPE_CHECKING:
    try:
        import faiss
    except ImportError:
        pass

STORAGES = ("float32", "float16", "int8")
BLOCK_ROWS = 2**16  # rows converted to float32 at once
INDEX_TRAINING_ROWS = 2**18
# A request to FAISS may come from a stranger's file: it must not end the process or take unlimited memory.
MAX_HNSW_LINKS = 256
NUMBER = "[1-9][0-9]{0,5}"
CODES = f"(Flat|SQ4|SQ6|SQ8|SQfp16|PQ{NUMBER}(x[1-8])?)"
STRING_FACTORY = re.compile(
    f"(OPQ{NUMBER}(_{NUMBER})?,)?(Flat|HNSW{NUMBER}(,{CODES})?|IVF{NUMBER}(_HNSW{NUMBER})?,{CODES})"
)
DEFAULT_PARAMETERS = {"nprobe": 1, "efSearch": 16}  # the defaults of FAISS
PARAMETER = f"({'|'.join(DEFAULT_PARAMETERS)})={NUMBER}"
SEARCH_PARAMETERS = re.compile(f"{PARAMETER}(, ?{PARAMETER})*")


class EmbeddingIndex:
    """
    The index of [`CaptionDatastore.rows`], with as much of the interface of `faiss.Index` as `datasets` uses.

    It shares the stored embeddings of the datastore. `"Flat"` searches the embeddings themselves; any other
    `string_factory` searches a FAISS index, made from them when it is first needed.
    """

    is_trained = True

    def __init__(self, embeddings: np.ndarray, string_factory: str, search_parameters: str | None = None):
        self.embeddings = embeddings
        self.string_factory = string_factory
        self.search_parameters = search_parameters
        self.ntotal, self.d = embeddings.shape
        self.metric_type = _import_faiss().METRIC_INNER_PRODUCT
        self._made: faiss.Index | None = None

    def __deepcopy__(self, memo: dict) -> "EmbeddingIndex":
        return self  # `rows.with_format` and others copy a dataset and its indexes

    def add(self, vectors: np.ndarray):
        """Accepts no vectors: `datasets` adds those of a dataset to its index, but this one has them already."""
        if len(vectors):
            raise ValueError(f"Got {len(vectors)} vectors for the index of a datastore: use `CaptionDatastore.add`")

    def search(
        self, queries: np.ndarray, k: int, params: "faiss.SearchParameters | None" = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns similarities and row numbers, each `(B, K)`, -1 where there are fewer rows; `params` as in FAISS."""
        queries = as_queries(queries, self.d)
        if self.string_factory != "Flat" and self.ntotal:
            return self.make().search(queries, k, params=params)
        if params is not None:
            raise ValueError("An exact search has no parameters, got `params`")
        faiss = _import_faiss()
        best = faiss.ResultHeap(len(queries), k, keep_max=True)
        for start, block in _blocks(self.embeddings, BLOCK_ROWS):
            similarities, rows = faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
            best.add_result(similarities, rows + start)  # -1 is never better than nothing
        best.finalize()
        return best.D, best.I

    def make(self) -> "faiss.Index":
        """Makes the FAISS index of `string_factory` with all embeddings, at the first call."""
        if self._made is None:
            index = _make_index(self.d, self.string_factory)
            described = f"Making the index {self.string_factory}"
            with logging.tqdm(total=self.ntotal, desc=described, unit="caption", leave=False) as progress:
                if not index.is_trained:
                    every = math.ceil(self.ntotal / INDEX_TRAINING_ROWS)
                    try:
                        index.train(np.ascontiguousarray(decode_embeddings(self.embeddings[::every])))
                    except RuntimeError as error:
                        raise ValueError(
                            f"The index {self.string_factory!r} cannot be trained with {self.ntotal} captions "
                            f"({error}): take one with fewer cells, or 'Flat' (exact)"
                        ) from error
                # float32 goes in at once, because an index that grows is copied again and again.
                is_float32 = self.embeddings.dtype == np.float32
                for _, block in _blocks(self.embeddings, max(self.ntotal, 1) if is_float32 else BLOCK_ROWS):
                    index.add(block)
                    progress.update(len(block))
            _set_parameters(index, self.string_factory, self.search_parameters)
            self._made = index  # only when complete, so that an interruption leaves none
        return self._made

    def set_search_parameters(self, search_parameters: str | None):
        if self._made is not None:
            _set_parameters(self._made, self.string_factory, search_parameters)
        self.search_parameters = search_parameters


def as_queries(queries: torch.Tensor | np.ndarray, size: int) -> np.ndarray:
    if isinstance(queries, torch.Tensor):
        queries = queries.detach().float().cpu().numpy()
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != size:
        raise ValueError(f"Queries must have the shape (B, {size}), got {queries.shape}")
    return queries


def _make_index(size: int, string_factory: str) -> "faiss.Index":
    faiss = _import_faiss()
    try:
        return faiss.index_factory(size, string_factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"string_factory {string_factory!r}: FAISS has no such index for vectors of {size} numbers ({error})"
        ) from error


def _set_parameters(index: "faiss.Index", string_factory: str, search_parameters: str | None):
    """Sets the parameters of an index; those not named take the defaults of FAISS."""
    space = _import_faiss().ParameterSpace()
    given = dict(re.findall("([a-zA-Z]+)=([0-9]+)", search_parameters or ""))
    for name, default in DEFAULT_PARAMETERS.items():
        try:
            space.set_index_parameter(index, name, int(given.get(name, default)))
        except RuntimeError as error:  # not a parameter of this index
            if name in given:
                raise ValueError(
                    f"search_parameters {search_parameters!r}: the index {string_factory!r} has no {name}"
                ) from error


def _check_factory(size: int, string_factory: str, rows: int | None):
    if not STRING_FACTORY.fullmatch(string_factory):
        raise ValueError(
            f"string_factory {string_factory!r}: expected 'Flat', or an index like 'HNSW32' or 'IVF1024_HNSW32,SQ8' "
            "(the docstring of CaptionDatastore lists them)"
        )
    limits = {"IVF": INDEX_TRAINING_ROWS, "HNSW": MAX_HNSW_LINKS, "OPQ": size, "_": size, "PQ": size}
    for name, number, bits in re.findall("(IVF|HNSW|OPQ|_|PQ)([0-9]+)(?:x([0-9]))?", string_factory):
        least = 2 if name == "HNSW" else 1  # with a single link FAISS ends the process
        if not least <= int(number) <= limits[name]:
            raise ValueError(
                f"string_factory {string_factory!r}: the number in {name}{number} must be {least} to {limits[name]} "
                f"for vectors of {size} numbers"
            )
        needed = {"IVF": int(number), "OPQ": max(size, 256), "PQ": 2 ** int(bits or 8)}.get(name, 1)
        if rows and needed > rows:
            raise ValueError(
                f"The index {string_factory!r} cannot be trained with {rows} captions, {name}{number} needs {needed}: "
                "take one with fewer cells, or 'Flat' (exact)"
            )


def check_search(
    size: int, string_factory: str, storage: str, search_parameters: str | None = None, rows: int | None = None
):
    """
    Checks the options of a [`CaptionDatastore`] without allocating anything large.

    Args:
        size (`int`):
            Numbers `E` of an embedding.
        string_factory, storage, search_parameters (`str`):
            As in [`CaptionDatastore`].
        rows (`int`, *optional*):
            Number of rows `N`, if known.

    Raises:
        `ValueError`: If an option does not exist or does not suit these sizes.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage {storage!r}: expected one of {', '.join(STORAGES)}")
    _check_factory(size, string_factory, rows)
    if search_parameters is not None and not SEARCH_PARAMETERS.fullmatch(search_parameters):
        raise ValueError(
            f"search_parameters {search_parameters!r} of the index {string_factory!r}: expected 'nprobe=32', "
            "'efSearch=64' or both with a comma between them, with whole numbers from 1 to 999999"
        )
    if rows != 0 and (string_factory != "Flat" or search_parameters is not None):  # the index of no rows is never made
        _set_parameters(_make_index(size, string_factory), string_factory, search_parameters)


def encode_embeddings(vectors: np.ndarray, storage: str) -> np.ndarray:
    """
    Converts unit vectors `(N, E)` to the type they are stored in. Vectors of that type are returned unchanged.

    For int8 a vector is scaled so that its largest number is ±127. The scale is not stored, because only the direction
    counts: [`decode_embeddings`] normalises again.
    """
    check_search(vectors.shape[1], "Flat", storage)
    if vectors.dtype == storage:
        return np.ascontiguousarray(vectors)
    if vectors.dtype == np.int8:
        vectors = decode_embeddings(vectors)
    if storage == "float32":
        return np.ascontiguousarray(vectors, dtype=np.float32)
    encoded = np.empty(vectors.shape, storage)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        if storage == "int8":
            block = np.rint(block * (127 / np.abs(block).max(axis=1, keepdims=True)))
        encoded[start : start + BLOCK_ROWS] = block
    return encoded


def decode_embeddings(encoded: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """Converts what [`encode_embeddings`] made to float32 unit vectors; float32 is returned as it is, not copied."""
    if encoded.dtype in (np.float32, torch.float32):
        return encoded
    decoded = torch.nn.functional.normalize(torch.as_tensor(encoded).float(), dim=1)
    return decoded.numpy() if isinstance(encoded, np.ndarray) else decoded


def _blocks(encoded: np.ndarray, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields blocks of at most `rows` rows as float32, each with the number of its first row."""
    for start in range(0, len(encoded), rows):
        yield start, decode_embeddings(encoded[start : start + rows])


@torch.no_grad()
def search_exactly(
    embeddings: np.ndarray,
    queries: np.ndarray,
    k: int,
    device: str | torch.device,
    batch_size: int = 1024,
    block_rows: int = 2**18,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Finds the `k` rows of `embeddings` with the largest dot product with each query, on any device.

    It needs memory on `device` for the queries, `block_rows` x `E` numbers, and `batch_size` x `block_rows` numbers.

    Args:
        embeddings (`np.ndarray` of shape `(N, E)`):
            Embeddings as they are stored.
        queries (`np.ndarray` of shape `(B, E)`):
            L2-normalised embeddings in float32.
        k (`int`):
            Number of candidates `K`.
        device (`str` or `torch.device`):
            Where the products are computed.
        batch_size (`int`, defaults to 1024), block_rows (`int`, defaults to 262144):
            Queries and rows of a single product.

    Returns:
        `tuple`: Row numbers and similarities, each `(B, K)`, as a flat FAISS index gives them.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 would shuffle near neighbours
    try:
        batches = torch.from_numpy(queries).to(device).split(batch_size)
        best = [(batch.new_empty(len(batch), 0), batch.new_empty(len(batch), 0).long()) for batch in batches]
        for start in range(0, len(embeddings), block_rows):
            block = decode_embeddings(torch.from_numpy(embeddings[start : start + block_rows]).to(device))
            for number, batch in enumerate(batches):
                found, rows = torch.topk(batch @ block.T, min(k, len(block)), dim=1)
                found, rows = torch.cat([best[number][0], found], 1), torch.cat([best[number][1], rows + start], 1)
                found, kept = torch.topk(found, min(k, found.shape[1]), dim=1)
                best[number] = found, rows.gather(1, kept)
        similarities, rows = (torch.cat(part).cpu() for part in zip(*best))
    finally:
        torch.set_float32_matmul_precision(precision)
    missing = (0, k - rows.shape[1])
    pad = torch.nn.functional.pad
    return pad(rows, missing, value=-1).numpy(), pad(similarities, missing, value=-math.inf).numpy()


def _import_faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Retrieval needs FAISS: `pip install faiss-cpu`") from error
    return faiss
