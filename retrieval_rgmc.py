"""
The captions that RGMC retrieves its candidates from (sections 3.2 and 4 of the paper).

Shape letters: `N` datastore rows, `B` queries, `E` numbers of an audio embedding, `K` candidates.
"""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers.utils import cached_file

if TYPE_CHECKING:
    try:
        import datasets
    except ImportError:
        pass

FORMAT_VERSION = 1
COLUMNS = ["id", "caption", "input_ids"]
DATASTORE_FILES = ("datastore.json", "captions.parquet", "embeddings.safetensors")
# Large enough for FAISS to multiply matrices (it does from 250 queries of 512 numbers on), small enough for its memory.
SEARCH_BATCH_SIZE = 4096


def join_candidates(candidates: list[list[int]], separator_token_id: int) -> list[int]:
    """
    The decoder's prompt: each candidate's tokens and a separator, or the separator alone when there is no
    candidate.
    """
    prompt = [token_id for candidate in candidates for token_id in [*candidate, separator_token_id]]
    return prompt or [separator_token_id]


def left_pad(prompts: list[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Prompts of unequal lengths as `input_ids` and `attention_mask`, each `(B, L)`; generation continues on the
    right.
    """
    length = max(map(len, prompts))
    input_ids = [[pad_token_id] * (length - len(prompt)) + prompt for prompt in prompts]
    attention_mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(input_ids), torch.tensor(attention_mask)


@dataclass
class Retrieved:
    """
    Candidates of `B` queries, the most similar first; a query has fewer than `K` where the datastore is that small.

    Attributes:
        ids, captions: For each query its candidates' ids and captions.
        input_ids: For each query its candidates' token ids.
        similarities: For each query its candidates' dot products, from -1 to 1.
    """

    ids: list[list[str]]
    captions: list[list[str]]
    input_ids: list[list[list[int]]]
    similarities: list[list[float]]


class CaptionDatastore:
    """
    Captions, their token ids, and the L2-normalised embeddings of their songs, searched by dot product with FAISS.

    Args:
        rows (`datasets.Dataset`):
            `N` rows with the columns `id` (unique), `caption` (as the model is trained on it) and `input_ids` (the
            caption's tokens, without separator).
        embeddings (`np.ndarray` of shape `(N, E)`, float32): What `RGMCModel.embed_audio` makes of their songs.
        encoder_fingerprint (`str`): `RGMCModel.encoder_fingerprint()` of the model that made them.
        string_factory (`str`, defaults to `"Flat"`): FAISS index; `"Flat"` is exact search.

    Raises:
        `ValueError`: when a column is missing, lengths differ, an id stands twice, or an embedding is not a unit
        vector.
    """

    def __init__(
        self, rows: "datasets.Dataset", embeddings: np.ndarray, encoder_fingerprint: str, string_factory: str = "Flat"
    ):
        _check_rows(rows, embeddings)
        self.rows = rows.select_columns(COLUMNS)
        for name in self.rows.list_indexes():  # another datastore's, over its embeddings
            self.rows.drop_index(name)
        self.embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        self.encoder_fingerprint = encoder_fingerprint
        self.string_factory = string_factory
        self._row_of_id = {row_id: row for row, row_id in enumerate(rows["id"][:])}

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} captions of {self.embeddings.shape[1]} numbers, {self.string_factory})"
        )

    def search_rows(
        self,
        queries: torch.Tensor | np.ndarray,
        k: int = 1,
        exclude_ids: list[str | None] | None = None,
        device: str | torch.device = "cpu",
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        The `k` most similar rows of each query.

        Args:
            queries (`(B, E)`): L2-normalised embeddings.
            k (`int`, defaults to 1): Number of candidates `K`.
            exclude_ids (`list[str | None]`, *optional*):
                For each query the id of the row that must not be its candidate, or None; a row with another id may be
                chosen even where it holds the same text (section 3: `D` without `(x, y)`).
            device (`str` or `torch.device`, defaults to `"cpu"`):
                Where an exact (`"Flat"`) search runs: FAISS on the CPU, elsewhere a float32 matrix product.

        Returns:
            Row numbers (`(B, K)`, int64, -1 where there are fewer rows than that) and similarities (`(B, K)`, float32).
        """
        queries = np.ascontiguousarray(torch.as_tensor(queries).detach().float().cpu().numpy())
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise ValueError(f"Queries must have the shape (B, {self.embeddings.shape[1]}), got {queries.shape}")
        wanted = k if exclude_ids is None else k + 1
        if self.string_factory == "Flat" and torch.device(device).type != "cpu":
            rows, similarities = search_exactly(self.embeddings, queries, wanted, device)
        else:
            self._build_index()
            found = [
                self.rows.search_batch("embedding", queries[start : start + SEARCH_BATCH_SIZE], k=wanted)
                for start in range(0, len(queries), SEARCH_BATCH_SIZE)
            ]
            similarities = np.concatenate([part.total_scores for part in found])
            rows = np.concatenate([part.total_indices for part in found])
        if exclude_ids is not None:
            # Excluded by id and never by rank: of two equal songs either may come first.
            own_rows = np.array([self._row_of_id.get(row_id, -1) for row_id in exclude_ids])
            kept_first = np.argsort(rows == own_rows[:, None], axis=1, kind="stable")[:, :k]
            rows = np.take_along_axis(rows, kept_first, axis=1)
            similarities = np.take_along_axis(similarities, kept_first, axis=1)
        return rows, similarities

    def search(
        self, queries: torch.Tensor | np.ndarray, k: int = 1, exclude_ids: list[str | None] | None = None
    ) -> Retrieved:
        """As [`~CaptionDatastore.search_rows`], but returns the candidates themselves."""
        return self.take(*self.search_rows(queries, k, exclude_ids))

    def take(self, rows: np.ndarray, similarities: np.ndarray) -> Retrieved:
        """The candidates that `search_rows` found."""
        found = [[self.rows[int(row)] for row in query if row >= 0] for query in rows]
        return Retrieved(
            ids=[[row["id"] for row in query] for query in found],
            captions=[[row["caption"] for row in query] for query in found],
            input_ids=[[row["input_ids"] for row in query] for query in found],
            similarities=[scores[: len(query)].tolist() for query, scores in zip(found, similarities)],
        )

    def _build_index(self):
        if self.rows.list_indexes():
            return
        try:
            import faiss
        except ImportError as error:
            raise ImportError("Retrieval needs FAISS: `pip install faiss-cpu`") from error
        datasets, _ = _import_datasets()
        silent = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()  # one of a moment, at the first caption
        # The library's default metric is the L2 distance, whose order is that of the dot product only for equal norms.
        self.rows.add_faiss_index_from_external_arrays(
            external_arrays=self.embeddings,
            index_name="embedding",
            string_factory=self.string_factory,
            batch_size=len(self),  # at once: an index that grows is copied again and again
            train_size=len(self),
            metric_type=faiss.METRIC_INNER_PRODUCT,
        )
        if not silent:
            datasets.enable_progress_bars()

    def save_pretrained(self, save_directory: str | os.PathLike):
        """Writes `datastore.json`, `captions.parquet` and `embeddings.safetensors` into a folder."""
        _, pyarrow = _import_datasets()
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_file({"embeddings": self.embeddings}, directory / "embeddings.safetensors")
        pyarrow.parquet.write_table(self.rows.with_format("arrow")[:], directory / "captions.parquet")
        description = {
            "format_version": FORMAT_VERSION,
            "rows": len(self),
            "embedding_size": self.embeddings.shape[1],
            "metric": "inner_product",
            "normalized": True,
            "string_factory": self.string_factory,
            "encoder_fingerprint": self.encoder_fingerprint,
        }
        (directory / "datastore.json").write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike, **hub_kwargs) -> "CaptionDatastore":
        """
        Loads a datastore from its folder, or from the folder, Hub id or `revision=` of a checkpoint that holds one.

        Raises:
            `FileNotFoundError`: when there is none; `ValueError`: when its files do not belong together.
        """
        if (Path(path_or_id) / "datastore.json").is_file():
            return cls._from_files({name: Path(path_or_id) / name for name in DATASTORE_FILES})
        datastore = cls.from_checkpoint(path_or_id, **hub_kwargs)
        if datastore is None:
            raise FileNotFoundError(
                f"{path_or_id} holds no datastore: expected the files {', '.join(DATASTORE_FILES)} in it or in "
                "datastore/"
            )
        return datastore

    @classmethod
    def from_checkpoint(
        cls, path_or_id: str | os.PathLike, subfolder: str = "", **hub_kwargs
    ) -> "CaptionDatastore | None":
        """The datastore in `datastore/` of a checkpoint's folder or Hub repository, or `None` where it has none."""
        hub_kwargs["subfolder"] = f"{subfolder}/datastore" if subfolder else "datastore"
        if (
            cached_file(path_or_id, DATASTORE_FILES[0], _raise_exceptions_for_missing_entries=False, **hub_kwargs)
            is None
        ):
            return None
        return cls._from_files({name: Path(cached_file(path_or_id, name, **hub_kwargs)) for name in DATASTORE_FILES})

    @classmethod
    def _from_files(cls, files: dict[str, Path]) -> "CaptionDatastore":
        try:
            import datasets
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                "This checkpoint holds a datastore, which needs datasets: `pip install datasets`"
            ) from error
        description = json.loads(files["datastore.json"].read_text())
        if description.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{files['datastore.json']} has format version {description.get('format_version')}, but this code "
                "reads "
                f"version {FORMAT_VERSION}: update the code or rebuild the datastore"
            )
        rows = datasets.Dataset(pyarrow.parquet.read_table(files["captions.parquet"]))
        embeddings = load_file(files["embeddings.safetensors"])["embeddings"]
        expected = (description["rows"], description["embedding_size"])
        if len(rows) != expected[0] or embeddings.shape != expected:
            raise ValueError(
                f"{files['datastore.json'].parent} is incomplete: {files['datastore.json'].name} says {expected[0]} "
                "rows of "
                f"{expected[1]} numbers, but there are {len(rows)} captions and embeddings of shape {embeddings.shape}"
            )
        return cls(rows, embeddings, description["encoder_fingerprint"], description["string_factory"])


