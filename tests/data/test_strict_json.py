"""JSON is read strictly: one line at a time, many lines at once, and as the elements of an array."""

import pytest

from finetune.data.strict_json import FaultError, parse_lines, parse_object, split_array


def test_lines_are_parsed_together_as_they_are_alone():
    lines = ['{"a": 1}', '{"b": [1, {"c": null}]}', "{}"]
    assert parse_lines("\n".join(lines) + "\n") == [parse_object(line) for line in lines]


@pytest.mark.parametrize("text", ['{"a": 1}\n\n{}', '{"a": 1}\n[]', '{"a": -Infinity}', "{}, {}", '{"a": 1, "a": 2}'])
def test_lines_that_are_not_all_objects_are_refused(text):
    with pytest.raises(ValueError, match=r"Expecting|object|found"):
        parse_lines(text)


def test_an_array_is_split_into_its_elements_as_they_are_written():
    assert list(split_array(' [ {"a": 1} , 2,\n[3]]\n')) == ['{"a": 1}', "2", "[3]"]
    with pytest.raises(FaultError, match="2: not valid JSON: Expecting ',' or ']' at column 3"):
        list(split_array("[1,\n2 3]"))
