"""Each way in which a row can be wrong is told with file and line or row, and no such row is trained on."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.config.schema import BadRows, Data, Source
from finetune.data.splits import load_splits
from finetune.errors import UserError

GOOD = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(9)]
CHATS = [
    {"messages": [{"role": "user", "content": f"{number}"}, {"role": "assistant", "content": "a"}]}
    for number in range(9)
]
SHARED = [
    {"conversations": [{"from": "human", "value": f"{number}"}, {"from": "gpt", "value": "a"}]} for number in range(9)
]
ROW = json.dumps(GOOD[0])
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}

# What stands in line 10, behind nine good rows -> what the message says behind `rows.jsonl:10: `.
LINES = {
    "a line cut off": ('{"prompt": "a", "comp', "not valid JSON: Unterminated string starting at at column 17"),
    "an empty value": ('{"prompt": }', "not valid JSON: Expecting value at column 12"),
    "text behind the object": ('{"prompt": "a", "completion": "b"} {}', "not valid JSON: Extra data at column 35"),
    "two objects with a comma": ('{"prompt": "a"}, {"completion": "b"}', "not valid JSON: Extra data at column 16"),
    "single quotes": ("{'prompt': 'a'}", "not valid JSON: Expecting property name enclosed in double quotes"),
    "a control character in a text": ('{"prompt": "a\tb"}', "not valid JSON: Invalid control character at"),
    "an empty prompt": ('{"prompt": " ", "completion": "b"}', "the prompt is empty, expected text to answer"),
    "a list": ('["a", "b"]', 'found the list ["a", "b"], expected an object'),
    "a text": ('"a"', 'found the text "a", expected an object'),
    "null for the row": ("null", "found null, expected an object"),
    "a number": ("12", "found the number 12, expected an object"),
    "NaN": ('{"prompt": NaN, "completion": "b"}', "found NaN, which is no number of JSON; expected a number or null"),
    "Infinity": ('{"prompt": "a", "completion": "b", "x": Infinity}', "found Infinity, which is no number"),
    "minus Infinity": ('{"prompt": "a", "completion": "b", "x": [-Infinity]}', "found -Infinity, which is no number"),
    "minus Infinity for the row": ("-Infinity", "found -Infinity, which is no number"),
    "a key twice": (
        '{"prompt": "a", "completion": "b", "prompt": "c"}',
        'found the key "prompt" more than once in an object, expected it once',
    ),
    "a key twice, inside": (
        '{"prompt": "a", "completion": "b", "x": [{"y" : 1, "\\u0079" : 1}]}',
        'found the key "y" more than once in an object',
    ),
    "half of a surrogate pair as a key twice": (
        '{"\\ud800": 1, "\\ud800": 1}',
        'found the key "\\ud800" more than once in an object',
    ),
    "half of a surrogate pair for the row": ('"\\ud800"', 'found the text "\\ud800", expected an object'),
    "half of a surrogate pair": (
        '{"prompt": "a \\ud83d", "completion": "b"}',
        "found \\ud83d, half of a surrogate pair, expected both halves of a character",
    ),
    "the other half": ('{"prompt": "a", "completion": "\\uDE00"}', "found \\ude00, half of a surrogate pair"),
    "half of a surrogate pair in a key": ('{"prompt": "a", "completion": "b", "\\ud800": 1}', "found \\ud800, half"),
    "a byte of Latin 1": (
        b'{"prompt": "caf\xe9", "completion": "b"}',
        "byte 16 of the line is not UTF-8. Save the file as UTF-8, for example: iconv -f latin1 -t utf-8 rows.jsonl",
    ),
    "a surrogate in UTF-8": (b'{"prompt": "\xed\xa0\x80", "completion": "b"}', "byte 13 of the line is not UTF-8"),
    "a line of 30 MB": (
        b'{"prompt": "' + b"x" * 30_000_000 + b'", "completion": "b"}',
        "the line has 30.0 MB, expected at most 16.8 MB",
    ),
    "brackets without end": ("[" * 100_000, "nested too deeply"),
    "a number without end": ('{"prompt": ' + "1" * 5000 + "}", "found a number of more than 4300 digits"),
    "a missing column": ('{"prompt": "a"}', "there is no column completion, which the recipe prompt_completion needs"),
    "a column of another name": (
        '{"prompt": "a", "completions": "b"}',
        "there is no column completion, which the recipe prompt_completion needs; found: prompt, completions. "
        "Did you mean completions? Name your column with data.columns.completion=completions",
    ),
    "no columns": (
        "{}",
        "there are no columns prompt and completion, which the recipe prompt_completion needs; found: none",
    ),
    "null": ('{"prompt": "a", "completion": null}', "completion is null, expected text (recipe prompt_completion)"),
    "a number for a text": ('{"prompt": 12, "completion": "b"}', "prompt is the number 12, expected text"),
    "true for a text": ('{"prompt": true, "completion": "b"}', "prompt is true, expected text"),
    "a list for a text": ('{"prompt": ["a"], "completion": "b"}', 'prompt is the list ["a"], expected text'),
    "an empty answer": ('{"prompt": "a", "completion": ""}', "the answer is empty, expected text to learn"),
    "an answer of blanks": ('{"prompt": "a", "completion": " \\n"}', "the answer is empty"),
    "an object for a text": ('{"prompt": {"a": 1}, "completion": "b"}', 'prompt is the object {"a": 1}, expected text'),
}

# Recipe, its good rows and one that is wrong -> what the message says behind the place.
NESTED = {
    "a text for messages": ("messages", CHATS, {"messages": "hi"}, 'messages is the text "hi", expected a list'),
    "no messages": ("messages", CHATS, {"messages": []}, "0 messages, expected at least a user's and an assistant's"),
    "no answer": ("messages", CHATS, {"messages": [ANSWER, USER]}, "the last message is the user's, expected the"),
    "a message without a role": ("messages", CHATS, {"messages": [{"content": "q"}, ANSWER]}, "message 1 is not an"),
    "a message without content": ("messages", CHATS, {"messages": [USER, {"role": "assistant"}]}, "message 2 is not"),
    "a message that is a text": ("messages", CHATS, {"messages": [USER, "a"]}, "message 2 is not an object with role"),
    "an unknown role": (
        "messages",
        CHATS,
        {"messages": [{"role": "human", "content": "q"}, ANSWER]},
        "message 1 has the role 'human', expected one of system, user, assistant (recipe messages)",
    ),
    "a role that is a list": (
        "messages",
        CHATS,
        {"messages": [{"role": [], "content": "q"}, ANSWER]},
        "message 1 has the role []",
    ),
    "content that is null": (
        "messages",
        CHATS,
        {"messages": [USER, {"role": "assistant", "content": None}]},
        "message 2 has content that is not text: None",
    ),
    "content that is a list": (
        "messages",
        CHATS,
        {"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]},
        "message 1 has content that is not text: [{'type': 'text'}]",
    ),
    "no turns": ("sharegpt", SHARED, {"conversations": []}, "0 messages, expected at least"),
    "a turn from nobody": ("sharegpt", SHARED, {"conversations": [{"value": "q"}]}, "turn 1 is not an object with"),
    "a turn from a list": ("sharegpt", SHARED, {"conversations": [{"from": [], "value": "q"}]}, "turn 1 is from []"),
    "a turn that is null": (
        "sharegpt",
        SHARED,
        {"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "a"}]},
        "message 1 has content that is not text: None",
    ),
    "labels that are no pairs": (
        "usaddress",
        [{"address": f"{number}", "labels": [["AddressNumber", f"{number}"]]} for number in range(9)],
        {"address": "1", "labels": [["AddressNumber"]]},
        "['AddressNumber'] among the labels is not a list of a label and its words",
    ),
    "an optional column of nearly its name": (
        "alpaca",
        [{"instruction": f"{number}", "output": "a"} for number in range(9)],
        {"instruction": "q", "Input": "x", "output": "a"},
        "found the column Input, which the recipe alpaca does not read; expected input. Name your column with "
        "data.columns.input=Input, or leave it out",
    ),
    "an optional column of another type": (
        "alpaca",
        [{"instruction": f"{number}", "output": "a"} for number in range(9)],
        {"instruction": "q", "input": 3, "output": "a"},
        "input is the number 3, expected text",
    ),
}

# A whole file that cannot be read -> what the message says; leaving rows out does not help.
FILES = {
    "an empty file": ("rows.jsonl", "", "rows.jsonl holds no rows, expected at least one"),
    "empty lines": ("rows.jsonl", "\n \n", "rows.jsonl holds no rows"),
    "an empty array": ("rows.json", " [] ", "rows.json holds no rows"),
    "an array without end": ("rows.json", f"[{ROW},\n{ROW}", "rows.json:2: not valid JSON: Expecting ',' or ']'"),
    "a comma too many": ("rows.json", f"[{ROW},\n]", "rows.json:2: not valid JSON: Expecting value at column 1"),
    "two arrays": ("rows.json", f"[{ROW}]\n[]", "rows.json:2: not valid JSON: Extra data at column 1"),
    "brackets without end in an array": ("rows.json", "[\n" + "[" * 100_000, "rows.json:2: not valid JSON: nested too"),
    "lines called an array": ("rows.json", '{"a": 1}\n{"a": 2}', "If it holds one object a line, name it .jsonl."),
    "an object for an array": ("rows.json", '{"a": 1}', 'rows.json: found the object {"a": 1}, expected an array'),
    "an array in Latin 1": ("rows.json", b'[\n{"a": "\xe9"}]', "rows.json:2: byte 8 of the line is not UTF-8"),
    "a header in Latin 1": ("rows.csv", b"caf\xe9,b\n1,2\n", "rows.csv:1: the row is not UTF-8. Save the file as"),
    "a column twice": ("rows.csv", "prompt,prompt\na,b\n", "rows.csv:1: the header has prompt more than once"),
    "a quotation mark that stays open": (
        "rows.csv",
        'prompt,completion\na,b\n"c,d\ne,f\n',
        'rows.csv:3: not valid CSV: unexpected end of data. A quotation mark inside a field is doubled ("")',
    ),
    "a field of 30 MB": ("rows.csv", "prompt,completion\n" + "x" * 30_000_000, "rows.csv:2: the line has 30.0 MB"),
    "a header alone": ("rows.csv", "prompt,completion\n", "rows.csv holds no rows"),
    "no Parquet": ("rows.parquet", "prompt,completion\n", "rows.parquet: not a valid Parquet file, after row 0"),
    "another kind of file": ("rows.xlsx", "", "rows are read from .jsonl, .json, .csv, .tsv, .parquet files"),
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a file of an empty working folder, given its content, with other settings."""
    monkeypatch.chdir(tmp_path)

    def load(content, path="rows.jsonl", recipe="prompt_completion", **settings):
        Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_splits(Data(name="mine", source=Source.local, path=path, recipe=recipe, **settings))

    return load


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def check(load, content, place, expected, **settings):
    """The row is an error; left out, it is counted and told, and the good rows are as they are without it."""
    with pytest.raises(UserError) as error:
        load(content, **settings)
    assert str(error.value).startswith(f"{place}: {expected}")
    splits = load(content, **settings, bad_rows=BadRows.skip)
    assert [splits.counts["rows"], splits.counts["bad"]] == [10, 1]
    assert splits.bad == [str(error.value)]
    assert str(error.value).encode()  # can be printed
    assert len({example.place for example in splits.train + splits.validation + splits.test} - {place}) == 9


