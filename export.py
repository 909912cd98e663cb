"""
Writes the audio encoder of a checkpoint as a program that runs without this code and without transformers.

    python export.py --model checkpoints/demo --output_dir outputs/export

`encoder.pt2` (torch.export) turns log-mels `(B, 1, T, F)` into the unit embeddings `(B, E)` of
[`~RGMCModel.embed_audio`], with any number `B` of clips. `encoder.json` has the settings of the log-mels and the
encoder's fingerprint, and the files of the datastore lie beside it. The options are the fields of `ExportArguments`.

The encoder is never quantised: the datastore's embeddings would be those of another encoder.
"""

from clips import threads  # noqa: F401

# isort: split
import json
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from clips.checkpoints import check_rgmc
from clips.features import FRONT_END
from clips.locks import check_one_process, only_run
from clips.options import check_output, parse, user_errors
from clips.outputs import replaced_together
from corpora.demo import SAMPLE_RATE, draw_clip
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import DATASTORE_FILES

CLIPS = 10  # of the demo corpus, on which program and model are compared
TOLERANCE = 1e-4  # largest difference between two numbers of an embedding
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass
class ExportArguments:
    group = "model and files"
    model: str = field(metadata={"help": "Checkpoint whose encoder is exported: folder or Hub id."})
    output_dir: str = field(metadata={"help": "Folder of the export, new or that of a former one."})
    onnx: bool = field(default=False, metadata={"help": f"Also write encoder.onnx; needs {', '.join(ONNX_PACKAGES)}."})

    def __post_init__(self):
        missing = [name for name in ONNX_PACKAGES if self.onnx and find_spec(name) is None]
        if missing:
            raise ImportError(f"--onnx true needs {', '.join(missing)}: pip install {' '.join(missing)}")


class Encoder(nn.Module):
    """[`~RGMCModel.embed_audio`] as a module of its own."""

    def __init__(self, model: RGMCModel):
        super().__init__()
        self.model = model

    def forward(self, log_mels: torch.Tensor) -> torch.Tensor:
        return self.model.embed_audio(log_mels)  # (B, E)


def trace_encoder(name: str, log_mels: torch.Tensor) -> torch.export.ExportedProgram:
    """Traces the encoder of the checkpoint `name` for any number of clips like `log_mels` `(B, 1, T, F)`."""
    # Eager attention is as fast here, and ONNX has no operator for the fused one's layout in memory.
    attention = {"audio_config": "eager"}
    model = RGMCModel.from_pretrained(name, load_datastore=False, attn_implementation=attention)
    model.mapper = model.text_model = model.word_head = None  # their weights stay here
    encoder = Encoder(model.eval().requires_grad_(False))
    clips = {0: torch.export.Dim("clips")}
    return torch.export.export(encoder, (log_mels,), dynamic_shapes=(clips,), strict=False)


def run_program(path: Path, log_mels: torch.Tensor) -> torch.Tensor:
    """Embeds clips with a written `encoder.pt2` or `encoder.onnx`: the first alone, the others together."""
    batches = log_mels.split([1, len(log_mels) - 1])
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return torch.cat([program(batch) for batch in batches])
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.cat([torch.from_numpy(session.run(None, {"log_mels": batch.numpy()})[0]) for batch in batches])


@torch.no_grad()
def check_program(path: Path, log_mels: torch.Tensor, embeds: torch.Tensor) -> float:
    """
    Returns the largest difference between the embeddings of a written program and the model's own, `embeds` `(B, E)`.

    Raises:
        `ValueError`: If it is larger than `TOLERANCE`.
    """
    difference = (run_program(path, log_mels) - embeds).abs().max().item()
    if not difference <= TOLERANCE:  # nor NaN
        raise ValueError(
            f"{path.name} embeds clips unlike the model: numbers of the embeddings differ by up to {difference:.2g}, "
            f"expected at most {TOLERANCE:g}. Nothing is written; try another version of torch "
            f"(this is {torch.__version__})"
        )
    return difference


def check_folder_is_free(output_dir: str):
    """Raises `FileExistsError` if the folder holds something else than an export."""
    folder = Path(output_dir)
    held = sorted(path.name for path in folder.glob("[!.]*"))
    if held and "encoder.json" not in held:
        raise FileExistsError(
            f"--output_dir {output_dir} holds {held[0]} and no encoder.json, so it is not an export that could be "
            "replaced: choose a new folder"
        )


def main(args: ExportArguments) -> dict:
    """Writes the export to `args.output_dir` once its programs agree with the model, and returns `encoder.json`."""
    check_folder_is_free(args.output_dir)
    with only_run(args.output_dir, f"--output_dir {args.output_dir}"):
        # 1. What the model makes of some clips
        front_end = RGMCProcessor.from_pretrained(args.model).feature_extractor
        clips = [draw_clip(0, index)[1] for index in range(CLIPS)]
        log_mels = front_end(clips, sampling_rate=SAMPLE_RATE)["input_features"]  # (B, 1, T, F)
        model = RGMCModel.from_pretrained(args.model).eval()
        with torch.no_grad():
            embeds = model.embed_audio(log_mels)  # (B, E)

        # 2. The programs, and what they make of them
        output_dir = Path(args.output_dir)
        stale = ("encoder.onnx", *DATASTORE_FILES)
        with replaced_together(output_dir, last="encoder.json", stale=stale) as staging:
            program = trace_encoder(args.model, log_mels)
            torch.export.save(program, staging / "encoder.pt2")
            if args.onnx:
                path, names = staging / "encoder.onnx", {"input_names": ["log_mels"], "output_names": ["embeds"]}
                torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False, **names)
            differences = {path.name: check_program(path, log_mels, embeds) for path in sorted(staging.iterdir())}

            # 3. What belongs to them
            description = {
                "log_mels": {name: getattr(front_end, name) for name in FRONT_END} | {"frames": log_mels.shape[2]},
                "embedding_size": embeds.shape[1],
                "encoder_fingerprint": model.encoder_fingerprint(),
                "torch": torch.__version__,
                "largest_difference": differences,
            }
            (staging / "encoder.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            if model.datastore is not None:
                model.datastore.save_pretrained(staging)
    for name, difference in differences.items():
        print(f"{output_dir / name} embeds {CLIPS} clips as the model does: numbers differ by at most {difference:.1g}")
    print(f"{output_dir} holds " + ("no datastore" if model.datastore is None else str(model.datastore)))
    return description


if __name__ == "__main__":
    with user_errors():
        (export_args,) = parse(ExportArguments, sys.argv[1:], __doc__)
        check_one_process("export.py")
        check_output(export_args.output_dir)
        check_rgmc("--model", export_args.model)
        main(export_args)
