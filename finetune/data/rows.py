"""How is a file of rows read strictly?

Every row comes with its number, counted from 1: that of its line in a JSONL or CSV file, else that of the row. With the
file's name it is the row's place, such as `mine.jsonl:3`. What is not a row is an error with its place; nothing is
converted, and nothing is left out unless the caller says so.
"""

import csv
import os
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from finetune.data.strict_json import FaultError, parse_lines, parse_object, split_array
from finetune.data.text_lines import LONGEST_LINE, OnBadRow, how_to_convert, open_text, read_lines, read_text, too_long
from finetune.errors import UserError, describe_value, did_you_mean

Row = dict[str, Any]
FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")
BLOCK = 64 * 2**10  # bytes of lines that are parsed at a time
HUB_ROWS_AT_A_TIME = 1000


class RowError(UserError):
    """One row is wrong, and the others could be read without it."""


def refuse_row(message: str) -> NoReturn:
    """Raise the message as a RowError: one row that is wrong stops the reading."""
    raise RowError(message)


def read_rows(path: Path, name: str | None = None, bad: OnBadRow = refuse_row) -> Iterator[tuple[int, Row]]:
    """The rows of a JSONL, JSON, CSV or Parquet file, one at a time, each with its number.

    `name` stands for the file in places and messages; without it, the path as it was given. `bad` is called for each
    row that is wrong; where it returns, the row is left out. Only a .json file is held in memory as a whole.
    Raises UserError for a file that is missing, empty, of another kind, or wrong in a way that has no end in one row.
    """
    readers = dict(zip(FILE_KINDS, (_read_jsonl, _read_json, _read_csv, _read_parquet), strict=True))
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path}: rows are read from {', '.join(FILE_KINDS)} files, and this is a '{path.suffix}' file."
        )
    require_file(path)
    met_bad = False

    def note_bad(message: str) -> None:
        nonlocal met_bad
        met_bad = True
        bad(message)

    numbered_rows = reader(path, name or str(path), note_bad)
    if (first := next(numbered_rows, None)) is not None:
        yield first
        yield from numbered_rows
    elif not met_bad:
        raise UserError(f"{path} holds no rows, expected at least one.")


def read_hub_rows(
    path: str, subset: str | None, revision: str | None, split: str, bad: OnBadRow = refuse_row
) -> Iterator[tuple[int, Row]]:
    """The rows of one split of a data set on the Hugging Face hub, each with its number; see hub_place."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are in the error at their end
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        dataset = load_dataset(path, name=subset, revision=revision, split=split)
    except (ValueError, OSError, DatasetsError) as error:  # a wrong name, split, network or file
        reason = " ".join(str(error).split()).rstrip(".")
        chosen = {"subset": subset, "revision": revision, "split": split}
        given = ", ".join(f"{name} {value}" for name, value in chosen.items() if value)
        raise UserError(
            f"The data set {path} ({given}) could not be loaded: {reason}. "
            "Check data.path, data.subset, data.revision and the split's name, or the network."
        ) from error

    def read(start: int, stop: int) -> list[Row]:
        columns = dataset[start:stop]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    for start in range(0, len(dataset), HUB_ROWS_AT_A_TIME):
        stop = min(start + HUB_ROWS_AT_A_TIME, len(dataset))
        yield from _read_table(read, start, stop, hub_place(path, split), bad)


def hub_place(path: str, split: str) -> str:
    """What stands for the file in the places of rows of the hub: `owner/name[train]`."""
    return f"{path}[{split}]"


def require_file(path: Path) -> Path:
    """The path. Raises UserError unless it is a file."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; a file of rows is expected.")
    if not path.is_file():
        raise UserError(f"There is no file {path}.{suggest_file(path)}")
    return path


def suggest_file(path: Path) -> str:
    """` Did you mean X?` of the file beside a `path` that does not exist with nearly its name."""
    beside = [file.name for file in path.parent.iterdir() if file.is_file()] if path.parent.is_dir() else []
    return did_you_mean(path.name, beside, str(path).removesuffix(path.name))


def _read_jsonl(path: Path, name: str, bad: OnBadRow) -> Iterator[tuple[int, Row]]:
    number = 1
    with open_text(path) as file:
        start = file.tell()
        while block := file.read(BLOCK) + file.readline(LONGEST_LINE - BLOCK):
            try:
                rows = parse_lines(block.decode())
            except ValueError:  # at least one line is empty or wrong
                end = file.tell()
                file.seek(start)
                yield from _read_each(read_lines(file, name, bad, number, end), name, bad)
            else:
                yield from enumerate(rows, number)
            number += block.count(b"\n") + (not block.endswith(b"\n"))
            start = file.tell()


