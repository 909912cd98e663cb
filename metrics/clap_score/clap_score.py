"""Computes CLAP scores of captions: audio to prediction and reference to prediction, for `evaluate.load`."""

import hashlib
import re
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import datasets
import evaluate
import huggingface_hub
import numpy as np
import torch
from huggingface_hub.utils import httpx
from tqdm.auto import tqdm
from transformers import AutoFeatureExtractor, AutoTokenizer, ClapConfig, ClapModel
from transformers.utils import cached_file

DESCRIPTION = """
How near a caption is to its clip (A-T) and to its reference (T-T) in the space of a CLAP model: the mean over items of
the cosine x 100. The default checkpoint is the one that laion_clap loads by default (630k-audioset-best, HTSAT-tiny).
Texts are lower-cased, because RoBERTa is cased; their Unicode punctuation and symbols are deleted (the rule `music`
keeps those of C#, R&B, 4/4 and don't), white space is collapsed, and they are cut at 77 tokens. The audio is the middle
10 seconds at 48 kHz, mono, through 16-bit integers as in laion_clap. The name of a score says which weights gave it.
"""
INPUTS = """
Args:
    predictions (`list[str]`):
        A caption per item. An empty caption is scored as the empty text.
    references (`list[str]` or `list[list[str]]`):
        A caption or a list of captions per item. Captions without any text are left out.
    audio (`list` or `np.ndarray`, *optional*):
        A clip per item, in the same order: a path, the content (`bytes`), the `{"path": ..., "bytes": ...}` of
        `datasets.Audio(decode=False)`, or a mono waveform at 48 kHz `(samples,)`, floats in [-1, 1]; or the array
        `(items, E)` that `embed_audio` returned. By default only T-T is computed.
    model (`str`, defaults to `"laion/clap-htsat-unfused"`):
        Hub id or folder of a CLAP checkpoint without fusion.
    revision (`str`, *optional*):
        Branch, tag or commit of a Hub id.
    normalization (`str`, defaults to `"paper"`):
        Rule of the texts, the captioning model's own: `"paper"` or `"music"`.
    per_item (`bool`, defaults to `False`):
        Whether to also return the scores of each item.
    batch_size (`int`, defaults to 16):
        Clips, and texts, per forward pass.
    device (`str`, *optional*, defaults to the GPU if there is one):
        Where the model runs.

Returns:
    `dict`:

    - `clap_at[<name>@<revision>]`, `clap_tt[<name>@<revision>]` (`float`): Scores x 100; T-T is the mean over an item's
      references. The revision is the commit of a Hub id or the SHA-256 of the weights in a folder, 12 digits.
    - `truncated_texts` (`int`): Number of distinct texts that were cut.
    - `per_item` (`dict[str, list[float]]`): Scores of each item, with `per_item=True`.
    - `unavailable` (`dict[str, str]`): If the checkpoint cannot be loaded, the reason for each score. The scores are
      `None` then, and named after the model without a revision.

Raises:
    `ValueError`: If there are no items, if an item has no reference with text, if audio and predictions do not match
    1:1, if audio cannot be used, or if the checkpoint has fusion or lacks weights.
"""
CITATION = """
@inproceedings{wu2023large,
  title={Large-Scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption Augmentation},
  author={Wu, Yusong and Chen, Ke and Zhang, Tianyu and Hui, Yuchen and Berg-Kirkpatrick, Taylor and Dubnov, Shlomo},
  booktitle={ICASSP},
  year={2023}
}
"""
NORMALIZATIONS = ("paper", "music")
MUSICAL = "/&#♭'"  # kept by `music`, where each has a meaning
# Other characters that are typed for the same sign.
SPELLINGS = str.maketrans({**dict.fromkeys("`\u00b4\u2018\u2019\u02bc\u2032\uff07", "'"), "♯": "#"})
MODEL = "laion/clap-htsat-unfused"
SAMPLING_RATE = 48_000  # Hz
SAMPLES = 480_000  # 10 s
MIN_SAMPLES = 960  # 0.02 s, about one analysis window
MAX_TOKENS = 77

logger = evaluate.logging.get_logger(__name__)


