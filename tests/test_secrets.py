"""What is secret stands in no file and in nothing that is printed."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from finetune.cli.compose import compose_config
from finetune.errors import describe_value
from finetune.reporting import html
from finetune.runs.files import replace_file, write_json, write_jsonl, write_text
from finetune.runs.folder import run_identity
from finetune.secrets import NOTED, MaskedStream, names_secret, pieces_without_secrets, without_secrets

ROOT = Path(__file__).parent.parent
AWKWARD = "p\"q<r>'&\\é 8"
# Each is planted in another way; see what_is_left.
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "HF_TOKEN": "hf_QwErTyUiOpAsDfGh",
    "MY_SERVICE_PASSWORD": "swordfish'\"<&>99",
    "GREETING": "aardvark-7351",
    "PGPASSWORD": "elephants_4471",
    "HUB": "zebracrossing88",
    "FOLDER": "hippocampus-2020",
    "DATABASE": "xylophone:77",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No secret but the test's own."""
    for name in [name for name in os.environ if names_secret(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(NOTED, "")


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", AWKWARD)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[(name, True) for name in ("HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MYSQL_PWD")],
        *[(name, True) for name in ("OPENAI_API_KEY_2", "DB_PASS", "GITHUB_PAT", "client-secret", "trainer.hub_token")],
        *[(name, False) for name in ("PWD", "MAX_TOKENS", "TOKENIZERS_PARALLELISM", "eos_token", "KEYMAP", "PATH")],
    ],
)
def test_a_name_tells_whether_its_value_is_secret(name, secret):
    assert names_secret(name) == secret


def test_a_value_is_hidden_however_it_is_spelled(planted):
    spelled = [
        AWKWARD, json.dumps(AWKWARD), json.dumps(AWKWARD, ensure_ascii=False), repr(AWKWARD),
        yaml.safe_dump(AWKWARD, allow_unicode=True), html.escape(AWKWARD), quote(AWKWARD), quote(AWKWARD, safe=""),
        html.script_data("x", json.dumps({"a": AWKWARD})),
    ]  # fmt: skip
    for text in spelled:
        assert "***" in (shown := without_secrets(f"before {text} after")), text
        assert "q" not in shown.replace("quot", "") and shown.startswith("before ") and shown.endswith(" after")


def test_an_address_loses_its_password_alone(monkeypatch):
    assert without_secrets("see postgresql://me:x@host:5432/db?a=b") == "see postgresql://me:***@host:5432/db?a=b"
    kept = ["http://host:8080/a@b", "https://host/x?mail=a@b", "mail a:b@host", "a://u@host"]
    assert [without_secrets(text) for text in kept] == kept
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxy-word@host")
    assert without_secrets("no proxy-word here") == "no *** here"


def test_short_values_numbers_for_settings_and_paths_that_exist_are_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("A_TOKEN", "short")
    monkeypatch.setenv("SOME_CREDENTIALS", str(tmp_path))
    monkeypatch.setenv("OTHER_KEY", f"{tmp_path}/not/yet/there")
    monkeypatch.setenv("COUNT", "1234567")
    monkeypatch.setenv("HOW", "offline")
    monkeypatch.setenv("WHERE", "relative-folder")
    read = ["data.revision='${oc.env:COUNT}'", "tracking.mode='${oc.env:HOW}'", "output_dir='${oc.env:WHERE}'"]
    compose_config([*read, "data=hub", "data.path=a/b"])
    text = f"short {tmp_path} {tmp_path}/not/yet/there 1234567 offline relative-folder"
    assert without_secrets(text) == text


def test_what_a_setting_reads_from_the_environment_is_hidden_and_stays_part_of_the_identity(monkeypatch):
    given = ["data.system='${oc.env:GREETING}'"]
    identities = set()
    for value in ("aardvark-7351", "zebra-crossing"):
        monkeypatch.setenv("GREETING", value)
        config = compose_config(given)
        assert config.data.system == value
        assert without_secrets({"data": {"system": f"Say {config.data.system}"}}) == {"data": {"system": "Say ***"}}
        identities.add(run_identity(config))
    assert len(identities) == 2


def test_a_secret_over_several_tokens_is_hidden_in_them(planted):
    assert pieces_without_secrets(["a ", AWKWARD[:3], AWKWARD[3:] + "b", "c"]) == ["a ", "***", "b", "c"]
    assert pieces_without_secrets(["x://me:a", "b@h"]) == ["x://me:***", "@h"]
    assert pieces_without_secrets([]) == []


def test_files_hold_no_secret_and_json_keeps_its_keys(planted, monkeypatch, tmp_path):
    monkeypatch.setenv("OTHER_SECRET", "answer")
    content = {"answer": f"the answer: {AWKWARD}", "loss": float("nan"), "list": [1, AWKWARD]}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == {"answer": "the ***: ***", "loss": None, "list": [1, "***"]}
    write_jsonl(tmp_path / "a.jsonl", [{"answer": AWKWARD}])
    assert (tmp_path / "a.jsonl").read_text() == '{"answer": "***"}\n'
    write_text(tmp_path / "a.html", html.page(AWKWARD, html.paragraph(AWKWARD)))
    assert (tmp_path / "a.html").read_text().count("***") == 3
    replace_file(tmp_path / "used", AWKWARD)
    assert (tmp_path / "used").read_text() == AWKWARD
    assert describe_value("x" * 50 + AWKWARD) == f'the text "{"x" * 50}***"'


