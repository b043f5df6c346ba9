import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.rows import read_hub_rows, read_rows
from finetune.errors import UserError


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def message_of(path, **names):
    with pytest.raises(UserError) as error:
        list(read_rows(path, **names))
    return str(error.value)


def test_a_jsonl_row_comes_with_its_line(tmp_path):
    path = write(tmp_path / "mine.jsonl", '{"a": 1}\n\n{"a": "ü"}\n')
    assert list(read_rows(path)) == [(1, {"a": 1}), (3, {"a": "ü"})]


def test_a_name_stands_for_the_path_in_places(tmp_path):
    path = write(tmp_path / "mine.jsonl", '{"a": 1}\n[]\n')
    assert message_of(path, name="mine").startswith("mine:2: found the list []")


def test_a_json_row_comes_with_its_number(tmp_path):
    path = write(tmp_path / "mine.json", json.dumps([{"a": 1}, {"a": 2}], indent=2))
    assert list(read_rows(path)) == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_csv_row_comes_with_the_line_where_it_starts(tmp_path):
    path = write(tmp_path / "mine.csv", 'a,b\r\n1,"two\r\nlines"\r\n2,x\r\n')
    assert list(read_rows(path)) == [(2, {"a": "1", "b": "two\r\nlines"}), (4, {"a": "2", "b": "x"})]


def test_a_csv_field_may_be_as_long_as_a_document(tmp_path):
    path = write(tmp_path / "mine.csv", "a\n" + "x" * 300_000 + "\n")
    assert len(next(read_rows(path))[1]["a"]) == 300_000


def test_a_parquet_row_comes_with_its_number(tmp_path):
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"a": [1, 2], "b": [["x"], None]}), path)
    assert list(read_rows(path)) == [(1, {"a": 1, "b": ["x"]}), (2, {"a": 2, "b": None})]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    path = write(tmp_path / "mine.csv", "\ufeffa,b\n1,2\n")
    assert next(read_rows(path))[1] == {"a": "1", "b": "2"}


def test_rows_are_read_one_at_a_time(tmp_path):
    path = write(tmp_path / "mine.jsonl", '{"a": 1}\nbroken\n')
    assert next(read_rows(path)) == (1, {"a": 1})


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"a": 1}\n"b"\n', 'a.jsonl:2: found the text "b", expected an object'),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "a.jsonl:2: byte 8 of the line is not UTF-8"),
        ("a.jsonl", "", "a.jsonl holds no rows"),
        ("a.jsonl", "\n\n", "a.jsonl holds no rows"),
        ("a.json", "", "a.json holds no rows"),
        ("a.json", "[]", "a.json holds no rows"),
        ("a.json", '{"a": 1}', 'a.json: found the object {"a": 1}, expected an array'),
        (
            "a.json",
            '{"a": 1}\n{"a": 2}',
            "a.json:2: not valid JSON: Extra data at column 1. If it holds one object a line",
        ),
        ("a.json", '[{"a": 1}, 2]', "a.json:2: found the number 2"),
        ("a.json", '[{"a": 1}, {"a": "' + "x" * 2**24 + '"}]', "a.json:2: the element has 16.8 MB, expected at most"),
        ("a.csv", "", "a.csv holds no rows"),
        ("a.csv", "a,b\n", "a.csv holds no rows"),
        ("a.csv", "a,b\n1,2\n1\n", "a.csv:3: found 1 fields, expected 2"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: the header has a more than once"),
        ("a.csv", 'a,b\n1,2\n1,"2\n', "a.csv:3: not valid CSV"),
        (
            "a.csv",
            "a;b\n1;2\n",
            "a.csv:1: the header is one field, the text \"a;b\"; expected fields separated by commas, not by ';'",
        ),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "a.csv:1: the row is not UTF-8. Save the file as UTF-8"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        ("a.parquet", "", "a.parquet: not a valid Parquet file"),
        ("a.parquet", "PAR1 no", "a.parquet: not a valid Parquet file"),
        ("a.xlsx", "", "rows are read from .jsonl, .json, .csv, .tsv, .parquet files, and this is a '.xlsx' file"),
    ],
)
def test_what_is_not_a_row_is_an_error_with_its_place(tmp_path, name, text, expected):
    assert expected in message_of(write(tmp_path / name, text))


def test_a_missing_file_is_an_error_that_names_the_nearest(tmp_path):
    write(tmp_path / "train.jsonl", "{}")
    assert f"There is no file {tmp_path / 'trian.jsonl'}. Did you mean {tmp_path / 'train.jsonl'}?" == message_of(
        tmp_path / "trian.jsonl"
    )


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    assert "is a folder" in message_of(tmp_path / "rows.jsonl")


def test_a_hub_row_comes_with_its_split_and_number(tmp_path):
    write(tmp_path / "train.jsonl", '{"a": 1}\n{"a": 2}\n')
    found = list(read_hub_rows(str(tmp_path), None, None, "train"))
    assert found == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_hub_split_that_does_not_exist_is_an_error(tmp_path):
    write(tmp_path / "train.jsonl", '{"a": 1}\n')
    with pytest.raises(UserError, match=r"split dev.*data\.revision"):
        list(read_hub_rows(str(tmp_path), None, None, "dev"))


def test_a_hub_file_that_is_malformed_is_an_error(tmp_path):
    write(tmp_path / "train.jsonl", '{"a": 1}\nbroken\n')
    with pytest.raises(UserError, match=r"could not be loaded"):
        list(read_hub_rows(str(tmp_path), None, None, "train"))


def test_a_hub_row_that_is_not_utf8_is_left_out_alone(tmp_path):
    column = pa.array([b"a", b"\xe9", *[b"c"] * 3000], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"a": column}), tmp_path / "train.parquet")
    bad = []
    found = list(read_hub_rows(str(tmp_path), None, None, "train", bad.append))
    assert [number for number, _ in found] == [1, *range(3, 3003)]
    assert [message.startswith(f"{tmp_path}[train]:2: the row cannot be read") for message in bad] == [True]


def test_a_tsv_file_is_read_and_a_spreadsheet_is_told_how_to_become_one_that_is(tmp_path):
    (tmp_path / "a.tsv").write_text('prompt\tcompletion\nx, y\t"z\t1"\n')
    assert list(read_rows(tmp_path / "a.tsv")) == [(2, {"prompt": "x, y", "completion": "z\t1"})]
    with pytest.raises(UserError, match=r"this is a '\.xlsx' file\. Save it as CSV in the program that wrote it\."):
        list(read_rows(tmp_path / "a.xlsx"))
