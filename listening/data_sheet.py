"""The data sheet of a listening test: what readers of a human evaluation need to know, filled in as far as known."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from listening.design import Study
from reporting.markdown import markdown_text


def write_data_sheet(path: Path, study: Study):
    """Writes the data sheet in Markdown; what only the people who run the test know is marked "TODO"."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is Markdown: `md` escapes
    )
    environment.filters["md"] = markdown_text
    trials = [trial.kind for trial in next(iter(study.raters.values()))]
    sheet = environment.get_template("data_sheet.md.jinja").render(
        study=study, checks=trials.count("check"), repeats=trials.count("repeat"), captions=len(study.systems)
    )
    path.write_text(sheet.rstrip() + "\n", encoding="utf-8")
