"""A sweep goes on whatever becomes of its trials or of itself, and does only what is missing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from finetune.cli.main import check_sweep
from finetune.errors import UserError
from finetune.runs.outcome import RunState

ROOT = Path(__file__).parents[2]
FAULTY = ROOT / "tests" / "support" / "faulty_run.py"
GRID = ["-m", "adapter.r=2,4", "trainer.learning_rate=1e-3,1e-4", "hydra.launcher.n_jobs=1", "sweep.name=grid"]


@pytest.fixture
def faulty(tiny_run):
    """`faulty(*arguments)` runs tests/support/faulty_run.py on the tiny model, and returns the finished process."""

    def call(*arguments):
        command = [sys.executable, str(FAULTY), *arguments, *tiny_run]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    return call


def trials(folder, name="grid"):
    """The lines of a sweep's record."""
    file = folder / "outputs" / "sweeps" / name / "sweep.json"
    return json.loads(file.read_text())["trials"] if file.exists() else []


def result(trial):
    return json.loads((Path(trial["folder"]) / "result.json").read_text())


def kill_when(condition, command):
    """Start the program, and kill it with all that it started as soon as the condition holds."""
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        limit = time.monotonic() + 120
        while not condition():
            assert started.poll() is None, "the sweep ended by itself"
            assert time.monotonic() < limit
            time.sleep(0.02)
    finally:
        os.kill(started.pid, signal.SIGKILL)  # nothing but the sweep's own process: the others have to notice
        started.wait()


@pytest.mark.slow
def test_a_grid_that_was_killed_after_its_second_trial_runs_the_third_and_fourth_only(program, tiny_run, tmp_path):
    def two_are_complete():
        return [trial["state"] for trial in trials(tmp_path)[:2]] == ["complete"] * 2

    kill_when(two_are_complete, [sys.executable, str(ROOT / "run.py"), *GRID, *tiny_run])
    done = program(*GRID, *tiny_run)
    assert done.returncode == 0, done.stderr + done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("trial ")]
    assert ["as known from before" in line for line in lines] == [True, True, False, False], lines
    assert [trial["state"] for trial in trials(tmp_path)] == ["complete"] * 4
    assert len({trial["folder"] for trial in trials(tmp_path)}) == 4


@pytest.mark.slow
def test_a_grid_that_was_killed_within_its_third_trial_resumes_that_one_from_its_checkpoint(
    program, tiny_run, tmp_path
):
    longer = [*tiny_run, "trainer.max_steps=40", "trainer.save_steps=2", "trainer.eval_strategy=no"]

    def third_has_a_checkpoint():
        third = [trial for trial in trials(tmp_path) if trial["number"] == 2 and trial["state"] == "running"]
        return third and list(Path(third[0]["folder"]).glob("checkpoints/checkpoint-*/trainer_state.json"))

    kill_when(third_has_a_checkpoint, [sys.executable, str(ROOT / "run.py"), *GRID, *longer])
    done = program(*GRID, *longer)
    assert done.returncode == 0, done.stderr + done.stdout
    resumed = [result(trial)["training"]["resumed_from_step"] or 0 for trial in trials(tmp_path)]
    assert resumed[2] > 0 and [resumed[i] for i in (0, 1, 3)] == [0, 0, 0]


@pytest.mark.slow
def test_however_trials_end_the_table_the_study_and_their_results_say_so_and_the_others_go_on(faulty, tmp_path):
    endings = {
        1e-3: RunState.complete,
        2e-3: RunState.failed,
        3e-3: RunState.exited,
        4e-3: RunState.killed,
        5e-3: RunState.timed_out,
        6e-3: RunState.out_of_memory,
        7e-3: RunState.exited,
        1e30: RunState.diverged,
    }
    rates = ",".join(map(repr, endings))
    asked = [f"trainer.learning_rate=choice({rates})", "hydra/sweeper=optuna", "hydra.sweeper.sampler=grid"]
    asked += ["-m", "hydra.sweeper.n_trials=8", "hydra.sweeper.pruner=none", "sweep.time_limit=15", "sweep.name=grid"]
    done = faulty(*asked)
    assert done.returncode == 1, done.stderr + done.stdout
    told = trials(tmp_path)
    assert len(told) == 9  # the last is the test of the best
    rate = {trial["number"]: learning_rate(trial) for trial in told}
    assert {rate[trial["number"]]: RunState(trial["state"]) for trial in told} == endings
    opened = open_study(tmp_path)
    attributes = {trial.params["trainer.learning_rate"]: trial.user_attrs["state"] for trial in opened.trials}
    assert {float(key): RunState(value) for key, value in attributes.items()} == endings
    assert sum(trial.state is optuna.trial.TrialState.FAIL for trial in opened.trials) == 7
    for trial in told:
        state = endings[rate[trial["number"]]]
        assert f"{state.value}" in next(
            line for line in done.stdout.splitlines() if f"trial {trial['number']} " in line
        )
        assert result(trial)["status"] == state.value
        assert state is RunState.complete or result(trial)["reason"] == trial["reason"] != ""
    assert "ValueError: something broke" in done.stdout  # with its stack
    again = faulty(*asked)
    assert again.returncode == 1
    repeated = trials(tmp_path)[len(told) - 1 : -1]
    expected = {state for state in endings.values() if state.value in ("failed", "exited", "killed", "timed_out")}
    assert {RunState(trial["state"]) for trial in repeated} == expected and len(repeated) == 5
    assert len(open_study(tmp_path).trials) == 8 + 5


