"""What captions beside songs and in their tags promise: their readers find them, and nothing of the user's is lost."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import mutagen
import numpy as np
import pytest
from encoders import decode_whole, encode, noise

from captions import stable_audio, tags
from captions.sidecars import AUDIOCRAFT, CONSUMERS, Sidecars
from captions.tags import FIELD, read_tag, write_tag
from clips.rows import load_captions

CAPTION = 'A "late-night" tune, laid-back; for flûte & 琴.'


@pytest.fixture
def songs(tmp_path) -> list[dict]:
    """Rows of three songs in two folders, of which the last is silent."""
    paths = [tmp_path / "song.mp3", tmp_path / "album" / "02. b.flac", tmp_path / "album" / "silent.wav"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"sound")
    return [{"path": str(path), "caption": caption} for path, caption in zip(paths, [CAPTION, "Two\nlines.", None])]


def written(songs: list[dict], consumer: str, **options) -> dict[str, str]:
    """Writes sidecars, and returns all files that are then beside the songs."""
    Sidecars(consumer, [song["path"] for song in songs], **options).write(songs)
    folder = Path(songs[0]["path"]).parent
    found = (path for path in folder.rglob("*") if path.is_file() and path.read_bytes() != b"sound")
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in found}


def test_ace_step_finds_captions_and_no_lyrics(songs, tmp_path):
    """Its scanner reads the caption of song.mp3 from song.caption.txt, and lyrics from song.lyrics.txt or song.txt."""
    assert {*written(songs, "ace-step")} == {"song.caption.txt", "album/02. b.caption.txt"}
    for song, caption in zip(songs, (CAPTION, "Two lines.")):
        stem = str(Path(song["path"]).parent / Path(song["path"]).stem)
        assert Path(f"{stem}.caption.txt").read_text(encoding="utf-8").strip() == caption
        assert not Path(f"{stem}.txt").exists() and not Path(f"{stem}.lyrics.txt").exists()


def test_kohya_reads_the_first_line_of_a_file_of_the_same_name(songs):
    """Its loader replaces the ending by `caption_extension` and takes the first line."""
    files = written(songs, "kohya")
    assert {name: text.splitlines() for name, text in files.items()} == {
        "song.txt": [CAPTION],
        "album/02. b.txt": ["Two lines."],
    }


def test_audiocraft_finds_every_key(songs):
    """Its `MusicDataset` reads song.json, and by default raises KeyError for a missing field of `MusicInfo`."""
    files = written(songs, "audiocraft")
    assert {*files} == {"song.json", "album/02. b.json"}
    keys = {"title", "artist", "key", "bpm", "genre", "moods", "keywords", "description", "name", "instrument"}
    for text, caption, name in zip(files.values(), (CAPTION, "Two lines."), ("song", "02. b")):
        info = json.loads(text)
        assert {*info} == keys == {*AUDIOCRAFT}
        assert (info.pop("description"), info.pop("name")) == (caption, name) and {*info.values()} == {None}


def test_stable_audio_gets_prompts_from_the_metadata_module(songs):
    """It loads the module of its dataset config from the file, and calls it with the song's path."""
    written(songs, "stable-audio")
    spec = importlib.util.spec_from_file_location("metadata_module", stable_audio.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [module.get_custom_metadata({"path": song["path"]}, None) for song in songs]
    assert found == [{"prompt": CAPTION}, {"prompt": "Two lines."}, {"__reject__": True}]


def test_datasets_loads_the_folder_with_its_texts(songs, tmp_path, monkeypatch):
    written(songs, "audiofolder")
    # Which datasets imports even where it has nothing to encode.
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", SimpleNamespace(AudioEncoder=None))
    loaded = datasets.load_dataset("audiofolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))["train"]
    loaded = loaded.cast_column("audio", datasets.Audio(decode=False))
    found = {Path(row["audio"]["path"]).name: row["text"] for row in loaded}
    assert found == {"song.mp3": CAPTION, "02. b.flac": "Two lines."}
    ours = load_captions(str(tmp_path / "album"), "all", caption_column="text")
    assert ours["captions"][:] == [["Two lines."]]


@pytest.mark.parametrize("consumer", [*CONSUMERS])
def test_files_that_are_there_are_kept_unless_they_are_to_be_replaced(songs, consumer, tmp_path):
    name = min(written(songs, consumer), key=len)
    ours = (tmp_path / name).read_text(encoding="utf-8")
    with pytest.raises(FileExistsError, match="is there already"):
        written(songs, consumer)
    (tmp_path / name).write_text("by hand")
    assert written(songs, consumer, existing="skip")[name] == "by hand"
    sidecars = Sidecars(consumer, [songs[0]["path"]], "error", resumed=True)
    sidecars.write(songs)
    assert sidecars.kept == [tmp_path / name] and (tmp_path / name).read_text() == "by hand"
    assert written(songs, consumer, existing="overwrite")[name] == ours
    new = [songs[0] | {"caption": "Another."}, *songs[1:]]
    Sidecars(consumer, [songs[0]["path"]], "skip").write(new, former=songs)  # it was ours
    assert "Another." in (tmp_path / name).read_text(encoding="utf-8")


def test_two_songs_of_one_name_are_an_error(songs, tmp_path):
    paths = [str(tmp_path / "song.mp3"), str(tmp_path / "song.flac")]
    with pytest.raises(ValueError, match=r"two songs would share .*song\.txt"):
        Sidecars("kohya", paths)
    Sidecars("audiofolder", paths)


# -- tags --------------------------------------------------------------------------------------------------------------

CODECS = {"mp3": ("libmp3lame", "mp3"), "flac": ("flac", "flac"), "ogg": ("vorbis", "ogg"), "opus": ("libopus", "ogg")}
CODECS |= {"m4a": ("aac", "mp4")}


@pytest.fixture(params=CODECS)
def tagged(request, tmp_path) -> Path:
    """A song with a title and a comment that somebody wrote."""
    path = tmp_path / f"song.{request.param}"
    rate = 48_000
    path.write_bytes(encode(*CODECS[request.param], rate, "stereo", noise(1.0, rate)))
    file = mutagen.File(path, easy=True)
    if file.tags is None:
        file.add_tags()
    file["title"] = "A title"
    file.save()
    os.utime(path, ns=(10**18, 10**18))
    return path


def everything_else(path: Path) -> dict[str, str]:
    return {key: str(value) for key, value in (mutagen.File(path).tags or {}).items() if FIELD not in key.upper()}


def test_a_tag_changes_neither_sound_nor_other_tags_and_can_be_removed(tagged):
    sound, others = decode_whole(tagged.read_bytes()), everything_else(tagged)
    assert read_tag(tagged) is None and others
    seen = []
    write_tag(tagged, CAPTION, lambda status: seen.append((status.st_size, status.st_mtime_ns)))
    assert seen == [(tagged.stat().st_size, 10**18)] and tagged.stat().st_mtime_ns == 10**18
    content = tagged.read_bytes()
    assert np.array_equal(decode_whole(content)[0], sound[0])
    assert read_tag(tagged) == CAPTION and everything_else(tagged) == others
    write_tag(tagged, CAPTION, lambda status: pytest.fail("written again"))
    write_tag(tagged, "Another one.")
    assert read_tag(tagged) == "Another one." and everything_else(tagged) == others
    write_tag(tagged, None)
    assert read_tag(tagged) is None and everything_else(tagged) == others
    assert np.array_equal(decode_whole(tagged.read_bytes())[0], sound[0])
    assert [path.name for path in tagged.parent.iterdir()] == [tagged.name]


def test_the_field_is_the_one_that_is_promised(tagged):
    write_tag(tagged, CAPTION)
    key = {"mp3": f"TXXX:{FIELD}", "m4a": f"----:com.apple.iTunes:{FIELD}"}.get(tagged.suffix[1:], FIELD)
    assert key in mutagen.File(tagged).tags


def test_tags_of_version_2_3_stay_of_it_and_a_file_without_tags_is_as_before(tmp_path):
    path = tmp_path / "song.mp3"
    path.write_bytes(encode("libmp3lame", "mp3", 48_000, "mono", noise(1.0, 48_000)))
    mutagen.id3.ID3(path).delete(path)
    bare = path.read_bytes()
    write_tag(path, CAPTION)
    write_tag(path, None)
    assert path.read_bytes() == bare
    old = mutagen.id3.ID3()
    old.add(mutagen.id3.TYER(encoding=0, text=["1999"]))
    old.save(path, v2_version=3)
    write_tag(path, CAPTION)
    found = mutagen.id3.ID3(path, translate=False)
    assert found.version == (2, 3, 0) and str(found["TYER"]) == "1999" and read_tag(path) == CAPTION


def test_other_formats_and_a_missing_library_are_said(tmp_path, monkeypatch):
    (tmp_path / "song.wav").write_bytes(encode("pcm_s16le", "wav", 8_000, "mono", noise(1.0, 8_000)))
    (tmp_path / "text.mp3").write_text("no music")
    for name in ("song.wav", "text.mp3"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=r"mp3, flac, ogg, opus and m4a only|cannot be read"):
            write_tag(tmp_path / name, CAPTION)
        assert (tmp_path / name).read_bytes() == before
    monkeypatch.setitem(sys.modules, "mutagen", None)
    with pytest.raises(ImportError, match="pip install mutagen"):
        tags.check_mutagen()
