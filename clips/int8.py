"""Quantises the decoder of a loaded model to int8, by torchao."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from modeling_rgmc import RGMCModel


def quantize_decoder(model: RGMCModel):
    """
    Stores the weights of the decoder's linear layers as int8 in place, with a scale for each output. The output layer,
    which may share its weights with the embeddings, stays as it is, and so do embeddings, norms and biases, and all
    other parts of the model. It then captions, but it cannot be trained or saved.

    Raises:
        `ImportError`: If torchao is missing.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    decoder, head = model.text_model, model.get_output_embeddings()
    for name, module in [*decoder.named_modules()]:
        if isinstance(module, Conv1D):  # GPT-2's linear layer, which torchao does not know
            decoder.set_submodule(name, _as_linear(module))
    quantize_(decoder, Int8WeightOnlyConfig(), lambda module, _: isinstance(module, nn.Linear) and module is not head)


def decoder_size(model: RGMCModel) -> int:
    """The bytes of the decoder's weights, shared ones once."""
    weights = {id(weight): weight for weight in model.text_model.state_dict(keep_vars=True).values()}
    return sum(_size(weight) for weight in weights.values())


def _size(weight: torch.Tensor) -> int:
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    return sum(_size(getattr(weight, name)) for name in weight.__tensor_flatten__()[0])


def _as_linear(module: Conv1D) -> nn.Linear:
    linear = nn.Linear(module.nx, module.nf, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return linear.train(module.training)
