"""Which fields does the installed SFTConfig have, and which values do they take?

Read from the source of TRL and transformers, because importing them takes seconds and a typo should not.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# SFTConfig after the classes that it inherits from, and the files of these and of the enums that annotate their fields.
CLASSES = ("TrainingArguments", "_BaseConfig", "SFTConfig")
FILES = {
    "transformers": ("trainer_utils.py", "training_args.py"),
    "trl": ("trainer/base_config.py", "trainer/sft_config.py"),
}
WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


@dataclass(frozen=True)
class Field:
    """One field of SFTConfig: the names of the Python types that it accepts, its values where they are a closed set."""

    name: str
    types: frozenset[str]
    choices: tuple[str, ...]
    default: str | None  # as it is written in the source, where it is a plain value

    def accepts(self, value: Any) -> bool:
        """Whether SFTConfig can take `value`, as YAML or the command line gives it."""
        if self.choices and isinstance(value, str):
            return value in self.choices
        kind = type(value).__name__
        return kind in self.types or "Any" in self.types or (kind == "int" and "float" in self.types)

    @property
    def expected(self) -> str:
        """What may be written here, in words."""
        types = self.types - {"int" if "float" in self.types else "", "str" if self.choices else ""}
        words = [f"one of {', '.join(self.choices)}"] if self.choices else []
        words += [word for name, word in WORDS.items() if name in types]
        return " or ".join(words) + (f", such as {self.default}" if self.default and types <= {"int", "float"} else "")


@cache
def sft_fields() -> dict[str, Field]:
    """Every field of the installed SFTConfig by its name."""
    classes = {node.name: node for package, files in FILES.items() for node in _classes(package, files)}
    enums = {name: _members(node) for name, node in classes.items() if "ExplicitEnum" in map(ast.unparse, node.bases)}
    return {field.name: field for name in CLASSES for field in _fields(classes[name], enums)}


def _classes(package: str, files: tuple[str, ...]) -> Iterator[ast.ClassDef]:
    spec = find_spec(package)  # finds a package of the top level without importing it
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    for file in files:
        module = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
        yield from (node for node in module.body if isinstance(node, ast.ClassDef))


def _members(enum: ast.ClassDef) -> list[str]:
    members = [member.value for member in enum.body if isinstance(member, ast.Assign)]
    return [str(value.value) for value in members if isinstance(value, ast.Constant)]


def _fields(node: ast.ClassDef, enums: dict[str, list[str]]) -> Iterator[Field]:
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        call, types = statement.value, _types(statement.annotation)
        given = {keyword.arg: keyword.value for keyword in call.keywords} if isinstance(call, ast.Call) else {}
        choices = [value for name in types & enums.keys() for value in enums[name]] + _choices(given.get("metadata"))
        accepted = {"str" if name in enums else name for name in types}
        value = given.get("default")
        default = ast.unparse(value) if isinstance(value, ast.Constant | ast.UnaryOp) else None
        if default == "None":  # some fields are annotated `bool` and default to None
            accepted.add("NoneType")
        yield Field(statement.target.id, frozenset(accepted), tuple(choices), default)


def _types(annotation: ast.expr) -> set[str]:
    """`dict[str, Any] | str | None` -> {"dict", "str", "NoneType"}; the names of other classes as they are."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            return _types(left) | _types(right)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _types(inner) | {"NoneType"}
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return {name for member in members for name in _types(member)}
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Constant(value=value)):
            return {type(value).__name__}
        case ast.Subscript(value=outer):
            return {name.lower() for name in _types(outer)}
        case ast.Constant(value=None):
            return {"NoneType"}
    return {ast.unparse(annotation)}


def _choices(metadata: ast.expr | None) -> list[str]:
    """The `choices` of a field's metadata, where they are written out."""
    pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    written = [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "choices"]
    lists = [value.elts for value in written if isinstance(value, ast.List)]
    return [str(item.value) for items in lists for item in items if isinstance(item, ast.Constant)]