def _read_each(numbered: Iterator[tuple[int, str]], name: str, bad: OnBadRow) -> Iterator[tuple[int, Row]]:
    for number, line in numbered:
        text = line.strip(" \t\r\n")
        if not text:  # an empty line holds nothing that could be lost
            continue
        if len(text) > LONGEST_LINE:  # an array's element
            bad(too_long(f"{name}:{number}: the element", len(text)))
            continue
        try:
            row = parse_object(text)
        except FaultError as error:
            bad(f"{name}:{number}: {error}.")
        else:
            yield number, row


def _read_json(path: Path, name: str, bad: OnBadRow) -> Iterator[tuple[int, Row]]:
    text = read_text(path, name)
    if not text.strip():
        return
    try:
        yield from _read_each(enumerate(split_array(text), start=1), name, bad)
    except FaultError as error:
        raise UserError(f"{name}:{error}.") from error


def _read_csv(path: Path, name: str, bad: OnBadRow) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(LONGEST_LINE)  # Python's own limit is 128 KiB a field, less than a document
    # A line left out here could be the middle of a row: bytes that are not UTF-8 come through, to be found in the row.
    decode = partial(bytes.decode, errors="surrogateescape")
    header: list[str] | None = None
    line = 1
    with open_text(path) as file:
        reader = csv.reader((line for _, line in read_lines(file, name, refuse_row, decode=decode)), strict=True)
        try:
            for cells in reader:
                if not cells:  # an empty line
                    pass
                elif not _is_text(cells):
                    (bad if header else refuse_row)(f"{name}:{line}: the row is not UTF-8. {how_to_convert(path)}")
                elif header is None:
                    header = cells
                    _require_unique_names(header, f"{name}:{line}")
                    _require_commas(header, f"{name}:{line}", path)
                elif len(cells) != len(header):
                    bad(f"{name}:{line}: found {len(cells)} fields, expected {len(header)} as in the header.")
                else:
                    yield line, dict(zip(header, cells, strict=True))
                line = reader.line_num + 1  # a quoted field may span lines: a row's place is where it starts
        except csv.Error as error:  # with a quotation mark astray, nobody can tell where the next row starts
            hint = 'A quotation mark inside a field is doubled (""), in a field between quotation marks.'
            raise UserError(f"{name}:{line}: not valid CSV: {error}. {hint}") from error


def _read_parquet(path: Path, name: str, bad: OnBadRow) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _require_unique_names(file.schema_arrow.names, name)
            for batch in file.iter_batches():

                def read(start: int, stop: int, batch: "pa.RecordBatch" = batch, first: int = number) -> list[Row]:
                    return batch.slice(start - first, stop - start).to_pylist()

                yield from _read_table(read, number, number + batch.num_rows, name, bad)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: not a valid Parquet file, after row {number}: {error}") from error


def _read_table(
    read: Callable[[int, int], list[Row]], start: int, stop: int, name: str, bad: OnBadRow
) -> Iterator[tuple[int, Row]]:
    """The rows from `start` to before `stop`, numbered from 1; one that cannot be read is bad, but not those beside."""
    try:
        rows = read(start, stop)
    except ValueError as error:
        if stop - start == 1:
            expected = "UTF-8" if isinstance(error, UnicodeDecodeError) else "values that Python can hold"
            bad(f"{name}:{stop}: the row cannot be read: {error}; expected {expected}.")
            return
        middle = (start + stop) // 2
        yield from _read_table(read, start, middle, name, bad)
        yield from _read_table(read, middle, stop, name, bad)
    else:
        yield from enumerate(rows, start + 1)


def _is_text(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_unique_names(header: list[str], place: str) -> None:
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise UserError(f"{place}: the header has {', '.join(sorted(repeated))} more than once.")


def _require_commas(header: list[str], place: str, path: Path) -> None:
    """Raise UserError for a header whose one field seems to be several."""
    separator = next((mark for mark in ";\t|" if mark in header[0]), None)
    if len(header) == 1 and separator:
        convert = f"import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter={separator!r}))"
        raise UserError(
            f"{place}: the header is one field, {describe_value(header[0])}; expected fields separated by commas, not "
            f'by {separator!r}. Convert the file, for example: python -c "{convert}" < {shlex.quote(str(path))} > '
            "commas.csv"
        )
