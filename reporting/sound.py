"""Sound inside a page."""

import base64
import io

import numpy as np
import soundfile

SAMPLING_RATE = 48_000  # Hz


def mp3_in_base64(waveform: np.ndarray) -> str:
    """Samples, mono at 48 kHz, as an mp3 in base64."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform, -1, 1), SAMPLING_RATE, format="MP3")
    return base64.b64encode(file.getvalue()).decode()
