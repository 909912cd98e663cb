"""
Trains RGMC (sections 3 and 4 of the paper).

    accelerate launch train.py configs/demo.yaml
    accelerate launch train.py configs/small.yaml --dataset my_music --output_dir outputs/my_music
    accelerate launch train.py --dataset my_music --output_dir outputs/my_music --text_model openai-community/gpt2
    accelerate launch train.py <as before> --resume_from_checkpoint last

Options come from a yaml file and from the command line, which wins. `--text_config.n_layer 4` sets one entry of a
configuration.
"""

from clips import threads  # noqa: F401

# isort: split
import copy
import hashlib
import json
import math
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device, set_seed
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from clips.batches import Candidate, CandidateSampling, TeacherForcingCollator, load_batches, plan_epoch
from clips.embedding import build_datastore, datastore_rows, whole_encoder
from clips.features import ClipFeatures
from clips.locks import only_run
from clips.options import user_errors
from eval import EvaluationArguments, evaluate_checkpoint
from evaluation.threshold import score_threshold, store_threshold
from modeling_rgmc import RGMCModel
from processing_rgmc import RGMCProcessor
from retrieval_rgmc import CaptionDatastore
from search_rgmc import check_search
from training import baselines, building
from training.arguments import (
    DROPOUTS,
    SHARES,
    DataArguments,
    ModelArguments,
    TrainingArguments,
    parse_arguments,
    refresh_interval,
)
from training.building import build_optimizer, enable_checkpointing, label_words, prepare_data
from training.checkpoints import (
    TrainingState,
    begin_run,
    end_former_run,
    end_run,
    load_state,
    prepare_output,
    push_model,
    run_card,
    run_settings,
    save_model,
    save_state,
)
from training.checks import caption_rule, check_arguments, check_paths
from training.devices import start_accelerator
from training.lora import merged_state_dict
from training.refresh import Neighbors, find_neighbors, write_neighbors
from training.text_pretraining import pretrain_decoder
from training.throughput import count_flops, measure_peak

# -- 1. the parts of a run ---------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What the training steps need, and the state they change."""

    arguments: tuple[ModelArguments, DataArguments, TrainingArguments]
    accelerator: Accelerator
    model: RGMCModel
    wrapped: torch.nn.Module  # the same weights, as accelerate runs them
    saved: RGMCModel  # the model to save: `model`, or a copy on the CPU that gathers what FSDP has sharded
    processor: RGMCProcessor
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    train: ClipFeatures
    validation: ClipFeatures
    rows: Dataset  # the datastore's: id, caption and its tokens
    caption_ids: list[list[int]]
    word_labels: torch.Tensor | None  # of the training captions, for the word head
    validation_ids: list[list[int]]
    state: TrainingState
    settings: dict  # must be the same when the run is resumed
    flops_per_clip: float  # forward and backward
    peak_flops: float  # per second, of a matrix product on all devices
    datastore: CaptionDatastore | None = None  # None when the encoder has changed since it was built
    recall: dict[str, float] = field(default_factory=dict)  # of the validation clips, by the refresh of the epoch
    stop_requested: bool = False

    @property
    def args(self) -> TrainingArguments:
        return self.arguments[2]

    @property
    def retrieves(self) -> bool:
        """Whether the model has a datastore. A baseline has none."""
        return self.model.datastore_class is not None

    @property
    def embedding_batch_size(self) -> int:
        return self.args.micro_batch_size or math.ceil(self.args.batch_size / self.accelerator.num_processes)

    @property
    def is_over(self) -> bool:
        state, args = self.state, self.args
        impatient = state.epoch - 1 - state.best_epoch >= args.patience
        return state.epoch > args.num_train_epochs or impatient or state.step >= (args.max_steps or math.inf)

    def candidates(self, neighbors: np.ndarray, similarities: np.ndarray) -> list[list[Candidate]]:
        """The candidates of each clip from the row numbers of its songs, and their similarities."""
        if not self.model.config.uses_candidate:
            return [[]] * len(neighbors)
        tokens = self.rows["input_ids"][:]
        pairs = (zip(*of_clip) for of_clip in zip(neighbors, similarities.tolist()))
        return [[(tokens[row], similarity) for row, similarity in own if row >= 0] for own in pairs]

    def validation_collator(self) -> TeacherForcingCollator:
        neighbors = self.state.neighbors
        candidates = self.candidates(neighbors.validation, neighbors.validation_similarities)
        return TeacherForcingCollator(self.validation, self.validation_ids, candidates, self.processor)

    def training_collator(self) -> TeacherForcingCollator:
        """The collator of the current epoch, which may draw candidates and change the sound."""
        args, neighbors, seed = self.args, self.state.neighbors, (self.args.seed, self.state.epoch)
        options = {"word_labels": self.word_labels}
        if args.samples_candidates:
            shares = {name: getattr(args, name) for name in SHARES}
            options["sampling"] = CandidateSampling(self.model.config.num_candidates, seed, **shares)
            options["caption_candidates"] = self.rows["input_ids"][:]
            options["random_candidates"] = self.candidates(neighbors.random, neighbors.random_similarities)
        if args.augment_audio:
            options["augment_seed"] = seed
        candidates = self.candidates(neighbors.train, neighbors.train_similarities)
        return TeacherForcingCollator(self.train, self.caption_ids, candidates, self.processor, **options)


