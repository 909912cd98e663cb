"""How much of a device a training uses: counts its operations and measures the device's peak."""

import time

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from baselines.baseline_rgmc import BaselineModel
from clips.features import ClipFeatures
from configuration_rgmc import RGMCConfig
from modeling_rgmc import RGMCModel


def forward_flops(config: RGMCConfig, batch: dict) -> tuple[float, float]:
    """
    Counts the operations (2 per multiply-add) of a forward pass over `batch`: those of the encoder, and those of mapper
    and decoder together. The pass uses tensors without data and eager attention, because the counter does not know
    every device's fused kernel.
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


def baseline_flops(model: BaselineModel | RGMCModel, input_features: torch.Tensor, length: int) -> float:
    """Counts the operations of a baseline's forward pass over clips with captions of `length` tokens."""
    input_ids = torch.zeros(len(input_features), 1 + length, dtype=torch.long, device=model.device)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_features, input_ids)
    return float(counter.get_total_flops())


def matrix_peak(device: str | torch.device, dtype: torch.dtype, size: int, loops: int = 3, rounds: int = 3) -> float:
    """Measures a square matrix product, in operations per second: the best of `rounds` rounds of `loops` products."""
    generator = torch.Generator(device).manual_seed(0)  # drawing from the global one would change the training
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


def count_flops(model: RGMCModel, train: ClipFeatures, caption_ids: list[list[int]]) -> float:
    """Counts the operations per clip, forward and backward, with captions and candidates of mean length."""
    length = round(np.mean([len(tokens) for tokens in caption_ids]))
    if model.datastore_class is None:
        return 3 * baseline_flops(model, train.read([0]), length)
    labels = torch.zeros(1, (model.config.num_candidates * model.config.uses_candidate + 1) * length, dtype=torch.long)
    labels[:, :-length] = -100
    batch = {"input_features": train.read([0]), "input_ids": labels, "labels": labels, "max_label_length": length}
    counts = forward_flops(model.config, batch)
    trained = [
        all(weight.requires_grad for weight in part.parameters()) for part in (model.audio_tower, model.text_model)
    ]
    # Gradients of inputs and of weights each cost as much as the forward pass; a frozen decoder only needs the first.
    encoder = (3 if trained[0] else 1) * model.config.uses_audio
    return counts[0] * encoder + counts[1] * (3 if trained[1] else 2)


def measure_peak(accelerator: Accelerator) -> float:
    """
    Measures how many operations per second the devices together reach in a matrix product.

    The best of several sizes counts, in the training's precision and in float32, which autocast keeps for some layers.
    On a CPU, products that fit into its cache may be four times as fast as larger ones, and small ones may be far
    slower in bfloat16 than in float32.
    """
    dtypes = {"bf16": [torch.bfloat16], "fp16": [torch.float16]}.get(accelerator.mixed_precision, [])
    sizes = (256, 512, 1024) if accelerator.device.type == "cpu" else (4096, 8192)
    kinds = [(dtype, size) for dtype in (torch.float32, *dtypes) for size in sizes]
    return accelerator.num_processes * max(matrix_peak(accelerator.device, *kind) for kind in kinds)
