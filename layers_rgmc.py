"""
Layers of the model: the audio encoder's attention by PyTorch's fused kernels, its SpecAugment, and the mapper.

Shape letters: `B` clips, `W` windows of a clip, `S` = 64 patches of a window, `C` channels, `H` heads, `T` mel frames,
`F` mel bins, `P` prefix vectors, `D` width of the language model.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.clap.modeling_clap import ClapAudioSelfAttention

try:
    from .configuration_rgmc import RGMCConfig
except ImportError:
    from configuration_rgmc import RGMCConfig


@dataclass
class RGMCOutput(CausalLMOutputWithPast):
    """
    Args:
        word_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            With `word_labels`: binary cross entropy of the words of the captions, summed over words and clips and
            divided as `loss` is.
        prefix_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            With `prefix_loss=True`: distance of the prefixes to the token embeddings ([`embedding_distance`]), summed
            over clips and divided as `loss` is.
    """

    word_loss: torch.FloatTensor | None = None
    prefix_loss: torch.FloatTensor | None = None


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


class RGMCMapper(nn.Module):
    """The mapping network `g` (section 3.1): a two-layer MLP from one audio embedding to `P` prefix vectors."""

    def __init__(self, config: RGMCConfig):
        super().__init__()
        embedding_size = config.audio_config.projection_dim
        text_size = config.text_config.hidden_size
        hidden_size = config.mapper_hidden_size or config.prefix_length * text_size // 2
        self.prefix_shape = (config.prefix_length, text_size)
        # The numbers of a unit vector are about 1 / sqrt(E); a linear layer's default initialisation expects about 1.
        self.input_scale = embedding_size**0.5
        self.linear1 = nn.Linear(embedding_size, hidden_size)
        self.activation = nn.Tanh()
        self.linear2 = nn.Linear(hidden_size, config.prefix_length * text_size)

    def forward(self, audio_embeds: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation(self.linear1(audio_embeds * self.input_scale))
        return self.linear2(hidden_states).unflatten(-1, self.prefix_shape)  # (B, P, D)


class RGMCWordHead(nn.Module):
    """Predicts which of `config.words` the caption of a clip has: a signal for the encoder that the paper lacks."""

    def __init__(self, config: RGMCConfig):
        super().__init__()
        self.input_scale = config.audio_config.projection_dim**0.5  # as in the mapper
        self.linear = nn.Linear(config.audio_config.projection_dim, len(config.words))

    def logits(self, audio_embeds: torch.Tensor) -> torch.Tensor:
        return self.linear((audio_embeds * self.input_scale).to(self.linear.weight.dtype)).float()  # (B, W)

    def forward(self, audio_embeds: torch.Tensor, word_labels: torch.Tensor) -> torch.Tensor:
        """
        Sums the binary cross entropy over embeddings `(B, E)` and labels `(B, W)`, 1 or 0, without those that are -100.
        """
        logits = self.logits(audio_embeds)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, word_labels.clamp(min=0), reduction="none")
        return (losses * word_labels.ne(-100)).sum()


def embedding_distance(prefix: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """
    The distance `(B,)` of prefixes `(B, P, D)` to the token embeddings `(V, D)`: the mean over the prefix vectors of 1
    minus their cosine to the nearest row. Only the prefixes get gradients.
    """
    prefix, table = prefix.float(), nn.functional.normalize(table.detach().float(), dim=-1)
    nearest = table[(prefix.detach() @ table.T).argmax(-1)]  # (B, P, D)
    return 1 - nn.functional.cosine_similarity(prefix, nearest, dim=-1).mean(1)


def mask_stripes(log_mels: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """
    Applies SpecAugment as LAION's HTS-AT does: in each clip of `(B, 1, T, F)`, 2 stripes of fewer than 64 frames and 2
    of fewer than 8 mel bins are set to the `mean` `(F,)`.
    """
    masked = torch.zeros_like(log_mels, dtype=torch.bool)  # (B, 1, T, F)
    for dim, width in ((2, 64), (3, 8)):
        size = log_mels.shape[dim]
        shape = [len(log_mels), 1, 1, 1]
        position = torch.arange(size, device=log_mels.device).view([-1 if axis == dim else 1 for axis in range(4)])
        for _ in range(2):
            length = torch.randint(0, min(width, size), shape, device=log_mels.device)
            start = (torch.rand(shape, device=log_mels.device) * (size - length)).long()
            masked |= (position >= start) & (position < start + length)
    return torch.where(masked, mean.to(log_mels.dtype), log_mels)


def label_positions(labels: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns the positions whose logits predict a label of `labels` `(B, L)`, in order, and these labels, each `(B, M)`
    with `M = length`. Rows with fewer labels are filled up with positions whose label is -100.
    """
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)  # what the logits of each position predict
    # Sorted and cut, because a selection has a size that depends on the values, and the CPU would wait for it.
    positions = targets.eq(-100).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]  # (B, M)
    return positions, targets.gather(1, positions)
