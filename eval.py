"""
Captions a split with a checkpoint and scores it in the paper's tables (sections 6 and 7).

    accelerate launch eval.py --model outputs/demo --dataset data/demo --output_dir outputs/demo/eval
    accelerate launch eval.py <as before> --table 3 4 --audio_only_model outputs/demo-audio --predictions ltu=ltu.jsonl
    accelerate launch eval.py <as before> --leakage outputs/leakage/leakage.json

The options are the fields of `EvaluationArguments`.
"""

from clips import threads  # noqa: F401

# isort: split
import json
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path

import evaluate
import torch
from accelerate import Accelerator
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoConfig

from audio_rgmc import load_audio
from clips.features import Split
from clips.locks import only_run
from clips.options import parse, user_errors
from clips.outputs import replaced_together
from clips.processes import make_accelerator
from clips.rows import load_captions
from configuration_rgmc import RGMCConfig
from evaluation.arguments import EvaluationArguments, check_paths
from evaluation.attributes import find_facts, read_attributes
from evaluation.baselines import BaselineCaptioner, add_baselines, measure_costs, read_baselines
from evaluation.captioning import Captioner
from evaluation.explaining import explanation_lines, measure_explanation, score_explanation
from evaluation.intervals import LEVEL
from evaluation.leak_free import read_leaks, score_without_leaks
from evaluation.listening import measure_listening, score_listening
from evaluation.neighbors import retrieve_by_encoders
from evaluation.oracle import best_captions
from evaluation.resamples import write_resamples
from evaluation.retrieval import score_retrieval
from evaluation.scoring import RULE_DESCRIPTIONS, load_metric, score_systems
from evaluation.seeds import add_checkpoint, check_same_configuration
from evaluation.systems import (
    OPTIONS,
    System,
    check_checkpoints,
    consensus_time,
    keys_of_rows,
    make_systems,
    read_predictions,
    rows_of,
)
from evaluation.word_sources import BIAS_FILE
from model_card_rgmc import from_scratch_warning
from reporting.attributes import format_attributes
from reporting.explaining import format_explanation
from reporting.listening import format_listening
from reporting.model_card import update_model_card, write_eval_results
from reporting.report import write_report
from reporting.results import METRIC_TITLES, EvaluationResults, Prediction
from reporting.retrieval import format_retrieval
from reporting.tables import draw_examples, format_caption_table, format_table

# A checkpoint's configuration is read with the code at hand, which needs no trust in the copy that the checkpoint
# carries.
AutoConfig.register(RGMCConfig.model_type, RGMCConfig, exist_ok=True)

PACKAGES = ["torch", "transformers", "accelerate", "datasets", "evaluate", "pycocoevalcap", "nltk", "numpy"]


def evaluate_checkpoint(args: EvaluationArguments, accelerator: Accelerator) -> EvaluationResults | None:
    """
    Writes `predictions.jsonl`, `results.json`, `report.md` and `report.html` to `args.output_dir`, prints the tables,
    and returns the results, on the main process. An interrupted run resumes with the clips that have no caption yet.
    """
    with only_run(args.output_dir, f"--output_dir {args.output_dir}"):
        accelerator.wait_for_everyone()
        return caption_and_score(args, accelerator)


