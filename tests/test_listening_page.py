"""
The page of a listening test in a browser: Chromium, without a window. The tests are skipped where it is not installed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from browser import focused, tab_to, violations

import listening_test
from listening.answers import read_answers
from listening.design import GOLD, Study, make_study
from listening.page import write_page

SONGS = [f"song-{number}" for number in range(9)]
NAMES = ("Wolfgang", "Amadeus")
# Sounds end 16 times as soon, so that the tests do not take minutes. A key press has to start them all the same.
FAST = """const play = HTMLMediaElement.prototype.play;
HTMLMediaElement.prototype.play = function () { this.playbackRate = 16; return play.call(this); };"""


def hum(song: str) -> np.ndarray:
    return 0.1 * np.sin(0.01 * (2 + SONGS.index(song)) * np.arange(480_000, dtype=np.float32))


@pytest.fixture(scope="module")
def tests(tmp_path_factory) -> dict[str, tuple[Path, Study]]:
    """A page and its study for each variant."""
    captions = {name: {song: f"{verb} number {i}" for i, song in enumerate(SONGS)} for name, verb in zip(NAMES, "ab")}
    gold = {song: f"a gold caption of piece {i}" for i, song in enumerate(SONGS)}
    found = {}
    for variant in ("hearing", "picture", "text"):
        study = make_study(captions, gold, variant=variant, songs=3, checks=1, repeats=1)
        path = tmp_path_factory.mktemp(variant) / "listening_test.html"
        write_page(path, study, hum, "me@example.org", None)
        found[variant] = path, study
    return found


@pytest.fixture
def open_page(browser):
    """Opens a page from disk; what it asks for and complains of is in `page.requests` and `page.problems`."""
    contexts = []

    def open_it(path: Path, **options):
        contexts.append(browser.new_context(**options))
        contexts[-1].add_init_script(FAST)
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.requests, page.problems = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text))
        page.goto(path.as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()


def begin(page, code: str):
    tab_to(page, id="agree")
    page.keyboard.press("Space")
    tab_to(page, id="code")
    page.keyboard.type(code.lower())
    page.keyboard.press("Enter")


def answer_by_keyboard(page, study: Study, trial, decide):
    """Plays the sound, chooses both answers and goes on, by keys alone. The focus is on the trial's heading."""
    assert focused(page)["id"] == "heading"
    if study.variant == "hearing":
        assert page.locator("fieldset:disabled").count() == 2
        tab_to(page, id="play")
        page.keyboard.press("Space")
        page.wait_for_selector("fieldset:enabled")
        assert page.text_content("#status") == "You can answer now."
    for criterion in study.criteria:
        tab_to(page, name=criterion)
        page.keyboard.press("Space")
        choice = decide(trial, criterion)
        for _ in range(("left", "right", "tie").index(choice)):
            page.keyboard.press("ArrowDown")
        assert focused(page)["value"] == choice
    tab_to(page, id="next")
    page.keyboard.press("Enter")


def decide(trial, criterion: str) -> str:
    better = "tie" if criterion == "fluent" else NAMES[0] if trial.kind != "check" else GOLD
    return {trial.left: "left", trial.right: "right"}.get(better, "tie")


