"""Which examples are trained on, which select the best checkpoint, and which are held out?

Rows are read strictly, turned into examples by a recipe of data_recipes/, and split so that the same prompt, or the
same group, never stands on two sides. Whatever is left out is counted.
"""

import difflib
import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import data_recipes
from finetune import fetch, rows, schema
from finetune.rows import Row, describe
from finetune.schema import Source, UserError

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""


@dataclass(frozen=True)
class Example:
    """One prompt and the completion that is learnt, with the place that it was read from."""

    prompt: list[Message]
    completion: str
    place: str
    group: str | None = None


@dataclass(frozen=True)
class Splits:
    """The examples of the three splits, what was counted on the way, and a checksum over all their contents.

    counts: rows (read), empty (left out: no completion), repeated (left out: same prompt and completion as another),
    cut (left out by data.max_train_rows), and train, validation, test.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    counts: dict[str, int]
    fingerprint: str


def load(data: schema.Data, seed: int) -> Splits:
    """The three splits of a data set; the same rows and the same seed always give the same splits.

    Raises UserError, with file and line, for rows or columns that are wrong, and for too few rows.
    """
    counts: Counter[str] = Counter(rows=0, empty=0, repeated=0, cut=0)
    recipe = find_recipe(data)
    seen: set[str] = set()
    # Held-out rows come first: a row that is repeated among the training rows is left out there.
    test = _read(data, data.test, recipe, seen, counts) if data.test else []
    validation = _read(data, data.validation, recipe, seen, counts) if data.validation else []
    train = _read(data, None, recipe, seen, counts)
    rows_to_split = len(train)
    if not data.test:
        train, test = _hold_out(train, round(rows_to_split * data.test_fraction), "test", seed)
    if not data.validation:
        train, validation = _hold_out(train, round(rows_to_split * data.validation_fraction), "validation", seed)
    _require_rows(train=train, validation=validation, test=test)
    train = _cut(train, data.max_train_rows, seed, counts)
    counts.update(train=len(train), validation=len(validation), test=len(test))
    return Splits(train, validation, test, dict(counts), _fingerprint(train, validation, test))


def digest(data: schema.Data) -> str:
    """SHA-256 over the contents of the local files that `data` names, or "" where it names none."""
    if data.source is Source.hub:
        return ""
    files = [data.path if data.source is Source.local else None, data.validation, data.test]
    checksums = [_checksum(Path(file).expanduser()) if file else "" for file in files]
    return _sha256(checksums) if any(checksums) else ""


# -- recipes and columns ----------------------------------------------------------------------------------------------


def find_recipe(data: schema.Data) -> ModuleType:
    """The module of data_recipes/ that `data.recipe` names; a column of `data.columns` that it does not have raises."""
    known = sorted(file.stem for file in Path(data_recipes.__path__[0]).glob("[a-z]*.py"))
    if data.recipe not in known:
        raise UserError(f"data.recipe={data.recipe}: there is no such recipe. {_suggest(data.recipe, known)}")
    recipe = importlib.import_module(f"data_recipes.{data.recipe}")
    columns = [*recipe.COLUMNS, *_optional(recipe)]
    for column, theirs in data.columns.items():
        if column not in columns:
            raise UserError(
                f"data.columns.{column}={theirs}: the recipe {data.recipe} has no column {column}. "
                f"{_suggest(column, columns)} Write data.columns.<the recipe's column>=<your column>."
            )
    return recipe


def _optional(recipe: ModuleType) -> dict[str, type]:
    return getattr(recipe, "OPTIONAL", {})


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"There is: {', '.join(known)}."


def _map_columns(row: Row, data: schema.Data, recipe: ModuleType, place: str) -> Row:
    """The row under the recipe's own column names, checked for presence and type; null stands for absent."""
    mapped = {}
    for column, kind in (recipe.COLUMNS | _optional(recipe)).items():
        theirs = data.columns.get(column, column)
        required = column in recipe.COLUMNS
        if theirs not in row and (required or column in data.columns):
            raise UserError(_missing(column, theirs, row, place, data.recipe))
        value = row.get(theirs)
        if value is None and not required:
            continue
        if not isinstance(value, kind):
            wanted = {str: "text", list: "a list"}.get(kind, kind.__name__)
            raise UserError(f"{place}: {theirs} is {describe(value)}, expected {wanted} (recipe {data.recipe}).")
        mapped[column] = value
    return mapped