def learning_rate(trial):
    [given] = [text for text in trial["overrides"] if text.startswith("trainer.learning_rate=")]
    return float(given.partition("=")[2])


def open_study(folder):
    journal = JournalFileBackend(str(folder / "outputs/sweeps/grid/study.journal"))
    return optuna.load_study(study_name="grid", storage=JournalStorage(journal))


@pytest.mark.slow
def test_a_grid_repeats_what_failed_but_not_what_would_fail_again_unless_it_is_told_to(faulty, tmp_path):
    asked = ["-m", "trainer.learning_rate=2e-3,6e-3,1e-3", "sweep.name=grid"]
    for more, known in (
        ([], [False, False, False]),
        ([], [False, True, True]),
        (["sweep.repeat_failures=true"], [False, False, True]),
    ):
        done = faulty(*asked, *more)
        assert done.returncode == 1, done.stderr + done.stdout
        assert [trial["state"] for trial in trials(tmp_path)] == ["failed", "out_of_memory", "complete"]
        lines = sorted(line for line in done.stdout.splitlines() if line.startswith("trial "))
        assert ["as known from before" in line for line in lines] == known


@pytest.mark.slow
def test_a_sweep_gives_up_after_the_failures_that_it_may_have(faulty, tmp_path):
    asked = ["-m", "trainer.learning_rate=2e-3", "seed=1,2,3,4", "hydra.launcher.n_jobs=1", "sweep.max_failures=1"]
    done = faulty(*asked, "sweep.name=grid")
    assert done.returncode == 1
    assert [trial["state"] for trial in trials(tmp_path)] == ["failed", "failed"]
    assert "2 trials failed, more than sweep.max_failures allows" in done.stdout


def test_a_wrong_value_in_the_fourth_cell_is_told_before_the_first_trial(program, tiny_run, tmp_path):
    done = program("-m", "adapter.r=4,8", "trainer.learning_rate=1e-3,-1", *tiny_run)
    assert done.returncode == 2 and "trainer.learning_rate=-1" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_what_is_wrong_with_the_rows_of_a_cell_is_told_before_the_first_trial(program, tiny_run, tmp_path):
    done = program("-m", "trainer.max_length=512,8", *tiny_run)
    assert done.returncode == 2 and "answer is cut off at trainer.max_length=8" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("outputs/sweeps/*")) and not list(tmp_path.glob("outputs/*/log.txt"))


