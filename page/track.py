"""The tab that divides a track or film into spans, shows their subtitles and gives them away."""

import base64
import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from captions.profiles import load_profile, profile_names
from captions.rendering import make_cues
from captions.span_rows import Span
from captions.subtitle_files import WRITERS
from page.caption import SOUNDS
from page.core import OWN, PROGRESS, QUEUE, Core, announce, clock, in_a_sentence, on_gpu, refusal, table

DETAILS = {"Every caption": -1e9, "Only captions the model is sure of": None, "Only that there is music": 1e9}


def build(core: Core):
    """Adds the tab to the page, with its endpoint `/caption_track`."""

    def divide(file: str | None, datastore: str, progress: gr.Progress) -> list[dict[str, Any]]:
        path, duration = core.check(file)
        progress(0, desc="Listening")
        found = core.spans(path, datastore, lambda seconds: progress(min(seconds / duration, 1.0), desc="Listening"))
        threshold = core.pipeline.model.config.score_threshold
        settings = {} if threshold is None else {"score_threshold": threshold}
        return [asdict(Span(path=path, duration=found[-1]["end"], settings=settings, **span)) for span in found]

    @on_gpu
    @in_a_sentence
    def show_track(file: str | None, datastore: str, profile: str, detail: str, remind: float, progress=PROGRESS):
        spans = divide(file, datastore, progress)
        told = f"{len(spans)} spans found, {sum(span['kind'] == 'music' for span in spans)} of them music."
        return spans, spans_table(spans), *render(spans, profile, detail, remind), announce(told)

    def render(spans: list[dict[str, Any]], profile: str, detail: str, remind: float):
        """The player and the files, without the model."""
        if not spans:
            return "", gr.File(visible=False)
        own = [Span(**span) for span in spans]
        cues, _ = make_cues(own, load_profile(profile), (), remind or None, DETAILS[detail])
        path, folder = Path(own[0].path), core.folder()
        texts = {
            ".vtt": WRITERS["vtt"](cues),
            ".srt": WRITERS["srt"](cues),
            ".jsonl": "".join(json.dumps({**span, "path": path.name}, ensure_ascii=False) + "\n" for span in spans),
        }
        files = []
        for ending, text in texts.items():
            files.append(folder / f"{path.stem}{ending}")
            files[-1].write_text(text, encoding="utf-8", newline="")
        return player(path, texts[".vtt"]), gr.File([str(file) for file in files], visible=True)

    @on_gpu
    @in_a_sentence
    def caption_track(file: str, datastore: str = OWN, progress=PROGRESS) -> list[dict[str, Any]]:
        """
        Divides an audio or video file into spans of music, silence and other sound, and captions each span of music.

        Args:
            file: The audio or video file.
            datastore: The name of the datastore whose similar songs the model reads.
        """
        if datastore not in core.datastores:
            raise refusal(f"datastore {datastore!r}: expected one of {', '.join(map(repr, core.datastores))}")
        spans = divide(file, datastore, progress)
        # Not `path`: gradio's client would take the row for a file, and fetch it.
        return [{"file": Path(span.pop("path")).name, **span} for span in spans]

    spans = gr.State([])
    with gr.Row():
        with gr.Column():
            file = gr.File(label="Track", file_types=SOUNDS, elem_id="track-file")
            datastore = gr.Dropdown(
                list(core.datastores), value=OWN, label="Similar songs come from", visible=len(core.datastores) > 1
            )
            button = gr.Button("Find and caption the music", variant="primary", elem_id="track-button")
            profile = gr.Dropdown(profile_names(), value="netflix", label="Rules of the subtitles", elem_id="profile")
            detail = gr.Radio(list(DETAILS), value=list(DETAILS)[1], label="Detail", elem_id="detail")
            remind = gr.Slider(0, 120, 0, step=5, label="Say every so many seconds that the music continues (0: never)")
        with gr.Column():
            shown = gr.HTML(elem_id="player")
            files = gr.File(
                elem_id="subtitles",
                label="Subtitles and spans",
                file_count="multiple",
                interactive=False,
                visible=False,
            )
    found = gr.HTML(elem_id="spans")
    spoken = gr.HTML(elem_classes="announce", elem_id="track-announce")

    private = {"api_visibility": "private"}
    dials = [profile, detail, remind]
    button.click(
        show_track,
        [file, datastore, *dials],
        [spans, found, shown, files, spoken],
        show_progress_on=found,
        **private,
        **QUEUE,
    )
    for dial in dials:
        dial.change(render, [spans, *dials], [shown, files], show_progress="hidden", **private)
    with gr.Row(visible=False):
        inputs = [gr.File(label="file"), gr.Textbox(OWN, label="datastore")]
        gr.Button().click(caption_track, inputs, gr.JSON(label="spans"), api_name="caption_track", **QUEUE)


def spans_table(spans: list[dict[str, Any]]) -> str:
    rows = [
        (clock(span["start"]), clock(span["end"]), span["kind"], html.escape(span["caption"] or "-")) for span in spans
    ]
    return table("What is heard when", ("From", "To", "What", "Caption"), rows)


def player(path: Path, vtt: str) -> str:
    """Plays the file, with its subtitles. A video element plays sound, too, and shows the subtitles of both."""
    track = base64.b64encode(vtt.encode()).decode()
    name = html.escape(path.name)
    return (
        f'<div class="rgmc"><video controls preload="metadata" aria-label="{name} with subtitles" '
        f'src="gradio_api/file={html.escape(quote(str(path)))}">'
        f'<track default kind="captions" srclang="en" label="Music" src="data:text/vtt;base64,{track}"></video></div>'
    )
