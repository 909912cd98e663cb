"""
Computes the attention of CLAP's audio encoder with PyTorch's fused kernels.

Shape letters: `B` clips, `W` windows of a clip, `S` = 64 patches of a window, `C` channels, `H` heads.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.clap.modeling_clap import ClapAudioSelfAttention


class RGMCAudioSelfAttention(ClapAudioSelfAttention):
    """
    Computes CLAP's window attention with `scaled_dot_product_attention`; the weights and their names are CLAP's.

    [`RGMCModel`] uses it in place of the original unless it is made with `attn_implementation="eager"` or
    `attn_implementation={"audio_config": "eager"}`. The original `forward` still runs when attentions are requested,
    and when the bias table is trained on the CPU: no fused kernel returns a gradient of the bias there, and PyTorch's
    fallback computes in float32 under bfloat16 autocast and is slower than the original.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = False,
    ) -> tuple[torch.Tensor, ...]:
        trains_bias = torch.is_grad_enabled() and self.relative_position_bias_table.requires_grad
        if output_attentions or (trains_bias and hidden_states.device.type == "cpu"):
            return super().forward(hidden_states, attention_mask, output_attentions)
        return (self.fused_forward(hidden_states, attention_mask),)

    def fused_forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attends within windows `(B * W, S, C)`; a shifted layer has an `attention_mask` of shape `(W, S, S)`."""
        layers = (self.query, self.key, self.value)
        weight = torch.cat([layer.weight for layer in layers])  # (3 * C, C): one product instead of three
        bias = None if self.query.bias is None else torch.cat([layer.bias for layer in layers])
        projected = nn.functional.linear(hidden_states, weight, bias)  # (B * W, S, 3 * C)
        query, key, value = projected.unflatten(-1, (3, self.num_attention_heads, -1)).permute(2, 0, 3, 1, 4)

        # `index_select`: on a GPU the gradient of plain indexing would sort the indices first.
        position_bias = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        position_bias = position_bias.T.unflatten(1, self.relative_position_index.shape)  # (H, S, S)
        if attention_mask is None:
            position_bias = position_bias.unsqueeze(0)  # the same for all windows: (1, H, S, S)
        else:
            # Windows count as heads, so that all clips share one mask: the kernels take four dimensions and broadcast
            # the mask over the first.
            windows = len(attention_mask)
            position_bias = (position_bias + attention_mask.unsqueeze(1)).flatten(0, 1).unsqueeze(0)
            query, key, value = (part.unflatten(0, (-1, windows)).flatten(1, 2) for part in (query, key, value))
        position_bias = position_bias.to(query.dtype).contiguous()
        # cuDNN's attention, which PyTorch may prefer on a GPU, takes a bias but silently returns no gradient for it.
        kernels = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(kernels) if position_bias.requires_grad else nullcontext():
            context = nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=position_bias, dropout_p=self.dropout.p if self.training else 0.0
            )
        if attention_mask is not None:
            context = context.unflatten(1, (windows, -1)).flatten(0, 1)  # (B * W, H, S, C / H)
        return context.transpose(1, 2).flatten(2)
