"""Subtitles on the command line: written from spans without a model, put among dialogue or into a film, and checked."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

from captions.checking import check_cues
from captions.profiles import Profile, load_profile
from captions.rendering import Counts, Cue, make_cues
from captions.span_rows import Span, read_spans
from captions.subtitle_files import WRITERS, SubtitleFile, merge, read_subtitles
from clips.options import check_file, check_output

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
        default=None, metadata={"help": "Do not show captions with a lower score, but only that there is music."}
    )
    check: str | None = field(
        default=None, metadata={"help": "List where this VTT or SRT file breaks the rules of --profile."}
    )
    json: bool = field(default=False, metadata={"help": "Print what --check finds as JSON."})

    def check_subtitles(self, paths: Sequence[str] = ()):
        """Raises `ValueError` or `FileNotFoundError` for options that do not go together; `paths` name audio files."""
        modes = [name for name in ("render", "check") if getattr(self, name)] + ["PATH"][: bool(paths)]
        if len(modes) > 1:
            raise ValueError(
                f"{' and '.join(modes).replace('render', '--render').replace('check', '--check')}: expected one"
            )
        if self.remind is not None and not self.remind > 0:
            raise ValueError(f"--remind {self.remind:g}: expected more than 0 seconds")
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
    print(f"{broken} of {_count(len(cues), 'cue')} break rules of {options.profile}", file=sys.stderr)
    return int(bool(found))


def write_subtitles(spans: Iterable[Span], options) -> list[Path]:
    """
    Writes the subtitles of each file that the spans are of, and says how many captions were shortened.

    Args:
        spans (`Iterable[Span]`): All spans, those of a file together and in order.
        options (`SubtitleArguments`): With `existing`, as `caption.py` has it.

    Returns:
        `list[Path]`: The files that now hold subtitles; all are written, or none.

    Raises:
        `FileExistsError`: If there is another file of this name already; for `existing="overwrite"` it is replaced.
        `ValueError`: If `options.merge` is given and the spans are of several files; or see [`captions.muxing.embed`].
    """
    by_path = {path: list(group) for path, group in groupby(spans, key=lambda span: span.path)}
    profile = load_profile(options.profile)
    dialogue = read_subtitles(Path(options.merge)) if options.merge else None
    if dialogue and len(by_path) != 1:
        raise ValueError(f"--merge takes the dialogue of one file: the spans are of {len(by_path)}")
    if dialogue and options.format not in (None, dialogue.kind):
        raise ValueError(f"--merge {options.merge} is {dialogue.kind}: expected {options.format}, as --format says")
    form = dialogue.kind if dialogue else options.format or (None if options.embed else "vtt")
    made, counts = {}, Counts()
    for path, own in by_path.items():
        made[path], count = _make(own, profile, dialogue, options)
        counts += count
    texts = {}
    if form:
        for path, target in _targets(by_path, ENDINGS[form], options).items():
            texts[target] = merge(dialogue, made[path]) if dialogue else WRITERS[form](made[path])
    films = _films(by_path, options) if options.embed else {}
    _check_existing([*texts, *films.values()], texts, options)
    for target, text in texts.items():
        _write(target, text)
    for path, film in films.items():
        from captions.muxing import embed

        cues = made[path] + (dialogue.cues if dialogue else [])
        film.parent.mkdir(parents=True, exist_ok=True)
        embed(Path(path), film, sorted(cues, key=lambda cue: cue.start))
    print(_summary(counts, profile), file=sys.stderr)
    return [*texts, *films.values()]


def _make(spans: list[Span], profile: Profile, dialogue: SubtitleFile | None, options) -> tuple[list[Cue], Counts]:
    busy = [(cue.start, cue.end) for cue in dialogue.cues] if dialogue else []
    return make_cues(spans, profile, busy, options.remind, options.score_threshold)


def _targets(paths: Iterable[str], ending: str, options) -> dict[str, Path]:
    """The subtitle file of each file; of files that differ in their endings alone, with these endings."""
    named: dict[Path, list[str]] = {}
    for path in paths:
        named.setdefault(_place(path, options).with_suffix(""), []).append(path)
    return {
        path: stem.with_name(stem.name + (Path(path).suffix if len(group) > 1 else "") + ending)
        for stem, group in named.items()
        for path in group
    }


def _films(paths: Iterable[str], options) -> dict[str, Path]:
    from captions.muxing import check_embeddable

    for path in paths:
        check_file("--embed", path, "a film")
        check_embeddable(Path(path))
    place = {path: _place(path, options) for path in paths}
    return {path: target.with_name(f"{target.stem}.captioned{target.suffix}") for path, target in place.items()}


def _place(path: str, options) -> Path:
    if options.subtitle_dir is None:
        return Path(path)
    inner = Path(path)
    parts = [part for part in inner.parts if part not in ("..", inner.anchor)]
    return Path(options.subtitle_dir, *parts)


def _check_existing(targets: Sequence[Path], texts: dict[Path, str], options):
    for target in targets:
        if options.merge and target.exists() and target.samefile(options.merge):
            raise FileExistsError(
                f"{target} is the dialogue of --merge itself: name another folder with --subtitle_dir"
            )
        if not target.exists() or options.existing == "overwrite":
            continue
        if target not in texts or target.read_bytes() != texts[target].encode():
            raise FileExistsError(f"{target} exists: --existing overwrite replaces it, --subtitle_dir writes elsewhere")


def _write(target: Path, text: str):
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.write_bytes(text.encode())
    os.replace(unfinished, target)


def _summary(counts: Counts, profile: Profile) -> str:
    told = counts.shown + counts.alternatives + counts.shortened + counts.unfit
    total = told + counts.unsure
    parts = [f"{_count(total, 'description')} of music"]
    if told:
        less = counts.shortened + counts.unfit
        parts.append(f"{less} of {_count(told, 'caption')} shortened ({less / told:.0%})")
    if counts.unfit:
        parts.append(f"{counts.unfit} of them to {profile.music}, because no phrase fits")
    if counts.alternatives:
        parts.append(f"{counts.alternatives} replaced by an alternative that fits")
    if counts.unsure:
        parts.append(f"{counts.unsure} only {profile.music}, because the score is below the threshold")
    if counts.dropped:
        parts.append(f"{counts.dropped} left out, because the music is too short or there is no room")
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s'[: number != 1]}"
