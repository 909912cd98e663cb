"""
Gives stable-audio-tools the captions that `caption.py --sidecar stable-audio` wrote.

Its dataset config names this file as `custom_metadata_module`. It needs nothing else of this repository.
"""

import json
from pathlib import Path
from typing import Any


def get_custom_metadata(info: dict[str, Any], audio: Any) -> dict[str, Any]:
    """The prompt in the `song.json` beside a song. A song without one is not trained on."""
    sidecar = Path(info["path"]).with_suffix(".json")
    if not sidecar.is_file():
        return {"__reject__": True}
    return {"prompt": json.loads(sidecar.read_text(encoding="utf-8"))["prompt"]}
