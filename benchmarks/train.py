"""
Measures a training step: transformers' parts joined in the plainest way, against RGMC.

    python -m benchmarks.train
    python -m benchmarks.train --device cuda --batch_sizes 32 128 256

prints a table per batch size and writes `benchmarks/results/train-<device>.json`. All data is generated; nothing is
downloaded. The models are HTSAT-base and GPT-2 small with random weights and 10 prefix vectors. Candidates and captions
have 8 to 40 tokens, and log-mels are in float16, as the cache stores them.

(a) is `ClapAudioModelWithProjection` and `GPT2LMHeadModel` in float32 with eager attention. Candidates and captions are
each padded to the longest of the batch, all positions get logits, and `torch.optim.Adam` has its defaults. (b) is
`RGMCModel` in float32 and under bfloat16 autocast. The model chooses its attention, candidate and caption are joined
before they are padded, only the captions' positions get logits, and the optimizer is `torch.optim.Adam(fused=True)`. On
the same weights and batch, without dropout, both must have the same loss. TF32 is off.

The variants take turns, and the median of the rounds counts. The step is timed as a whole; its parts are timed in
another step that waits for the device between them, so that their sum can be larger. TFLOP/s count what the batch
needs, 3 times the forward pass of (b), for all variants. The peak is that of a large matrix product in the same type.
"""

from clips import threads  # noqa: F401

# isort: split
import json
import os
import platform
import sys
import time
from argparse import ArgumentParser, BooleanOptionalAction
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import ClapAudioModelWithProjection, GPT2LMHeadModel

from configuration_rgmc import RGMCConfig
from layers_rgmc import RGMCMapper
from modeling_rgmc import RGMCModel
from training.building import enable_checkpointing
from training.throughput import forward_flops, matrix_peak

RESULTS = Path(__file__).parent / "results"
PARTS = ("encoder", "decoder", "optimizer", "data")


# -- the two models ---------------------------------------------------------------------------------------------------


class PlainModel(nn.Module):
    """(a): the same computation and the same weight names, from transformers' own parts."""

    def __init__(self, config: RGMCConfig):
        super().__init__()
        self.audio_tower = ClapAudioModelWithProjection._from_config(config.audio_config, attn_implementation="eager")
        self.mapper = RGMCMapper(config)
        self.text_model = GPT2LMHeadModel._from_config(config.text_config, attn_implementation="eager")
        self.text_model.loss_type = "ForCausalLM"

    def embed_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.audio_tower(input_features=input_features.float()).audio_embeds, dim=-1)

    def forward(self, audio_embeds, input_ids, attention_mask, labels):
        prefix = self.mapper(audio_embeds)
        inputs_embeds = torch.cat([prefix, self.text_model.get_input_embeddings()(input_ids)], dim=1)
        attention_mask = torch.cat([attention_mask.new_ones(prefix.shape[:2]), attention_mask], dim=1)
        return self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
            labels=torch.cat([labels.new_full(prefix.shape[:2], -100), labels], dim=1),
        )


def make_batches(config: RGMCConfig, size: int, seed: int, pin: bool) -> tuple[dict, dict]:
    """Makes batches of the same clips for (a) and for (b), on the CPU."""
    random = np.random.default_rng(seed)
    candidates, captions = (
        [
            torch.from_numpy(random.integers(0, config.text_config.vocab_size - 1, int(length)))
            for length in random.gamma(4, 5, size).round().clip(8, 40)
        ]
        for _ in range(2)
    )
    eos = torch.tensor([config.separator_token_id])
    candidates, captions = ([torch.cat([row, eos]) for row in rows] for rows in (candidates, captions))
    log_mels = torch.from_numpy(random.normal(-30, 15, (size, 1, 1001, 64)).astype(np.float16))

    def pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ones = [[torch.ones_like(row) for row in rows] for rows in (candidates, captions)]
    unlearned = [torch.full_like(row, -100) for row in candidates]
    plain = {
        "input_features": log_mels,
        "input_ids": torch.cat([pad(candidates, int(eos)), pad(captions, int(eos))], dim=1),
        "attention_mask": torch.cat([pad(ones[0], 0), pad(ones[1], 0)], dim=1),
        "labels": torch.cat([pad(unlearned, -100), pad(captions, -100)], dim=1),
    }
    ours = {
        "input_features": log_mels,
        "input_ids": pad([torch.cat(row) for row in zip(candidates, captions)], int(eos)),
        "attention_mask": pad([torch.cat(row) for row in zip(*ones)], 0),
        "labels": pad([torch.cat(row) for row in zip(unlearned, captions)], -100),
        "max_label_length": max(map(len, captions)),
    }
    if pin:
        ours = {name: value.pin_memory() if torch.is_tensor(value) else value for name, value in ours.items()}
    return plain, ours


