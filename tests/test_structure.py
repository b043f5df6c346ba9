"""The shape of the code: what may import what, and how long a function may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / "run.py", *sorted((ROOT / "finetune").glob("*.py")), *sorted((ROOT / "data_recipes").glob("*.py"))]
# From the ground up: a module imports, of this package, only modules of earlier lines.
LAYERS = (
    {"choices", "summary", "page", "curves", "importance", "sampling", "attempt"},
    {"schema"},
    {"problem", "download", "space"},
    {"storage"},
    {"strict_json", "lines", "fetch", "sft_fields", "limits", "metrics", "harness_tasks"},
    {"check_trainer", "rows", "significance"},
    {"recipe"},
    {"data"},
    {"overrides", "batch", "device", "chat", "checkpoint"},
    {"alike"},
    {"trials"},
    {"study"},
    {"libraries", "overlap", "hydra_error", "model", "generate", "sft_settings", "tokens", "screen"},
    {"check", "harness", "audit", "feasible", "tracking", "slots", "sweep_screen", "preload"},
    {"warm"},
    {"server"},
    {"pool", "jobs"},
    {"base_answers", "prepare", "command"},
    {"settings", "ranking", "prune"},
    {"answer"},
    {"search"},
    {"train", "evaluate", "preview", "run_page", "compare"},
    {"sweep_result", "sync"},
    {"compare_table"},
    {"compare_page"},
    {"sweep_report"},
    {"__main__"},
    {"hollow", "judge", "progress"},
    {"retention", "report"},
    {"work"},
    {"memory", "pace"},
    {"remedy"},
    {"plan"},
    {"sweep_plan"},
)
MAY_KNOW_HYDRA = {"schema", "command", "check", "overrides", "hydra_error", "space", "search"}


def imports(path):
    for node in ast.parse(path.read_text()).body:  # not what is imported later, in functions
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "finetune").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_imports_go_one_way(path):
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    used = {name.split(".")[1] for name in imports(path) if name.startswith("finetune.")}
    assert all(level[name] < level[path.stem] for name in used), used


@pytest.mark.parametrize("path", sorted((ROOT / "finetune").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_only_the_configuration_knows_hydra(path):
    knows = any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))
    assert not knows or path.stem in MAY_KNOW_HYDRA


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_function_is_over_sixty_lines_and_no_file_over_three_hundred(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
