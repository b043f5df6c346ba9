"""Private names of libraries: each line that uses one says so, and the installed library still has the name.

A line is marked by the comment `# private: LIBRARY, WHY` at its end, or above it where both would be too long. A name
is private if it begins with an underscore.
"""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("finetune", "hydra_plugins", "data_recipes")
CODE = [ROOT / "run.py", *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))]
MARK = re.compile(r"# private: ([\w-]+), \S+")
# What a library is called -> its module, where the two differ.
MODULES = {"pytorch": "torch"}
# Public in spite of the underscore: of `os`, of named tuples, and the key by which Hydra finds a class.
PUBLIC = {"_", "_exit", "_asdict", "_fields", "_make", "_replace", "_target_"}


def is_private(name):
    return isinstance(name, str) and name not in PUBLIC and re.fullmatch(r"_(?!_)\w*", name) is not None


def names_in(node):
    """The private names of one node: an attribute, an import, a keyword, or a name as text."""
    names: list[object] = []
    if isinstance(node, ast.Attribute):
        names = [node.attr]
    elif isinstance(node, ast.alias):
        names = [*node.name.split(".")]
    elif isinstance(node, ast.ImportFrom):
        names = [*(node.module or "").split(".")]
    elif isinstance(node, ast.keyword):
        names = [node.arg]
    elif isinstance(node, ast.Call) and len(node.args) > 1:  # getattr(x, "_name")
        names = [part.value for part in node.args if isinstance(part, ast.Constant)]
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):  # vars(x)["_name"]
        names = [node.slice.value]
    return [name for name in names if is_private(name)]


def parts(statement):
    """The nodes of a statement, those of the statements inside it aside."""
    yield statement
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt):
            yield from parts(child)


def library_bases(tree):
    """The classes of libraries that classes of the source inherit from directly, by class."""
    imports = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("finetune")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [imports[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in imports]
            yield node, [getattr(importlib.import_module(module), name) for module, name in bases]


def overriding(tree):
    """The private methods that override those of a library's class."""
    for node, bases in library_bases(tree):
        for method in node.body:
            is_method = isinstance(method, ast.FunctionDef) and is_private(method.name)
            if is_method and any(hasattr(base, method.name) for base in bases):
                yield method


def own_names(tree):
    """The private names that the source defines, and that no library has given it."""
    theirs = {method.name for method in overriding(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in theirs:
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def uses(source):
    """Each statement that uses private names, as its line, the names, and the library that its mark names, if any."""
    tree, lines = ast.parse(source), source.split("\n")
    methods = {method.lineno for method in overriding(tree)}
    for statement in ast.walk(tree):
        if isinstance(statement, ast.stmt):
            names = [name for node in parts(statement) for name in names_in(node)]
            if isinstance(statement, ast.FunctionDef) and statement.lineno in methods:
                names.append(statement.name)
            head = [node for node in parts(statement) if node is not statement or not hasattr(node, "body")]
            last = max([statement.lineno, *(getattr(node, "end_lineno", 0) for node in head)])
            first = statement.lineno - 1
            first -= first > 0 and lines[first - 1].strip().startswith("# private:")
            mark = next(filter(None, map(MARK.search, lines[first:last])), None)
            if names or mark:
                yield statement.lineno, names, mark and mark[1].lower()


def unmarked(source, own=()):
    """The lines that use a private name of a library without saying so."""
    used = [(line, name) for line, names, mark in uses(source) if not mark for name in names if name not in own]
    return [f"line {line} uses {name}" for line, name in dict.fromkeys(used)]


@pytest.fixture(scope="module")
def sources():
    return {str(file.relative_to(ROOT)): file.read_text() for file in CODE}


def test_a_line_that_uses_a_private_name_of_a_library_says_so(sources):
    own = {name for source in sources.values() for name in own_names(ast.parse(source))}
    assert [f"{file}, {line}" for file, source in sources.items() for line in unmarked(source, own)] == []


def test_a_mark_stands_on_a_line_that_uses_a_private_name(sources):
    marked = [(file, line, names) for file, source in sources.items() for line, names, mark in uses(source) if mark]
    assert len(marked) == sum(len(MARK.findall(source)) for source in sources.values()) > 0
    assert [f"{file}, line {line}" for file, line, names in marked if not names] == []


def test_the_installed_libraries_still_have_the_private_names(sources):
    wanted: dict[str, set[str]] = {}
    for source in sources.values():
        for _, names, library in uses(source):
            if library:
                wanted.setdefault(library, set()).update(names)
    for library, names in wanted.items():
        missing = missing_names(MODULES.get(library, library), names)
        assert not missing, (
            f"The installed {library} no longer has {', '.join(missing)}. Find what uses it by '# private: {library}'."
        )


def missing_names(module, names):
    """Those of the names that stand nowhere in the library, neither in its files nor as the name of one."""
    missing = set(names)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    for folder in spec.submodule_search_locations or []:
        for file in Path(folder).rglob("*.py"):
            if not missing:
                return []
            text = file.read_text(encoding="utf-8", errors="replace")
            missing -= {name for name in missing if name in file.relative_to(folder).with_suffix("").parts}
            missing -= {name for name in missing if name in text and re.search(rf"\b{name}\b", text)}
    return sorted(missing)


def test_a_name_that_a_library_does_not_have_is_missing():
    assert missing_names("hydra", {"_internal", "_never_there"}) == ["_never_there"]


@pytest.mark.parametrize(
    "line",
    [
        "from torch._pytree import tree_leaves",
        "import hydra._internal.utils",
        "from optuna import _deprecated",
        "study._storage.get()",
        "getattr(config, '_commit_hash', None)",
        "vars(module)['_TRITON']",
        "JobReturn(_return_value=1)",
        "value = (\n    study._study_id\n)",
        "from argparse import ArgumentParser\nclass Parser(ArgumentParser):\n    def _print_message(self):",
    ],
)
def test_a_planted_private_name_is_found_until_it_is_marked(line):
    body = "\n        pass" if line.endswith(":") else ""
    assert len(unmarked(line + body)) == 1
    assert unmarked(f"{line}  # private: optuna, nothing public serves{body}") == []


def test_a_mark_may_stand_above_the_line():
    assert unmarked("# private: optuna, nothing public serves\nstudy._storage.get()") == []


def test_what_the_source_defines_itself_needs_no_mark():
    source = "class Own:\n    def _note(self):\n        self._seen = _count(self._seen)\n\ndef _count(x): return x"
    assert unmarked(source, set(own_names(ast.parse(source)))) == []
