"""What `eval.py --model a b c` promises: each row is the mean over checkpoints that differ by seed, and says so."""

import json
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from helpers import AUDIO, SPLITS, TEXT, in_two_processes, read_lines, write_corpus, write_tone
from huggingface_hub.constants import HF_HUB_CACHE

from configuration_rgmc import RGMCConfig
from corpora.leaks import Clips, find_leaks, write_leaks
from eval import EvaluationArguments, evaluate_checkpoint
from evaluation.captioning import Captioner
from evaluation.log_mel_statistics import embed_statistics
from evaluation.resamples import read_resamples, write_resamples
from evaluation.scoring import score_systems
from evaluation.seeds import check_same_configuration
from evaluation.systems import System, consensus_time
from feature_extraction_rgmc import RGMCFeatureExtractor
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from reporting.results import EvaluationResults, Score
from retrieval_rgmc import CaptionDatastore

SHARED = {"gold", "random", "most_frequent", "nearest_neighbor_statistics"}
OF_CHECKPOINT = {
    *("nearest_neighbor", "consensus", "rgmc", "rgmc_oracle", "rgmc_shuffled", "rgmc_audio_only_masked"),
    *("rgmc_text_only_masked", "rgmc_random_candidate", "rgmc_gold_candidate"),
}
ROWS = {"statistics_neighbor": True, "oracle": True}


def write_checkpoint(folder: Path, corpus: Path, tokenizer, seed: int, captions=SPLITS["train"], **fields) -> str:
    """An untrained model with a datastore of the training split."""
    rule = fields.get("caption_normalization", "paper")
    lengths = {"max_candidate_length": 24, "max_caption_length": 24}
    processor = RGMCProcessor(RGMCFeatureExtractor(), tokenizer, caption_normalization=rule, **lengths)
    special = {name: tokenizer.eos_token_id for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**TEXT["gpt2"], "vocab_size": len(tokenizer), **special}
    text["initializer_range"] = 0.6  # large enough for the untrained decoder to tell its inputs apart
    audio = {"model_type": "clap_audio_model", **AUDIO}
    fields = {"audio_config": audio, "text_config": {"model_type": "gpt2", **text}, "prefix_length": 3, **fields}
    torch.manual_seed(seed)
    model = RGMCModel(RGMCConfig(**fields)).eval()
    model.generation_config.max_new_tokens = 8
    with torch.no_grad():
        clips = [str(corpus / "train" / f"{row}.wav") for row in range(len(captions))]
        embeds = model.embed_audio(processor(audio=clips)["input_features"]).numpy()
    rows = {
        "id": [f"train-{row}" for row in range(len(captions))],
        "caption": captions,
        "input_ids": [processor.encode_candidate(caption) for caption in captions],
    }
    fingerprint = model.encoder_fingerprint()
    model.set_datastore(CaptionDatastore(Dataset.from_dict(rows), embeds, fingerprint, caption_normalization=rule))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), SPLITS)
    for row, hertz in enumerate((95, 1700, 170, 3000)):  # no tone of the training split, or encoders would agree
        write_tone(folder / "test" / f"{row}.wav", hertz)
    return folder


