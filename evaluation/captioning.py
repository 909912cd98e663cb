"""Captions of a split by a checkpoint: each clip once, shared by the processes, and resumed after an interruption."""

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers.utils import cached_file

from clips.embedding import build_datastore, datastore_rows, embed_rows, is_rgmc_checkpoint, with_audio_tower_of
from clips.features import ClipFeatures, Split
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from reporting.results import Checkpoint, Prediction
from retrieval_rgmc import CaptionDatastore

CHECKPOINT_FILES = ["*.safetensors", "config.json", "generation_config.json", "datastore/*"]
CHECKPOINT_FILES += ["processor_config.json", "tokenizer*"]


@dataclass
class Captioner:
    """A checkpoint and the clips that it captions."""

    name: str
    model: RGMCModel
    processor: RGMCProcessor
    features: ClipFeatures
    accelerator: Accelerator
    batch_size: int
    parts_dir: Path  # of what is captioned so far

    @classmethod
    def load(cls, name: str, split: Split, accelerator: Accelerator, batch_size: int, parts_dir: Path) -> "Captioner":
        """
        Raises:
            `ValueError`: when the checkpoint has no datastore, or its model and processor are of two rules.
        """
        processor = RGMCProcessor.from_pretrained(name)
        model = RGMCModel.from_pretrained(name).to(accelerator.device).eval()
        if model.datastore is None:
            raise ValueError(f"{name} holds no datastore, so there are no candidates and no baselines to score")
        if model.config.caption_normalization != processor.caption_normalization:
            raise ValueError(
                f"{name}: caption_normalization is '{model.config.caption_normalization}' in config.json and "
                f"'{processor.caption_normalization}' in processor_config.json: they are files of two checkpoints"
            )
        return cls(name, model, processor, split.features(processor, accelerator), accelerator, batch_size, parts_dir)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """What identifies the checkpoint: the SHA-256 of its files, and its commit on the Hub."""
        folder = Path(cached_file(self.name, "config.json")).parent  # in the Hub's cache it has the commit's name
        revision = None if Path(self.name).is_dir() else folder.name
        files = sorted(path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern))
        digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
        return {"name": self.name, "revision": revision, "sha256": digests}

    @cached_property
    def own_ids(self) -> list[str | None]:
        return own_ids(self.features, self.model.datastore)

    @torch.no_grad()
    def caption(
        self, title: str, candidates: list[str] | None = None, masked_to: str | None = None
    ) -> list[Prediction]:
        """
        Captions every clip.

        Args:
            title (`str`): Of the progress bar.
            candidates (`list[str]`, *optional*): One per clip, in place of its nearest neighbour's caption.
            masked_to (`str`, *optional*): `"audio"` or `"candidate"`: what the decoder is shown of the two.

        Returns:
            A line per clip, in their order: `id`, `caption_normalization`, `prediction`, `references`, `candidate`,
            `candidate_id` and `similarity`, the last two of the nearest neighbour.
        """
        kind = [self.checkpoint, self.features.ids, self.features.captions, candidates, masked_to]
        part = hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:16]
        lines = {line["row"]: line for path in self.parts_dir.glob(f"{part}-*.jsonl") for line in _whole_lines(path)}
        self.accelerator.wait_for_everyone()  # all have read what is there before anyone goes on
        left = [row for row in range(len(self.features)) if row not in lines]
        own = left[self.accelerator.process_index :: self.accelerator.num_processes]
        progress = tqdm(total=len(own), desc=title, unit="clip", disable=not self.accelerator.is_main_process)
        self.parts_dir.mkdir(parents=True, exist_ok=True)
        written = []
        path = self.parts_dir / f"{part}-{self.accelerator.process_index}.jsonl"
        with path.open("a", encoding="utf-8") as file, conditioned_on(self.model, masked_to):
            for start in range(0, len(own), self.batch_size):
                batch = own[start : start + self.batch_size]
                captioned = self._caption_batch(batch, candidates)
                file.write("".join("\n" + json.dumps(line, ensure_ascii=False) for line in captioned))
                file.flush()
                written += captioned
                progress.update(len(batch))
        progress.close()
        lines.update({line["row"]: line for line in gather_object(written)})
        if sorted(lines) != list(range(len(self.features))):
            raise RuntimeError(f"{len(lines)} predictions were gathered for {len(self.features)} clips")
        return [{name: value for name, value in lines[row].items() if name != "row"} for row in sorted(lines)]

    def _caption_batch(self, batch: list[int], candidates: list[str] | None) -> list[dict]:
        audio_embeds = self.model.embed_audio(self.features.read(batch))
        found = self.model.retrieve(audio_embeds, exclude_ids=[self.own_ids[row] for row in batch])
        shown = found.captions if candidates is None else [[candidates[row]] for row in batch]
        prompts = self.processor(candidates=shown) if self.model.config.uses_candidate else {}
        tokens = self.model.generate(audio_embeds=audio_embeds, **prompts)
        captions = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [
            {
                "row": row,
                "id": self.features.ids[row],
                "caption_normalization": self.processor.caption_normalization,
                "prediction": self.processor.normalize(caption),
                "references": self.features.captions[row],
                "candidate": next(iter(shown[i]), None),
                "candidate_id": next(iter(found.ids[i]), None),
                "similarity": next(iter(found.similarities[i]), None),
            }
            for i, (row, caption) in enumerate(zip(batch, captions))
        ]


