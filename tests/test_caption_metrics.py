"""The string metrics give the numbers of the COCO caption code, and a failure of METEOR's Java does not stop them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from helpers import CAPTIONS, MUSICAL_TEXT, ROOT, SHARED
from hypothesis import example, given
from hypothesis import strategies as st

from captions_rgmc import NORMALIZATIONS, normalize_caption

GOLDEN = SHARED / "caption_metrics_golden"
NAMES = {
    **{f"bleu_{n}": f"bleu{n}" for n in range(1, 5)},
    **{"rouge_l": "rougeL", "cider_d": "cider", "meteor_1.5": "meteor"},
}
COMMA_LOCALE = " ".join(
    f"-Duser.{name}{kind}={value}"
    for name, value in (("language", "fr"), ("country", "FR"))
    for kind in ("", ".format")
)
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR 1.5 needs Java, and there is none")


@pytest.fixture
def metric():
    return evaluate.load(str(ROOT / "metrics" / "caption_metrics"))


@pytest.fixture
def module(metric):
    return sys.modules[type(metric).__module__]


def read_golden(name: str) -> tuple[list[str], list[list[str]], dict]:
    lines = (GOLDEN / f"{name}.pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    scores = json.loads((GOLDEN / f"{name}.scores.json").read_text(encoding="utf-8"))["variants"]["normuni_ptb"]
    return [pair["prediction"] for pair in pairs], [pair["references"] for pair in pairs], scores


# -- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meteor", [False, pytest.param(True, marks=needs_java)])
def test_every_score_is_that_of_the_coco_caption_code_in_a_locale_of_decimal_commas(metric, meteor, monkeypatch):
    golden = json.loads((ROOT / "tests" / "golden" / "caption_scores.json").read_text(encoding="utf-8"))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", COMMA_LOCALE)
    scores = metric.compute(
        predictions=[pair["prediction"] for pair in golden["pairs"]],
        references=[pair["references"] for pair in golden["pairs"]],
        per_item=True,
        meteor=meteor,
    )
    names = {*NAMES} if meteor else {*NAMES} - {"meteor_1.5"}
    assert set(golden["corpus"]) == set(NAMES)
    assert set(scores) - {"per_item"} == names
    for name in names:
        assert scores[name] == pytest.approx(100 * golden["corpus"][name], abs=1e-9), name
        assert scores["per_item"][name] == pytest.approx(100 * np.array(golden["per_item"][name]), abs=1e-9), name


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden sets are not part of the repository")
@pytest.mark.parametrize("name", ["edge", "multiref", "lpmc_k2c", "lpmc_writing"])
def test_golden_sets_without_java(metric, name):
    predictions, references, golden = read_golden(name)
    scores = metric.compute(predictions=predictions, references=references, per_item=True, meteor=False)
    assert "meteor_1.5" not in scores
    for ours, theirs in NAMES.items():
        if ours != "meteor_1.5":
            assert scores[ours] == pytest.approx(100 * golden["corpus"][theirs], abs=1e-9), ours
            assert scores["per_item"][ours] == pytest.approx(100 * np.array(golden["per_item"][theirs]), abs=1e-9), ours


@needs_java
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden sets are not part of the repository")
def test_golden_sets_of_meteor(module):
    sets = [read_golden(name) for name in ("edge", "multiref", "lpmc_k2c", "lpmc_writing")]
    tokens = [module.tokenize(predictions, references) for predictions, references, _ in sets]
    found, truth = ([captions for part in tokens for captions in part[side]] for side in (0, 1))
    rows = module.meteor_statistics(found, truth, timeout=300)  # Java starts once for all four
    for _, references, golden in sets:
        own, rows = rows[: len(references)], rows[len(references) :]
        assert module.meteor_scores(own.sum(axis=0)) == pytest.approx(golden["corpus"]["meteor"], abs=1e-9)
        assert module.meteor_scores(own) == pytest.approx(np.array(golden["per_item"]["meteor"]), abs=1e-9)


@needs_java
def test_gold_against_gold_is_perfect(metric):
    scores = metric.compute(predictions=CAPTIONS, references=CAPTIONS)
    wanted = {**{f"bleu_{n}": 100 for n in range(1, 5)}, "rouge_l": 100, "cider_d": 1000, "meteor_1.5": 100}
    assert scores == pytest.approx(wanted, abs=1e-6)


def test_an_unrelated_caption_scores_no_bleu(metric):
    # It would score if counted in characters, which happens to a string passed as a list of words.
    scores = metric.compute(predictions=["zzz qqq xxx jjj kkk"] * 8, references=CAPTIONS, meteor=False)
    assert scores == pytest.approx(dict.fromkeys(scores, 0), abs=1e-6)


@pytest.mark.parametrize("name", ["caption_metrics", "clap_score"])
@given(caption=MUSICAL_TEXT, rule=st.sampled_from(NORMALIZATIONS))
@example(caption="cafe\u0301", rule="paper")
@example(caption="A# B# C# D# E# F# G# H# x#y a#\u266d B\u266d 1/2/3 a/b 'n' \u2764\ufe0f", rule="music")
@example(caption="R&B, C\u266f and B\u266d, 4/4, don\u2019t", rule="music")
def test_the_metrics_and_the_model_normalise_captions_alike(name, caption, rule):
    module = sys.modules[type(evaluate.load(str(ROOT / "metrics" / name))).__module__]
    assert module.normalize(caption, rule) == normalize_caption(caption, rule)
    assert module.normalize(caption) == normalize_caption(caption)
    with pytest.raises(ValueError, match="'jazz': expected one of paper, music"):
        module.normalize(caption, "jazz")


def test_a_score_is_by_the_rule_that_is_asked_for(metric):
    pair = {"predictions": ["late-night R&B"], "references": ["latenight RB"], "meteor": False}
    assert metric.compute(**pair)["bleu_1"] == pytest.approx(100)
    assert metric.compute(**pair, normalization="music")["bleu_1"] == pytest.approx(0, abs=1e-3)


# -- intervals -------------------------------------------------------------------------------------------------------


def test_resamples_are_scores_of_the_drawn_items(metric, module):
    predictions = [f"{caption} and a choir" for caption in CAPTIONS[:4]] + CAPTIONS[:4]
    scores = metric.compute(predictions=predictions, references=CAPTIONS, meteor=False, bootstrap=3, seed=5)
    draws = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=3)
    for sample, counts in enumerate(draws):
        rows = np.repeat(np.arange(8), counts)
        again = metric.compute(
            predictions=[predictions[row] for row in rows], references=[CAPTIONS[row] for row in rows], meteor=False
        )
        for name in ("bleu_1", "bleu_4", "rouge_l"):  # CIDEr-D would count its document frequencies again
            assert scores["resamples"][name][sample] == pytest.approx(again[name], abs=1e-9)


def test_intervals_hold_the_value_and_two_systems_are_drawn_alike(metric):
    options = {"references": CAPTIONS, "meteor": False, "bootstrap": 500}
    good = metric.compute(predictions=CAPTIONS[:6] + ["solo flute"] * 2, **options)
    bad = metric.compute(predictions=CAPTIONS[:5] + ["solo flute"] * 3, **options)
    for name, (low, high) in good["intervals"].items():
        assert low <= good[name] <= high and low < high
        assert [low, high] == np.percentile(good["resamples"][name], [2.5, 97.5]).tolist()
        difference = np.array(good["resamples"][name]) - bad["resamples"][name]
        assert (difference >= -1e-9).all()  # in each resample: they only differ in one item


# -- bad input, and Java ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no captions"),
        (["one"], ["one", "two"], "Mismatch"),
        (["one", "two"], [["one"], ["…", ""]], "Item 1 has no reference with a word"),
        (["!", ""], ["one", "two"], "None of the 2 predictions"),
    ],
)
def test_what_cannot_be_scored_is_an_error(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)


def fake_java(folder: Path, script: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "java").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "java").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exec sleep 60", "no answer within 1 s"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("echo 'java.lang.OutOfMemoryError: Java heap space' >&2; exit 1", "status 1 and .*OutOfMemoryError"),
        ("cat > /dev/null; echo 1 2 3", "status 0 and 1 of 8 lines"),
    ],
)
def test_a_java_that_fails_costs_meteor_alone_and_says_why(metric, tmp_path, monkeypatch, script, reason):
    monkeypatch.setenv("PATH", fake_java(tmp_path / "bin", script))
    scores = metric.compute(predictions=CAPTIONS, references=CAPTIONS, meteor_timeout=1, per_item=True, bootstrap=2)
    assert scores["meteor_1.5"] is None and scores["bleu_4"] == pytest.approx(100)
    assert "meteor_1.5" not in scores["per_item"] and "meteor_1.5" not in scores["intervals"]
    assert re.search(reason, scores["unavailable"]["meteor_1.5"])


def test_without_java_there_is_no_meteor_and_no_other_in_its_place(metric, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = metric.compute(predictions=CAPTIONS, references=CAPTIONS)
    assert scores["meteor_1.5"] is None and "no `java` on the PATH" in scores["unavailable"]["meteor_1.5"]
    assert not [name for name in scores if "meteor" in name and name != "meteor_1.5"]


def test_the_metric_loads_offline_from_anywhere(tmp_path):
    code = """
import evaluate, sys
captions = ["a calm song", "one two three"]
scores = evaluate.load(sys.argv[1]).compute(predictions=captions, references=captions, meteor=False)
print(round(scores["bleu_1"]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "metrics" / "caption_metrics")],
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "100", done.stderr
