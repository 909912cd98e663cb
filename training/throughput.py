"""How much of a device a training uses: operations counted, and the rate of a matrix product measured."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from configuration_rgmc import RGMCConfig
from modeling_rgmc import RGMCModel


def forward_flops(config: RGMCConfig, batch: dict) -> tuple[float, float]:
    """
    Operations (2 per multiply-add) of the encoder, and of mapper and decoder, in a forward pass over `batch`. Counted
    on tensors without data, and in eager attention, because the counter does not know every device's fused kernel.
    """
    config = RGMCConfig.from_dict(config.to_dict())
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = RGMCModel(config).eval()
        embeds = torch.zeros(len(batch["input_ids"]), config.audio_config.projection_dim)
    batch = {name: value.to("meta") if torch.is_tensor(value) else value for name, value in batch.items()}
    input_features = batch.pop("input_features")
    counts = []
    with torch.no_grad():
        for part in (lambda: model.embed_audio(input_features), lambda: model(audio_embeds=embeds, **batch)):
            with FlopCounterMode(display=False) as counter:
                part()
            counts.append(float(counter.get_total_flops()))
    return tuple(counts)


def matrix_peak(device: str | torch.device, dtype: torch.dtype, size: int, loops: int = 3, rounds: int = 3) -> float:
    """Operations per second of a square matrix product, the best of several rounds of `loops` products."""
    generator = torch.Generator(device).manual_seed(0)  # the global one decides the training
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    times = []
    for _ in range(rounds + 1):
        _wait_for(device)
        started = time.perf_counter()
        for _ in range(loops):
            a @ b
        _wait_for(device)
        times.append((time.perf_counter() - started) / loops)
    return 2 * size**3 / min(times[1:])


def _wait_for(device: str | torch.device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
