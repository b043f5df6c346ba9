"""Which columns does a recipe of data_recipes/ read, and does a row have them?"""

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import data_recipes
from finetune.config.schema import Data
from finetune.data.rows import Row, RowError
from finetune.errors import UserError, describe_value, nearest_option, suggest_or_list

WORD = {str: "text", list: "a list", int: "a whole number", float: "a number", dict: "an object", bool: "true or false"}
NEAR = 0.7  # the similarity, from 0 to 1, from which a column is probably the one that is meant
_nearest_column = lru_cache(maxsize=1000)(nearest_option)  # many rows have the same columns; comparing words is slow


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
    if data.recipe not in (names := recipe_names()):
        raise UserError(f"data.recipe={data.recipe}: there is no such recipe.{suggest_or_list(data.recipe, names)}")
    recipe = import_module(f"data_recipes.{data.recipe}")
    columns = recipe.COLUMNS | getattr(recipe, "OPTIONAL", {})
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
        for name, kind in (recipe.COLUMNS | getattr(recipe, "OPTIONAL", {})).items()
    ]


def check_row(row: Row, columns: list[Column], data: Data) -> Row:
    """The row under the recipe's column names, optional nulls left out; raises RowError for a column that is wrong."""
    mapped = {}
    for name, theirs, kind, required in columns:
        value = row.get(theirs)
        if isinstance(value, kind):
            mapped[name] = value
        elif theirs not in row and (required or name in data.columns):
            raise RowError(_describe_missing(row, columns, data))
        elif theirs not in row:
            unread = tuple(row.keys() - {column.theirs for column in columns})
            if nearest := unread and _nearest_column(theirs, unread, cutoff=0.8):
                raise RowError(
                    f"found the column {nearest}, which the recipe {data.recipe} does not read; expected {theirs}. "
                    f"Name your column with data.columns.{theirs}={nearest}, or leave it out."
                )
        elif value is not None or required:
            expected = WORD.get(kind, kind.__name__)
            raise RowError(f"{theirs} is {describe_value(value)}, expected {expected} (recipe {data.recipe}).")
    return mapped


def check_group(row: Row, column: str, kind: type | None) -> Any:
    """The value of the column to group by; raises RowError where it is missing or not of the `kind` of the rows before:
    rows of one group could stand on two sides.
    """
    if column not in row:
        raise RowError(f"there is no column {column} (data.group).{suggest_or_list(column, row)}")
    if (value := row[column]) is None:
        raise RowError(f"{column} is null, expected a value to group by (data.group).")
    if kind is not None and type(value) is not kind:
        expected = f"{WORD.get(kind, kind.__name__)} as in the rows before"
        raise RowError(f"{column} is {describe_value(value)}, expected {expected} (data.group).")
    return value


def _describe_missing(row: Row, columns: list[Column], data: Data) -> str:
    """All columns that are missing, those that are there and, where one is spelt alike, which that probably is."""
    needed = (column for column in columns if column.required or column.name in data.columns)
    missing = [column for column in needed if column.theirs not in row]
    unread = [name for name in row if name not in {column.theirs for column in columns}]
    nearest = {column.name: nearest_option(column.theirs, unread, cutoff=NEAR) for column in missing}
    names = " and ".join(column.theirs for column in missing)
    what = f"there is no column {names}, which" if len(missing) == 1 else f"there are no columns {names}, which"
    hint = "".join(f" Did you mean {name}?" for name in nearest.values() if name)
    mapping = " ".join(f"data.columns.{name}={found or 'YOURS'}" for name, found in nearest.items())
    recipes = (name for name in recipe_names() if import_module(f"data_recipes.{name}").COLUMNS.keys() <= row.keys())
    fitting = next(recipes, None)
    other = f"the recipe that reads such rows: data.recipe={fitting}" if fitting else "another data.recipe"
    return (
        f"{what} the recipe {data.recipe} needs; found: {', '.join(row) or 'none'}.{hint} "
        f"Name your column{'s' * (len(missing) > 1)} with {mapping}, or choose {other}."
    )
