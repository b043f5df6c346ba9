"""Workers that share a study draw no trial twice and lose none."""

import optuna
import pytest

from finetune.errors import UserError
from finetune.runs.outcome import Outcome, RunState
from finetune.search import storage, study
from finetune.search.shared_study import SAME_AS
from finetune.search.space import read_space
from finetune.search.storage import check_storage, connect_storage
from finetune.search.study import SearchStudy, StudySettings, open_study

SPACE = read_space({"adapter.r": "choice(2,4,8,16)", "trainer.learning_rate": "interval(0.0,1.0)"}, [], {})
SMALL = read_space({"adapter.r": "choice(2,4)"}, [], {})
DEFAULTS = {"adapter.r": 16, "trainer.learning_rate": 0.5}
COMPLETE = Outcome(RunState.complete)
WAITING, RUNNING, FAIL = (optuna.trial.TrialState[name] for name in ("WAITING", "RUNNING", "FAIL"))


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """`worker()` joins the study in a database, as another process would."""
    opened = []

    def join(asked=SPACE, begin=True, **changes):
        monkeypatch.setattr(study, "WORKER_NAME", f"worker {len(opened)}")
        known = {"sampler": "random", "pruner": "none", "n_trials": 4, "seed": 0, "objectives": ("score",)}
        plan = StudySettings(**(known | {"higher_is_better": True} | changes))
        search = SearchStudy(open_study(f"sqlite:///{tmp_path}/s.db", "s", plan, 1), asked, plan, shared=True)
        opened.append(search.study._storage._backend.engine)
        if begin:
            search.begin(DEFAULTS.get)
        return search

    yield join
    for engine in opened:
        engine.dispose()


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


def test_a_trial_too_many_is_given_back(worker):
    one, other = worker(n_trials=1), worker(n_trials=1)
    begun = one._begun
    one._begun = lambda: begun() - 1  # as if it had asked just before the other began
    number, _ = next(other)
    assert one._ask() is None
    assert states(one) == ["RUNNING", "WAITING"]
    other.tell(number, COMPLETE, [0.0])
    more = worker(n_trials=2)
    assert next(more)[0] == 1


def test_what_two_workers_line_up_at_the_same_moment_is_run_once(worker):
    one, other = worker(begin=False), worker(begin=False)
    for search in (one, other):
        search.study.enqueue_trial(SPACE.defaults(DEFAULTS.get))
    drawn = [next(search) for search in (one, other, one, other)]
    assert len({tuple(point) for _, point in drawn}) == 4
    assert [trial.state for trial in one.study.trials].count(FAIL) == 1
    assert [trial.user_attrs.get(SAME_AS) for trial in one.study.trials] == [None, 0, None, None, None]


def test_a_cell_that_two_workers_lined_up_counts_once_though_it_is_complete_before_the_second_is_drawn(worker):
    one, other = (worker(SMALL, begin=False, sampler="grid", n_trials=2) for _ in range(2))
    for cell in "2244":
        one.study.enqueue_trial({"adapter.r": cell})
    number, point = next(one)
    one.tell(number, COMPLETE, [0.0])
    assert (point, next(other)[1]) == (["adapter.r=2"], ["adapter.r=4"])


def test_of_cells_that_two_workers_lined_up_none_is_left_waiting(worker):
    one, other = (worker(SMALL, begin=False, sampler="grid", n_trials=2) for _ in range(2))
    for cell in "2424":
        one.study.enqueue_trial({"adapter.r": cell})
    assert next(one)[1] == ["adapter.r=2"]
    other.begin(DEFAULTS.get)
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
def test_the_trial_of_a_worker_that_died_before_its_first_sign_of_life_is_lined_up_again(worker):
    died, other = worker(), worker(n_trials=1)
    died.study.ask()  # and nothing more
    other.patience = -1.0
    assert next(other)[0] == 1
    assert states(other) == ["FAIL", "RUNNING"] and other.taken_over(1) == [0]


def test_a_trial_that_others_took_over_is_theirs_to_tell(worker):
    silent, other = worker(), worker()
    number, _ = next(silent)
    other.study._storage.set_trial_state_values(silent.open[number]._trial_id, FAIL)
    silent.tell(number, COMPLETE, [1.0])
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


@pytest.mark.parametrize(
    ("place", "seconds", "message"),
    [
        ("postgresql+psycopg://me:secret@host/db", 60, "a password does not belong in a configuration"),
        ("postgresql+psycopg://me@host/db?password=secret", 60, "PGPASSWORD"),
        ("://", 60, "it is no URL of a database. Write postgresql+psycopg://"),
        ("study.journal", 0, "hydra.sweeper.heartbeat_seconds=0: expected at least 1"),
    ],
)
def test_a_database_that_cannot_be_meant_is_refused(place, seconds, message):
    with pytest.raises(UserError, match=message.replace("+", r"\+")) as told:
        check_storage(place, seconds)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("postgresql+psycopg://me@127.0.0.1:1/db", "the database cannot be used: .*onnection refused"),
        ("postgres://me@host/db", "postgresql"),
        ("mysql+pymysql://me@host/db", "its driver is not installed"),
    ],
)
def test_a_database_that_cannot_be_reached_is_told(place, message, monkeypatch):
    monkeypatch.setattr(storage, "TRIES", 1)
    with pytest.raises(UserError, match=message):
        connect_storage(place, 60, print)
