"""Processes and devices: how the accelerator of a training is set up, and what it refuses."""

import logging as python_logging
import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers.utils import logging

from clips.options import available_cpus
from clips.processes import make_accelerator
from training.arguments import TrainingArguments


def check_distributed_type(accelerator: Accelerator):
    """
    Refuses distributed types that the training does not support, and keeps FSDP's weights in float32.

    Raises:
        `ValueError`: For DeepSpeed, Megatron-LM, the first FSDP, and options of FSDP2 that would not work.
    """
    kind = accelerator.distributed_type
    ways = "choose data parallelism or FSDP2, each with an example in configs/accelerate"
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"{kind} is not supported: {ways}")
    if kind != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(f"FSDP of fsdp_version {plugin.fsdp_version} is not supported: {ways}")
    if plugin.auto_wrap_policy is not transformer_auto_wrap_policy or plugin.transformer_cls_names_to_wrap:
        # The audio encoder must share a unit with the mapper, because `whole_encoder` gathers one unit.
        raise ValueError(
            "FSDP shards the decoder block by block: "
            "expected fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP without fsdp_transformer_layer_cls_to_wrap"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError("fsdp_cpu_ram_efficient_loading cannot load a model with buffers: set it to false")
    # Autocast chooses the precision, as without FSDP. FSDP's own policy would cast all weights and log-mels, so that
    # neighbours and datastore would come from another encoder than the float32 one that is saved.
    plugin.mixed_precision_policy = None


def fast_precision(precision: str | None) -> str | None:
    """`precision`, but `"no"` for bfloat16 on a processor that only emulates it, 5 to 50 times slower than float32."""
    wanted = precision or os.environ.get("ACCELERATE_MIXED_PRECISION")  # the setting of `accelerate launch`
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if wanted != "bf16" or not on_cpu:
        return precision
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return precision
    if os.environ.get("RANK", "0") == "0":
        print("This processor has no instructions for bfloat16: training in float32, which is faster here")
    return "no"


def start_accelerator(args: TrainingArguments) -> Accelerator:
    accelerator = make_accelerator(
        mixed_precision=fast_precision(args.mixed_precision),
        log_with=args.report_to.split(",") if args.report_to else None,
        project_dir=args.output_dir,
    )
    check_distributed_type(accelerator)
    if accelerator.device.type == "cpu":
        # accelerate launch sets a CPU process to one thread
        torch.set_num_threads(max(1, available_cpus() // accelerator.num_processes))
    else:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    if not accelerator.is_main_process:
        logging.set_verbosity_error()  # messages appear once
    # At each checkpoint accelerate warns that it leaves out tied weights, which loading ties again.
    python_logging.getLogger("accelerate.utils.other").setLevel(python_logging.ERROR)
    return accelerator
