"""How is a file written so that it is whole or not there?"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.secrets import without_secrets

HYDRAS_RECORD = "multirun.yaml"  # into which Hydra writes the settings of a grid, in the folder of all runs
FULL = (errno.ENOSPC, errno.EDQUOT)
LEAST_FREE = 2**20  # bytes; with fewer, a library's error while it writes a file is taken for one of a full disk


class DiskFullError(UserError):
    """There is no room for a file of the run."""


def write_text(file: Path, text: str) -> None:
    """Write a whole file or nothing, and no secret."""
    replace_file(file, without_secrets(text))


def replace_file(file: Path, text: str) -> None:
    """Write a whole file or nothing, the text as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        flush(unfinished)
        unfinished.replace(file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` at the end of the block; whole, or not there."""
    unfinished, old = (folder.with_name(f".{folder.name}.{state}") for state in ("unfinished", "old"))
    for path in (unfinished, old):
        remove_folder(path)
    unfinished.mkdir(parents=True)
    yield unfinished
    for path in [*unfinished.rglob("*"), unfinished]:
        flush(path)
    with suppress(FileNotFoundError):
        folder.rename(old)
    unfinished.rename(folder)
    remove_folder(old)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that it holds, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def flush(path: Path) -> None:
    """Have the system write a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def tell_full_disk(folder: Path) -> Iterator[None]:
    """Turn what is raised within the block into DiskFullError where the folder's disk is full."""
    try:
        yield
    except Exception as error:
        full = (isinstance(error, OSError) and error.errno in FULL) or "No space left on device" in str(error)
        written = isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"
        if full or (written and shutil.disk_usage(folder).free < LEAST_FREE):
            raise DiskFullError(
                f"{folder}: the disk is full ({error}). What was saved before is whole. Make room, and the same "
                "command goes on from there; trainer.save_total_limit=1 keeps fewer checkpoints."
            ) from error
        raise


def hide_secrets(file: Path) -> None:
    """Write a file that another program has made anew, without secrets, if it is there."""
    if file.exists():
        write_text(file, file.read_text(encoding="utf-8"))


def write_json(file: Path, content: object) -> None:
    """Write plain values or dataclasses as JSON, without secrets; numbers that JSON does not have become null."""
    from pydantic_core import from_json, to_json

    plain = without_secrets(from_json(to_json(content, inf_nan_mode="null")))  # in its values: no key is changed
    replace_file(file, to_json(plain, indent=2).decode() + "\n")


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; a row may hold U+2028, which ends no line."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write a whole .jsonl file or nothing, without secrets; numbers that JSON does not have become null."""
    from pydantic_core import from_json, to_json

    plain = without_secrets(from_json(to_json(rows, inf_nan_mode="null")))
    replace_file(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in plain))