# -- a step -----------------------------------------------------------------------------------------------------------


class Variant:
    def __init__(self, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype, device: str):
        self.name, self.model, self.optimizer, self.dtype, self.device = name, model, optimizer, dtype, device

    def move(self, batch: dict) -> dict:
        return {
            name: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16) if self.dtype == torch.bfloat16 else nullcontext()

    def loss(self, input_features: torch.Tensor, **batch) -> torch.Tensor:
        with self.autocast():
            return self.model(audio_embeds=self.model.embed_audio(input_features), **batch).loss

    def step(self, batch: dict) -> dict[str, float]:
        clock = Clock(self.device)
        self.loss(**self.move(batch)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        clock.lap("step")
        return clock.seconds

    def step_in_parts(self, batch: dict) -> dict[str, float]:
        """Times the parts of the same step, cut at the embeddings."""
        clock = Clock(self.device)
        batch = self.move(batch)
        clock.lap("data")
        with self.autocast():
            embeds = self.model.embed_audio(batch.pop("input_features"))
        clock.lap("encoder")
        leaf = embeds.detach().requires_grad_()
        with self.autocast():
            loss = self.model(audio_embeds=leaf, **batch).loss
        loss.backward()
        clock.lap("decoder")
        embeds.backward(leaf.grad)
        clock.lap("encoder")
        self.optimizer.step()
        self.optimizer.zero_grad()
        clock.lap("optimizer")
        return clock.seconds

    def resident_bytes(self) -> int:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


class Clock:
    def __init__(self, device: str):
        self.device, self.seconds = device, {}
        self.start = self.now()

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self, name: str):
        now = self.now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.start
        self.start = now


def peak_of_step(variant: Variant, batch: dict) -> float | None:
    """Measures the GB that a step of this variant alone needs, with its weights and optimizer; None on the CPU."""
    if variant.device != "cuda":
        return None
    others = torch.cuda.memory_allocated() - variant.resident_bytes()
    torch.cuda.reset_peak_memory_stats()
    variant.step(batch)
    return (torch.cuda.max_memory_allocated() - others) / 1e9


# -- measurements -----------------------------------------------------------------------------------------------------


def check_same_loss(plain: Variant, ours: Variant, batches: tuple[dict, dict]) -> tuple[float, float]:
    plain.model.load_state_dict(ours.model.state_dict())
    losses = []
    for variant, batch in zip((plain, ours), batches):
        variant.model.eval()  # no dropout, no masked stripes
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            losses.append(float(variant.loss(**variant.move(batch))))
        variant.model.train()
    if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[0]):
        raise RuntimeError(f"On the same weights and batch, (a) has the loss {losses[0]} but (b) {losses[1]}")
    return tuple(losses)


def take_turns(work: dict[str, tuple[Variant, dict]], rounds: int) -> dict[str, dict]:
    """Returns median seconds of a step and its parts for each variant, or None if it runs out of memory."""
    times = {name: [] for name in work}
    peaks = {}
    for number in range(rounds + 1):
        for name, (variant, batch) in work.items():
            if times[name] is None:
                continue
            try:
                if number == 0:  # warm-up: also the optimizer's state, kernels and compilation
                    variant.step(batch)
                    variant.step_in_parts(batch)
                    peaks[name] = peak_of_step(variant, batch)
                else:
                    times[name].append({**variant.step(batch), **variant.step_in_parts(batch)})
            except torch.OutOfMemoryError:
                times[name] = None
                variant.optimizer.zero_grad()
                torch.cuda.empty_cache()
    return {
        name: laps
        and {part: float(np.median([lap[part] for lap in laps])) for part in ("step", *PARTS)}
        | {"peak_memory_gb": peaks[name], "steps": [lap["step"] for lap in laps]}
        for name, laps in times.items()
    }


