"""The caption rule travels with a checkpoint and its datastore, is named in their results, and is never mixed."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from helpers import ROOT, read_lines, run, write_corpus

import train
from captions_rgmc import normalize_caption
from eval import EvaluationArguments, evaluate_checkpoint
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore

WRITTEN = ["Late-night R&B", "C# minor, 4/4", "Don't stop: funk", "a quiet harp", "slow/fast dub", "hip-hop & soul"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lists = {"train": WRITTEN, "validation": WRITTEN[:2], "test": WRITTEN[1:4]}
    write_corpus(folder, lists)
    for split, captions in lists.items():  # some contain commas
        lines = [f'{row}.wav,{split}-{row},"{caption}"' for row, caption in enumerate(captions)]
        (folder / split / "metadata.csv").write_text("\n".join(["file_name,id,caption", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoints(corpus, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint by each rule; `music` is the default."""
    folder = tmp_path_factory.mktemp("trained")
    music = run(folder, corpus, "--test_split", "test", name="music")
    return {"music": music, "paper": run(folder, corpus, "--caption_normalization", "paper", name="paper")}


@pytest.fixture(scope="module")
def evaluated(checkpoints) -> dict:
    return json.loads((checkpoints["music"] / "eval" / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("rule", ["music", "paper"])
def test_a_checkpoint_carries_its_rule_wherever_captions_are(checkpoints, rule):
    folder = checkpoints[rule]
    for name in ("config.json", "processor_config.json", "datastore/datastore.json"):
        assert json.loads((folder / name).read_text())["caption_normalization"] == rule, name
    datastore = RGMCModel.from_pretrained(folder).datastore
    expected = [normalize_caption(caption, rule) for caption in WRITTEN]
    assert datastore.rows["caption"][:] == expected
    processor = RGMCProcessor.from_pretrained(folder)
    assert datastore.rows["input_ids"][:] == [processor.tokenizer(text)["input_ids"] for text in expected]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"by the rule `{rule}`" in card and f"caption_normalization: {rule}\n" in card


def test_results_report_and_card_name_the_rule(checkpoints, evaluated):
    assert evaluated["caption_normalization"] == "music" and "rule music" in evaluated["text"]
    for name in ("eval/report.md", "eval/report.html", "README.md"):
        assert "rule music" in (checkpoints["music"] / name).read_text(encoding="utf-8"), name
    lines = read_lines(checkpoints["music"] / "eval" / "predictions.jsonl")
    assert [line["references"] for line in lines] == [["c# minor 4/4"], ["don't stop funk"], ["a quiet harp"]]
    assert {line["caption_normalization"] for line in lines} == {"music"}
    assert evaluated["systems"]["gold"]["scores"]["bleu_1"]["value"] == pytest.approx(100)


def test_files_of_before_are_by_the_rule_of_the_paper(checkpoints, tmp_path):
    model = RGMCModel.from_pretrained(checkpoints["paper"])
    processor = RGMCProcessor.from_pretrained(checkpoints["paper"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in ("config.json", "processor_config.json", "datastore/datastore.json"):
        content = json.loads((tmp_path / name).read_text())
        del content["caption_normalization"]
        (tmp_path / name).write_text(json.dumps(content))
    loaded = RGMCModel.from_pretrained(tmp_path)
    assert loaded.config.caption_normalization == loaded.datastore.caption_normalization == "paper"


def test_a_datastore_by_another_rule_is_refused(checkpoints):
    model = RGMCModel.from_pretrained(checkpoints["paper"])
    processor = RGMCProcessor.from_pretrained(checkpoints["music"])
    datastore = CaptionDatastore(
        model.datastore.rows, model.datastore.embeddings, model.encoder_fingerprint(), caption_normalization="music"
    )
    with pytest.raises(ValueError, match=r"by the rule 'music', but this model by 'paper'.*build_datastore\.py"):
        model.set_datastore(datastore)
    with pytest.raises(ValueError, match=r"by the rule 'paper', but the processor's is 'music'.*build"):
        model.datastore.add(model, [{"id": "x", "audio": "x.wav", "caption": "x"}], processor)


def test_training_goes_on_by_the_rule_of_the_model(checkpoints, corpus, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"by the rule 'paper'\. Leave the option out, or train a new model"):
        run(tmp_path, corpus, "--model", str(checkpoints["paper"]), "--caption_normalization", "music")
    folder = run(tmp_path, corpus, "--model", str(checkpoints["paper"]))
    assert json.loads((folder / "processor_config.json").read_text())["caption_normalization"] == "paper"
    with pytest.raises(SystemExit):
        run(tmp_path, corpus, "--caption_normalization", "jazz", name="jazz")
    assert "invalid choice: 'jazz' (choose from" in capsys.readouterr().err


def test_a_run_of_before_is_not_resumed_by_another_rule(checkpoints, corpus, tmp_path):
    (checkpoint,) = run(tmp_path, corpus, "--caption_normalization", "paper", name="x").glob("checkpoint-*")
    settings = json.loads((checkpoint / "settings.json").read_text())
    del settings["caption_normalization"]
    (checkpoint / "settings.json").write_text(json.dumps(settings))
    options = ["--resume_from_checkpoint", "last", "--num_train_epochs", "2"]
    with pytest.raises(ValueError, match="caption_normalization was 'paper', is 'music'"):
        run(tmp_path, corpus, *options, name="x")
    run(tmp_path, corpus, *options, "--caption_normalization", "paper", name="x")


def test_scores_of_two_rules_are_not_put_side_by_side(checkpoints, corpus, tmp_path, evaluated):
    def evaluate(**options):
        options = {"meteor": False, "clap_model": None, "cache_dir": str(tmp_path / "cache"), **options}
        args = EvaluationArguments(str(checkpoints["paper"]), str(corpus), str(tmp_path / "eval"), **options)
        return evaluate_checkpoint(args, Accelerator())

    with pytest.raises(ValueError, match=r"--frozen_encoder .*music writes captions by the rule 'music'.*by 'paper'"):
        evaluate(frozen_encoder=str(checkpoints["music"]))
    predictions = checkpoints["music"] / "eval" / "predictions.jsonl"
    with pytest.raises(ValueError, match=r"predictions.jsonl, line 1: a caption by the rule 'music'.*'paper'"):
        evaluate(predictions=[f"other={predictions}"])
    content = json.loads((checkpoints["paper"] / "processor_config.json").read_text())
    try:
        changed = {**content, "caption_normalization": "music"}
        (checkpoints["paper"] / "processor_config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"'paper' in config.json and 'music' in processor_config.json"):
            evaluate()
    finally:
        (checkpoints["paper"] / "processor_config.json").write_text(json.dumps(content))


def test_the_papers_runs_keep_the_papers_rule_and_others_are_by_the_musical_one():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        rule = yaml.safe_load(path.read_text()).get("caption_normalization")
        assert rule == ("paper" if path.stem in ("audiostock", "musiccaps", "transfer") else None), path
    model_args, *_ = train.parse_arguments(
        [str(ROOT / "configs" / "small.yaml"), "--dataset", "x", "--output_dir", "y"]
    )
    assert train.caption_rule(model_args) == "music"
