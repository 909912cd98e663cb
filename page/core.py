"""What the tabs share: the model, what a file may be, and errors in a sentence. The work is done by the pipeline."""

import functools
import html
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from attribution_rgmc import find_copied
from audio_rgmc import AudioError, probe_audio
from captions_rgmc import normalize_caption
from model_card_rgmc import from_scratch_warning
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore
from spans_rgmc import find_spans

OWN = "the model's own"
QUEUE = {"concurrency_id": "model", "concurrency_limit": 1}  # one model, one after the other
PROGRESS = gr.Progress()  # gradio gives a function with this default the bar of its own call
KEPT = 3600  # seconds for which written files are kept
NOTHING = {
    "silence": "there is only silence where the model listens, in the middle: choose another file",
    "no music": "there is only steady noise where the model listens, in the middle: choose another file",
}

try:
    from spaces import GPU as on_gpu  # a Space with ZeroGPU lends its device to functions that are marked so
except ImportError:

    def on_gpu(function: Callable) -> Callable:
        return function


class Core:
    """
    The model and the limits of a page.

    Args:
        name (`str`): Folder or Hub id of the checkpoint.
        datastores (`dict[str, str]`): Folder or Hub id of further datastores, by name.
        max_minutes (`float`): The longest file.
        max_files (`int`): The most files of a library.
    """

    def __init__(self, name: str, datastores: dict[str, str], max_minutes: float, max_files: int):
        self.name, self.max_minutes, self.max_files = Path(name).name, max_minutes, max_files
        model = RGMCModel.from_pretrained(name).eval()
        self.pipeline = MusicCaptioningPipeline(model=model, processor=RGMCProcessor.from_pretrained(name))
        self.warning = from_scratch_warning(model.config) or ""
        self.datastores: dict[str, CaptionDatastore | None] = {OWN: model.datastore}
        for title, folder in datastores.items():
            model.set_datastore(folder)
            self.datastores[title] = model.datastore
        model.set_datastore(self.datastores[OWN])
        self.lock = threading.Lock()
        self._place = tempfile.TemporaryDirectory(prefix="rgmc-page-")

    def check(self, path: str | None) -> tuple[str, float]:
        """
        Returns the path of a file that may be captioned, and how many seconds it lasts.

        Raises:
            `gr.Error`: In a sentence, if there is none, or if it is too long or cannot be used.
        """
        if not path:
            raise refusal("Choose or record a file first.")
        try:
            duration = probe_audio(path)["duration"]
        except AudioError as error:
            raise refusal(f"{reason(path, error)}: choose another file.") from None
        if duration > 60 * self.max_minutes:
            raise refusal(
                f"{Path(path).name} lasts {duration / 60:.0f} minutes, and this page takes up to {self.max_minutes:g}: "
                "cut it into shorter files, or caption it with `python caption.py FILE --spans`."
            )
        return path, duration

    def run(self, files: Any, datastore: str = OWN, **options) -> Any:
        """
        Calls the pipeline.

        Args:
            files (`Any`): As the pipeline takes them.
            datastore (`str`): A key of `datastores`, that is retrieved from.
            options: Arguments of the pipeline.
        """
        with self.lock:
            self.pipeline.model.set_datastore(self.datastores[datastore])
            return self.pipeline(files, **options)

    def spans(self, path: str, datastore: str, advance: Callable[[float], None]) -> list[dict[str, Any]]:
        """Divides a file into spans and captions them, as [`find_spans`] does."""
        with self.lock:
            self.pipeline.model.set_datastore(self.datastores[datastore])
            return find_spans(self.pipeline, path, advance=advance)

    def folder(self) -> Path:
        """A new folder for files that are given to the user. Those of an hour ago are deleted."""
        root = Path(self._place.name)
        for old in root.iterdir():
            if time.time() - old.stat().st_mtime > KEPT:
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=root))


def refusal(sentence: str) -> gr.Error:
    return gr.Error(sentence, print_exception=False, duration=None)


def reason(path: str, error: Exception) -> str:
    """What is wrong with a file, by the name that its user knows."""
    return f"{Path(path).name}: {str(error).removeprefix(f'{path!r}: ')}"


def in_a_sentence(function: Callable) -> Callable:
    """Makes an [`AudioError`] of a function a sentence on the page, without a traceback in the server's log."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except AudioError as error:
            named = next((arg for arg in args if isinstance(arg, str) and str(error).startswith(repr(arg))), "The file")
            raise refusal(f"{reason(named, error)}: choose another file.") from None

    return wrapped


def nothing_said(path: str, result: dict[str, Any]) -> str:
    """Why a file has no caption."""
    flag = next((flag for flag in NOTHING if flag in result["flags"]), None)
    return f"{Path(path).name}: {NOTHING[flag] if flag else 'the model says nothing about it'}."


def mark_copied(text: str, caption: str, normalization: str) -> str:
    """A candidate as HTML, with the phrases that the caption shares with it marked."""
    words = text.split()
    plain = [normalize_caption(word, normalization) for word in words]
    spans = find_copied(plain, normalize_caption(caption, normalization).split())
    opening, closing = {start for start, *_ in spans}, {end - 1 for _, end, _ in spans}
    return " ".join(
        f"{'<mark>' * (number in opening)}{html.escape(word)}{'</mark>' * (number in closing)}"
        for number, word in enumerate(words)
    )


def table(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table as HTML. The cells are HTML already."""
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    caption = f"<caption>{html.escape(title)}</caption>"
    return (
        f'<div class="rgmc"><div class="scroll" tabindex="0" role="region" aria-label="{html.escape(title)}">'
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def announce(text: str) -> str:
    """What a screen reader is told."""
    return f"<p>{html.escape(text)}</p>"


def clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
