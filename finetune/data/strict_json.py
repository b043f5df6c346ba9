"""What may JSON not hold, although parsers let it through?

A key twice, NaN, Infinity, half a surrogate pair: other programs read them otherwise, or they cannot be written again.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from finetune.errors import describe_value


class FaultError(ValueError):
    """What is wrong with a text of JSON, in words that a user knows."""


def parse_object(text: str) -> dict[str, Any]:
    """The object that a text holds, and nothing beside it; raises FaultError."""
    try:
        value, end = STRICT.raw_decode(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        raise FaultError(f"not valid JSON: {error.msg} at column {error.pos + 1}") from error
    except RecursionError as error:
        raise FaultError("nested too deeply, expected an object of a few levels") from error
    except FaultError:
        raise
    except ValueError as error:  # Python converts no longer numbers
        raise FaultError("found a number of more than 4300 digits, expected a shorter one, or a text") from error
    if not isinstance(value, dict):
        raise FaultError(f'found {describe_value(value)}, expected an object such as {{"prompt": ...}}')
    _refuse_surrogates(value, text)
    return value


def parse_lines(text: str) -> list[dict[str, Any]]:
    """The objects of a text with one on every line; raises ValueError or RecursionError where one is anything else.

    All are parsed in one call, as an array with a marker between each two. The marker is a constant that the text does
    not hold: as each stands between two whole elements, no line reaches into the next.
    """
    lines = text.removesuffix("\n")
    if MARKER in lines:
        raise FaultError(f"found {MARKER}")
    parsed = MARKED.decode("[" + lines.replace("\n", f",{MARKER},") + "]")
    objects, marks = parsed[::2], parsed[1::2]
    if marks != [MARK] * lines.count("\n") or set(map(type, objects)) != {dict}:
        raise FaultError("a line is no object")
    _refuse_surrogates(objects, text)
    return objects


def split_array(text: str) -> Iterator[str]:
    """The elements of an array, as they are written; raises FaultError, with the line in front where there is one."""
    start = _skip_space(text, 0)
    if not text.startswith("[", start):
        value, end = _find_end(text, start)
        if (end := _skip_space(text, end)) != len(text):
            raise _not_valid(text, end, "Extra data", ". If it holds one object a line, name it .jsonl")
        raise FaultError(f" found {describe_value(value)}, expected an array of objects: [{{...}}, {{...}}]")
    position = _skip_space(text, start + 1)
    more = not text.startswith("]", position)
    while more:
        _, end = _find_end(text, position)
        yield text[position:end]
        position = _skip_space(text, end)
        if more := text.startswith(",", position):
            position = _skip_space(text, position + 1)
    if not text.startswith("]", position):
        raise _not_valid(text, position, "Expecting ',' or ']'")
    if (end := _skip_space(text, position + 1)) != len(text):
        raise _not_valid(text, end, "Extra data")


def _find_end(text: str, start: int) -> tuple[Any, int]:
    try:
        return LENIENT.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _not_valid(text, error.pos, error.msg) from error
    except RecursionError as error:
        raise _not_valid(text, start, "nested too deeply") from error


def _not_valid(text: str, position: int, reason: str, hint: str = "") -> FaultError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return FaultError(f"{line}: not valid JSON: {reason} at column {column}{hint}")


def _skip_space(text: str, start: int) -> int:
    return SPACE.match(text, start).end()  # type: ignore[union-attr]  # matches everything


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):  # parsers disagree about which value counts (RFC 8259, section 4)
        keys = [key for key, _ in pairs]
        quoted = describe_value(next(key for key in keys if keys.count(key) > 1)).removeprefix("the text ")
        raise FaultError(f"found the key {quoted} more than once in an object, expected it once")
    return unique


def _refuse_constant(constant: str) -> NoReturn:
    raise FaultError(f"found {constant}, which is no number of JSON; expected a number or null")


def _refuse_surrogates(value: Any, text: str) -> None:
    if "\\u" not in text or ("\\ud" not in text and "\\uD" not in text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise FaultError(f"found {half}, half of a surrogate pair, expected both halves of a character") from error


SPACE = re.compile(r"[ \t\r\n]*")
STRICT = json.JSONDecoder(object_pairs_hook=_require_unique, parse_constant=_refuse_constant)
MARKER, MARK = "-Infinity", object()  # as written, and as parsed
MARKED = json.JSONDecoder(
    object_pairs_hook=_require_unique, parse_constant=lambda text: MARK if text == MARKER else _refuse_constant(text)
)
# Finds where an element ends; its numbers, which may be longer than Python converts, are for STRICT to judge.
LENIENT = json.JSONDecoder(parse_int=lambda digits: int(digits[:4000]))
