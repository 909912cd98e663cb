"""What the CLAP scores promise: laion_clap's own numbers, the same text and seconds for all systems, named weights."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import soundfile
import torch
from helpers import CAPTIONS, ROOT, SHARED
from laion_reference import make_laion, save_checkpoint, sounds, tiny_clap
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

from audio_rgmc import load_audio
from pretrained_rgmc import convert_laion_state_dict

PREDICTIONS = CAPTIONS[:3]
REFERENCES = ["a gloomy tune for strings", "slow pads and a harp", "electric guitar and brass"]


def load():
    return evaluate.load(str(ROOT / "metrics" / "clap_score"), keep_in_memory=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("clap") / "tiny-clap", *tiny_clap())


@pytest.fixture(scope="module")
def metric():
    return load()


@pytest.fixture(scope="module")
def name(checkpoint) -> str:
    weights = (Path(checkpoint) / "model.safetensors").read_bytes()
    return f"tiny-clap@{hashlib.sha256(weights).hexdigest()[:12]}"


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return sounds()


# -- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_mean_cosines_of_the_checkpoint(metric, checkpoint, name, clips):
    tokens = AutoTokenizer.from_pretrained(checkpoint)(PREDICTIONS + REFERENCES, padding=True, return_tensors="pt")
    model = ClapModel.from_pretrained(checkpoint).eval()
    extract = ClapFeatureExtractor.from_pretrained(checkpoint)
    with torch.no_grad():
        texts = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        steps = [np.trunc(clip.clip(-1, 1) * 32767) / 32767 for clip in clips]
        inputs = extract(steps, sampling_rate=48_000, return_tensors="pt")
        audio = model.get_audio_features(inputs["input_features"].float()).pooler_output
    found = metric.compute(predictions=PREDICTIONS, references=REFERENCES, audio=clips, model=checkpoint, per_item=True)
    at, tt = 100 * (audio * texts[:3]).sum(dim=1), 100 * (texts[3:] * texts[:3]).sum(dim=1)
    assert np.ptp(at.numpy()) > 1 and np.ptp(tt.numpy()) > 1, "the items are too alike to tell their order"
    np.testing.assert_allclose(found["per_item"][f"clap_at[{name}]"], at, atol=1e-3)
    np.testing.assert_allclose(found["per_item"][f"clap_tt[{name}]"], tt, atol=1e-3)
    assert found[f"clap_at[{name}]"] == pytest.approx(np.mean(found["per_item"][f"clap_at[{name}]"]))
    assert found[f"clap_tt[{name}]"] == pytest.approx(np.mean(found["per_item"][f"clap_tt[{name}]"]))
    assert set(found) == {f"clap_at[{name}]", f"clap_tt[{name}]", "truncated_texts", "per_item"}
    assert found["truncated_texts"] == 0


def test_without_audio_only_the_texts_are_scored(metric, checkpoint, name):
    found = metric.compute(predictions=PREDICTIONS, references=REFERENCES, model=checkpoint)
    assert set(found) == {f"clap_tt[{name}]", "truncated_texts"}


def test_gold_against_itself_is_100_whatever_its_case_and_punctuation(metric, checkpoint, name):
    shouted = [f"{caption.upper()}!  …" for caption in PREDICTIONS]
    found = metric.compute(predictions=shouted, references=PREDICTIONS, model=checkpoint)
    assert found[f"clap_tt[{name}]"] == pytest.approx(100, abs=1e-6)


def test_texts_are_those_of_the_rule_that_is_asked_for(metric, checkpoint, name):
    pair = {"predictions": ["Late-night R&B"], "references": ["latenight rb"], "model": checkpoint}
    assert metric.compute(**pair)[f"clap_tt[{name}]"] == pytest.approx(100, abs=1e-6)
    assert metric.compute(**pair, normalization="music")[f"clap_tt[{name}]"] < 99.9


def test_scores_depend_neither_on_batch_size_nor_on_what_was_scored_before(metric, checkpoint, clips):
    kwargs = {"predictions": PREDICTIONS, "references": REFERENCES, "audio": clips, "model": checkpoint}
    expected = metric.compute(**kwargs)
    for batch_size in (1, 2):
        found = load().compute(**kwargs, batch_size=batch_size)
        assert found == pytest.approx(expected, abs=1e-3)
        assert load().compute(**kwargs, batch_size=batch_size) == found


def test_a_second_system_pays_only_for_its_new_texts(checkpoint, clips, monkeypatch):
    loads, texts = [], []
    load_model, embed = ClapModel.from_pretrained, ClapModel.get_text_features
    monkeypatch.setattr(ClapModel, "from_pretrained", lambda *args, **kw: loads.append(1) or load_model(*args, **kw))
    monkeypatch.setattr(
        ClapModel,
        "get_text_features",
        lambda self, input_ids, **kw: texts.extend(input_ids) or embed(self, input_ids, **kw),
    )
    metric = load()
    metric.embed_audio(clips, model=checkpoint)
    metric.compute(predictions=PREDICTIONS, references=REFERENCES, model=checkpoint)
    assert len(texts) == 6
    metric.compute(predictions=[*PREDICTIONS[:2], "a new one"], references=REFERENCES, model=checkpoint)
    assert len(texts) == 7 and len(loads) == 1


def test_audio_of_another_item_changes_only_the_audio_score(metric, checkpoint, name, clips):
    kwargs = {"predictions": PREDICTIONS, "references": REFERENCES, "model": checkpoint}
    right, wrong = (metric.compute(**kwargs, audio=audio) for audio in (clips, clips[1:] + clips[:1]))
    assert abs(right[f"clap_at[{name}]"] - wrong[f"clap_at[{name}]"]) > 0.1
    assert right[f"clap_tt[{name}]"] == wrong[f"clap_tt[{name}]"]


def test_the_score_of_several_references_is_their_mean_and_an_empty_one_does_not_count(metric, checkpoint, name):
    kwargs = {"predictions": [PREDICTIONS[0]], "model": checkpoint}
    key = f"clap_tt[{name}]"
    alone = [metric.compute(references=[[reference]], **kwargs)[key] for reference in REFERENCES]
    together = metric.compute(references=[[*REFERENCES, "?!"]], **kwargs)[key]
    assert np.ptp(alone) > 1
    assert together == pytest.approx(np.mean(alone))


def test_an_empty_prediction_is_scored_as_the_empty_text(metric, checkpoint, name):
    found = metric.compute(predictions=["", PREDICTIONS[1]], references=REFERENCES[:2], model=checkpoint, per_item=True)
    empty, other = found["per_item"][f"clap_tt[{name}]"]
    assert -100 <= empty < 99.9 and np.isfinite(other)


def test_texts_are_cut_at_77_tokens_and_the_cut_ones_counted(metric, checkpoint, name):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    long = " ".join(CAPTIONS * 5)
    fits = "a" * 75  # plus the two tokens at the ends
    assert len(tokenizer(fits)["input_ids"]) == 77
    cut = tokenizer.decode(tokenizer(long)["input_ids"][1:76])
    kwargs = {"references": [long, fits, PREDICTIONS[2]], "model": checkpoint}
    found = metric.compute(predictions=[cut, PREDICTIONS[1], PREDICTIONS[2]], **kwargs, per_item=True)
    assert found["truncated_texts"] == 1
    assert found["per_item"][f"clap_tt[{name}]"][0] == pytest.approx(100, abs=1e-3)
    assert metric.compute(predictions=[long] * 3, **kwargs)["truncated_texts"] == 1
    assert metric.compute(predictions=REFERENCES, references=REFERENCES, model=checkpoint)["truncated_texts"] == 0


# -- audio ------------------------------------------------------------------------------------------------------------


def test_path_bytes_row_waveform_and_embeddings_score_alike(metric, checkpoint, tmp_path):
    (whole,) = sounds(1, seconds=13.0)
    path = tmp_path / "clip.wav"
    soundfile.write(path, whole, 48_000, subtype="FLOAT")
    content = path.read_bytes()
    middle = whole[len(whole) // 2 - 240_000 :][:480_000]
    kinds = [path, str(path), content, {"path": None, "bytes": content}, {"path": str(path), "bytes": None}]
    embeddings = metric.embed_audio([*kinds, whole, middle, load_audio(path)], model=checkpoint)
    assert embeddings.shape == (8, 32) and embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, embeddings[:1].repeat(8, axis=0), atol=1e-6)
    kwargs = {"predictions": PREDICTIONS[:1], "references": REFERENCES[:1], "model": checkpoint}
    found = [metric.compute(audio=audio, **kwargs) for audio in ([path], embeddings[:1], 3 * embeddings[1:2])]
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert found[2] == pytest.approx(found[0], abs=1e-4)
    assert embeddings[0] @ metric.embed_audio([whole[:480_000]], model=checkpoint)[0] < 0.9999, "any crop would do"


def test_doubtful_sounds_are_announced_once(metric, checkpoint, tmp_path, caplog, recwarn):
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * np.ones(48_000 * (11 if i == 0 else 2)), 48_000)
    metric.embed_audio([tmp_path / f"{i}.wav" for i in range(3)], model=checkpoint)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 clips: shorter than 10 s, repeated and zero-padded"
    ]
    assert not [warning for warning in recwarn if "shorter" in str(warning.message)]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"predictions": [], "references": []}, "no predictions"),
        ({"references": REFERENCES[:2]}, r"predictions \(3\) and references \(2\)"),
        ({"references": [["a song"], ["", "…"], ["a song"]]}, "item 1: no reference"),
        ({"audio": ["song.wav"]}, "1 clips but 3 predictions"),
        ({"audio": np.ones((3, 31))}, r"shape \(3, 31\); expected finite embeddings \(3, 32\)"),
        ({"audio": np.full((3, 32), np.nan)}, "expected finite embeddings"),
        ({"audio": [*sounds(2), np.array([0.0, np.inf] * 1000)]}, "audio of item 2: array .* finite floats"),
        ({"audio": [*sounds(2), np.ones((2, 48_000))]}, r"audio of item 2: array .* \(2, 48000\)"),
        ({"audio": [*sounds(2), "no_such_file.wav"]}, "audio of item 2: 'no_such_file.wav': no such file"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_the_metric_stays_usable(metric, checkpoint, change, message):
    kwargs = {"predictions": PREDICTIONS, "references": REFERENCES, "model": checkpoint}
    with pytest.raises(ValueError, match=message):
        metric.compute(**{**kwargs, **change})
    assert metric.compute(**kwargs)["truncated_texts"] == 0


def test_a_checkpoint_with_fusion_is_refused(tmp_path):
    kwargs = {"predictions": PREDICTIONS, "references": REFERENCES}
    fused = save_checkpoint(tmp_path / "fused", *tiny_clap(enable_fusion=True))
    with pytest.raises(ValueError, match=r"fused is a CLAP with fusion.* Use one without fusion, such as laion/"):
        load().compute(**kwargs, model=fused)
    mislabelled = save_checkpoint(tmp_path / "mislabelled", *tiny_clap(), truncation="fusion")
    with pytest.raises(ValueError, match="mislabelled is a CLAP with fusion"):
        load().compute(**kwargs, model=mislabelled)


def test_weights_that_would_be_random_are_refused(tmp_path):
    model, tokenizer = tiny_clap()
    save_checkpoint(tmp_path / "audio-only", model, tokenizer)
    model.audio_model.save_pretrained(tmp_path / "audio-only")
    with pytest.raises(ValueError, match="audio-only is not a CLAP checkpoint: it lacks"):
        load().compute(predictions=PREDICTIONS, references=REFERENCES, model=str(tmp_path / "audio-only"))


# -- names and availability -------------------------------------------------------------------------------------------


def test_no_hub_is_a_reason_and_not_an_error_and_is_tried_once(monkeypatch):
    calls = []

    def unreachable(*args, **kwargs):
        calls.append(args)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=unreachable))
    metric = load()
    assert metric.embed_audio(["song.wav"]) is None
    for audio in (None, [b"", b"", b""]):
        found = metric.compute(predictions=PREDICTIONS, references=REFERENCES, audio=audio)
        names = [f"clap_{kind}[laion/clap-htsat-unfused]" for kind in ("at", "tt")]
        assert [found[name] for name in names] == [None, None]
        assert set(found["unavailable"]) == set(names)
        reason = found["unavailable"][names[0]]
        assert "\n" not in reason and "pass the folder of a CLAP checkpoint" in reason
    assert len(calls) == 1


def test_a_folder_that_is_missing_is_named_without_its_place(tmp_path):
    found = load().compute(predictions=PREDICTIONS, references=REFERENCES, model=str(tmp_path / "nowhere"))
    assert found["clap_tt[nowhere]"] is None


ELSEWHERE = """
import json, sys
import evaluate
import numpy as np
metric = evaluate.load(sys.argv[1])
one = {"predictions": ["a sad song"], "references": ["a song"], "model": "someone/clap"}
waveform = np.sin(np.arange(480_000) / 50).astype(np.float32)
print(json.dumps(metric.compute(audio=[waveform], **one)))
try:
    metric.compute(audio=["song.wav"], **one)
