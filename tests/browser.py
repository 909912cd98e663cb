"""Chromium, without a window, for the tests of pages. A module that imports it is skipped where it is not installed."""

import os
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if not CHROMIUM:
    pytest.skip("there is no chromium, chromium-browser or google-chrome on the PATH", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")


@contextmanager
def start_browser():
    options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


def focused(page) -> dict:
    keys = "id: e.id, name: e.name || '', value: e.value || '', text: e.textContent.trim()"
    return page.evaluate(f"() => {{ const e = document.activeElement; return {{{keys}}}; }}")


def tab_to(page, **wanted) -> dict:
    """Presses Tab until an element with these properties has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        found = focused(page)
        if all(found[key] == value for key, value in wanted.items()):
            return found
    pytest.fail(f"Tab never reaches {wanted}")


def violations(page) -> list[str]:
    """What axe finds serious or critical."""
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