@pytest.mark.slow
def test_sigterm_ends_all_trials_of_a_sweep_with_checkpoints_from_which_the_same_command_continues(
    program, tiny_run, tmp_path
):
    grid = ["-m", "adapter.r=2,4", "hydra.launcher.n_jobs=2", "sweep.name=grid", *tiny_run]
    grid += ["trainer.max_steps=300", "trainer.save_steps=20", "trainer.eval_strategy=no"]
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *grid],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def newest_steps():
        folders = [Path(trial["folder"]) for trial in trials(tmp_path)]
        return [max([int(p.name[11:]) for p in f.glob("checkpoints/checkpoint-*")], default=0) for f in folders]

    try:
        while len(steps := newest_steps()) < 2 or not all(steps):
            assert started.poll() is None
            time.sleep(0.02)
        for pid in (*forked_by(started.pid), started.pid):  # as a scheduler does, to all processes of a job
            os.kill(pid, signal.SIGTERM)
        output, errors = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 75, errors
    assert re.search(r"Stopped \d+\.\d s after SIGTERM", errors) and "Traceback" not in output + errors
    assert [trial["state"] for trial in trials(tmp_path)] == ["preempted"] * 2
    stopped_at = newest_steps()
    assert all(0 < step < 300 for step in stopped_at)
    done = program(*grid)
    assert done.returncode == 0, done.stderr + done.stdout
    assert [trial["state"] for trial in trials(tmp_path)] == ["complete"] * 2
    assert [result(trial)["training"]["resumed_from_step"] for trial in trials(tmp_path)] == stopped_at


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["importing", "planning", "training"])
def test_ctrl_c_ends_a_sweep_and_its_trials_while_it_is(tiny_run, tmp_path, moment):
    def has_come():
        forked = forked_by(started.pid)
        if moment == "planning":
            forked = [pid for parent in forked for pid in forked_by(parent)]
        logs = [file.read_text() for file in tmp_path.glob("outputs/*/log.txt")]
        return any("attention:" in log for log in logs) if moment == "training" else forked

    started = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *GRID, *tiny_run, "trainer.max_steps=2000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        limit = time.monotonic() + 120
        while not has_come():
            assert started.poll() is None and time.monotonic() < limit
            time.sleep(0.05)
        forked = [pid for parent in forked_by(started.pid) for pid in (parent, *forked_by(parent))]
        started.send_signal(signal.SIGINT)
        output, errors = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 130, errors
    assert "Traceback" not in output + errors and "Stopped." in errors
    assert forked and not any(map(lives, forked))
    assert [trial["state"] for trial in trials(tmp_path)] == (["preempted"] if moment == "training" else [])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["sweep.repeat_best=2"], "sweep.repeat_best=2 is of a search. In a grid, seeds are one more setting"),
        (["hydra/launcher=basic", "sweep.time_limit=9"], "sweep.time_limit=9.0: only hydra/launcher=process heeds it"),
        (["hydra/launcher=basic", "sweep.max_failures=1"], "sweep.max_failures=1: only hydra/launcher=process"),
    ],
)
def test_what_a_sweep_would_not_heed_is_refused(given, told):
    with pytest.raises(UserError, match=re.escape(told)):
        check_sweep(["-m", "adapter.r=4,8", *given])


@pytest.mark.slow
def test_plans_of_a_grid_are_printed_one_after_the_other_and_then_their_sum(program, tiny_run):
    done = program("-m", "stage=plan", "plan.tflops=1e-3", "seed=1,2", *tiny_run)
    assert done.returncode == 0, done.stderr
    plans = [line for line in done.stdout.splitlines() if " in all: prepare " in line]
    assert len(plans) == 2
    assert re.fullmatch(r"2 trials: .+ in all", done.stdout.splitlines()[-1])


def test_the_cells_of_a_users_own_preset_are_checked_too(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nadapter: {r: -3}\n")
    with pytest.raises(UserError, match=re.escape("adapter.r=-3: it must be at least 1")):
        check_sweep(["-m", "seed=1,2", "experiment=mine", "--config-dir", str(tmp_path)])


@pytest.mark.parametrize("asked", [["adapter.r=4"], ["-m", "adapter.r=4,8", "--cfg", "job"]])
def test_what_is_no_grid_or_is_only_shown_has_no_cells(asked):
    assert check_sweep(asked) is None


@pytest.mark.slow
def test_thirty_trials_leave_no_memory_behind(tiny_run, tmp_path):
    seeds = ",".join(map(str, range(30)))
    command = [sys.executable, str(ROOT / "run.py"), "-m", f"seed={seeds}", "sweep.name=grid", *tiny_run]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    held = {}
    while started.poll() is None:
        ended = sum(trial["state"] == "complete" for trial in trials(tmp_path))
        held[ended] = sum(map(resident_bytes, [started.pid, *forked_by(started.pid)]))
        time.sleep(0.1)
    assert started.returncode == 0
    later = [size for ended, size in held.items() if 10 <= ended < 30]
    assert len(later) > 5 and max(later) - min(later) < 20 * 2**20, held


def forked_by(pid):
    """The process that trials are forked from; those are not its children's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid):
    """Whether the process runs; one that has ended may still wait to be noticed by its parent."""
    with suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def resident_bytes(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
