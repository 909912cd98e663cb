"""Tables of captions as spreadsheets write them are read, with each guess announced once, or give a helpful error."""

import json
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from helpers import prepare as run
from helpers import read_lines, write_tone
from helpers import read_table as read_prepared
from hypothesis import example, given
from hypothesis import strategies as st

from clips.features import compute_features
from clips.rows import load_captions
from clips.tables import clean_caption
from feature_extraction_rgmc import RGMCFeatureExtractor


@pytest.fixture
def messages(monkeypatch):
    found = []
    monkeypatch.setattr("clips.features.logger.warning", found.append)
    monkeypatch.setattr("clips.rows.logger.warning", found.append)
    monkeypatch.setattr("clips.rows.logger.warning_once", lambda text: text in found or found.append(text))
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two sounds."""
    for name, hertz in (("1.wav", 220), ("2.wav", 330)):
        write_tone(tmp_path / name, hertz, seconds=1)
    return tmp_path


def prepared(folder: Path, name: str) -> tuple[dict, pandas.DataFrame]:
    """Prepares a table, and returns the report and the prepared table."""
    out = folder / f"of-{name}"
    report = run("any", "--source", folder / name, "--output_dir", out, "--validation", 0, "--test", 0)
    return report, read_prepared(out)


@pytest.mark.parametrize(
    ("name", "delimiter", "said"),
    [("train.csv", ";", True), ("train.csv", "\t", True), ("train.csv", "|", True), ("train.tsv", "\t", False)],
)
def test_a_table_is_separated_by_what_its_header_is(folder, messages, name, delimiter, said):
    caption = "A sad, slow; and | long one"
    lines = [["file_name", "id", "caption", "mood; or, so" if delimiter != ";" else "mood, or so"]]
    lines += [["1.wav", "a", f'"{caption}"', "x"], ["2.wav", "b", "plain", "y"]]
    (folder / name).write_text("".join(delimiter.join(line) + "\n" for line in lines))
    for _ in range(2):
        rows = load_captions(str(folder / name), "train")
    assert rows["id"][:] == ["a", "b"] and rows["captions"][:] == [[caption], ["plain"]]
    expected = [f"{folder / name} is read as separated by {delimiter!r}"] if said else []
    assert messages == expected
    report, table = prepared(folder, name)
    assert table.loc["a", "caption"] == caption and report["tables"] == expected


def test_a_comma_is_what_separates_where_nothing_else_does(folder, messages):
    (folder / "train.csv").write_text('file_name,caption\n1.wav,"sad; slow; long | b"\n2.wav,x;y;z\n')
    assert load_captions(str(folder / "train.csv"), "train")["captions"][:] == [["sad; slow; long | b"], ["x;y;z"]]
    assert messages == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_says_the_encoding(folder, messages, encoding):
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    (folder / "train.csv").write_bytes(f"{mark}file_name,id,caption\r\n1.wav,a,Café\r\n".encode(encoding))
    (folder / "train.jsonl").write_bytes(
        (mark + json.dumps({"file_name": "1.wav", "id": "a", "caption": "Café"}, ensure_ascii=False)).encode(encoding)
    )
    for name in ("train.csv", "train.jsonl"):
        rows = load_captions(str(folder / name), "train")
        assert (rows["id"][:], rows["captions"][:]) == (["a"], [["Café"]])
    assert len(messages) == (2 if "16" in encoding else 0)
    report, table = prepared(folder, "train.csv")
    assert table.loc["a", "caption"] == "Café" and len(report["tables"]) == ("16" in encoding)


def test_other_bytes_are_an_error_with_the_line_the_byte_and_a_command(folder):
    path = folder / "train.csv"
    path.write_bytes("file_name,caption\n1.wav,x\n2.wav,Café au lait\n".encode("cp1252"))
    expected = r"train.csv, line 3: byte 10 is 0xe9, which is not UTF-8; as Windows' cp1252 it would read '2.wav,Café"
    for read in (lambda: load_captions(str(path), "train"), lambda: prepared(folder, "train.csv")):
        with pytest.raises(ValueError, match=expected) as error:
            read()
        assert f"iconv -f CP1252 -t UTF-8 {path} > {folder / 'train-utf8.csv'}" in str(error.value)
    path.write_bytes("file_name,caption\n1.wav,x\n".encode("utf-16-le"))  # without a byte order mark
    with pytest.raises(ValueError, match=r"zero bytes, as UTF-16 without a byte order mark.*iconv -f UTF-16LE"):
        load_captions(str(path), "train")


def test_columns_may_be_in_capitals_where_one_alone_is_meant(folder, messages):
    (folder / "table.csv").write_text("Caption , File_Name,ID,Split,mood\nx,1.wav,a,Train,sad\ny,2.wav,b,train,\n")
    rows = load_captions(str(folder / "table.csv"), "train")
    assert rows["id"][:] == ["b"] and rows["captions"][:] == [["y"]]  # cells are not changed
    assert len(messages) == 4 and f"{folder / 'table.csv'}: the column 'Caption' is used as 'caption'" in messages
    report, table = prepared(folder, "table.csv")
    assert sorted(table["caption"]) == ["x", "y"] and len(report["tables"]) == 4

    (folder / "table.csv").write_text("CAPTION,Caption,file_name\nx,y,1.wav\n")
    for read in (lambda: load_captions(str(folder / "table.csv"), "all"), lambda: prepared(folder, "table.csv")):
        with pytest.raises(ValueError, match="no column 'caption', but 'CAPTION' and 'Caption': rename one"):
            read()
    (folder / "table.csv").write_text("CAPTION,caption,file_name,Audio\nx,y,1.wav,not a file\n")  # exact names win
    (row,) = load_captions(str(folder / "table.csv"), "all")
    assert row["captions"] == ["y"] and row["audio"]["path"] == str(folder / "1.wav")


def test_two_columns_of_one_name_are_an_error(folder):
    (folder / "train.csv").write_text("caption,file_name,caption\nx,1.wav,y\n")
    table = pyarrow.table([["x"], ["1.wav"], ["y"]], names=["caption", "file_name", "caption"])
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    for name in ("train.csv", "train.parquet"):
        for read in (lambda name=name: load_captions(str(folder / name), "train"), lambda n=name: prepared(folder, n)):
            with pytest.raises(ValueError, match=rf"{name} has two columns 'caption', number 1 and number 3: rename"):
                read()


def test_columns_without_a_name_are_left_out(folder):
    (folder / "train.csv").write_text("file_name;caption;;\n1.wav;x;;\n")
    assert load_captions(str(folder / "train.csv"), "train")["captions"][:] == [["x"]]


def test_a_row_without_an_id_goes_by_its_file(folder, messages):
    (folder / "train.csv").write_text("file_name,id,caption\n1.wav,,x\n2.wav,007,y\n")
    lines = [{"file_name": "1.wav", "id": None, "caption": "x"}, {"file_name": "2.wav", "id": 7, "caption": "y"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pandas.DataFrame(lines).to_parquet(folder / "train.parquet")  # its ids are now NaN and 7.0
    for name, own in (("train.csv", "007"), ("train.jsonl", "7"), ("train.parquet", "7")):
        messages.clear()
        assert load_captions(str(folder / name), "train")["id"][:] == ["1.wav", own]
        assert len(messages) == 1 and "1 of 2 rows have no id" in messages[0]
        report, table = prepared(folder, name)
        assert sorted(table["id"]) == sorted(["1.wav", own])
        assert report["notes"]["without an id: its file's name is its id"] == 1


@pytest.mark.parametrize("placeholder", ["nan", "NaN", "None", "NULL", " N/A ", "#N/A", "NA", "<NA>"])
def test_what_spreadsheets_write_for_nothing_is_no_caption(folder, messages, placeholder):
    (folder / "train.csv").write_text(f"file_name,id,caption\n1.wav,a,{placeholder}\n2.wav,b,none too loud\n")
    rows = load_captions(str(folder / "train.csv"), "train")
    options = {"skipped_file": folder / "skipped.jsonl", "cache_dir": str(folder / "cache")}
    with pytest.raises(ValueError, match="1 of 2 rows of train cannot be used"):
        compute_features(rows, RGMCFeatureExtractor(), "train", **options)
    features = compute_features(rows, RGMCFeatureExtractor(), "train", max_skipped=0.5, **options)
    assert features.captions == [["none too loud"]]
    (line,) = read_lines(folder / "skipped.jsonl")
    assert line["reason"] == f"no caption, or none with words: ['{placeholder}']"
    report, table = prepared(folder, "train.csv")
    assert table["id"].tolist() == ["b"] and report["rejected"] == {"no_caption": 1}
    (line,) = read_lines(folder / "of-train.csv" / "rejected.jsonl")
    assert placeholder in line["reason"]


def test_html_is_removed_and_counted(folder, messages):
    (folder / "train.csv").write_text("file_name,id,caption\n1.wav,a,<b>loud</b> drums &amp; bass\n2.wav,b,plain <3\n")
    rows = load_captions(str(folder / "train.csv"), "train")
    options = {"skipped_file": folder / "skipped.jsonl", "cache_dir": str(folder / "cache")}
    features = compute_features(rows, RGMCFeatureExtractor(), "train", **options)
    assert features.captions[0] == ["loud drums bass"]
    assert "1 of 2 rows of train have HTML in their captions; it is removed" in messages
    report, table = prepared(folder, "train.csv")
    assert table.loc["a", "caption"] == "loud drums & bass"
    assert table.loc["a", "caption_original"] == "<b>loud</b> drums &amp; bass"
    assert report["notes"]["its caption had HTML, which was removed"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b>loud</b>", "loud"),
        ("<p class='x'>one<br/>two</p>", " one two "),
        ("R&amp;B &lt;3 &#39;n&#x27; roll&nbsp;!", "R&B <3 'n' roll\xa0!"),
        ("&amp;lt;b&amp;gt;loud&amp;lt;/b&amp;gt;", "loud"),  # escaped twice
        ("I <3 this", "I <3 this"),
        ("tempo a < b and c > d", "tempo a < b and c > d"),
        ("a<b and c>d", "a<b and c>d"),
        ("rock&reggae, drum&copy; notes&sect", "rock&reggae, drum© notes&sect"),
        ("song by <artist>, <unk>", "song by <artist>, <unk>"),
        ("C&nosuchname;D", "C&nosuchname;D"),
    ],
)
def test_only_html_is_taken_for_html(text, expected):
    assert clean_caption(text) == expected


@given(
    st.lists(st.sampled_from([*"<>/b&;a ", "br", "amp", "lt", "gt", "&amp;", "<b>", "#60;"]), max_size=12).map("".join)
)
@example("&amp;amp;lt;")
def test_cleaning_twice_is_cleaning_once(text):
    assert clean_caption(clean_caption(text)) == clean_caption(text)


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_a_row_that_cannot_be_read_is_an_error_with_its_line_and_prepare_counts_it(folder, name):
    lines = {
        "train.csv": ["file_name,id,caption", "1.wav,a,x", "2.wav,b,one, two"],
        "train.jsonl": ["", '{"file_name": "1.wav", "id": "a", "caption": "x"}', '{"file_name": "2.wav", '],
    }[name]
    (folder / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"line 3 of {folder / name}.*prepare.py leaves such rows out"):
        load_captions(str(folder / name), "train")
    report, table = prepared(folder, name)
    assert report["rejected"] == {"broken_row": 1} and table["id"].tolist() == ["a"]


def test_a_json_file_is_a_list_of_rows(folder):
    path = folder / "train.json"
    path.write_text('[{"file_name": "1.wav", "id": 7, "caption": ["x", "y"]}, {"file_name": "2.wav", "caption": "z"}]')
    rows = load_captions(str(path), "train")
    assert rows["id"][:] == ["7", "2.wav"] and rows["captions"][:] == [["x", "y"], ["z"]]
    path.write_text('[{"file_name": ')
    with pytest.raises(ValueError, match=r"train.json cannot be read as json: Expecting value: line 1 column 16"):
        load_captions(str(path), "train")
