"""
Tables of captions as people have them: reading a file, matching its columns, and cleaning its captions.

Every guess is noted once per table; a row that cannot be read is reported with its line.
"""

import codecs
import csv
import html
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow.parquet

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
DELIMITERS = ",;\t|"
BATCH_ROWS = 256  # of a parquet file, whose rows may hold sounds
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
PLACEHOLDERS = {"nan", "none", "null", "n/a", "#n/a", "na", "<na>"}  # spreadsheets' and pandas' empty cells

# Only HTML's own tags: "song by <artist>", "<3" and "a < b" are text. Line tags also separate words.
LINE_TAGS = "blockquote|br|dd|div|dl|dt|h[1-6]|hr|li|ol|p|pre|table|tbody|td|th|thead|tr|ul"
INLINE_TAGS = "a|abbr|b|big|cite|code|del|em|font|i|img|ins|mark|q|s|small|span|strike|strong|sub|sup|tt|u"
ATTRIBUTES = r"(?:\s+[\w-]+\s*=[^<>]*)?\s*/?"
LINE_TAG = re.compile(rf"</?(?:{LINE_TAGS}){ATTRIBUTES}>", re.IGNORECASE)
INLINE_TAG = re.compile(rf"</?(?:{INLINE_TAGS}){ATTRIBUTES}>", re.IGNORECASE)
ENTITY = re.compile(r"&(?:#\d+|#x[\da-f]+|[a-z][a-z\d]*);", re.IGNORECASE)  # "rock&reggae" is text


# -- files ------------------------------------------------------------------------------------------------------------


def read_rows(
    path: Path, reject: Callable[[str], None], note: Callable[[str], None]
) -> tuple[list[str], Iterator[dict]]:
    """
    Reads a csv or tsv (all columns as text), jsonl or parquet file.

    Args:
        path (`Path`):
            The file. Text is UTF-8, or UTF-16 with a byte order mark. The separator of a csv is the comma, semicolon,
            tab or bar that splits its header into the most columns.
        reject (`Callable[[str], None]`):
            Called with the reason for each row of a csv or jsonl file that cannot be read.
        note (`Callable[[str], None]`):
            Called with each guess.

    Returns:
        `tuple[list[str], Iterator[dict]]`: Column names, and the rows.

    Raises:
        `ValueError`: For any other file, or one that is broken as a whole or has two columns of one name.
    """
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            return _read_csv(path, reject, note)
        if path.suffix.lower() == ".jsonl":
            return _read_jsonl(path, reject, note)
        if path.suffix.lower() == ".parquet":
            table = pyarrow.parquet.ParquetFile(path)
            check_names(table.schema_arrow.names, path)
            batches = table.iter_batches(BATCH_ROWS)
            return table.schema_arrow.names, (row for batch in batches for row in batch.to_pylist())
    except (csv.Error, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    raise ValueError(f"{path} is not a table: expected a file that ends in {', '.join(TABLES)}")


def read_text(path: Path, note: Callable[[str], None] = lambda text: None) -> str:
    """
    Reads a text file in UTF-8, or in UTF-16 where a byte order mark says so; line ends are kept.

    Raises:
        `ValueError`: If the bytes are not in this encoding, with the line and a command that converts the file.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line_number = content[: error.start].count(b"\n") + 1
        line = content[content.rfind(b"\n", 0, error.start) + 1 :].split(b"\n", 1)[0]
        position = error.start - content.rfind(b"\n", 0, error.start)
        read_so = line[max(0, position - 20) : position + 20].decode("cp1252", errors="replace").strip()
        raise ValueError(
            f"{path}, line {line_number}: byte {position} is 0x{content[error.start]:02x}, "
            f"which is not {encoding.removesuffix('-sig').upper()}; as Windows' cp1252 it would read {read_so!r}. "
            f"Convert the file from its own encoding: {_conversion(path, 'CP1252')}"
        ) from error
    if "\0" in text[:1000]:
        raise ValueError(
            f"{path}, line 1 holds zero bytes, as UTF-16 without a byte order mark does; "
            f"convert it: {_conversion(path, 'UTF-16LE')}"
        )
    if encoding == "utf-16":
        note(f"{path} is read as UTF-16, as its byte order mark says")
    return text


def _conversion(path: Path, encoding: str) -> str:
    target = path.with_name(f"{path.stem}-utf8{path.suffix}")
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(target))}"


def _read_csv(
    path: Path, reject: Callable[[str], None], note: Callable[[str], None]
) -> tuple[list[str], Iterator[dict]]:
    csv.field_size_limit(sys.maxsize)
    text = read_text(path, note)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    delimiter = _find_delimiter(text, usual)
    if delimiter != usual:
        note(f"{path} is read as separated by {delimiter!r}")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(lines, [])]
    named = [column for column, name in enumerate(header) if name]  # a spreadsheet may leave empty ones at the end
    check_names(header, path)
    rows: list[dict] = []
    while True:
        start = lines.line_num + 1
        try:
            cells = next(lines)
        except StopIteration:
            return [header[column] for column in named], iter(rows)
        except csv.Error as error:
            if "end of data" in str(error):
                raise ValueError(
                    f"{path} cannot be read as csv: the quotation mark of line {start} is never closed"
                ) from error
            reject(f"line {start} of {path}: {error}")
            continue
        if len(cells) == len(header):
            rows.append({header[column]: cells[column] for column in named})
        elif cells:
            reject(f"line {start} of {path} has {len(cells)} cells; expected {len(header)}")


def _find_delimiter(text: str, usual: str) -> str:
    """
    Returns the delimiter that splits the header into the most columns. `csv.Sniffer` would look at the rows, but
    captions have commas and semicolons of their own.
    """
    sizes = {}
    for delimiter in usual + DELIMITERS:
        sizes[delimiter] = len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))
    return max(sizes, key=sizes.get)  # the usual one comes first and wins a tie


def _read_jsonl(
    path: Path, reject: Callable[[str], None], note: Callable[[str], None]
) -> tuple[list[str], Iterator[dict]]:
    rows: list[dict] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(read_text(path, note).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = read_json(line)
        except ValueError as error:
            reject(f"line {number} of {path}: {error}")
            continue
        columns |= dict.fromkeys(row)
        rows.append(row)
    return list(columns), iter(rows)


def read_json(text: str) -> dict:
    """Reads a JSON object whose text can be written again; `ValueError` for anything else."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}; expected an object")
    if "\\u" in text:
        json.dumps(content, ensure_ascii=False).encode()  # raises for half a character ("\ud83d")
    return content


