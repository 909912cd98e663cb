"""
Makes a datastore of a corpus: its captions, and what a checkpoint's encoder makes of its songs.

    python build_datastore.py --model outputs/demo --dataset my_music --output_dir my_datastore

`model.set_datastore(CaptionDatastore.from_pretrained("my_datastore"))` then retrieves from it, without any training.
Options are the fields of `DatastoreArguments`; `--help` lists them. `accelerate launch` and `torchrun` share the
embedding between processes.
"""

from clips import threads  # noqa: F401

# isort: split
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import HfArgumentParser

from clips.embedding import build_datastore, datastore_rows
from clips.features import Split
from clips.rows import load_captions
from configuration_rgmc import RGMCConfig
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore
from search_rgmc import check_search


@dataclass
class DatastoreArguments:
    model: str = field(metadata={"help": "Checkpoint whose encoder embeds the songs: folder or Hub id."})
    dataset: str = field(
        metadata={"help": "audiofolder, csv, tsv, jsonl or parquet of paths, save_to_disk folder, or Hub id."}
    )
    output_dir: str = field(metadata={"help": "Folder of the datastore; one that is there is replaced."})
    split: str = field(default="train", metadata={"help": "Split of the corpus; 'all' for a corpus without splits."})
    caption_column: str = field(
        default="caption",
        metadata={"help": "Column of the caption, or of a list of captions, the first of which counts."},
    )
    id_column: str = field(default="id", metadata={"help": "Column of unique ids; file names where it is missing."})
    storage: Literal["float32", "float16", "int8"] = field(
        default="float32", metadata={"help": "Of the embeddings; float16 is half, int8 a quarter as large."}
    )
    string_factory: str = field(
        default="Flat", metadata={"help": "FAISS index, made at the first search; Flat is exact and needs none."}
    )
    search_parameters: str | None = field(
        default=None, metadata={"help": "Of that index: nprobe=32, efSearch=64; FAISS's own (1, 16) if unset."}
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Also push the datastore to this repository on the Hub."}
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "Make that repository a private one."})
    batch_size: int = field(default=32, metadata={"help": "Clips per forward pass and process."})
    max_skipped: float = field(default=0.01, metadata={"help": "Largest share of unusable rows that is not an error."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the log-mel cache; that of datasets if unset."}
    )
    cache_dtype: str = field(
        default="float16", metadata={"help": "Type of the cached log-mels: float16 or float32, twice as large."}
    )
    num_proc: int = field(default=1, metadata={"help": "Processes that decode audio."})


def main(args: DatastoreArguments, accelerator: Accelerator) -> CaptionDatastore:
    """
    Writes the datastore to `args.output_dir`. An interrupted run goes on with the clips that are not decoded yet.
    Unusable rows are listed in `skipped.jsonl` there.
    """
    # 1. The clips
    config = RGMCConfig.from_pretrained(args.model)
    searching = (args.string_factory, args.storage, args.search_parameters)
    check_search(config.audio_config.projection_dim, *searching)
    processor = RGMCProcessor.from_pretrained(args.model)
    split = Split(
        load_captions(args.dataset, args.split, args.caption_column, args.id_column),
        args.split,
        skipped_file=Path(args.output_dir) / "skipped.jsonl",
        max_skipped=args.max_skipped,
        cache={"cache_dir": args.cache_dir, "dtype": args.cache_dtype, "num_proc": args.num_proc},
    )
    features = split.features(processor, accelerator)

    # 2. Their embeddings, for which the datastore that the checkpoint carries is not needed
    model = RGMCModel.from_pretrained(args.model, load_datastore=False).to(accelerator.device).eval()
    rows = datastore_rows(features, processor)
    check_search(config.audio_config.projection_dim, *searching, rows=len(rows))
    datastore = build_datastore(model, features, rows, accelerator, args.batch_size, *searching)

    # 3. The files
    if accelerator.is_main_process:
        datastore.save_pretrained(args.output_dir)
        print(f"{args.output_dir} holds {datastore}")
        if args.hub_model_id:
            datastore.push_to_hub(args.hub_model_id, private=args.hub_private_repo)
    accelerator.wait_for_everyone()
    return datastore


if __name__ == "__main__":
    (datastore_args,) = HfArgumentParser(DatastoreArguments).parse_args_into_dataclasses(sys.argv[1:])
    datastore_accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    main(datastore_args, datastore_accelerator)
    datastore_accelerator.end_training()
