"""The README's Python runs as it stands, given a checkpoint and a song."""

import os
import re
import subprocess
import sys

import soundfile
from conftest import ROOT, write_tone
from test_pretrained_parts import write_clap

BLOCKS = """
import sys
checkpoint = sys.argv[1]
for path in sys.argv[2:]:
    print("block", path)
    exec(compile(open(path).read(), path, "exec"))
"""


def test_the_readmes_python_runs(make_model, processor, tmp_path):
    make_model(max_new_tokens=8).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    waveform, rate = soundfile.read(write_tone(tmp_path / "song.wav", 220, rate=44_100))
    soundfile.write(tmp_path / "song.mp3", waveform, rate)
    (tmp_path / "metrics").symlink_to(ROOT / "metrics")  # which the README names relative to the repository
    write_clap(tmp_path / "clap")
    make_model().text_model.save_pretrained(tmp_path / "gpt2")
    for repository, folder in (("laion--larger_clap_music", "clap"), ("openai-community--gpt2", "gpt2")):
        cached = tmp_path / "home" / "hub" / f"models--{repository}"  # a tiny one in the place of each
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("a" * 40)
        (cached / "snapshots").mkdir()
        (cached / "snapshots" / ("a" * 40)).symlink_to(tmp_path / folder)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 5
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.py").write_text(block, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS, "checkpoint", *(f"{number}.py" for number in range(len(blocks)))],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("block") == len(blocks)


def test_each_script_says_how_it_is_used(tmp_path):
    scripts = [
        "train.py",
        "eval.py",
        "prepare.py",
        "build_datastore.py",
        "find_leaks.py",
        "-m training.checkpoints",
    ]
    running = [
        subprocess.Popen(
            [sys.executable, *script.split(), "--help"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for script in scripts
    ]
    for script, process in zip(scripts, running):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0 and len(out.splitlines()) > 5, (script, err)
        assert f"usage: {script.replace('-m ', 'python -m ')}" in out or script == "prepare.py"
        assert "Traceback" not in err
