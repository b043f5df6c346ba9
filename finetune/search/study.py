"""What has a search tried, and what does it try next? An Optuna study that one search reads alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from finetune.config.schema import Sweep
from finetune.errors import UserError
from finetune.runs.outcome import Outcome, RunState
from finetune.search.samplers import PRUNERS, SAMPLERS, make_pruner, make_sampler
from finetune.search.space import Default, Space, point_overrides
from finetune.search.storage import open_storage

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage, JournalStorage
    from optuna.trial import FrozenTrial


OBJECTIVES = ("score", "validation_loss", "memory", "seconds")
FOLDER, SAME_AS, STATE = "folder", "same_as", "state"  # what is noted with a trial
HISTORY = "retry_history"  # Optuna's own name for the numbers of the trials that one retries
FIXED = "fixed_params"  # and for the settings of a trial that was enqueued


@dataclass
class SearchSettings:
    """What is searched, and how: `hydra.sweeper`."""

    n_trials: int = 20  # of the whole study, those of earlier sweeps of this name included
    sampler: str = "tpe"  # or random, grid, cmaes, nsga2
    seed: int = 0
    pruner: str = "median"  # or none, asha, hyperband: by the validation loss at each validation
    # What is to be best, each of score (on validation prompts), validation_loss, memory and seconds.
    objectives: list[str] = field(default_factory=lambda: ["score"])
    storage: str | None = None  # a file or a database's URL; None: study.journal in the sweep's folder
    heartbeat_seconds: int = 60  # with a database: a worker without a sign of life for twice as long is dead
    # Setting -> what is tried, in the grammar of Hydra's sweeps.
    params: dict[str, Any] = field(default_factory=dict)
    # Setting -> OTHER=VALUE: it is tried only where the other searched setting has that value.
    conditions: dict[str, str] = field(default_factory=dict)

    def directions(self, higher_is_better: bool) -> list[Literal["maximize", "minimize"]]:
        """What is better, for each objective; the score's is the headline metric's."""
        return ["maximize" if name == "score" and higher_is_better else "minimize" for name in self.objectives]


def check_study(settings: SearchSettings) -> None:
    """Raise UserError for a name that does not exist, and for settings that do not go together."""
    chosen = [("sampler", settings.sampler, SAMPLERS), ("pruner", settings.pruner, PRUNERS)]
    for key, value, allowed in [*chosen, *(("objectives", name, OBJECTIVES) for name in settings.objectives)]:
        if value not in allowed:
            raise UserError(f"hydra.sweeper.{key}={value}: expected one of {', '.join(allowed)}.")
    if settings.n_trials < 1:
        raise UserError(f"hydra.sweeper.n_trials={settings.n_trials}: it must be at least 1.")
    if len(settings.objectives) > 1 and (settings.sampler == "cmaes" or settings.pruner != "none"):
        raise UserError("hydra.sweeper.objectives: with several, set sampler=nsga2 (or tpe, random) and pruner=none.")


def load_trial(sweep: Sweep, studies: "Mapping[str, JournalStorage]") -> "optuna.Trial":
    """The running trial of a search that a run belongs to, in its own process; `studies` were read ahead."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert sweep.study and sweep.name and sweep.trial is not None
    storage = open_storage(sweep.study, studies)
    study = optuna.load_study(storage=storage, study_name=sweep.name, pruner=make_pruner(sweep.pruner))
    study_id = storage.get_study_id_from_name(sweep.name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, sweep.trial))


def retry_trial(study: "optuna.Study", trial: "FrozenTrial") -> None:
    """Enqueue the settings of a trial that ended, under another number; its run goes on where it stopped."""
    from optuna.trial import TrialState, create_trial

    fixed = {FIXED: trial.system_attrs[FIXED]} if FIXED in trial.system_attrs else {}
    retried = create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        system_attrs=fixed | {HISTORY: [*trial.system_attrs.get(HISTORY, []), trial.number]},
    )
    study.add_trial(retried)


def first_attempt(trial: "FrozenTrial") -> int:
    """The number of the trial that this one retries, else its own."""
    return int([*trial.system_attrs.get(HISTORY, []), trial.number][0])


