"""What has a search tried, and what does it try next? An Optuna study, in a file or a database."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.schema import UserError
from finetune.space import Space, overrides
from finetune.trials import Outcome, State

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

HEARTBEAT_SECONDS = 60
SAMPLERS = ("tpe", "random", "grid", "cmaes", "nsga2")
PRUNERS = ("none", "median", "asha", "hyperband")
OBJECTIVES = ("score", "validation_loss", "memory", "seconds")
FOLDER, SAME_AS, WHY = "folder", "same_as", "state"  # what is noted with a trial
HISTORY = "retry_history"  # Optuna's own name for the numbers of the trials that one repeats


@dataclass(frozen=True)
class Plan:
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


def check(plan: Plan) -> None:
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


def open_study(storage: str, name: str, plan: Plan, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> "optuna.Study":
    """The study, made where there is none; `storage` is a file's path or the URL of a database."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=_storage(storage, heartbeat_seconds),
        study_name=name,
        directions=plan.directions(),
        pruner=_pruner(plan.pruner),
        load_if_exists=True,
    )
    study.sampler = _sampler(plan, len(study.get_trials(deepcopy=False)))
    if [direction.name.lower() for direction in study.directions] != plan.directions():
        raise UserError(f"{storage}: the study {name} has other objectives. Choose another sweep.name.")
    return study


def load_trial(storage: str, name: str, number: int, pruner: str) -> "optuna.Trial":
    """A running trial of a study, in the trial's own process."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(storage=_storage(storage), study_name=name, pruner=_pruner(pruner))
    return optuna.Trial(study, study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


class Search:
    """Draws trials until there are enough, and remembers what each came to."""

    def __init__(
        self,
        study: "optuna.Study",
        space: Space,
        plan: Plan,
        shared: bool,
        frame: Callable[[int, list[str]], list[str]] = lambda number, point: point,
    ) -> None:
        self.study, self.space, self.plan, self.shared = study, space, plan, shared
        # From a trial's number and settings to the overrides of its run.
        self.frame = frame
        self.open: dict[int, Any] = {}
        self.left = [] if shared else self._running()

    def begin(self, default: Callable[[str], Any], repeated: Collection[State] = ()) -> None:
        """Line up what is to be tried first: the defaults, for a grid all of it, and what ended in a state of
        `repeated`.
        """
        first = [self.space.defaults(default)]
        if self.plan.sampler == "grid":
            cells = list(self.space.grid())
            first = [*(cell for cell in cells if cell in first), *cells]
        for point in first:
            self.study.enqueue_trial(point, skip_if_exists=True)
        if not self.shared:  # else several would line up the same
            self._line_up_failed({state.value for state in repeated})

    def __iter__(self) -> "Search":
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
                asked = self.study.ask()
                self.space.suggest(asked)
                if earlier := self._earlier(asked.number):
                    asked.set_user_attr(SAME_AS, earlier.number)
                    self.study.tell(asked.number, earlier.values)
                    continue
                return self._take(asked)
            if self.open or not (self.shared and self._running()):
                raise StopIteration
            time.sleep(1)  # another machine is at the last trials; should it die, they are for this one

    def _take(self, trial: Any) -> tuple[int, list[str]]:
        self.open[trial.number] = trial
        self.beat()
        return trial.number, self.frame(trial.number, overrides(trial.params))

    def tell(self, number: int, outcome: Outcome, values: list[float] | None) -> None:
        """Remember how a trial ended; `values` are its objectives."""
        from optuna.trial import TrialState

        trial = self.open.pop(number)
        trial_id = trial._trial_id
        for key, value in ((FOLDER, str(outcome.folder or "")), (WHY, outcome.state.value)):
            self.study._storage.set_trial_user_attr(trial_id, key, value)
        if values is not None:
            self.study.tell(number, values)
        else:
            pruned = outcome.state is State.pruned
            self.study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def beat(self) -> None:
        """Say that this search is alive, where others share the study."""
        from optuna.storages._heartbeat import BaseHeartbeat

        storage = self.study._storage
        for trial in list(self.open.values()) if self.shared else []:
            if isinstance(storage, BaseHeartbeat):
                storage.record_heartbeat(trial._trial_id)

    def best(self) -> "list[FrozenTrial]":
        """The complete trials that were run, the best on the first objective first."""
        from optuna.trial import TrialState

        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = -1 if self.plan.directions()[0] == "maximize" else 1
        return sorted((t for t in done if SAME_AS not in t.user_attrs), key=lambda t: (sign * t.values[0], t.number))

    def remaining(self) -> int:
        """How many trials are still to run, those that an ended search left running included."""
        return max(0, self.plan.n_trials - self._begun()) + len(self.left) + len(self._lined_up_again())

    def _begun(self) -> int:
        """How many trials were begun, by whomever; one that was taken over counts once."""
        from optuna.trial import TrialState

        known = self.study.get_trials(deepcopy=False)
        return len({_root(trial) for trial in known if trial.state is not TrialState.WAITING})

    def _lined_up_again(self) -> "list[FrozenTrial]":
        """The trials that wait to be run again: those of a worker that fell silent, and those that failed."""
        from optuna.trial import TrialState

        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return [trial for trial in waiting if _root(trial) != trial.number]

    def _line_up_failed(self, states: Collection[str]) -> None:
        from optuna.trial import TrialState, create_trial

        newest = {_root(trial): trial for trial in self.study.get_trials(deepcopy=False)}
        for trial in newest.values():
            if trial.state is TrialState.FAIL and trial.user_attrs.get(WHY) in states:
                again = create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    system_attrs={HISTORY: [*trial.system_attrs.get(HISTORY, []), trial.number]},
                )
                self.study.add_trial(again)

    def _running(self) -> "list[FrozenTrial]":
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _earlier(self, number: int) -> "FrozenTrial | None":
        """A complete trial of the same settings."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        mine = trials[number].params
        done = (t for t in trials if t.state is TrialState.COMPLETE and t.number != number)
        return next((t for t in done if t.params == mine), None)

    def _fail_stale(self) -> None:
        """Give the trials of a worker that fell silent to others: they are lined up again."""
        from optuna.storages import fail_stale_trials

        fail_stale_trials(self.study)