@pytest.mark.parametrize("fault", LINES)
def test_a_line_that_is_wrong(load, fault):
    line, expected = LINES[fault]
    line = line if isinstance(line, bytes) else str(line).encode()
    rows = lines(GOOD).encode().splitlines(keepends=True)
    check(load, b"".join([*rows[:9], line, b"\n"]), "rows.jsonl:10", expected)
    check(load, b"".join([*rows[:2], line, b"\r\n", *rows[2:]]), "rows.jsonl:3", expected)
    check(load, b"".join([*rows, line]), "rows.jsonl:10", expected)


def is_of_one_element(fault):
    """Whether the other elements of an array could be read."""
    line, expected = LINES[fault]
    return isinstance(line, str) and "not valid JSON" not in expected and fault != "brackets without end"


@pytest.mark.parametrize("fault", [fault for fault in LINES if is_of_one_element(fault)])
def test_an_element_of_an_array_that_is_wrong(load, fault):
    line, expected = LINES[fault]
    elements = [json.dumps(row) for row in GOOD]
    check(load, f"[{', '.join([*elements[:4], line, *elements[4:]])}]\n", "rows.json:5", expected, path="rows.json")


@pytest.mark.parametrize("fault", NESTED)
def test_a_value_that_the_recipe_refuses(load, fault):
    recipe, good, row, expected = NESTED[fault]
    check(load, lines([*good, row]), "rows.jsonl:10", expected, recipe=recipe)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"only one", "found 1 fields, expected 2 as in the header"),
        (b"a,b,c", "found 3 fields, expected 2 as in the header"),
        (b'"caf\xe9\n",b', "the row is not UTF-8. Save the file as UTF-8"),
    ],
)
def test_a_row_of_csv_that_is_wrong(load, line, expected):
    good = [f"{row['prompt']},{row['completion']}\n".encode() for row in GOOD]
    check(load, b"".join([b"prompt,completion\n", *good, line]), "rows.csv:11", expected, path="rows.csv")
    content = b"".join([b"prompt,completion\n", *good[:4], line, b"\n", *good[4:]])
    check(load, content, "rows.csv:6", expected, path="rows.csv")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "completion is null, expected text"), (b"\xe9", "the row cannot be read: 'utf-8' codec can't decode")],
)
def test_a_row_of_parquet_that_is_wrong(load, tmp_path, value, expected):
    completions = pa.array([row["completion"].encode() for row in GOOD] + [value], pa.binary())
    table = pa.table({"prompt": [str(number) for number in range(10)], "completion": completions.view(pa.string())})
    pq.write_table(table, tmp_path / "made.parquet")
    content = (tmp_path / "made.parquet").read_bytes()
    check(load, content, "rows.parquet:10", expected, path="rows.parquet")