def caption_and_score(args: EvaluationArguments, accelerator: Accelerator) -> EvaluationResults | None:
    output_dir = Path(args.output_dir)
    parts_dir = output_dir / "unfinished"

    # 1. The clips and the captions of other systems; what cannot work fails here, before hours of captioning
    checkpoints = {key: getattr(args, option.removeprefix("--")) for key, option in OPTIONS.items()}
    check_same_configuration(args.model)
    rule = check_checkpoints(args.model[0], checkpoints)
    baselines = read_baselines(args.baseline or [], rule, args.predictions or [])
    clap = load_clap(args, accelerator.device) if args.clap_model and accelerator.is_main_process else None
    lexicon = read_attributes(args.attributes, rule)
    watched = read_attributes(args.watched_words, rule, "--watched_words", BIAS_FILE) if args.explain else None
    load_split = partial(load_rows, args)
    validation = load_split(args.validation_split) if args.explain else None
    split = load_split(args.split, args.attribute_columns)
    leaks = read_leaks(args.leakage, args.split, split.rows) if args.leakage else None
    clips_of = {"split": split, "accelerator": accelerator, "batch_size": args.batch_size, "parts_dir": parts_dir}
    load = partial(Captioner.load, **clips_of)
    captioner = load(args.model[0])
    ids = captioner.features.ids
    others = read_predictions(args.predictions or [], ids, set(split.rows["id"]) - set(ids), rule)

    # 2. What each encoder retrieves, what the model hears, and the captions of each system, by each checkpoint
    encoders = (args.frozen_encoder, args.statistics_neighbor)
    neighbors = retrieve_by_encoders(captioner, *encoders, train=partial(load_split, args.train_split))
    metric = load_metric("caption_metrics") if accelerator.is_main_process else None
    make = partial(
        make_systems,
        tables=args.table,
        load=load,
        masked=args.masked,
        seed=args.seed,
        consensus=args.consensus,
        choose_best=partial(best_captions, metric=metric, normalization=rule) if args.oracle else None,
    )
    heard = [measure_listening(captioner, args.seed)] if args.listening else []
    systems, lines = make(captioner, checkpoints=checkpoints, neighbors=neighbors, predictions=others)
    explained = measure_explanation(captioner, lines, validation, args.seed) if args.explain else None
    seeds, neighbors_of_others = [captioner.checkpoint], []
    for name in args.model[1:]:
        other = load(name)
        found = retrieve_by_encoders(other)
        add_checkpoint(other, partial(make, neighbors=found), systems, lines)
        neighbors_of_others += found.values()
        heard += [measure_listening(other, args.seed)] if args.listening else []
        seeds.append(other.checkpoint)
    nearest, seconds = [line["candidate"] for line in lines], dict(captioner.seconds)
    trained = add_baselines(baselines, partial(BaselineCaptioner.load, **clips_of), ids, nearest, seconds)
    systems |= trained
    for line, *captions in zip(lines, *(system.captions for system in trained.values())):
        line["captions"] |= dict(zip(trained, captions))
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return None

    # 3. Scores
    clips = usable_rows(split, ids)
    columns = {name: clips[name][:] for name in args.attribute_columns}
    references = [line["references"] for line in lines]
    attributes = find_facts(lexicon, references, columns)
    clap_scores = clap and score_by_clap(clap, systems, lines, clips["audio"], rule)
    score = partial(
        score_systems,
        training_captions=captioner.model.datastore.rows["caption"][:],
        samples=args.bootstrap,
        seed=args.seed,
        metric=metric,
        normalization=rule,
    )
    described, item_scores, unavailable, resamples = score(
        systems, references, meteor=args.meteor, clap_scores=clap_scores, attributes=attributes
    )
    without_leaks = None
    if leaks is not None:
        score = partial(score, meteor=args.meteor and "meteor_1.5" not in unavailable)
        without_leaks = score_without_leaks(leaks, systems, lines, clap_scores, score, attributes)
    resampling = (args.bootstrap, args.seed)
    listening, of_listening = score_listening(heard, *resampling) if heard else (None, {})
    retrieval, of_retrieval = score_retrieval(
        neighbors, references, args.recall_threshold, *resampling, neighbors_of_others
    )
    explanation = explained and score_explanation(
        explained, lines, lexicon, watched, item_scores["rgmc"]["cider_d"], *resampling
    )
    said = {row: [systems[key].captions for key in keys] for row, keys in keys_of_rows(systems).items()}
    if not args.meteor:
        unavailable["meteor_1.5"] = "not asked for (eval.py --meteor true)"
    if not args.clap_model:
        unavailable.update(dict.fromkeys(("clap_at", "clap_tt"), "not asked for (eval.py --clap_model)"))
    rows = {table: rows_of(table, systems, [*others, *baselines]) for table in sorted({1, *args.table})}
    side_by_side, _ = rows.pop(1)
    results = EvaluationResults(
        **describe_run(args, captioner),
        checkpoints=seeds if len(seeds) > 1 else None,
        n=len(lines),
        skipped=len(split.rows) - len(lines),
        metrics=metric_titles([*described["rgmc"].scores, *unavailable]),
        unavailable=unavailable,
        systems=described,
        without_leaks=without_leaks,
        attributes=attributes.describe(said),
        listening=listening,
        retrieval=retrieval,
        explanation=explanation,
        consensus_time=consensus_time(captioner),
        costs=measure_costs(systems, baselines, seconds) if baselines else None,
        tables={str(table): keys for table, (keys, _) in rows.items()},
        side_by_side=side_by_side,
        missing={key: way for _, missing in rows.values() for key, way in missing.items()},
    )

    # 4. Results, report, tables
    warning = from_scratch_warning(captioner.model.config)
    with replaced_together(output_dir, last="results.json") as staging:
        write_lines(staging / "predictions.jsonl", lines)
        if explained:
            write_lines(staging / "explanations.jsonl", explanation_lines(explained, lines))
        write_resamples(staging, resamples, of_listening, of_retrieval)
        (staging / "results.json").write_text(json.dumps(results.to_dict(), indent=2) + "\n", encoding="utf-8")
        write_report(
            staging,
            results,
            lines,
            item_scores,
            load_clip=lambda row: load_audio(clips[row]["audio"]),
            num_examples=args.num_examples,
            side_by_side=1 in args.table,
            warning=warning,
            explanations=explained and explained.explanations,
        )
    if args.update_model_card:
        update_model_card(args.model[0], results)
        write_eval_results(args.model[0], results)
    print_tables(args, results, lines)
    if warning:
        print(warning)
    shutil.rmtree(parts_dir)
    # Waiting also lets Gloo's threads release the last gathered tensors. They need the interpreter's lock for that, and
    # a group that is destroyed before they got it hangs forever.
    accelerator.wait_for_everyone()
    return results


