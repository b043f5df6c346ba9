import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.run_folders import write_run
from support.wandb_files import read, read_records, values

from finetune.config.schema import Tracking, TrackingMode
from finetune.errors import UserError
from finetune.reporting.wandb import Timeouts, is_reachable, run_id, start_tracking
from finetune.runs.folder import RunLabels
from finetune.runs.read import read_run
from finetune.runs.result import SELECTION
from finetune.secrets import without_secrets

CONFIG = {"adapter": {"r": 16}, "trainer": {"hub_token": "hf_Secret", "learning_rate": 1e-4}}
KEY = "0123456789" * 4
USUAL = Timeouts()


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch, tmp_path):
    """No account, no proxy and no W&B state but the test's own."""
    for name in os.environ:
        if name.startswith("WANDB_") or name.lower().endswith("_proxy") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # wandb reads its environment once


@pytest.fixture
def said():
    return []


def start(folder, said, timeouts=USUAL, **settings):
    labels = RunLabels("smollm2-usaddress-1a2b3c4d", "smollm2-usaddress", ["nf4"], CONFIG)
    return start_tracking(Tracking(**settings), labels, folder, print_line=said.append, timeouts=timeouts)


def all_bytes(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_an_offline_run_holds_configuration_curves_summary_and_table(tmp_path, said, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["run.py", "trainer.hub_token=hf_Secret"])
    with start(tmp_path / "run", said, tags=["mine"], project="addresses") as run:
        run.log({"train/loss": 2.5, "tokens": 700}, step=1)
        run.log({"train/loss": 1.5, "tokens": 1400}, step=2)
        run.log({"validation/loss": 1.75}, step=2)
        run.summarise({"evaluation/tuned/field_f1": 0.5})
        run.table("predictions", ["reference", "score"], [["Élysée", 0.5], ["b", None]])
    records = read_records(tmp_path / "run")

    [record] = read(records, "run")
    assert (record.run_id, record.display_name) == ("smollm2-usaddress-1a2b3c4d", "smollm2-usaddress-1a2b3c4d")
    assert (record.project, record.run_group, record.job_type) == ("addresses", "smollm2-usaddress", "train")
    assert sorted(record.tags) == ["mine", "nf4"]
    config = values(record.config.update)
    assert config["adapter"] == {"r": 16}
    assert config["trainer"] == {"hub_token": "***", "learning_rate": 1e-4}

    history = {record.step.num: values(record.item) for record in read(records, "history")}
    assert history[1]["train/loss"] == 2.5 and history[1]["tokens"] == 700
    assert history[2]["train/loss"] == 1.5 and history[2]["validation/loss"] == 1.75
    summary = {key: value for update in read(records, "summary") for key, value in values(update.update).items()}
    assert summary["evaluation/tuned/field_f1"] == 0.5
    table = json.loads((tmp_path / "run/wandb").joinpath(*next_table(tmp_path)).read_text())
    assert table == {"columns": ["reference", "score"], "data": [["Élysée", 0.5], ["b", None]]}

    [end] = read(records, "exit")
    assert end.exit_code == 0
    assert b"hf_Secret" not in all_bytes(tmp_path)
    assert record.host == "-"
    assert not read(records, "environment") and not read(records, "stats")
    assert "staging" not in str([*(tmp_path / "home").rglob("*")])
    assert said == [f"W&B: offline (nobody is logged in, see wandb login). To send it later: {sync(tmp_path)}"]
    assert capfd.readouterr() == ("", "")


def next_table(tmp_path):
    [file] = (tmp_path / "run/wandb").glob("offline-run-*/files/media/table/*.table.json")
    return file.relative_to(tmp_path / "run/wandb").parts


def sync(tmp_path):
    return f"python -m finetune sync {tmp_path / 'run'}"


def test_a_complete_run_sends_its_page_its_summary_and_its_predictions(tmp_path, said):
    folder = write_run(tmp_path / "run", tuned=["0", "2"], base=["5", "Élysée"])
    (folder / "report.html").write_text("the page")
    with start(folder, said) as run:
        run.finish(read_run(folder))
    records = read_records(folder)
    [artifact] = [one for one in read(records, "artifact") if one.type == "report"]
    assert artifact.name.endswith("-report") and artifact.manifest.contents[0].local_path.endswith("run/report.html")
    summary = {key: value for update in read(records, "summary") for key, value in values(update.update).items()}
    assert summary["evaluation/tuned/exact_match"] == 0.5 and summary["seconds/train"] == 8
    table = json.loads((folder / "wandb").joinpath(*next_table(tmp_path)).read_text())
    assert table["columns"][2:] == [
        "zero_shot/answer", "tuned/answer", "zero_shot/exact_match", "tuned/exact_match"
    ]  # fmt: skip
    assert table["data"][1] == ["system: Answer.\n\nuser: Say 1", "1", "Élysée", "2", 0, 0]


def test_a_trial_on_validation_prompts_sends_neither_page_nor_predictions(tmp_path, said):
    folder = write_run(tmp_path / "run", tuned=["0", "2"], split="validation")
    with start(folder, said) as run:
        run.finish(read_run(folder, SELECTION))
    records = read_records(folder)
    summary = {key: value for update in read(records, "summary") for key, value in values(update.update).items()}
    assert summary["validation/tuned/exact_match"] == 0.5 and "verdict/kind" not in summary
    assert not read(records, "artifact") and not [*folder.glob("wandb/*/files/media/table/*")]


def test_an_exception_marks_the_run_as_failed_and_is_raised_without_a_stack_of_wandbs(tmp_path, said, capfd):
    with pytest.raises(FloatingPointError, match="diverged"), start(tmp_path, said):
        raise FloatingPointError("diverged")
    [end] = read(read_records(tmp_path), "exit")
    assert end.exit_code == 1
    assert capfd.readouterr() == ("", "")


def test_a_continued_run_is_the_same_run(tmp_path, said, capfd):
    for part, step in (("first", 1), ("second", 2)):
        with start(tmp_path / part, said) as run:
            run.log({"train/loss": 1.0}, step=step)
    ids = {read(read_records(tmp_path / part), "run")[0].run_id for part in ("first", "second")}
    assert ids == {"smollm2-usaddress-1a2b3c4d"}
    [point] = read(read_records(tmp_path / "second"), "history")
    assert point.step.num == 2
    assert capfd.readouterr() == ("", "")


def test_two_offline_parts_of_a_run_lie_side_by_side_in_its_folder(tmp_path, said):
    for _ in range(2):
        with start(tmp_path, said):
            pass
    assert len([*tmp_path.glob("wandb/offline-run-*")]) == 2


@pytest.mark.parametrize("mode", [TrackingMode.auto, TrackingMode.online])
def test_an_unreachable_service_costs_a_moment_and_the_run_is_kept_offline(tmp_path, said, monkeypatch, mode):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    started = time.perf_counter()
    with start(tmp_path / "run", said, mode=mode) as run:
        run.log({"train/loss": 1.0}, step=1)
    assert time.perf_counter() - started < 5
    assert said == [f"W&B: offline (no connection to http://127.0.0.1:9). To send it later: {sync(tmp_path)}"]
    assert len(read(read_records(tmp_path / "run"), "history")) == 1
    assert KEY.encode() not in all_bytes(tmp_path)


class Service(http.server.BaseHTTPRequestHandler):
    """As much of the W&B service as a run without files needs."""

    operations: list[tuple[str, dict]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        name, variables = body.get("operationName", ""), body.get("variables", {})
        self.operations.append((name, variables))
        project = {"id": "p", "name": "finetune", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": variables.get("name"), "displayName": "", "config": "{}", "project": project}
        answers = {
            "RunResumeStatus": {"model": None},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}},
        }
        content = json.dumps({"data": answers.get(name, {})} if self.path == "/graphql" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serve(handler, monkeypatch):
    """A W&B service on this machine that the user is logged in to."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
        server.shutdown()


def test_a_user_who_is_logged_in_sees_the_runs_address_and_nothing_secret_is_sent(tmp_path, said, monkeypatch, capfd):
    monkeypatch.setattr(Service, "operations", [])
    with serve(Service, monkeypatch) as server, start(tmp_path, said) as run:
        run.log({"train/loss": 1.0}, step=1)
    assert said == [f"W&B: http://127.0.0.1:{server.server_port}/me/finetune/runs/smollm2-usaddress-1a2b3c4d"]
    sent = next(variables for name, variables in Service.operations if name == "UpsertBucket")
    assert sent["name"] == "smollm2-usaddress-1a2b3c4d" and sent["groupName"] == "smollm2-usaddress"
    assert json.loads(sent["config"])["trainer"]["value"] == {"hub_token": "***", "learning_rate": 1e-4}
    assert "hf_Secret" not in str(Service.operations)
    assert capfd.readouterr() == ("", "")


def test_a_service_that_goes_away_during_the_run_costs_a_moment_at_its_end(tmp_path, said, monkeypatch):
    with serve(Service, monkeypatch) as server, start(tmp_path, said, Timeouts(finish=0.5)) as run:
        run.log({"train/loss": 1.0}, step=1)
        server.shutdown()
        server.server_close()
        started = time.perf_counter()
    assert time.perf_counter() - started < 4
    assert "not everything was sent" in said[1] and f"wandb sync {tmp_path}/wandb/run-" in said[1]


def test_the_run_goes_on_when_wandbs_own_process_is_killed(tmp_path):
    code = """
import subprocess
from pathlib import Path
from finetune.config.schema import Tracking
from finetune.reporting.wandb import start_tracking
from finetune.runs.folder import RunLabels

started = []
popen = subprocess.Popen
subprocess.Popen = lambda *args, **kwargs: started.append(popen(*args, **kwargs)) or started[-1]
with start_tracking(Tracking(), RunLabels("n", "g", [], {}), Path("run")) as run:
    [service] = [process for process in started if "wandb-core" in str(process.args)]
    service.kill()
    service.wait()
    for step in range(50):
        run.log({"loss": 1.0}, step=step)
    run.summarise({"loss": 1.0})
print("the run went on")
"""
    done = run_python(code, tmp_path)
    first, second, last = done.stdout.splitlines()
    assert "offline" in first and "not everything was sent" in second and last == "the run went on"
    assert done.stderr == ""


def run_python(code, folder):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=folder, env=environment, capture_output=True, text=True
    )


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(401)

    def log_message(self, *_):
        pass


def test_a_service_that_refuses_the_key_leaves_the_run_offline(tmp_path, said, monkeypatch):
    with serve(Refusing, monkeypatch), start(tmp_path, said) as run:
        run.log({"train/loss": 1.0}, step=1)
    assert len(said) == 1 and said[0].startswith("W&B: offline (") and "401" in said[0]
    assert len([*tmp_path.glob("wandb/offline-run-*/*.wandb")]) == 1


def test_a_service_that_accepts_and_never_answers_leaves_the_run_offline(tmp_path, said, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        started = time.perf_counter()
        with start(tmp_path, said, Timeouts(answer=0.5)) as run:
            run.log({"train/loss": 1.0}, step=1)
        assert time.perf_counter() - started < 5
    assert len(said) == 1 and said[0].startswith("W&B: offline (")


def test_a_key_of_the_wrong_form_leaves_the_run_offline(tmp_path, said, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "short key")
        with start(tmp_path, said):
            pass
    assert len(said) == 1 and said[0].startswith("W&B: offline (")
    assert "short key" not in said[0]


def test_a_key_in_netrc_counts_as_logged_in(tmp_path, said, monkeypatch):
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with start(tmp_path, said):
        pass
    assert "no connection to" in said[0]


def test_nobody_is_asked_for_a_key(tmp_path, said, monkeypatch):
    def refuse(*_):
        raise AssertionError("asked for input")

    monkeypatch.setattr("builtins.input", refuse)
    monkeypatch.setattr("getpass.getpass", refuse)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for mode in TrackingMode:
        with start(tmp_path, said, mode=mode):
            pass
    assert len(said) == 3 and all("offline" in line for line in said)


def test_a_mode_that_the_user_gave_wandb_itself_is_kept(tmp_path, said, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with start(tmp_path, said):
        pass
    assert "wandb's own mode is offline" in said[0]


def test_a_host_behind_a_proxy_is_as_reachable_as_the_proxy(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.getsockname()[1]}")
        assert is_reachable("http://wandb.invalid", seconds=2)
        monkeypatch.setenv("no_proxy", "wandb.invalid")
        assert not is_reachable("http://wandb.invalid", seconds=2)


def test_a_project_name_that_wandb_refuses_is_the_users_mistake(tmp_path, said):
    with pytest.raises(UserError, match="a/b"), start(tmp_path, said, project="a/b"):
        pass


@pytest.mark.parametrize("value", ["", "onlin"])
def test_a_setting_of_wandbs_own_that_it_refuses_is_named(tmp_path, said, monkeypatch, value):
    monkeypatch.setenv("WANDB_MODE", value)
    with (
        pytest.raises(UserError, match=rf"mode='{value}' \(in the environment WANDB_MODE\): .*'offline'"),
        start(tmp_path, said),
    ):
        pass


def test_tracking_that_is_off_and_other_processes_import_no_wandb(tmp_path):
    code = """
import sys
from pathlib import Path
from finetune.config.schema import Tracking
from finetune.reporting.wandb import start_tracking
from finetune.runs.folder import RunLabels

labels = RunLabels("n", "g", [], {})
for enabled, main in ((False, True), (True, False)):
    with start_tracking(Tracking(enabled=enabled), labels, Path("run"), is_main_process=main) as run:
        run.log({"loss": 1.0}, step=1)
        run.summarise({"loss": 1.0})
        run.table("predictions", ["a"], [["b"]])
        run.finish(None)
assert "wandb" not in sys.modules and not Path("run").exists()
"""
    run_python(code, tmp_path)


@pytest.mark.parametrize("name", ["a/b:c", "é", "x" * 200, "x" * 199 + "/", "two words"])
def test_every_name_gives_an_id_that_wandb_accepts(name):
    from wandb import Settings

    identity = run_id(name)
    assert len(identity) <= 128 and Settings(run_id=identity).run_id == identity


def test_different_names_give_different_ids_and_a_plain_name_is_its_own():
    names = ["a-b", "a/b", "a:b", "a b", "x" * 200, "x" * 201]
    assert len({run_id(name) for name in names}) == len(names)
    assert run_id("smollm2_135m-usaddress-1a2b3c4d") == "smollm2_135m-usaddress-1a2b3c4d"


def test_secrets_are_replaced_wherever_they_lie_and_vocabulary_tokens_are_kept():
    config = {
        "hub_token": "hf_x",
        "push": {"api_key": "k", "WANDB_API_KEY": "k", "password": "p", "client_secret": "s", "token": None},
        "list": [{"access_token": "t"}, "plain"],
        "eos_token": "<|im_end|>",
        "max_new_tokens": 5,
        "monkey": "banana",
    }
    assert without_secrets(config) == {
        "hub_token": "***",
        "push": {"api_key": "***", "WANDB_API_KEY": "***", "password": "***", "client_secret": "***", "token": None},
        "list": [{"access_token": "***"}, "plain"],
        "eos_token": "<|im_end|>",
        "max_new_tokens": 5,
        "monkey": "banana",
    }
    assert config["hub_token"] == "hf_x"


def test_the_environment_is_the_users_during_the_run_and_afterwards(tmp_path, said, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "mine"))
    before = dict(os.environ)
    with start(tmp_path / "run", said) as run:
        run.table("predictions", ["a"], [["b"]])
    assert {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"} == before
    assert (tmp_path / "mine").exists()


@pytest.mark.slow
def test_offline_runs_are_sent_later_by_one_command(tmp_path, said, monkeypatch):
    for step in (1, 2):  # the second continues the first
        with start(tmp_path / "run", said) as run:
            run.log({"train/loss": 1.0}, step=step)
    command = [sys.executable, "-m", "finetune", "sync", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "wandb login" in refused.stderr and "Traceback" not in refused.stderr
    monkeypatch.setattr(Service, "operations", [])
    with serve(Service, monkeypatch):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sent = [variables["name"] for name, variables in Service.operations if name == "UpsertBucket"]
    assert sent and set(sent) == {"smollm2-usaddress-1a2b3c4d"}
    (tmp_path / "none/checkpoints").mkdir(parents=True)
    nothing = subprocess.run([*command[:-1], str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert nothing.returncode == 2 and "no offline run lies there" in nothing.stderr
