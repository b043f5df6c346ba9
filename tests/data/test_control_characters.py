"""Control characters inside a row's text are refused with their place, or replaced or left, and counted."""

import json
import unicodedata
from pathlib import Path

import pytest

from finetune.config.schema import BadRows, ControlTokens, Data, Source
from finetune.data.control_characters import CONTROL_CHARACTER, name_character
from finetune.data.splits import load_splits
from finetune.errors import UserError

GOOD = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(9)]
CHATS = [
    {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": f"a {n}"}]} for n in range(9)
]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load rows from a file, with other settings."""
    monkeypatch.chdir(tmp_path)

    def load(rows, recipe="prompt_completion", **settings):
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_splits(Data(name="mine", source=Source.local, path="rows.jsonl", recipe=recipe, **settings))

    return load


def message_of(load, *given, **settings):
    with pytest.raises(UserError) as error:
        load(*given, **settings)
    return str(error.value)


def texts(splits):
    examples = [*splits.train, *splits.validation, *splits.test]
    return {(example.prompt[-1]["content"], example.completion) for example in examples}


def test_what_is_no_text_is_category_cc_but_tab_and_line_ends():
    everything = "".join(map(chr, range(0x110000)))
    control = {character for character in everything if unicodedata.category(character) == "Cc"} - set("\t\n\r")
    assert set(CONTROL_CHARACTER.findall(everything)) == control
    assert [name_character(character) for character in "\0\x1b\x7f\x85"] == [
        "U+0000 (NUL)", "U+001B (ESC)", "U+007F", "U+0085",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a\0b", "completion": "c"}, '"prompt" holds U+0000 (NUL), a control character; expected text.'),
        ({"prompt": "a", "completion": "b\x1b[0m"}, '"completion" holds U+001B (ESC), a control character'),
        ({"prompt": "a", "completion": "b\x85c"}, '"completion" holds U+0085, a control character'),
    ],
)
def test_a_row_with_a_control_character_is_refused_with_its_place(load, row, told):
    message = message_of(load, [*GOOD, row])
    assert message.startswith(f"rows.jsonl:10: {told}")
    assert "data.control_tokens=escape" in message and message.isprintable()
    assert message == message_of(load, [*GOOD, row], bad_rows=BadRows.skip)  # it is not left out unseen


def test_every_message_every_split_and_the_system_prompt_are_looked_at(load):
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\b"}]}
    assert "rows.jsonl:10: the answer holds U+0008 (BS)" in message_of(load, [*CHATS, chat], "messages")
    assert "rows.jsonl:1: the system message holds U+0000 (NUL)" in message_of(load, GOOD, system="Be\0brief")
    Path("test.jsonl").write_text(json.dumps({"prompt": "a\0", "completion": "b"}) + "\n")
    assert message_of(load, GOOD, test="test.jsonl").startswith("test.jsonl:1: ")


def test_escaped_they_become_spaces_and_allowed_they_stay_and_such_rows_are_counted(load):
    rows = [*GOOD, {"prompt": "a\0b", "completion": "c\x0cd\te\n"}, {"prompt": "a b", "completion": "other"}]
    escaped = load(rows, control_tokens=ControlTokens.escape)
    assert ("a b", "c d\te\n") in texts(escaped) and escaped.counts["with control characters"] == 1
    allowed = load(rows, control_tokens=ControlTokens.allow)
    assert ("a\0b", "c\x0cd\te\n") in texts(allowed) and allowed.counts["with control characters"] == 1
    assert "with control characters" not in load(GOOD).counts


def test_an_answer_of_control_characters_alone_is_empty(load):
    message = message_of(load, [*GOOD, {"prompt": "a", "completion": "\0\0"}], control_tokens=ControlTokens.escape)
    assert message.startswith("rows.jsonl:10: the answer is empty")
