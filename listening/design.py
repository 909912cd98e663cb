"""
The design of a listening test: which rater compares which captions of which song, in which order and on which side.

All of it is drawn with one seed. A comparison of two systems on one song goes to several raters, by rotation.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from itertools import combinations
from math import ceil, lcm
from typing import Literal

import numpy as np

Variant = Literal["hearing", "picture", "text"]
CRITERIA: dict[str, list[str]] = {
    "hearing": ["descriptive", "fluent"],
    "picture": ["useful", "fluent"],
    "text": ["useful", "fluent"],
}
GOLD, FOIL = "gold caption", "wrong caption"  # the two sides of an attention check
LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"  # none that is mistaken for another
FOILS = 50  # captions, of which the most different one is the wrong one


@dataclass
class Trial:
    """
    Two captions of a song that a rater compares.

    Args:
        id (`str`): What the page calls it.
        kind (`str`): `"song"`, `"check"` (attention check) or `"repeat"` (for self-agreement).
        song (`str`): Id of the song.
        left, right (`str`): Names of the systems whose captions are first and second.
        repeats (`str`, *optional*): Id of the trial that it repeats, with the sides swapped.
    """

    id: str
    kind: Literal["song", "check", "repeat"]
    song: str
    left: str
    right: str
    repeats: str | None = None


@dataclass
class Study:
    """
    A listening test and the key to its answers: what `key.json` holds.

    Args:
        id (`str`): What the page and its exports call the test.
        variant (`str`): `"hearing"`, `"picture"` or `"text"`.
        seed (`int`)
        systems (`list[str]`): Names of the systems that are compared.
        songs (`list[str]`): Ids of the songs.
        captions (`dict[str, dict[str, str]]`): For each song the caption of each system.
        raters_per_song (`int`): How many compare the same two captions.
        rules (`dict[str, float]`): By which raters are excluded, as fixed before anybody answered.
        raters (`dict[str, list[Trial]]`): The trials of each rater, in order, by the rater's code.
        facts (`dict[str, str]`): Where songs and captions are from.
    """

    id: str
    variant: Variant
    seed: int
    systems: list[str]
    songs: list[str]
    captions: dict[str, dict[str, str]]
    raters_per_song: int
    rules: dict[str, float]
    raters: dict[str, list[Trial]]
    facts: dict[str, str]

    @property
    def criteria(self) -> list[str]:
        return CRITERIA[self.variant]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(combinations(self.systems, 2))

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Study":
        raters = {code: [Trial(**trial) for trial in trials] for code, trials in values["raters"].items()}
        return cls(**{**values, "raters": raters})


def make_study(
    captions: dict[str, dict[str, str]],
    gold: dict[str, str],
    *,
    variant: Variant = "hearing",
    songs: int = 31,
    raters: int = 3,
    raters_per_song: int = 3,
    checks: int = 4,
    repeats: int = 4,
    max_failed_checks: int = 1,
    min_answered: float = 0.5,
    seed: int = 0,
    facts: dict[str, str] | None = None,
) -> Study:
    """
    Draws a listening test.

    Args:
        captions (`dict[str, dict[str, str]]`): For each system its caption of each song, by the song's id.
        gold (`dict[str, str]`): The corpus's own caption of each song, for the attention checks.
        variant (`str`, defaults to `"hearing"`): See [`Study`].
        songs (`int`, defaults to 31): Songs to draw.
        raters (`int`, defaults to 3), raters_per_song (`int`, defaults to 3): All raters, and those of one comparison.
        checks (`int`, defaults to 4): Attention checks of each rater, on songs of their own.
        repeats (`int`, defaults to 4): Comparisons that each rater makes again, with the sides swapped.
        max_failed_checks (`int`, defaults to 1): A rater who fails more attention checks is excluded.
        min_answered (`float`, defaults to 0.5): A rater who answers a smaller share of the trials is excluded.
        seed (`int`, defaults to 0)
        facts (`dict[str, str]`, *optional*): See [`Study`].

    Returns:
        [`Study`]

    Raises:
        `ValueError`: If there are too few songs that every system captions differently, or too few to repeat.
    """
    generator = np.random.default_rng(seed)
    systems = list(captions)
    common = [song for song in gold if all(song in captions[system] for system in systems)]
    different = [song for song in common if len({captions[system][song] for system in systems}) == len(systems)]
    if songs > len(different):
        raise ValueError(
            f"--songs {songs}: of {len(common)} songs that all systems caption, {len(different)} have captions that "
            "differ from each other; ask for fewer songs, or give more predictions"
        )
    drawn = generator.permutation(different).tolist()
    chosen, others = drawn[:songs], [*drawn[songs:], *(song for song in common if song not in {*different})]
    checked = draw_checks(others, gold, variant, checks, generator)

    # Comparisons and checks, each with the raters that get it; the place of a rater is the third of the test.
    items = [(song, pair) for song in chosen for pair in combinations(systems, 2)]
    items = [items[row] for row in generator.permutation(len(items))]
    shared = list(rotate(len(items), raters, raters_per_song))
    asked = [(rater, "song", *items[row], place) for row, who in enumerate(shared) for place, rater in enumerate(who)]
    for place, song in enumerate(checked):
        asked += [(rater, "check", song, (GOLD, FOIL), place) for rater in range(raters)]
    asked = [asked[row] for row in generator.permutation(len(asked))]
    forward = balance([((rater, pair), (song, pair)) for rater, _, song, pair, _ in asked])

    tokens = draw_tokens(generator, len(asked) + raters * repeats)
    plans = []
    for rater in range(raters):
        placed: dict[str, list[tuple[int, Trial]]] = {"song": [], "check": []}
        for (who, kind, song, pair, place), as_named in zip(asked, forward):
            if who == rater:
                left, right = pair if as_named else pair[::-1]
                placed[kind].append((place, Trial(tokens.pop(), kind, song, left, right)))
        again = [tokens.pop() for _ in range(repeats)]
        plans.append(order_trials(placed["song"], placed["check"], again, generator))
    shown = {song: {system: captions[system][song] for system in systems} for song in chosen}
    study = Study(
        id="",
        variant=variant,
        seed=seed,
        systems=systems,
        songs=chosen,
        captions={**shown, **{song: {GOLD: gold[song], FOIL: foil} for song, foil in checked.items()}},
        raters_per_song=raters_per_song,
        rules={"max_failed_checks": max_failed_checks, "min_answered": min_answered},
        raters=dict(zip(draw_codes(generator, raters), plans)),
        facts={},
    )
    study.id = hashlib.sha256(json.dumps(study.to_dict()).encode()).hexdigest()[:12]  # another test, another id
    same = f"{len(common) - len(different)} of {len(common)}"
    study.facts = {**(facts or {}), "Songs left out because two captions are the same": same}
    return study


def draw_checks(
    songs: list[str], gold: dict[str, str], variant: Variant, checks: int, generator: np.random.Generator
) -> dict[str, str]:
    """
    Draws the songs of the attention checks, and a wrong caption for each.

    A hearing rater compares the gold caption with that of another song, of 50 the one that shares the fewest words.
    Without sound, that cannot be told; the wrong caption is then the gold one with its words in another order.

    Raises:
        `ValueError`: If there are too few songs beside those of the test.
    """
    usable = [song for song in songs if len(set(gold[song].split())) >= 4]
    if checks > len(usable):
        raise ValueError(
            f"--checks {checks}: expected as many songs beside those of the test, with gold captions of 4 words or "
            f"more; found {len(usable)}"
        )
    found = {}
    for song in [usable[row] for row in generator.permutation(len(usable))[:checks]]:
        words = gold[song].split()
        if variant == "hearing":
            others = [text for text in gold.values() if text != gold[song]]
            some = [others[row] for row in generator.permutation(len(others))[:FOILS]]
            if not some:
                raise ValueError("--checks: all songs have the same gold caption; give --checks 0")
            found[song] = min(some, key=lambda text: len({*words} & {*text.split()}) / len({*words} | {*text.split()}))
        else:
            while (scrambled := generator.permutation(words).tolist()) == words:
                pass
            found[song] = " ".join(scrambled)
    return found


def order_trials(
    songs: list[tuple[int, Trial]], checks: list[tuple[int, Trial]], again: list[str], generator: np.random.Generator
) -> list[Trial]:
    """
    Orders the trials of a rater.

    Args:
        songs (`list[tuple[int, Trial]]`): Comparisons, each with the part of the test that it belongs in.
        checks (`list[tuple[int, Trial]]`): Attention checks, each with its number: they are spread over the test.
        again (`list[str]`): Ids of repeats. Some comparisons of the first third come again in the last third.
        generator (`np.random.Generator`)

    Raises:
        `ValueError`: If there are too few comparisons to repeat.
    """
    placed = [(part + generator.random(), trial) for part, trial in songs]
    order = [trial for _, trial in sorted(placed, key=lambda entry: entry[0])]
    first_third = order[: ceil(len(order) / 3)]
    if len(again) > len(first_third):
        raise ValueError(
            f"--repeats {len(again)}: a rater makes {len(order)} comparisons, of which the first third can come again: "
            f"expected {len(first_third)} or fewer"
        )
    repeated = [first_third[row] for row in generator.permutation(len(first_third))[: len(again)]]
    for number, trial in checks:
        order.insert(round((number + generator.random()) / len(checks) * len(order)), trial)
    for token, trial in zip(again, repeated):
        repeat = Trial(token, "repeat", trial.song, trial.right, trial.left, trial.id)
        order.insert(int(generator.integers(ceil(2 * len(order) / 3), len(order) + 1)), repeat)
    return order


def rotate(items: int, raters: int, per_item: int) -> list[list[int]]:
    """
    Gives each item to `per_item` of the raters, so that their loads differ by 1 at most.

    Each time that all loads are equal, the rotation moves on by one rater, so that the same raters do not always meet,
    and a rater is in turn the first, the second, … of an item.
    """
    period = lcm(raters, per_item)
    starts = [item * per_item + item * per_item // period for item in range(items)]
    return [[(start + place) % raters for place in range(per_item)] for start in starts]


def balance(edges: list[tuple[Hashable, Hashable]]) -> list[bool]:
    """
    Directs the edges of a graph so that as many leave each vertex as enter it, within 1.

    Vertices of odd degree are joined to one more vertex. All degrees are then even, and a walk along unused edges only
    ends where it began: it leaves each vertex as often as it enters it.

    Returns:
        `list[bool]`: for each edge whether it goes from its first to its second vertex.
    """
    degrees = Counter(vertex for edge in edges for vertex in edge)
    joined = [*edges, *((vertex, None) for vertex, degree in degrees.items() if degree % 2)]
    at = defaultdict(list)
    for number, edge in enumerate(joined):
        for vertex in edge:
            at[vertex].append(number)
    forward: dict[int, bool] = {}
    for vertex in list(at):
        while at[vertex]:
            number = at[vertex].pop()
            if number not in forward:
                first, second = joined[number]
                forward[number] = vertex == first
                vertex = second if forward[number] else first
    return [forward[number] for number in range(len(edges))]


def draw_tokens(generator: np.random.Generator, count: int) -> list[str]:
    """Different random names that say nothing."""
    tokens: dict[str, None] = {}
    while len(tokens) < count:
        tokens[generator.bytes(6).hex()] = None
    return list(tokens)


def draw_codes(generator: np.random.Generator, count: int) -> list[str]:
    """Different codes for raters, of five letters and digits."""
    codes: dict[str, None] = {}
    while len(codes) < count:
        codes["".join(generator.choice(list(LETTERS), 5))] = None
    return list(codes)