@pytest.fixture(scope="module")
def checkpoints(corpus, tokenizer, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return [write_checkpoint(folder / name, corpus, tokenizer, seed) for seed, name in enumerate("abc")]


@pytest.fixture(scope="module")
def evaluate(corpus, tmp_path_factory):
    """Evaluates in a new folder, which it returns; `name` is that of the folder."""
    parent = tmp_path_factory.mktemp("evaluations")

    def evaluate(name: str, model: str | list[str], **options) -> Path:
        options = {"meteor": False, "clap_model": None, "bootstrap": 30, "num_examples": 4, "batch_size": 2, **options}
        args = EvaluationArguments(
            model=model, dataset=str(corpus), output_dir=str(parent / name), cache_dir=str(parent / "cache"), **options
        )
        results = evaluate_checkpoint(args, Accelerator())
        assert EvaluationResults.from_dict(read_json(parent / name / "results.json")) == results
        return parent / name

    return evaluate


@pytest.fixture(scope="module")
def alone(evaluate, checkpoints) -> list[Path]:
    """The evaluations of each checkpoint by itself."""
    return [evaluate(Path(name).name, name, table=[3, 4], **ROWS) for name in checkpoints]


@pytest.fixture(scope="module")
def together(evaluate, checkpoints) -> Path:
    return evaluate("together", checkpoints, table=[1, 3, 4], **ROWS)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# -- one checkpoint --------------------------------------------------------------------------------------------------


def test_one_checkpoint_has_neither_deviations_nor_others(evaluate, alone, checkpoints):
    again = evaluate("again", checkpoints[:1], table=[3, 4], **ROWS)
    for file in ("predictions.jsonl", "report.md", "report.html", "results.json"):
        texts = [(folder / file).read_text(encoding="utf-8") for folder in (alone[0], again)]
        assert texts[0] == texts[1].replace(str(again), str(alone[0])), file
        assert "±" not in texts[0].replace("mean ± standard error", ""), file
    results = read_json(alone[0] / "results.json")
    assert [*results] == [
        *("model", "checkpoint", "dataset", "split", "seed", "command", "caption_normalization", "text", "versions"),
        *("bootstrap", "n", "skipped", "metrics", "unavailable", "systems", "attributes", "listening", "retrieval"),
        *("tables", "side_by_side", "missing"),
    ]
    assert results["model"] == checkpoints[0]
    for system in results["systems"].values():
        assert {*system} <= {"title", "source", "scores", "difference"}
        for score in [*system["scores"].values(), *system.get("difference", {}).values()]:
            assert [*score] in (["value"], ["value", "low", "high"])
    line = read_lines(alone[0] / "predictions.jsonl")[0]
    assert [*line] == [
        *("id", "caption_normalization", "prediction", "references"),
        *("candidate", "candidate_id", "similarity", "beams", "captions"),
    ]


# -- several ----------------------------------------------------------------------------------------------------------


def test_a_row_is_the_mean_over_the_checkpoints(alone, together):
    found, wanted = read_json(together / "results.json"), [read_json(folder / "results.json") for folder in alone]
    resamples = [read_resamples(folder) for folder in alone]
    assert found["systems"].keys() == wanted[0]["systems"].keys() == SHARED | OF_CHECKPOINT
    some_differ = set()
    for key, system in found["systems"].items():
        for metric, score in system["scores"].items():
            values = [one["systems"][key]["scores"][metric]["value"] for one in wanted]
            if key in SHARED:
                assert score == wanted[0]["systems"][key]["scores"][metric]
                continue
            some_differ |= {key} if len({*values}) > 1 else set()
            if values[0] is None:
                assert score == {"value": None}
                continue
            assert score["by_checkpoint"] == values
            assert score["value"] == pytest.approx(statistics.mean(values))
            assert score["deviation"] == pytest.approx(statistics.stdev(values))
            if metric != "distinct":
                drawn = np.mean([of_one[key][metric] for of_one in resamples], axis=0)
                assert [score["low"], score["high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), rel=1e-5)
                assert read_resamples(together)[key][metric] == pytest.approx(drawn, rel=1e-5)
    assert some_differ == OF_CHECKPOINT  # or nothing was averaged


def check_mean(found: dict, wanted: list[dict], drawn: list[np.ndarray] | None = None) -> float:
    """Checks a score against those of the checkpoints by themselves and their resamples; returns its deviation."""
    values = [score["value"] for score in wanted]
    if values[0] is None:
        assert found == {"value": None}
        return 0
    assert found["by_checkpoint"] == values and found["value"] == pytest.approx(statistics.mean(values))
    assert found["deviation"] == pytest.approx(statistics.stdev(values))
    if drawn is not None:
        interval = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
        assert [found["low"], found["high"]] == pytest.approx(interval, rel=1e-5)
    return found["deviation"]


def test_what_is_heard_and_retrieved_is_a_mean_too(alone, together):
    found, wanted = read_json(together / "results.json"), [read_json(folder / "results.json") for folder in alone]
    resamples, of_mean = [read_resamples(folder) for folder in alone], read_resamples(together)
    deviations = {"listening": [], "retrieval": []}
    for key, system in found["listening"]["systems"].items():
        for metric, score in system["scores"].items():
            drawn = None if score["value"] is None else [of_one[key][metric] for of_one in resamples]
            scores = [one["listening"]["systems"][key]["scores"][metric] for one in wanted]
            deviations["listening"].append(check_mean(score, scores, drawn))
            if drawn is not None:
                assert of_mean[key][metric] == pytest.approx(np.mean(drawn, axis=0), rel=1e-5)
    by_encoder = [one["retrieval"]["encoders"] for one in wanted]
    own = found["retrieval"]["encoders"]["nearest_neighbor"]
    for k, score in own["recall"].items():
        drawn = [of_one["nearest_neighbor"][f"recall@{k}"] for of_one in resamples]
        scores = [encoders["nearest_neighbor"]["recall"][k] for encoders in by_encoder]
        deviations["retrieval"].append(check_mean(score, scores, drawn))
        assert of_mean["nearest_neighbor"][f"recall@{k}"] == pytest.approx(np.mean(drawn, axis=0), rel=1e-5)
    assert all(map(any, deviations.values()))  # or nothing was averaged
    # What no checkpoint changes.
    assert own["ceiling"] == by_encoder[0]["nearest_neighbor"]["ceiling"]
    shared = "nearest_neighbor_statistics"
    assert found["retrieval"]["encoders"][shared] == by_encoder[0][shared]


def test_the_attributes_are_means_too(alone, together):
    found, *wanted = (read_json(folder / "results.json")["attributes"] for folder in (together, *alone))
    assert found["systems"].keys() == SHARED | OF_CHECKPOINT
    deviations = []
    for key, categories in found["systems"].items():
        if key in SHARED:
            assert categories == wanted[0]["systems"][key] and found["concepts"][key] == wanted[0]["concepts"][key]
            continue
        for category, scores in categories.items():
            for name, score in scores.items():
                by_checkpoint = [one["systems"][key][category][name] for one in wanted]
                if name in ("concepts", "claims", "facts"):
                    assert score == pytest.approx(statistics.mean(by_checkpoint))
                else:
                    deviations.append(check_mean(score, by_checkpoint))
        for category, concepts in found["concepts"][key].items():
            each = [one["concepts"][key][category] for one in wanted]
            assert concepts.keys() == {name for of_one in each for name in of_one}
            for name, counts in concepts.items():
                for kind, count in counts.items():
                    alone_counts = [of_one.get(name, {}).get(kind, 0) for of_one in each]
                    assert count == pytest.approx(statistics.mean(alone_counts))
    assert any(deviations)


def test_what_no_checkpoint_changes_is_computed_once(evaluate, checkpoints, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "evaluation.neighbors.embed_statistics",
        lambda songs, clips, embed=embed_statistics: seen.append(len(songs)) or embed(songs, clips),
    )
    folder = evaluate("once", checkpoints[:2], masked=False, statistics_neighbor=True, bootstrap=0)
    assert len(seen) == 1
    line = read_lines(folder / "predictions.jsonl")[0]
    assert {*line["other_checkpoints"][0]["captions"]} == {"nearest_neighbor", "consensus", "rgmc", "rgmc_shuffled"}


def test_consensus_is_a_row_of_each_checkpoint_with_its_time(evaluate, corpus, checkpoints, capsys, monkeypatch):
    options = {"masked": False, "listening": False}
    plain = evaluate("plain", checkpoints[0], **options)
    folders = [evaluate(f"consensus-{name}", name, consensus=True, **options) for name in checkpoints[:2]]
    both = evaluate("consensus", checkpoints[:2], consensus=True, **options)
    printed = capsys.readouterr().out
    one, two, found = (read_json(folder / "results.json") for folder in (*folders, both))
    table = found["tables"]["3"]
    assert table[table.index("rgmc") + 1] == "rgmc_consensus"
    for metric in ("rouge_l", "words"):
        scores = [of["systems"]["rgmc_consensus"]["scores"][metric] for of in (one, two)]
        check_mean(found["systems"]["rgmc_consensus"]["scores"][metric], scores)
    said = [[line["captions"] for line in read_lines(folder / "predictions.jsonl")] for folder in (plain, folders[0])]
    assert [line["rgmc"] for line in said[0]] == [line["rgmc"] for line in said[1]]
    model, processor = RGMCModel.from_pretrained(checkpoints[0]), RGMCProcessor.from_pretrained(checkpoints[0])
    clips = processor(audio=[str(corpus / "test" / f"{row}.wav") for row in range(4)])
    tokens = model.generate(clips["input_features"], selection="consensus", tokenizer=processor.tokenizer)
    wanted = map(processor.normalize, processor.batch_decode(tokens, skip_special_tokens=True))
    assert [line["rgmc_consensus"] for line in said[1]] == [*wanted] != [line["rgmc"] for line in said[1]]
    assert "consensus_time" not in read_json(plain / "results.json") and found["consensus_time"] > 0
    note = f"consensus decoding took {found['consensus_time']:.1f} times as long as the most probable captions"
    assert note in printed and note in (both / "report.md").read_text(encoding="utf-8")


def test_a_checkpoint_that_decodes_by_consensus_says_so_in_every_row(evaluate, checkpoints, tmp_path):
    other = Path(shutil.copytree(checkpoints[0], tmp_path / "other"))
    (other / "config.json").write_text(json.dumps({**read_json(other / "config.json"), "selection": "consensus"}))
    options = {"consensus": True, "oracle": True, "listening": False, "table": [3, 4]}
    folders = [evaluate(f"selection-{i}", str(name), **options) for i, name in enumerate((checkpoints[0], other))]
    best, consensus = ([line["captions"] for line in read_lines(of / "predictions.jsonl")] for of in folders)
    for line, of_other in zip(best, consensus, strict=True):
        assert (line["rgmc"], line["rgmc_consensus"]) == (of_other["rgmc_best"], of_other["rgmc"])
        assert line["rgmc_oracle"] == of_other["rgmc_oracle"]
    for key in ("rgmc_audio_only_masked", "rgmc_text_only_masked", "rgmc_random_candidate", "rgmc_gold_candidate"):
        assert [line[key] for line in best] != [line[key] for line in consensus], key


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({"Captioning": 2, "Captioning: RGMC, consensus": 9}, 4.5),
        ({"Captioning": 9, "Captioning: RGMC, most probable caption": 2}, 4.5),
        ({"Captioning": 2, "Captioning: RGMC, gold candidate": 9}, None),
        ({"Captioning: RGMC, consensus": 9}, None),  # the run resumed after the others
    ],
)
def test_the_time_of_consensus_is_relative_to_the_most_probable_captions(seconds, wanted):
    assert consensus_time(SimpleNamespace(seconds=seconds)) == wanted


def test_consensus_never_sees_the_caption_of_the_clip_itself(evaluate, checkpoints, monkeypatch):
    def generate(self, *args, own=RGMCModel.generate, **options):
        if options.get("selection") == "consensus":
            excluded.extend(options["exclude_ids"])
        return own(self, *args, **options)

    excluded = []
    monkeypatch.setattr(RGMCModel, "generate", generate)
    folder = evaluate("own", checkpoints[0], split="train", consensus=True, masked=False, listening=False)
    ids = [line["id"] for line in read_lines(folder / "predictions.jsonl")]
    assert excluded[:11] == ids[:11] and len(excluded) == 13  # the datastore writes the caption of the 12th otherwise


def test_differences_are_paired_over_clips_and_checkpoints(alone, together):
    found, wanted = read_json(together / "results.json"), [read_json(folder / "results.json") for folder in alone]
    resamples = [read_resamples(folder) for folder in alone]
    for key in (SHARED | OF_CHECKPOINT) - {"rgmc"}:
        for metric, score in found["systems"][key]["difference"].items():
            if key in SHARED and metric == "copy":
                continue  # of the neighbours of the first checkpoint
            values = [one["systems"][key]["difference"][metric]["value"] for one in wanted]
            assert score["by_checkpoint"] == pytest.approx(values)
            assert score["value"] == pytest.approx(statistics.mean(values), abs=1e-9)
            assert score["deviation"] == pytest.approx(statistics.stdev(values), abs=1e-9)
            drawn = np.mean([of_one["rgmc"][metric] - of_one[key][metric] for of_one in resamples], axis=0)
            assert [score["low"], score["high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-3)


def words(*counts: int) -> list[str]:
    return [" ".join("abcdefghij"[:count]) for count in counts]


def test_means_deviations_and_intervals_are_those_computed_by_hand():
    said = {
        "gold": (None, words(4, 4)),
        "rgmc": (None, words(2, 4)),  # mean 3
        "rgmc=b": ("rgmc", words(3, 9)),  # mean 6
        "nearest_neighbor": (None, words(1, 3)),  # 1 less than rgmc
        "nearest_neighbor=b": ("nearest_neighbor", words(1, 5)),  # 3 less than rgmc=b
        "person": (None, words(2, 2)),  # 1 and 4 less
    }
    systems = {key: System(key, "", captions, [None] * 2, row) for key, (row, captions) in said.items()}
    described, items, _, resamples = score_systems(systems, [[text] for text in words(4, 4)], [], False, 500, 0)
    assert described.keys() == resamples.keys() == {"gold", "rgmc", "nearest_neighbor", "person"}
    # Of two clips, a resample has the first twice, both, or the second twice.
    assert described["rgmc"].scores["words"] == Score(4.5, 2.5, 6.5, pytest.approx(3 / 2**0.5), [3, 6])
    assert {*resamples["rgmc"]["words"]} == {2.5, 4.5, 6.5}
    difference = described["nearest_neighbor"].difference["words"]
    assert difference == Score(2, 1.5, 2.5, pytest.approx(2**0.5), [1, 3])
    difference = described["person"].difference["words"]
    assert difference == Score(2.5, 0.5, 4.5, pytest.approx(3 / 2**0.5), [1, 4])
    assert described["person"].scores["words"] == Score(2, 2, 2)
    assert items["rgmc=b"]["words"] == [3, 9]


def test_what_each_checkpoint_says_is_kept(alone, together, checkpoints):
    fields = ("prediction", "candidate", "candidate_id", "similarity", "beams")
    lines, (first, *others) = (
        read_lines(together / "predictions.jsonl"),
        [read_lines(folder / "predictions.jsonl") for folder in alone],
    )
    for row, line in enumerate(lines):
        said = line.pop("other_checkpoints")
        assert line == first[row]
        for name, entry, other in zip(checkpoints[1:], said, others, strict=True):
            captions = {key: caption for key, caption in other[row]["captions"].items() if key in OF_CHECKPOINT}
            shared = {key: other[row][key] for key in fields}
            assert entry == {"checkpoint": name, **shared, "captions": captions}
    assert [line["prediction"] for line in lines] != [line["prediction"] for line in others[0]]


def test_the_tables_and_the_report_show_the_deviation(evaluate, together, checkpoints, capsys):
    found = read_json(together / "results.json")
    score = found["systems"]["rgmc"]["scores"]["rouge_l"]
    assert [checkpoint["name"] for checkpoint in found["checkpoints"]] == checkpoints
    assert found["checkpoint"] == found["checkpoints"][0] and found["model"] == checkpoints[0]
    assert " ".join(["--model", *checkpoints, "--dataset"]) in found["command"]
    cell = f"{score['value']:.2f} ± {score['deviation']:.2f}"
    markdown, page = ((together / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    assert f"{cell} [{score['low']:.2f}, {score['high']:.2f}]" in markdown.replace("\\", "")
    assert f"<td>{cell} <small>[{score['low']:.2f}, {score['high']:.2f}]</small></td>" in page
    note = "a ± b: mean and standard deviation over 3 checkpoints that differ by seed"
    for text in (markdown, page):
        assert text.count(note) == 4  # Tables 3 and 4, listening and retrieval
        assert "means over 3 checkpoints that differ by seed; ± is the standard deviation of F1" in text
        assert "RGMC a, b, c on" in text and "Scores are means over 3 checkpoints" in text
        assert all(digest in text for checkpoint in found["checkpoints"] for digest in checkpoint["sha256"].values())
    for line in read_lines(together / "predictions.jsonl"):
        assert f"RGMC: {line['prediction']}" in markdown.replace("\\", "")
    evaluate("printed", checkpoints, masked=False)
    printed = capsys.readouterr().out
    assert cell in printed and note in printed and "1000.00 ±" not in printed


def test_scores_without_leaks_are_means_too(evaluate, checkpoints, tmp_path, monkeypatch):
    captions = {"train": ["other"], "test": SPLITS["test"]}
    ids = {"train": ["train-0"], "test": [f"test-{row}" for row in range(4)]}
    hashes = {"train": ["x"], "test": [None, "x", None, None]}
    clips = {name: Clips(ids[name], [[text] for text in captions[name]], ids[name], hashes[name]) for name in ids}
    options = {"ngram": 5, "threshold": 0.8, "model": None, "audio_threshold": 0.99}
    write_leaks(tmp_path, {"train_split": "train", "options": options, **find_leaks(clips)})
    options = {"leakage": str(tmp_path / "leakage.json"), "masked": False, "clap_model": "x"}

    def by_clap(clap, systems, *args) -> dict[str, dict]:
        return {
            key: {"per_item": {"clap_tt[x]": [float(len(text)) for text in of.captions]}} for key, of in systems.items()
        }

    monkeypatch.setattr("eval.load_clap", lambda *args: True)
    monkeypatch.setattr("eval.score_by_clap", by_clap)
    folders = [evaluate(f"leaks-{i}", model, **options) for i, model in enumerate([*checkpoints[:2], checkpoints[:2]])]
    one, two, both = (read_json(folder / "results.json")["without_leaks"]["systems"] for folder in folders)
    for metric in ("rouge_l", "clap_tt[x]"):
        values = [of["rgmc"]["scores"][metric]["value"] for of in (one, two)]
        assert both["rgmc"]["scores"][metric]["by_checkpoint"] == values
        assert both["rgmc"]["scores"][metric]["deviation"] == pytest.approx(statistics.stdev(values))
        assert both.keys() == one.keys() and both["gold"]["scores"][metric] == one["gold"]["scores"][metric]


def test_an_interrupted_evaluation_resumes_within_the_second_checkpoint(evaluate, checkpoints, monkeypatch):
    options = {"masked": False, "bootstrap": 0}
    whole = evaluate("whole", checkpoints[:2], **options)
    captioned, caption_batch = [], Captioner._caption_batch

    def interrupted(self, batch, *arguments):
        if len(captioned) == 3:
            raise KeyboardInterrupt
        captioned.append((Path(self.name).name, batch))
        return caption_batch(self, batch, *arguments)

    monkeypatch.setattr(Captioner, "_caption_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate("cut", checkpoints[:2], **options)

    def recorded(self, batch, *arguments):
        captioned.append((Path(self.name).name, batch))
        return caption_batch(self, batch, *arguments)

    monkeypatch.setattr(Captioner, "_caption_batch", recorded)
    cut = evaluate("cut", checkpoints[:2], **options)
    assert captioned == [("a", [0, 1]), ("a", [2, 3]), ("b", [0, 1]), ("b", [2, 3])]
    assert read_lines(cut / "predictions.jsonl") == read_lines(whole / "predictions.jsonl")
    assert not (cut / "unfinished").exists()


def test_two_processes_evaluate_several_checkpoints_as_one_does(evaluate, checkpoints, corpus, tmp_path):
    one = evaluate("one", checkpoints[:2], masked=False, table=[3, 4])
    options = ["--model", *checkpoints[:2], "--dataset", str(corpus), "--output_dir", str(tmp_path / "two")]
    options += ["--table", "3", "4", "--masked", "false", "--meteor", "false", "--clap_model", "none"]
    options += ["--cache_dir", str(one.parent / "cache"), "--bootstrap", "30"]
    done = in_two_processes("eval.py", *options, output=tmp_path / "log")
    assert done.stdout.count("Table 3") == 1 and " ± " in done.stdout
    found, wanted = (read_json(folder / "results.json") for folder in (tmp_path / "two", one))
    assert found["systems"] == wanted["systems"] and found["checkpoints"] == wanted["checkpoints"]
    found, wanted = (
        [[line["captions"], [other["captions"] for other in line["other_checkpoints"]]] for line in lines]
        for lines in (read_lines(folder / "predictions.jsonl") for folder in (tmp_path / "two", one))
    )
    assert found == wanted


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "values"),
    [
        ({"prefix_length": 4}, "config.json prefix_length", "3 and 4"),
        ({"conditioning": "audio"}, "config.json conditioning", "'audio\\+candidate' and 'audio'"),
        ({"num_candidates": 2}, "config.json num_candidates", "1 and 2"),
        ({"caption_normalization": "music"}, "config.json caption_normalization", "'paper' and 'music'"),
        (
            {"captions": [*SPLITS["train"][:-1], "a loud harp"]},
            r"datastore caption\[12\]",
            "'a quiet harp' and 'a loud harp'",
        ),
        ({"captions": SPLITS["train"][:-1]}, "config.json datastore_rows", "13 and 12"),
    ],
)
def test_checkpoints_of_other_configurations_are_refused(
    checkpoints, corpus, tokenizer, tmp_path, fields, field, values
):
    other = write_checkpoint(tmp_path / "other", corpus, tokenizer, 7, **fields)
    with pytest.raises(ValueError, match=f"--model .*/a and .*/other differ in {field}: {values}; expected"):
        check_same_configuration([*checkpoints[:2], other])


@pytest.mark.parametrize(
    ("file", "entry", "field"),
    [
        ("config.json", ("text_config", "n_inner", 7), "config.json text_config n_inner: None and 7"),
        ("generation_config.json", ("num_beams", 3), "generation_config.json num_beams: 5 and 3"),
        (
            "processor_config.json",
            ("feature_extractor", "duration", 5.0),
            "processor_config.json feature_extractor duration: 10.0 and 5.0",
        ),
        ("datastore/datastore.json", ("string_factory", "HNSW8"), "datastore string_factory: 'Flat' and 'HNSW8'"),
    ],
)
def test_a_setting_in_any_file_is_compared(checkpoints, tmp_path, file, entry, field):
    other = Path(shutil.copytree(checkpoints[1], tmp_path / "other"))
    content = read_json(other / file)
    *path, name, value = entry
    place = content
    for part in path:
        place = place[part]
    place[name] = value
    content["transformers_version"] = "5.6.0"  # which says nothing about the model
    (other / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"differ in {field}"):
        check_same_configuration([checkpoints[0], str(other)])


def test_checkpoints_that_differ_by_seed_are_taken_whatever_library_wrote_them(checkpoints, tmp_path):
    other = Path(shutil.copytree(checkpoints[1], tmp_path / "other"))
    for file in ("config.json", "generation_config.json"):
        (other / file).write_text(json.dumps({**read_json(other / file), "transformers_version": "5.6.0"}))
    check_same_configuration([checkpoints[0], str(other)])


def test_checkpoints_on_the_hub_are_compared_too(checkpoints, tmp_path, monkeypatch):
    def download(name: str, allow_patterns: list[str]):
        downloaded.append(name)
        folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("a" * 40)
        ignored = shutil.ignore_patterns("*.py", "README.md")
        shutil.copytree(checkpoints["bc".index(name[-1]) + 1], folder / "snapshots" / ("a" * 40), ignore=ignored)

    downloaded = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("evaluation.seeds.snapshot_download", download)
    check_same_configuration([checkpoints[0], "owner/b", "owner/c"])
    assert downloaded == ["owner/b", "owner/c"]
    with pytest.raises(ValueError, match="/b and owner/b are the same checkpoint"):
        monkeypatch.setattr("evaluation.seeds.snapshot_download", lambda *args, **options: None)
        check_same_configuration([*checkpoints[:2], "owner/b"])


def test_the_same_checkpoint_twice_is_refused(evaluate, checkpoints, tmp_path):
    copy = shutil.copytree(checkpoints[0], tmp_path / "copy")
    for other in (checkpoints[0], checkpoints[0] + "/", str(copy)):
        with pytest.raises(
            ValueError, match=r"--model .*/a and .* are the same checkpoint: expected .* different seeds"
        ):
            evaluate("twice", [*checkpoints[:2], other])


def test_a_card_takes_the_results_of_one_checkpoint_only(evaluate, checkpoints):
    with pytest.raises(ValueError, match="a card is about one checkpoint, and --model names 2; evaluate them one"):
        evaluate("card", checkpoints[:2], update_model_card=True)


# -- resamples.parquet -----------------------------------------------------------------------------------------------


def test_resamples_come_back_as_they_were(tmp_path):
    resamples = {"a = b": {"cider_d": np.array([1.5, -2]), "clap_at[o/x@1]": np.array([0, 3])}, "rgmc": {}}
    write_resamples(tmp_path, resamples)
    found = read_resamples(tmp_path)
    assert {key: {name: drawn.tolist() for name, drawn in of.items()} for key, of in found.items()} == {
        "a = b": {"cider_d": [1.5, -2], "clap_at[o/x@1]": [0, 3]}
    }
    write_resamples(tmp_path, {"rgmc": {}})
    assert read_resamples(tmp_path) == {}
    (tmp_path / "resamples.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"resamples.parquet cannot be read \(ArrowInvalid\): run eval.py again"):
        read_resamples(tmp_path)