def load_rows(args: EvaluationArguments, name: str, more_columns: Sequence[str] = ()) -> Split:
    return Split(
        load_captions(args.dataset, name, args.caption_column, args.id_column, more_columns),
        name,
        skipped_file=Path(args.output_dir) / "skipped.jsonl",
        max_skipped=args.max_skipped,
        cache={"cache_dir": args.cache_dir, "dtype": args.cache_dtype, "num_proc": args.num_proc},
    )


def usable_rows(split: Split, ids: list[str]) -> Dataset:
    """The rows of these clips, in the order of the split, which is also that of `ids`."""
    wanted = set(ids)
    return split.rows.select([row for row, row_id in enumerate(split.rows["id"]) if row_id in wanted])


def load_clap(args: EvaluationArguments, device: torch.device) -> tuple[evaluate.EvaluationModule, dict]:
    """The metric, tried once before the captioning so that it has its checkpoint, and its options."""
    metric = load_metric("clap_score")
    options = {"model": args.clap_model, "revision": args.clap_revision, "device": device}
    metric.compute(predictions=["music"], references=["music"], **options)
    return metric, options


def score_by_clap(
    clap: tuple[evaluate.EvaluationModule, dict], systems: dict[str, System], lines: list[Prediction], audio, rule: str
) -> dict[str, dict]:
    """The CLAP scores of each system; the clips are embedded once."""
    metric, options = clap
    options |= {"references": [line["references"] for line in lines], "audio": metric.embed_audio(audio, **options)}
    return {
        key: metric.compute(predictions=system.captions, normalization=rule, per_item=True, **options)
        for key, system in tqdm(systems.items(), desc="CLAP scores", unit="system")
    }


def metric_titles(names: list[str]) -> dict[str, str]:
    """The title of each metric, for the columns of a table."""
    return {name: METRIC_TITLES[name.partition("[")[0]] for name in names}


def describe_run(args: EvaluationArguments, captioner: Captioner) -> dict:
    """Returns what the results depend on."""
    return {
        "model": args.model[0],
        "checkpoint": captioner.checkpoint,
        "dataset": args.dataset,
        "split": args.split,
        "seed": args.seed,
        "command": command(args),
        "caption_normalization": captioner.processor.caption_normalization,
        "text": RULE_DESCRIPTIONS[captioner.processor.caption_normalization],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "bootstrap": {"samples": args.bootstrap, "level": LEVEL, "unit": "clip"},
    }


def command(args: EvaluationArguments) -> str:
    """The command that makes these results."""
    words = ["accelerate", "launch", "eval.py"]
    # What has to be given comes first.
    for option in sorted(fields(args), key=lambda option: option.name not in ("model", "dataset", "output_dir")):
        value = getattr(args, option.name)
        default = option.default_factory() if option.default_factory is not MISSING else option.default
        if value != default:
            words += [f"--{option.name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def print_tables(args: EvaluationArguments, results: EvaluationResults, lines: list[Prediction]):
    if 1 in args.table:
        examples = draw_examples(results, lines, args.num_examples)
        print(format_caption_table(results, [lines[row] for row in examples]))
    for table in results.tables:
        print(format_table(results, table))
    if results.attributes and results.tables:
        print(format_attributes(results))
    if results.listening:
        print(format_listening(results))
    print(format_retrieval(results))
    if results.explanation:
        print(format_explanation(results))
    print(f"{Path(args.output_dir) / 'report.html'} has intervals, plots and clips to listen to")


def write_lines(path: Path, lines: list[Prediction]):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    with user_errors():
        (evaluation_args,) = parse(EvaluationArguments, sys.argv[1:], __doc__)
        check_paths(evaluation_args)
        evaluation_accelerator = make_accelerator()
        evaluate_checkpoint(evaluation_args, evaluation_accelerator)
        evaluation_accelerator.end_training()  # ends the process group: without, a process may die of it at its exit