def test_streams_and_logging_show_no_secret(planted):
    shown = io.StringIO()
    stream = MaskedStream(shown)
    print("a", AWKWARD, file=stream)
    stream.writelines([AWKWARD, "\n"])
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(stream))
    logger.error("refused %s", AWKWARD)
    assert shown.getvalue() == "a ***\n***\nrefused ***\n"
    assert not stream.isatty() and stream.getvalue() == shown.getvalue()


@pytest.fixture(scope="module")
def what_is_left(tiny_model, tmp_path_factory):
    """All that runs, a sweep, mistakes and a crash leave where secrets are planted, by where it was found."""
    folder = tmp_path_factory.mktemp("planted")
    kept = {name: value for name, value in os.environ.items() if not names_secret(name) and "proxy" not in name.lower()}
    environment = kept | SECRETS | {
        "HOME": str(folder / "home"), "FINETUNE_CACHE": os.environ["FINETUNE_CACHE"], "WANDB_MODE": "offline",
        "STUDIES": f"postgresql://me:{quote(SECRETS['DATABASE'], safe='')}@localhost:1/studies",
    }  # fmt: skip
    outputs = folder / "outputs"
    common = [
        *("model=local", f"model.path={tiny_model}", "model.dtype=float32", "quantization=none", "trainer=smoke"),
        *("data.max_train_rows=16", "eval.max_prompts=2", "eval.max_new_tokens=4", "eval.retention=false"),
        *(
            "force=true",
            f"output_dir={outputs}",
            "tracking.mode=offline",
            f"tracking.tags=['${{oc.env:GREETING}}',{SECRETS['HF_TOKEN']}]",
        ),
        "data.system='Greet ${oc.env:GREETING} as ${oc.env:MY_SERVICE_PASSWORD}'",
    ]
    faulty = ROOT / "tests" / "support" / "faulty_run.py"
    commands = {
        "sweep": [faulty, *common, "-m", "trainer.learning_rate=1e-3,8e-3", "hydra.launcher.n_jobs=1"],
        "crash": [faulty, *common, "trainer.learning_rate=8e-3"],
        "settings": [ROOT / "run.py", *common, "--cfg", "job", "--resolve"],
        "refused setting": [
            ROOT / "run.py", *common, f"trainer.hub_token={SECRETS['HUB']}", f"seed={SECRETS['HF_TOKEN']}",
        ],
        "refused path": [ROOT / "run.py", *common, "data=local", "data.path='no/${oc.env:FOLDER}.jsonl'"],
        "refused storage": [
            ROOT / "run.py", *common, "hydra/sweeper=optuna", "-m", "hydra.sweeper.storage='${oc.env:STUDIES}'",
            "adapter.r=4,8",
        ],
        "compare": ["-m", "finetune", "compare", outputs / "sweeps" / "*", "--html", folder / "page.html"],
    }  # fmt: skip
    left = {}
    for name, command in commands.items():
        if name == "compare":
            [command[3]] = (outputs / "sweeps").iterdir()
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment, capture_output=True, cwd=ROOT, check=False
        )
        left |= {f"{name}, code": done.returncode, f"{name}, stdout": done.stdout, f"{name}, stderr": done.stderr}
    return left | {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_no_byte_that_runs_leave_holds_a_secret(what_is_left):
    codes = {name: value for name, value in what_is_left.items() if isinstance(value, int)}
    assert list(codes.values()) == [1, 1, 0, 2, 2, 2, 0], (codes, what_is_left["sweep, stderr"])
    found = [
        f"{name} in {place}"
        for place, content in what_is_left.items()
        if isinstance(content, bytes)
        for name, secret in SECRETS.items()
        for spelling in {
            secret,
            json.dumps(secret)[1:-1],
            html.escape(secret),
            quote(secret, safe=""),
            repr(secret)[1:-1],
        }
        if spelling.encode() in content
    ]
    assert found == []


@pytest.mark.slow
def test_secrets_are_shown_as_stars_where_they_stood(what_is_left):
    written = {Path(place).name: content for place, content in what_is_left.items() if isinstance(content, bytes)}
    complete = next(Path(place).parent for place in what_is_left if place.endswith("/predictions.jsonl"))
    files = {name: (complete / name).read_text() for name in ("config.yaml", "result.json", "report.html", "log.txt")}
    assert all("Greet *** as ***" in files[name] for name in ("config.yaml", "result.json", "report.html"))
    row = json.loads((complete / "predictions.jsonl").read_text().splitlines()[0])
    assert row["prompt"][0]["content"] == "Greet *** as ***"
    [tracked] = complete.glob("wandb/offline-run-*/run-*.wandb")
    assert b"Greet *** as ***" in tracked.read_bytes()
    refusal = b"the service refused ***"
    assert refusal in what_is_left["crash, stderr"] and refusal in what_is_left["sweep, stdout"]
    assert refusal in written["sweep.json"]
    assert b"data.path=no/***.jsonl: there is no such file" in what_is_left["refused path, stderr"]
    assert b"trainer.hub_token=***" in what_is_left["refused setting, stderr"]
    assert b"a password does not belong" in what_is_left["refused storage, stderr"]
