"""How are the lines of a UTF-8 file read, when the file may be damaged, in another encoding, or without line ends?"""

import codecs
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO

from finetune.errors import UserError

OnBadRow = Callable[[str], object]
"""What is done about one row that is wrong, given its place, what was found and what was expected."""

Decode = Callable[[bytes], str]
# Bytes of a line: a longer one means a file without line ends, and reading it would fill the memory.
LONGEST_LINE = 16 * 2**20


def open_text(path: Path) -> BinaryIO:
    """The file, behind a byte order mark, which is not part of the text."""
    file = path.open("rb")
    if file.read(3) != codecs.BOM_UTF8:
        file.seek(0)
    return file


def read_lines(
    file: BinaryIO, name: str, bad: OnBadRow, first: int = 1, end: int | None = None, decode: Decode = bytes.decode
) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file up to position `end`, with their numbers from `first` on."""
    for number in count(first):
        line = b"" if end is not None and file.tell() >= end else file.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            bad(too_long(f"{name}:{number}: the line", len(line) + _skip_line(file, line)))
            continue
        try:
            text = decode(line)
        except UnicodeDecodeError as error:
            problem = f"{name}:{number}: byte {error.start + 1} of the line is not UTF-8"
            bad(f"{problem}. {how_to_convert(Path(file.name))}")
        else:
            yield number, text


def _skip_line(file: BinaryIO, line: bytes) -> int:
    """The bytes that are left of a line; they are read piece by piece and forgotten."""
    size = 0
    while not line.endswith(b"\n") and (line := file.readline(LONGEST_LINE)):
        size += len(line)
    return size


def read_text(path: Path, name: str) -> str:
    """The whole of a UTF-8 file. Raises UserError, with the line, where it is none."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        number, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        problem = f"{name}:{number}: byte {column} of the line is not UTF-8"
        raise UserError(f"{problem}. {how_to_convert(path)}") from error


def how_to_convert(path: Path) -> str:
    """What to do about a file that is not UTF-8."""
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin1"
    return f"Save the file as UTF-8, for example: iconv -f {encoding} -t utf-8 {path} > utf8{path.suffix}"


def too_long(what: str, size: int) -> str:
    """What is wrong with a line, or an element of an array, of so many bytes."""
    return f"{what} has {size / 1e6:.1f} MB, expected at most {LONGEST_LINE / 1e6:.1f} MB."