class ClapScore(evaluate.Metric):
    """Keeps loaded models and the embeddings of texts, so that several systems cost little more than one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._checkpoints = {}

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Scores captions with CLAP."""  # `evaluate` appends the description of the arguments
        if predictions is not None and len(predictions) == 0:
            raise ValueError("no predictions: there is nothing to score")
        return super().compute(predictions=predictions, references=references, **kwargs)

    def embed_audio(self, audio, model=MODEL, revision=None, batch_size=16, device=None) -> np.ndarray | None:
        """
        Embeds clips, to be passed as `audio=` to each `compute` with the same model.

        Args:
            audio, model, revision, batch_size, device:
                As in `compute`.

        Returns:
            `np.ndarray` of shape `(n, E)`: float32 unit vectors, or `None` if the checkpoint cannot be loaded;
            `compute` says why.
        """
        checkpoint = self._load(model, revision, device)
        return None if isinstance(checkpoint, str) else checkpoint.embed_audio(audio, batch_size)

    def _compute(
        self,
        predictions,
        references,
        audio=None,
        model=MODEL,
        revision=None,
        normalization="paper",
        per_item=False,
        batch_size=16,
        device=None,
    ):
        predictions = [normalize(caption, normalization) for caption in predictions]
        references = [[entry] if isinstance(entry, str) else entry for entry in references]
        references = [[normalize(text, normalization) for text in captions] for captions in references]
        references = [[text for text in captions if text] for captions in references]
        for item, texts in enumerate(references):
            if not texts:
                raise ValueError(f"item {item}: no reference has a letter or digit; expected at least one that does")
        if audio is not None and len(audio) != len(predictions):
            raise ValueError(f"{len(audio)} clips but {len(predictions)} predictions: they must match 1:1")
        checkpoint = self._load(model, revision, device)
        if isinstance(checkpoint, str):
            names = [f"{score}[{_short_name(model)}]" for score in ("clap_at", "clap_tt")]
            return {**dict.fromkeys(names), "unavailable": dict.fromkeys(names, checkpoint)}
        if isinstance(audio, np.ndarray):
            width = checkpoint.model.config.projection_dim
            if audio.shape != (len(predictions), width) or not np.isfinite(audio).all():
                raise ValueError(
                    f"audio: array of shape {audio.shape}; "
                    f"expected finite embeddings ({len(predictions)}, {width}) of {checkpoint.name}, or a list of clips"
                )
        elif audio is not None:
            audio = checkpoint.embed_audio(audio, batch_size)
        distinct = list(dict.fromkeys([*predictions, *(text for texts in references for text in texts)]))
        embeddings = checkpoint.embed_texts(distinct, batch_size)
        items = {}
        if audio is not None:
            items["clap_at"] = [_cosine(clip, embeddings[text]) for clip, text in zip(audio, predictions)]
        items["clap_tt"] = [
            np.mean([_cosine(embeddings[text], embeddings[prediction]) for text in texts])
            for texts, prediction in zip(references, predictions)
        ]
        items = {f"{score}[{checkpoint.name}]": (100 * np.array(cosines)).tolist() for score, cosines in items.items()}
        scores = {name: float(np.mean(values)) for name, values in items.items()}
        scores["truncated_texts"] = len(checkpoint.truncated.intersection(distinct))
        return {**scores, "per_item": items} if per_item else scores

    def _load(self, model, revision, device) -> "_Checkpoint | str":
        """Loads the checkpoint, or says why it cannot be loaded. Tried once."""
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        key = (str(model), revision, device)
        if key not in self._checkpoints:
            try:
                self._checkpoints[key] = _Checkpoint(str(model), revision, device)
            except OSError as error:
                self._checkpoints[key] = (
                    f"{model} cannot be loaded (pass the folder of a CLAP checkpoint, "
                    f"or run once with a connection to the Hub): {str(error).partition(chr(10))[0]}"
                )
        return self._checkpoints[key]