class SearchStudy:
    """Asks for trials until there are enough, and tells the study how each ended."""

    def __init__(
        self,
        storage: "BaseStorage",
        name: str,
        space: Space,
        settings: SearchSettings,
        higher_is_better: bool,
        seed_offset: int = 0,
    ) -> None:
        """Raises UserError where the study is there and has other objectives; `higher_is_better` is of the score."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.storage, self.space, self.settings, self.higher_is_better = storage, space, settings, higher_is_better
        directions, pruner = settings.directions(higher_is_better), make_pruner(settings.pruner)
        self.study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, pruner=pruner, load_if_exists=True
        )
        if [direction.name.lower() for direction in self.study.directions] != directions:
            raise UserError(f"sweep.name={name}: the study of this name has other objectives. Choose another name.")
        # A search that goes on does not draw again what it drew first.
        self.study.sampler = make_sampler(settings.sampler, settings.seed + len(self._trials()) + seed_offset)
        self.study_id = storage.get_study_id_from_name(name)
        self.open: set[int] = set()  # the trials that this search has begun and that have not ended
        self.interrupted = self._trials("RUNNING")

    def enqueue_first(self, default: Default, retried: Collection[RunState] = ()) -> None:
        """Enqueue the defaults, for a grid all of it, and what failed in a state of `retried`."""
        points = [self.space.defaults(default)]
        if self.settings.sampler == "grid":
            grid = self.space.grid()
            points = [*(point for point in grid if point in points), *grid]
        for point in points:
            self.study.enqueue_trial(point, skip_if_exists=True)
        names = {state.value for state in retried}
        newest = {first_attempt(trial): trial for trial in self._trials()}
        for trial in newest.values():
            if trial.state.name == "FAIL" and trial.user_attrs.get(STATE) in names:
                retry_trial(self.study, trial)

    def __iter__(self) -> "SearchStudy":
        return self

    def __next__(self) -> tuple[int, list[str]]:
        """The number and the settings of the next trial, as overrides.

        A trial that an ended search left running is run again; one that duplicates another is not run. Where
        StopIteration is raised there is none now, but perhaps later.
        """
        if self.interrupted:
            return self._begin(self.interrupted.pop(0))
        while len(self._begun()) < self.settings.n_trials or self._retries():
            if trial := self.ask():
                return self._begin(trial)
        raise StopIteration

    def ask(self) -> "optuna.Trial | None":
        """A new trial, or None where the one that was asked for is not to be run."""
        return self._suggest(self.study.ask())

    def tell(self, number: int, outcome: Outcome, values: list[float] | None) -> None:
        """Remember how a trial ended; `values` are its objectives."""
        from optuna.trial import TrialState

        self.open.remove(number)
        self._note(number, FOLDER, str(outcome.folder or ""))
        self._note(number, STATE, outcome.state.value)
        ended = TrialState.PRUNED if outcome.state is RunState.pruned else TrialState.FAIL
        self.study.tell(number, values, ended if values is None else None, skip_if_finished=True)

    def earlier_attempts(self, number: int) -> list[int]:
        """The numbers of the trials that a trial retries."""
        return list(self._trials()[number].system_attrs.get(HISTORY, []))

    def ranking(self) -> "list[FrozenTrial]":
        """The complete trials that were run, the best on the first objective first."""
        sign = -1 if self.settings.directions(self.higher_is_better)[0] == "maximize" else 1
        complete = [trial for trial in self._trials("COMPLETE") if SAME_AS not in trial.user_attrs]
        return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))

    def pareto_front(self) -> "list[FrozenTrial]":
        """The complete trials that no other beats in one objective without losing in another."""
        return [trial for trial in self.study.best_trials if SAME_AS not in trial.user_attrs]

    def remaining(self) -> int:
        """How many trials are still to run, those that an ended search left running included."""
        new = max(0, self.settings.n_trials - len(self._begun()))
        return new + len(self.interrupted) + len(self._retries())

    def _trials(self, *states: str) -> "list[FrozenTrial]":
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=[TrialState[name] for name in states] or None)

    def _suggest(self, trial: "optuna.Trial") -> "optuna.Trial | None":
        """The trial with its settings, or None where it duplicates an earlier one; it then ends as that one did."""
        from optuna.trial import TrialState

        self.space.suggest(trial)
        earlier = self._earlier_duplicate(trial.number)
        if earlier is None:
            return trial
        trial.set_user_attr(SAME_AS, earlier.number)
        if earlier.state is TrialState.PRUNED:
            for step, value in earlier.intermediate_values.items():
                trial.report(value, step)
        values = earlier.values if earlier.state is TrialState.COMPLETE else None
        self.study.tell(trial, values, earlier.state if earlier.state.is_finished() else TrialState.FAIL)
        return None

    def _begin(self, trial: "optuna.Trial | FrozenTrial") -> tuple[int, list[str]]:
        self.open.add(trial.number)
        return trial.number, point_overrides(trial.params)

    def _begun(self) -> set[int]:
        """The numbers of the trials that were begun; a retry counts as the first attempt."""
        return {first_attempt(trial) for trial in self._trials() if trial.state.name != "WAITING"}

    def _retries(self) -> "list[FrozenTrial]":
        """The trials that wait to be run again."""
        return [trial for trial in self._trials("WAITING") if first_attempt(trial) != trial.number]

    def _earlier_duplicate(self, number: int) -> "FrozenTrial | None":
        """Another trial of the same settings that is complete or pruned."""
        return next((trial for trial in self._duplicates(number) if trial.state.name in ("COMPLETE", "PRUNED")), None)

    def _duplicates(self, number: int) -> "list[FrozenTrial]":
        """The other trials of the same settings, drawn or enqueued; one that has just begun has not drawn all yet."""
        trials = self._trials()
        own, fixed = trials[number].params, trials[number].system_attrs.get(FIXED)
        return [
            trial
            for trial in trials
            if trial.number != number
            and (trial.params == own or (fixed is not None and trial.system_attrs.get(FIXED) == fixed))
        ]

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _note(self, number: int, key: str, value: str) -> None:
        self.storage.set_trial_user_attr(self._trial_id(number), key, value)
