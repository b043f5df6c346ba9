"""How is a file of rows read strictly?

Every row comes with its place, such as `mine.jsonl:3`: the line of a JSONL or CSV file, else the number of the row,
counted from 1. What is not a row is an error with file and line; nothing is skipped and nothing is converted.
"""

import csv
import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.schema import UserError

Row = dict[str, Any]


def read_rows(path: Path, name: str | None = None) -> Iterator[tuple[str, Row]]:
    """The rows of a JSONL, JSON, CSV or Parquet file, one at a time, each with its place.

    `name` stands for the file in places and messages; without it, the path as it was given.
    Raises UserError for a file that is missing, empty, of another kind, not UTF-8 or malformed.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join(readers)
        raise UserError(f"{path}: rows are read from {kinds} files, and this is a '{path.suffix}' file.")
    require_file(path)
    empty = True
    for number, row in reader(path, name or str(path)):
        empty = False
        yield f"{name or path}:{number}", row
    if empty:
        raise UserError(f"{path} holds no rows.")


def read_hub(path: str, subset: str | None, revision: str | None, split: str) -> Iterator[tuple[str, Row]]:
    """The rows of one split of a data set on the Hugging Face hub, with places such as `owner/name[train]:3`."""
    from datasets import load_dataset

    try:
        dataset = load_dataset(path, name=subset, revision=revision, split=split)
    except (ValueError, OSError) as error:  # what the library raises for a wrong name, split or network
        reason = " ".join(str(error).split())
        raise UserError(
            f"The data set {path} (subset {subset}, revision {revision}, split {split}) could not be loaded: {reason} "
            "Check data.path, data.subset, data.revision and the split's name, or the network."
        ) from error
    for number, row in enumerate(dataset, start=1):
        yield f"{path}[{split}]:{number}", dict(row)


def require_file(path: Path) -> None:
    """Raise UserError unless `path` is a file."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; a file of rows is expected.")
    if not path.is_file():
        beside = [file.name for file in path.parent.iterdir() if file.is_file()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        raise UserError(f"There is no file {path}." + (f" Did you mean {path.parent / near[0]}?" if near else ""))


def _read_jsonl(path: Path, name: str) -> Iterator[tuple[int, Row]]:
    for number, line in _read_lines(path, name):
        if not line.strip():  # an empty line holds nothing that could be lost
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{name}:{number}: not valid JSON: {error.msg} at column {error.colno}.") from error
        yield number, _require_object(value, f"{name}:{number}")


def _read_json(path: Path, name: str) -> Iterator[tuple[int, Row]]:
    text = "".join(line for _, line in _read_lines(path, name))
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " If it holds one object a line, name it .jsonl." if error.msg == "Extra data" else ""
        raise UserError(f"{name}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}.{hint}") from error
    if not isinstance(value, list):
        raise UserError(f"{name}: found {describe(value)}, expected an array of objects: [{{...}}, {{...}}].")
    for number, element in enumerate(value, start=1):
        yield number, _require_object(element, f"{name}:{number}")


def _read_csv(path: Path, name: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Python's own limit is 128 KiB a field, less than a document
    reader = csv.reader((line for _, line in _read_lines(path, name)), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if not cells:  # an empty line
                pass
            elif header is None:
                header = _require_header(cells, f"{name}:{line}")
            elif len(cells) != len(header):
                raise UserError(f"{name}:{line}: found {len(cells)} fields, expected {len(header)} as in the header.")
            else:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1  # a quoted field may span lines: a row's place is where it starts
    except csv.Error as error:
        raise UserError(f"{name}:{line}: not valid CSV: {error}.") from error


def _read_parquet(path: Path, name: str) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise UserError(f"{name}: not a valid Parquet file, after row {number}: {error}") from error


def _read_lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers; a byte order mark at the start is not part of the text."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}:{number}: byte {error.start + 1} of the line is not UTF-8. Save the file as UTF-8, for "
                    f"example: iconv -f latin1 -t utf-8 {path} > utf8{path.suffix}"
                ) from error


def _require_object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f'{place}: found {describe(value)}, expected an object such as {{"prompt": ...}}.')
    return value


def _require_header(cells: list[str], place: str) -> list[str]:
    repeated = {cell for cell in cells if cells.count(cell) > 1}
    if repeated:
        raise UserError(f"{place}: the header has {', '.join(sorted(repeated))} more than once.")
    return cells


def describe(value: Any) -> str:
    """A value in words that a user knows, cut to a readable length: `the number 12`, `the text "abc"`."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    if value is None:
        return "null"
    if isinstance(value, bool):
        return shown
    kinds = {str: "the text", int: "the number", float: "the number", list: "the list", dict: "the object"}
    return f"{kinds.get(type(value), type(value).__name__)} {shown}"
