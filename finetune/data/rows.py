"""How is a file of rows read strictly, although it may be damaged, in another encoding, or without line ends?

Every row comes with its number, counted from 1: that of its line in a JSONL or CSV file, else that of the row. With the
file's name it is the row's place, such as `mine.jsonl:3`. What is not a row is an error with its place; nothing is
converted, and nothing is left out unless the caller says so.
"""

import codecs
import csv
import os
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from finetune.data.strict_json import FaultError, parse_lines, parse_object, split_array
from finetune.errors import UserError, describe_value, did_you_mean

Row = dict[str, Any]
OnBadRow = Callable[[str], object]  # what is done about one row that is wrong, given its place and what is wrong
Reader = Callable[[Path, str, OnBadRow], Iterator[tuple[int, Row]]]
FILE_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SHEETS = (".xlsx", ".xls", ".ods")  # of spreadsheets, which are not read
BLOCK = 64 * 2**10  # bytes of lines that are parsed at a time
LONGEST_LINE = 16 * 2**20  # bytes: a longer one means a file without line ends, and reading it would fill the memory
HUB_ROWS_AT_A_TIME = 1000


class RowError(UserError):
    """One row is wrong, and the others could be read without it."""


def refuse_row(message: str) -> NoReturn:
    """Raise the message as a RowError: the row stops the reading."""
    raise RowError(message)


