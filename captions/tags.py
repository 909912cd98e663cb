"""
Captions in the tags of audio files, in a field of their own, `RGMC_CAPTION`: no other field is changed.

mutagen, which is under the GPL, is imported here alone and only when tags are wanted.
"""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captions.ledger import Ledger, row_key

FIELD = "RGMC_CAPTION"
FORMATS = "mp3, flac, ogg, opus and m4a"


def check_mutagen():
    """Raises `ImportError` if mutagen is missing."""
    try:
        import mutagen  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "--tags and --remove_tags need mutagen, which is under the GPL: `pip install mutagen`"
        ) from error


def read_tag(path: str | os.PathLike) -> str | None:
    """The caption in the tags of a file, or None."""
    tags, key, _ = _open(path)
    return None if key not in tags else _text(tags[key])


def write_tag(path: str | os.PathLike, caption: str | None, before: Callable[[os.stat_result], None] | None = None):
    """
    Writes a caption into the tags of a file, or removes it with None. A tagged copy takes the file's place, so that the
    file is whole at any time. It keeps its time of modification.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        caption (`str`, *optional*):
            The caption.
        before (`Callable[[os.stat_result], None]`, *optional*):
            Called with the status of the copy before it takes the file's place.

    Raises:
        `ValueError`: If the file is of another format than mp3, flac, ogg, opus or m4a, or damaged.
    """
    if read_tag(path) == caption:
        return
    real = Path(os.path.realpath(path))
    copy = real.with_name(f".{real.stem}.tagged{real.suffix}")
    try:
        shutil.copy2(real, copy)
        status = real.stat()
        _change(copy, caption)
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        if before:
            before(copy.stat())
        os.replace(copy, real)
    finally:
        copy.unlink(missing_ok=True)


def write_tags(ledger: Ledger, new: dict[str, dict], checkpoint: dict, settings: dict[str, dict]) -> dict[str, str]:
    """Tags the files of all valid rows. That changes their keys, which `new` and the journal note before a file is."""
    valid = ledger.held() | new

    def note(path: str, status: os.stat_result):
        new[path] = valid[path] | {"key": row_key((status.st_size, status.st_mtime_ns), checkpoint, settings[path])}
        ledger.record([new[path]])

    problems = tag_files({path: row["caption"] for path, row in valid.items() if row["caption"] is not None}, note)
    ledger.rekey({path: row["key"] for path, row in new.items()})
    return problems


def tag_files(captions: dict[str, str | None], note: Callable | None = None) -> dict[str, str]:
    """Writes captions into the tags of files, or removes them; returns the reasons of files that have no such tags."""
    problems = {}
    for path, caption in captions.items():
        try:
            write_tag(path, caption and " ".join(caption.split()), note and functools.partial(note, path))
        except (ValueError, OSError) as error:
            problems[path] = str(error)
    return problems


def _open(path: str | os.PathLike) -> tuple[Any, str, Any]:
    """The tags of a file, the key of the caption in them, and the file that mutagen has opened."""
    import mutagen
    from mutagen.flac import FLAC
    from mutagen.id3 import ID3
    from mutagen.mp3 import MP3
    from mutagen.mp4 import MP4
    from mutagen.ogg import OggFileType

    try:
        file = mutagen.File(path)
        if isinstance(file, MP3):
            # Frames of ID3v2.3 are not translated, and saved as they were.
            has_tags = file.tags is not None
            tags = ID3(path, translate=file.tags.version[:2] != (2, 3)) if has_tags else ID3()
            return tags, f"TXXX:{FIELD}", file
    except mutagen.MutagenError as error:
        raise ValueError(f"its tags cannot be read ({error})") from error
    if isinstance(file, MP4):
        key = f"----:com.apple.iTunes:{FIELD}"
    elif isinstance(file, (FLAC, OggFileType)):
        key = FIELD
    else:
        raise ValueError(f"tags are written to {FORMATS} only")
    return {} if file.tags is None else file.tags, key, file


def _change(path: Path, caption: str | None):
    import mutagen
    from mutagen.id3 import ID3, TXXX
    from mutagen.mp4 import MP4, MP4FreeForm

    tags, key, file = _open(path)
    try:
        if isinstance(tags, ID3):
            is_v23 = tags.version[:2] == (2, 3)  # which has no UTF-8
            tags.delall(key)
            if caption is not None:
                tags.add(TXXX(encoding=1 if is_v23 else 3, desc=FIELD, text=[caption]))
            if tags:
                tags.save(path, v2_version=3 if is_v23 else 4)
            else:
                file.delete(path)
            return
        if file.tags is None:
            file.add_tags()
        if caption is None:
            del file.tags[key]
        else:
            file.tags[key] = [MP4FreeForm(caption.encode())] if isinstance(file, MP4) else [caption]
        file.save()
    except mutagen.MutagenError as error:
        raise ValueError(f"its tags cannot be written ({error})") from error


def _text(value: Any) -> str:
    value = value[0] if isinstance(value, list) else value.text[0]
    return value.decode() if isinstance(value, bytes) else str(value)