@pytest.mark.parametrize("bad_rows", BadRows)
@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_wrong(load, fault, bad_rows):
    path, content, expected = FILES[fault]
    with pytest.raises(UserError) as error:
        load(content, path=path, bad_rows=bad_rows)
    assert expected in str(error.value)


def test_a_parquet_file_cut_short_is_an_error(load, tmp_path):
    pq.write_table(pa.table({"prompt": ["a"] * 10, "completion": ["b"] * 10}), tmp_path / "made.parquet")
    content = (tmp_path / "made.parquet").read_bytes()
    for broken in (content[:-20], content[:4] + b"\x00" * 40 + content[44:]):
        with pytest.raises(UserError, match=r"rows\.parquet: not a valid Parquet file, after row 0"):
            load(broken, path="rows.parquet", bad_rows=BadRows.skip)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "topic is null, expected a value to group by (data.group)"),
        ("7", 'topic is the text "7", expected a whole number as in the rows before (data.group)'),
        (7.0, "topic is the number 7.0, expected a whole number as in the rows before"),
    ],
)
def test_a_group_that_is_null_or_of_another_type(load, value, expected):
    rows = [{**row, "topic": number} for number, row in enumerate(GOOD)]
    bad = {"prompt": "q", "completion": "a", "topic": value}
    check(load, lines([*rows, bad]), "rows.jsonl:10", expected, group="topic")