# -- 2. an epoch ------------------------------------------------------------------------------------------------------


def train_epoch(run: Run):
    """
    Trains the rest of the current epoch, up to `--max_steps` at most.

    Raises:
        `SystemExit`: After a request to stop. The run can be resumed.
    """
    args, accelerator, state = run.args, run.accelerator, run.state
    order = np.random.default_rng([args.seed, state.epoch]).permutation(len(run.train))
    lengths = np.array([len(tokens) for tokens in run.caption_ids])
    steps = plan_epoch(order, lengths, args.batch_size, args.micro_batch_size, accelerator)
    collator = run.training_collator()
    batches = iter(load_batches(steps[state.step_in_epoch :], collator, args.dataloader_num_workers))
    run.wrapped.train()
    done = min(state.step_in_epoch * args.batch_size, len(order))
    progress = tqdm(
        total=len(order),
        initial=done,
        desc=f"Epoch {state.epoch}",
        unit="clip",
        disable=not accelerator.is_main_process,
    )
    logged_at, clips_since = time.perf_counter(), 0
    measured = {"prefix_loss": True} if args.prefix_embedding_weight else {}
    for step in steps[state.step_in_epoch :]:
        clips = order[state.step_in_epoch * args.batch_size :][: args.batch_size]
        tokens = int(lengths[clips].sum())
        for index in range(len(step)):
            batch = send_to_device(next(batches), accelerator.device, non_blocking=True)
            last = index == len(step) - 1
            with nullcontext() if last else accelerator.no_sync(run.wrapped):
                # Divided once, by all tokens of the step, because the processes' gradients are averaged.
                with accelerator.autocast():  # accelerate does this in `forward`, but not under FSDP
                    outputs = run.wrapped(**batch, **measured, num_items_in_batch=tokens / accelerator.num_processes)
                word_loss = args.word_loss_weight * outputs.word_loss if args.word_loss_weight else 0.0
                prefix_loss = args.prefix_embedding_weight * outputs.prefix_loss if measured else 0.0
                accelerator.backward(outputs.loss + word_loss + prefix_loss)
            state.losses += outputs.loss.detach() * (tokens / accelerator.num_processes)
        state.step += 1
        state.step_in_epoch += 1
        state.tokens = [count + tokens for count in state.tokens]
        log_now = state.step % args.logging_steps == 0
        norm = None
        if args.max_grad_norm is not None or log_now:
            norm = accelerator.clip_grad_norm_(run.model.parameters(), args.max_grad_norm or math.inf)
        learning_rates = run.scheduler.get_last_lr()
        run.optimizer.step()
        if args.lr_scheduler_type != "reduce_lr_on_plateau":
            run.scheduler.step()
        run.optimizer.zero_grad()
        progress.update(len(clips))
        clips_since += len(clips)
        if log_now:
            loss = float(accelerator.reduce(state.losses, "sum")[1]) / state.tokens[1]
            state.losses[1], state.tokens[1] = 0, 0
            seconds = time.perf_counter() - logged_at
            clips_per_second = clips_since / seconds
            values = {
                "step": state.step,
                "loss": loss,
                "learning_rate": learning_rates[-1],
                "grad_norm": float(norm),
                "clips_per_second": clips_per_second,
                "tflops_per_second": clips_per_second * run.flops_per_clip / 1e12,
                "mfu": clips_per_second * run.flops_per_clip / run.peak_flops,
            }
            logged_at, clips_since = time.perf_counter(), 0
            progress.set_postfix(loss=f"{loss:.3f}")
            write_log(run, values)
        stops = stops_now(run, log_now)
        ends_within = state.step >= (args.max_steps or math.inf) and state.step_in_epoch < len(steps)
        if stops or ends_within or (args.save_steps and state.step % args.save_steps == 0):
            save_state(Path(args.output_dir), accelerator, state, run.settings, args.save_total_limit)
        if stops:
            progress.close()
            accelerator.print(f"Stopped as asked after step {state.step}; resume it with --resume_from_checkpoint last")
            raise SystemExit(128 + signal.SIGTERM)
        if state.step >= (args.max_steps or math.inf):
            break
    progress.close()


