"""The tab that captions ten seconds, shows where the words come from, and lets the candidate be changed."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from captions.explaining import explain_note
from evaluation.prefix_words import nearest_words
from page.core import OWN, QUEUE, Core, announce, in_a_sentence, mark_copied, nothing_said, on_gpu, refusal, table

EXAMPLES = Path(__file__).with_name("examples")
SOUNDS = [".mp3", ".wav", ".flac", ".ogg", ".opus", ".m4a", ".aac", "audio", "video"]
EMPTY = {"caption": None, "without": None, "score": None, "candidates": [], "flags": []}


def build(core: Core):
    """Adds the tab to the page, with its endpoints `/caption` and `/candidates`."""

    def listen(file: str | None, recording: str | None, datastore: str, candidate: str | None = None) -> dict[str, Any]:
        """Captions a file with the candidate, or those that are retrieved, and without any."""
        path, _ = core.check(file or recording)
        retrieves = core.pipeline.model.config.uses_candidate
        given = {"candidates": candidate} if candidate else {}
        result = core.run(path, datastore, **given)
        if result["caption"] is None:
            raise refusal(nothing_said(path, result))
        alone = retrieves and core.pipeline.model.config.uses_audio and not candidate
        without = core.run(path, datastore, candidates=[])["caption"] if alone else None
        return {**result, "without": without, "path": path, "datastore": datastore}

    @on_gpu
    @in_a_sentence
    def show_caption(file: str | None, recording: str | None, datastore: str):
        result = listen(file, recording, datastore)
        shown = result["candidates"]
        return (
            result["caption"],
            result["without"] or "",
            in_words(result, core),
            candidates_table(result, core),
            shown[0]["text"] if shown else "",
            "",
            "",
            result,
            announce(f"Caption: {result['caption']}"),
        )

    @on_gpu
    @in_a_sentence
    def steer(candidate: str, state: dict[str, Any]):
        if not state:
            raise refusal("Caption a file first: then you can change what the model reads.")
        if not candidate.strip():
            raise refusal("Write a description into the field, and caption again.")
        result = listen(state["path"], None, state["datastore"], candidate)
        return result["caption"], announce(f"Caption with your text: {result['caption']}")

    @on_gpu
    @in_a_sentence
    def explain(state: dict[str, Any]):
        if not state:
            raise refusal("Caption a file first: then its words can be explained.")
        result = core.run(state["path"], state["datastore"], explain=True)
        return why(result, core), announce("The words are explained.")

    @on_gpu
    @in_a_sentence
    def caption(file: str, candidate: str = "", datastore: str = OWN) -> dict[str, Any]:
        """
        Captions the music of an audio or video file: its middle ten seconds.

        Args:
            file: The audio or video file.
            candidate: A description that the model reads in place of those of similar songs; may be empty.
            datastore: The name of the datastore whose similar songs the model reads.
        """
        if datastore not in core.datastores:
            raise refusal(f"datastore {datastore!r}: expected one of {', '.join(map(repr, core.datastores))}")
        result = listen(file, None, datastore, candidate.strip() or None)
        return {name: value for name, value in result.items() if name not in ("path", "datastore")}

    gr.set_static_paths([EXAMPLES])  # not copied among the uploads, which are deleted
    state = gr.State({})
    with gr.Row():
        with gr.Column():
            file = gr.File(label="Audio or video file", file_types=SOUNDS, elem_id="file")
            recording = gr.Audio(label="Or record", sources=["microphone"], type="filepath", elem_id="recording")
            datastore = gr.Dropdown(
                list(core.datastores), value=OWN, label="Similar songs come from", visible=len(core.datastores) > 1
            )
            button = gr.Button("Caption", variant="primary", elem_id="caption-button")
            gr.Examples([str(path) for path in sorted(EXAMPLES.glob("*.ogg"))], file, label="Examples")
        with gr.Column():
            said = gr.Textbox(label="Caption", interactive=False, elem_id="caption", lines=2)
            without = gr.Textbox(
                label="Without a similar song: from the sound alone", interactive=False, elem_id="without", lines=2
            )
            score = gr.Markdown(elem_id="score")
    candidates = gr.HTML(elem_id="candidates")
    with gr.Group():
        candidate = gr.Textbox(label="Change what the model reads, and caption again", elem_id="candidate", lines=2)
        again = gr.Button("Caption with this text", elem_id="steer-button")
        steered = gr.Textbox(label="Caption with your text", interactive=False, elem_id="steered", lines=2)
    with gr.Accordion("Why these words?", open=False, elem_id="why"):
        explain_button = gr.Button("Explain the words", elem_id="explain-button")
        explanation = gr.HTML(elem_id="explanation")
    spoken = gr.HTML(elem_classes="announce", elem_id="announce")

    outputs = [said, without, score, candidates, candidate, steered, explanation, state, spoken]
    private = {"api_visibility": "private", **QUEUE}
    button.click(show_caption, [file, recording, datastore], outputs, show_progress_on=said, **private)
    steering = {"show_progress_on": steered, **private}
    gr.on([again.click, candidate.submit], steer, [candidate, state], [steered, spoken], **steering)
    explain_button.click(explain, state, [explanation, spoken], **private)
    # Each file is a new start: what belongs to the one before would be taken for its own.
    file.upload(lambda: None, None, recording, **private)
    recording.stop_recording(lambda: None, None, file, **private)
    with gr.Row(visible=False):
        inputs = [gr.File(label="file"), gr.Textbox("", label="candidate"), gr.Textbox(OWN, label="datastore")]
        gr.Button().click(caption, inputs, gr.JSON(label="result"), api_name="caption", **QUEUE)


def in_words(result: dict[str, Any], core: Core) -> str:
    """How sure the model is of its wording, and how similar the nearest song is."""
    score, threshold = result["score"], core.pipeline.model.config.score_threshold
    parts = [f"Score {score:.2f}, the mean log-probability of a token (0 is the most)"]
    if threshold is not None:
        usual = (
            "about as usual" if score >= threshold else "lower than for nine in ten songs like those of the training"
        )
        parts[0] += f": {usual}"
    similarities = [row["similarity"] for row in result["candidates"] if row["similarity"] is not None]
    if similarities:
        parts.append(f"Similarity of the most similar song: {max(similarities):.2f} (1 is the same)")
    parts.append("The score is about the wording, not about whether the caption is true")
    return ". ".join(parts) + "."


def candidates_table(result: dict[str, Any], core: Core) -> str:
    """What the model read, with the words that the caption shares with it marked."""
    if not result["candidates"]:
        return "<p>The model read no caption of a similar song.</p>"
    rule = core.pipeline.processor.caption_normalization
    rows = [
        (
            mark_copied(row["text"], result["caption"], rule),
            "" if row["similarity"] is None else f"{row['similarity']:.3f}",
            html.escape(row["source"] or "not stated"),
            html.escape(row["license"] or "not stated"),
        )
        for row in result["candidates"]
    ]
    return table(
        "What the model read: captions of similar songs. Underlined words are in its caption, too.",
        ("Caption of a similar song", "Similarity", "Source", "Licence"),
        rows,
    )


def why(result: dict[str, Any], core: Core) -> str:
    """The shares of sound and candidate in each word, and the words of the prefix."""
    explanation = result["explanation"]
    copied = {word for span in explanation["copied"] for word in range(span["start"], span["end"])}
    rows = []
    for number, row in enumerate(explanation["words"]):
        word = html.escape(row["word"] or "(end)")
        shares = [row["audio"], row["controls"].get("audio"), row["candidate"], row["controls"].get("candidate")]
        cells = ["-" if value is None else f"{value:+.2f}" for value in shares]
        rows.append((f"<mark>{word}</mark>" if number in copied else word, *cells))
    header = ("Word", "From the sound", "A random sound", "From the candidate", "A random candidate")
    parts = [table("What each word comes from", header, rows), f"<p>{html.escape(explain_note(explanation))}.</p>"]
    if core.pipeline.model.config.uses_audio:
        model, processor = core.pipeline.model, core.pipeline.processor
        embeds = model.embed_audio(processor(audio=result["path"])["input_features"])
        (words,) = nearest_words(model, processor.tokenizer, embeds)
        parts.append(
            f"<p>Tokens nearest to the prefix, which need not mean anything: {html.escape(', '.join(words))}</p>"
        )
    return "".join(parts)