def measure(variants: list[Variant], config: RGMCConfig, size: int, args, peaks: dict) -> dict:
    plain_batch, batch = make_batches(config, size, args.seed, pin=args.device == "cuda")
    plain, ours = variants[:2]
    losses = check_same_loss(plain, ours, (plain_batch, batch))
    encoder_flops, decoder_flops = (3 * flops for flops in forward_flops(config, batch))
    flops = encoder_flops + decoder_flops
    times = take_turns(
        {variant.name: (variant, plain_batch if variant is plain else batch) for variant in variants}, args.rounds
    )
    print(
        f"\n{size} clips a step; positions of the decoder: (a) {10 + plain_batch['labels'].shape[1]}, "
        f"(b) {10 + batch['labels'].shape[1]}, {batch['max_label_length']} of them with logits; "
        f"{flops / size / 1e9:.1f} GFLOP a clip (encoder {encoder_flops / size / 1e9:.1f})"
    )
    print(f"Loss on the same weights, without dropout: {losses[0]:.6f} (a), {losses[1]:.6f} (b)")
    columns = ("clips/s", "step ms", *(f"{part} ms" for part in PARTS), "TFLOP/s", "of peak", "GB", "ratio")
    print(f"{'':22}" + "".join(f"{column:>13}" for column in columns))
    results = {"losses": losses, "gflop_per_clip": flops / size / 1e9}
    results["encoder_gflop_per_clip"] = encoder_flops / size / 1e9
    for variant in variants:
        found = times[variant.name]
        if found is None:
            print(f"{variant.name:22}{'out of memory':>13}")
            results[variant.name] = None
            continue
        rate = flops / found["step"] / 1e12
        base = times[plain.name]
        found |= {"clips_per_s": size / found["step"], "tflops": rate, "of_peak": rate / peaks[variant.dtype]}
        found["ratio"] = base and base["step"] / found["step"]
        memory, ratio = found["peak_memory_gb"], found["ratio"]
        print(
            f"{variant.name:22}{found['clips_per_s']:13.2f}"
            + "".join(f"{found[part] * 1000:13.1f}" for part in ("step", *PARTS))
            + f"{rate:13.3f}{found['of_peak']:13.1%}"
            + (f"{memory:13.1f}" if memory else f"{'-':>13}")
            + (f"{ratio:13.2f}" if ratio else f"{'-':>13}")
        )
        results[variant.name] = found
    return results


# -- main -------------------------------------------------------------------------------------------------------------


def build_variants(config: RGMCConfig, args) -> list[Variant]:
    torch.manual_seed(args.seed)
    model = RGMCModel(config).to(args.device)
    # The statistics of the synthetic log-mels, so that the encoder sees numbers as of music.
    model.set_log_mel_statistics(torch.tensor(-30.0), torch.tensor(225.0))
    plain = PlainModel(RGMCConfig()).to(args.device)
    if args.gradient_checkpointing:
        enable_checkpointing(model)
    if args.compile:
        model.audio_tower.compile()
        model.text_model.compile()
    slow = torch.optim.Adam(plain.parameters(), lr=1e-5)
    fused = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    return [
        Variant("(a) plain float32", plain.train(), slow, torch.float32, args.device),
        Variant("(b) RGMC float32", model.train(), fused, torch.float32, args.device),
        Variant("(b) RGMC bfloat16", model, fused, torch.bfloat16, args.device),
    ]


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="Clips per step (4 on the CPU, 32 on a GPU).")
    parser.add_argument("--rounds", type=int, help="Timed steps of each variant (5 on the CPU, 10 on a GPU).")
    parser.add_argument("--compile", action=BooleanOptionalAction, default=False, help="Compile (b)'s parts.")
    parser.add_argument("--gradient_checkpointing", action=BooleanOptionalAction, default=False, help="In (b) only.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.batch_sizes = args.batch_sizes or [32 if on_gpu else 4]
    args.rounds = args.rounds or (10 if on_gpu else 5)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtypes = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    product = {"size": 8192, "loops": 10, "rounds": 5} if on_gpu else {"size": 2048, "loops": 3, "rounds": 5}
    peaks = {dtype: matrix_peak(args.device, dtype, **product) / 1e12 for dtype in dtypes}
    print("Peak of a matrix product: " + ", ".join(f"{peaks[d]:.3f} TFLOP/s in {name}" for d, name in dtypes.items()))
    config = RGMCConfig()
    variants = build_variants(config, args)
    results = {
        "command": " ".join(["python -m benchmarks.train", *sys.argv[1:]]),
        "machine": machine(args.device),
        "rounds": args.rounds,
        "peak_tflops": {name: peaks[dtype] for dtype, name in dtypes.items()},
        "batch_sizes": {str(size): measure(variants, config, size, args, peaks) for size in args.batch_sizes},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"train-{args.device}.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def machine(device: str) -> dict:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    facts = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    facts["python"] = platform.python_version()
    return facts | {name: version(name) for name in ("torch", "transformers", "numpy")}


if __name__ == "__main__":
    main()