def save(page, folder: Path, kind: str) -> Path:
    tab_to(page, text={"json": "Save my answers", "csv": "Save as a table (CSV)"}[kind])
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.parametrize("variant", ["hearing", "text"])
def test_the_test_is_taken_by_keyboard_alone_survives_a_reload_and_is_analysed(tests, open_page, tmp_path, variant):
    path, study = tests[variant]
    files = []
    for number, (code, trials) in enumerate(study.raters.items()):
        if number and variant == "hearing":
            break  # one rater listens; in the other variant all three take the test
        page = open_page(path)
        begin(page, code)
        for done, trial in enumerate(trials):
            assert page.text_content("#position") == f"{done} of {len(trials)} answered"
            if done == 2 and not number:
                page.reload()
                assert page.text_content("#position") == f"{done} of {len(trials)} answered"
            answer_by_keyboard(page, study, trial, decide)
        assert focused(page)["text"] == "Thank you!"
        saved = [save(page, tmp_path, kind) for kind in ("json", "csv")]
        assert saved[0].name == f"answers-{code}.json"
        assert read_answers(saved[:1], study) == read_answers(saved[1:], study)
        files.append(str(saved[0]))
        assert all(url.startswith(("file:", "data:", "blob:")) for url in page.requests) and not page.problems
        assert [url for url in page.requests if url.startswith("file:")] == [path.as_uri()] * (2 - bool(number))
    for given in read_answers(files, study).values():
        plays = {answer.plays for answer in given.values()}
        assert plays == ({1} if variant == "hearing" else {0}) and all(answer.seconds > 0 for answer in given.values())
    (tmp_path / "key.json").write_text(json.dumps(study.to_dict()))
    listening_test.main(["analyse", *files, "--key", f"{tmp_path}/key.json", "--output_dir", f"{tmp_path}/results"])
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    best, fluent = results["pairs"]
    assert best["shares"]["first"]["value"] == fluent["shares"]["tie"]["value"] == 100
    assert best["votes"] == 3 * len(files)
    for rater in results["raters"]:
        assert (rater["checks_passed"], rater["same"]) == (1, {study.criteria[0]: 1, "fluent": 1})


def test_nothing_is_answered_before_the_sound_is_heard_and_nothing_is_left_out(tests, open_page):
    path, study = tests["hearing"]
    page = open_page(path)
    begin(page, next(iter(study.raters)))
    tab_to(page, id="next")
    page.keyboard.press("Enter")
    assert page.text_content("#problem") == "Please listen to the end first." and focused(page)["id"] == "play"
    page.keyboard.press("Enter")
    page.wait_for_selector("fieldset:enabled")
    tab_to(page, name="descriptive")
    page.keyboard.press("Space")
    page.reload()  # the answer that was begun is kept, and so is that the sound was heard
    assert page.locator("input[name=descriptive]:checked").get_attribute("value") == "left"
    tab_to(page, id="next")
    page.keyboard.press("Enter")
    assert page.text_content("#problem") == "Please answer both questions." and focused(page)["name"] == "fluent"
    assert page.text_content("#position").startswith("0 of")


def test_a_rater_has_to_agree_has_to_have_a_code_and_may_delete_all(tests, open_page):
    path, study = tests["text"]
    code, other, _ = study.raters
    page = open_page(path)
    tab_to(page, id="code")
    page.keyboard.type(code)
    page.keyboard.press("Enter")
    assert page.text_content("#start-problem") == "Please tick the box if you want to take part."
    page.keyboard.press("Space")
    tab_to(page, id="code")
    page.keyboard.type("X")
    page.keyboard.press("Enter")
    assert "does not know that code" in page.text_content("#start-problem") and focused(page)["id"] == "code"
    page.keyboard.press("Backspace")
    page.keyboard.type(code)
    page.keyboard.press("Enter")
    answer_by_keyboard(page, study, study.raters[code][0], decide)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("summary")
    page.click("#delete")
    assert page.is_visible("#welcome") and page.evaluate("localStorage.length") == 0
    page.goto(f"{path.as_uri()}#{other}")
    page.reload()
    assert page.input_value("#code") == other


def test_a_browser_that_keeps_nothing_says_so(tests, open_page):
    path, study = tests["text"]
    page = open_page(path)
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    begin(page, next(iter(study.raters)))
    assert "does not keep your answers" in page.text_content("#kept") and page.is_visible("#kept")


@pytest.mark.parametrize("variant", ["hearing", "picture", "text"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_nothing_overflows(tests, open_page, variant, scheme):
    path, study = tests[variant]
    code, trials = next(iter(study.raters.items()))
    page = open_page(path, color_scheme=scheme, viewport={"width": 320, "height": 640})
    screens = []

    def look():
        wide = page.evaluate("document.documentElement.scrollWidth")
        screens.append((violations(page), wide))

    look()
    begin(page, code)
    look()
    for number, trial in enumerate(trials):
        if variant == "hearing":
            page.click("#play")
            page.wait_for_selector("fieldset:enabled")
        for criterion in study.criteria:
            page.check(f"input[name={criterion}][value={decide(trial, criterion)}]")
        if number == 0:
            page.click("summary")
            look()
        page.click("#next")
    look()
    assert screens == [([], 320)] * 4
