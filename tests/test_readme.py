"""Every command that the README and docs/ show exists and is valid; those that train are run by other tests."""

import re
import shlex
from itertools import product
from pathlib import Path

import pytest
import yaml

from finetune.cli.commands import build_parser
from finetune.cli.compose import compose_config
from finetune.errors import UserError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL)]
COMMANDS = [line.partition(" # ")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
RUNS = [command for command in COMMANDS if command.startswith("python run.py")]
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
    assert README.count("\n") <= 240


def test_its_links_lead_somewhere():
    links = [link for page in PAGES for link in re.findall(r"\]\((docs/[^)]+)\)", page)]
    assert len(links) >= 5 and all((ROOT / link).is_file() for link in links)


def test_the_shown_program_is_python():
    [program] = [text for kind, text in BLOCKS if kind == "python"]
    compile(program, "docs/runs.md", "exec")


def _written(value):
    return "[" + ",".join(value) + "]" if isinstance(value, list) else f"'{value}'"
