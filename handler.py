"""
Captions music behind an Inference Endpoint of the Hub, which calls `EndpointHandler` for each request.

The body is the file itself (`Content-Type: audio/mpeg` and the like), or JSON: `{"inputs": "<the file in base64>",
"parameters": {"spans": true}}`. The parameters are those of `PARAMETERS`. The answer is JSON, and so are errors:
`{"error": "…"}`.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any

from transformers import pipeline

FILE = "the bytes of an audio or video file, or these bytes in base64"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_captions(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(entry, str) for entry in value))


COUNT = (_is_whole, "a whole number from 1 up")
PARAMETERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "candidates": (_is_captions, "a caption or a list of captions"),
    "return_candidates": (_is_switch, "true or false"),
    "spans": (lambda value: isinstance(value, (bool, dict)), "true, false or the settings of spans"),
    "start": (_is_number, "seconds, 0 or more"),
    "where": (lambda value: value in ("middle", "whole") or _is_whole(value), "middle, whole or a number of windows"),
    "explain": (_is_switch, "true or false"),
    "selection": (lambda value: value in ("best", "consensus"), "best or consensus"),
    "num_beams": COUNT,
    "num_return_sequences": COUNT,
    "max_new_tokens": COUNT,
}


class EndpointHandler:
    """
    Answers requests with the pipeline of a checkpoint.

    Args:
        path (`str`): Folder of the checkpoint.
    """

    def __init__(self, path: str = ""):
        self.captioner = pipeline("music-captioning", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
        """
        Captions a file.

        Args:
            data (`dict`):
                `inputs`, the bytes of an audio or video file or their base64, and optionally `parameters`.

        Returns:
            `dict`: What the pipeline returns for a file, with `candidates` if `return_candidates` is true; with
            `spans`, a list of such dicts. If the request cannot be answered, only `error`, a sentence.
        """
        try:
            sound, parameters = read_request(data)
            shows_candidates = parameters.pop("return_candidates", False)
            found = self.captioner(sound, **parameters)
        except (ValueError, TypeError) as error:  # of the request; those of the program are the server's to report
            return {"error": str(error)}
        hidden = {"path", "error"} | (set() if shows_candidates else {"candidates"})
        rows = [
            {name: value for name, value in row.items() if name not in hidden}
            for row in (found if isinstance(found, list) else [found])
        ]
        return rows if isinstance(found, list) else rows[0]


def read_request(data: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """
    Returns the file and the parameters of a request.

    Raises:
        `ValueError`: If the file is missing or not base64, or for a parameter that is unknown or has a wrong value.
    """
    if not isinstance(data, dict) or not data.get("inputs"):
        raise ValueError(f"inputs are missing: expected {FILE}")
    sound, parameters = data["inputs"], data.get("parameters") or {}
    if isinstance(sound, str):
        try:
            sound = base64.b64decode(sound, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"inputs begin with {sound[:20]!r}: expected {FILE}; URLs are not fetched") from None
    if not isinstance(sound, (bytes, bytearray)):
        raise ValueError(f"inputs are of the type {type(sound).__name__}: expected {FILE}")
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters are of the type {type(parameters).__name__}: expected an object")
    for name, value in parameters.items():
        if name not in PARAMETERS:
            raise ValueError(f"unknown parameter {name!r}: expected some of {', '.join(PARAMETERS)}")
        fits, expected = PARAMETERS[name]
        if not fits(value):
            raise ValueError(f"parameter {name} is {value!r}: expected {expected}")
    return bytes(sound), dict(parameters)
