"""The page of `app.py`: its tabs, and how it is served."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import gradio as gr

from page import caption, library, track
from page.core import Core

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
ANNOUNCES = """() => {
  document.documentElement.lang = "en";
  for (const region of document.querySelectorAll(".announce")) {
    region.setAttribute("role", "status");
    region.setAttribute("aria-live", "polite");
  }
}"""
HOUR = 3600
# No font is fetched, and white on orange would be too pale to read.
THEME = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800"
)


def build_page(core: Core) -> gr.Blocks:
    """Makes the page of a model."""
    with gr.Blocks(title="RGMC: music captions", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as blocks:
        gr.Markdown(f"# Music captions\n\nModel: `{core.name}`. {core.warning}")
        with gr.Tab("Caption"):
            caption.build(core)
        with gr.Tab("Track"):
            track.build(core)
        with gr.Tab("Library"):
            library.build(core)
        gr.Markdown(
            "Files stay on the machine that runs this page, and are deleted after an hour. "
            f"Longest file: {core.max_minutes:g} minutes."
        )
        blocks.load(None, js=ANNOUNCES)
    return blocks


def launch(blocks: gr.Blocks, max_megabytes: int, **options):
    """
    Serves the page at a free port, or at `GRADIO_SERVER_PORT`. Further arguments are those of `Blocks.launch`. With the
    package `mcp` its endpoints are tools of the Model Context Protocol, too.
    """
    settings = {
        "max_file_size": f"{max_megabytes}mb",
        "mcp_server": bool(find_spec("mcp")),
        "footer_links": ["api", "settings"],
        "theme": THEME,
        "css": CSS,
        "ssr_mode": False,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of gradio's own imports
        return blocks.launch(**settings | options)
