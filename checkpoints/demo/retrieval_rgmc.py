"""
The datastore of captions from which RGMC retrieves its candidates (sections 3.2 and 4).

Shape letters: `N` datastore rows, `B` queries, `E` numbers of an audio embedding, `K` candidates.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import create_repo, hf_hub_download, upload_folder
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    try:
        import datasets
        import faiss
    except ImportError:
        pass

try:
    from .captions_rgmc import find_spellings
    from .search_rgmc import (
        EmbeddingIndex,
        as_queries,
        check_search,
        decode_embeddings,
        encode_embeddings,
        search_exactly,
    )
    from .songs_rgmc import (
        ORIGINAL,
        as_dataset,
        as_stored,
        check_rows,
        embed_songs,
        import_datasets,
        measure_tokens,
        processor_of,
        read_songs,
    )
except ImportError:
    from captions_rgmc import find_spellings
    from search_rgmc import (
        EmbeddingIndex,
        as_queries,
        check_search,
        decode_embeddings,
        encode_embeddings,
        search_exactly,
    )
    from songs_rgmc import (
        ORIGINAL,
        as_dataset,
        as_stored,
        check_rows,
        embed_songs,
        import_datasets,
        measure_tokens,
        processor_of,
        read_songs,
    )

FORMAT_VERSION = 3  # version 1 had only float32, no source and no license; 1 and 2 had no search parameters
DATASTORE_FILES = ("datastore.json", "captions.parquet", "embeddings.safetensors")
INDEX_FILE = "index.faiss"  # of version 2: never read, because FAISS trusts a file blindly; deleted by a save
ENTRIES = {  # entries of datastore.json and their types
    **{"rows": int, "embedding_size": int, "string_factory": str, "encoder_fingerprint": str, "storage": str},
    **{"search_parameters": str | None, "vocab_size": int | None, "caption_normalization": str},
}
SPELLING_ROWS = 100_000  # more captions take seconds at the first caption, and teach no more
INDEX_NAME = "embeddings"  # name of the index of `CaptionDatastore.rows`


@dataclass
class Retrieved:
    """
    Holds the candidates of `B` queries, the most similar first: `K` each, or fewer if the datastore is smaller.

    Attributes:
        ids, captions (`list[list[str]]`):
            Ids and captions of each query's candidates.
        input_ids (`list[list[list[int]]]`):
            Tokens of each query's candidates.
        similarities (`list[list[float]]`):
            Dot products with each query's candidates, from -1 to 1.
        sources, licenses (`list[list[str | None]]`):
            Origin and licence of each query's candidates, `None` if not known.
        originals (`list[list[str | None]]`):
            Each query's candidates as the corpus writes them, `None` if not known.
    """

    ids: list[list[str]]
    captions: list[list[str]]
    input_ids: list[list[list[int]]]
    similarities: list[list[float]]
    sources: list[list[str | None]]
    licenses: list[list[str | None]]
    originals: list[list[str | None]]


class CaptionDatastore:
    """
    Holds captions, their tokens and the L2-normalised embeddings of their songs; searches by dot product with FAISS.

    Args:
        rows (`datasets.Dataset`):
            `N` rows with the columns `id` (unique), `caption` (as the model is trained on it), `input_ids` (the
            caption's tokens, without separator), and optionally `source`, `license` and `original` (the caption as the
            corpus writes it, for people). [`make_rows`] makes them.
        embeddings (`np.ndarray` of shape `(N, E)`):
            Embeddings of their songs from [`~RGMCModel.embed_audio`], encoded by [`encode_embeddings`] or not.
        encoder_fingerprint (`str`):
            [`~RGMCModel.encoder_fingerprint`] of the model that made the embeddings.
        string_factory (`str`, defaults to `"Flat"`):
            `"Flat"` searches exactly, in the embeddings themselves, in memory or in a mapped file. Any other value is a
            FAISS index with its own copy of the vectors, approximate and faster, made at the first search: `HNSW32`,
            `IVF1024,Flat` or `IVF65536_HNSW32,Flat`. `SQ8`, `SQ6`, `SQ4`, `SQfp16`, `PQ64` or `PQ64x4` instead of
            `Flat` stores smaller vectors (`HNSW32,SQ8`). All of these can follow `OPQ64,` or `OPQ64_256,`.
        storage (`str`, defaults to `"float32"`):
            Type of the embeddings in memory and in files: `"float32"`, `"float16"` (half) or `"int8"` (a quarter).
        vocab_size (`int`, *optional*):
            Vocabulary size of the decoder that the tokens are for. In another vocabulary they would be other words.
        search_parameters (`str`, *optional*):
            How thoroughly a FAISS index is searched: `"nprobe=32"` (cells of an IVF), `"efSearch=64"` (of an HNSW), or
            both with a comma. By default 1 and 16, as in FAISS. It can also be set later, and it is saved.
        caption_normalization (`str`, defaults to `"paper"`):
            Rule by which the captions were normalised.

    Attributes:
        rows (`datasets.Dataset`):
            The `N` rows with all columns and an index `"embeddings"` that searches as the datastore does:
            `rows.get_nearest_examples("embeddings", query, k)` and `rows.search_batch("embeddings", queries, k)`.
            `datasets` refuses to select, filter, sort or save rows that have an index. For a copy without one, with the
            datastore unchanged: `plain = datastore.rows.with_format(None)`, then `plain.drop_index("embeddings")`.
        embeddings (`np.ndarray` of shape `(N, E)`):
            The embeddings as they are stored.
        largest_token, longest_caption (`int`):
            The largest token id, and the most tokens of a caption. A model refuses rows that its decoder cannot read.

    Raises:
        `ValueError`: If a column or a value is missing, lengths differ, ids repeat, an embedding is not a unit vector,
        or `storage` or the index does not exist. The limits of an index: at most 262,144 cells and no more cells than
        rows; 2 to 256 links of an HNSW; at least as many rows as a PQ has centroids (256, or 16 with `x4`); for an OPQ
        at least 256 rows and at least `E`.
    """

    def __init__(
        self,
        rows: "datasets.Dataset",
        embeddings: np.ndarray,
        encoder_fingerprint: str,
        string_factory: str = "Flat",
        storage: str = "float32",
        vocab_size: int | None = None,
        search_parameters: str | None = None,
        caption_normalization: str = "paper",
    ):
        self.encoder_fingerprint = encoder_fingerprint
        self.caption_normalization = caption_normalization
        self.vocab_size = vocab_size
        self.string_factory = string_factory
        self.storage = storage
        self._set_rows(rows, embeddings, search_parameters)

    def _set_rows(self, rows: "datasets.Dataset", embeddings: np.ndarray, search_parameters: str | None):
        check_rows(rows, embeddings)
        check_search(embeddings.shape[1], self.string_factory, self.storage, search_parameters, len(rows))
        rows = as_stored(rows)
        largest_token, longest_caption = measure_tokens(rows)
        row_of_id = {row_id: row for row, row_id in enumerate(rows["id"][:])}
        encoded = encode_embeddings(embeddings, self.storage)
        index = EmbeddingIndex(encoded, self.string_factory, search_parameters)
        _attach(index, rows)
        self.largest_token, self.longest_caption = largest_token, longest_caption
        self.rows, self.embeddings, self._row_of_id, self._index = rows, encoded, row_of_id, index
        self._spellings: dict[tuple[str, ...], str] | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        size = self.embeddings.shape[1]
        return f"{type(self).__name__}({len(self)} captions of {size} {self.storage} numbers, {self.string_factory})"

    # -- its rows -----------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        model,
        dataset: "datasets.Dataset | list[dict]",
        processor=None,
        batch_size: int = 16,
        string_factory: str = "Flat",
        storage: str = "float32",
        search_parameters: str | None = None,
    ) -> "CaptionDatastore":
        """
        Embeds songs with a model's encoder.

        Args:
            model (`RGMCModel`):
                Its encoder embeds the songs.
            dataset (`datasets.Dataset` or `list[dict]`):
                A row per song with `audio` (anything that the processor takes), `captions` or `caption` (the first
                caption is taken), `id` (by default the name of the audio file), and optionally `source` and `license`.
            processor (`RGMCProcessor`, *optional*):
                By default the one of the model's checkpoint.
            batch_size (`int`, defaults to 16):
                Clips that are embedded at once.
            string_factory, storage, search_parameters (`str`, *optional*):
                As in [`CaptionDatastore`].

        Raises:
            `ValueError`: If a row has no audio, caption or id, if ids repeat, if audio cannot be used, or if
            `storage`, `string_factory` or `search_parameters` does not exist.
        """
        searching = (model.config.audio_config.projection_dim, string_factory, storage, search_parameters)
        check_search(*searching)  # before hours of decoding
        processor = processor or processor_of(model)
        rows, sounds = read_songs(dataset, processor)
        check_search(*searching, rows=len(rows))
        embeddings = embed_songs(model, rows["id"][:], sounds, processor, batch_size, storage)
        vocab_size = model.config.text_config.vocab_size
        rule = processor.caption_normalization
        fingerprint = model.encoder_fingerprint()
        return cls(rows, embeddings, fingerprint, string_factory, storage, vocab_size, search_parameters, rule)

    def add(self, model, dataset: "datasets.Dataset | list[dict]", processor=None, batch_size: int = 16):
        """
        Embeds more songs with the same encoder and appends them in place: a model with this datastore retrieves them
        from then on. The arguments are those of [`~CaptionDatastore.build`].

        Raises:
            `ValueError`: As in [`~CaptionDatastore.build`], and if the encoder or the rule of normalisation is another
            one, or if the datastore already has an id. Nothing is added then.
        """
        fingerprint = model.encoder_fingerprint()
        if fingerprint != self.encoder_fingerprint:
            raise ValueError(
                f"This datastore was embedded by another audio encoder (fingerprint {self.encoder_fingerprint[:12]}…, "
                f"the model's is {fingerprint[:12]}…): build one of all songs with `CaptionDatastore.build`"
            )
        processor = processor or processor_of(model)
        if processor.caption_normalization != self.caption_normalization:
            raise ValueError(
                f"This datastore's captions were normalised by the rule '{self.caption_normalization}', "
                f"but the processor's is '{processor.caption_normalization}': "
                "build one of all songs with `CaptionDatastore.build`"
            )
        rows, sounds = read_songs(dataset, processor)
        known = [row_id for row_id in rows["id"] if row_id in self._row_of_id]
        if known:
            raise ValueError(f"{len(known)} of these ids are already in the datastore, such as {known[:3]}")
        embeddings = embed_songs(model, rows["id"][:], sounds, processor, batch_size, self.storage)
        datasets, _ = import_datasets()
        joined = datasets.concatenate_datasets([self.rows, as_stored(rows)])
        self._set_rows(joined, np.concatenate([self.embeddings, embeddings]), self.search_parameters)

    def remove(self, ids: str | list[str]):
        """
        Removes rows in place.

        Args:
            ids (`str` or `list[str]`):
                Ids of the rows.

        Raises:
            `ValueError`: If the datastore does not have an id, or if too few rows would be left for its index. Nothing
            is removed then.
        """
        ids = [str(row_id) for row_id in ([ids] if isinstance(ids, (str, int)) else ids)]
        unknown = [row_id for row_id in ids if row_id not in self._row_of_id]
        if unknown:
            raise ValueError(f"{len(unknown)} of these ids are not in the datastore, such as {unknown[:3]}")
        kept: np.ndarray = np.ones(len(self), bool)
        kept[[self._row_of_id[row_id] for row_id in ids]] = False
        rows = as_stored(self.rows).select(np.flatnonzero(kept))  # a dataset with an index refuses to select
        self._set_rows(rows, self.embeddings[kept], self.search_parameters)

    def read_embeddings(self, rows: slice | np.ndarray) -> np.ndarray:
        """Reads the embeddings of some rows as float32 unit vectors `(rows, E)`."""
        return decode_embeddings(self.embeddings[rows])

    # -- search -------------------------------------------------------------------------------------------------------

    def search_rows(
        self,
        queries: torch.Tensor | np.ndarray,
        k: int = 1,
        exclude_ids: list[str | None] | None = None,
        device: str | torch.device = "cpu",
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Finds the `k` most similar rows of each query.

        Args:
            queries (`torch.Tensor` or `np.ndarray` of shape `(B, E)`):
                L2-normalised embeddings.
            k (`int`, defaults to 1):
                Number of candidates `K`.
            exclude_ids (`list[str | None]`, *optional*):
                For each query the id of the row that must not be its candidate, or `None`. A row with another id may be
                chosen even if it holds the same text (section 3: `D` without `(x, y)`).
            device (`str` or `torch.device`, defaults to `"cpu"`):
                Where an exact (`"Flat"`) search runs: with FAISS on the CPU, elsewhere as a float32 matrix product.

        Returns:
            `tuple`: Row numbers (int64 `(B, K)`, -1 where the datastore has fewer rows) and similarities (float32
            `(B, K)`).

        Raises:
            `ValueError`: If queries have another size, or if `exclude_ids` do not match them 1:1.
        """
        queries = as_queries(queries, self.embeddings.shape[1])
        if exclude_ids is not None and len(exclude_ids) != len(queries):
            raise ValueError(f"Got {len(queries)} queries but {len(exclude_ids)} `exclude_ids`: they must match 1:1")
        wanted = k if exclude_ids is None else k + 1
        if torch.device(device).type != "cpu" and self.string_factory == "Flat" and len(self):
            rows, similarities = search_exactly(self.embeddings, queries, wanted, device)
        else:
            similarities, rows = self.rows.search_batch(INDEX_NAME, queries, wanted)
        if exclude_ids is not None:
            # Excluded by id and never by rank: either of two equal songs may come first.
            own_rows = np.array([-1 if name is None else self._row_of_id.get(str(name), -1) for name in exclude_ids])
            kept_first = np.argsort(rows == own_rows[:, None], axis=1, kind="stable")[:, :k]
            rows = np.take_along_axis(rows, kept_first, axis=1)
            similarities = np.take_along_axis(similarities, kept_first, axis=1)
        return rows, similarities

    def search(
        self, queries: torch.Tensor | np.ndarray, k: int = 1, exclude_ids: list[str | None] | None = None
    ) -> Retrieved:
        """Finds candidates as [`~CaptionDatastore.search_rows`] does, and returns the candidates themselves."""
        return self.take(*self.search_rows(queries, k, exclude_ids))

    def take(self, rows: np.ndarray, similarities: np.ndarray) -> Retrieved:
        """Looks up the candidates that [`~CaptionDatastore.search_rows`] found."""
        found = [[self.rows[int(row)] for row in query if row >= 0] for query in rows]
        return Retrieved(
            ids=[[row["id"] for row in query] for query in found],
            captions=[[row["caption"] for row in query] for query in found],
            input_ids=[[row["input_ids"] for row in query] for query in found],
            similarities=[scores[: len(query)].tolist() for query, scores in zip(found, similarities)],
            sources=[[row["source"] for row in query] for query in found],
            licenses=[[row["license"] for row in query] for query in found],
            originals=[[row[ORIGINAL] for row in query] for query in found],
        )

    @property
    def spellings(self) -> dict[tuple[str, ...], str]:
        """How the corpus spells the words of captions: what [`find_spellings`] finds in the column `original`."""
        if self._spellings is None:
            step = max(1, len(self) // SPELLING_ROWS)
            self._spellings = find_spellings(self.rows[ORIGINAL][::step], self.caption_normalization)
        return self._spellings

    @property
    def search_parameters(self) -> str | None:
        return self._index.search_parameters

    @search_parameters.setter
    def search_parameters(self, search_parameters: str | None):
        check_search(self.embeddings.shape[1], self.string_factory, self.storage, search_parameters, len(self))
        self._index.set_search_parameters(search_parameters)

    @property
    def index(self) -> "faiss.Index":
        """
        The FAISS index of `string_factory`, made when it is first needed. Settings made in it are not saved, but
        `search_parameters` are. With `"Flat"` it is a copy of the embeddings that no search needs.
        """
        return self._index.make()

    # -- files --------------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike):
        """
        Writes `datastore.json`, `captions.parquet` and `embeddings.safetensors` into a folder and replaces any
        datastore there. An index is not written: it is made again from the embeddings.
        """
        _, pyarrow = import_datasets()
        directory = Path(save_directory)
        # Not over the old files: this datastore's embeddings may be mapped from them.
        staging = directory / ".incomplete"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        description = {
            "format_version": FORMAT_VERSION,
            "rows": len(self),
            "embedding_size": self.embeddings.shape[1],
            "metric": "inner_product",
            "normalized": True,
            "storage": self.storage,
            "string_factory": self.string_factory,
            "search_parameters": self.search_parameters,
            "encoder_fingerprint": self.encoder_fingerprint,
            "vocab_size": self.vocab_size,
            "caption_normalization": self.caption_normalization,
        }
        try:
            save_file({"embeddings": torch.from_numpy(self.embeddings)}, staging / "embeddings.safetensors")
            pyarrow.parquet.write_table(self.rows.with_format("arrow")[:], staging / "captions.parquet")
            (staging / "datastore.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        for name in ("datastore.json", INDEX_FILE):  # without the first a folder is not a datastore
            (directory / name).unlink(missing_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "datastore.json"):
            os.replace(path, directory / path.name)
        staging.rmdir()

    def push_to_hub(
        self,
        repo_id: str,
        path_in_repo: str = "",
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload the datastore",
    ):
        """
        Uploads the datastore's files, and nothing else, to a model repository. The repository is made if needed, and
        [`~CaptionDatastore.from_pretrained`] reads the datastore back.

        Args:
            repo_id (`str`):
                Id of the repository.
            path_in_repo (`str`, defaults to `""`):
                Folder in the repository. In `"datastore"` it becomes the datastore of the checkpoint there.
            private (`bool`, *optional*), token (`str`, *optional*), commit_message (`str`):
                As in transformers' `push_to_hub`.
        """
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                path_in_repo=path_in_repo or None,
                allow_patterns=[*DATASTORE_FILES],
                delete_patterns=[INDEX_FILE],
                commit_message=commit_message,
                token=token,
            )

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike,
        subfolder: str = "",
        string_factory: str | None = None,
        search_parameters: str | None = None,
        **hub_kwargs,
    ) -> "CaptionDatastore":
        """
        Loads a datastore from its folder or Hub id, or from those of a checkpoint with a `datastore/`.

        Captions and ids are read into memory; the embeddings are mapped from their file. An index is made from them at
        the first search.

        Args:
            path_or_id (`str` or `os.PathLike`):
                Folder or Hub id.
            subfolder (`str`, defaults to `""`):
                Folder in it.
            string_factory, search_parameters (`str`, *optional*):
                As in [`CaptionDatastore`]. By default those that were saved; the saved `search_parameters` are dropped
                if `string_factory` is given.
            hub_kwargs:
                `revision`, `token`, `cache_dir` … of the Hub.

        Raises:
            `FileNotFoundError`: If there is none.
            `ValueError`: If its files are damaged or do not belong together.
        """
        searching = {"string_factory": string_factory, "search_parameters": search_parameters}
        datastore = cls._load(path_or_id, subfolder, **searching, **hub_kwargs)
        if datastore is None:
            datastore = cls.from_checkpoint(path_or_id, subfolder, **searching, **hub_kwargs)
        if datastore is None:
            raise FileNotFoundError(
                f"{path_or_id} holds no datastore: "
                f"expected the files {', '.join(DATASTORE_FILES)} in it or in datastore/"
            )
        return datastore

    @classmethod
    def from_checkpoint(
        cls, path_or_id: str | os.PathLike, subfolder: str = "", **hub_kwargs
    ) -> "CaptionDatastore | None":
        """
        Loads the datastore in `datastore/` of a checkpoint's folder or Hub repository, or returns `None` if it has
        none. The arguments are those of [`~CaptionDatastore.from_pretrained`].
        """
        return cls._load(path_or_id, f"{subfolder}/datastore" if subfolder else "datastore", **hub_kwargs)

    @classmethod
    def _load(
        cls,
        path_or_id: str | os.PathLike,
        subfolder: str,
        string_factory: str | None = None,
        search_parameters: str | None = None,
        **hub_kwargs,
    ) -> "CaptionDatastore | None":
        _, pyarrow = import_datasets()

        def find(name: str, required: bool = False) -> str | None:
            return find_file(path_or_id, name, subfolder, required, **hub_kwargs)

        description_file = find("datastore.json")
        if description_file is None:
            return None
        folder = Path(description_file).parent
        try:
            description = dict(json.loads(Path(description_file).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{description_file} is damaged ({error}): copy it again, or rebuild it") from error
        version = description.get("format_version")
        if version not in range(1, FORMAT_VERSION + 1):
            raise ValueError(
                f"{description_file} has format version {version}, but this code reads versions 1 to {FORMAT_VERSION}: "
                "update the code or rebuild the datastore"
            )
        # What earlier versions did not state.
        former: dict[str, Any] = {
            "storage": "float32",
            "search_parameters": None,
            "vocab_size": None,
            "caption_normalization": "paper",
        }
        description = former | description
        if missing := [name for name in ENTRIES if name not in description]:
            raise ValueError(f"{description_file} lacks {', '.join(missing)}: copy it again, or rebuild it")
        for name, kind in ENTRIES.items():
            if not isinstance(description[name], kind):
                expected = getattr(kind, "__name__", kind)
                raise ValueError(f"{description_file} has {description[name]!r} as {name}: expected {expected}")
        files = [find(name, required=True) for name in ("captions.parquet", "embeddings.safetensors")]
        try:
            rows = as_dataset(pyarrow.parquet.read_table(files[0]))
            embeddings = load_file(files[1])["embeddings"].numpy()  # mapped
        except (SafetensorError, pyarrow.ArrowException, OSError, KeyError, TypeError) as error:  # bfloat16: TypeError
            raise ValueError(f"The datastore in {folder} is damaged ({error}): copy it again, or rebuild it") from error
        expected = (description["rows"], description["embedding_size"])
        if len(rows) != expected[0] or embeddings.shape != expected:
            raise ValueError(
                f"{folder} is incomplete: datastore.json says {expected[0]} rows of {expected[1]} numbers, "
                f"but there are {len(rows)} captions and embeddings of shape {embeddings.shape}"
            )
        storage = description["storage"]
        if embeddings.dtype != storage:
            raise ValueError(
                f"embeddings.safetensors in {folder} holds {embeddings.dtype}, but datastore.json says {storage}: "
                "the files are from two datastores"
            )
        if string_factory is None:
            string_factory = description["string_factory"]
            search_parameters = search_parameters or description["search_parameters"]
        try:
            check_search(embeddings.shape[1], string_factory, storage, search_parameters, len(rows))
        except ValueError as error:
            raise ValueError(
                f"The datastore in {folder} cannot be searched ({error}): "
                "pass another string_factory, such as 'Flat', to `CaptionDatastore.from_pretrained`"
            ) from error
        fingerprint, vocab_size = description["encoder_fingerprint"], description["vocab_size"]
        rule = description["caption_normalization"]
        return cls(rows, embeddings, fingerprint, string_factory, storage, vocab_size, search_parameters, rule)


def find_file(
    path_or_id: str | os.PathLike, name: str, subfolder: str = "", required: bool = False, **hub_kwargs
) -> str | None:
    """
    Finds the path of a file in a folder or, downloaded if needed, in a Hub repository. If there is no such file, or if
    it is not in the cache and the Hub cannot be reached, returns `None`, or raises an `OSError` for a `required` one.
    """
    if os.path.isdir(path_or_id):
        path = Path(path_or_id, subfolder, name)
        found = str(path) if path.is_file() else None
    else:
        try:
            found = hf_hub_download(str(path_or_id), name, subfolder=subfolder or None, **hub_kwargs)
        except EntryNotFoundError:
            found = None
        except HFValidationError as error:
            raise OSError(
                f"{path_or_id} does not exist: expected a folder, or an id on the Hub (owner/name)"
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise OSError(f"{path_or_id} is not a folder and cannot be loaded from the Hub: {error}") from error
    if required and found is None:
        place = os.path.join(path_or_id, subfolder, name)
        raise OSError(f"{place} cannot be found: complete the folder, or check the connection")
    return found


def _attach(index: EmbeddingIndex, rows: "datasets.Dataset"):
    """Attaches `index` to `rows`. `datasets` makes it add the vectors that come with the call: none."""
    datasets, _ = import_datasets()
    shown = not datasets.are_progress_bars_disabled()
    if shown:
        datasets.disable_progress_bars()  # there are no vectors to show
    try:
        nothing = np.empty((0, index.d), np.float32)
        rows.add_faiss_index_from_external_arrays(nothing, index_name=INDEX_NAME, custom_index=index)
    finally:
        if shown:
            datasets.enable_progress_bars()
