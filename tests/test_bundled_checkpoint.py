"""What checkpoints/demo promises: a first caption without training, by the code of this repository."""

import json

import pytest
import soundfile
from helpers import ROOT
from transformers import pipeline

from captions.job import BUNDLED
from corpora.demo import SAMPLE_RATE, draw_clip, split_of

GOLDEN = json.loads((ROOT / "tests" / "golden" / "bundled_captions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The audio files of test clips of the demo corpus, by number."""
    folder = tmp_path_factory.mktemp("clips")
    for number in map(int, GOLDEN):
        assert split_of(number) == "test"
        soundfile.write(folder / f"{number}.flac", draw_clip(0, number)[1], SAMPLE_RATE, subtype="PCM_16")
    return {number: str(folder / f"{number}.flac") for number in GOLDEN}


def test_its_code_is_that_of_the_repository():
    code, own = ({path.name: path.read_bytes() for path in place.glob("*_rgmc.py")} for place in (ROOT, BUNDLED))
    changed = sorted(name for name in {**code, **own} if code.get(name) != own.get(name))
    assert not changed, f"run: cp *_rgmc.py {BUNDLED.relative_to(ROOT)}/"


def test_its_captions_are_as_stored(clips):
    captioner = pipeline("music-captioning", model=str(BUNDLED), trust_remote_code=True)
    assert {number: result["caption"] for number, result in zip(clips, captioner([*clips.values()]))} == GOLDEN


def test_it_captions_where_nothing_was_trained(clips, caption_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captions.job.ROOT", tmp_path)
    number, path = next(iter(clips.items()))
    status, out, err = caption_command(path)
    assert (status, out) == (0, GOLDEN[number] + "\n")
    assert "(part of this repository: it knows only synthesised tunes, see README.md)" in err
