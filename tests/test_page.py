"""The page of app.py in a browser: Chromium, without a window. The tests are skipped where it is not installed."""

import io
import json
import os
import re
import time
import urllib.request
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from browser import tab_to, violations
from helpers import ROOT

gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed")

from gradio.route_utils import delete_files_created_by_app  # noqa: E402

from captions.job import BUNDLED  # noqa: E402
from captions.subtitle_files import read_subtitles  # noqa: E402
from page import build_page, launch  # noqa: E402
from page.caption import EXAMPLES  # noqa: E402
from page.core import Core  # noqa: E402

SONGS = sorted(EXAMPLES.glob("*.ogg"))
LONGEST = 1.5  # minutes


@pytest.fixture(scope="module")
def core():
    return Core(str(BUNDLED), {"the same again": str(BUNDLED / "datastore")}, LONGEST, max_files=4)


@pytest.fixture(scope="module")
def served(core):
    """The page and its address."""
    blocks = build_page(core)
    _, url, _ = launch(blocks, max_megabytes=20, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield blocks, url
    blocks.close()


@pytest.fixture
def open_page(browser, served):
    """Opens the page for another user. What it asks of other hosts, and its errors, fail the test."""
    contexts, requests, problems = [], [], []

    def open_it(tab: str = "Caption", **options):
        contexts.append(browser.new_context(reduced_motion="reduce", **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(served[1])
        page.get_by_role("tab", name=tab, exact=True).click()
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not problems
    hosts = {url.split("/")[2] for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {served[1].split("/")[2]}


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A film with two songs and silence between them."""
    sounds = [soundfile.read(song, dtype="float32") for song in SONGS[:2]]
    rate = sounds[0][1]
    sound = np.concatenate([sounds[0][0], np.zeros(4 * rate, np.float32), sounds[1][0]])
    path = tmp_path_factory.mktemp("film") / "holiday film.mp4"
    with av.open(path, "w") as file:
        picture = file.add_stream("mpeg4", rate=5)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        voice = file.add_stream("aac", rate=rate, layout="mono")
        for _ in range(int(5 * len(sound) / rate)):
            file.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")))
        for start in range(0, len(sound), 1024):
            frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            file.mux(voice.encode(frame))
        for stream in (picture, voice):
            file.mux(stream.encode())
    return path


def upload(page, where: str, *paths: Path):
    page.set_input_files(f"{where} input[type=file]", [str(path) for path in paths])
    for path in paths:  # gradio shows the stem and the ending apart
        page.locator(where).get_by_text(path.stem, exact=False).first.wait_for()


def read(page, field: str) -> str:
    """The text of a field, once there is some."""
    ready = "document.querySelector(`${field} textarea`).value || document.querySelector('.toast-message-text')"
    page.wait_for_function(f"field => {ready}", arg=field)
    assert page.locator(".toast-message-text").all_inner_texts() == []
    return page.input_value(f"{field} textarea")


def caption_example(page, song: Path) -> str:
    page.get_by_role("button", name=song.name).click()
    page.locator("#file").get_by_text(song.stem, exact=False).first.wait_for()
    page.click("#caption-button")
    return read(page, "#caption")


def error_of(page) -> str:
    return page.locator(".toast-message-text").first.inner_text()


# -- captions ---------------------------------------------------------------------------------------------------------


def test_an_example_has_the_caption_of_the_pipeline_and_shows_what_the_model_read(open_page, core):
    page, song = open_page(), SONGS[0]
    expected = core.pipeline(str(song))
    assert caption_example(page, song) == expected["caption"]
    assert read(page, "#without") == core.pipeline(str(song), candidates=[])["caption"]
    (candidate,) = expected["candidates"]
    cells = page.locator("#candidates td").all_inner_texts()
    assert cells == [candidate["text"], f"{candidate['similarity']:.3f}", "not stated", "not stated"]
    for phrase in page.locator("#candidates mark").all_inner_texts():
        assert phrase.lower() in expected["caption"].lower() and phrase in candidate["text"]
    assert page.input_value("#candidate textarea") == candidate["text"]
    assert f"Score {expected['score']:.2f}" in page.inner_text("#score")
    assert "not about whether the caption is true" in page.inner_text("#score")
    if os.environ.get("RGMC_PICTURES"):  # of the README
        page.set_viewport_size({"width": 1000, "height": 760})
        page.screenshot(path=ROOT / "docs" / "pictures" / "page.png")


def test_another_candidate_makes_another_caption(open_page, core):
    page, song = open_page(), SONGS[0]
    first = caption_example(page, song)
    page.fill("#candidate textarea", "a slow happy ambient piece featuring trumpet")
    page.click("#steer-button")
    steered = read(page, "#steered")
    assert steered != first
    assert steered == core.pipeline(str(song), candidates="a slow happy ambient piece featuring trumpet")["caption"]


def test_words_are_explained_only_when_asked_for(open_page, core):
    page, song = open_page(), SONGS[1]
    caption_example(page, song)
    assert not page.locator("#explain-button").is_visible()
    page.get_by_role("button", name="Why these words?").click()
    assert page.locator("#explanation td").count() == 0
    page.click("#explain-button")
    page.locator("#explanation td").first.wait_for()
    words = core.pipeline(str(song), explain=True)["explanation"]["words"]
    cells = page.locator("#explanation td").all_inner_texts()
    assert cells[::5] == [row["word"] or "(end)" for row in words]
    assert cells[1::5] == [f"{row['audio']:+.2f}" for row in words]
    assert cells[3::5] == [f"{row['candidate']:+.2f}" for row in words]


def test_two_users_at_once_get_their_own_captions(open_page, core):
    pages = [open_page(), open_page()]
    for page, song in zip(pages, SONGS):
        page.get_by_role("button", name=song.name).click()
        page.locator("#file").get_by_text(song.stem, exact=False).first.wait_for()
    for page in pages:
        page.click("#caption-button")
    captions = [core.pipeline(str(song))["caption"] for song in SONGS[:2]]
    assert captions[0] != captions[1]
    assert [read(page, "#caption") for page in pages] == captions


# -- tracks and libraries ---------------------------------------------------------------------------------------------


def cues_of(page) -> list[tuple[int, int, str]]:
    page.wait_for_function("document.querySelector('#player video')?.textTracks[0]?.cues?.length")
    script = (
        "[...document.querySelector('#player video').textTracks[0].cues].map(c => [c.startTime, c.endTime, c.text])"
    )
    return [(round(1000 * start), round(1000 * end), text) for start, end, text in page.evaluate(script)]


def download(page, where: str, number: int, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(f"{where} a[download]").nth(number).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_a_film_plays_with_the_subtitles_that_are_downloaded(open_page, core, film, tmp_path, monkeypatch):
    page = open_page("Track")
    upload(page, "#track-file", film)
    page.click("#track-button")
    shown = cues_of(page)
    assert page.evaluate("document.querySelector('#player video').error") is None
    vtt, srt, jsonl = (download(page, "#subtitles", number, tmp_path) for number in range(3))
    assert [path.name for path in (vtt, srt, jsonl)] == [f"holiday film{end}" for end in (".vtt", ".srt", ".jsonl")]
    for path in (vtt, srt):
        cues = read_subtitles(path).cues
        assert [(cue.start, cue.end, "\n".join(cue.lines)) for cue in cues] == shown
    spans = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert [span["kind"] for span in spans].count("silence") == 1
    expected = core.pipeline(str(film), spans=True)
    assert [span["caption"] for span in spans] == [span["caption"] for span in expected]
    assert page.locator("#spans td").count() == 4 * len(spans)

    def fail(*args, **kwargs):
        raise AssertionError("the model is not needed for this")

    monkeypatch.setattr(core, "spans", fail)
    page.get_by_label("Only that there is music").check()
    # Until the new track is there: one that says more than that there is music is the old one.
    cues = "[...(document.querySelector('#player video')?.textTracks[0]?.cues || [])]"
    page.wait_for_function(f"{cues}.length && {cues}.every(cue => cue.text.startsWith('[music'))")
    assert {text for *_, text in cues_of(page)} <= {"[music]", "[music stops]"}


def test_a_library_becomes_a_zip_of_sidecars_and_says_what_failed(open_page, core, tmp_path):
    page = open_page("Library")
    broken = tmp_path / "broken.mp3"
    broken.write_bytes(b"no music")
    upload(page, "#library-files", *SONGS[:2], broken)
    page.click("#library-button")
    page.locator("#library-table td").first.wait_for()
    assert "2 files captioned, 1 not" in page.inner_text("#library-table caption")
    cells = page.locator("#library-table td").all_inner_texts()
    assert cells[-2] == "broken.mp3" and cells[-1].startswith("Not captioned: ")
    with zipfile.ZipFile(download(page, "#archive", 0, tmp_path)) as archive:
        assert sorted(archive.namelist()) == ["captions.jsonl", *(f"{song.stem}.txt" for song in SONGS[:2])]
        for song in SONGS[:2]:
            assert archive.read(f"{song.stem}.txt").decode() == core.pipeline(str(song))["caption"] + "\n"
        rows = [json.loads(line) for line in archive.read("captions.jsonl").splitlines()]
    assert [row["path"] for row in rows] == [song.name for song in SONGS[:2]]


# -- files that cannot be used ----------------------------------------------------------------------------------------


def write_bad(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("These are the words of a song.\n" * 50)
    elif kind == "cut":
        data = io.BytesIO(SONGS[0].read_bytes()[:60])
        path.write_bytes(data.read())
    else:
        seconds = 60 * LONGEST + 1 if kind == "long" else 12
        soundfile.write(path, np.zeros(int(8_000 * seconds), np.int16), 8_000)
    return path


SENTENCES = {
    "empty": "empty.wav: .*expected audio, or video with sound: choose another file",
    "text": "text.wav: .*: choose another file",
    "cut": "cut.wav: .*: choose another file",
    "silent": "silent.wav: there is only silence where the model listens, in the middle: choose another file",
    "long": "long.wav lasts 2 minutes, and this page takes up to 1.5: cut it into shorter files",
}


def test_files_that_cannot_be_used_get_a_sentence_and_no_traceback(open_page, tmp_path, capfd):
    page = open_page()
    page.click("#caption-button")
    assert error_of(page) == "Choose or record a file first."
    for kind, sentence in SENTENCES.items():
        page.reload()
        upload(page, "#file", write_bad(tmp_path, kind))
        page.click("#caption-button")
        said = error_of(page)
        assert re.match(sentence, said), said
        assert "/" not in said.replace("`python caption.py FILE --spans`", "") and "\n" not in said
        assert page.input_value("#caption textarea") == ""
    logged = capfd.readouterr()
    assert "Traceback" not in logged.err + logged.out


def test_a_library_of_too_many_files_is_refused(open_page, tmp_path):
    page = open_page("Library")
    files = []
    for number in range(5):
        files.append(tmp_path / f"song-{number}.ogg")
        files[-1].write_bytes(SONGS[0].read_bytes())
    upload(page, "#library-files", *files)
    page.click("#library-button")
    assert error_of(page).startswith("These are 5 files, and this page takes up to 4 at once: choose fewer")


def test_uploads_are_deleted_after_an_hour(open_page, served):
    blocks, _ = served
    page = open_page()
    upload(page, "#file", SONGS[2])
    kept = [Path(path) for path in blocks.upload_file_set if Path(path).name == SONGS[2].name]
    assert kept and all(path.exists() for path in kept)
    assert blocks.delete_cache == (3600, 3600)
    delete_files_created_by_app(blocks, 3600)
    assert all(path.exists() for path in kept)
    time.sleep(0.1)
    delete_files_created_by_app(blocks, 0)
    assert not any(path.exists() for path in kept)


# -- everybody --------------------------------------------------------------------------------------------------------


def test_the_keyboard_alone_captions_and_steers(open_page):
    page = open_page()
    page.keyboard.press("Home")
    tab_to(page, text=SONGS[0].name)
    page.keyboard.press("Enter")
    page.locator("#file").get_by_text(SONGS[0].stem, exact=False).first.wait_for()
    page.locator("h1").click()  # as a reader would start again from the top
    tab_to(page, id="caption-button")
    page.keyboard.press("Enter")
    caption = read(page, "#caption")
    page.wait_for_function("text => document.querySelector('#announce').innerText.includes(text)", arg=caption)
    assert page.get_attribute("#announce", "aria-live") == "polite"
    tab_to(page, id="steer-button")
    page.keyboard.press("Space")
    assert read(page, "#steered")


@pytest.mark.parametrize("tab", ["Caption", "Track", "Library"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_nothing_overflows(open_page, film, tab, scheme):
    page = open_page(tab, color_scheme=scheme, viewport={"width": 320, "height": 640})
    assert violations(page) == []
    if tab == "Caption":
        caption_example(page, SONGS[0])
        page.get_by_role("button", name="Why these words?").click()
        page.click("#explain-button")
        page.locator("#explanation td").first.wait_for()
    elif tab == "Library":
        upload(page, "#library-files", SONGS[0])
        page.click("#library-button")
        page.locator("#library-table td").first.wait_for()
    else:
        upload(page, "#track-file", film)
        page.click("#track-button")
        cues_of(page)
    page.wait_for_timeout(300)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


# -- programs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(served):
    return gradio_client.Client(served[1], verbose=False)


def test_the_endpoints_are_two_and_answer_as_the_pipeline_does(client, core, film):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name: [p["parameter_name"] for p in entry["parameters"]] for name, entry in named.items()} == {
        "/caption": ["file", "candidate", "datastore"],
        "/caption_track": ["file", "datastore"],
    }
    song = str(SONGS[0])
    file = gradio_client.handle_file(song)
    found = client.predict(file=file, candidate="", datastore="the same again", api_name="/caption")
    expected = core.pipeline(song)
    assert (found["caption"], found["flags"]) == (expected["caption"], expected["flags"])
    assert found["score"] == pytest.approx(expected["score"], abs=1e-4)
    assert [row["text"] for row in found["candidates"]] == [row["text"] for row in expected["candidates"]]
    assert str(ROOT) not in json.dumps(found)
    given = client.predict(file=file, candidate="a sad waltz", api_name="/caption")
    assert given["caption"] == core.pipeline(song, candidates="a sad waltz")["caption"]
    spans = client.predict(file=gradio_client.handle_file(str(film)), api_name="/caption_track")
    assert [span["caption"] for span in spans] == [span["caption"] for span in core.pipeline(str(film), spans=True)]
    assert {span["file"] for span in spans} == {film.name}


def test_an_endpoint_says_what_is_wrong(client, tmp_path):
    song = gradio_client.handle_file(str(SONGS[0]))
    with pytest.raises(
        gradio_client.exceptions.AppError, match=r"datastore 'jazz': expected one of .*'the same again'"
    ):
        client.predict(file=song, datastore="jazz", api_name="/caption")
    silent = gradio_client.handle_file(str(write_bad(tmp_path, "silent")))
    with pytest.raises(gradio_client.exceptions.AppError, match=r"silent\.wav: there is only silence"):
        client.predict(file=silent, api_name="/caption")


def test_the_endpoints_are_tools_of_the_model_context_protocol(served):
    pytest.importorskip("mcp", reason="mcp is not installed")
    with urllib.request.urlopen(f"{served[1]}gradio_api/mcp/schema") as answer:
        tools = {tool["name"]: tool for tool in json.load(answer)}
    assert {*tools} == {"caption", "caption_track"}
    assert tools["caption"]["description"].startswith("Captions the music of an audio or video file")
