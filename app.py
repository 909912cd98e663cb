"""
A page in the browser that captions music: upload a song, see where the words come from, take the captions away.

    python app.py
    python app.py --model outputs/my_music --datastore jazz=datastores/jazz

It prints the address to open. Nothing that is uploaded leaves this machine, and uploads are deleted after an hour.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

from clips import threads  # noqa: F401

# isort: split
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec

from captions.job import find_model
from clips.checkpoints import check_rgmc
from clips.options import parse, user_errors


@dataclass
class AppArguments:
    group = "page"
    model: str | None = field(
        default=None, metadata={"help": "Checkpoint: folder or Hub id; the newest in outputs/ if unset."}
    )
    datastore: list[str] = field(
        default_factory=list,
        metadata={"help": "Further datastores to choose from on the page, each name=folder or name=Hub id."},
    )
    max_minutes: float = field(default=60, metadata={"help": "Longest file in minutes."})
    max_megabytes: int = field(default=500, metadata={"help": "Largest file in megabytes."})
    max_files: int = field(default=200, metadata={"help": "Most files of a library at once."})

    def __post_init__(self):
        for name in ("max_minutes", "max_megabytes", "max_files"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} {getattr(self, name):g}: expected more than 0")
        for entry in self.datastore:
            if not all(entry.partition("=")):
                raise ValueError(f"--datastore {entry}: expected name=folder")


def main(args: AppArguments):
    if not find_spec("gradio"):
        raise ImportError("the page needs gradio: pip install -r requirements-app.txt")
    model, note = (args.model, "") if args.model else find_model()
    check_rgmc("--model", model)
    print(f"Loading {model}{note} …", file=sys.stderr)

    from page import build_page, launch
    from page.core import Core

    core = Core(model, dict(entry.split("=", 1) for entry in args.datastore), args.max_minutes, args.max_files)
    launch(build_page(core), args.max_megabytes)


if __name__ == "__main__":
    with user_errors():
        main(*parse(AppArguments, sys.argv[1:], __doc__))
