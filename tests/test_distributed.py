"""What training promises under FSDP: the numbers and the checkpoint of a single process, and resuming."""

from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from helpers import ROOT, SPLITS, config_file, in_two_processes, read_lines, run, write_corpus
from safetensors.torch import load_file

from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from training.devices import check_distributed_type

OPTIONS = ["--num_train_epochs", "2", "--max_grad_norm", "1", "--logging_steps", "1", "--micro_batch_size", "1"]
OPTIONS += ["--text_pretraining_steps", "3", "--candidate_pool", "3", "--candidate_dropout", "0.2"]
OPTIONS += ["--prefix_dropout", "0.2"]
OPTIONS += ["--own_candidate", "0.2", "--random_candidate", "0.2", "--augment_audio", "true", "--word_loss_weight", "1"]
OPTIONS += ["--candidate_similarity", "true"]

# accelerate only shards on GPUs, so these CPU processes, which communicate over gloo, pretend to be GPUs.
SHARDED = """
import sys
from accelerate import PartialState
from accelerate.utils import DistributedType
import train

PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
train.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), SPLITS)


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> Path:
    """The run of one process. Its folder holds the cache of all other runs."""
    return run(tmp_path_factory.mktemp("alone"), corpus, *OPTIONS)


@pytest.fixture
def train_sharded(corpus, alone, tmp_path):
    """Trains in two processes, with the variables that accelerate launch makes from configs/accelerate/fsdp.yaml."""
    settings = yaml.safe_load((ROOT / "configs/accelerate/fsdp.yaml").read_text())["fsdp_config"]
    driver = tmp_path / "sharded.py"
    driver.write_text(SHARDED)

    def start(name: str, *options: str) -> CompletedProcess:
        argv = [str(config_file(tmp_path, corpus, name)), *OPTIONS, "--cache_dir", str(alone.parent / "cache")]
        variables = {key.upper(): str(value) for key, value in settings.items()}
        log = tmp_path / f"{name}-{len(options)}.log"
        return in_two_processes(str(driver), *argv, *options, output=log, ACCELERATE_USE_FSDP="true", **variables)

    return start


@pytest.mark.skipif(not hasattr(torch.cpu.Stream(), "record_event"), reason="this torch has no FSDP2 on a CPU")
def test_fsdp_trains_saves_and_resumes_as_one_process(train_sharded, corpus, alone, tmp_path):
    train_sharded("sharded", "--num_train_epochs", "1")
    assert "step 4, epoch 2" in train_sharded("sharded", "--resume_from_checkpoint", "last").stdout
    sharded = tmp_path / "sharded"
    assert (sharded / "checkpoint-8" / "pytorch_model_fsdp_0" / ".metadata").exists()

    log, wanted = (read_lines(folder / "log.jsonl") for folder in (sharded, alone))
    assert [line["step"] for line in log] == [line["step"] for line in wanted]
    assert any("validation_loss" in line for line in wanted)
    for one, two in zip(log, wanted):
        for name in {"loss", "validation_loss", "grad_norm", "neighbor_similarity"} & {*two}:
            assert one[name] == pytest.approx(two[name], rel=1e-4), name
        assert one.get("samples") == two.get("samples")

    # Loading checks that the datastore belongs to this encoder.
    model, processor = RGMCModel.from_pretrained(sharded), RGMCProcessor.from_pretrained(sharded)
    assert model.config.architectures == ["RGMCModel"]
    assert len(model.datastore) == len(SPLITS["train"])
    one, two = (load_file(folder / "model.safetensors") for folder in (sharded, alone))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], atol=1e-4, rtol=0)
    inputs = processor(audio=[str(next(corpus.rglob("*.wav")))])
    assert len(processor.batch_decode(model.generate(**inputs))) == 1


@pytest.mark.parametrize(
    "variable, message",
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version 1 is not supported"),
        ({"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, "expected fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "set it to false"),
    ],
)
def test_fsdp_that_would_not_work_is_refused(monkeypatch, variable, message):
    names = {"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    for name, value in {**names, "FSDP_CPU_RAM_EFFICIENT_LOADING": "false", **variable}.items():
        monkeypatch.setenv(name, value)
    state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin())
    with pytest.raises(ValueError, match=message):
        check_distributed_type(SimpleNamespace(distributed_type=DistributedType.FSDP, state=state))
