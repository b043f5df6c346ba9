"""A file is whole or not there, and holds what JSON can hold."""

import json
from dataclasses import dataclass
from math import inf, nan

import pytest

from finetune.runs.files import read_jsonl, write_json, write_jsonl, write_text


@dataclass(frozen=True)
class Measured:
    name: str
    values: list[float]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    file = tmp_path / "new" / "file.txt"
    write_text(file, "first")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "half of a pair: \ud800")
    assert file.read_text() == "first"


def test_json_is_of_plain_values_and_dataclasses_and_has_null_for_nan_and_infinity(tmp_path):
    write_json(tmp_path / "a.json", {"é": Measured("b", [nan, inf, -inf, 0.5])})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"é": {"name": "b", "values": [None, None, None, 0.5]}}
    assert "é" in text and text.endswith("}\n")


def test_a_row_may_hold_what_other_programs_take_for_the_end_of_a_line(tmp_path):
    rows = [{"text": "a\u2028b\n"}, {"text": "é"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows
