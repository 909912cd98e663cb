"""Subtitles on the command line: written from spans without a model, put among dialogue or into a film, and checked."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

from captions.checking import check_cues
from captions.messages import count
from captions.profiles import Profile, load_profile
from captions.rendering import Counts, make_cues
from captions.span_rows import Span, read_spans
from captions.subtitle_files import WRITERS, SubtitleFile, merge, read_subtitles
from clips.options import check_file, check_output
from clips.outputs import replaced_whole

# A song.txt or song.json beside a song.mp3 is an annotation to other programs.
ENDINGS = {"vtt": ".vtt", "srt": ".srt", "ttml": ".ttml", "txt": ".cues.txt", "json": ".cues.json"}


@dataclass(kw_only=True)
class SubtitleArguments:
    """Options of subtitles."""

    group = "subtitles"
    format: Literal["vtt", "srt", "ttml", "txt", "json"] | None = field(
        default=None, metadata={"help": "Write subtitles of this format; vtt for --render if unset."}
    )
    profile: str = field(
        default="netflix",
        metadata={"help": "Rules of the cues: dcmp, wai, netflix, netflix-children, bbc, plain, or a yaml file."},
    )
    render: str | None = field(
        default=None, metadata={"help": "Write subtitles from this file of spans, without a model."}
    )
    subtitle_dir: str | None = field(
        default=None, metadata={"help": "Folder of the subtitles; each is beside its file if unset."}
    )
    merge: str | None = field(
        default=None, metadata={"help": "VTT or SRT file of dialogue: music is described in its gaps."}
    )
    embed: bool = field(default=False, metadata={"help": "Copy each mp4 or mkv film, and put the subtitles into it."})
    remind: float | None = field(
        default=None, metadata={"help": "Say every so many seconds that the music continues; never if unset."}
    )
    score_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Do not show captions with a lower score, but only that there is music; if unset, as the profile "
            "or the checkpoint says."
        },
    )
    check: str | None = field(
        default=None, metadata={"help": "List where this VTT or SRT file breaks the rules of --profile."}
    )
    json: bool = field(default=False, metadata={"help": "Print what --check finds as JSON."})

    def check_subtitles(self, paths: Sequence[str] = ()):
        """Raises `ValueError` or `FileNotFoundError` for options that do not go together; `paths` name audio files."""
        modes = {"--render": self.render, "--check": self.check, "PATH": paths}
        given = [name for name, value in modes.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: expected one of them")
        if self.remind is not None and not self.remind >= 1:
            raise ValueError(f"--remind {self.remind:g}: expected 1 or more seconds")
        if self.merge and self.format not in (None, "vtt", "srt"):
            raise ValueError(f"--merge with --format {self.format}: the result has the format of the dialogue")
        for option, expected in (("render", "a file of spans"), ("check", "subtitles"), ("merge", "subtitles")):
            check_file(f"--{option}", getattr(self, option), expected)
        if self.subtitle_dir:
            check_output(self.subtitle_dir, "--subtitle_dir")
        load_profile(self.profile)


def render(options) -> int:
    """Writes the subtitles of `--render`, and returns the exit status."""
    paths = write_subtitles(read_spans(Path(options.render)), options)
    print(*paths, sep="\n", end="\n" if paths else "")
    return 0


def check(options) -> int:
    """Prints the violations in the file of `--check`, and returns the exit status: 1 if there are any."""
    cues = read_subtitles(Path(options.check)).cues
    found = check_cues(cues, load_profile(options.profile))
    if options.json:
        print(json.dumps([asdict(violation) for violation in found], indent=1))
    else:
        print(*(f"{options.check}: {violation}" for violation in found), sep="\n", end="\n" if found else "")
    broken = len({violation.cue for violation in found})
    print(f"{broken} of {count(len(cues), 'cue')} break rules of {options.profile}", file=sys.stderr)
    return int(bool(found))


def check_targets(paths: Sequence[str], options) -> list[str]:
    """
    For before the captioning: raises what [`write_subtitles`] would raise for these files. Whether subtitles that are
    there would stay the same is not known yet; with `existing="error"` any are an error.

    Returns:
        `list[str]`: With `existing="skip"` and no output of captions: the films of which all that is asked is there.
    """
    plan = _plan(paths, options)
    targets = [*plan.targets.values()] if options.existing == "error" else []
    _check_existing([*targets, *plan.missing_films.values()], {}, options)
    if options.existing != "skip" or options.output or options.merge:
        return []
    left = {*plan.missing_films, *(path for path, target in plan.targets.items() if not target.exists())}
    return [path for path in plan.films if path not in left]


def write_subtitles(spans: Iterable[Span], options) -> list[Path]:
    """
    Writes the subtitles of each file that the spans are of, and says how many captions were shortened.

    Args:
        spans (`Iterable[Span]`): All spans, those of a file together and in order.
        options (`SubtitleArguments`): With `existing`, as `caption.py` has it.

    Returns:
        `list[Path]`: The files that hold subtitles now.

    Raises:
        `FileExistsError`: If there is another file in the place of one; `existing="overwrite"` replaces it, and
            `"skip"` keeps the copy of a film.
        `ValueError`: If `options.merge` is given and the spans are of several files, if two files' subtitles would have
            one name, or if a film cannot be copied.
    """
    by_path = {path: list(group) for path, group in groupby(spans, key=lambda span: span.path)}
    plan, profile = _plan([*by_path], options), load_profile(options.profile)
    busy = [(cue.start, cue.end) for cue in plan.dialogue.cues] if plan.dialogue else []
    made, counts = {}, Counts()
    for path, own in by_path.items():
        made[path], became = make_cues(own, profile, busy, options.remind, options.score_threshold)
        counts += became
    texts = {
        target: merge(plan.dialogue, made[path]) if plan.dialogue else WRITERS[plan.format](made[path])
        for path, target in plan.targets.items()
    }
    films = plan.missing_films
    _check_existing([*texts, *films.values()], texts, options)
    for target, text in texts.items():
        _write(target, text)
    for path, film in films.items():
        from captions.muxing import embed

        cues = made[path] + (plan.dialogue.cues if plan.dialogue else [])
        film.parent.mkdir(parents=True, exist_ok=True)
        embed(Path(path), film, sorted(cues, key=lambda cue: cue.start))
    print(_summary(counts, profile), file=sys.stderr)
    return [*texts, *plan.films.values()]


@dataclass
class Plan:
    """What is to be written: the subtitles and the copy of the film of each file, by its path."""

    format: str | None
    dialogue: SubtitleFile | None
    targets: dict[str, Path]
    films: dict[str, Path]
    keeps_films: bool = False

    @property
    def missing_films(self) -> dict[str, Path]:
        """The copies to write: all, or with `existing="skip"` those that are not there."""
        return {path: film for path, film in self.films.items() if not (self.keeps_films and film.exists())}


def _plan(paths: Sequence[str], options) -> Plan:
    dialogue = read_subtitles(Path(options.merge)) if options.merge else None
    if dialogue and len(paths) != 1:
        raise ValueError(f"--merge takes the dialogue of one file: there are {len(paths)}")
    if dialogue and options.format not in (None, dialogue.kind):
        raise ValueError(f"--merge {options.merge} is {dialogue.kind}: expected {options.format}, as --format says")
    form = options.format or (None if options.embed else dialogue.kind if dialogue else "vtt")
    targets = _targets(paths, ENDINGS[form], options) if form else {}
    films = {}
    if options.embed:
        from captions.muxing import check_embeddable

        for path in paths:
            check_file("--embed", path, "a film")
            check_embeddable(Path(path))
            place = _place(path, options)
            film = place.with_name(f"{place.stem}.captioned{place.suffix}")
            if film in films.values():
                raise ValueError(f"two films would both become {film}: write them to two --subtitle_dir")
            films[path] = film
    return Plan(form, dialogue, targets, films, options.existing == "skip")


def _targets(paths: Sequence[str], ending: str, options) -> dict[str, Path]:
    """The subtitles of each file; they keep the endings of files that differ in nothing else."""
    named: dict[Path, list[str]] = {}
    for path in paths:
        named.setdefault(_place(path, options).with_suffix(""), []).append(path)
    targets: dict[str, Path] = {}
    for stem, group in named.items():
        for path in group:
            target = stem.with_name(stem.name + (Path(path).suffix if len(group) > 1 else "") + ending)
            if target in targets.values():
                raise ValueError(f"{' and '.join(group)} would both have {target}: write them to two --subtitle_dir")
            targets[path] = target
    return targets


def _place(path: str, options) -> Path:
    if options.subtitle_dir is None:
        return Path(path)
    inner = Path(path)
    return Path(options.subtitle_dir, *(part for part in inner.parts if part not in ("..", inner.anchor)))


def _check_existing(targets: Sequence[Path], texts: dict[Path, str], options):
    """Raises `FileExistsError` for what must not be replaced; a file that holds its text already may be."""
    for target in filter(Path.exists, targets):
        if options.merge and target.samefile(options.merge):
            raise FileExistsError(f"{target} is the dialogue of --merge: name another folder with --subtitle_dir")
        if options.existing != "overwrite" and not (target in texts and target.read_bytes() == texts[target].encode()):
            raise FileExistsError(f"{target} exists: --existing overwrite replaces it, --subtitle_dir writes elsewhere")


def _write(target: Path, text: str):
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(target) as unfinished:
        unfinished.write_bytes(text.encode())


def _summary(counts: Counts, profile: Profile) -> str:
    told = counts.shown + counts.alternatives + counts.shortened + counts.unfit
    total = told + counts.unsure
    parts = [f"{count(total, 'description')} of music"]
    if told:
        less = counts.shortened + counts.unfit
        parts.append(f"{less} of {count(told, 'caption')} shortened ({less / told:.0%})")
    if counts.unfit:
        parts.append(f"{counts.unfit} of them to {profile.music}, because no phrase fits")
    if counts.alternatives:
        parts.append(f"{counts.alternatives} replaced by an alternative that fits")
    if counts.unsure:
        parts.append(f"{counts.unsure} only {profile.music}, because the score is below the threshold")
    if counts.dropped:
        parts.append(f"{counts.dropped} left out, because the music is too short or there is no room")
    return "; ".join(parts)
