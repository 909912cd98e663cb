"""What eval.py promises: each row of the paper's tables is what it says it is, and no clip is lost or mixed up."""

import hashlib
import json
import re
import shlex
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from helpers import AUDIO, CAPTIONS, TEXT, in_two_processes, write_corpus, write_tone
from huggingface_hub import ModelCard
from laion_reference import save_checkpoint, tiny_clap
from transformers import BertConfig, BertModel, ClapConfig, ClapModel, GenerationMixin, HfArgumentParser

from audio_rgmc import load_audio
from captions_rgmc import normalize_caption
from clips.embedding import own_ids
from configuration_rgmc import RGMCConfig
from corpora.leaks import Clips, find_leaks, write_leaks
from eval import EvaluationArguments, evaluate_checkpoint
from evaluation.arguments import check_paths
from evaluation.captioning import Captioner
from evaluation.intervals import with_interval
from evaluation.scoring import check_gold, gold_cider_d, load_metric, score_systems
from evaluation.systems import System, read_predictions
from feature_extraction_rgmc import RGMCFeatureExtractor
from find_leaks import LeakageArguments, main
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from reporting.results import EvaluationResults, Score
from retrieval_rgmc import CaptionDatastore

SPLITS = {"train": [*CAPTIONS, "solo flute", "warm organ"], "test": CAPTIONS[2:7]}
IDS = [f"test-{row}" for row in range(5)]
FILES = [f"{row}.wav" for row in range(5)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), SPLITS)
    for row, hertz in enumerate((95, 1700, 170, 3000, 430)):  # no tone of the training split
        write_tone(folder / "test" / f"{row}.wav", hertz)
    return folder