def _root(trial: "FrozenTrial") -> int:
    """The number of the trial that this one takes over, else its own."""
    history = trial.system_attrs.get(HISTORY) or [trial.number]
    return int(history[0])


def is_shared(storage: str) -> bool:
    """Whether other machines may work on the study, too."""
    return "://" in storage


def _storage(place: str, heartbeat_seconds: int | None = None) -> Any:
    from optuna.storages import JournalStorage, RDBStorage, RetryFailedTrialCallback
    from optuna.storages.journal import JournalFileBackend

    if is_shared(place):
        retry = RetryFailedTrialCallback()
        return RDBStorage(place, heartbeat_interval=heartbeat_seconds, failed_trial_callback=retry)
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(place))


def _sampler(plan: Plan, known: int) -> Any:
    """The sampler; a search that goes on does not draw again what it drew first."""
    import warnings

    from optuna import exceptions, samplers

    seed = plan.seed + known
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ExperimentalWarning)
        if plan.sampler == "tpe":
            return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        if plan.sampler == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if plan.sampler == "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        return samplers.RandomSampler(seed=seed)


def _pruner(name: str) -> Any:
    """Pruners for few evaluations a trial, which are told the step of each."""
    import warnings

    from optuna import exceptions, pruners

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ExperimentalWarning)
        if name == "median":
            return pruners.MedianPruner(n_startup_trials=3, n_min_trials=2)
        if name == "asha":
            return pruners.SuccessiveHalvingPruner(min_resource="auto", reduction_factor=3)
        if name == "hyperband":
            return pruners.HyperbandPruner(min_resource=1, reduction_factor=3)
        return pruners.NopPruner()
