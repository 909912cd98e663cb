"""What the options of train.py promise: refresh, parts, adapters, trackers, samples."""

import json
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import read_lines, run
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

import train
from captions.job import BUNDLED
from clips.batches import plan_epoch
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from training import devices, throughput
from training.arguments import TrainingArguments
from training.building import build_optimizer
from training.checkpoints import push_model, save_model
from training.lora import add_lora, merged_state_dict
from training.throughput import matrix_peak


def epochs(folder: Path) -> list[dict]:
    return [line for line in read_lines(folder / "log.jsonl") if "epoch" in line]


def test_neighbours_are_looked_up_in_the_index_of_a_new_datastore_as_often_as_asked(corpus, tmp_path, monkeypatch):
    refreshed, embedded = [], []
    refresh = train.refresh

    def watched(run):
        refresh(run)
        refreshed.append(run.state.epoch)
        index = run.datastore.rows.get_index("embeddings").faiss_index
        assert np.shares_memory(index.embeddings, run.datastore.embeddings)
        assert not any(np.array_equal(index.embeddings, former) for former in embedded)
        embedded.append(index.embeddings)
        found = run.datastore.rows.search_batch("embeddings", run.datastore.embeddings, 2).total_indices
        own = found == np.arange(13)[:, None]
        np.testing.assert_array_equal(run.state.neighbors.train[:, 0], np.where(own[:, 0], found[:, 1], found[:, 0]))

    monkeypatch.setattr(train, "refresh", watched)
    expected = {"epoch": [1, 1, 2, 3, 4], "2": [1, 2, 4], "never": [1]}  # the first one is before the training
    for policy, after_epochs in expected.items():
        refreshed.clear()
        embedded.clear()
        folder = run(tmp_path, corpus, "--refresh", policy, "--num_train_epochs", "4", name=policy)
        assert refreshed == after_epochs
        model = RGMCModel.from_pretrained(folder)  # whose datastore must be of its very encoder in any case
        assert len(model.datastore) == 13
    with pytest.raises(ValueError, match="expected epoch, never, or a number of epochs"):
        run(tmp_path, corpus, "--refresh", "sometimes", name="x")


def test_an_approximate_index_is_used_and_stays_with_the_checkpoint(corpus, tmp_path, monkeypatch):
    folder = run(tmp_path, corpus, "--string_factory", "HNSW8", "--search_parameters", "efSearch=9")
    datastore = RGMCModel.from_pretrained(folder).datastore
    assert (datastore.string_factory, datastore.search_parameters) == ("HNSW8", "efSearch=9")
    monkeypatch.setattr(train, "refresh", lambda run: pytest.fail("the clips are embedded"))
    with pytest.raises(ValueError, match="'IVF14,Flat' cannot be trained with 13 captions"):
        run(tmp_path, corpus, "--string_factory", "IVF14,Flat", name="x")


PARTS = {"audio_tower": "audio", "mapper": "mapper", "text_model": "text"}


@pytest.mark.parametrize("part", PARTS)
def test_a_frozen_part_stays_and_the_others_learn(corpus, tmp_path, part):
    first = run(tmp_path, corpus, name="first")
    second = run(tmp_path, corpus, "--model", str(first), f"--freeze_{part}", "true", name="second")
    old, new = RGMCModel.from_pretrained(first), RGMCModel.from_pretrained(second)
    for name in PARTS:
        same = [torch.equal(a, b) for a, b in zip(getattr(old, name).parameters(), getattr(new, name).parameters())]
        assert all(same) if name == part else not all(same)


def test_each_part_has_its_learning_rate(make_model):
    args = TrainingArguments(
        learning_rate=1.0, audio_learning_rate=2.0, mapper_learning_rate=3.0, text_learning_rate=4.0
    )
    model = make_model()
    groups = build_optimizer(model, args).param_groups
    for part, rate in zip(PARTS, (2.0, 3.0, 4.0)):
        (found,) = [group["lr"] for group in groups if group["params"][0] is next(getattr(model, part).parameters())]
        assert found == rate
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="every part is frozen"):
        build_optimizer(model, args)


