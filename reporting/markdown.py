"""Text and tables in Markdown."""

import re


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A GitHub-flavored Markdown table; every column except the first is aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)


def markdown_text(text: str) -> str:
    """`text` on one line, with a backslash before what Markdown would read as markup or as the border of a cell."""
    return re.sub(r"[\\`*_<|&~$]|(?<=\])\(", r"\\\g<0>", " ".join(str(text).split()))
