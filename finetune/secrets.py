"""Which texts may no file, no message and no page hold?

Secret are the values of environment variables whose names say so, such as HF_TOKEN, and of those that the configuration
reads by `${oc.env:NAME}`; the values of settings whose keys say so, such as hub_token; and the password in
`user:password@` of an address. A value of fewer than SHORTEST characters is not: hiding it would spoil other texts.
Neither is a path that exists. What the program uses is never changed, only what it writes and prints.
"""

import html
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast
from urllib.parse import quote, unquote

HIDDEN = "***"
SHORTEST = 6  # characters of a secret
NOTED = "FINETUNE_SECRET_VARIABLES"  # holds the names of further variables; sub-processes inherit it
NAMES = re.compile(
    r"(^|[._-])(token|(api|access)?key(_id)?|pass|pat|secret(_key)?|credentials?)(_?\d+)?$"
    r"|(passw(or)?d|passphrase|secret|[._-]pwd)(_?\d+)?$",
    re.IGNORECASE,
)
NO_SECRET = re.compile(r"(^|[._])(bos|eos|pad|unk|sep|cls|mask|image|audio|video)_token$", re.IGNORECASE)
ADDRESS = re.compile(r"""(?<=://)([^\s/?#:@"'<>]*):([^\s/"'<>]+)@""")  # RFC 3986, 3.2.1: user:password before the host
Content = TypeVar("Content")


@lru_cache(maxsize=4096)
def names_secret(key: str) -> bool:
    """Whether the value of this key or environment variable is one that no file, log or message may hold."""
    return bool(NAMES.search(key) and not NO_SECRET.search(key))


def note_variables(names: Iterable[str]) -> None:
    """Have the values of these environment variables hidden, too, in this process and in those that it starts."""
    if noted := {*os.environ.get(NOTED, "").split(), *names}:
        os.environ[NOTED] = " ".join(sorted(noted))


def without_secrets(content: Content) -> Content:
    """A text, or plain values that hold texts, with `***` for every secret."""
    return cast(Content, _hide(content, _secret_pattern()))


def pieces_without_secrets(pieces: Sequence[str]) -> list[str]:
    """The consecutive pieces of a text with `***` for every secret, which may span some of them."""
    text = "".join(pieces)
    shown = list(text)
    found = [match.span() for match in pattern.finditer(text)] if (pattern := _secret_pattern()) else []
    for start, end in [*found, *(match.span(2) for match in ADDRESS.finditer(text))]:
        shown[start:end] = [HIDDEN, *[""] * (end - start - 1)]
    ends = list(accumulate(map(len, pieces)))
    return ["".join(shown[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


class MaskedStream:
    """A text stream into which secrets are written as `***`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(without_secrets(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def mask_output() -> None:
    """Have whatever Python prints from now on, tracebacks and logging included, go through a MaskedStream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, MaskedStream):
            setattr(sys, name, MaskedStream(stream))


def _hide(content: Any, pattern: re.Pattern[str] | None) -> Any:
    match content:
        case str():
            shown = pattern.sub(HIDDEN, content) if pattern else content
            return ADDRESS.sub(rf"\1:{HIDDEN}@", shown) if "://" in shown else shown
        case dict():
            return {key: HIDDEN if _hides(key, item) else _hide(item, pattern) for key, item in content.items()}
        case list():
            return [_hide(item, pattern) for item in content]
        case tuple():
            return tuple(_hide(item, pattern) for item in content)
    return content


def _hides(key: object, value: object) -> bool:
    is_scalar = isinstance(value, str | int) and not isinstance(value, bool)
    return bool(value) and is_scalar and names_secret(str(key))


def _secret_pattern() -> re.Pattern[str] | None:
    noted = os.environ.get(NOTED, "").split()
    values = [value for name, value in os.environ.items() if names_secret(name) or name in noted]
    values += [match[2] for value in os.environ.values() if "://" in value for match in ADDRESS.finditer(value)]
    given = (text.partition("=") for text in sys.argv[1:] if "=" in text)
    values += [value.strip("'\"") for key, _, value in given if names_secret(key)]
    return _compile(frozenset(value for value in values if len(value) >= SHORTEST and not _is_path(value)))


def _is_path(value: str) -> bool:
    """Whether the value is a path that exists, or one below a folder at the root that does."""
    if "/" in value:
        with suppress(OSError, ValueError, RuntimeError):  # too long for a path, say
            path = Path(value).expanduser()
            return path.exists() or (path.is_absolute() and len(path.parts) > 2 and Path(*path.parts[:2]).is_dir())
    return False


@lru_cache(maxsize=8)
def _compile(values: frozenset[str]) -> re.Pattern[str] | None:
    """What finds the values, however they are spelled in JSON, in HTML, in a `repr`, in YAML or in an address."""
    spellings = {spelling for value in values for spelling in _spellings(value) if len(spelling) >= SHORTEST}
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True)))) if spellings else None


def _spellings(value: str) -> set[str]:
    plain = {value, value.strip(), unquote(value), *(line for line in value.split("\n") if len(line) > 2 * SHORTEST)}
    plain |= {repr(text)[1:-1] for text in plain} | {text.replace("'", "''") for text in plain}
    plain |= {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for text in plain for ascii_only in (False, True)}
    escaped = {html.escape(text) for text in plain} | {text.replace("<", "\\u003c") for text in plain}
    return plain | escaped | {quote(value, safe=safe) for safe in ("", "/")}
