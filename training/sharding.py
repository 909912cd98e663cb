"""FSDP2: what a model needs whose weights are sharded over the processes."""

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy


def check_distributed_type(accelerator: Accelerator):
    """
    Refuses what the training cannot do, and has FSDP keep to float32 weights.

    Raises:
        `ValueError`: for DeepSpeed, Megatron-LM, the first FSDP, and for options of FSDP2 that would not work.
    """
    kind = accelerator.distributed_type
    ways = "choose data parallel processes, or FSDP2: configs/accelerate has an example of each"
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"{kind} is not supported: {ways}")
    if kind != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(f"FSDP of fsdp_version {plugin.fsdp_version} is not supported: {ways}")
    if plugin.auto_wrap_policy is not transformer_auto_wrap_policy or plugin.transformer_cls_names_to_wrap:
        # The audio encoder must stay in one unit with the mapper: `whole_encoder` gathers just that.
        raise ValueError(
            "FSDP shards the decoder block by block: expected fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP without "
            "fsdp_transformer_layer_cls_to_wrap"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError("fsdp_cpu_ram_efficient_loading cannot load a model with buffers: set it to false")
    # Autocast chooses the precision, as without FSDP. FSDP's own policy would cast all weights and log-mels: neighbours
    # and datastore would be looked up with another encoder than the float32 one that is saved.
    plugin.mixed_precision_policy = None