def test_lora_trains_little_and_is_merged_into_a_plain_checkpoint(corpus, tmp_path):
    pytest.importorskip("peft", reason="peft is optional")
    first = run(tmp_path, corpus, name="first")
    options = ["--model", str(first), "--lora_r", "2", "--num_train_epochs", "2", "--test_split", "test"]
    second = run(tmp_path, corpus, *options, name="second")
    old, new = RGMCModel.from_pretrained(first), RGMCModel.from_pretrained(second)
    assert old.state_dict().keys() == new.state_dict().keys()
    weight = "text_model.transformer.h.0.attn.c_attn.weight"
    change = (new.state_dict()[weight] - old.state_dict()[weight]).double()
    assert torch.linalg.matrix_rank(change, atol=1e-6) == 2
    embedding = "text_model.transformer.wte.weight"
    assert torch.equal(old.state_dict()[embedding], new.state_dict()[embedding])
    resumed = [*options, "--resume_from_checkpoint", "last", "--num_train_epochs", "3"]
    assert [line["epoch"] for line in epochs(run(tmp_path, corpus, *resumed, name="second"))] == [1, 2, 3]


@pytest.mark.parametrize("text", ["gpt2", "llama"])
def test_merged_weights_compute_the_same_as_the_adapted_model(make_model, log_mels, text):
    pytest.importorskip("peft", reason="peft is optional")
    plain, adapted = make_model(text), make_model(text)
    add_lora(adapted, rank=2, alpha=3)
    for name, weight in adapted.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight)  # which begins at zero
    tokens, features = torch.ones(1, 3, dtype=torch.long), log_mels(1)
    with torch.no_grad():
        before = plain(features, tokens).logits
        expected = adapted(features, tokens).logits
        plain.load_state_dict(merged_state_dict(adapted))
        assert not torch.allclose(before, expected, atol=1e-2)
        torch.testing.assert_close(plain(features, tokens).logits, expected, atol=1e-4, rtol=1e-4)


def test_options_that_would_do_nothing_are_refused(corpus, tmp_path):
    for options in (["--micro_batch_size", "-1"], ["--max_grad_norm", "0"], ["--lora_r", "0"], ["--lora_alpha", "4"]):
        with pytest.raises(ValueError, match=options[0]):
            run(tmp_path, corpus, *options)


def test_gradient_checkpointing_learns_the_same(corpus, tmp_path):
    plain = RGMCModel.from_pretrained(run(tmp_path, corpus)).state_dict()
    saving = run(tmp_path, corpus, "--gradient_checkpointing", "true", name="checkpointing")
    for name, weight in RGMCModel.from_pretrained(saving).state_dict().items():
        torch.testing.assert_close(weight, plain[name], atol=1e-5, rtol=0)