def test_rows_that_only_look_wrong_are_read(load):
    rows = [
        {"prompt": "😀", "completion": "a pair of surrogates"},
        {"prompt": "NaN, -Infinity", "completion": "constants in a text"},
        {"prompt": "\\ud800", "completion": "a backslash"},
        {"prompt": '{"a": 1, "a": 2}', "completion": "a key twice in a text"},
        {"prompt": "x" * 16_000_000, "completion": "long"},
        *GOOD,
    ]
    content = "\n\r\n".join(f" {json.dumps(row)} " for row in rows)
    splits = load(content)
    assert [splits.counts["rows"], splits.counts["bad"]] == [14, 0]
    assert {example.completion for example in splits.train + splits.validation + splits.test} == {
        row["completion"] for row in rows
    }


def test_lines_that_only_together_are_rows_are_errors(load):
    """Each side of a line's end is wrong, although the text would be right without it."""
    for first, second in [('{"prompt": "a"', '"completion": "b"}'), ('{"a": [[{}', "{}]]}"), ('{"a": "', '"}')]:
        splits = load(f"{lines(GOOD)}{first}\n{second}\n{{}}, {{}}\n", bad_rows=BadRows.skip)
        assert [splits.counts["rows"], splits.counts["bad"]] == [12, 3]


def test_lines_keep_their_numbers_over_many_blocks(load):
    rows = [{"prompt": f"question {number}", "completion": str(number + 1)} for number in range(5000)]
    text = lines(rows).splitlines()
    text[1234] = "broken"
    text[4000] = '{"prompt": "' + "x" * 20_000_000 + '"}'
    splits = load("\n".join(text), bad_rows=BadRows.skip)
    assert [message.split(":")[1] for message in splits.bad] == ["1235", "4001"]
    examples = splits.train + splits.validation + splits.test
    assert len(examples) == 4998
    assert all(example.place == f"rows.jsonl:{example.completion}" for example in examples)


def test_more_bad_rows_than_the_limit_are_an_error_that_shows_the_first(load):
    content = lines(GOOD) + "[]\n" * 5
    splits = load(content, bad_rows=BadRows.skip, max_bad_rows=5)
    assert splits.counts["bad"] == 5
    assert [message.split(": ")[0] for message in splits.bad] == ["rows.jsonl:10", "rows.jsonl:11", "rows.jsonl:12"]
    with pytest.raises(UserError) as error:
        load(content, bad_rows=BadRows.skip, max_bad_rows=4)
    assert str(error.value).startswith("More rows are bad than data.max_bad_rows=4 allows. Correct them, or raise")
    assert "\n  rows.jsonl:10: found the list [], expected an object" in str(error.value)


def test_a_file_of_bad_rows_alone_is_an_error_that_shows_them(load):
    with pytest.raises(UserError, match=r"validation|train|test") as error:
        load("[]\n" * 3, bad_rows=BadRows.skip)
    assert "rows.jsonl:1: found the list []" in str(error.value)
