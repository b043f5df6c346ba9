"""What the README, CONTRIBUTING and docs/ show exists and is valid; the commands that train are run by other tests."""

import ast
import re
import shlex
from itertools import product
from pathlib import Path

import pytest
import yaml

from finetune.__main__ import build_parser
from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.evaluation.metrics import METRICS
from finetune.search.settings import PRUNERS, SAMPLERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
DATA = (ROOT / "docs" / "data.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL)]
COMMANDS = [line.partition(" # ")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
RUNS = sorted({command for command in COMMANDS if command.startswith("python run.py")})
FLAGS = {"-m", "--help", "--cfg", "job"}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "tickets.csv").write_text("question,team\nwhere,north\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", RUNS)
def test_each_run_is_valid(command, mine):
    arguments = [part for part in shlex.split(command)[2:] if part not in FLAGS]
    keys = [argument.partition("=")[0] for argument in arguments]
    values = [argument.partition("=")[2].split(",") for argument in arguments]
    for cell in product(*values):
        compose_config([f"{key}={value}" for key, value in zip(keys, cell, strict=True)])


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(RUNS)))
def test_each_other_command_is_one_of_make_or_understood(command):
    if command.startswith("python -m finetune "):
        assert build_parser().parse_args(command.split()[3:]).call
        return
    if command.startswith(".venv/bin/python -m pytest "):
        [path] = [word for word in command.split() if word.startswith("tests/")]
        name = command.partition(" -k ")[2]
        assert name in (ROOT / path).read_text()
        return
    program, target = command.split()
    assert program == "make"
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_shown_mistake_is_told_in_these_words():
    [shown] = re.findall(r"\$ python run.py (\S+)\nError: (.*?)\n```", README, re.DOTALL)
    with pytest.raises(UserError) as error:
        compose_config([shown[0]])
    assert str(error.value) == " ".join(shown[1].split())


def test_the_shown_data_set_and_model_are_whole_files(mine, tmp_path):
    from finetune.data.splits import load_splits

    files = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
    assert [file["name"] for file in files] == ["tickets", "mine"]
    for group, file in zip(("data", "model"), files, strict=True):
        columns = file.pop("columns", {})
        settings = [f"{group}={file['source']}", *(f"{group}.columns.{key}={value}" for key, value in columns.items())]
        settings += [f"{group}.{key}={_written(value)}" for key, value in file.items()]
        config = compose_config(settings)
        assert getattr(config, group).path == file["path"]
    rows = "".join(f"question {i},team {i % 3}\n" for i in range(20))
    (tmp_path / "tickets.csv").write_text("question,team\n" + rows)
    columns = ["data.columns.prompt=question", "data.columns.completion=team"]
    assert len(load_splits(compose_config(["data=local", "data.path=tickets.csv", *columns]).data).train) == 16


def test_it_stays_short():
    assert README.count("\n") <= 180


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).is_file()] == []


def test_every_page_of_docs_is_linked_from_the_readme():
    assert {f"docs/{page.name}" for page in PAGES[2:]} <= set(re.findall(r"\]\(([^)#]+)\)", README))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_it_names_exist(page):
    """`config/limits.py` is a file of the package, `conf/model/x.yaml` one of the checkout."""
    names = re.findall(r"`([\w./]+/\w+\.(?:py|yaml|md))`", page.read_text())
    missing = [name for name in names if not any((root / name).is_file() for root in (ROOT, ROOT / "finetune"))]
    assert set(missing) <= {"conf/data/tickets.yaml", "conf/model/mine.yaml"}  # the reader writes these


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_names_in_capitals_that_it_points_to_exist(page):
    code = [file.read_text() for file in (ROOT / "finetune").rglob("*.py")]
    code += [file.read_text() for file in (ROOT / "data_recipes").glob("*.py")]
    names = {name for name in re.findall(r"`([A-Z][A-Z_]+)`", page.read_text()) if not name.startswith("FINETUNE_")}
    assert [name for name in names if not any(re.search(rf"^{name}\b", text, re.MULTILINE) for text in code)] == []


def test_the_picture_names_the_folders_of_the_package():
    [picture] = re.findall(r"```mermaid\n(.*?)```", ARCHITECTURE, re.DOTALL)
    drawn = re.findall(r'\["([\w.]+)/?"\]', picture)
    assert sorted(drawn) == sorted(folder_questions())


def test_the_list_of_folders_is_of_the_questions_of_the_package():
    listed = dict(re.findall(r"^\| `([\w.]+)/?` \| (.+\?) \|$", ARCHITECTURE, re.MULTILINE))
    assert listed == folder_questions()


def test_the_files_of_a_run_are_written_by_the_named_modules():
    rows = re.findall(r"^\| `([\w.]+)/?`.* \| `(\w+/\w+\.py)` \|$", ARCHITECTURE, re.MULTILINE)
    assert len(rows) > 15
    missing = [name for name, module in rows if not names_file(ROOT / "finetune" / module, name)]
    assert missing == []


def test_the_pages_name_every_metric_and_recipe():
    assert not [name for name in METRICS if f"`{name}`" not in DATA]
    recipes = {file.stem for file in (ROOT / "data_recipes").glob("[a-z]*.py")}
    assert set(re.findall(r"^\| `(\w+)` \| `\{", DATA, re.MULTILINE)) == recipes - {"usaddress", "usaddress_zip"}


def test_the_pages_name_every_sampler_and_pruner():
    page = (ROOT / "docs" / "sweeps.md").read_text()
    assert not [name for name in (*SAMPLERS, *PRUNERS) if f"`{name}`" not in page]


def test_the_parts_are_the_options_of_conf():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", README, re.MULTILINE))
    for group in ("data", "quantization", "adapter", "tracking", "trainer"):
        options = {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}
        assert not [option for option in options if f"`{option}`" not in rows[group]]


def test_it_is_said_from_which_size_on_activations_are_recomputed():
    [size] = re.findall(
        r"^CHECKPOINTING_FROM = ([\d_]+)", (ROOT / "finetune/training/prepare.py").read_text(), re.MULTILINE
    )
    page = (ROOT / "docs" / "speed.md").read_text()
    assert int(size) == 10**9 and "recomputed only for models of a billion parameters or more" in page


def test_the_shown_program_is_python():
    [program] = [text for kind, text in BLOCKS if kind == "python"]
    compile(program, "docs/runs.md", "exec")


def _written(value):
    return "[" + ",".join(value) + "]" if isinstance(value, list) else f"'{value}'"


def folder_questions():
    """Each folder of the package, and its leaf modules, with the first line of its docstring."""
    files = {path.parent.name: path for path in (ROOT / "finetune").glob("*/__init__.py")}
    files |= {name: ROOT / "finetune" / name for name in ("secrets.py", "errors.py")}
    docstrings = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in files.items()}
    return {name: text.split("\n")[0] for name, text in docstrings.items()}


def names_file(path, name):
    """Whether the module writes the name, or imports the constant that stands for it."""
    constants = {
        found[1]
        for file in (ROOT / "finetune" / "runs").glob("*.py")
        for found in re.finditer(rf'^(\w+).*"{name}"', file.read_text(), re.MULTILINE)
    }
    text = path.read_text()
    return re.search(rf"\b{re.escape(name.partition('.')[0])}\b", text) or any(word in text for word in constants)