class _Checkpoint:
    """A CLAP model and the embeddings of the texts that it has seen."""

    def __init__(self, model: str, revision: str | None, device: torch.device):
        local = Path(model).is_dir()
        source = {"revision": revision, "local_files_only": local or not _hub_answers()}
        config_file = Path(cached_file(model, "config.json", **source))
        if not local:
            source["revision"] = config_file.parent.name  # the commit, even if the branch moves on
        config = ClapConfig.from_pretrained(model, **source)
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(model, **source)
        if config.audio_config.enable_fusion or self.feature_extractor.truncation == "fusion":
            raise ValueError(
                f"{model} is a CLAP with fusion (enable_fusion, or truncation='fusion' of its feature extractor), "
                f"so its input and its scores would be random. Use one without fusion, such as {MODEL}"
            )
        self.tokenizer = AutoTokenizer.from_pretrained(model, **source)
        self.model, info = ClapModel.from_pretrained(
            model, config=config, dtype=torch.float32, output_loading_info=True, **source
        )
        missing = [name for name, _ in self.model.named_parameters() if name in info["missing_keys"]]
        if missing:  # they would be random
            raise ValueError(f"{model} is not a CLAP checkpoint: it lacks {len(missing)} weights, such as {missing[0]}")
        self.model.to(device).eval()
        digits = _digest(Path(model)) if local else source["revision"]
        self.name = f"{_short_name(model)}@{digits[:12]}"
        self.truncated: set[str] = set()
        self._text_embeddings: dict[str, np.ndarray] = {}

    @torch.no_grad()
    def embed_texts(self, texts: list[str], batch_size: int) -> dict[str, np.ndarray]:
        """Embeds normalised texts as unit vectors."""
        new = [text for text in texts if text not in self._text_embeddings]
        if new:
            lengths = [len(ids) for ids in self.tokenizer(new, truncation=True, max_length=MAX_TOKENS + 1)["input_ids"]]
            self.truncated.update(text for text, length in zip(new, lengths) if length > MAX_TOKENS)
            new = [new[i] for i in np.argsort(lengths, kind="stable")]  # batches of one length need no padding
        for batch in _batches(new, batch_size, "CLAP: texts", "text"):
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            inputs = {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
            self._text_embeddings.update(zip(batch, _unit(self.model.get_text_features(**inputs).pooler_output)))
        return self._text_embeddings

    @torch.no_grad()
    def embed_audio(self, audio: list, batch_size: int) -> np.ndarray:
        """Embeds clips as unit vectors `(n, E)`."""
        embeddings, notes = [], Counter()
        for batch in _batches(audio, batch_size, "CLAP: audio", "clip"):  # so that not all contents are in memory
            waveforms, first = [], batch_size * len(embeddings)
            for item, clip in enumerate(batch, start=first):
                try:
                    waveform, kinds = _waveform(clip)
                except ValueError as error:
                    raise ValueError(f"audio of item {item}: {error}") from error
                waveforms.append(waveform)
                notes.update(kinds)
            inputs = self.feature_extractor(waveforms, sampling_rate=SAMPLING_RATE, return_tensors="pt")
            log_mels = inputs["input_features"].to(self.model.device, torch.float32)
            embeddings.append(_unit(self.model.get_audio_features(log_mels).pooler_output))
        for kind, count in notes.items():
            logger.warning(f"{count} of {len(audio)} clips: {kind}")
        return np.concatenate(embeddings)


def normalize(caption: str, normalization: str = "paper") -> str:
    """Normalises as `normalize_caption` of `captions_rgmc.py`; a metric loaded by itself cannot import it."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization {normalization!r}: expected one of {', '.join(NORMALIZATIONS)}")
    letters = "".join(character for character in caption.lower() if not _is_invisible(character))
    letters = unicodedata.normalize("NFC", letters)
    kept = MUSICAL if normalization == "music" else ""
    if normalization == "music":
        letters = letters.translate(SPELLINGS)
        letters = "".join(" " if unicodedata.category(letter) == "Pd" else letter for letter in letters)
    letters = "".join(letter for letter in letters if letter in kept or unicodedata.category(letter)[0] not in "PS")
    letters = unicodedata.normalize("NFC", letters)
    if normalization == "music":
        letters = re.sub(r"(?<!\d)/|/(?!\d)", " ", letters)
        letters = re.sub(r"(?<!\w)[&']|[&'](?!\w)", "", letters)
        letters = re.sub(r"(?<=(?<!\S)[a-g])♭", "b", letters)
        letters = re.sub(r"(?<!(?<!\S)[a-g])#|♭", "", letters)
    return " ".join(unicodedata.normalize("NFC", letters).split())


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _waveform(clip) -> tuple[np.ndarray, list[str]]:
    """Returns the middle 10 s in laion_clap's 65,535 steps, float32, and the kinds of warning about them."""
    if isinstance(clip, np.ndarray):
        if clip.ndim != 1 or clip.dtype.kind != "f" or len(clip) < MIN_SAMPLES or not np.isfinite(clip).all():
            raise ValueError(
                f"array of {clip.dtype}, shape {clip.shape}; "
                f"expected finite floats (samples,) at {SAMPLING_RATE} Hz, {MIN_SAMPLES} or more"
            )
        first = max((len(clip) - SAMPLES) // 2, 0)
        samples, kinds = clip[first : first + SAMPLES], []
    else:
        try:
            from audio_rgmc import AudioWarning, load_audio
        except ImportError as error:
            raise ImportError(
                "Decoding needs audio_rgmc.py: run from the repository root, or pass waveforms or embeddings as audio="
            ) from error
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            samples = load_audio(clip)
        kinds = [warning.message.kind for warning in caught if isinstance(warning.message, AudioWarning)]
    steps = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
    return (steps / 32767).astype(np.float32), kinds


def _batches(items, batch_size: int, title: str, unit: str):
    with tqdm(total=len(items), desc=title, unit=unit, disable=not items) as progress:
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            yield batch
            progress.update(len(batch))


def _unit(embeddings: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def _short_name(model: str) -> str:
    """Returns a Hub id unchanged, and the last part of a folder."""
    is_id = not Path(model).is_dir() and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(model))
    return str(model) if is_id else Path(model).resolve().name


def _digest(folder: Path) -> str:
    """Computes the SHA-256 of the weights in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _hub_answers() -> bool:
    """Asks the Hub a single time: without a connection, `from_pretrained` would try for most of a minute."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except (OSError, httpx.HTTPError):
        return False
    return True
