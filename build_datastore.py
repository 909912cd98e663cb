"""
Makes a datastore of a corpus: its captions, and the embeddings of its songs by a checkpoint's encoder.

    python build_datastore.py --model outputs/demo --dataset my_music --output_dir my_datastore

`model.set_datastore("my_datastore")` then retrieves from it, without any training. `accelerate launch` and `torchrun`
share the embedding between processes. The options are the fields of `DatastoreArguments`.
"""

from clips import threads  # noqa: F401

# isort: split
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from clips.checkpoints import check_rgmc
from clips.embedding import build_datastore, datastore_rows
from clips.features import Split
from clips.locks import only_run
from clips.options import (
    HubArguments,
    InferenceArguments,
    SearchArguments,
    check_dataset,
    check_output,
    parse,
    user_errors,
)
from clips.processes import make_accelerator
from clips.rows import load_captions
from configuration_rgmc import RGMCConfig
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore
from search_rgmc import check_search


@dataclass
class DatastoreArguments(HubArguments, SearchArguments, InferenceArguments):
    group = "model, split and datastore"
    model: str = field(metadata={"help": "Checkpoint whose encoder embeds the songs: folder or Hub id."})
    dataset: str = field(
        metadata={"help": "audiofolder, csv, tsv, jsonl or parquet of paths, save_to_disk folder, or Hub id."}
    )
    output_dir: str = field(metadata={"help": "Folder of the datastore; replaces the one that it holds."})
    split: str = field(default="train", metadata={"help": "Split of the corpus; all for a corpus without splits."})
    storage: Literal["float32", "float16", "int8"] = field(
        default="float32", metadata={"help": "Type of the embeddings; float16 takes half the space, int8 a quarter."}
    )


def main(args: DatastoreArguments, accelerator: Accelerator) -> CaptionDatastore:
    """
    Writes the datastore to `args.output_dir`, and the unusable rows to `skipped.jsonl` there. An interrupted run
    continues with the clips that are not decoded yet.
    """
    with only_run(args.output_dir, f"--output_dir {args.output_dir}"):
        accelerator.wait_for_everyone()
        return embed_corpus(args, accelerator)


def embed_corpus(args: DatastoreArguments, accelerator: Accelerator) -> CaptionDatastore:
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

    # 2. Their embeddings. The datastore in the checkpoint is not needed for them
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
    with user_errors():
        (datastore_args,) = parse(DatastoreArguments, sys.argv[1:], __doc__)
        check_output(datastore_args.output_dir)
        check_rgmc("--model", datastore_args.model)
        check_dataset("--dataset", datastore_args.dataset)
        datastore_accelerator = make_accelerator()
        main(datastore_args, datastore_accelerator)
        datastore_accelerator.end_training()
