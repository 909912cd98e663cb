"""The explanation of a caption as a table for the terminal."""

from typing import Any

NOTE = (
    "log-probability that sound and candidate add to each word, in nats; beside it what those of a random song would "
    "add; +: the word is part of a phrase of the candidate. The model was not trained without {missing}: its guesses "
    "there are out of distribution"
)
MISSING = {"candidate": "its sound", "audio": "its candidate", "nothing": "both"}  # by what it still sees


def explain_lines(explanation: dict[str, Any]) -> list[str]:
    """A line for each word of [`Explanation.to_dict`], below a header, and a line for each candidate."""
    copied = {word for span in explanation["copied"] for word in range(span["start"], span["end"])}
    lines = [["", "sound", "random", "candidate", "random", "copied"]]
    for number, row in enumerate(explanation["words"]):
        shares = [(row[source], row["controls"].get(source)) for source in ("audio", "candidate")]
        cells = ["-" if value is None else f"{value:+.2f}" for pair in shares for value in pair]
        lines.append([row["word"] or "(end)", *cells, "+" if number in copied else ""])
    width = max(len(line[0]) for line in lines)
    table = ["  " + line[0].ljust(width) + "".join(f"{cell:>11}" for cell in line[1:]).rstrip() for line in lines]
    return [*table, *(f"  candidate: {text}" for text in explanation["candidates"])]


def explain_note(explanation: dict[str, Any]) -> str:
    """What the table shows, and what the model was not trained for."""
    missing = [what for name, what in MISSING.items() if name in explanation["out_of_distribution"]]
    if not missing:
        return NOTE.partition(" The model")[0].rstrip(".")
    return NOTE.format(missing=" and without ".join(missing))