def test_the_log_holds_steps_epochs_and_sample_captions(corpus, tmp_path):
    folder = run(tmp_path, corpus, "--logging_steps", "2", "--num_train_epochs", "2", "--num_sample_captions", "3")
    lines = read_lines(folder / "log.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 4, 6, 8, 8]
    for line in lines:
        if "epoch" not in line:
            assert line["grad_norm"] > 0 and line["learning_rate"] == 1e-3
            assert line["clips_per_second"] > 0 and line["tflops_per_second"] > 0 and 0 < line["mfu"] <= 1
    last = epochs(folder)[-1]
    assert {"validation_loss", "neighbor_similarity", "neighbors_changed", "seconds"} <= last.keys()
    assert [sample["id"] for sample in last["samples"]] == [f"validation-{row}" for row in range(3)]
    model, processor = RGMCModel.from_pretrained(folder), RGMCProcessor.from_pretrained(folder)
    files = [str(corpus / "validation" / f"{row}.wav") for row in range(3)]
    captions = processor.batch_decode(model.generate(**processor(audio=files)), skip_special_tokens=True)
    assert [sample["caption"] for sample in last["samples"]] == captions  # those of the saved model


def test_the_console_shows_captions_as_they_are_scored_and_no_bar_of_one_file(corpus, tmp_path, monkeypatch, capsys):
    said = [{"id": "a", "caption": "|| A\ufffd Sad SONG"}, {"id": "b", "caption": "|\ufffd"}]
    monkeypatch.setattr(train, "sample_captions", lambda run: said)
    shows_bars = logging.is_progress_bar_enabled()
    folder = run(tmp_path, corpus)
    printed = capsys.readouterr()
    assert "  a: a sad song\n  b: (no words)\n" in printed.out and "Writing model shards" not in printed.err
    assert logging.is_progress_bar_enabled() == shows_bars
    assert epochs(folder)[-1]["samples"] == said  # as the model said it


def test_trackers_get_numbers_and_captions(corpus, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, corpus, "--report_to", "tensorboard", "--logging_steps", "2")
    events = EventAccumulator(str(folder / "rgmc")).Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "train/mfu", "epoch/validation_loss"} <= {*scalars}
    (event,) = events.Scalars("epoch/validation_loss")
    assert event.value == pytest.approx(epochs(folder)[0]["validation_loss"])
    assert any(tag.startswith("sample/validation-0") for tag in events.Tags()["tensors"])