except ImportError as error:
    print(error)
"""


def test_elsewhere_it_loads_offline_names_the_commit_of_a_hub_id_and_asks_for_waveforms(checkpoint, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--clap"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(checkpoint)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", ELSEWHERE, str(ROOT / "metrics" / "clap_score")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    scores, error = run.stdout.splitlines()
    name = "someone/clap@0123456789ab"
    assert set(json.loads(scores)) == {f"clap_at[{name}]", f"clap_tt[{name}]", "truncated_texts"}
    assert None not in json.loads(scores).values()
    assert "run from the repository root, or pass waveforms or embeddings" in error


# -- parity -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def laion():
    return make_laion("tiny")


def to_transformers(laion) -> ClapModel:
    state = laion.model.state_dict()
    audio_config, weights = convert_laion_state_dict(state)
    for name, tensor in state.items():
        if name.startswith(("text_branch.", "text_projection.")):
            name = name.replace("text_branch.", "text_model.")
            weights[name.replace("projection.0.", "projection.linear1.").replace(".2.", ".linear2.")] = tensor
    model = ClapModel(
        ClapConfig(audio_config=audio_config, text_config=laion.text_config.to_dict(), projection_dim=512)
    )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    constants = ("position_ids", "token_type_ids", "logit_scale_a", "logit_scale_t")
    assert [name for name in missing if not name.endswith(constants)] == unexpected == []
    return model


def recordings() -> list[np.ndarray]:
    """Sounds of 10 s and shorter ones, with real recordings if there are any."""
    real = [SHARED / "real_audio" / "music" / name for name in ("boss_48k.ogg", "sugar_plum_fairy.flac")]
    return [*sounds(2), *sounds(1, seconds=3.3), *(load_audio(path) for path in real if path.exists())]


def test_scores_equal_those_of_laion_clap(laion, tmp_path):
    folder = save_checkpoint(tmp_path / "from-laion", to_transformers(laion), laion.tokenizer)
    clips = recordings()
    predictions = [*CAPTIONS[:4], " ".join(CAPTIONS * 3)][: len(clips)]  # the last one is too long and is cut
    references = CAPTIONS[3 : 3 + len(clips)]
    with torch.no_grad():
        audio, prediction, reference = map(
            torch.Tensor.double,
            (laion.embed_audio(clips), laion.embed_texts(predictions), laion.embed_texts(references)),
        )
    expected = {"at": 100 * (audio * prediction).sum(dim=1), "tt": 100 * (reference * prediction).sum(dim=1)}
    found = load().compute(predictions=predictions, references=references, audio=clips, model=folder, per_item=True)
    for kind, scores in expected.items():
        (key,) = (key for key in found["per_item"] if key.startswith(f"clap_{kind}"))
        print(kind, scores.tolist(), np.abs(np.array(found["per_item"][key]) - scores.numpy()).max())
        assert np.ptp(scores.numpy()) > 2, "the items are too alike to tell one from another"
        np.testing.assert_allclose(found["per_item"][key], scores, atol=1e-4)
        assert found[key] == pytest.approx(scores.mean().item(), abs=1e-4)