def _missing(column: str, theirs: str, row: Row, place: str, recipe: str) -> str:
    found = ", ".join(row) or "none"
    near = difflib.get_close_matches(theirs, row, n=1, cutoff=0.5)
    example = near[0] if near else next(iter(row), "yours")
    guess = f" Did you mean {near[0]}?" if near else ""
    return (
        f"{place}: there is no column {theirs}, which the recipe {recipe} needs; found: {found}.{guess} "
        f"Name your column with data.columns.{column}={example}, or choose another data.recipe."
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def _read(
    data: schema.Data, held_out: str | None, recipe: ModuleType, seen: set[str], counts: Counter[str]
) -> list[Example]:
    """The examples of the training rows, or of the held-out file or split, without empty and repeated ones."""
    examples = []
    for place, row in _open_rows(data, held_out):
        counts["rows"] += 1
        example = _to_example(row, data, recipe, place)
        key = _content(example)
        if not example.completion.strip():
            counts["empty"] += 1
        elif key in seen:
            counts["repeated"] += 1
        else:
            seen.add(key)
            examples.append(example)
    return examples


def _open_rows(data: schema.Data, held_out: str | None) -> Iterator[tuple[str, Row]]:
    if data.source is Source.hub:
        return rows.read_hub(data.path, data.subset, data.revision, held_out or data.train_split)
    if held_out or data.source is Source.local:
        file = held_out or data.path
        return rows.read_rows(Path(file).expanduser(), name=file)
    fetched = fetch.data(data.path)
    return rows.read_rows(fetched, name=fetched.name)


def _to_example(row: Row, data: schema.Data, recipe: ModuleType, place: str) -> Example:
    mapped = _map_columns(row, data, recipe, place)
    try:
        prompt, completion = recipe.read(mapped)
        group = recipe.group(mapped) if hasattr(recipe, "group") else None
    except ValueError as error:
        raise UserError(f"{place}: {error} (recipe {data.recipe}).") from error
    if data.group is not None:
        if data.group not in row:
            raise UserError(f"{place}: there is no column {data.group} (data.group). {_suggest(data.group, row)}")
        group = json.dumps(row[data.group], ensure_ascii=False, default=str)
    return Example(_with_system(prompt, data), completion, place, group)


def _with_system(prompt: list[Message], data: schema.Data) -> list[Message]:
    """The prompt behind data.system, unless the row brings a system message of its own."""
    if not data.system or (prompt and prompt[0]["role"] == "system"):
        return prompt
    if not prompt:
        raise UserError(f"data.system is set, but the recipe {data.recipe} has no prompt: set data.system=''.")
    return [{"role": "system", "content": data.system}, *prompt]


# -- splitting --------------------------------------------------------------------------------------------------------


def _hold_out(examples: list[Example], share: int, split: str, seed: int) -> tuple[list[Example], list[Example]]:
    """Take about `share` rows, and at least one, out by whole groups; both parts stay in the order of the file.

    Groups are taken in the order of a hash of seed and name, so a row added later moves few others. A group joins where
    that brings the count nearer to `share`: one that is too large stays with the training rows.
    """
    sizes = Counter(_group(example) for example in examples)
    share = max(1, share)
    chosen: set[str] = set()
    taken = 0
    for group in sorted(sizes, key=lambda name: _sha256([seed, split, name])):
        if sizes[group] <= 2 * (share - taken):
            chosen.add(group)
            taken += sizes[group]
    if not chosen or len(chosen) == len(sizes):
        raise UserError(
            f"The {len(examples)} different rows in {len(sizes)} groups are too few to hold {share} out for the "
            f"{split} split (data.{split}_fraction). Rows with the same prompt, or the same group, stay together. Add "
            f"rows, raise the fraction, name a column to group by in data.group, or give data.{split} rows of its own."
        )
    rest = [example for example in examples if _group(example) not in chosen]
    return rest, [example for example in examples if _group(example) in chosen]


def _require_rows(**splits: list[Example]) -> None:
    for name, examples in splits.items():
        if not examples:
            raise UserError(
                f"The {name} split has no rows left: all are empty, or repeated in the same or a held-out split."
            )


def _group(example: Example) -> str:
    """What keeps examples together: their group, else the prompt, else (plain text) the text."""
    if example.group is not None:
        return example.group
    return json.dumps(example.prompt, ensure_ascii=False) if example.prompt else example.completion


def _cut(train: list[Example], limit: int | None, seed: int, counts: Counter[str]) -> list[Example]:
    """At most `limit` examples, chosen by a hash with the seed: a smaller limit chooses among a larger one's."""
    if limit is None or len(train) <= limit:
        return train
    counts["cut"] = len(train) - limit
    by_hash = sorted(range(len(train)), key=lambda index: _sha256([seed, _content(train[index])]))
    return [train[index] for index in sorted(by_hash[:limit])]


# -- checksums --------------------------------------------------------------------------------------------------------


def _fingerprint(*splits: list[Example]) -> str:
    return _sha256([[_content(example) for example in split] for split in splits])


def _content(example: Example) -> str:
    return _sha256([example.prompt, example.completion])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _checksum(path: Path) -> str:
    rows.require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