# -- columns ----------------------------------------------------------------------------------------------------------


def check_names(columns: list[str], where: str | Path):
    """Raises `ValueError` for two columns of one name, because either could be meant."""
    for column, name in enumerate(columns):
        if name and name in columns[:column]:
            raise ValueError(
                f"{where} has two columns '{name}', number {columns.index(name) + 1} and number {column + 1}: "
                "rename or delete one"
            )


def match_columns(
    columns: Iterable[str], wanted: Iterable[str], where: str | Path, note: Callable[[str], None]
) -> dict[str, str]:
    """
    Finds columns that differ from a wanted name only in case, for example `Caption` for `caption`.

    Args:
        columns (`Iterable[str]`):
            Names of the table's columns.
        wanted (`Iterable[str]`):
            Names to find among them.
        where (`str` or `Path`):
            Name of the table in messages.
        note (`Callable[[str], None]`):
            Called with each guess.

    Returns:
        `dict[str, str]`: The wanted name by the column's own. Exact matches are left out.

    Raises:
        `ValueError`: If several columns could be meant.
    """
    columns, renamed = list(columns), {}
    for name in dict.fromkeys(wanted):
        found = [column for column in columns if column.casefold() == name.casefold()]
        if not found or name in found:
            continue
        if len(found) > 1:
            raise ValueError(f"{where} has no column '{name}', but {' and '.join(map(repr, found))}: rename one")
        renamed[found[0]] = name
        note(f"{where}: the column '{found[0]}' is used as '{name}'")
    return renamed


# -- cells ------------------------------------------------------------------------------------------------------------


def text_of(value) -> str:
    """Turns an id or a caption into text: "" for None and NaN, "17" for 17.0."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def clean_caption(text: str) -> str:
    """
    Removes HTML tags from a caption and replaces entities by their characters, repeatedly, because markup may have been
    escaped more than once (`&amp;lt;b&amp;gt;`). Cleaning a cleaned caption changes nothing.
    """
    cleaned = INLINE_TAG.sub("", LINE_TAG.sub(" ", ENTITY.sub(lambda found: html.unescape(found[0]), text)))
    return cleaned if cleaned == text else clean_caption(cleaned)


def is_placeholder(text: str) -> bool:
    """Whether a text is what spreadsheets and pandas write where there is no caption."""
    return text.strip().casefold() in PLACEHOLDERS
