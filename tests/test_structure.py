"""The shape of the code: what may import what, how long files and functions may be, and who may set what."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up: a folder imports, of this package, only from itself and from those before it.
FOLDERS = (
    *("secrets", "errors", "config", "data", "machine", "runs", "model", "training", "evaluation"),
    *("planning", "reporting", "comparison", "search", "sweeps", "cli"),
)
MAY_KNOW_HYDRA = ("config", "cli", "search")
PROGRAM = [ROOT / "run.py", *sorted(ROOT.glob("data_recipes/*.py")), *sorted(ROOT.glob("hydra_plugins/*.py"))]
PACKAGE = sorted((ROOT / "finetune").rglob("*.py"))


def imported(tree, root):
    """The modules that the source imports, anywhere in it: in functions and for types alone, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = root / node.module.replace(".", "/") / f"{alias.name}.py"
                yield f"{node.module}.{alias.name}" if inside.exists() else node.module


def import_graph(root):
    """For each module of the package in a folder the modules of the package that it imports."""
    paths = (root / "finetune").rglob("*.py")
    files = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
    return {
        name: {other for other in imported(ast.parse(path.read_text()), root) if other.startswith("finetune.")}
        for name, path in files.items()
    }


def upward_imports(graph):
    """The imports of a folder from one after it."""
    place = {name: number for number, name in enumerate(FOLDERS)}
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if place.get(module.split(".")[1], len(place)) < place[other.split(".")[1]]
    ]


def cycles(graph):
    """The modules that import themselves, by whatever way."""

    def reached(module, seen):
        for other in graph.get(module, ()):
            if other not in seen:
                seen.add(other)
                reached(other, seen)
        return seen

    return sorted(module for module in graph if module in reached(module, set()))


def foreign_assignments(tree):
    """The lines that set an attribute of an imported module."""
    modules = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if isinstance(node, ast.Import) or (alias.asname or alias.name).islower()
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in modules:
                yield node.lineno


def plant(folder, **sources):
    """A package of these modules, `config__schema` for finetune/config/schema.py."""
    for name, source in sources.items():
        path = folder / "finetune" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return import_graph(folder)


def test_folders_import_only_from_those_before_them():
    assert upward_imports(import_graph(ROOT)) == []


def test_no_module_imports_itself_by_way_of_others():
    assert cycles(import_graph(ROOT)) == []


def test_every_folder_is_in_the_order_and_asks_its_question():
    folders = {path.parent.name for path in (ROOT / "finetune").glob("*/__init__.py")}
    assert folders == set(FOLDERS) - {"secrets", "errors"}
    for path in (ROOT / "finetune").rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        assert len(tree.body) == 1 and ast.get_docstring(tree), f"{path} holds more than one docstring"


def test_the_page_of_the_architecture_lists_the_folders_in_this_order():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert re.findall(r"^\| `(\w+)(?:/|\.py)` \| .+\? \|$", page, re.MULTILINE) == list(FOLDERS)


@pytest.mark.parametrize(
    "source",
    [
        "from finetune.cli.main import start",
        "def late():\n    from finetune.cli import main",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import finetune.cli.main",
    ],
)
def test_a_planted_upward_import_is_found(tmp_path, source):
    graph = plant(tmp_path, cli__main="", config__schema=source)
    assert upward_imports(graph) == ["finetune.config.schema imports finetune.cli.main"]


def test_a_planted_cycle_is_found(tmp_path):
    late = "def late():\n    from finetune.runs import files"
    ring = {"files": "from finetune.runs import folder", "folder": "import finetune.runs.read", "read": late}
    graph = plant(tmp_path, **{f"runs__{name}": source for name, source in ring.items()})
    assert cycles(graph) == ["finetune.runs.files", "finetune.runs.folder", "finetune.runs.read"]


@pytest.mark.parametrize("path", [*PROGRAM, *PACKAGE], ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_sets_what_belongs_to_another_module(path):
    assert list(foreign_assignments(ast.parse(path.read_text()))) == []


def test_a_planted_assignment_to_another_modules_attribute_is_found():
    source = "from finetune.machine import device\nimport torch.cuda\n\ndevice.share = 1\ntorch.cuda.limit += 1\n"
    assert list(foreign_assignments(ast.parse(source))) == [4, 5]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_configuration_knows_hydra(path):
    known = {name.split(".")[0] for name in imported(ast.parse(path.read_text()), ROOT)}
    assert not known & {"hydra", "omegaconf"} or path.parent.name in MAY_KNOW_HYDRA


@pytest.mark.parametrize("path", [*PROGRAM, *PACKAGE], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_over_sixty_lines_and_no_file_over_four_hundred(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_patch_nothing_of_ours(path):
    tree = ast.parse(path.read_text())
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("finetune", "hydra_plugins")
        for alias in node.names
    } | {"run"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("monkeypatch.setattr", "patch.object", "patch")
        ):
            target = ast.unparse(node.args[0]).strip("'\"").split(".")[0]
            assert target not in {*ours, "finetune", "hydra_plugins"}, f"line {node.lineno} replaces a part of {target}"
