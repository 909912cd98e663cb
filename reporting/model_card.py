"""
The results of an evaluation in the model card of the checkpoint, where the Hub looks for them.

A path of this machine never gets there: a local corpus or checkpoint goes by the name of its folder.
"""

import os
import re
import shlex
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from model_card_rgmc import is_hub_id
from reporting.markdown import markdown_table, markdown_text
from reporting.results import EvaluationResults, Score
from reporting.tables import (
    interval_note,
    leak_notes,
    metric_stem,
    metric_variant,
    model_notes,
    table,
)

TASK = "audio-text-to-text"  # the card's pipeline_tag


def eval_results(results: EvaluationResults) -> list[EvalResult]:
    """The scores of RGMC for the metadata of a card; `metric_args` holds the number of clips and the interval."""
    dataset = _dataset_name(results)
    found = []
    for key, score in _scores(results).items():
        interval = {"n": results.n}
        if score.low is not None:
            interval |= {"low": round(score.low, 2), "high": round(score.high, 2), **results.bootstrap}
        found.append(
            EvalResult(
                task_type=TASK,
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=results.split,
                metric_type=metric_stem(key),
                metric_name=results.metrics[key],
                metric_config=metric_variant(key) or None,
                metric_value=round(score.value, 2),
                metric_args=interval,
            )
        )
    return found


def model_index(results: EvaluationResults, checkpoint_name: str) -> list[dict]:
    """The scores of RGMC as the `model-index` of a card's metadata."""
    return eval_results_to_model_index(checkpoint_name, eval_results(results))


def update_model_card(checkpoint_dir: str | Path, results: EvaluationResults) -> Path | None:
    """
    Writes the results into `README.md` of a local checkpoint: into its metadata and into a table under `## Results`.
    Results of other corpora and splits stay, and so does the rest of the card.

    Args:
        checkpoint_dir (`str` or `Path`): Folder of the checkpoint.
        results ([`EvaluationResults`]): Of an evaluation with at least one of the Tables 3 to 5.

    Returns:
        The path of the card, or None where `checkpoint_dir` holds none.
    """
    path = Path(checkpoint_dir) / "README.md"
    if not path.is_file():
        return None
    card = ModelCard.load(path)
    own = (_dataset_name(results), results.split)
    others = [entry for entry in card.data.eval_results or [] if (entry.dataset_type, entry.dataset_split) != own]
    card.data.eval_results = others + eval_results(results)
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    card.text = _set_section(card.text, f"### {markdown_text(', '.join(own))}", _results_text(results))
    written = path.with_name(f".{path.name}.incomplete")
    card.save(written)
    os.replace(written, path)  # whole or not at all
    return path


def eval_result_entries(results: EvaluationResults) -> list[EvalResultEntry]:
    """The scores of RGMC as entries of `.eval_results`; none unless the dataset is on the Hub."""
    if not is_hub_id(results.dataset):
        return []
    entries = []
    for key, score in _scores(results).items():
        notes = [results.metrics[key], f"split {results.split}", f"{results.n} clips"]
        if score.low is not None:
            level = f"{100 * results.bootstrap['level']:g} %"
            notes.append(f"{level} interval {score.low:.2f} to {score.high:.2f}")
        task = "-".join([results.split, *re.findall(r"[\w.]+", key)])
        notes = ", ".join(notes)
        entries.append(EvalResultEntry(results.dataset, task, round(score.value, 2), notes=notes))
    return entries


def write_eval_results(checkpoint_dir: str | Path, results: EvaluationResults) -> Path | None:
    """Writes `.eval_results/<owner>--<name>-<split>.yaml` for a dataset on the Hub; returns its path, or None."""
    entries = eval_result_entries(results)
    if not entries:
        return None
    name = f"{results.dataset.replace('/', '--')}-{results.split}.yaml"
    path = Path(checkpoint_dir) / ".eval_results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def _dataset_name(results: EvaluationResults) -> str:
    name = results.dataset
    return name if is_hub_id(name) else Path(name).resolve().name


def _scores(results: EvaluationResults) -> dict[str, Score]:
    scores = results.systems["rgmc"].scores
    return {key: scores[key] for key in results.metrics if key in scores and scores[key].value is not None}


def _results_text(results: EvaluationResults) -> str:
    name = "3" if "3" in results.tables else next(iter(results.tables))
    parts = [f"{results.n} clips. Captions: {results.text}.", markdown_table(*table(results, name))]
    notes = [interval_note(results, name), *model_notes(results, name), *leak_notes(results)]
    parts += [markdown_text(note) for note in notes if note]
    return "\n\n".join([*parts, f"```bash\n{_public_command(results.command)}\n```"])


def _public_command(command: str) -> str:
    """`command` with each absolute path cut to its last part, whether it is a word or follows the first `=` of one."""

    def public(word: str) -> str:
        name, equals, value = ("", "", word) if word.startswith("/") else word.partition("=")
        return name + equals + (Path(value).name if value.startswith("/") else value)

    return shlex.join(map(public, shlex.split(command)))


def _set_section(text: str, heading: str, body: str) -> str:
    """`text` with `body` under `heading`, in place of what is there, or else at the end of the section `## Results`."""
    newline = "\r\n" if "\r\n" in text else "\n"
    section = f"{heading}\n\n{body}\n".replace("\n", newline)
    former = re.search(rf"^{re.escape(heading)}\r?$.*?(?=^#{{1,3}} |\Z)", text, re.M | re.S)
    if former:
        end = former.end()
        return text[: former.start()] + section + (newline if end < len(text) else "") + text[end:]
    parent = re.search(r"^## Results[ \t]*\r?$.*?(?=^#{1,2} |\Z)", text, re.M | re.S)
    before, after = (text[: parent.end()], text[parent.end() :]) if parent else (text, "")
    while not before.endswith(2 * newline):
        before += newline
    return before + ("" if parent else "## Results" + 2 * newline) + section + (newline if after else "") + after
