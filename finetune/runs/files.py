"""How is a file written so that it is whole or not there?"""

import json
import os
from pathlib import Path
from typing import Any

from finetune.secrets import without_secrets

HYDRAS_RECORD = "multirun.yaml"  # into which Hydra writes the settings of a grid, in the folder of all runs


def write_text(file: Path, text: str) -> None:
    """Write a whole file or nothing, and no secret."""
    replace_file(file, without_secrets(text))


def replace_file(file: Path, text: str) -> None:
    """Write a whole file or nothing, the text as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


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
    """Write a whole .jsonl file or nothing, without secrets."""
    replace_file(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in without_secrets(rows)))
