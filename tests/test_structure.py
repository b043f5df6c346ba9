"""The shape of the code: what may import what, and how long a function may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / "run.py", *sorted((ROOT / "finetune").rglob("*.py")), *sorted((ROOT / "data_recipes").glob("*.py"))]
MAY_KNOW_HYDRA = {"config", "cli", "search", "sweeps"}


def imports(path):
    for node in ast.parse(path.read_text()).body:  # not what is imported later, in functions
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "finetune").rglob("[a-z]*.py")), ids=lambda path: path.stem)
def test_only_the_configuration_knows_hydra(path):
    knows = any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))
    assert not knows or path.parent.name in MAY_KNOW_HYDRA


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_function_is_over_sixty_lines_and_no_file_over_three_hundred(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
