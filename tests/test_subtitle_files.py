"""What subtitle files promise: other programs read them as they were meant, and nobody else's cue or stream changes."""

import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pysubs2
import pytest
import webvtt
from helpers import LONG_CAPTION, ROOT, make_spans

from captions.muxing import embed
from captions.rendering import Cue
from captions.span_rows import write_spans
from captions.subtitle_files import WRITERS, as_srt, as_ttml, as_vtt, format_time, merge, read_subtitles

TEXTS = [
    ["Rock & roll, AT&T, &amp; and &lt;"],
    ["a < b > c, <3 <i>", "2 --> 3"],
    ["[a tune", "of 808 drums]"],
    ["♪ 🎹👩‍🎤 é e\u0301 ♪"],
    ["שיר שקט עם פסנתר", "موسيقى هادئة (piano)"],
    ["NOTE", "WEBVTT"],
    ["'quoted' \"text\" \\N 100%"],
]
CUES = [Cue(start=1000 * number + 1, end=1000 * number + 900, lines=lines) for number, lines in enumerate(TEXTS)] + [
    Cue(start=3_600_000, end=37_261_234, lines=["late"])
]
EXPECTED = [(cue.start, cue.end, "\n".join(cue.lines)) for cue in CUES]


def in_ms(seconds: float) -> int:
    return round(1000 * seconds)


def visible(text: str) -> str:
    """Without the invisible character that keeps "<" from being a tag in SRT."""
    return text.replace("\u2060", "")


# -- parsed back -------------------------------------------------------------------------------------------------------


def test_webvtt_reads_our_vtt_and_srt():
    for form, unescape in (("vtt", html.unescape), ("srt", visible)):
        read = webvtt.from_buffer(io.StringIO(WRITERS[form](CUES)), format=form)
        times = [(cue.start, cue.end) for cue in read]
        assert times == [(format_time(start), format_time(end)) for start, end, _ in EXPECTED]
        assert [unescape(cue.raw_text) for cue in read] == [text for _, _, text in EXPECTED]


def test_pysubs2_reads_our_vtt_and_srt():
    for text, form, unescape in ((as_srt(CUES), "srt", visible), (as_vtt(CUES), "vtt", html.unescape)):
        read = pysubs2.SSAFile.from_string(text, format_=form)
        expected = [(start, end, said.replace("\\N", "\n")) for start, end, said in EXPECTED]
        assert [(event.start, event.end, unescape(event.plaintext)) for event in read] == expected


def test_we_read_what_we_write(tmp_path):
    for kind in ("vtt", "srt"):
        (tmp_path / f"film.{kind}").write_text(WRITERS[kind](CUES), encoding="utf-8")
        read = read_subtitles(tmp_path / f"film.{kind}")
        assert read.kind == kind
        assert [(cue.start, cue.end, visible("\n".join(cue.lines))) for cue in read.cues] == EXPECTED
        (tmp_path / f"none.{kind}").write_text(WRITERS[kind]([]), encoding="utf-8")
        assert read_subtitles(tmp_path / f"none.{kind}").cues == []


def test_what_players_take_for_tags_is_not_lost_from_srt():
    text = as_srt([Cue(start=0, end=1000, lines=["by <artist>, {\\an8} 2 < 3"])])
    assert pysubs2.SSAFile.from_string(text)[0].plaintext == "by <\u2060artist>, (\\an8) 2 < 3"


def test_ttml_is_xml_that_says_the_same():
    space = "{http://www.w3.org/ns/ttml}"
    found = []
    for part in ElementTree.fromstring(as_ttml(CUES).encode()).iter(f"{space}p"):
        times = [part.attrib[name] for name in ("begin", "end")]
        hours = [re.fullmatch(r"(\d\d):(\d\d):(\d\d)\.(\d{3})", time).groups() for time in times]
        start, end = (((int(h) * 60 + int(m)) * 60 + int(s)) * 1000 + int(ms) for h, m, s, ms in hours)
        found.append((start, end, "".join("\n" if piece is None else piece for piece in _pieces(part))))
    assert found == EXPECTED


def _pieces(part):
    yield part.text or ""
    for line_break in part:
        yield None
        yield line_break.tail or ""


PAGE = """<!DOCTYPE html><meta charset="utf-8"><video><track default kind="captions" src="film.vtt"></video><pre></pre>
<script>
const track = document.querySelector("track");
track.track.mode = "showing";
track.onload = () => {
  const cues = [...track.track.cues].map((cue) => [cue.startTime, cue.endTime, cue.getCueAsHTML().textContent]);
  document.querySelector("pre").textContent = "cues:" + encodeURIComponent(JSON.stringify(cues)) + ":";
};
</script>"""


