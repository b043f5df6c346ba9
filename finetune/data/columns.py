"""Which columns does a recipe of data_recipes/ read, and does a row have them?"""

import importlib
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import data_recipes
from finetune.config.schema import Data
from finetune.data.rows import Row, RowError
from finetune.errors import UserError, describe_value, nearest_option, suggest_or_list

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


def recipe_names() -> list[str]:
    """The names that `data.recipe` may have: those of the files in data_recipes/."""
    return sorted(file.stem for file in Path(data_recipes.__path__[0]).glob("[a-z]*.py"))


def find_recipe(data: Data) -> ModuleType:
    """The module of data_recipes/ that `data.recipe` names; a column of `data.columns` that it does not have raises."""
    if data.recipe not in recipe_names():
        raise UserError(
            f"data.recipe={data.recipe}: there is no such recipe.{suggest_or_list(data.recipe, recipe_names())}"
        )
    recipe = _import_recipe(data.recipe)
    columns = _column_kinds(recipe)
    for column, theirs in data.columns.items():
        if column not in columns:
            raise UserError(
                f"data.columns.{column}={theirs}: the recipe {data.recipe} has no column {column}."
                f"{suggest_or_list(column, columns)} Write data.columns.<the recipe's column>=<your column>."
            )
    return recipe


def find_columns(data: Data, recipe: ModuleType) -> list[Column]:
    """The columns that the recipe reads, under the names that `data.columns` gives them."""
    return [
        Column(name, data.columns.get(name, name), kind, name in recipe.COLUMNS)
        for name, kind in _column_kinds(recipe).items()
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
            raise RowError(_describe_missing(name, row, columns, data))
        elif theirs not in row:
            _refuse_misspelt(theirs, row, columns, data.recipe)
        elif value is not None or required:
            raise RowError(f"{theirs} is {describe_value(value)}, expected {_name_kind(kind)} (recipe {data.recipe}).")
    return mapped


def check_group(row: Row, column: str, kind: type | None) -> Any:
    """The value of the column that rows are grouped by, which is of type `kind`, that of the rows before, if any.

    Raises RowError: with a missing value or one of another type, rows of one group could stand on two sides.
    """
    if column not in row:
        raise RowError(f"there is no column {column} (data.group).{suggest_or_list(column, row)}")
    value = row[column]
    if value is None:
        raise RowError(f"{column} is null, expected a value to group by (data.group).")
    if kind is not None and type(value) is not kind:
        expected = f"expected {_name_kind(kind)} as in the rows before"
        raise RowError(f"{column} is {describe_value(value)}, {expected} (data.group).")
    return value


def _import_recipe(name: str) -> ModuleType:
    return importlib.import_module(f"data_recipes.{name}")


def _column_kinds(recipe: ModuleType) -> dict[str, type]:
    return {**recipe.COLUMNS, **getattr(recipe, "OPTIONAL", {})}


def _name_kind(kind: type) -> str:
    return KINDS.get(kind, kind.__name__)


def _describe_missing(name: str, row: Row, columns: list[Column], data: Data) -> str:
    theirs = data.columns.get(name, name)
    unread = [column for column in row if column not in {column.theirs for column in columns}]
    nearest = nearest_option(theirs, unread, cutoff=0.5)
    hint = f" Did you mean {nearest}?" if nearest else ""
    example = nearest or next(iter(unread), "yours")
    fitting = [recipe for recipe in recipe_names() if set(_import_recipe(recipe).COLUMNS) <= row.keys()]
    other = (
        f"choose the recipe that reads such rows: data.recipe={fitting[0]}" if fitting else "choose another data.recipe"
    )
    return (
        f"there is no column {theirs}, which the recipe {data.recipe} needs; found: {', '.join(row) or 'none'}.{hint} "
        f"Name your column with data.columns.{name}={example}, or {other}."
    )


def _refuse_misspelt(optional: str, row: Row, columns: list[Column], recipe: str) -> None:
    """Raise RowError where a column that nothing reads is all but named as the optional one that is absent."""
    unread = tuple(row.keys() - {column.theirs for column in columns})
    if nearest := unread and _find_misspelt(optional, unread):
        raise RowError(
            f"found the column {nearest}, which the recipe {recipe} does not read; expected {optional}. "
            f"Name your column with data.columns.{optional}={nearest}, or leave it out."
        )


@lru_cache(maxsize=1000)  # many rows have the same columns, and comparing words is slow
def _find_misspelt(word: str, words: tuple[str, ...]) -> str | None:
    return nearest_option(word, words, cutoff=0.8)
