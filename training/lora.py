"""Low-rank adaptation of the decoder (Hu et al., 2022) with peft."""

import torch

from modeling_rgmc import RGMCModel


def add_lora(model: RGMCModel, rank: int, alpha: int | None = None):
    """Freezes the decoder and adds matrices of `rank`, scaled by `alpha / rank` (default 2), to its linear layers."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("--lora_r needs peft: `pip install peft`") from error
    model.text_model.requires_grad_(False)
    convolutions = any(type(module).__name__ == "Conv1D" for module in model.text_model.modules())
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules="all-linear", fan_in_fan_out=convolutions)
    inject_adapter_in_model(config, model.text_model)


def merged_state_dict(model: RGMCModel) -> dict[str, torch.Tensor]:
    """Returns the weights of a plain model that computes the same. The weights of `model` do not change by a bit."""
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    for name, module in model.text_model.named_modules():
        if hasattr(module, "get_delta_weight"):
            key = f"text_model.{name}.weight"
            state[key] = state[key] + module.get_delta_weight("default").detach().to(state[key].dtype)
    return state
