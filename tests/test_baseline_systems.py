"""What the paper's other systems promise: their sizes, their front ends, and that the scripts take them as they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
import yaml
from accelerate import Accelerator
from helpers import ROOT, config_file, in_two_processes, read_lines, run, write_corpus
from huggingface_hub import create_repo
from loopback_hub import LoopbackHub
from safetensors.torch import load_file
from test_hub import output_of, start
from test_resume import timeless
from transformers import AutoModel, AutoProcessor, pipeline

import train
from baselines import BASELINES
from baselines.lp_musiccaps_rgmc import LPMusicCapsConfig, LPMusicCapsFeatureExtractor, LPMusicCapsModel
from baselines.muscaps_rgmc import HarmonicFilters, MusCapsConfig, MusCapsFeatureExtractor, MusCapsModel
from eval import EvaluationArguments, evaluate_checkpoint
from training.baselines import word_tokenizer
from training.checkpoints import push_model, renew_model

SMALL = {
    "muscaps": {"num_harmonics": 2, "num_channels": 4, "embedding_size": 16, "hidden_size": 32, "dropout": 0.0},
    "lp-musiccaps": {
        "text_config": {
            **{"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64},
            **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1},
            **{"dropout": 0.0, "init_std": 0.3},
        }
    },
}
KINDS = [*SMALL, "ltu-style"]
# Each word occurs twice, so that MusCaps has all of them.
SAID = ["a sad song of piano", "a happy tune of piano", "a happy song of flute", "a sad tune of flute"]


def count(part: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in part.parameters())


def baseline_file(folder: Path, corpus: Path, kind: str, name: str, **options) -> str:
    """A configuration of `train.py` for a tiny baseline."""
    path = config_file(folder, corpus, name)
    rgmc = {"audio_config", "text_config", "prefix_length", "spec_augment", "max_candidate_length"}
    rgmc -= {"audio_config", "text_config", "spec_augment"} if kind == "ltu-style" else set()
    settings = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key not in rgmc}
    path.write_text(yaml.safe_dump({**settings, "baseline": {"model_type": kind, **SMALL.get(kind, {})}, **options}))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("baselines")


@pytest.fixture(scope="module")
def songs(folder) -> Path:
    """Four songs to train on, which are also the validation and the test split."""
    return write_corpus(folder / "songs", dict.fromkeys(("train", "validation", "test"), SAID))


@pytest.fixture(scope="module", params=KINDS)
def trained(request, folder, songs) -> tuple[str, Path]:
    """A baseline that has learned its four songs by heart, and its kind."""
    epochs, rate = {"muscaps": (60, 1e-2), "lp-musiccaps": (100, 3e-3), "ltu-style": (100, 3e-3)}[request.param]
    options = {"num_train_epochs": epochs, "patience": epochs, "learning_rate": rate, "tokenizer_vocab_size": 400}
    options |= {"num_sample_captions": 0, "max_grad_norm": 1.0}
    train.main([baseline_file(folder, songs, request.param, request.param, **options)])
    return request.param, folder / request.param


def paths(songs: Path) -> list[str]:
    return [str(songs / "train" / f"{row}.wav") for row in range(4)]


# -- sizes and front ends ---------------------------------------------------------------------------------------------


def test_the_default_models_have_the_papers_sizes():
    with torch.device("meta"):
        muscaps, lp = MusCapsModel(MusCapsConfig()), LPMusicCapsModel(LPMusicCapsConfig())
    head = count(muscaps.text_model) - count(muscaps.text_model.embedding)
    found = [count(muscaps.audio_tower), head, count(lp.audio_tower), count(lp.text_model)]
    assert found == pytest.approx([3.55e6, 4.66e6, 9.15e6, 139.42e6], rel=1e-3)


@pytest.fixture
def waveform() -> np.ndarray:
    time = np.arange(160_000) / 16_000
    noise = np.random.default_rng(0).normal(0, 0.01, len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 100 * time) * time) + noise).astype(np.float32)


def scipy_spectrum(samples: np.ndarray, size: int, hop: int) -> np.ndarray:
    """Frames `(T, F)` of the spectrum by SciPy, centred, with reflected ends."""
    padded = np.pad(samples.astype(np.float64), size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    return scipy.fft.rfft(frames * scipy.signal.get_window("hann", size))


def test_the_spectrograms_of_muscaps_are_scipys(waveform):
    found = MusCapsFeatureExtractor()(waveform, sampling_rate=16_000).input_features
    assert found.shape == (1, 1, 626, 257)
    for chunk, spectra in zip(waveform.reshape(2, -1), found[0, 0].split(313)):
        power = np.abs(scipy_spectrum(chunk, 512, 256)) ** 2
        np.testing.assert_allclose(spectra, 10 * np.log10(power.clip(1e-10)), atol=1e-5)


@pytest.mark.parametrize("real_part", [False, True])
def test_the_log_mels_of_lp_musiccaps_are_those_by_hand(waveform, real_part):
    found = LPMusicCapsFeatureExtractor(real_part=real_part)(waveform, sampling_rate=16_000).input_features
    assert found.shape == (1, 1, 1001, 128)
    spectrum = scipy_spectrum(waveform, 1024, 160)
    power = spectrum.real**2 if real_part else np.abs(spectrum) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 130) / 2595) - 1)  # HTK's scale
    triangles = [np.interp(np.linspace(0, 8000, 513), edges[bin : bin + 3], [0, 1, 0]) for bin in range(128)]
    expected = 10 * np.log10((power @ np.array(triangles).T).clip(1e-10))
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)


def test_the_harmonic_filters_are_triangles_at_the_harmonics_of_128_notes():
    filters = HarmonicFilters(MusCapsConfig())
    found = filters.filters(257).detach().reshape(257, 6, 128)
    bins = np.arange(257) * 31.25
    for harmonic, note in ((1, 0), (1, 127), (3, 64), (6, 127)):
        center = harmonic * 440 * 2 ** ((24 + note / 2 - 69) / 12)
        width = 0.1079 * center + 24.7
        expected = np.interp(bins, [center - width / 2, center, center + width / 2], [0, 1, 0])
        np.testing.assert_allclose(found[:, harmonic - 1, note], expected, atol=1e-5)
    with torch.no_grad():
        filters.q.mul_(2)  # narrower
    assert filters.filters(257).sum() < found.sum()


def test_the_words_of_muscaps_occur_twice():
    tokenizer = word_tokenizer(["a sad song", "a sad piano", "a flute"])
    assert {*tokenizer.get_vocab()} == {"<s>", "<pad>", "</s>", "<unk>", "a", "sad"}
    assert tokenizer.decode(tokenizer.encode("a sad a")) == "a sad a" and tokenizer.encode("flute") == [3]
    assert {*word_tokenizer(["a sad song", "a sad song"] * 2, most=2).get_vocab()} >= {"a", "sad"}


# -- training, loading, captioning ------------------------------------------------------------------------------------


def test_a_baseline_learns_four_songs_by_heart_and_a_batch_says_the_same_as_one_by_one(trained, songs):
    kind, checkpoint = trained
    model_class, processor_class = BASELINES[kind]
    model, processor = model_class.from_pretrained(checkpoint).eval(), processor_class.from_pretrained(checkpoint)
    features = processor(audio=paths(songs))["input_features"]
    together = processor.batch_decode(model.generate(features), skip_special_tokens=True)
    assert together == SAID
    alone = [processor.batch_decode(model.generate(clip[None]), skip_special_tokens=True)[0] for clip in features]
    assert alone == together
    beams = model.generate(features, num_beams=3, num_return_sequences=2, max_new_tokens=8)
    assert processor.batch_decode(beams[::2], skip_special_tokens=True) == SAID
    tokens = torch.tensor([[0, 5, 6]])
    logits = torch.cat([model(clip[None], tokens).logits for clip in features])
    torch.testing.assert_close(model(features, tokens.repeat(4, 1)).logits, logits, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_loads_through_the_auto_classes_and_captions_in_the_pipeline(trained, songs, tmp_path):
    kind, checkpoint = trained
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules") and model.config.model_type == kind
    tokens = model.generate(**processor(audio=paths(songs)))
    assert processor.batch_decode(tokens, skip_special_tokens=True) == SAID
    weights = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    captioner = pipeline("music-captioning", model=str(checkpoint), trust_remote_code=True, device="cpu")
    captioner.save_pretrained(tmp_path / "again")  # from the copied code
    again = pipeline("music-captioning", model=str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    for found in (captioner, again):
        results = found(paths(songs), batch_size=4)
        assert [result["caption"] for result in results] == [f"{said.capitalize()}." for said in SAID]
        assert all(-0.5 < result["score"] < 0 and not result["candidates"] for result in results)
    card = (checkpoint / "README.md").read_text()
    assert "as a baseline for RGMC" in card and "looks up" not in card and not (checkpoint / "datastore").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_as_an_undisturbed_one(folder, songs, kind):
    options = {"num_train_epochs": 4, "save_steps": 1, "save_total_limit": 9, "batch_size": 2, "weight_decay": 0.01}
    options |= {"lr_scheduler_type": "reduce_lr_on_plateau", "num_sample_captions": 0}
    whole = baseline_file(folder, songs, kind, f"{kind}-whole", **options)
    train.main([whole, "--baseline.dropout", "0.1"] if kind == "muscaps" else [whole])
    parts = baseline_file(folder, songs, kind, f"{kind}-parts", **options)
    words = [parts, "--baseline.dropout", "0.1"] if kind == "muscaps" else [parts]
    train.main([*words, "--max_steps", "3"])
    train.main([*words, "--resume_from_checkpoint", "last"])
    whole, parts = folder / f"{kind}-whole", folder / f"{kind}-parts"
    assert timeless(whole / "log.jsonl") == timeless(parts / "log.jsonl")
    one, two = (load_file(place / "checkpoint-8" / "model.safetensors") for place in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_but_for_the_batch_norms_of_muscaps(folder, songs, kind):
    options = {"num_train_epochs": 2, "logging_steps": 1, "micro_batch_size": 1, "batch_size": 3}
    train.main([baseline_file(folder, songs, kind, f"{kind}-alone", **options)])
    shared = baseline_file(folder, songs, kind, f"{kind}-shared", **options)
    in_two_processes("train.py", shared, output=folder / f"{kind}-shared.log")
    alone, shared = (read_lines(folder / f"{kind}-{name}" / "log.jsonl") for name in ("alone", "shared"))
    assert [line["step"] for line in shared] == [line["step"] for line in alone] == [1, 2, 2, 3, 4, 4]
    for one, two in zip(alone, shared):
        for name in {"loss", "validation_loss"} & {*two}:
            assert two[name] == pytest.approx(one[name], rel=0.2 if kind == "muscaps" else 1e-4), name
        assert one.get("processes", 1) == 1 and two.get("processes", 2) == 2


LOAD = """
import json, sys
from transformers import AutoModel, AutoProcessor, pipeline

