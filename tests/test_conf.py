import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from finetune.cli.main import run_job, start_program
from finetune.cli.overrides import check_overrides
from finetune.cli.validate import read_config, validate_config
from finetune.config.schema import Config, register_schema
from finetune.config.spelling import spell_quoted
from finetune.errors import UserError
from finetune.search.space import point_overrides, read_space

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
ORDER = ["data", "model", "quantization", "adapter", "trainer", "eval", "tracking", "experiment", "sweep"]
OPTIONS = [(file.parent.name, file.stem) for file in sorted(CONF.glob("*/*.yaml"))]


def composed(*arguments: str) -> Config:
    check_overrides(list(arguments))
    if "schema.yaml" not in ConfigStore.instance().repo:
        register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose("config", list(arguments)))


def run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def what_it_needs(group: str, option: str, tmp_path: Path) -> list[str]:
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    needs = {
        ("data", "local"): [f"data.path={tmp_path / 'rows.jsonl'}"],
        ("data", "hub"): ["data.path=owner/name"],
        ("model", "local"): [f"model.path={tmp_path}"],
        ("model", "hub"): ["model.path=owner/name"],
        ("adapter", "full"): ["quantization=none"],
    }
    return needs.get((group, option), [])


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes_and_is_valid(group: str, option: str, tmp_path: Path) -> None:
    config = composed(f"{group}={option}", *what_it_needs(group, option, tmp_path))
    validate_config(config)
    if group in ("data", "model"):
        assert getattr(config, group).name == option


def test_experiments_and_sweeps_say_what_they_are_for() -> None:
    for file in [*CONF.glob("experiment/*.yaml"), *CONF.glob("sweep/*.yaml")]:
        first, second = file.read_text().splitlines()[:2]
        assert first == "# @package _global_" and second.startswith("# "), file


@pytest.mark.parametrize("text", ["336023e8", "true", "it's", "a\\", "a\\'b", "a=b,c"])
def test_a_quoted_text_is_composed_as_it_was(text: str) -> None:
    assert composed(f"name={spell_quoted(text)}").name == text


def test_an_experiment_gives_way_to_the_command_line() -> None:
    assert not composed("experiment=address_full_precision").quantization.load_in_4bit
    assert composed("experiment=address_hundred_examples", "data.max_train_rows=9").data.max_train_rows == 9


def test_every_cell_of_every_sweep_is_valid() -> None:
    for file in CONF.glob("sweep/*.yaml"):
        sweeper = OmegaConf.load(file).hydra.sweeper
        for point in read_space(sweeper.params, [], sweeper.get("conditions") or {}).boundary_points():
            validate_config(composed(*point_overrides(point)))


def test_hub_models_are_pinned_to_a_commit() -> None:
    for file in CONF.glob("model/*.yaml"):
        model = OmegaConf.load(file)
        if model.source == "hub" and "path" in model:
            assert len(model.revision) == 40, file


def test_the_defaults_come_in_the_promised_order() -> None:
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in defaults]
    assert names[:1] + [name for name in names[1:] if "override" not in name] == [
        "schema",
        *ORDER[:7],
        "_self_",
        *ORDER[7:],
    ]


def test_help_shows_purpose_example_parts_and_common_settings() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for group, option in OPTIONS:
        assert f"{group}: " in shown.stdout and option in shown.stdout
    for text in ("Fine-tunes a language model", "python run.py data=local", "adapter.r=", "trainer.", "seed=", "-m "):
        assert text in shown.stdout


def test_cfg_job_prints_a_configuration_and_nothing_else() -> None:
    shown = run("--cfg", "job", "adapter.r=3")
    assert shown.returncode == 0 and shown.stderr == ""
    config = OmegaConf.create(shown.stdout)
    assert config.adapter.r == 3 and set(config) == set(Config.__dataclass_fields__)


def test_info_defaults_works() -> None:
    shown = run("--info", "defaults")
    assert shown.returncode == 0 and "data/usaddress" in shown.stdout


WRONG = [
    (["adaptor.r=8"], ["adaptor.r=8", "adapter.r"]),
    (["adapter.rr=8"], ["adapter.rr=8", "adapter.r?"]),
    (["name=1e3"], ["name=1e3", "reads as 1000.0", "\"name='TEXT'\""]),
    (["-m", "data.name=a,1e3"], ["data.name=a,1e3", "reads as 1000.0"]),
    (["tracking.tags=[a,007,1e3]"], ["reads as 1000.0"]),
    (["name=+5"], ["name=+5", "reads as 5"]),
    (["adapter.r=eight"], ["adapter.r=eight", "an integer"]),
    (["data=usadress"], ["data=usadress", "data=usaddress", "hub, local"]),
    (["trainer.max_seq_length=512"], ["trainer.max_seq_length=512", "trainer.max_length"]),
    (["trainer.learning_rate=fast"], ["trainer.learning_rate=fast", "a number"]),
    (["quantization=nf4", "adapter=full"], ["adapter=full", "4-bit", "quantization=none", "adapter=lora"]),
    (["-m", "adapter.r=4,eight"], ["adapter.r=eight"]),
    (["hydra/sweeper=optun"], ["hydra/sweeper=optun", "Did you mean hydra/sweeper=optuna? There are basic, optuna."]),
    (["-m", "sweep=lora_basics", "hydra.sweeper.n_trial=5"], ["no such setting. Did you mean hydra.sweeper.n_trials?"]),
    (["-m", "adapter.r=4,8", "hydra.launcher.njobs=2"], ["hydra.launcher.njobs", "hydra.launcher.n_jobs?"]),
    (["-m", "adapter=full,lora"], ["adapter=full", "quantization=none"]),
]


@pytest.mark.parametrize(("arguments", "told"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_wrong_command_line_ends_with_code_2_and_no_stack(
    arguments: list[str], told: list[str], tmp_path: Path
) -> None:
    ended = run(*arguments, folder=tmp_path)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr and ended.stdout == ""
    for text in told:
        assert text in ended.stderr


def test_a_wrong_configuration_is_told_without_importing_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "run.py"), "adapter=full", "seed=-1"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and "seed=-1" in ended.stderr
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time")}
    assert "hydra" in imported
    assert imported.isdisjoint({"torch", "transformers", "trl", "peft", "datasets", "wandb"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "name: mine\nsourc: local\n",
            "data/mine.yaml: data.sourc: there is no such setting. Did you mean data.source?",
        ),
        ("name: mine\nsource: embeded\n", "data/mine.yaml: data.source: Invalid value 'embeded'"),
        ("name: mine\n  source: local\n", "mine.yaml:2: this is no YAML"),
        ("name: mine\nsource: local\n", "data.recipe is not set"),
        ("name: ${oc.env:ABSENT}\nsource: local\nrecipe: text\nmetrics: [chrf]\n", "'ABSENT' not found"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_the_file(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(text)
    ended = run("--config-dir", str(tmp_path), "data=mine")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert told in ended.stderr


@pytest.mark.parametrize(("raised", "code"), [(UserError("x"), 2), (KeyboardInterrupt(), 130), (None, 0)])
def test_the_exit_code_tells_whose_fault_it_was(
    raised: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> None:
        if raised:
            raise raised
        sys.exit(0)

    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as ended:
        start_program(main)
    assert ended.value.code == code


def test_a_failure_keeps_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    composed_config = OmegaConf.structured(composed())
    with pytest.raises(RuntimeError) as failure:
        run_job(lambda config: OmegaConf.create({"a": "${b}"}).a, composed_config)
    assert failure.value.__cause__ is not None