def read_rows(path: Path, name: str | None = None, bad: OnBadRow = refuse_row) -> Iterator[tuple[int, Row]]:
    """The rows of a JSONL, JSON, CSV or Parquet file, one at a time, each with its number.

    `name` stands for the file in places and messages. `bad` is called for each row that is wrong; where it returns, the
    row is left out. Only a .json file is held in memory as a whole.
    Raises UserError for a file that is missing, empty, of another kind, or wrong in a way that has no end in one row.
    """
    tsv = partial(_read_csv, delimiter="\t")
    in_order: tuple[Reader, ...] = (_read_jsonl, _read_json, _read_csv, tsv, _read_parquet)
    readers = dict(zip(FILE_KINDS, in_order, strict=True))
    if (reader := readers.get(path.suffix.lower())) is None:
        as_csv = " Save it as CSV in the program that wrote it." if path.suffix.lower() in SHEETS else ""
        raise UserError(
            f"{path}: rows are read from {', '.join(FILE_KINDS)} files, and this is a '{path.suffix}' file.{as_csv}"
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
    """The rows of one split of a data set on the hub, each with its number; their place is `owner/name[train]:3`."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are in the error at their end
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        dataset = load_dataset(path, name=subset, revision=revision, split=split)
    except (ValueError, OSError, DatasetsError) as error:  # a wrong name, split, network or file
        reason = " ".join(str(error).split()).rstrip(".")
        chosen = (("subset", subset), ("revision", revision), ("split", split))
        given = ", ".join(f"{name} {value}" for name, value in chosen if value)
        raise UserError(
            f"The data set {path} ({given}) could not be loaded: {reason}. "
            "Check data.path, data.subset, data.revision and the split's name, or the network."
        ) from error

    def read(start: int, stop: int) -> list[Row]:
        columns = dataset[start:stop]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    for start in range(0, len(dataset), HUB_ROWS_AT_A_TIME):
        stop = min(start + HUB_ROWS_AT_A_TIME, len(dataset))
        yield from _read_table(read, start, stop, f"{path}[{split}]", bad)


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
    with _open_text(path) as file:
        start = file.tell()
        while block := file.read(BLOCK) + file.readline(LONGEST_LINE - BLOCK):
            try:
                rows = parse_lines(block.decode())
            except (ValueError, RecursionError):  # at least one line is empty or wrong
                end = file.tell()
                file.seek(start)
                yield from _read_each(_read_lines(file, name, bad, number, end), name, bad)
            else:
                yield from enumerate(rows, number)
            number += block.count(b"\n") + (not block.endswith(b"\n"))
            start = file.tell()


def _read_json(path: Path, name: str, bad: OnBadRow) -> Iterator[tuple[int, Row]]:
    try:
        if (text := path.read_bytes().decode("utf-8-sig")).strip():
            yield from _read_each(enumerate(split_array(text), start=1), name, bad)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, byte = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise UserError(_not_utf8(path, f"{name}:{line}: byte {byte} of the line")) from error
    except FaultError as error:
        raise UserError(f"{name}:{error}.") from error


def _read_each(numbered: Iterator[tuple[int, str]], name: str, bad: OnBadRow) -> Iterator[tuple[int, Row]]:
    for number, line in numbered:
        text = line.strip(" \t\r\n")
        if len(text) > LONGEST_LINE:  # an array's element
            bad(_too_long(f"{name}:{number}: the element", len(text)))
        elif text:  # an empty line holds nothing that could be lost
            try:
                yield number, parse_object(text)
            except FaultError as error:
                bad(f"{name}:{number}: {error}.")


def _read_csv(path: Path, name: str, bad: OnBadRow, delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(LONGEST_LINE)  # Python's own limit is 128 KiB a field, less than a document
    header: list[str] | None = None
    line = 1
    with _open_text(path) as file:
        # A line left out here could be the middle of a row: bytes that are not UTF-8 come through, to be found in it.
        lines = _read_lines(file, name, refuse_row, errors="surrogateescape")
        reader = csv.reader((text for _, text in lines), strict=True, delimiter=delimiter)
        try:
            for cells in reader:
                try:
                    "".join(cells).encode()
                    if not cells:  # an empty line
                        pass
                    elif header is None:
                        header = cells
                        _require_unique_names(header, f"{name}:{line}")
                        if delimiter == ",":
                            _require_commas(header, f"{name}:{line}", path)
                    elif len(cells) != len(header):
                        bad(f"{name}:{line}: found {len(cells)} fields, expected {len(header)} as in the header.")
                    else:
                        yield line, dict(zip(header, cells, strict=True))
                except UnicodeEncodeError:
                    (bad if header else refuse_row)(_not_utf8(path, f"{name}:{line}: the row"))
                line = reader.line_num + 1  # a quoted field may span lines: a row's place is where it starts
        except csv.Error as error:  # with a quotation mark astray, nobody can tell where the next row starts
            hint = 'A quotation mark inside a field is doubled (""), in a field between quotation marks.'
            raise UserError(f"{name}:{line}: not valid CSV: {error}. {hint}") from error


def _open_text(path: Path) -> BinaryIO:
    """The file, behind a byte order mark, which is not part of the text."""
    file = path.open("rb")
    file.seek(3 if file.read(3) == codecs.BOM_UTF8 else 0)
    return file


def _read_lines(
    file: BinaryIO, name: str, bad: OnBadRow, first: int = 1, end: int | None = None, errors: str = "strict"
) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file up to position `end`, with their numbers from `first` on."""
    for number in count(first):
        line = b"" if end is not None and file.tell() >= end else file.readline(LONGEST_LINE + 1)
        if not line:
            return
        if (size := len(line)) > LONGEST_LINE:
            while not line.endswith(b"\n") and (line := file.readline(LONGEST_LINE)):
                size += len(line)
            bad(_too_long(f"{name}:{number}: the line", size))
            continue
        try:
            yield number, line.decode(errors=errors)
        except UnicodeDecodeError as error:
            bad(_not_utf8(Path(file.name), f"{name}:{number}: byte {error.start + 1} of the line"))


def _too_long(what: str, size: int) -> str:
    return f"{what} has {size / 1e6:.1f} MB, expected at most {LONGEST_LINE / 1e6:.1f} MB."


def _not_utf8(path: Path, what: str) -> str:
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin1"
    convert = f"iconv -f {encoding} -t utf-8 {path} > utf8{path.suffix}"
    return f"{what} is not UTF-8. Save the file as UTF-8, for example: {convert}"


def _require_unique_names(header: list[str], place: str) -> None:
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{place}: the header has {', '.join(repeated)} more than once.")


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


def _read_parquet(path: Path, name: str, bad: OnBadRow) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0

    def read(start: int, stop: int) -> list[Row]:
        return batch.slice(start - number, stop - start).to_pylist()

    try:
        with pq.ParquetFile(path) as file:
            _require_unique_names(file.schema_arrow.names, name)
            for batch in file.iter_batches():
                yield from _read_table(read, number, number + batch.num_rows, name, bad)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: not a valid Parquet file, after row {number}: {error}") from error


def _read_table(
    read: Callable[[int, int], list[Row]], start: int, stop: int, name: str, bad: OnBadRow
) -> Iterator[tuple[int, Row]]:
    """The rows from `start` to before `stop`, numbered from 1; one that cannot be read is bad, but not those beside."""
    try:
        yield from enumerate(read(start, stop), start + 1)
    except ValueError as error:
        if stop - start == 1:
            expected = "UTF-8" if isinstance(error, UnicodeDecodeError) else "values that Python can hold"
            bad(f"{name}:{stop}: the row cannot be read: {error}; expected {expected}.")
        else:
            middle = (start + stop) // 2
            yield from _read_table(read, start, middle, name, bad)
            yield from _read_table(read, middle, stop, name, bad)