def stops_now(run: Run, log_now: bool) -> bool:
    """Whether the processes agree to stop. Several only ask each other when they log, because it takes time."""
    if run.accelerator.num_processes == 1:
        return run.stop_requested
    if run.stop_requested:
        run.accelerator.set_trigger()
    run.stop_requested = log_now and run.accelerator.check_trigger()
    return run.stop_requested


@torch.no_grad()
def validation_loss(run: Run) -> float:
    """Computes the mean cross entropy per token, the same on every process: sums over tokens, divided once."""
    accelerator, batch_size = run.accelerator, run.embedding_batch_size
    own = list(range(accelerator.process_index, len(run.validation), accelerator.num_processes))
    share = math.ceil(len(run.validation) / accelerator.num_processes)  # the last batch may be empty: FSDP needs it
    steps = [[own[start : start + batch_size]] for start in range(0, share, batch_size)]
    collator = run.validation_collator()
    total = torch.zeros((), device=accelerator.device)
    run.model.eval()
    for batch in load_batches(steps, collator, run.args.dataloader_num_workers):
        with accelerator.autocast():
            total += run.model(**send_to_device(batch, accelerator.device), num_items_in_batch=1).loss
    return float(accelerator.reduce(total, "sum")) / sum(map(len, run.validation_ids))


def end_epoch(run: Run, seconds: float):
    """
    Refreshes the neighbours, validates, logs, and saves checkpoints.

    The neighbours looked up after an epoch are those for the start of the next one (section 3.2). The encoder behind
    them is the same that a checkpoint saved now holds.
    """
    args, accelerator, state = run.args, run.accelerator, run.state
    output_dir = Path(args.output_dir)
    former, run.recall = state.neighbors, {}
    if any(weight.requires_grad for weight in run.model.audio_tower.parameters()):
        run.datastore = None  # the encoder has changed
        interval = refresh_interval(args.refresh)
        if interval and state.epoch % interval == 0:
            refresh(run)
    held_out_loss = validation_loss(run)
    if args.lr_scheduler_type == "reduce_lr_on_plateau":
        run.scheduler.step(held_out_loss)
    neighbors = (
        {
            "neighbor_similarity": float(former.train_similarities[former.train >= 0].mean()),
            "neighbors_changed": float((former.train != state.neighbors.train).mean()),
        }
        if run.retrieves
        else {}
    )
    values = {
        "step": state.step,
        "epoch": state.epoch,
        "loss": float(accelerator.reduce(state.losses, "sum")[0]) / state.tokens[0],
        "validation_loss": held_out_loss,
        **neighbors,
        **run.recall,
        "processes": accelerator.num_processes,
        "seconds": seconds,
    }
    samples = sample_captions(run)
    write_log(run, {**values, "samples": samples})
    if accelerator.is_main_process:
        tqdm.write("  ".join(f"{name} {value:.4g}" for name, value in values.items()))
        for sample in samples:
            # As it is scored. A model that has not learned to spell yet writes bytes that are not letters.
            caption = run.processor.normalize(sample["caption"])
            tqdm.write(f"  {sample['id']}: {caption or '(no words)'}")
    complete = state.step_in_epoch * args.batch_size >= len(run.train)  # not cut short by --max_steps
    if held_out_loss < state.best_loss:
        state.best_loss, state.best_epoch = held_out_loss, state.epoch
        save_best(run)
    state.epoch, state.step_in_epoch = state.epoch + 1, 0
    state.losses[0], state.tokens[0] = 0, 0
    if complete and not args.save_steps:
        save_state(output_dir, accelerator, state, run.settings, args.save_total_limit)


