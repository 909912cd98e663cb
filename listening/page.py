"""
The page that raters open: one HTML file with everything in it. It names captions and sounds by random tokens, holds no
name of a system, a file or a song, and forbids the browser any request.
"""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from listening.design import Study, draw_tokens

SECONDS_PER_TRIAL = 45  # about, to tell raters how long the test takes


def write_page(path: Path, study: Study, load_clip: Callable[[str], np.ndarray], contact: str, consent: str | None):
    """
    Writes the page.

    Args:
        path (`Path`): The HTML file.
        study ([`Study`])
        load_clip (`Callable`): Returns the 10 s that the model hears of a song: float32, mono, 48 kHz. Not called for
            raters who see text only.
        contact (`str`): Whom raters can ask, as shown to them.
        consent (`str`, *optional*): What raters agree to, in place of the page's own text; blank lines separate
            paragraphs.
    """
    generator = np.random.default_rng([study.seed, 1])
    shown = [*((song, name) for song, captions in study.captions.items() for name in captions), *study.captions]
    tokens = dict(zip(shown, draw_tokens(generator, len(shown))))
    encode = {"hearing": mp3_url, "picture": picture_url}.get(study.variant)
    data = {
        "id": study.id,
        "variant": study.variant,
        "criteria": study.criteria,
        "texts": {
            tokens[song, name]: text for song, captions in study.captions.items() for name, text in captions.items()
        },
        "clips": {tokens[song]: encode(load_clip(song)) for song in study.captions} if encode else {},
        "raters": {
            code: [
                [trial.id, tokens[trial.song], tokens[trial.song, trial.left], tokens[trial.song, trial.right]]
                for trial in trials
            ]
            for code, trials in study.raters.items()
        },
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    most = max(map(len, study.raters.values()))
    page = environment.get_template("page.html.jinja").render(
        study=data,  # sorted by tokens when it is written, which hides the order in which they were drawn
        variant=study.variant,
        trials=most,
        minutes=max(5, 5 * round(most * SECONDS_PER_TRIAL / 300)),
        contact=contact,
        consent=[part for part in (consent or "").split("\n\n") if part.strip()],
    )
    path.write_text(page.rstrip() + "\n", encoding="utf-8")


def mp3_url(waveform: np.ndarray) -> str:
    from reporting.sound import mp3_in_base64

    return f"data:audio/mpeg;base64,{mp3_in_base64(waveform)}"


def picture_url(waveform: np.ndarray) -> str:
    """The log-mel spectrogram that the model sees, as a PNG: time to the right, pitch upwards, loud is bright."""
    from matplotlib.image import imsave

    from feature_extraction_rgmc import log_mel_spectrogram

    log_mel = log_mel_spectrogram(waveform).numpy()  # (T, F), dB
    file = io.BytesIO()
    top = log_mel.max()
    imsave(file, log_mel.T, format="png", origin="lower", cmap="magma", vmin=top - 70, vmax=top)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
