"""What has a search tried, and what does it try next? An Optuna study, in a file or a database."""

import os
import socket
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import UserError
from finetune.runs.outcome import Outcome, RunState
from finetune.search.samplers import PRUNERS, SAMPLERS, make_pruner, make_sampler
from finetune.search.shared_study import (
    FOLDER,
    HISTORY,
    SAME_AS,
    WHY,
    WORKER,
    fail_duplicates,
    first_attempt,
    have_same_settings,
    is_duplicate,
    retry_trial,
)
from finetune.search.space import Space, point_overrides
from finetune.search.storage import connect_storage, is_shared_storage, open_storage

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


HEARTBEAT_SECONDS = 60
OBJECTIVES = ("score", "validation_loss", "memory", "seconds")
WORKER_NAME = f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class StudySettings:
    """How the search goes: `conf/sweep` and `hydra.sweeper` set it."""

    sampler: str
    pruner: str
    n_trials: int
    seed: int
    objectives: tuple[str, ...]
    # Of the headline metric.
    higher_is_better: bool

    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """What is better, for each objective."""
        return ["maximize" if name == "score" and self.higher_is_better else "minimize" for name in self.objectives]


def check_study(plan: StudySettings) -> None:
    """Raise UserError for what is not known, and for what cannot go together."""
    known = {"sampler": ([plan.sampler], SAMPLERS), "pruner": ([plan.pruner], PRUNERS)}
    known["objectives"] = (list(plan.objectives), OBJECTIVES)
    for key, (given, allowed) in known.items():
        for value in given:
            if value not in allowed:
                raise UserError(f"hydra.sweeper.{key}={value}: expected one of {', '.join(allowed)}.")
    if plan.n_trials < 1:
        raise UserError(f"hydra.sweeper.n_trials={plan.n_trials}: it must be at least 1.")
    if len(plan.objectives) > 1 and (plan.sampler == "cmaes" or plan.pruner != "none"):
        raise UserError("hydra.sweeper.objectives: with several, set sampler=nsga2 (or tpe, random) and pruner=none.")


