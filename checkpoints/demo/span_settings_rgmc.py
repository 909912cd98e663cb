"""How a track is divided into spans: what can be set, and what each setting may be. Nothing here loads torch."""

import math
from dataclasses import dataclass, field
from typing import Literal

CHANGES = ("log-mel", "encoder")
FOLD = 2.5  # seconds; HTS-AT cuts a clip into four parts and lays them on top of each other


@dataclass(kw_only=True)
class SpanSettings:
    """
    How a track is divided; the help of each field says what it means.

    Raises:
        `ValueError`: For a value that is out of range, with its name.
    """

    group = "tracks and films"

    changes: Literal["log-mel", "encoder"] = field(
        default="log-mel",
        metadata={"help": "What is compared to find changes: the log-mel spectrogram or the encoder's states."},
    )
    hop: float = field(
        default=3.1,
        metadata={"help": "Seconds between the windows that the encoder hears for --changes; no multiple of 2.5."},
    )
    kernel: float = field(
        default=12.0, metadata={"help": "Seconds before and after a moment that are compared to find changes."}
    )
    change_threshold: float = field(
        default=0.4,
        metadata={"help": "Least distance between what is before and after a change, in variances of both sides."},
    )
    min_span: float = field(default=6.0, metadata={"help": "Least seconds between two changes of the music."})
    silence: float = field(default=-60.0, metadata={"help": "Level in dB of full scale below which there is silence."})
    min_silence: float = field(default=1.0, metadata={"help": "Least seconds of silence; less is a rest in the music."})

    def __post_init__(self):
        if self.changes not in CHANGES:
            raise ValueError(f"changes {self.changes!r}: expected {' or '.join(CHANGES)}")
        if not 0.5 <= self.hop <= 10:
            raise ValueError(f"hop {self.hop:g}: expected 0.5 to 10 seconds")
        if math.isclose(self.hop / FOLD, round(self.hop / FOLD), abs_tol=1e-6):
            raise ValueError(
                f"hop {self.hop:g} is a multiple of {FOLD:g} s, at which the encoder folds time: "
                "the folds would look like changes of the music; choose another, such as 3.1"
            )
        for name, least in (("kernel", 1), ("change_threshold", 0), ("min_span", 1), ("min_silence", 0.1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} {getattr(self, name):g}: expected {least:g} or more")
        if not self.silence < 0:
            raise ValueError(f"silence {self.silence:g}: expected a level below 0 dB of full scale")