def refresh(run: Run):
    """Rebuilds the datastore and looks the neighbours of every song up again, by the current encoder."""
    args, batch_size = run.args, run.embedding_batch_size
    if not run.retrieves:
        run.state.neighbors = Neighbors.none(len(run.train), len(run.validation))
        return
    embedding = (run.train, run.rows, run.accelerator, batch_size, args.string_factory)
    run.datastore = build_datastore(run.model, *embedding, search_parameters=args.search_parameters)
    searching = (run.datastore, run.train, run.validation, run.accelerator, batch_size)
    seed = (args.seed, run.state.epoch) if args.random_candidate else None
    run.state.neighbors, run.recall = find_neighbors(run.model, *searching, args.candidate_pool, seed)


@torch.no_grad()
def sample_captions(run: Run) -> list[dict[str, str]]:
    """Captions the first validation clips, and returns captions, references and candidates."""
    count = min(run.args.num_sample_captions, len(run.validation))
    if count == 0:
        return []
    run.model.eval()
    neighbors = run.state.neighbors.validation[:count]
    found = [[run.rows[int(row)]["caption"] for row in rows if row >= 0] for rows in neighbors]
    scores = [own[: len(rows)] for own, rows in zip(run.state.neighbors.validation_similarities.tolist(), found)]
    prompts = run.processor(candidates=found, similarities=scores) if run.model.config.uses_candidate else {}
    log_mels = run.validation.read(list(range(count))).to(run.accelerator.device)
    with run.accelerator.autocast(), whole_encoder(run.model):
        tokens = run.model.generate(
            input_features=log_mels, synced_gpus=run.accelerator.is_fsdp2, selection="best", **prompts
        )
    captions = run.processor.batch_decode(tokens, skip_special_tokens=True)
    return [
        {
            "id": run.validation.ids[row],
            "caption": captions[row],
            "reference": run.validation.captions[row][0],
            "candidates": found[row],
        }
        for row in range(count)
    ]


