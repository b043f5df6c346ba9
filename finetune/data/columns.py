"""Which columns does a recipe of data_recipes/ read, and does a row have them?"""

import difflib
import importlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import data_recipes
from finetune.config.schema import Data
from finetune.data.rows import Row, RowError
from finetune.errors import UserError, describe_value

KINDS = {
    str: "text",
    list: "a list",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    bool: "true or false",
}


class Column(NamedTuple):
    """A column that is read: its name in the recipe and in the data set, and what a row must hold there."""

    name: str
    theirs: str
    kind: type
    required: bool


def find_recipe(data: Data) -> ModuleType:
    """The module of data_recipes/ that `data.recipe` names; a column of `data.columns` that it does not have raises."""
    if data.recipe not in _known():
        raise UserError(f"data.recipe={data.recipe}: there is no such recipe. {_suggest(data.recipe, _known())}")
    recipe = _import(data.recipe)
    columns = [*recipe.COLUMNS, *_optional(recipe)]
    for column, theirs in data.columns.items():
        if column not in columns:
            raise UserError(
                f"data.columns.{column}={theirs}: the recipe {data.recipe} has no column {column}. "
                f"{_suggest(column, columns)} Write data.columns.<the recipe's column>=<your column>."
            )
    return recipe


def find_columns(data: Data, recipe: ModuleType) -> list[Column]:
    """The columns that the recipe reads, under the names that `data.columns` gives them."""
    return [
        Column(name, data.columns.get(name, name), kind, name in recipe.COLUMNS)
        for name, kind in (recipe.COLUMNS | _optional(recipe)).items()
    ]


def check_row(row: Row, columns: list[Column], data: Data) -> Row:
    """The row under the recipe's own column names; null stands for an optional column that is absent.

    Raises RowError for a column that is missing, or null, or of another type.
    """
    mapped = {}
    for name, theirs, kind, required in columns:
        value = row.get(theirs)
        if isinstance(value, kind):
            mapped[name] = value
        elif theirs not in row and (required or name in data.columns):
            raise RowError(_missing(name, theirs, row, data))
        elif theirs not in row:
            _refuse_misspelt(theirs, row, columns, data.recipe)
        elif value is not None or required:
            wanted = KINDS.get(kind, kind.__name__)
            raise RowError(f"{theirs} is {describe_value(value)}, expected {wanted} (recipe {data.recipe}).")
    return mapped


def check_group(row: Row, column: str, kind: type | None) -> Any:
    """The value of the column that rows are grouped by, which is of type `kind`, that of the rows before, if any.

    Raises RowError: with a missing value or one of another type, rows of one group could stand on two sides.
    """
    if column not in row:
        raise RowError(f"there is no column {column} (data.group). {_suggest(column, row)}")
    value = row[column]
    if value is None:
        raise RowError(f"{column} is null, expected a value to group by (data.group).")
    if kind is not None and type(value) is not kind:
        wanted = KINDS.get(kind, kind.__name__)
        raise RowError(f"{column} is {describe_value(value)}, expected {wanted} as in the rows before (data.group).")
    return value


def _known() -> list[str]:
    return sorted(file.stem for file in Path(data_recipes.__path__[0]).glob("[a-z]*.py"))


def _import(recipe: str) -> ModuleType:
    return importlib.import_module(f"data_recipes.{recipe}")


def _optional(recipe: ModuleType) -> dict[str, type]:
    return getattr(recipe, "OPTIONAL", {})


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"There is: {', '.join(known)}."


def _missing(column: str, theirs: str, row: Row, data: Data) -> str:
    found = ", ".join(row) or "none"
    used = find_columns(data, _import(data.recipe))
    free = [name for name in row if name not in {one.theirs for one in used}]
    near = difflib.get_close_matches(theirs, free, n=1, cutoff=0.5)
    example = near[0] if near else next(iter(free), "yours")
    guess = f" Did you mean {near[0]}?" if near else ""
    fits = [name for name in _known() if set(_import(name).COLUMNS) <= row.keys()]
    other = f"choose the recipe that reads such rows: data.recipe={fits[0]}" if fits else "choose another data.recipe"
    return (
        f"there is no column {theirs}, which the recipe {data.recipe} needs; found: {found}.{guess} "
        f"Name your column with data.columns.{column}={example}, or {other}."
    )


def _refuse_misspelt(optional: str, row: Row, columns: list[Column], recipe: str) -> None:
    """Raise RowError where a column that nothing reads is all but named as the optional one that is absent."""
    unread = tuple(row.keys() - {column.theirs for column in columns})
    near = _find_misspelt(optional, unread) if unread else None
    if near:
        raise RowError(
            f"found the column {near}, which the recipe {recipe} does not read; expected {optional}. "
            f"Name your column with data.columns.{optional}={near}, or leave it out."
        )


@lru_cache(maxsize=1000)  # many rows have the same columns, and comparing words is slow
def _find_misspelt(word: str, words: tuple[str, ...]) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.8)), None)