@torch.no_grad()
def search_exactly(
    embeddings: np.ndarray, queries: np.ndarray, k: int, device: str | torch.device, batch_size: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """
    The `k` rows of `embeddings` (`(N, E)`) with the largest dot product with each query (`(B, E)`): row numbers and
    similarities, each `(B, K)`, as FAISS's flat index gives them. Memory on `device`: both, and `batch_size` x `N`.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 would shuffle near neighbours
    try:
        table = torch.from_numpy(embeddings).to(device)
        found = [
            torch.topk(batch.to(device) @ table.T, min(k, len(table)), dim=1)
            for batch in torch.from_numpy(queries).split(batch_size)
        ]
        similarities = torch.cat([part.values for part in found]).cpu()
        rows = torch.cat([part.indices for part in found]).cpu()
    finally:
        torch.set_float32_matmul_precision(precision)
    missing = (0, k - rows.shape[1])
    pad = torch.nn.functional.pad
    return pad(rows, missing, value=-1).numpy(), pad(similarities, missing, value=-math.inf).numpy()


def _import_datasets():
    try:
        import datasets
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("A datastore needs datasets: `pip install datasets faiss-cpu`") from error
    return datasets, pyarrow


def _check_rows(rows: "datasets.Dataset", embeddings: np.ndarray):
    missing = [column for column in COLUMNS if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"A datastore's rows need the columns {COLUMNS}; missing: {missing}, found: {rows.column_names}"
        )
    if embeddings.ndim != 2 or len(rows) != len(embeddings):
        raise ValueError(
            f"A datastore needs one embedding per caption: {len(rows)} captions, embeddings {embeddings.shape}"
        )
    ids = Counter(rows["id"][:])
    if len(ids) != len(rows):
        repeated = [row_id for row_id, count in ids.items() if count > 1]
        raise ValueError(
            f"A datastore's ids must be unique; {len(repeated)} stand more than once, such as {repeated[:3]}"
        )
    norms = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings))  # np.linalg.norm would square a copy of them all
    wrong = np.flatnonzero(~(np.abs(norms - 1) < 1e-3))
    if len(wrong):
        raise ValueError(
            f"A datastore's embeddings must be unit vectors; {len(wrong)} of {len(embeddings)} are not, such as "
            "that of "
            f"'{rows[int(wrong[0])]['id']}'. `RGMCModel.embed_audio` makes unit vectors."
        )