def test_only_the_model_is_pushed(corpus, tmp_path, monkeypatch):
    uploads = []
    monkeypatch.setattr("training.checkpoints.create_repo", lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr("training.checkpoints.list_repo_files", lambda repo_id: [])
    monkeypatch.setattr("training.checkpoints.upload_folder", lambda **upload: uploads.append(upload))
    options = ["--push_to_hub", "true", "--hub_model_id", "somebody/rgmc", "--test_split", "test"]
    folder = run(tmp_path, corpus, *options)
    (upload,) = uploads
    assert upload["repo_id"] == "somebody/rgmc"
    pushed = {
        str(path.relative_to(folder))
        for pattern in upload["allow_patterns"]
        for path in folder.glob(pattern)
        if path.is_file()
    }
    assert {"model.safetensors", "config.json", "README.md", "modeling_rgmc.py", "tokenizer.json"} <= pushed
    assert {"datastore/captions.parquet", "datastore/embeddings.safetensors"} <= pushed
    assert not any("checkpoint-" in name or name.startswith("eval") or name.endswith("jsonl") for name in pushed)
    whole = json.loads((folder / "config.json").read_text())
    assert whole["datastore_rows"] == 13


def test_an_endpoint_gets_the_handler_and_what_it_needs(monkeypatch):
    uploads = {}
    monkeypatch.setattr("training.checkpoints.create_repo", lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr("training.checkpoints.list_repo_files", lambda repo_id: [])
    monkeypatch.setattr("training.checkpoints.upload_folder", lambda **upload: None)
    monkeypatch.setattr(
        "training.checkpoints.upload_file",
        lambda path_in_repo, path_or_fileobj, **_: uploads.update({path_in_repo: path_or_fileobj}),
    )
    push_model(BUNDLED, "somebody/rgmc", private=False)
    assert not uploads
    push_model(BUNDLED, "somebody/rgmc", private=False, endpoint=True)
    assert {*uploads} == {"handler.py", "requirements.txt"} and uploads["handler.py"].is_file()
    wanted = uploads["requirements.txt"].decode().splitlines()
    assert "av" in wanted and "faiss-cpu" in wanted and not any(line.startswith("-") for line in wanted)


def test_a_model_that_is_not_saved_to_the_end_is_none(make_model, processor, tmp_path, monkeypatch):
    save_model(tmp_path, make_model(), processor, "a card")
    replace = os.replace

    def interrupted(source, target):
        if target == tmp_path / "generation_config.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("training.checkpoints.os.replace", interrupted)
        save_model(tmp_path, make_model(), processor, "a card")
    with pytest.raises(OSError, match=r"has no config\.json"):
        RGMCModel.from_pretrained(tmp_path)
    save_model(tmp_path, make_model(), processor, "a card")
    assert RGMCModel.from_pretrained(tmp_path).config.datastore_rows == 0


def test_a_folder_that_is_no_whole_checkpoint_is_not_pushed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no README\.md, generation_config\.json, model.*processing_rgmc\.py"):
        push_model(tmp_path, "somebody/rgmc", private=False)


def test_micro_batches_hold_captions_of_similar_length():
    lengths = np.random.default_rng(0).integers(5, 60, size=70)
    steps = plan_epoch(np.random.default_rng(1).permutation(70), lengths, 32, 8, Accelerator())
    assert sorted(row for step in steps for rows in step for row in rows) == list(range(70))
    for step in steps:
        for rows, after in pairwise(step):
            assert min(lengths[rows]) >= max(lengths[after])


@pytest.mark.parametrize(
    ("conditioning", "frozen"),
    [("audio+candidate", False), ("audio", False), ("candidate", False), ("audio+candidate", True), ("audio", True)],
)
def test_counted_operations_are_those_of_a_step(make_model, log_mels, conditioning, frozen):
    model, features, length = make_model(conditioning=conditioning).train(), log_mels(4), 10
    if frozen:
        model.text_model.requires_grad_(False)
    train_split = SimpleNamespace(read=lambda rows: features[rows])
    counted = throughput.count_flops(model, train_split, [[1] * length] * 4)
    shown = length if model.config.uses_candidate else 0
    ids = torch.ones(4, shown + length, dtype=torch.long)
    labels = ids.clone()
    labels[:, :shown] = -100
    batch = {"input_ids": ids, "attention_mask": ids, "input_features": features, "labels": labels}
    with FlopCounterMode(display=False) as counter:
        model(**batch, max_label_length=length).loss.backward()
    # A frozen decoder's count leaves out the gradients of the mapper's weights.
    assert counted * 4 == pytest.approx(counter.get_total_flops(), rel=0.03 if frozen else 1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_training_is_measured_by_the_fastest_product(monkeypatch, precision):
    rates = {(torch.float32, 256): 9.0, (torch.float32, 512): 2.0, (torch.bfloat16, 1024): 12.0}
    monkeypatch.setattr(throughput, "matrix_peak", lambda device, dtype, size: rates.get((dtype, size), 1.0))
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision, num_processes=2)
    assert throughput.measure_peak(accelerator) == 2 * (12 if precision == "bf16" else 9)


@pytest.mark.parametrize(
    ("wanted", "device", "has_bf16", "used"),
    [
        ("bf16", "cpu", False, "no"),
        ("bf16", "cpu", True, "bf16"),
        ("bf16", "cuda", False, "bf16"),
        ("fp16", "cpu", False, "fp16"),
        (None, "cpu", False, None),
    ],
)
def test_a_processor_that_only_emulates_bf16_trains_in_float32(monkeypatch, capsys, wanted, device, has_bf16, used):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device != "cpu")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert devices.fast_precision(wanted) == used
    assert ("float32" in capsys.readouterr().out) == (used != wanted)
    if wanted == "bf16":  # also where accelerate chose it
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        assert (devices.fast_precision(None) == "no") == (used == "no")
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        assert (devices.fast_precision("bf16") == "no") == (not has_bf16)


def test_the_peak_is_that_of_a_matrix_product():
    drawn = torch.get_rng_state()
    assert 1e8 < matrix_peak("cpu", torch.float32, size=256) < 1e14
    assert torch.equal(torch.get_rng_state(), drawn)  # which decide what dropout draws
