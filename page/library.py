"""The tab that captions many files, and gives the captions as the files that programs for training read."""

import html
import json
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr

from captions.messages import count
from captions.sidecars import CONSUMERS
from page.caption import SOUNDS
from page.core import NOTHING, OWN, PROGRESS, QUEUE, Core, announce, on_gpu, reason, refusal, table

BATCH = 8  # files that go through the model together


def build(core: Core):
    """Adds the tab to the page."""

    @on_gpu
    def caption_library(files: list[str] | None, consumer: str, datastore: str, progress=PROGRESS):
        if not files:
            raise refusal("Choose files first.")
        if len(files) > core.max_files:
            raise refusal(
                f"These are {len(files)} files, and this page takes up to {core.max_files} at once: choose fewer, or "
                "caption a folder with `python caption.py FOLDER`."
            )
        rows, problems = caption_files(files, datastore, progress)
        told = f"{count(len(rows), 'file')} captioned, {len(problems)} not."
        archive = None
        if rows:
            archive = core.folder() / "captions.zip"
            write_archive(archive, rows, consumer)
        shown = [(html.escape(row["path"]), html.escape(row["caption"])) for row in rows]
        shown += [(html.escape(name), f"<strong>Not captioned:</strong> {html.escape(why)}") for name, why in problems]
        return (
            gr.File(archive and str(archive), visible=archive is not None),
            table(told, ("File", "Caption"), shown),
            announce(told),
        )

    def caption_files(
        files: list[str], datastore: str, progress: gr.Progress
    ) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
        """The rows of the files by their own names, and why others have none."""
        good, problems, seen = [], [], set()
        for path in files:
            name = Path(path).name
            try:
                core.check(path)
            except gr.Error as error:
                problems.append((name, error.message.removeprefix(f"{name}: ")))
                continue
            if name in seen:
                problems.append((name, "another file has the same name: rename one of them"))
                continue
            seen.add(name)
            good.append(path)
        rows = []
        for first in progress.tqdm(range(0, len(good), BATCH), desc="Captioning"):
            batch = good[first : first + BATCH]
            for path, result in zip(batch, core.run(batch, datastore, batch_size=BATCH)):
                name = Path(path).name
                if result["error"]:
                    problems.append((name, reason(path, ValueError(result["error"])).removeprefix(f"{name}: ")))
                elif result["caption"] is None:
                    flag = next((flag for flag in NOTHING if flag in result["flags"]), None)
                    problems.append((name, NOTHING.get(flag, "the model says nothing about it")))
                else:
                    rows.append({**result, "path": name})
        return rows, problems

    with gr.Row():
        with gr.Column():
            files = gr.File(label="Songs", file_count="multiple", file_types=SOUNDS, elem_id="library-files")
            consumer = gr.Dropdown(list(CONSUMERS), value="kohya", label="For which program", elem_id="consumer")
            datastore = gr.Dropdown(
                list(core.datastores), value=OWN, label="Similar songs come from", visible=len(core.datastores) > 1
            )
            button = gr.Button("Caption all", variant="primary", elem_id="library-button")
        with gr.Column():
            archive = gr.File(label="Captions (zip)", interactive=False, visible=False, elem_id="archive")
    found = gr.HTML(elem_id="library-table")
    spoken = gr.HTML(elem_classes="announce", elem_id="library-announce")
    button.click(
        caption_library,
        [files, consumer, datastore],
        [archive, found, spoken],
        show_progress_on=found,
        api_visibility="private",
        **QUEUE,
    )


def write_archive(path: Path, rows: list[dict[str, Any]], consumer: str):
    """Writes a zip of the sidecars and of `captions.jsonl`, which has all that is known of each file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in CONSUMERS[consumer](rows).items():
            archive.writestr(str(name), text)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        archive.writestr("captions.jsonl", "".join(lines))