def test_chromium_shows_our_vtt(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    (tmp_path / "film.vtt").write_text(as_vtt(CUES), encoding="utf-8")
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--allow-file-access-from-files",
    ]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"]
    ended = subprocess.run(
        [browser, *options, (tmp_path / "page.html").as_uri()],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search("cues:([^:]*):", ended.stdout)
    assert found, ended.stdout + ended.stderr
    cues = json.loads(re.sub("%([0-9A-F]{2})", lambda code: chr(int(code[1], 16)), found[1]).encode("latin-1").decode())
    assert [(in_ms(start), in_ms(end), text) for start, end, text in cues] == EXPECTED


# -- from spans --------------------------------------------------------------------------------------------------------

RENDER = """
import sys
import caption
from clips.options import parse

sys.argv = ["caption.py", *sys.argv[1:]]
(args,) = parse(caption.CaptionArguments, sys.argv[1:], positional="paths")
status = caption.run(args)
print("torch" in sys.modules, status, file=sys.stderr)
"""


def test_subtitles_are_written_without_torch_and_twice_the_same(tmp_path):
    write_spans(tmp_path / "spans.jsonl", make_spans((10, LONG_CAPTION), (20, "silence"), (30, "A flute.")))
    written = []
    for folder in ("one", "two"):
        ended = subprocess.run(
            [sys.executable, "-c", RENDER, "--render", "spans.jsonl", "--format", "vtt", "--subtitle_dir", folder],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=100,
        )
        said, state = ended.stderr.splitlines()
        assert state == "False 0" and ended.stdout == f"{folder}/film.vtt\n"
        assert said == "2 descriptions of music; 1 of 2 captions shortened (50%)"
        written.append((tmp_path / folder / "film.vtt").read_bytes())
    assert written[0] == written[1]
    assert webvtt.from_buffer(io.StringIO(written[0].decode()))[0].text.startswith("[a calm piano piece")


def test_each_file_of_the_spans_has_its_subtitles(caption_command, tmp_path):
    spans = []
    for path in ("a/song.mp3", "a/song.wav", "b/other.mp3"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        spans += make_spans((10, "A flute."), path=path)
    write_spans(tmp_path / "spans.jsonl", spans)
    status, out, _ = caption_command("--render", "spans.jsonl", "--format", "srt")
    assert status == 0 and out.split() == ["a/song.mp3.srt", "a/song.wav.srt", "b/other.srt"]
    assert read_subtitles(tmp_path / "b" / "other.srt").cues[0].text == "[a flute]"
    for form, ending in (("vtt", "vtt"), ("ttml", "ttml"), ("txt", "cues.txt"), ("json", "cues.json")):
        caption_command("--render", "spans.jsonl", "--format", form, "--subtitle_dir", "out")
        assert (tmp_path / "out" / "b" / f"other.{ending}").exists()
    assert json.loads((tmp_path / "out" / "b" / "other.cues.json").read_text()) == [
        {"start": 0.0, "end": 7.0, "text": "[a flute]", "caption": "A flute."}
    ]
    assert (tmp_path / "out" / "b" / "other.cues.txt").read_text() == "00:00:00  [a flute]\n"


def test_a_file_that_is_there_is_not_replaced_unasked(caption_command, tmp_path):
    write_spans(tmp_path / "spans.jsonl", make_spans((10, "A flute.")))
    (tmp_path / "film.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n")
    status, _, err = caption_command("--render", "spans.jsonl")
    assert status == 2 and "film.vtt exists: --existing overwrite replaces it" in err
    assert "Hello" in (tmp_path / "film.vtt").read_text()
    assert caption_command("--render", "spans.jsonl", "--existing", "overwrite")[0] == 0
    assert "flute" in (tmp_path / "film.vtt").read_text() and caption_command("--render", "spans.jsonl")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.vtt", "spans.jsonl"]


# -- among dialogue ----------------------------------------------------------------------------------------------------

DIALOGUE = """WEBVTT Kind: captions
X-Header: 1

STYLE
::cue { color: yellow }

REGION
id:left

NOTE before the first

hello
00:00:03.000 --> 00:00:05.000 align:start line:0
<v Ann>Hello &amp; welcome.</v>

NOTE a comment
in two lines

00:00:09.000 --> 00:00:10.000
Bye.
"""


def test_music_is_put_between_dialogue_and_changes_none_of_it(tmp_path):
    cues = [
        Cue(start=start, end=start + 900, lines=[text]) for start, text in ((0, "[a]"), (6000, "[b]"), (11_000, "[c]"))
    ]
    for newline in ("\n", "\r\n"):
        for mark in ("", "\ufeff"):
            for ending in ("\n", "", "\n\n\n"):
                original = (mark + DIALOGUE.rstrip("\n") + ending).replace("\n", newline)
                (tmp_path / "dialogue.vtt").write_bytes(original.encode())
                merged = merge(read_subtitles(tmp_path / "dialogue.vtt"), cues)
                (tmp_path / "merged.vtt").write_bytes(merged.encode())
                read = webvtt.from_buffer(io.StringIO(merged.removeprefix("\ufeff").replace("\r\n", "\n")))
                assert [cue.text for cue in read] == ["[a]", "Hello &amp; welcome.", "[b]", "Bye.", "[c]"]
                assert [cue.text for cue in read_subtitles(tmp_path / "merged.vtt").cues][1] == "Hello & welcome."
                for cue in cues:  # without ours every line of theirs is left
                    block = re.escape(f"{newline.join(as_vtt([cue]).splitlines()[2:])}{newline}")
                    merged = re.sub(f"{newline}{block}$|{block}{newline}", "", merged, count=1)
                assert merged.rstrip() == original.rstrip()
    text = merge(read_subtitles(tmp_path / "dialogue.vtt"), cues).replace("\r\n", "\n")
    assert text.index("id:left") < text.index("[a]") < text.index("NOTE before") < text.index("[b]")
    assert text.index("[b]") < text.index("NOTE a comment") < text.index("Bye.")


def test_merging_into_srt_counts_on_and_changes_no_text(tmp_path):
    (tmp_path / "dialogue.srt").write_text(
        "1\n00:00:03,000 --> 00:00:05,000\n<i>Hello</i>\n\n2\n00:00:09,000 --> 00:00:10,000\n12\n"
    )
    cues = [Cue(start=start, end=start + 900, lines=["[a]"]) for start in (0, 6000, 11_000)]
    assert merge(read_subtitles(tmp_path / "dialogue.srt"), cues) == (
        "1\n00:00:00,000 --> 00:00:00,900\n[a]\n\n2\n00:00:03,000 --> 00:00:05,000\n<i>Hello</i>\n\n"
        "3\n00:00:06,000 --> 00:00:06,900\n[a]\n\n4\n00:00:09,000 --> 00:00:10,000\n12\n\n"
        "5\n00:00:11,000 --> 00:00:11,900\n[a]\n"
    )
    (tmp_path / "dense.srt").write_text(
        "1\n00:00:03,000 --> 00:00:05,000\nHello\n2\n00:00:09,000 --> 00:00:10,000\n12\n"
    )
    assert [(cue.start, cue.lines) for cue in read_subtitles(tmp_path / "dense.srt").cues] == [
        (3000, ["Hello"]),
        (9000, ["12"]),
    ]
    merged = merge(read_subtitles(tmp_path / "dense.srt"), cues[1:2])
    assert "Hello\n\n2\n00:00:06,000 --> 00:00:06,900\n[a]\n\n3\n" in merged
    for text in ("", "WEBVTT\n"):
        (tmp_path / "empty.srt").write_text(text)
        (tmp_path / "merged.srt").write_text(merge(read_subtitles(tmp_path / "empty.srt"), cues))
        assert len(read_subtitles(tmp_path / "merged.srt").cues) == 3


def test_the_command_merges(caption_command, tmp_path):
    write_spans(tmp_path / "spans.jsonl", make_spans((8, "A calm piano piece with strings."), (20, "silence")))
    (tmp_path / "film.vtt").write_text(DIALOGUE)
    words = ["--render", "spans.jsonl", "--merge", "film.vtt", "--existing", "overwrite"]
    status, _, err = caption_command(*words)
    assert status == 2 and "film.vtt is the dialogue of --merge: name another folder" in err
    assert caption_command(*words, "--subtitle_dir", "out")[0] == 0
    cues = read_subtitles(tmp_path / "out" / "film.vtt").cues
    assert [(cue.start, cue.end, cue.text) for cue in cues] == [
        (0, 2916, "[a calm piano piece with strings]"),
        (3000, 5000, "Hello & welcome."),
        (8000, 8916, "[music stops]"),
        (9000, 10_000, "Bye."),
    ]
    status, _, err = caption_command(*words, "--format", "srt", "--subtitle_dir", "out")
    assert status == 2 and "film.vtt is vtt: expected srt" in err


# -- in a film ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["mp4", "mkv"])
def film(request, tmp_path) -> Path:
    """A film of 3 s with sound, chapters and metadata; its frames are not in the order of their times."""
    path = tmp_path / f"film.{request.param}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "A film"
        video = container.add_stream("libx264", rate=24, options={"bf": "2"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=48_000, layout="mono")
        audio.metadata["language"] = "deu"
        container.set_chapters(
            [{"id": 1, "start": 0, "end": 1500, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}]
        )
        draw = np.random.default_rng(0)
        for _ in range(72):
            frame = av.VideoFrame.from_ndarray(draw.integers(0, 255, (48, 64, 3), dtype=np.uint8), "rgb24")
            container.mux(video.encode(frame))
        for number in range(140):
            frame = av.AudioFrame.from_ndarray(draw.normal(0, 0.1, (1, 1024)).astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 48_000, 1024 * number
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def packets(path: Path) -> list[list[tuple]]:
    """Time, length, flags and hash of each packet of each stream that is not subtitles."""
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type in ("video", "audio")]
        found = [[] for _ in streams]
        for packet in container.demux(streams):
            if packet.size:
                digest = hashlib.sha256(bytes(packet)).hexdigest()
                times = [None if time is None else time * packet.time_base for time in (packet.pts, packet.dts)]
                row = (*times, packet.duration, packet.is_keyframe, digest)
                found[packet.stream.index].append(row)
        return found


def test_subtitles_are_put_into_a_copy_whose_streams_are_the_same(film):
    before = film.read_bytes()
    cues = [
        Cue(start=0, end=500, lines=["[a tune & <b>]"]),
        Cue(start=1500, end=2500, lines=["♪ one ♪", "שיר"]),
    ]
    target = film.with_name(f"copy{film.suffix}")
    embed(film, target, cues)
    assert film.read_bytes() == before and packets(target) == packets(film)
    with av.open(str(film)) as one, av.open(str(target)) as two:
        (track,) = two.streams.subtitles
        assert track.metadata["language"] == "eng" and track.disposition & av.stream.Disposition.hearing_impaired
        assert [chapter["metadata"]["title"] for chapter in two.chapters()] == ["One"]
        assert two.metadata["title"] == "A film" and two.streams.audio[0].metadata["language"] == "deu"
        for old, new in ((one.streams.video[0], two.streams.video[0]), (one.streams.audio[0], two.streams.audio[0])):
            assert old.codec_context.extradata == new.codec_context.extradata
            assert old.disposition == new.disposition
        assert one.streams.video[0].average_rate == two.streams.video[0].average_rate == 24
        shown = [
            (packet.pts, packet.pts + packet.duration, bytes(packet)[2:] if film.suffix == ".mp4" else bytes(packet))
            for packet in two.demux(track)
            if packet.size > 2
        ]
    assert shown == [(cue.start, cue.end, "\n".join(cue.lines).encode()) for cue in cues]
    again = film.with_name(f"again{film.suffix}")
    embed(target, again, cues)  # with a track of subtitles already
    with av.open(str(again)) as container:
        assert len(container.streams.subtitles) == 2
    assert packets(again) == packets(film)


def test_the_command_embeds(caption_command, film, tmp_path):
    write_spans(tmp_path / "spans.jsonl", make_spans((2, "A flute."), (3, "silence"), path=film.name))
    status, out, _ = caption_command("--render", "spans.jsonl", "--embed")
    assert status == 0 and out == f"film.captioned{film.suffix}\n"
    assert packets(tmp_path / out.strip()) == packets(film)
    write_spans(tmp_path / "spans.jsonl", make_spans((2, "A flute."), path="song.mp3"))
    (tmp_path / "song.mp3").touch()
    status, _, err = caption_command("--render", "spans.jsonl", "--embed")
    assert status == 2 and "song.mp3 is not a film that takes subtitles: expected .mp4, .m4v, .mkv" in err
    film.write_bytes(b"no film")
    write_spans(tmp_path / "spans.jsonl", make_spans((2, "A flute."), path=film.name))
    status, _, err = caption_command("--render", "spans.jsonl", "--embed", "--existing", "overwrite")
    assert status == 2 and f"{film.name} cannot be copied" in err
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]


def test_two_films_do_not_become_one(caption_command, film, tmp_path, monkeypatch):
    paths = [Path("..", "a", film.name), Path("a", film.name)]
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b/a"):
        Path(folder).mkdir(parents=True)
        shutil.copy(film, folder)
    monkeypatch.chdir(tmp_path / "b")
    write_spans(Path("two.jsonl"), [span for path in paths for span in make_spans((3, "A flute."), path=str(path))])
    status, _, err = caption_command("--render", "two.jsonl", "--embed", "--subtitle_dir", "out")
    place = Path("out", "a", f"film.captioned{film.suffix}")
    assert status == 2 and f"two films would both become {place}" in err
    assert not Path("out").exists()