@pytest.fixture(scope="module")
def checkpoints(corpus, tokenizer, tmp_path_factory) -> dict[str, str]:
    """Untrained models of each conditioning with a datastore of the training split."""
    folder = tmp_path_factory.mktemp("checkpoints")
    processor = RGMCProcessor(RGMCFeatureExtractor(), tokenizer, max_candidate_length=24, max_caption_length=24)
    special = {name: tokenizer.eos_token_id for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    log_mels = processor(audio=[str(corpus / "train" / f"{row}.wav") for row in range(10)])["input_features"]
    rows = Dataset.from_dict(
        {
            "id": [f"train-{row}" for row in range(10)],
            "caption": SPLITS["train"],
            "input_ids": [processor.encode_candidate(caption) for caption in SPLITS["train"]],
        }
    )
    for name, conditioning in (("both", "audio+candidate"), ("audio", "audio"), ("candidate", "candidate")):
        torch.manual_seed(len(name))
        config = RGMCConfig(
            audio_config={"model_type": "clap_audio_model", **AUDIO},
            text_config={
                "model_type": "gpt2",
                **TEXT["gpt2"],
                "vocab_size": len(tokenizer),
                "initializer_range": 0.6,  # large enough for the untrained decoder to tell its inputs apart
                **special,
            },
            prefix_length=3,
            conditioning=conditioning,
        )
        model = RGMCModel(config).eval()
        model.generation_config.max_new_tokens = 8
        with torch.no_grad():
            embeds = model.embed_audio(log_mels).numpy()
        model.set_datastore(CaptionDatastore(rows, embeds, model.encoder_fingerprint()))
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        (folder / name / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n", encoding="utf-8")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture
def run(corpus, checkpoints, tmp_path):
    """Evaluates and returns results and lines."""

    def run(name="eval", model=None, **options) -> tuple[dict, list[dict]]:
        args = arguments(corpus, model or checkpoints["both"], tmp_path / name, **options)
        results = evaluate_checkpoint(args, Accelerator())
        lines = (tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        saved = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        assert EvaluationResults.from_dict(saved) == results
        return saved, [json.loads(line) for line in lines]

    return run


def arguments(corpus: Path, model: str, output_dir: Path, **options) -> EvaluationArguments:
    options = {"cache_dir": str(corpus.parent / "cache"), "meteor": False, "clap_model": None, **options}
    options = {"batch_size": 2, "bootstrap": 20, "num_examples": 1, **options}
    options = {"dataset": str(corpus), **options}
    return EvaluationArguments(model=model, output_dir=str(output_dir), **options)


def captions_of(checkpoint: str, corpus: Path, candidates: list[str] | None) -> list[str]:
    model, processor = RGMCModel.from_pretrained(checkpoint).eval(), RGMCProcessor.from_pretrained(checkpoint)
    inputs = processor(audio=[str(corpus / "test" / name) for name in FILES], candidates=candidates)
    if candidates is None:
        model.set_datastore(None)
    return processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)


def captions_by(lines: list[dict], system: str) -> list[str]:
    return [line["captions"][system] for line in lines]


def normalized(captions: list[str]) -> list[str]:
    return [normalize_caption(caption) for caption in captions]


# -- the rows of the tables ------------------------------------------------------------------------------------------


def test_each_row_is_captioned_from_what_its_name_says(run, corpus, checkpoints):
    results, lines = run(table=[3, 4], audio_only_model=checkpoints["audio"], text_only_model=checkpoints["candidate"])
    assert results["tables"]["4"] == ["rgmc_random_candidate", "rgmc", "rgmc_gold_candidate"]
    assert [line["id"] for line in lines] == IDS
    model = checkpoints["both"]
    nearest = [line["candidate"] for line in lines]
    drawn = captions_by(lines, "random")
    assert set(drawn) <= set(SPLITS["train"]) and set(nearest) <= set(SPLITS["train"])
    assert captions_by(lines, "gold") == SPLITS["test"] and captions_by(lines, "nearest_neighbor") == nearest
    wanted = {
        "rgmc": captions_of(model, corpus, nearest),
        "rgmc_random_candidate": captions_of(model, corpus, drawn),
        "rgmc_gold_candidate": captions_of(model, corpus, SPLITS["test"]),
        "rgmc_audio_only_masked": captions_of(model, corpus, None),
        "rgmc_audio_only": captions_of(checkpoints["audio"], corpus, None),
    }
    for system, captions in wanted.items():
        assert captions_by(lines, system) == normalized(captions), system
    assert len({tuple(captions) for captions in wanted.values()}) == len(wanted)  # or nothing was told apart
    shuffled = captions_by(lines, "rgmc_shuffled")
    assert sorted(shuffled) == sorted(captions_by(lines, "rgmc"))
    assert all(mine != other for mine, other in zip(shuffled, captions_by(lines, "rgmc")))


def test_a_masked_prefix_is_no_prefix(run, corpus, checkpoints):
    _, lines = run()
    model = RGMCModel.from_pretrained(checkpoints["both"]).eval()
    processor = RGMCProcessor.from_pretrained(checkpoints["both"])
    prompts = processor(candidates=[line["candidate"] for line in lines])
    embeds = model.get_input_embeddings()(prompts["input_ids"])
    tokens = GenerationMixin.generate(model, inputs_embeds=embeds, attention_mask=prompts["attention_mask"])
    alone = processor.batch_decode(tokens, skip_special_tokens=True)
    assert captions_by(lines, "rgmc_text_only_masked") == normalized(alone)


def test_the_frozen_encoder_is_that_of_the_clap(run, corpus, checkpoints, tmp_path):
    torch.manual_seed(7)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    clap = ClapModel(ClapConfig(audio_config=AUDIO, text_config={**text, "vocab_size": 100}, projection_dim=32)).eval()
    clap.save_pretrained(tmp_path / "clap")
    results, lines = run(frozen_encoder=str(tmp_path / "clap"))
    assert results["tables"]["3"][3:6] == [
        "nearest_neighbor_statistics",
        "nearest_neighbor_frozen",
        "nearest_neighbor",
    ]
    extractor = RGMCFeatureExtractor()
    train, test = (
        clap.get_audio_features(
            **extractor([str(corpus / split / f"{row}.wav") for row in range(len(SPLITS[split]))])
        ).pooler_output
        for split in ("train", "test")
    )
    nearest = [SPLITS["train"][row] for row in (test @ train.T).argmax(dim=1).tolist()]
    assert captions_by(lines, "nearest_neighbor_frozen") == nearest
    assert nearest != [line["candidate"] for line in lines]
    # An RGMC checkpoint lends the encoder and the datastore that it has.
    _, lines = run("second", frozen_encoder=checkpoints["candidate"])
    _, alone = run("third", model=checkpoints["candidate"])
    assert captions_by(lines, "nearest_neighbor_frozen") == [line["candidate"] for line in alone]


def test_a_clip_is_no_candidate_of_itself_but_other_splits_have_its_file_name_too(run, checkpoints, tmp_path):
    _, lines = run(split="train", frozen_encoder=checkpoints["candidate"], masked=False)
    assert len(lines) == 10 and all(line["candidate_id"] != line["id"] for line in lines)
    assert not any(line["captions"]["nearest_neighbor_frozen"] == line["captions"]["gold"] for line in lines)
    _, wanted = run("test", masked=False)
    model = RGMCModel.from_pretrained(checkpoints["both"])
    datastore = model.datastore
    ids = ["test-0" if row_id == wanted[0]["candidate_id"] else row_id for row_id in datastore.rows["id"][:]]
    rows = Dataset.from_dict({**datastore.rows.with_format(None)[:], "id": ids})
    model.set_datastore(CaptionDatastore(rows, datastore.embeddings, model.encoder_fingerprint()))
    shutil.copytree(checkpoints["both"], tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    _, lines = run("renamed", model=str(tmp_path / "model"), masked=False)
    assert lines[0]["candidate_id"] == "test-0" and captions_by(lines, "rgmc") == captions_by(wanted, "rgmc")
    clips = SimpleNamespace(ids=["train-1", "train-1", "x"], captions=[["so", SPLITS["train"][1]], ["a song"], ["so"]])
    assert own_ids(clips, datastore) == ["train-1", None, None]


def test_an_ablation_as_the_model_has_its_row(run, checkpoints):
    results, _ = run(model=checkpoints["audio"])
    assert results["systems"]["rgmc"]["title"] == "RGMC (Audio Only)"
    assert set(results["missing"]) == {"nearest_neighbor_statistics", "nearest_neighbor_frozen", "rgmc_text_only"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer_model": "x"}, r"--transfer_model makes no row of --table \[3\]: expected one of \[5\]"),
        ({"frozen_encoder": "x", "table": [1, 4]}, r"--frozen_encoder makes no row of --table \[1, 4\]"),
        ({"bootstrap": -1}, "--bootstrap -1: expected 0 or more"),
        ({"num_examples": -1}, "--num_examples -1: expected 0 or more"),
        ({"batch_size": 0}, "--batch_size 0: expected 1 or more"),
    ],
)
def test_options_without_effect_or_sense_are_refused(corpus, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(corpus, "model", tmp_path, **options)


def test_a_model_of_another_kind_is_refused(run, checkpoints):
    with pytest.raises(
        ValueError, match=r"--audio_only_model .* trained with --conditioning candidate: expected audio"
    ):
        run(audio_only_model=checkpoints["candidate"])
    with pytest.raises(ValueError, match="Table 4 compares candidates"):
        run(model=checkpoints["audio"], table=[4])
    with pytest.raises(ValueError, match=r"--table \[2\]"):
        run(table=[2])


def test_table_5_takes_a_transfer_model_and_says_which_rows_are_missing(run, corpus, checkpoints, tmp_path, capsys):
    (tmp_path / "MusicCaps").symlink_to(corpus)
    options = {"dataset": str(tmp_path / "MusicCaps"), "transfer_model": checkpoints["both"]}
    results, lines = run(table=[1, 5], **options)
    assert captions_by(lines, "rgmc_transfer") == captions_by(lines, "rgmc")
    assert results["missing"] == {
        "nearest_neighbor_statistics": "Nearest Neighbor (log-mel statistics): give --statistics_neighbor true",
        "nearest_neighbor_frozen": "Nearest Neighbor (frozen encoder): give --frozen_encoder",
    }
    printed = capsys.readouterr().out
    assert "LP-MusicCaps Supervised (reported, MusicCaps)" in printed
    assert "no row of Nearest Neighbor (frozen encoder): give --frozen_encoder" in printed
    assert printed.startswith("Table 1\ntest-")
    assert "Table 1" in (tmp_path / "eval" / "report.html").read_text(encoding="utf-8")
    run("other", table=[5])
    assert "(reported, " not in capsys.readouterr().out
    assert "Table 1" not in (tmp_path / "other" / "report.html").read_text(encoding="utf-8")


def test_the_last_line_says_that_a_model_from_scratch_is_of_no_use_elsewhere(run, checkpoints, tmp_path, capsys):
    run(masked=False)
    warning = "This model was trained from scratch on 10 clips; do not expect useful captions of other music."
    assert capsys.readouterr().out.endswith(f"{warning}\n")
    for name in ("report.html", "report.md"):
        assert warning in (tmp_path / "eval" / name).read_text(encoding="utf-8")
    shutil.copytree(checkpoints["both"], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_model_source"] = {"name": "owner/gpt2", "revision": None, "sha256": {}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    run("pretrained", model=str(tmp_path / "model"), masked=False)
    assert "from scratch" not in capsys.readouterr().out
    assert "from scratch" not in (tmp_path / "pretrained" / "report.html").read_text(encoding="utf-8")


# -- other systems ---------------------------------------------------------------------------------------------------


def write_predictions(path: Path, captions: dict[str, str]) -> str:
    lines = [json.dumps({"id": row_id, "prediction": caption}) for row_id, caption in captions.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_another_system_stands_in_the_table_and_differences_are_paired(run, tmp_path):
    _, lines = run()
    again = {line["id"]: line["prediction"].upper() + "!" for line in reversed(lines)}
    results, lines = run("with", predictions=[f"a person={write_predictions(tmp_path / 'p.jsonl', again)}"])
    assert results["tables"]["3"].index("a person") < results["tables"]["3"].index("rgmc")
    assert captions_by(lines, "a person") == captions_by(lines, "rgmc")
    for name, score in results["systems"]["a person"]["difference"].items():
        assert score == {"value": 0, "low": 0, "high": 0}, name
    gold = results["systems"]["gold"]
    assert gold["scores"]["cider_d"]["value"] == pytest.approx(1000) and gold["difference"]["cider_d"]["high"] < 0
    report = (tmp_path / "with" / "report.html").read_text(encoding="utf-8")
    assert "a person" in report and "<audio" in report


def test_ids_of_a_predictions_file_are_counted(tmp_path):
    ids = ["a", "b", "c"]
    file = tmp_path / "p.jsonl"
    lines = ['{"id": "a", "prediction": "x"}', '{"id": "a", "prediction": "y"}', '{"id": "d", "prediction": "z"}']
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="of 3 ids 2 missing, 1 not of this split, 1 there more than once"):
        read_predictions([f"x={file}"], ids, set())
    file.write_text("\n".join([lines[0], '{"id": "b"}']))
    with pytest.raises(ValueError, match=r"p.jsonl, line 2: expected"):
        read_predictions([f"x={file}"], ids, set())
    file.write_text("\n".join(lines[1:]))
    assert read_predictions([f"x={file}"], ["a"], {"d"}) == {"x": (str(file), ["y"])}
    wrong = {"x": "expected name=file", "=p": "expected name=file", "rgmc=p": "is taken", "RGMC=p": "is taken"}
    (tmp_path / "latin").write_bytes('{"id": "a", "prediction": "café"}'.encode("latin-1"))
    wrong |= {f"x={tmp_path / 'latin'}": "latin cannot be read as UTF-8", "x=nowhere": "nowhere cannot be read"}
    for entry, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            read_predictions([entry], ids, set())


def test_a_predictions_file_may_hold_any_json_lines(tmp_path):
    file = tmp_path / "p.jsonl"
    lines = ['\ufeff{"id": 1, "prediction": "One\u2028two\x85THREE"}', "", '{"id": 0, "prediction": "4"}', "", ""]
    file.write_bytes("\r\n".join(lines).encode())
    assert read_predictions([f"x={file}"], ["0", "1"], set()) == {"x": (str(file), ["4", "one two three"])}


# -- clips ------------------------------------------------------------------------------------------------------------


def test_a_clip_that_cannot_be_read_is_left_out_of_everything(corpus, checkpoints, tmp_path, monkeypatch):
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "test" / "1.wav").write_bytes(b"no sound")
    file = write_predictions(tmp_path / "p.jsonl", {row_id: f"of {row_id}" for row_id in IDS})
    options = {"max_skipped": 0.5, "masked": False, "predictions": [f"other={file}"]}
    players = []
    monkeypatch.setattr("eval.write_report", lambda *args, **options: players.append(options["load_clip"]))
    results = evaluate_checkpoint(
        arguments(tmp_path / "corpus", checkpoints["both"], tmp_path / "eval", **options), Accelerator()
    )
    assert (results.n, results.skipped) == (4, 1)
    lines = (tmp_path / "eval" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = {line["id"]: line["captions"]["other"] for line in map(json.loads, lines)}
    assert captions == {row_id: f"of {row_id}".replace("-", "") for row_id in IDS if row_id != "test-1"}
    for row, name in enumerate(("0.wav", "2.wav", "3.wav", "4.wav")):
        assert (players[0](row) == load_audio(corpus / "test" / name)).all()


def test_two_processes_caption_each_clip_once_as_one_does(run, corpus, checkpoints, tmp_path):
    results, wanted = run("one", masked=False, table=[3, 4], statistics_neighbor=True, oracle=True)
    options = ["--model", checkpoints["both"], "--dataset", str(corpus), "--output_dir", str(tmp_path / "two")]
    options += ["--table", "3", "4", "--masked", "false", "--meteor", "false", "--clap_model", "none"]
    options += ["--statistics_neighbor", "true", "--oracle", "true"]
    options += ["--cache_dir", str(corpus.parent / "cache"), "--bootstrap", "20"]
    done = in_two_processes("eval.py", *options, output=tmp_path / "log")
    assert done.stdout.count("Table 3") == 1
    assert re.search("Captioning: .* 3/3 ", done.stderr) and not re.search("Captioning: .* 5/5 ", done.stderr)
    lines = (tmp_path / "two" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    said = [[line["captions"] for line in found] for found in (map(json.loads, lines), wanted)]
    assert said[0] == said[1] and {"nearest_neighbor_statistics", "rgmc_oracle"} <= said[0][0].keys()
    results_of_two = json.loads((tmp_path / "two" / "results.json").read_text(encoding="utf-8"))
    assert results_of_two["listening"] == results["listening"] and len(results["listening"]["systems"]) == 3
    assert results_of_two["retrieval"] == results["retrieval"]


# -- interruptions ---------------------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on_where_it_was(run, tmp_path, monkeypatch, checkpoints):
    whole, wanted = run("whole", masked=False)
    captioned, caption_batch = [], Captioner._caption_batch

    def interrupted(self, batch, *options):
        if len(captioned) == 2:
            raise KeyboardInterrupt
        captioned.append(batch)
        return caption_batch(self, batch, *options)

    monkeypatch.setattr(Captioner, "_caption_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("cut", masked=False)
    (part,) = (tmp_path / "cut" / "unfinished").iterdir()
    part.write_bytes(part.read_bytes()[:-30] + "é".encode()[:1])  # cut within a character of the fourth clip
    monkeypatch.setattr(
        Captioner, "_caption_batch", lambda self, *batch: captioned.append(batch[0]) or caption_batch(self, *batch)
    )
    results, lines = run("cut", masked=False)
    assert captioned == [[0, 1], [2, 3], [3, 4]]
    # In a batch with another clip, the last digit of a similarity may be another.
    close = [{**line, "similarity": pytest.approx(line["similarity"], abs=1e-6)} for line in wanted]
    assert lines == close and results["systems"] == whole["systems"]
    assert not (tmp_path / "cut" / "unfinished").exists()


def keep_unfinished(monkeypatch):
    """Keeps the captions of a finished run as if it had been killed."""
    remove = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, *args, **kwargs: Path(path).name == "unfinished" or remove(path, *args, **kwargs)
    )


def test_what_another_checkpoint_said_is_not_taken_up(run, tmp_path, monkeypatch, checkpoints):
    _, wanted = run("whole", masked=False)
    unfinished = tmp_path / "cut" / "unfinished"
    keep_unfinished(monkeypatch)
    other = tmp_path / "both"
    shutil.copytree(checkpoints["both"], other)
    weights = RGMCModel.from_pretrained(other)
    weights.text_model.transformer.wte.weight.data[:, 0] += 1
    weights.save_pretrained(other)
    run("cut", model=str(other), masked=False)
    assert list(unfinished.iterdir())
    _, lines = run("cut", masked=False)
    assert lines == wanted


def test_what_was_captioned_before_the_corpus_was_corrected_is_not_taken_up(corpus, checkpoints, tmp_path, monkeypatch):
    keep_unfinished(monkeypatch)
    shutil.copytree(corpus, tmp_path / "corpus")
    metadata = tmp_path / "corpus" / "test" / "metadata.csv"
    args = arguments(tmp_path / "corpus", checkpoints["both"], tmp_path / "eval", masked=False)
    for caption in (SPLITS["test"][0], "a corrected caption"):
        metadata.write_text(metadata.read_text(encoding="utf-8").replace(SPLITS["test"][0], caption), encoding="utf-8")
        evaluate_checkpoint(args, Accelerator())
        line = json.loads((tmp_path / "eval" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
        assert line["references"] == [caption] and line["captions"]["gold"] == caption


# -- scores ----------------------------------------------------------------------------------------------------------


def test_gold_captions_are_checked_in_each_run(run, monkeypatch):
    captions = [*CAPTIONS, "solo flute", "organ", "a slow song"]
    metric = load_metric("caption_metrics")
    scores = metric.compute(predictions=captions, references=captions, meteor=False)
    assert scores["cider_d"] == pytest.approx(gold_cider_d([caption.split() for caption in captions]))
    check_gold(scores, [[caption] for caption in captions])
    for name in ("bleu_4", "rouge_l", "cider_d"):
        with pytest.raises(RuntimeError, match="against themselves"):
            check_gold({**scores, name: scores[name] - 0.1}, [[caption] for caption in captions])
    check_gold({**scores, "cider_d": 500}, [[caption, "another"] for caption in captions])
    monkeypatch.setattr("evaluation.scoring.gold_cider_d", lambda words: 999)
    with pytest.raises(RuntimeError, match="999"):
        run()


def test_intervals_hold_95_percent_of_the_resamples():
    assert with_interval(1, np.arange(101)) == Score(1, pytest.approx(2.5), pytest.approx(97.5))


def test_copies_novelty_and_length_are_counted_and_silence_scores_nothing():
    texts = {"gold": CAPTIONS[:4], "rgmc": ["a b", "c", CAPTIONS[2], ""], "silent": [""] * 4}
    systems = {name: System(name, "", captions, ["a b", "x", None, ""]) for name, captions in texts.items()}
    references = [[caption] for caption in CAPTIONS[:4]]
    described, items, unavailable, _ = score_systems(systems, references, ["c", CAPTIONS[0]], False, 50, 0)
    found = {name: score.value for name, score in described["rgmc"].scores.items()}
    assert (found["copy"], found["novel"], found["distinct"]) == (50, 75, 100)
    assert found["words"] == pytest.approx((2 + 1 + len(CAPTIONS[2].split())) / 4)
    assert items["rgmc"]["copy"] == [100, 0, 0, 100] and not unavailable
    silent = described["silent"].scores
    assert all(silent[name].value == silent[name].high == 0 for name in ("bleu_1", "rouge_l", "cider_d", "words"))
    score = described["rgmc"].scores["rouge_l"]
    assert score.low < score.value < score.high
    difference = described["gold"].difference["rouge_l"]
    assert difference.value == pytest.approx(score.value - 100) and difference.high < 0


def test_clap_scores_stand_beside_the_others(run, corpus, tmp_path):
    clap, tokenizer = tiny_clap()
    checkpoint = save_checkpoint(tmp_path / "tiny-clap", clap, tokenizer)
    results, lines = run(clap_model=checkpoint)
    (key,) = [name for name in results["metrics"] if name.startswith("clap_at[tiny-clap@")]
    scores = {name: system["scores"] for name, system in results["systems"].items()}
    assert scores["gold"][key.replace("clap_at", "clap_tt")]["value"] == pytest.approx(100, abs=1e-3)
    assert scores["rgmc"][key]["low"] < scores["rgmc"][key]["value"] < scores["rgmc"][key]["high"]
    found = load_metric("clap_score").compute(
        predictions=captions_by(lines, "rgmc"),
        references=captions_by(lines, "gold"),
        audio=[str(corpus / "test" / name) for name in FILES],
        model=checkpoint,
    )
    assert scores["rgmc"][key]["value"] == pytest.approx(found[key], abs=1e-4)
    results, _ = run("without", clap_model=str(tmp_path / "nowhere"))
    assert results["systems"]["rgmc"]["scores"]["clap_at[nowhere]"] == {"value": None}
    assert "nowhere cannot be loaded" in results["unavailable"]["clap_at[nowhere]"]


def test_sentences_are_compared_by_a_model_of_the_users_choice(run, tokenizer, tmp_path, capsys, monkeypatch):
    from sentence_transformers import SentenceTransformer

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.5, **size)
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    SentenceTransformer(str(tmp_path / "bert"), device="cpu").save(str(tmp_path / "tiny-sentences"))  # averages states
    results, lines = run(sentence_model=str(tmp_path / "tiny-sentences"))
    (key,) = [name for name in results["metrics"] if name.startswith("sentence[")]
    scores = {name: system["scores"][key] for name, system in results["systems"].items()}
    assert scores["gold"]["value"] == pytest.approx(100, abs=1e-3)

    def embed(caption: str) -> torch.Tensor:
        with torch.no_grad():
            states = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(states.mean(0), dim=0)

    expected = [float(embed(a) @ embed(b)) for a, b in zip(captions_by(lines, "rgmc"), captions_by(lines, "gold"))]
    assert scores["rgmc"]["value"] == pytest.approx(100 * np.mean(expected), abs=1e-3) and min(expected) < 0.99
    assert scores["rgmc"]["low"] <= scores["rgmc"]["value"] <= scores["rgmc"]["high"]
    printed = capsys.readouterr().out
    assert "Sentence sim." in printed and f"Sentence sim.: by tiny-sentences@{key[-13:-1]}" in printed

    monkeypatch.setattr("evaluation.arguments.find_spec", lambda name: None)
    options = {"dataset": str(tmp_path), "output_dir": str(tmp_path / "out"), "sentence_model": str(tmp_path)}
    with pytest.raises(ImportError, match="--sentence_model needs sentence-transformers: pip install sentence-transf"):
        check_paths(EvaluationArguments(model=[], clap_model=None, **options))


def test_attributes_are_scored_and_have_a_table_of_their_own(run, tmp_path, capsys):
    results, lines = run(masked=False)
    gold = results["systems"]["gold"]["scores"]
    assert [gold[f"attribute_{name}"]["value"] for name in ("precision", "recall", "f1")] == [100, 100, 100]
    assert results["attributes"]["sources"]["mood"] == "captions"
    assert results["attributes"]["systems"]["gold"]["genre"]["facts"] > 0
    printed = capsys.readouterr().out
    reports = [(tmp_path / "eval" / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")]
    assert "Attr. P" in printed and "100.0 / 100.0 / 100.0" in printed
    assert all("Attr. P" in text and "100.0 / 100.0 / 100.0" in text for text in reports)
    words = tmp_path / "words.yaml"
    words.write_text(
        "categories: {sound: {piano: [piano], song: [song], guitar: [guitar], beat: [beat]}}", encoding="utf-8"
    )
    results, lines = run("other", attributes=str(words), attribute_columns=["caption"], masked=False)
    assert results["attributes"]["sources"] == {"sound": "column caption"}
    assert results["attributes"]["systems"]["gold"]["all"]["facts"] == sum(
        len({"piano", "song", "guitar", "beat"} & {*line["captions"]["gold"].split()}) for line in lines
    )


def test_attributes_that_cannot_be_read_stop_the_evaluation_before_the_captioning(run, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.Captioner", None)
    with pytest.raises(ValueError, match="has no column mood: found file_name, id, caption"):
        run(attribute_columns=["mood"])
    (tmp_path / "words.yaml").write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words\.yaml: expected a mapping"):
        run(attributes=str(tmp_path / "words.yaml"))


def test_captions_without_attributes_are_no_error(run, tmp_path, capsys):
    (tmp_path / "words.yaml").write_text("categories: {mood: {none: [zzz]}}", encoding="utf-8")
    results, _ = run(attributes=str(tmp_path / "words.yaml"), masked=False)
    assert "attributes" not in results
    assert "Attr. P, Attr. R, Attr. F1: left out: no clip has an attribute of words.yaml" in capsys.readouterr().out


# -- leaks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def leakage(tmp_path) -> str:
    """A report in which two clips of the test split leak, one of them twice."""
    captions = {"train": [CAPTIONS[3], "other"], "test": SPLITS["test"]}
    ids = {"train": ["train-0", "train-1"], "test": IDS}
    hashes = {"train": ["a", "b"], "test": [None, "b", "c", "a", None]}
    clips = {name: Clips(ids[name], [[text] for text in captions[name]], ids[name], hashes[name]) for name in ids}
    options = {"ngram": 5, "threshold": 0.8, "model": "/somewhere/clap", "audio_threshold": 0.99}
    write_leaks(tmp_path, {"train_split": "train", "options": options, **find_leaks(clips)})
    return str(tmp_path / "leakage.json")


def test_scores_without_leaks_are_those_of_the_clips_that_do_not_leak(run, leakage, tmp_path, capsys, monkeypatch):
    def by_clap(systems) -> dict[str, dict]:
        values = np.random.default_rng(0).uniform(0, 50, (len(systems), 5))
        return {key: {"per_item": {"clap_at[x]": row.tolist()}} for key, row in zip(systems, values)}

    monkeypatch.setattr("eval.load_clap", lambda *args: True)
    monkeypatch.setattr("eval.score_by_clap", lambda clap, systems, *args: by_clap(systems))
    results, lines = run(table=[3, 4], masked=False, clap_model="x", leakage=leakage)
    without = results["without_leaks"]
    assert {line["id"]: line["leaks"] for line in lines if line["leaks"]} == {
        "test-1": ["exact_caption", "identical_audio"],
        "test-3": ["identical_audio"],
    }
    assert without["n"] == 3 and without["left_out"] == {"exact_caption": 1, "identical_audio": 2}
    for found, rows in ((results["systems"], [0, 1, 2, 3, 4]), (without["systems"], [0, 2, 4])):
        kept, systems, clap_scores = [lines[row] for row in rows], {}, {}
        for key, clap in by_clap(lines[0]["captions"]).items():
            systems[key] = System("", "", captions_by(kept, key), [line["candidate"] for line in kept])
            scores = clap["per_item"]["clap_at[x]"]
            clap_scores[key] = {"per_item": {"clap_at[x]": [scores[row] for row in rows]}}
        references = [line["references"] for line in kept]
        wanted, *_ = score_systems(systems, references, SPLITS["train"], False, 20, 0, clap_scores)
        assert found.keys() == wanted.keys()
        for key, system in wanted.items():
            system = asdict(system)
            for part in ("scores", "difference"):
                for name, score in (system[part] or {}).items():
                    assert asdict(Score(**found[key][part][name])) == pytest.approx(score), (key, name)
    printed = capsys.readouterr().out
    assert printed.count(" 5 all ") == printed.count(" 3 without leaks ") == 7 + 3
    for text in (printed, (tmp_path / "eval" / "report.md").read_text(encoding="utf-8")):
        assert "2 of 5 clips leak from the split train and are left out: exact captions 1, identical audio 2." in text
        assert "by clap above 0.99" in text


def test_where_every_clip_leaks_none_is_scored_without(run, tmp_path, corpus, capsys):
    main(LeakageArguments(str(corpus), str(tmp_path), splits=["train", "test"]), Accelerator())
    results, _ = run(leakage=str(tmp_path / "leakage.json"), masked=False)
    assert results["without_leaks"]["n"] == 0 and results["without_leaks"]["systems"] == {}
    printed = capsys.readouterr().out
    assert "5 of 5 clips leak" in printed and "None is left to score" in printed and "0 without leaks" not in printed


def test_leaks_are_looked_at_without_captioning_again(run, leakage, tmp_path, monkeypatch):
    _, wanted = run("whole", masked=False)
    with monkeypatch.context() as patch:
        patch.setattr("eval.score_systems", None)
        with pytest.raises(TypeError):
            run("cut", masked=False)
    monkeypatch.setattr(Captioner, "_caption_batch", None)
    with pytest.raises(ValueError, match="is not a report of leaks"):  # before anything else
        run("cut", masked=False, leakage=str(tmp_path / "nowhere"))
    results, lines = run("cut", masked=False, leakage=leakage)
    assert [line["captions"] for line in lines] == [line["captions"] for line in wanted]
    assert results["without_leaks"]["n"] == 3


def test_the_results_say_how_they_were_made(run, checkpoints, corpus, tmp_path):
    options = {"seed": 3, "predictions": [f"x y={write_predictions(tmp_path / 'p', dict.fromkeys(IDS, 'a'))}"]}
    results, _ = run(**options, table=[3, 1])
    words = shlex.split(results["command"])
    assert words[:3] == ["accelerate", "launch", "eval.py"]
    (again,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(words[3:])
    wanted = arguments(corpus, checkpoints["both"], tmp_path / "eval", **options, table=[3, 1])
    assert again == wanted
    weights = (Path(checkpoints["both"]) / "model.safetensors").read_bytes()
    assert results["checkpoint"]["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    others = {"datastore/embeddings.safetensors", "generation_config.json", "processor_config.json", "tokenizer.json"}
    assert others <= set(results["checkpoint"]["sha256"])
    assert results["n"] == 5 and results["skipped"] == 0 and results["versions"]["torch"] == version("torch")


def test_the_card_takes_the_results(run, checkpoints, tmp_path, monkeypatch):
    shutil.copytree(checkpoints["both"], tmp_path / "model")
    results, _ = run(model=str(tmp_path / "model"), update_model_card=True)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["cider_d"] == round(results["systems"]["rgmc"]["scores"]["cider_d"]["value"], 2)
    assert card.data.license == "mit" and "# A model" in card.text and str(tmp_path) not in card.content
    assert not (tmp_path / "model" / ".eval_results").exists()
    monkeypatch.setattr("reporting.model_card.is_hub_id", lambda name: True)
    run(model=str(tmp_path / "model"), update_model_card=True)
    (file,) = (tmp_path / "model" / ".eval_results").iterdir()
    assert "CIDEr-D, split test, 5 clips" in file.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="is not a local folder"):
        run(model="somebody/rgmc", update_model_card=True)


def test_what_the_model_hears_is_printed_and_reported_unless_it_is_turned_off(run, capsys, tmp_path):
    results, _ = run(masked=False)
    titles = ["RGMC", "RGMC, audio masked", "RGMC, candidate masked"]
    assert [system["title"] for system in results["listening"]["systems"].values()] == titles
    assert all(
        0 <= score["low"] <= score["high"] <= 100
        for score in results["listening"]["systems"]["rgmc"]["scores"].values()
    )
    printed = capsys.readouterr().out
    for text in (
        printed,
        *((tmp_path / "eval" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("md", "html")),
    ):
        assert "4-way, random %" in text and "Chance is 25 %" in text and "RGMC, audio masked" in text
    results, _ = run("without", masked=False, listening=False)
    assert "listening" not in results and "4-way" not in capsys.readouterr().out
    assert "4-way" not in (tmp_path / "without" / "report.html").read_text(encoding="utf-8")


def test_intervals_can_be_left_out(run):
    results, _ = run(bootstrap=0)
    assert results["systems"]["rgmc"]["scores"]["cider_d"].keys() == {"value"}
    assert results["unavailable"]["meteor_1.5"] == "not asked for (eval.py --meteor true)"
    assert np.isfinite(results["systems"]["rgmc"]["scores"]["cider_d"]["value"])
