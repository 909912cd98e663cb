"""A checkpoint captions a split: each clip once, shared among the processes, resumed after an interruption."""

import hashlib
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from clips.checkpoints import identify
from clips.embedding import own_ids
from clips.features import ClipFeatures, Split
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from reporting.results import Checkpoint, Prediction


@dataclass
class Captioner:
    """
    A checkpoint and the clips that it captions.

    Args:
        name (`str`): Folder or Hub id of the checkpoint.
        model ([`RGMCModel`]), processor ([`RGMCProcessor`]): Of the checkpoint.
        features ([`ClipFeatures`]): The clips.
        accelerator (`Accelerator`): Whose processes share the clips.
        batch_size (`int`): Clips per forward pass and process.
        parts_dir (`Path`): Folder where each process writes its captions as it goes.
        seconds (`dict[str, float]`):
            Wall time per clip of each captioning, by its title: of the clips that this process captioned in this run.
    """

    name: str
    model: RGMCModel
    processor: RGMCProcessor
    features: ClipFeatures
    accelerator: Accelerator
    batch_size: int
    parts_dir: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, split: Split, accelerator: Accelerator, batch_size: int, parts_dir: Path) -> "Captioner":
        """
        Loads a checkpoint to caption a split. The arguments are those of the class.

        Raises:
            `ValueError`: If the checkpoint has no datastore, or its model and processor normalise by different rules.
        """
        processor = RGMCProcessor.from_pretrained(name)
        model = RGMCModel.from_pretrained(name).to(accelerator.device).eval()
        if model.datastore is None:
            raise ValueError(f"{name} has no datastore, so there are no candidates and no baselines to score")
        if model.config.caption_normalization != processor.caption_normalization:
            raise ValueError(
                f"{name}: caption_normalization is '{model.config.caption_normalization}' in config.json and "
                f"'{processor.caption_normalization}' in processor_config.json: expected files of one checkpoint"
            )
        return cls(name, model, processor, split.features(processor, accelerator), accelerator, batch_size, parts_dir)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return identify(self.name)

    @cached_property
    def own_ids(self) -> list[str | None]:
        return own_ids(self.features, self.model.datastore)

    @torch.no_grad()
    def caption(
        self,
        title: str,
        candidates: list[str] | None = None,
        songs: np.ndarray | None = None,
        masked_to: str | None = None,
        all_beams: bool = False,
        selection: str | None = None,
    ) -> list[Prediction]:
        """
        Captions every clip.

        Args:
            title (`str`): Title of the progress bar.
            candidates (`list[str]`, *optional*): One per clip, in place of its nearest neighbour's caption.
            songs (`np.ndarray` of shape `(N,)`, *optional*):
                The rows of the datastore that these candidates are from, so that the decoder is told how similar they
                are. By default it takes them for captions of the clips themselves.
            masked_to (`str`, *optional*): `"audio"` or `"candidate"`, the only one of the two that the decoder sees.
            all_beams (`bool`, *optional*, defaults to `False`):
                Whether the captions of all beams are kept, too. The caption itself stays the same.
            selection (`str`, *optional*, defaults to that of the checkpoint):
                How a caption is chosen, as in [`RGMCModel.generate`].

        Returns:
            A [`Prediction`] per clip, in the order of the clips, on every process.
        """
        selection = selection or self.model.config.selection
        kind = [self.checkpoint, self.features.ids, self.features.captions, candidates, songs is None]
        kind += [masked_to, all_beams, selection]
        part = hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:16]
        lines = {line["row"]: line for path in self.parts_dir.glob(f"{part}-*.jsonl") for line in _whole_lines(path)}
        self.accelerator.wait_for_everyone()  # every process has read the parts before any writes
        left = [row for row in range(len(self.features)) if row not in lines]
        own = left[self.accelerator.process_index :: self.accelerator.num_processes]
        progress = tqdm(total=len(own), desc=title, unit="clip", disable=not self.accelerator.is_main_process)
        self.parts_dir.mkdir(parents=True, exist_ok=True)
        written = []
        path = self.parts_dir / f"{part}-{self.accelerator.process_index}.jsonl"
        started = time.perf_counter()
        with path.open("a", encoding="utf-8") as file, conditioned_on(self.model, masked_to):
            for start in range(0, len(own), self.batch_size):
                batch = own[start : start + self.batch_size]
                captioned = self._caption_batch(batch, candidates, songs, all_beams, selection)
                file.write("".join("\n" + json.dumps(line, ensure_ascii=False) for line in captioned))
                file.flush()
                written += captioned
                progress.update(len(batch))
        progress.close()
        if own:
            self.seconds[title] = (time.perf_counter() - started) / len(own)
        lines.update({line["row"]: line for line in gather_object(written)})
        if sorted(lines) != list(range(len(self.features))):
            raise RuntimeError(f"gathered {len(lines)} predictions for {len(self.features)} clips, expected one each")
        return [{name: value for name, value in lines[row].items() if name != "row"} for row in sorted(lines)]

    def _caption_batch(
        self,
        batch: list[int],
        candidates: list[str] | None,
        songs: np.ndarray | None,
        all_beams: bool,
        selection: str,
    ) -> list[dict]:
        audio_embeds, own_ids = self.model.embed_audio(self.features.read(batch)), [self.own_ids[row] for row in batch]
        found = self.model.retrieve(audio_embeds, exclude_ids=own_ids)
        shown = found.captions if candidates is None else [[candidates[row]] for row in batch]
        scores = found.similarities if candidates is None else None
        if songs is not None:
            embeds = torch.from_numpy(self.model.datastore.read_embeddings(songs[batch])).to(audio_embeds)
            scores = (embeds * audio_embeds).sum(1, keepdim=True).tolist()
        uses_candidate = self.model.config.uses_candidate
        prompts = self.processor(candidates=shown, similarities=scores) if uses_candidate else {}

        def say(selection: str, **options) -> list[str]:
            tokens = self.model.generate(audio_embeds=audio_embeds, selection=selection, **options)
            return [*map(self.processor.normalize, self.processor.batch_decode(tokens, skip_special_tokens=True))]

        if selection == "best" or all_beams:
            count = (self.model.generation_config.num_beams or 1) if all_beams else 1
            captions = say("best", num_return_sequences=count, **prompts)
            beams = [captions[start : start + count] for start in range(0, len(captions), count)]
            said = [own[0] for own in beams]
        if selection != "best":
            options = prompts if candidates is not None else {}  # otherwise several neighbours take turns
            said = say(selection, exclude_ids=own_ids, tokenizer=self.processor.tokenizer, **options)
        return [
            {
                "row": row,
                "id": self.features.ids[row],
                "caption_normalization": self.processor.caption_normalization,
                "prediction": said[i],
                "references": self.features.captions[row],
                "candidate": next(iter(shown[i]), None),
                "candidate_id": next(iter(found.ids[i]), None),
                "similarity": next(iter(found.similarities[i]), None),
                **({"beams": beams[i]} if all_beams else {}),
            }
            for i, row in enumerate(batch)
        ]


@contextmanager
def conditioned_on(model: RGMCModel, conditioning: str | None):
    """
    Masks the audio or the candidate of a model that was trained on both.

    Args:
        model ([`RGMCModel`])
        conditioning (`str`, *optional*):
            `"audio"` for the prefix `e(x)` alone, `"candidate"` for the candidate alone; None changes nothing.
    """
    trained = model.config.conditioning
    model.config.conditioning = conditioning or trained
    try:
        yield
    finally:
        model.config.conditioning = trained


def _whole_lines(path: Path) -> list[dict]:
    lines = []
    # A kill may have cut the last line, and a character in it. Only that line is lost.
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
