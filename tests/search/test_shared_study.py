"""Workers that share a study draw no trial twice and lose none."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from finetune.runs.outcome import Outcome, RunState
from finetune.search.settings import SearchSettings
from finetune.search.shared_study import SharedSearchStudy
from finetune.search.space import read_space
from finetune.search.storage import connect_database, open_storage
from finetune.search.study import SAME_AS, retry_trial

ROOT = Path(__file__).parents[2]
SPACE = read_space({"adapter.r": "choice(2,4,8,16)", "trainer.learning_rate": "interval(0.0,1.0)"}, [], {})
SMALL = read_space({"adapter.r": "choice(2,4)"}, [], {})
DEFAULTS = {"adapter.r": 16, "trainer.learning_rate": 0.5}
COMPLETE = Outcome(RunState.complete)
WAITING, RUNNING, FAIL = (optuna.trial.TrialState[name] for name in ("WAITING", "RUNNING", "FAIL"))


@pytest.fixture
def worker(tmp_path):
    """`worker()` joins the study in a database, as another process would."""
    opened = []

    def join(space=SPACE, begin=True, **changes):
        database = connect_database(f"sqlite:///{tmp_path}/s.db", 1, retry_trial)
        opened.append(database)
        known = {"sampler": "random", "pruner": "none", "n_trials": 4, "heartbeat_seconds": 1}
        settings = SearchSettings(**(known | changes))
        search = SharedSearchStudy(database, "s", space, settings, True, f"worker {len(opened)}")
        if begin:
            search.enqueue_first(DEFAULTS.get)
        return search

    yield join
    for database in opened:
        database.engine.dispose()


def states(search):
    return [trial.state.name for trial in search.study.trials]


def test_workers_begin_as_many_trials_as_are_asked_for_in_all(worker):
    one, other = worker(), worker()
    drawn = [next(search) for search in (one, other, one, other)]
    assert len({number for number, _ in drawn}) == len({tuple(point) for _, point in drawn}) == 4
    for search in (one, other):
        with pytest.raises(StopIteration):
            next(search)
        for number in list(search.open):
            search.tell(number, COMPLETE, [0.0])
    assert states(one) == ["COMPLETE"] * 4 and one.remaining() == 0
    assert one.describe_trials() == "4 complete"


def test_a_trial_too_many_is_given_back(worker):
    one, other = worker(n_trials=1), worker(n_trials=1)
    number, _ = next(other)
    assert one.ask() is None  # as if it had counted the trials just before the other began
    assert states(one) == ["RUNNING", "WAITING"]
    other.tell(number, COMPLETE, [0.0])
    more = worker(n_trials=2)
    assert next(more)[0] == 1


def test_what_two_workers_enqueue_at_the_same_moment_is_run_once(worker):
    one, other = worker(begin=False), worker(begin=False)
    for search in (one, other):
        search.study.enqueue_trial(SPACE.defaults(DEFAULTS.get))
    drawn = [next(search) for search in (one, other, one, other)]
    assert len({tuple(point) for _, point in drawn}) == 4
    assert [trial.state for trial in one.study.trials].count(FAIL) == 1
    assert [trial.user_attrs.get(SAME_AS) for trial in one.study.trials] == [None, 0, None, None, None]


def test_a_cell_that_two_workers_enqueued_counts_once_though_it_is_complete_before_the_second_is_drawn(worker):
    one, other = (worker(SMALL, begin=False, sampler="grid", n_trials=2) for _ in range(2))
    for cell in "2244":
        one.study.enqueue_trial({"adapter.r": cell})
    number, point = next(one)
    one.tell(number, COMPLETE, [0.0])
    assert (point, next(other)[1]) == (["adapter.r=2"], ["adapter.r=4"])


def test_of_cells_that_two_workers_enqueued_none_is_left_waiting(worker):
    one, other = (worker(SMALL, begin=False, sampler="grid", n_trials=2) for _ in range(2))
    for cell in "2424":
        one.study.enqueue_trial({"adapter.r": cell})
    assert next(one)[1] == ["adapter.r=2"]
    other.enqueue_first(DEFAULTS.get)
    assert next(other)[1] == ["adapter.r=4"]
    assert states(one) == ["RUNNING", "RUNNING", "FAIL", "FAIL"] and one.remaining() == 0
    assert [trial.user_attrs.get(SAME_AS) for trial in one.study.trials] == [None, None, 0, 1]


def test_what_another_worker_is_at_is_not_run_again(worker):
    one, other = (worker(SMALL, begin=False, n_trials=30) for _ in range(2))
    one.study.enqueue_trial({"adapter.r": "2"})
    assert next(one) == (0, ["adapter.r=2"])
    one.study.enqueue_trial({"adapter.r": "2"})
    assert next(other)[1] == ["adapter.r=4"]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")
def test_the_trial_of_a_worker_that_died_before_its_first_heartbeat_is_retried(worker):
    died, other = worker(), worker(n_trials=1)
    died.study.ask()  # and nothing more
    other.first_seen[0] = -60.0  # long ago
    assert next(other)[0] == 1
    assert states(other) == ["FAIL", "RUNNING"] and other.earlier_attempts(1) == [0]


def test_a_trial_that_others_retried_is_theirs_to_tell(worker):
    stale, other = worker(), worker()
    number, _ = next(stale)
    other.study.tell(number, state=FAIL)
    stale.tell(number, COMPLETE, [1.0])
    assert states(other)[number] == "FAIL"


def test_a_trial_whose_folder_is_in_another_process_s_hands_waits(worker):
    search = worker()
    number, point = next(search)
    search.tell(number, Outcome(RunState.busy), None)
    assert next(search) == (number, point)


def test_workers_draw_points_of_their_own(worker):
    one, other = worker(begin=False), worker(begin=False)
    drawn = [next(search)[1] for search in (one, other)]
    assert drawn[0] != drawn[1] and not any(SAME_AS in trial.user_attrs for trial in one.study.trials)


@pytest.fixture(scope="module")
def database():
    """The URL of an empty database; skipped where PostgreSQL is not installed, but never in CI."""
    places = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    programs = [shutil.which(name, path=os.pathsep.join(places)) for name in ("initdb", "postgres")]
    if None in programs:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed")
    initdb, postgres = programs
    port = free_port()
    someone = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory() as place:  # not pytest's, which only root may read
        if someone:
            shutil.chown(place, "postgres", "postgres")
        settings = ["-D", f"{place}/data", "-k", place, "-p", str(port), "-c", "fsync=off", "-h", "127.0.0.1"]
        create = [initdb, "-D", f"{place}/data", "-U", "tester", "-A", "trust", "-N", "-E", "UTF8", "--no-locale"]
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL, cwd="/", **someone)
        server = subprocess.Popen([postgres, *settings], stderr=subprocess.DEVNULL, cwd="/", **someone)
        try:
            wait_until(lambda: answers(port))
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


def answers(port):
    import psycopg

    try:
        psycopg.connect(host="127.0.0.1", port=port, user="tester", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def wait_until(condition, seconds=120):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    return found


@pytest.fixture
def machine(database, tiny_run, tmp_path):
    """`machine(name, *overrides)` starts a worker of a study; its output is in `name`.out."""
    started = []

    def call(name, *overrides):
        command = [sys.executable, str(ROOT / "run.py"), "-m", "hydra/sweeper=optuna", *tiny_run, *overrides]
        command += [f"hydra.sweeper.storage={database}", "hydra.launcher.n_jobs=1", "sweep.name=" + tmp_path.name]
        with (tmp_path / f"{name}.out").open("w") as file:
            started.append(subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file))
        return started[-1]

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def trials(database, folder):
    """The trials of the study."""
    opened = open_storage(database)
    loaded = optuna.load_study(storage=opened, study_name=folder.name).trials
    opened.engine.dispose()
    return loaded


def record(folder):
    """The lines of sweep.json by number."""
    file = folder / "outputs" / "sweeps" / folder.name / "sweep.json"
    return {trial["number"]: trial for trial in json.loads(file.read_text())["trials"]} if file.exists() else {}


def written(folder, *names):
    return [(folder / f"{name}.out").read_text() for name in names]


@pytest.mark.slow
def test_two_workers_on_one_study_do_each_trial_once_and_the_test_of_the_best_once(machine, database, tmp_path):
    asked = ["adapter.r=choice(2,4)", "seed=range(42,44)", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=4"]
    asked += ["trainer.eval_steps=1", "hydra.sweeper.pruner=hyperband"]  # which asks the study at each validation
    both = [machine(name, *asked) for name in "ab"]
    ends = [process.wait() for process in both]
    told = written(tmp_path, *"ab")
    assert ends == [0, 0], told
    found = trials(database, tmp_path)
    run = [trial for trial in found if "same_as" not in trial.user_attrs]
    states = Counter(trial.state.name for trial in run)
    assert states.total() == 4 and states.keys() <= {"COMPLETE", "PRUNED"}  # which, depends on who came first
    assert len({(trial.params["adapter.r"], trial.params["seed"]) for trial in run}) == 4
    assert len({trial.user_attrs["folder"] for trial in run}) == 4
    assert len({trial.user_attrs["worker"] for trial in run}) == 2
    assert all(trial.intermediate_values for trial in run)
    for trial in run:
        assert sum(line.startswith(f"trial {trial.number} ") for text in told for line in text.splitlines()) == 1, told
        folder = Path(trial.user_attrs["folder"])
        tested = trial.state.name == "COMPLETE" and (folder / "result.json").exists()
        assert (folder / "log.txt").read_text().count("attention:") == (2 if tested else 1)
    assert all("On the test prompts, once:" in text and "Warning" not in text for text in told), told
    assert {line["state"].upper() for line in record(tmp_path).values()} == {*states}
    ended = [json.loads(file.read_text())["status"] for file in (tmp_path / "outputs").glob("*/result.json")]
    assert ended.count("complete") == 1 and len(ended) == 1 + states["PRUNED"]
    (tmp_path / "outputs").rename(tmp_path / "of another machine")
    assert machine("late", *asked).wait() == 0
    [said] = written(tmp_path, "late")
    assert (
        f"Of all workers: {states['COMPLETE']} complete" in said and "the worker there answers the test prompts" in said
    )
    assert not list((tmp_path / "outputs").glob("*/result.json"))


@pytest.mark.slow
def test_the_trial_of_a_worker_that_is_killed_is_taken_up_by_the_other_from_its_checkpoint(machine, database, tmp_path):
    asked = ["adapter.r=choice(2,4,8)", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=3"]
    asked += ["hydra.sweeper.pruner=none", "hydra.sweeper.heartbeat_seconds=5", "trainer.max_steps=60"]
    asked += ["trainer.save_steps=5", "trainer.eval_strategy=no"]
    killed = machine("killed", *asked)
    [line] = wait_until(lambda: [one for one in record(tmp_path).values() if one["state"] == "running"])
    other = machine("other", *asked)
    wait_until(lambda: list(Path(line["folder"]).glob("checkpoints/checkpoint-*/trainer_state.json")))
    started = descendants(killed.pid)
    assert len(started) >= 2  # the process that trials are forked from, and a trial
    killed.kill()
    killed.wait()
    wait_until(lambda: not any(map(is_alive, started)), seconds=10)
    assert other.wait() == 0, written(tmp_path, "other")
    found = trials(database, tmp_path)
    assert [trial.state.name for trial in found] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    [again] = [trial for trial in found if trial.system_attrs.get("retry_history") == [line["number"]]]
    assert found[line["number"]].params == again.params and Path(again.user_attrs["folder"]) == Path(line["folder"])
    selection = json.loads((Path(line["folder"]) / "selection.json").read_text())
    assert selection["training"]["resumed_from_step"] >= 5
    lines = record(tmp_path)
    assert lines[line["number"]]["state"] == "killed" and f"trial {again.number}" in lines[line["number"]]["reason"]
    assert all(one["state"] == "complete" for number, one in lines.items() if number != line["number"])


def descendants(pid):
    """The processes that a process has started, and those that they have."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(one for child in children for one in descendants(child))]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