def open_study(
    place: str, name: str, plan: StudySettings, heartbeat_seconds: int = HEARTBEAT_SECONDS
) -> "optuna.Study":
    """The study, made where there is none; `place` is a file's path or the URL of a database."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=connect_storage(place, heartbeat_seconds, retry_trial),
        study_name=name,
        directions=plan.directions(),
        pruner=make_pruner(plan.pruner),
        load_if_exists=True,
    )
    # A search that goes on does not draw again what it drew first, nor one worker what others draw.
    drawn_by = zlib.crc32(WORKER_NAME.encode()) // 2 if is_shared_storage(place) else 0
    study.sampler = make_sampler(plan.sampler, plan.seed + len(study.get_trials(deepcopy=False)) + drawn_by)
    if [direction.name.lower() for direction in study.directions] != plan.directions():
        raise UserError(f"{place}: the study {name} has other objectives. Choose another sweep.name.")
    return study


def load_trial(place: str, name: str, number: int, pruner: str) -> "optuna.Trial":
    """A running trial of a study, in the trial's own process."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(storage=open_storage(place), study_name=name, pruner=make_pruner(pruner))
    return optuna.Trial(study, study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


class SearchStudy:
    """Draws trials until there are enough, and remembers what each came to."""

    def __init__(
        self,
        study: "optuna.Study",
        space: Space,
        plan: StudySettings,
        shared: bool,
        frame: Callable[[int, list[str]], list[str]] = lambda number, point: point,
    ) -> None:
        self.study, self.space, self.plan, self.shared = study, space, plan, shared
        # From a trial's number and settings to the overrides of its run.
        self.frame = frame
        self.open: dict[int, Any] = {}
        self.left = [] if shared else self._running()
        # When a trial was first seen to run, and how long it may do so without a sign of its worker.
        self.silent: dict[int, float] = {}
        self.patience = 2.0 * (getattr(study._storage, "get_heartbeat_interval", lambda: None)() or HEARTBEAT_SECONDS)

    def begin(self, default: Callable[[str], Any], repeated: Collection[RunState] = ()) -> None:
        """Line up what is to be tried first: the defaults, for a grid all of it, and what ended in a state of
        `repeated`.
        """
        first = [self.space.defaults(default)]
        if self.plan.sampler == "grid":
            cells = list(self.space.grid())
            first = [*(cell for cell in cells if cell in first), *cells]
        for point in first:
            self.study.enqueue_trial(point, skip_if_exists=True)
        if self.shared:  # and others may have lined up the same
            fail_duplicates(self.study)
        else:
            self._line_up_failed({state.value for state in repeated})

    def __iter__(self) -> "SearchStudy":
        return self

    def __next__(self) -> tuple[int, list[str]]:
        """The number and the overrides of the next trial; none now, but perhaps later, where StopIteration is raised.

        A trial that an ended search left running is run again; one that repeats another is not run.
        """
        while True:
            if self.left:
                return self._take(self.left.pop(0))
            if self.shared:
                self._fail_stale()
            if self._begun() < self.plan.n_trials or self._lined_up_again():
                if (asked := self._ask()) is not None:
                    return self._take(asked)
                continue
            if self.open or not (self.shared and self._running()):
                raise StopIteration
            time.sleep(1)  # another machine is at the last trials; should it die, they are for this one

    def _ask(self) -> "optuna.Trial | None":
        """A new trial, or None where the one that was asked for is not to be run."""
        from optuna.trial import TrialState

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # ours, see beat
            asked = self.study.ask()
        if self.shared and self._is_surplus(asked.number):
            self.study._storage.set_trial_state_values(asked._trial_id, TrialState.WAITING)
            return None
        self.space.suggest(asked)
        if (earlier := self._earlier(asked.number)) is None:
            return asked
        asked.set_user_attr(SAME_AS, earlier.number)
        if earlier.state is TrialState.COMPLETE:
            self.study.tell(asked.number, earlier.values)
        elif earlier.state is TrialState.PRUNED:
            for step, value in earlier.intermediate_values.items():
                asked.report(value, step)
            self.study.tell(asked.number, state=TrialState.PRUNED)
        else:
            self.study.tell(asked.number, state=TrialState.FAIL)
        return None

    def _take(self, trial: Any) -> tuple[int, list[str]]:
        self.open[trial.number] = trial
        if self.shared:
            self.beat()
            self.study._storage.set_trial_user_attr(trial._trial_id, WORKER, WORKER_NAME)
        return trial.number, self.frame(trial.number, point_overrides(trial.params))

    def taken_over(self, number: int) -> list[int]:
        """The trials that a running one repeats."""
        return list(self.study.get_trials(deepcopy=False)[number].system_attrs.get(HISTORY, []))

    def tell(self, number: int, outcome: Outcome, values: list[float] | None) -> None:
        """Remember how a trial ended; `values` are its objectives. One that others took over is theirs to tell."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        trial, store = self.open.pop(number), self.study._storage
        if self.shared and outcome.state is RunState.busy:
            store.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            return
        with suppress(UpdateFinishedTrialError):
            folder = outcome.folder.absolute() if outcome.folder and self.shared else outcome.folder
            for key, value in ((FOLDER, str(folder or "")), (WHY, outcome.state.value)):
                store.set_trial_user_attr(trial._trial_id, key, value)
            if values is not None:
                self.study.tell(number, values, skip_if_finished=True)
            else:
                ended = TrialState.PRUNED if outcome.state is RunState.pruned else TrialState.FAIL
                self.study.tell(number, state=ended, skip_if_finished=True)

    def beat(self) -> None:
        """Say to those who share the study that this search is alive."""
        from optuna.storages._heartbeat import BaseHeartbeat

        store = self.study._storage
        for trial in list(self.open.values()):
            if isinstance(store, BaseHeartbeat):
                store.record_heartbeat(trial._trial_id)

    def best(self) -> "list[FrozenTrial]":
        """The complete trials that were run, the best on the first objective first."""
        from optuna.trial import TrialState

        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = -1 if self.plan.directions()[0] == "maximize" else 1
        return sorted((t for t in done if SAME_AS not in t.user_attrs), key=lambda t: (sign * t.values[0], t.number))

    def front(self) -> "list[FrozenTrial]":
        """The complete trials that none beats in one objective without losing in another (the Pareto front)."""
        return [trial for trial in self.study.best_trials if SAME_AS not in trial.user_attrs]

    def counted(self) -> str:
        """How many trials were run, by whomever, and how they ended."""
        run = [trial for trial in self.study.get_trials(deepcopy=False) if SAME_AS not in trial.user_attrs]
        counts = Counter(trial.state.name.lower() for trial in run)
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    def remaining(self) -> int:
        """How many trials are still to run, those that an ended search left running included."""
        return max(0, self.plan.n_trials - self._begun()) + len(self.left) + len(self._lined_up_again())

    def _begun(self) -> int:
        """How many trials were begun, by whomever."""
        return len(self._roots())

    def _roots(self) -> set[int]:
        """The numbers of the trials that were begun; those taken over or lined up twice count once."""
        from optuna.trial import TrialState

        known = self.study.get_trials(deepcopy=False)
        twice = (trial.number for trial in known if is_duplicate(trial))
        return {first_attempt(trial) for trial in known if trial.state is not TrialState.WAITING} - set(twice)

    def _is_surplus(self, number: int) -> bool:
        """Whether others began so many trials in the meantime that this one is not needed."""
        root = first_attempt(self.study.get_trials(deepcopy=False)[number])
        return sum(other < root for other in self._roots()) >= self.plan.n_trials

    def _lined_up_again(self) -> "list[FrozenTrial]":
        """The trials that wait to be run again: those of a worker that fell silent, and those that failed."""
        from optuna.trial import TrialState

        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return [trial for trial in waiting if first_attempt(trial) != trial.number]

    def _line_up_failed(self, states: Collection[str]) -> None:
        from optuna.trial import TrialState

        newest = {first_attempt(trial): trial for trial in self.study.get_trials(deepcopy=False)}
        for trial in newest.values():
            if trial.state is TrialState.FAIL and trial.user_attrs.get(WHY) in states:
                retry_trial(self.study, trial)

    def _running(self) -> "list[FrozenTrial]":
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _earlier(self, number: int) -> "FrozenTrial | None":
        """Another trial of the same settings that is complete or pruned, or that another worker runs."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        same = [trial for trial in trials if trial.number != number and have_same_settings(trial, trials[number])]
        theirs = [trial for trial in same if self.shared and trial.number < number and trial.number not in self.open]
        return next(
            (trial for trial in same if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)),
            next((trial for trial in theirs if trial.state is TrialState.RUNNING), None),
        )

    def _fail_stale(self) -> None:
        """Give the trials of a worker that fell silent to others: they are lined up again."""
        from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
        from optuna.storages import fail_stale_trials
        from optuna.trial import TrialState

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self.study)
        now, store = time.monotonic(), self.study._storage
        for trial in self._running():  # of a worker that died before its first sign of life
            seen = self.silent.setdefault(trial.number, now)
            if WORKER not in trial.user_attrs and trial.number not in self.open and now - seen > self.patience:
                with suppress(UpdateFinishedTrialError):
                    store.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                    retry_trial(self.study, trial)
