"""What train.py and eval.py promise: a folder of audio becomes a checkpoint that captions, and a table to trust."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Array2D, Audio, Dataset, DatasetDict, Features
from helpers import CAPTIONS, ON_CPU, ROOT, SHARED, SPLITS, Script, config_file, read_lines, run, write_corpus

import train
from clips.batches import TeacherForcingCollator, load_batches
from clips.features import ClipFeatures
from clips.rows import load_captions
from eval import EvaluationArguments, evaluate_checkpoint
from modeling_rgmc import RGMCModel
from pipeline_rgmc import MusicCaptioningPipeline
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore


@pytest.fixture
def broken_corpus(tmp_path):
    """A new corpus for a test that changes it."""
    return write_corpus(tmp_path / "corpus", SPLITS)


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    """A trained checkpoint with its evaluation, which tests read but do not change."""
    folder = tmp_path_factory.mktemp("trained")
    return run(folder, corpus, "--test_split", "test", "--num_train_epochs", "2", "--text_config.n_layer", "1")


# -- the whole way ---------------------------------------------------------------------------------------------------


def test_the_threshold_of_captions_is_a_quantile_of_validation_scores(checkpoint, corpus):
    model, processor = RGMCModel.from_pretrained(checkpoint).eval(), RGMCProcessor.from_pretrained(checkpoint)
    captioner = MusicCaptioningPipeline(model=model, processor=processor, device="cpu")
    clips = load_captions(str(corpus), "validation")["audio"]
    scores = [captioner(clip)["score"] for clip in clips]
    assert model.config.score_threshold == pytest.approx(np.quantile(scores, 0.1), abs=0.01)


def test_one_command_trains_retrieves_captions_and_scores(checkpoint):
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "README.md",
        "attribution_rgmc.py",
        "audio_rgmc.py",
        "captions_rgmc.py",
        "checkpoint-8",
        "config.json",
        "configuration_rgmc.py",
        "datastore",
        "eval",
        "feature_extraction_rgmc.py",
        "generation_config.json",
        "generation_rgmc.py",
        "hearing_rgmc.py",
        "layers_rgmc.py",
        "log.jsonl",
        "model.safetensors",
        "model_card_rgmc.py",
        "modeling_rgmc.py",
        "neighbors.jsonl",
        "noise_rgmc.py",
        "pipeline_rgmc.py",
        "pretrained_rgmc.py",
        "processing_rgmc.py",
        "processor_config.json",
        "retrieval_rgmc.py",
        "search_rgmc.py",
        "songs_rgmc.py",
        "span_settings_rgmc.py",
        "spans_rgmc.py",
        "statistics_rgmc.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert len(RGMCModel.from_pretrained(checkpoint).text_model.transformer.h) == 1
    log = read_lines(checkpoint / "log.jsonl")
    assert [line["epoch"] for line in log] == [1, 2]
    assert log[1]["loss"] < log[0]["loss"]

    predictions = read_lines(checkpoint / "eval" / "predictions.jsonl")
    assert [line["id"] for line in predictions] == [f"test-{row}" for row in range(4)]
    assert [line["references"] for line in predictions] == [[caption] for caption in SPLITS["test"]]
    store = CaptionDatastore.from_pretrained(checkpoint)
    captions = dict(zip(store.rows["id"], store.rows["caption"]))
    for line in predictions:
        assert captions[line["candidate_id"]] == line["candidate"]
        assert -1 <= line["similarity"] <= 1.0001
        assert isinstance(line["prediction"], str)
    results = json.loads((checkpoint / "eval" / "results.json").read_text())
    assert results["n"] == 4 and "listening" not in results
    assert list(results["systems"]) == [
        *("gold", "random", "most_frequent", "nearest_neighbor_statistics", "nearest_neighbor", "consensus"),
        *("rgmc", "rgmc_shuffled"),
    ]
    scores = {name: system["scores"] for name, system in results["systems"].items()}
    assert set(scores["rgmc"]) == {
        *(*(f"bleu_{n}" for n in range(1, 5)), "rouge_l", "cider_d", "copy", "distinct", "novel", "words"),
        *("attribute_precision", "attribute_recall", "attribute_f1"),
    }
    assert scores["gold"]["cider_d"]["value"] == pytest.approx(1000)
    assert scores["gold"]["bleu_4"]["value"] == pytest.approx(100)
    assert scores["nearest_neighbor"]["copy"]["value"] == 100
    assert f"| RGMC | {scores['rgmc']['cider_d']['value']:.2f}" in (checkpoint / "README.md").read_text()


def test_training_continues_from_a_checkpoint(corpus, checkpoint, tmp_path):
    second = run(tmp_path, corpus, "--model", str(checkpoint), "--freeze_audio_tower", "true")
    old, new = RGMCModel.from_pretrained(checkpoint), RGMCModel.from_pretrained(second)
    assert old.encoder_fingerprint() == new.encoder_fingerprint()
    assert not torch.equal(old.mapper.linear1.weight, new.mapper.linear1.weight)


FRESH = """
import json, sys
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, AutoTokenizer
checkpoint, files = sys.argv[1], sys.argv[2:]
model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
inputs = processor(audio=files, return_tensors="pt")
together = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
alone = [
    processor.batch_decode(model.generate(**processor(audio=[file], return_tensors="pt")), skip_special_tokens=True)[0]
    for file in files
]
retrieved = model.retrieve(model.embed_audio(inputs["input_features"]))
print(json.dumps({
    "processor": type(processor).__name__, "together": together, "alone": alone, "ids": retrieved.ids,
    "classes": [type(auto.from_pretrained(checkpoint, trust_remote_code=True)).__name__
                for auto in (AutoConfig, AutoFeatureExtractor)],
}))
"""


def test_a_checkpoint_captions_files_in_a_fresh_process_offline(corpus, checkpoint, tmp_path):
    files = [str(corpus / "test" / f"{row}.wav") for row in range(4)]
    music = sorted((SHARED / "real_audio" / "music").glob("*.*"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment.update(HF_HOME=str(elsewhere / "hf"), HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(checkpoint), *files, *map(str, music)],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["processor"] == "RGMCProcessor"  # without auto_map, AutoProcessor returns a tokenizer
    assert found["classes"] == ["RGMCConfig", "RGMCFeatureExtractor"]
    assert found["together"] == found["alone"]
    assert len(found["together"]) == len(files) + len(music)
    assert all(len(ids) == 1 and ids[0].startswith("train-") for ids in found["ids"])


def test_saving_a_loaded_checkpoint_writes_the_same_model(checkpoint, tmp_path):
    RGMCModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    RGMCProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    for file in ("model.safetensors", "datastore/embeddings.safetensors", "generation_config.json", "modeling_rgmc.py"):
        assert (tmp_path / "again" / file).read_bytes() == (checkpoint / file).read_bytes(), file


# -- retrieval in training -------------------------------------------------------------------------------------------


def test_no_clip_is_its_own_candidate_in_training(checkpoint):
    table = read_lines(checkpoint / "neighbors.jsonl")
    assert [line["id"] for line in table] == [f"train-{row}" for row in range(len(SPLITS["train"]))]
    assert all(len(line["candidate_ids"]) == 1 and line["id"] not in line["candidate_ids"] for line in table)


def test_a_validation_clip_that_is_trained_on_is_not_its_own_candidate(corpus, tmp_path, monkeypatch):
    found = []
    refresh = train.refresh
    monkeypatch.setattr(train, "refresh", lambda run: refresh(run) or found.append(run.state.neighbors.validation))
    run(tmp_path, corpus, "--validation_split", "train", "--num_sample_captions", "0")
    assert found and all((neighbors[:, 0] != np.arange(13)).all() for neighbors in found)


def test_two_processes_find_the_neighbours_of_one(corpus, tmp_path):
    # torchrun, because `accelerate launch --cpu --num_processes 2` silently runs a single process. Other tests start
    # the processes as it does, without importing everything three times.
    options = ["--learning_rate", "3e-4", "--num_train_epochs", "2", "--test_split", "test"]
    alone = run(tmp_path, corpus, *options)
    config = config_file(tmp_path, corpus, "two")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "train.py")]
    done = subprocess.run(
        [sys.executable, *launch, str(config), *options],
        cwd=tmp_path,
        env={**os.environ, **ON_CPU, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two = (read_lines(folder / "neighbors.jsonl") for folder in (alone, tmp_path / "two"))
    assert [line["candidate_ids"] for line in two] == [line["candidate_ids"] for line in one]
    assert [line["id"] for line in two] == [f"train-{row}" for row in range(13)]  # not divisible by two
    logs = [read_lines(folder / "log.jsonl") for folder in (alone, tmp_path / "two")]
    assert [line["processes"] for log in logs for line in log] == [1, 1, 2, 2]
    for first, second in zip(*logs):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
        assert second["validation_loss"] == pytest.approx(first["validation_loss"], rel=1e-4)
    one, two = (RGMCModel.from_pretrained(folder).state_dict() for folder in (alone, tmp_path / "two"))
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, one[name], atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    predictions = [read_lines(folder / "eval" / "predictions.jsonl") for folder in (alone, tmp_path / "two")]
    keys = ("id", "prediction", "candidate_id")
    assert [[line[key] for key in keys] for line in predictions[0]] == [
        [line[key] for key in keys] for line in predictions[1]
    ]


def silent_clips(n: int) -> ClipFeatures:
    log_mels = {"log_mel": np.zeros((n, 4, 64), np.float16)}
    rows = Dataset.from_dict(log_mels, features=Features({"log_mel": Array2D((4, 64), "float16")}))
    return ClipFeatures([str(row) for row in range(n)], [["a caption"]] * n, rows)


@pytest.mark.parametrize("micro_batch_size", [3, 1])
def test_the_weights_do_not_depend_on_how_a_batch_is_cut(corpus, tmp_path, micro_batch_size):
    whole = RGMCModel.from_pretrained(run(tmp_path, corpus, "--batch_size", "7")).state_dict()
    cut = run(tmp_path, corpus, "--batch_size", "7", "--micro_batch_size", str(micro_batch_size), name="cut")
    for name, tensor in RGMCModel.from_pretrained(cut).state_dict().items():
        torch.testing.assert_close(
            tensor, whole[name], atol=2e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_loader_workers_see_the_candidates_of_their_epoch(processor):
    features = silent_clips(2)
    captions = [processor.encode_caption(caption) for caption in CAPTIONS[:2]]
    for candidate in ([5, 6], [7, 8, 9]):
        collator = TeacherForcingCollator(features, captions, [[(candidate, 0.5)]] * 2, processor)
        (batch,) = load_batches([[[0, 1]]], collator, num_workers=2)
        prompt = [*candidate, processor.separator_token_id]
        assert batch["input_ids"][:, : len(prompt)].tolist() == [prompt, prompt]


def test_teacher_forcing_learns_the_caption_and_its_eos_alone(processor):
    features = silent_clips(2)
    captions = [processor.encode_caption(caption) for caption in ("piano", "a sad ballad of strings")]
    collator = TeacherForcingCollator(features, captions, [[([5], 0.5)], []], processor)
    batch = collator([0, 1])
    for row, prompt in enumerate(([5, 0], [0])):
        length = len(prompt) + len(captions[row])
        assert batch["input_ids"][row, :length].tolist() == prompt + captions[row]
        assert batch["labels"][row, :length].tolist() == [-100] * len(prompt) + captions[row]
        assert batch["labels"][row, length:].tolist() == [-100] * (batch["labels"].shape[1] - length)
        assert batch["attention_mask"][row].sum() == length  # the pad token is EOS, and EOS is learned
    empty = collator([])
    assert (empty["labels"] == -100).all()


# -- bad input -------------------------------------------------------------------------------------------------------


def break_column(corpus):
    file = corpus / "train" / "metadata.csv"
    file.write_text(file.read_text().replace("caption", "text", 1))


def break_empty(corpus):
    (corpus / "train" / "metadata.csv").write_text("file_name,id,caption\n")


def break_split(corpus):
    (corpus / "validation" / "metadata.csv").unlink()


def break_missing_audio(corpus):
    (corpus / "train" / "3.wav").unlink()


def break_audio(corpus):
    (corpus / "train" / "3.wav").write_bytes(b"this is no sound" * 100)


def break_caption(corpus):
    file = corpus / "train" / "metadata.csv"
    file.write_text(file.read_text().replace(CAPTIONS[3], "..."))


def break_ids(corpus):
    file = corpus / "train" / "metadata.csv"
    file.write_text(file.read_text().replace("train-3,", "train-2,"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_column, ["no column caption", "file_name, id, text"]),
        (break_empty, ["is empty"]),
        (break_split, ["validation", "metadata.csv"]),
        (break_missing_audio, ["row 3", "train-3", "3.wav"]),
        (break_audio, ["row 3", "train-3", "3.wav", "--max_skipped"]),
        (break_caption, ["row 3", "train-3", "no caption, or none with words"]),
        (break_ids, ["'train-2'", "[2, 3]"]),
    ],
)
def test_a_damaged_corpus_is_an_error_that_names_the_place_and_leaves_no_checkpoint(
    broken_corpus, tmp_path, damage, words
):
    damage(broken_corpus)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        run(tmp_path, broken_corpus)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "checkpoint" / "config.json").exists()
    assert not list(tmp_path.glob("checkpoint/*.safetensors"))


def test_options_are_checked_and_the_command_line_wins(tmp_path, capsys):
    config = config_file(tmp_path, tmp_path, "x")
    options = [
        "--output_dir=./some.where",
        "--batch_size",
        "9",
        "--text_config.n_layer",
        "5",
        "--text_config.n_inner=7",
    ]
    model_args, _, args = train.parse_arguments([str(config), *options])
    assert (args.batch_size, args.learning_rate, args.output_dir) == (9, 1e-3, "./some.where")
    assert (model_args.text_config["n_layer"], model_args.text_config["n_inner"]) == (5, 7)
    assert model_args.text_config["n_embd"] == 32
    config.write_text(config.read_text() + "mixed_precision: no\n")
    assert train.parse_arguments([str(config)])[2].mixed_precision == "no"
    config.write_text(config.read_text().replace("batch_size: 4", "batch_size: 4.5"))
    with pytest.raises(SystemExit):
        train.parse_arguments([str(config)])
    config = config_file(tmp_path, tmp_path, "x")
    for wrong, word in (
        ([str(config), "--bach_size", "9"], "bach_size"),
        ([str(config), "--text_confg.n_layer", "9"], "text_confg"),
        (["--output_dir", "x"], "--dataset"),
    ):
        with pytest.raises((SystemExit, ValueError)) as error:
            train.parse_arguments(wrong)
        assert word in str(error.value) + capsys.readouterr().err


def test_embeddings_of_a_mixed_precision_run_are_those_of_captioning(corpus, tmp_path):
    options = [str(config_file(tmp_path, corpus, "bf16")), "--mixed_precision", "bf16"]
    done = Script("train.py", *options, output=tmp_path / "log").wait()
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "bf16"
    model, processor = RGMCModel.from_pretrained(checkpoint), RGMCProcessor.from_pretrained(checkpoint)
    audio = [str(corpus / "train" / f"{row}.wav") for row in range(4)]
    with torch.no_grad():
        embeds = model.embed_audio(processor(audio=audio)["input_features"].half())  # the cache is float16
    np.testing.assert_allclose(model.datastore.embeddings[:4], embeds, atol=1e-6)


def test_a_split_that_is_missing_is_missed_before_the_training(broken_corpus, tmp_path):
    (broken_corpus / "test" / "metadata.csv").unlink()
    with pytest.raises(FileNotFoundError, match="test"):
        run(tmp_path, broken_corpus, "--test_split", "test")
    assert not (tmp_path / "checkpoint" / "log.jsonl").exists()


def test_captions_too_long_for_the_decoder_are_missed_before_the_training(corpus, tmp_path):
    with pytest.raises(ValueError, match="positions"):
        run(tmp_path, corpus, "--num_candidates", "6")


def test_rows_without_a_file_are_skipped_too(corpus, tmp_path, processor):
    lines = [{"audio": str(corpus / "test" / "0.wav"), "caption": ["one", "two"]}, {"audio": None, "caption": 3}]
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"audio": "", "caption": "x"}])
    )
    rows = load_captions(str(tmp_path / "test.jsonl"), "test", id_column="none")
    assert rows["captions"] == [["one", "two"], ["3"], ["x"]]


def test_a_row_without_a_path_is_of_no_split(corpus, tmp_path):
    (tmp_path / "all.csv").write_text(f"file_name,id,caption\n{corpus.name}/0.wav,a,one\n,b,two\n")
    assert load_captions(str(tmp_path / "all.csv"), corpus.name, id_column="id")["id"][:] == ["a"]


def test_a_misspelt_entry_of_a_configuration_is_an_error(corpus, tmp_path):
    with pytest.raises(ValueError, match="text_config has no n_layers"):
        run(tmp_path, corpus, "--text_config.n_layers", "1")


def test_what_a_checkpoint_was_trained_with_cannot_be_changed_quietly(corpus, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="another conditioning"):
        run(tmp_path, corpus, "--model", str(checkpoint), "--conditioning", "audio")


def test_a_checkpoint_is_not_overwritten_unless_asked(corpus, tmp_path):
    checkpoint = run(tmp_path, corpus)
    before = (checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="overwrite_output_dir"):
        run(tmp_path, corpus)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    run(tmp_path, corpus, "--overwrite_output_dir", "true", "--seed", "1")
    assert (checkpoint / "model.safetensors").read_bytes() != before


def test_an_interrupted_save_leaves_no_half_checkpoint(corpus, monkeypatch, tmp_path):
    def interrupted(self, directory, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(RGMCProcessor, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, corpus)
    assert not (tmp_path / "checkpoint" / "config.json").exists()
    assert not list((tmp_path / "checkpoint").glob("*.safetensors"))


# -- corpora ---------------------------------------------------------------------------------------------------------


def test_every_layout_gives_the_same_rows(broken_corpus, tmp_path):
    corpus = broken_corpus
    expected = load_captions(str(corpus), "validation")
    files = [str(corpus / "validation" / f"{row}.wav") for row in range(3)]
    table = {"audio": files, "id": [f"validation-{row}" for row in range(3)], "caption": SPLITS["validation"]}
    (tmp_path / "dev.jsonl").write_text(
        "".join(json.dumps(dict(zip(table, row))) + "\n" for row in zip(*table.values()))
    )
    rows = Dataset.from_dict({**table, "split": ["val"] * 3})
    rows.to_parquet(tmp_path / "all.parquet")
    rows.to_csv(tmp_path / "all.csv", index=False)
    DatasetDict({"dev": Dataset.from_dict(table).cast_column("audio", Audio(decode=False))}).save_to_disk(
        tmp_path / "saved"
    )
    (corpus / "validation").rename(corpus / "val")
    (corpus / "validation").symlink_to(corpus / "val")  # so that the paths above stay readable
    for place in ("dev.jsonl", "all.parquet", "all.csv", "saved", "corpus"):
        found = load_captions(str(tmp_path / place), "validation")
        assert found["id"] == expected["id"], place
        assert found["captions"] == expected["captions"], place
        assert [Path(entry["path"]).name for entry in found["audio"]] == ["0.wav", "1.wav", "2.wav"], place
        # save_to_disk includes the files' contents
        assert all(entry["bytes"] or Path(entry["path"]).is_file() for entry in found["audio"]), place


def test_a_split_without_its_table_is_an_error_that_says_so(broken_corpus):
    (broken_corpus / "train" / "metadata.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"train has no metadata\.csv or .*with the columns file_name and caption"
    ):
        load_captions(str(broken_corpus), "train")


def test_one_table_for_all_splits_is_divided_by_folder(broken_corpus):
    corpus = broken_corpus
    lines = ["file_name,caption"]
    for split, captions in SPLITS.items():
        (corpus / split / "metadata.csv").unlink()
        lines += [f"{split}/{row}.wav,{caption}" for row, caption in enumerate(captions)]
    (corpus / "metadata.csv").write_text("\n".join(lines))
    assert len(load_captions(str(corpus), "train")) == 13
    assert load_captions(str(corpus), "test")["captions"] == [[caption] for caption in SPLITS["test"]]
    assert load_captions(str(corpus), "test")["id"] == [f"test/{row}.wav" for row in range(4)]  # no id column
    assert len(load_captions(str(corpus), "dev")) == len(load_captions(str(corpus), "validation")) == 3
    assert len(load_captions(str(corpus), "all")) == 20
    with pytest.raises(ValueError, match="'nowhere'"):
        load_captions(str(corpus), "nowhere")


def test_ids_and_captions_stay_text_and_may_be_lists(tmp_path):
    (tmp_path / "train.csv").write_text("file_name,id,caption\na.wav,007,1\nb.wav,7,2.50\n")
    rows = load_captions(str(tmp_path / "train.csv"), "train")
    assert rows["id"] == ["007", "7"] and rows["captions"] == [["1"], ["2.50"]]
    (tmp_path / "test.jsonl").write_text('{"file_name": "a.wav", "id": 3, "caption": ["one", "two"]}\n')
    rows = load_captions(str(tmp_path / "test.jsonl"), "test")
    assert rows["id"] == ["3"] and rows["captions"] == [["one", "two"]]


def test_a_corpus_that_is_nowhere_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_captions(str(tmp_path / "nothing"), "train")
    (tmp_path / "train.txt").write_text("x")
    with pytest.raises(ValueError, match=r"\.csv"):
        load_captions(str(tmp_path / "train.txt"), "train")


def test_evaluation_of_several_references_takes_all_of_them(corpus, checkpoint, tmp_path):
    lines = [
        {"file_name": str(corpus / "test" / f"{row}.wav"), "caption": [caption, "another caption of it"]}
        for row, caption in enumerate(SPLITS["test"])
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = EvaluationArguments(
        str(checkpoint),
        str(tmp_path / "test.jsonl"),
        str(tmp_path / "eval"),
        cache_dir=str(tmp_path),
        clap_model="none",
    )
    results = evaluate_checkpoint(args, Accelerator())
    assert read_lines(tmp_path / "eval" / "predictions.jsonl")[1]["references"] == [
        SPLITS["test"][1],
        "another caption of it",
    ]
    assert results.systems["gold"].scores["bleu_4"].value == pytest.approx(100)