@contextmanager
def conditioned_on(model: RGMCModel, conditioning: str | None):
    """Masks what the decoder of a model of audio and candidate is shown: the prefix `e(x)` or the candidate alone."""
    trained_so = model.config.conditioning
    model.config.conditioning = conditioning or trained_so
    try:
        yield
    finally:
        model.config.conditioning = trained_so


def own_ids(clips: ClipFeatures, datastore: CaptionDatastore) -> list[str | None]:
    """
    By clip the id of its own row of the datastore, which is no candidate of it, and None for a clip that is not in
    there. The id alone does not tell: where the ids are file names, other splits have the same.
    """
    captions = dict(zip(datastore.rows["id"][:], datastore.rows["caption"][:]))
    return [row_id if captions.get(row_id) in own else None for row_id, own in zip(clips.ids, clips.captions)]


def nearest_of_frozen_encoder(name: str, captioner: Captioner, train: Split) -> list[str | None]:
    """
    By clip the caption that a frozen encoder retrieves (section 6.1, "Nearest Neighbor").

    Args:
        name (`str`):
            A CLAP, as [`RGMCModel.from_audio_text_pretrained`] takes it, which embeds the training split first, or the
            Hub id or folder of an RGMC checkpoint, whose encoder and datastore are taken as they are.
    """
    accelerator, features = captioner.accelerator, captioner.features
    if is_rgmc_checkpoint(name):
        frozen = RGMCModel.from_pretrained(name).to(accelerator.device).eval()
        datastore = frozen.datastore
        if datastore is None:
            raise ValueError(f"--frozen_encoder {name} holds no datastore to retrieve from")
    else:
        frozen = with_audio_tower_of(name).to(accelerator.device).eval()
        clips = train.features(captioner.processor, accelerator)
        rows = datastore_rows(clips, captioner.processor)
        datastore = build_datastore(frozen, clips, rows, accelerator, captioner.batch_size)
    embeds = embed_rows(frozen, features, accelerator, captioner.batch_size, "Embedding the clips")
    found = datastore.search(embeds, k=1, exclude_ids=own_ids(features, datastore))
    return [next(iter(captions), None) for captions in found.captions]


def _whole_lines(path: Path) -> list[dict]:
    lines = []
    # Where a kill cut a character in two, that line is lost, and no other.
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # cut off when the evaluation was killed
            continue
    return lines


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
