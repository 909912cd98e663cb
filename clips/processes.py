"""How a script joins the processes that `accelerate launch` and `torchrun` start."""

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from clips.locks import count_processes


def make_accelerator(**options: Any) -> Accelerator:
    """
    Makes the accelerator of a script. Its processes wait for each other up to a day: one of them may decode a corpus.

    Without an accelerator on the machine, accelerate must be told that the CPU is meant. Each process of `torchrun`
    would otherwise take itself for the only one, and all would write the same files.

    Args:
        options (`Any`): Further arguments of `Accelerator`.

    Raises:
        `ValueError`: If accelerate does not join the processes all the same.
    """
    started = count_processes()
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))
    on_cpu = started > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[patient], **options)
    if accelerator.num_processes == 1 < started:
        raise ValueError(
            f"{started} processes were started, and each would be a run of its own on {accelerator.device}: start one, "
            "with python, or set ACCELERATE_USE_CPU=true"
        )
    return accelerator