def write_log(run: Run, values: dict):
    """Appends a line to `log.jsonl`, and sends numbers and sample captions to the trackers."""
    if run.accelerator.is_main_process:
        with (Path(run.args.output_dir) / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
    prefix = "epoch" if "epoch" in values else "train"
    tracked = {f"{prefix}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
    tracked = {name.replace("@", "_at_"): value for name, value in tracked.items()}  # MLflow refuses an @
    for sample in values.get("samples", ()):
        tracked[f"sample/{sample['id']}"] = sample["caption"]
    run.accelerator.log(tracked, step=run.state.step)


def save_best(run: Run):
    """Saves the best model so far as the checkpoint, with a datastore of the same encoder."""
    args, output_dir = run.args, Path(run.args.output_dir)
    if run.datastore is None and run.retrieves:
        embedding = (run.train, run.rows, run.accelerator, run.embedding_batch_size, args.string_factory)
        run.datastore = build_datastore(run.model, *embedding, search_parameters=args.search_parameters)
    weights = run.accelerator.get_state_dict(run.wrapped) if run.accelerator.is_fsdp2 else None
    if run.accelerator.is_main_process:
        if weights is not None:
            run.saved.load_state_dict(weights)
        run.saved.set_datastore(run.datastore)
        run.saved.config.datastore_rows = len(run.datastore or ())
        card = run_card(run.arguments, run.saved.config, run.state.best_loss, run.state.best_epoch)
        merged = merged_state_dict(run.saved) if run.arguments[0].lora_r else None
        save_model(output_dir, run.saved, run.processor, card, state_dict=merged)
        end_former_run(output_dir)
        run.saved.set_datastore(None)
        if args.push_to_hub and args.hub_strategy == "every_save":
            push_model(output_dir, args.hub_model_id, args.hub_private_repo)
    run.accelerator.wait_for_everyone()


# -- 3. main ----------------------------------------------------------------------------------------------------------


def start_run(arguments: tuple, accelerator: Accelerator, checkpoint: Path | None) -> Run:
    """Makes everything that the steps need, at the start of the training or in the state of `checkpoint`."""
    model_args, data_args, args = arguments
    model_args.caption_normalization = caption_rule(model_args)
    rule = model_args.caption_normalization
    parts = baselines if model_args.baseline else building
    train, validation = prepare_data(data_args, args, accelerator, parts.build_feature_extractor(model_args), rule)
    captions = [captions[0] for captions in train.captions]
    processor = parts.build_processor(model_args, captions)
    model = parts.build_model(model_args, processor, train, predicts_words=args.word_loss_weight > 0)
    if not model_args.baseline:
        for name in DROPOUTS:
            setattr(model.config, name, getattr(args, name))
    saved = copy.deepcopy(model) if accelerator.is_fsdp2 and accelerator.is_main_process else model
    model = model.to(accelerator.device)
    if args.gradient_checkpointing:
        enable_checkpointing(model)
    if args.torch_compile:
        model.audio_tower.compile()
        model.text_model.compile()
    set_seed(args.seed, device_specific=True)
    caption_ids = [processor.encode_caption(caption) for caption in captions]
    rows = datastore_rows(train, processor)
    if model.datastore_class is not None:
        size = model.config.audio_config.projection_dim
        check_search(size, args.string_factory, "float32", args.search_parameters, len(rows))
    if args.text_pretraining_steps and not checkpoint:
        pretrain_decoder(model, captions, caption_ids, rows["input_ids"][:], args, accelerator)
    optimizer = build_optimizer(model, args)
    steps = math.ceil(len(train) / args.batch_size) * args.num_train_epochs
    steps = min(steps, args.max_steps or steps)
    plateau = {"factor": 0.5, "patience": 5} if args.lr_scheduler_type == "reduce_lr_on_plateau" else None
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, args.warmup_steps, steps, plateau)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    state = TrainingState(losses=torch.zeros(2, device=accelerator.device))
    accelerator.register_for_checkpointing(state, scheduler)
    clips = hashlib.sha256(json.dumps([train.ids, captions, validation.ids]).encode()).hexdigest()
    if len({*gather_object([clips])}) > 1:
        raise RuntimeError(
            "The processes read different clips, because some could not read files that others could: start again"
        )
    settings = run_settings(
        arguments,
        clips=clips,
        processes=accelerator.num_processes,
        distributed_type=str(accelerator.distributed_type),
        mixed_precision=accelerator.mixed_precision,  # also where accelerate's own setting chose it
        schedule_steps=None if args.lr_scheduler_type.startswith(("constant", "reduce")) else steps,
    )
    run = Run(
        arguments=arguments,
        accelerator=accelerator,
        model=model,
        wrapped=wrapped,
        saved=saved,
        processor=processor,
        optimizer=optimizer,
        scheduler=scheduler,
        train=train,
        validation=validation,
        rows=rows,
        caption_ids=caption_ids,
        word_labels=label_words(captions, model.config.words) if args.word_loss_weight else None,
        validation_ids=[processor.encode_caption(captions[0]) for captions in validation.captions],
        state=state,
        flops_per_clip=count_flops(model, train, caption_ids),
        peak_flops=measure_peak(accelerator),
        settings=settings,
    )
    if checkpoint:
        load_state(checkpoint, Path(args.output_dir), accelerator, state, run.settings)
    else:
        refresh(run)
    return run


def main(argv: list[str]):
    # 1. Options
    arguments = model_args, _, args = parse_arguments(argv, __doc__)
    check_arguments(model_args, args)
    check_paths(*arguments)
    accelerator = start_accelerator(args)
    with only_run(args.output_dir, f"--output_dir {args.output_dir}"):
        run_training(arguments, accelerator)


def run_training(arguments: tuple, accelerator: Accelerator):
    _, data_args, args = arguments
    checkpoint = prepare_output(args, accelerator)
    set_seed(args.seed)

    # 2. Data, model, and the first neighbours
    started = time.perf_counter()
    run = start_run(arguments, accelerator, checkpoint)
    state, output_dir = run.state, Path(args.output_dir)
    plain = (int, float, str)
    options = {name: value if isinstance(value, plain) else str(value) for name, value in run.settings.items()}
    accelerator.init_trackers("rgmc", options)
    if checkpoint:
        accelerator.print(f"Resumed from {checkpoint}: step {state.step}, epoch {state.epoch}")
    elif accelerator.is_main_process:
        begin_run(output_dir)

    # 3. Epochs. Schedulers announce the end of a job by SIGTERM: the run then ends after its current step
    def request_stop(number, frame):
        run.stop_requested = True

    former_handler = signal.signal(signal.SIGTERM, request_stop)
    try:
        while not run.is_over:
            if accelerator.is_main_process and run.retrieves:
                write_neighbors(output_dir / "neighbors.jsonl", run.train.ids, state.neighbors, state.epoch)
            epoch_started = time.perf_counter()
            train_epoch(run)
            end_epoch(run, time.perf_counter() - epoch_started)
    finally:
        signal.signal(signal.SIGTERM, former_handler)
    accelerator.wait_for_everyone()
    if state.best_epoch == 0:
        raise RuntimeError(
            "The validation loss was never finite, so no checkpoint was saved: try a smaller --learning_rate"
        )
    if accelerator.is_main_process:
        end_run(output_dir)
    accelerator.print(
        f"Trained in {(time.perf_counter() - started) / 60:.1f} minutes; {output_dir} holds epoch {state.best_epoch}, "
        f"validation loss {state.best_loss:.4f}"
    )

    # 4. The threshold of captions, the table of the test split, and the Hub
    if args.test_split:
        torch.set_float32_matmul_precision("highest")  # as in eval.py, which must print the same table
        if accelerator.is_main_process:
            finding = (run.validation, args.batch_size, accelerator.device)
            store_threshold(args.output_dir, score_threshold(args.output_dir, *finding))
        accelerator.wait_for_everyone()
        evaluate_checkpoint(
            EvaluationArguments(
                model=args.output_dir,
                dataset=data_args.dataset,
                output_dir=str(output_dir / "eval"),
                split=args.test_split,
                caption_column=data_args.caption_column,
                id_column=data_args.id_column,
                max_skipped=data_args.max_skipped,
                cache_dir=data_args.cache_dir,
                cache_dtype=data_args.cache_dtype,
                num_proc=data_args.num_proc,
                train_split=data_args.train_split,
                statistics_neighbor=data_args.max_train_samples is None,  # all log-mels have been read before
                # A first look without downloads and Java; eval.py computes the rest.
                masked=False,
                listening=False,
                meteor=False,
                clap_model=None,
                update_model_card=True,
            ),
            accelerator,
        )
    if args.push_to_hub and accelerator.is_main_process:
        push_model(output_dir, args.hub_model_id, args.hub_private_repo)
    accelerator.end_training()


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
