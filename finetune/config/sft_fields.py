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

# SFTConfig after the classes that it inherits from.
CLASSES = {
    "TrainingArguments": ("transformers", "training_args.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "SFTConfig": ("trl", "trainer/sft_config.py"),
}
# Where the enums that annotate these fields are written.
ENUMS = (("transformers", "trainer_utils.py"), ("transformers", "training_args.py"))
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
    choices: tuple[str, ...] = ()
    # The default as it is written in the source, where it is a plain value.
    default: str | None = None

    def accepts(self, value: Any) -> bool:
        """Whether SFTConfig can take `value`, as YAML or the command line gives it."""
        if self.choices and isinstance(value, str):
            return value in self.choices
        kind = type(value).__name__
        return kind in self.types or "Any" in self.types or (kind == "int" and "float" in self.types)

    @property
    def expected(self) -> str:
        """What may be written here, in words."""
        types = self.types - {"int"} if "float" in self.types else self.types
        if self.choices:
            types -= {"str"}
        words = [words for name, words in WORDS.items() if name in types]
        if self.choices:
            words.insert(0, f"one of {', '.join(self.choices)}")
        example = f", such as {self.default}" if self.default and types <= {"int", "float"} else ""
        return " or ".join(words) + example


@cache
def sft_fields() -> dict[str, Field]:
    """Every field of the installed SFTConfig by its name."""
    enums = {name: values for place in ENUMS for name, values in _enums(_parse(*place))}
    fields: dict[str, Field] = {}
    for class_name, place in CLASSES.items():
        for node in _parse(*place).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                fields |= {field.name: field for field in _fields(node, enums)}
    return fields


@cache
def _parse(package: str, file: str) -> ast.Module:
    spec = find_spec(package)  # finds a package of the top level without importing it
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    return ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))


def _enums(module: ast.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    for node in module.body:
        if isinstance(node, ast.ClassDef) and any(
            isinstance(b, ast.Name) and b.id == "ExplicitEnum" for b in node.bases
        ):
            members = [member.value for member in node.body if isinstance(member, ast.Assign)]
            yield node.name, tuple(str(value.value) for value in members if isinstance(value, ast.Constant))


def _fields(node: ast.ClassDef, enums: dict[str, tuple[str, ...]]) -> Iterator[Field]:
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        types = _types(statement.annotation)
        choices = [value for name in types & enums.keys() for value in enums[name]] + _listed_choices(statement.value)
        accepted = {"str" if name in enums else name for name in types}
        default = _default(statement.value)
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
        case ast.Name(id=name):
            return {name}
    return {ast.unparse(annotation)}


def _keyword(call: ast.expr | None, name: str) -> ast.expr | None:
    keywords = call.keywords if isinstance(call, ast.Call) else []
    return next((keyword.value for keyword in keywords if keyword.arg == name), None)


def _default(call: ast.expr | None) -> str | None:
    default = _keyword(call, "default")
    return ast.unparse(default) if isinstance(default, ast.Constant | ast.UnaryOp) else None


def _listed_choices(call: ast.expr | None) -> list[str]:
    """The `choices` of a field's metadata, where they are written out."""
    metadata = _keyword(call, "metadata")
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "choices" and isinstance(value, ast.List):
                return [str(item.value) for item in value.elts if isinstance(item, ast.Constant)]
    return []