model = AutoModel.from_pretrained("tester/baseline", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("tester/baseline", trust_remote_code=True)
captioner = pipeline("music-captioning", model="tester/baseline", trust_remote_code=True, device="cpu")
said = processor.batch_decode(model.generate(**processor(audio=sys.argv[1:])), skip_special_tokens=True)
print(json.dumps([said, [result["caption"] for result in captioner(sys.argv[1:])]]))
"""


def test_a_baseline_is_renewed_and_pushed_and_loads_from_the_hub_with_its_code_alone(
    trained, songs, tmp_path, monkeypatch
):
    kind, checkpoint = trained
    folder, hub = tmp_path / "again", LoopbackHub()
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / f"{kind.replace('-', '_')}_rgmc.py").write_text("raise ImportError('old code')")
    renew_model(folder)
    (folder / "notes.txt").touch()
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(create_repo.__self__, "endpoint", hub.url)
    push_model(folder, "tester/baseline", private=False)
    assert {*hub.files("tester/baseline")} == {path.name for path in folder.iterdir() if path.suffix != ".txt"} - {
        "log.jsonl"
    }
    environment = hub.environment(tmp_path / "home")
    said, shown = json.loads(output_of(start(LOAD, *paths(songs), folder=tmp_path, environment=environment)))
    hub.shutdown()
    assert said == SAID and shown == [f"{caption.capitalize()}." for caption in SAID]


def test_the_learning_rate_is_halved_when_the_validation_loss_no_longer_falls(folder, songs):
    options = {
        "num_train_epochs": 9,
        "patience": 9,
        "learning_rate": 3e-8,
        "logging_steps": 1,
        "num_sample_captions": 0,
    }
    path = baseline_file(folder, songs, "lp-musiccaps", "plateau", lr_scheduler_type="reduce_lr_on_plateau", **options)
    train.main([path])
    rates = [line["learning_rate"] for line in read_lines(folder / "plateau" / "log.jsonl") if "learning_rate" in line]
    assert rates[0] == 3e-8 and rates[-1] == 1.5e-8 and rates == sorted(rates, reverse=True)


def test_a_last_batch_of_one_clip_trains(folder):
    model = MusCapsModel(MusCapsConfig(vocab_size=20, **SMALL["muscaps"])).train()
    tokens = torch.tensor([[0, 5, 6, 2]])
    model(torch.randn(1, 1, 626, 257), tokens, labels=tokens).loss.backward()
    assert model.text_model.initial.weight.grad.isfinite().all()


def test_word_vectors_of_a_file_replace_those_at_random(folder, songs, tmp_path, capsys):
    (tmp_path / "vectors.txt").write_text("sad " + "0.5 " * 15 + "0.25\nunheard " + "1 " * 15 + "1\n")
    path = baseline_file(folder, songs, "muscaps", "vectors", learning_rate=1e-9, max_steps=1)
    train.main([path, "--baseline.word_vectors", str(tmp_path / "vectors.txt")])
    model, processor = (part.from_pretrained(folder / "vectors") for part in BASELINES["muscaps"])
    (row,) = processor.tokenizer("sad", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(model.text_model.embedding.weight[row], torch.tensor([0.5] * 15 + [0.25]))
    assert "1 of 8 words have a vector" in capsys.readouterr().out
    (tmp_path / "vectors.txt").write_text("sad 1 2\n")
    with pytest.raises(ValueError, match="line 1: 2 numbers, expected 16"):
        train.main([path, "--baseline.word_vectors", str(tmp_path / "vectors.txt"), "--overwrite_output_dir", "true"])


def test_an_ltu_style_learns_by_lora_and_loads_without_it(folder, songs):
    pytest.importorskip("peft")
    path = baseline_file(folder, songs, "ltu-style", "lora", max_steps=2)
    train.main([path, "--lora_r", "2"])
    model, loaded = BASELINES["ltu-style"][0].from_pretrained(folder / "lora", output_loading_info=True)
    assert not loaded["missing_keys"] and not any("lora" in name for name in model.state_dict())
    assert model.mapper.linear1.out_features == 768 and model.config.prefix_length == 32 and model.datastore is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"baseline": {"model_type": "muscap"}},
            "model_type muscap: expected one of muscaps, lp-musiccaps, ltu-style; did",
        ),
        ({"baseline": {"model_type": "muscaps", "num_chanels": 3}}, "has no num_chanels; did you mean num_channels"),
        ({"test_split": "test"}, "no use for test_split: leave it out; score it beside a model: eval.py --baseline"),
        ({"prefix_length": 3, "word_loss_weight": 1}, "no use for prefix_length, word_loss_weight"),
        ({"candidate_pool": 3}, "has no candidates"),
    ],
)
def test_options_that_do_nothing_are_refused(folder, songs, options, message):
    path = baseline_file(folder, songs, "muscaps", "refused", **options)
    with pytest.raises(ValueError, match=message):
        train.main([path])


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs" / "baselines").glob("*.yaml")))
def test_the_configurations_of_the_repository_are_understood(name):
    model_args, _, args = train.parse_arguments([str(ROOT / "configs" / "baselines" / name)])
    train.check_arguments(model_args, args)


# -- rows of the tables -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(folder, songs) -> Path:
    return run(folder, songs, "--num_sample_captions", "0", name="rgmc")


def evaluate(folder: Path, songs: Path, **options):
    quick = {
        "meteor": False,
        "clap_model": None,
        "bootstrap": 0,
        "num_examples": 1,
        "masked": False,
        "listening": False,
    }
    args = EvaluationArguments(
        str(folder / "rgmc"), str(songs), str(folder / "eval"), cache_dir=str(folder / "cache"), **quick, **options
    )
    return evaluate_checkpoint(args, Accelerator())


def test_a_baseline_is_a_row_of_the_table_with_its_cost(trained, checkpoint, folder, songs, capsys):
    kind, baseline = trained
    results = evaluate(folder, songs, baseline=[f"{kind}={baseline}"], table=[1, 3])
    assert results.tables["3"].index(kind) < results.tables["3"].index("rgmc")
    assert results.systems[kind].scores["bleu_4"].value == pytest.approx(100) and results.systems[kind].source == str(
        baseline
    )
    assert {*results.costs} == {"rgmc", kind} and results.costs[kind].captions_per_second > 0
    logged = sum(line["seconds"] for line in read_lines(baseline / "log.jsonl") if "epoch" in line)
    assert results.costs[kind].training_seconds == logged
    printed = capsys.readouterr().out
    assert "Training s  Captions/s" in printed
    lines = read_lines(folder / "eval" / "predictions.jsonl")
    assert [line["captions"][kind] for line in lines] == SAID
    assert json.loads((folder / "eval" / "results.json").read_text())["costs"]["rgmc"]["training_seconds"] > 0


def test_checkpoints_of_one_name_share_a_row(checkpoint, folder, songs):
    for seed in (1, 2):
        options = {"max_steps": 1, "num_sample_captions": 0, "max_caption_length": 4, "seed": seed}
        train.main([baseline_file(folder, songs, "muscaps", f"seed-{seed}", **options)])
    both = [f"MusCaps={folder / 'seed-1'}", f"MusCaps={folder / 'seed-2'}"]
    results = evaluate(folder, songs, baseline=both)
    assert len(results.systems["MusCaps"].scores["rouge_l"].by_checkpoint) == 2 and "MusCaps" in results.tables["3"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["muscaps"], "expected name=checkpoint"),
        (["rgmc={muscaps}"], "the name 'rgmc' is taken"),
        (["a={rgmc}"], "its model_type is rgmc, expected one of muscaps"),
        (["a={muscaps}", "a={lp-musiccaps}"], "differ in"),
        (["a={paper}"], "Train it with --caption_normalization music"),
    ],
)
def test_a_baseline_that_cannot_be_compared_is_refused(checkpoint, folder, songs, entries, message):
    for kind in ("muscaps", "lp-musiccaps", "paper"):
        fields = {"caption_normalization": "paper" if kind == "paper" else "music"}
        config = BASELINES["muscaps" if kind == "paper" else kind][0].config_class(**fields)
        config.save_pretrained(folder / "configs" / kind)
    places = {path.name: str(path) for path in (folder / "configs").iterdir()} | {"rgmc": str(checkpoint)}
    with pytest.raises(ValueError, match=message):
        evaluate(folder, songs, baseline=[entry.format(**places) for entry in entries])
