"""The rows of the paper's tables: the captions of each system."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captions_rgmc import normalize_caption
from clips.embedding import is_rgmc_checkpoint
from configuration_rgmc import RGMCConfig
from evaluation.captioning import Captioner
from evaluation.neighbors import NEIGHBORS, Neighbors
from reporting.results import Prediction

TITLES = {
    "gold": "Gold Caption",
    "random": "Random Caption",
    "most_frequent": "Most Frequent Caption",
    "nearest_neighbor_statistics": "Nearest Neighbor (log-mel statistics)",
    "nearest_neighbor_frozen": "Nearest Neighbor (frozen encoder)",
    "nearest_neighbor": "Nearest Neighbor (RGMC's encoder)",
    "consensus": f"Consensus of {NEIGHBORS} Neighbors",
    "rgmc_audio_only": "RGMC (Audio Only)",
    "rgmc_audio_only_masked": "RGMC, candidate masked",
    "rgmc_text_only": "RGMC (Text Only)",
    "rgmc_text_only_masked": "RGMC, audio masked",
    "rgmc_random_candidate": "RGMC, random candidate",
    "rgmc": "RGMC",
    "rgmc_consensus": "RGMC, consensus",
    "rgmc_best": "RGMC, most probable caption",
    "rgmc_gold_candidate": "RGMC, gold candidate",
    "rgmc_transfer": "RGMC (Transfer)",
    "rgmc_oracle": "RGMC, n-best oracle (upper bound)",
    "rgmc_shuffled": "RGMC, shuffled",
}
BASELINES = ["gold", "random", "most_frequent", "nearest_neighbor_statistics", "nearest_neighbor_frozen"]
BASELINES += ["nearest_neighbor", "consensus"]
ABLATIONS = ["rgmc_audio_only", "rgmc_audio_only_masked", "rgmc_text_only", "rgmc_text_only_masked"]
SELECTED = ["rgmc_consensus", "rgmc_best"]  # the one of the two that the checkpoint does not do unless told
OTHERS = "others"  # the systems of --predictions and --baseline
# The same captions whatever the seed of the checkpoint.
SHARED = ["gold", "random", "most_frequent", "nearest_neighbor_statistics", "nearest_neighbor_frozen"]
TABLES = {
    1: ["gold", "nearest_neighbor", OTHERS, "rgmc"],
    3: [*BASELINES, OTHERS, *ABLATIONS, "rgmc", *SELECTED, "rgmc_oracle", "rgmc_shuffled"],
    4: ["rgmc_random_candidate", "rgmc", "rgmc_gold_candidate"],
    5: [*BASELINES, OTHERS, "rgmc", *SELECTED, "rgmc_transfer", "rgmc_oracle", "rgmc_shuffled"],
}
# How to get the rows that need another checkpoint.
OPTIONS = {
    "nearest_neighbor_frozen": "--frozen_encoder",
    "rgmc_audio_only": "--audio_only_model",
    "rgmc_text_only": "--text_only_model",
    "rgmc_transfer": "--transfer_model",
}
# Rows that cost more than those made by default.
SWITCHES = {
    "nearest_neighbor_statistics": "--statistics_neighbor",
    "rgmc_consensus": "--consensus",
    "rgmc_oracle": "--oracle",
}
TITLE_OF_CONDITIONING = {
    "audio+candidate": TITLES["rgmc"],
    "audio": TITLES["rgmc_audio_only"],
    "candidate": TITLES["rgmc_text_only"],
}


@dataclass
class System:
    """
    A row of a table.

    Args:
        title (`str`): As it is shown in the table.
        source (`str`): Where its captions come from.
        captions (`list[str]`): One per clip, normalised.
        candidates (`list[str | None]`): One per clip: the caption that this one would be a copy of.
        row (`str`, *optional*):
            Key of the system whose row this one shares, as what another checkpoint of `--model` says in its place.
    """

    title: str
    source: str
    captions: list[str]
    candidates: list[str | None]
    row: str | None = None


def captioning_title(key: str) -> str:
    """What the captioning by a system is called while it runs."""
    return "Captioning" if key == "rgmc" else f"Captioning: {TITLES.get(key, key)}"


def consensus_time(captioner: Captioner) -> float | None:
    """How many times as long consensus decoding took as the most probable captions; None where one was not run."""
    own, consensus, best = map(captioner.seconds.get, map(captioning_title, ("rgmc", *SELECTED)))
    if own and (consensus or best):
        return consensus / own if consensus else own / best
    return None


def check_checkpoints(model: str, checkpoints: dict[str, str | None]) -> str:
    """
    Checks the configurations of the checkpoints behind the rows of `OPTIONS` before hours of captioning.

    Args:
        model (`str`): The checkpoint that is evaluated.
        checkpoints (`dict[str, str | None]`): For each key of `OPTIONS` the checkpoint that makes this row, or None.

    Returns:
        `str`: The rule by which `model` normalises captions.

    Raises:
        `ValueError`: If a checkpoint was trained with another conditioning than its row says, or normalises captions
        by another rule than `model`.
    """
    rule = RGMCConfig.get_config_dict(model)[0].get("caption_normalization", "paper")
    for key, name in checkpoints.items():
        if name is not None and (key != "nearest_neighbor_frozen" or is_rgmc_checkpoint(name)):
            own = RGMCConfig.get_config_dict(name)[0].get("caption_normalization", "paper")
            if own != rule:
                raise ValueError(
                    f"{OPTIONS[key]} {name} writes captions by the rule '{own}', and --model {model} by '{rule}': "
                    f"their scores cannot be compared. Train it with --caption_normalization {rule}"
                )
    conditioning = {title: conditioning for conditioning, title in TITLE_OF_CONDITIONING.items()}
    for key, name in checkpoints.items():
        if name is not None and key != "nearest_neighbor_frozen":
            config, _ = RGMCConfig.get_config_dict(name)
            expected = conditioning.get(TITLES[key], "audio+candidate")
            if config.get("conditioning") != expected:
                raise ValueError(
                    f"{OPTIONS[key]} {name} was trained with --conditioning {config.get('conditioning')}: "
                    f"expected {expected}"
                )
    return rule


def make_systems(
    captioner: Captioner,
    tables: list[int],
    checkpoints: dict[str, str | None],
    load: Callable[[str], Captioner],
    neighbors: dict[str, Neighbors],
    predictions: dict[str, tuple[str, list[str]]],
    masked: bool,
    seed: int,
    consensus: bool = False,
    choose_best: Callable[[list[Prediction]], list[str]] | None = None,
) -> tuple[dict[str, System], list[Prediction]]:
    """
    Captions the split with every system that the tables need.

    Args:
        captioner ([`Captioner`]): With the checkpoint that is evaluated.
        tables (`list[int]`): Keys of `TABLES`.
        checkpoints (`dict[str, str | None]`): For each key of `OPTIONS` the checkpoint that makes this row, or None.
        load (`Callable`): Loads another checkpoint for the same clips.
        neighbors (`dict[str, Neighbors]`): What each encoder retrieves, as `retrieve_by_encoders` returns it.
        predictions (`dict[str, tuple[str, list[str]]]`): The file and the captions of other systems, by name.
        masked (`bool`): Whether the rows with masked inputs are made.
        seed (`int`): Seed of the random captions and of the shuffling.
        consensus (`bool`, *optional*, defaults to `False`):
            Whether consensus decoding is compared with the most probable caption: the row of the one that is not the
            checkpoint's own `selection` is made.
        choose_best (`Callable`, *optional*): Chooses a caption for each clip among those of all beams, for the oracle.

    Returns:
        `tuple`: the systems by key, in the order of a table, and a [`Prediction`] per clip.

    Raises:
        `ValueError`: If Table 4 is wanted of a model without candidates, or another checkpoint reads other clips.
    """
    conditioning = captioner.model.config.conditioning
    if 4 in tables and conditioning == "audio":
        raise ValueError(f"Table 4 compares candidates, and {captioner.name} sees none: evaluate it without --table 4")
    lines = captioner.caption(captioning_title("rgmc"), all_beams=choose_best is not None)
    gold = [line["references"][0] for line in lines]
    nearest = [line["candidate"] for line in lines]
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lines))
    # A cycle through all clips: none keeps its own caption.
    other_clip = dict(zip(order.tolist(), np.roll(order, 1).tolist()))
    training_captions = captioner.model.datastore.rows["caption"][:]
    songs = generator.integers(len(training_captions), size=len(lines))
    drawn = [training_captions[row] for row in songs]
    said = [line["prediction"] for line in lines]

    systems = {}

    def add(key: str, captions: list[str | None], candidates: list[str | None], source: str):
        title = TITLE_OF_CONDITIONING[conditioning] if key == "rgmc" else TITLES.get(key, key)
        systems[key] = System(title, source, [caption or "" for caption in captions], candidates)

    def add_captioned(key: str, captioner: Captioner, **options):
        lines = captioner.caption(captioning_title(key), **options)
        add(key, [line["prediction"] for line in lines], [line["candidate"] for line in lines], captioner.name)

    add("gold", gold, nearest, "corpus")
    add("random", drawn, nearest, "captions of the training split")
    ((most_frequent, _),) = Counter(training_captions).most_common(1)  # the first of several
    add("most_frequent", [most_frequent] * len(lines), nearest, "captions of the training split")
    for key, found in neighbors.items():
        add(key, found.nearest, found.nearest, found.source)
    add("nearest_neighbor", nearest, nearest, captioner.name)  # what the model was shown
    add("consensus", neighbors["nearest_neighbor"].consensus(), nearest, captioner.name)
    add("rgmc", said, nearest, captioner.name)
    if consensus:
        selection = "best" if captioner.model.config.selection == "consensus" else "consensus"
        add_captioned(f"rgmc_{selection}", captioner, selection=selection)
    if choose_best is not None:
        best = choose_best(lines) if captioner.accelerator.is_main_process else said  # the others score nothing
        add("rgmc_oracle", best, nearest, captioner.name)
    if len(said) > 1:
        add("rgmc_shuffled", [said[other_clip[row]] for row in range(len(said))], nearest, captioner.name)
    for name, (file, captions) in predictions.items():
        add(name, captions, nearest, file)
    if masked and 3 in tables and conditioning == "audio+candidate":
        add_captioned("rgmc_audio_only_masked", captioner, masked_to="audio")
        add_captioned("rgmc_text_only_masked", captioner, masked_to="candidate")
    if 4 in tables:
        add_captioned("rgmc_random_candidate", captioner, candidates=drawn, songs=songs)
        add_captioned("rgmc_gold_candidate", captioner, candidates=gold)
    wanted = {key for table in tables for key in TABLES[table] if checkpoints.get(key)}
    for key in sorted(wanted - neighbors.keys()):
        other = load(checkpoints[key])
        if other.features.ids != captioner.features.ids:
            raise ValueError(f"{other.name} reads other clips than {captioner.name}: their front ends differ")
        add_captioned(key, other)

    systems = {key: systems[key] for key in [*BASELINES, *predictions, *TITLES] if key in systems}  # in a table's order
    captions_of_clips = zip(*(system.captions for system in systems.values()))
    for line, captions in zip(lines, captions_of_clips):
        line["captions"] = dict(zip(systems, captions))
    return systems, lines


def keys_of_rows(systems: dict[str, System]) -> dict[str, list[str]]:
    """The systems that share each row: one for each checkpoint, or one whatever the checkpoint."""
    rows: dict[str, list[str]] = {}
    for key, system in systems.items():
        rows.setdefault(system.row or key, []).append(key)
    return rows


def rows_of(table: int, systems: dict[str, System], others: list[str]) -> tuple[list[str], dict[str, str]]:
    """The systems of a table in its order, and its missing rows with the option that makes each of them."""
    keys = [key for name in TABLES[table] for key in ([name] if name != OTHERS else others)]
    there = {system.title for system in systems.values()}  # the checkpoint itself may be an ablation
    options = {"nearest_neighbor_statistics": "--statistics_neighbor true", **OPTIONS}
    missing = {
        key: f"{TITLES[key]}: give {options[key]}"
        for key in keys
        if key not in systems and key in options and TITLES[key] not in there
    }
    return [key for key in keys if key in systems or key in missing], missing


def read_predictions(
    entries: list[str], ids: list[str], skipped: set[str], normalization: str = "paper"
) -> dict[str, tuple[str, list[str]]]:
    """
    Reads the captions of other systems, in the order of the clips.

    Args:
        entries (`list[str]`): Each `name=file.jsonl`, with lines `{"id": …, "prediction": …}`.
        ids (`list[str]`): The clips. A file must have each of them exactly once.
        skipped (`set[str]`): Clips of the split that cannot be used. A file may have them, too.
        normalization (`str`, *optional*, defaults to `"paper"`):
            Rule by which the captions are normalised. A line of `predictions.jsonl`, which is normalised already,
            names its own rule.

    Returns:
        `dict[str, tuple[str, list[str]]]`: the file and the captions of each system, by name.

    Raises:
        `ValueError`: If a name is used twice or taken, a file cannot be read, a line is malformed or of another rule,
        or ids are missing, duplicate or not of the split.
    """
    found = {}
    for entry in entries:
        name, separator, file = entry.partition("=")
        if not separator or not name or not file:
            raise ValueError(f"--predictions {entry}: expected name=file.jsonl")
        if name in found or name in {*TITLES, *TITLES.values()}:
            raise ValueError(f"--predictions {entry}: the name '{name}' is taken")
        captions, counts = {}, Counter()
        try:
            content = Path(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--predictions {entry}: {file} cannot be read as UTF-8 text: {error}") from error
        # Not splitlines, which also splits at U+2028 and the like: JSON may have these in a caption.
        for number, text in enumerate(content.split("\n"), start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                row_id, caption = str(line["id"]), line["prediction"]
                captions[row_id] = normalize_caption(caption, normalization)
                own = line.get("caption_normalization", normalization)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f'{file}, line {number}: expected {{"id": "…", "prediction": "…"}}, found {text[:80]!r}'
                ) from error
            if own != normalization:
                raise ValueError(
                    f"{file}, line {number}: a caption by the rule '{own}', but the model's rule is '{normalization}', "
                    "and what one rule deletes the other cannot bring back. "
                    "Evaluate that model with the same rule, or give its captions as they were before"
                )
            counts[row_id] += 1
        known = {*ids, *skipped}
        wrong = {
            "missing": [row_id for row_id in ids if row_id not in counts],
            "not of this split": [row_id for row_id in counts if row_id not in known],
            "there more than once": [row_id for row_id, count in counts.items() if count > 1],
        }
        if any(wrong.values()):
            counted = ", ".join(f"{len(those)} {what}" for what, those in wrong.items())
            examples = [row_id for those in wrong.values() for row_id in those][:3]
            raise ValueError(f"{file}: of {len(ids)} ids {counted}, such as {examples}; expected each id once")
        found[name] = (file, [captions[row_id] for row_id in ids])
    return found
