"""What has a search tried, and what does it try next? An Optuna study that one search reads alone."""

import zlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import optuna
from optuna.trial import FrozenTrial, TrialState

from finetune.config.schema import Sweep
from finetune.errors import UserError
from finetune.runs.outcome import Outcome, RunState
from finetune.search.settings import PRUNERS, SAMPLERS, SearchSettings
from finetune.search.space import Default, Dimension, Space, Value, point_overrides
from finetune.search.storage import Studies, accept_experimental, open_storage

FOLDER, SAME_AS, STATE = "folder", "same_as", "state"  # what is noted with a trial
HISTORY = "retry_history"  # Optuna's own name for the numbers of the trials that one retries
FIXED = "fixed_params"  # and for the settings of a trial that was enqueued


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of a name in SAMPLERS."""
    class_name, arguments = SAMPLERS[name]
    with accept_experimental():
        return getattr(optuna.samplers, class_name)(seed=seed, **arguments)


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    """The pruner of a name in PRUNERS."""
    class_name, arguments = PRUNERS[name]
    with accept_experimental():
        return getattr(optuna.pruners, class_name)(**arguments)


def load_trial(sweep: Sweep, studies: Studies) -> optuna.Trial:
    """The running trial of a search that a run belongs to, in its own process; `studies` were read ahead."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert sweep.study and sweep.name and sweep.trial is not None
    storage = open_storage(sweep.study, studies)
    study = optuna.load_study(storage=storage, study_name=sweep.name, pruner=make_pruner(sweep.pruner))
    study_id = storage.get_study_id_from_name(sweep.name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, sweep.trial))


def suggest_value(trial: optuna.Trial, searched: Dimension) -> Value:
    """A value of a searched setting for the trial."""
    if searched.choices:
        return trial.suggest_categorical(searched.key, searched.choices)
    if searched.whole:
        return trial.suggest_int(searched.key, int(searched.low), int(searched.high), log=searched.log)
    return trial.suggest_float(searched.key, searched.low, searched.high, log=searched.log)


def attempts(trial: FrozenTrial) -> list[int]:
    """The numbers of the trials that this one retries, the first one first, and its own."""
    return [*trial.system_attrs.get(HISTORY, []), trial.number]


def retry_trial(study: optuna.Study, trial: FrozenTrial) -> None:
    """Enqueue the settings of a trial that ended, under another number; its run goes on where it stopped."""
    fixed = {key: value for key, value in trial.system_attrs.items() if key == FIXED}
    retried = optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        system_attrs=fixed | {HISTORY: attempts(trial)},
    )
    study.add_trial(retried)


@dataclass
class SearchStudy:
    """Asks for trials until there are enough, and tells the study how each ended."""

    storage: optuna.storages.BaseStorage
    name: str
    space: Space
    settings: SearchSettings
    higher_is_better: bool  # of the score
    worker: str = ""  # the name of this process among those that share the study

    def __post_init__(self) -> None:
        """Raises UserError where the study is there and has other objectives."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directions, pruner = self.settings.directions(self.higher_is_better), make_pruner(self.settings.pruner)
        self.study = optuna.create_study(
            storage=self.storage, study_name=self.name, directions=directions, pruner=pruner, load_if_exists=True
        )
        if [direction.name.lower() for direction in self.study.directions] != directions:
            message = "the study of this name has other objectives. Choose another name."
            raise UserError(f"sweep.name={self.name}: {message}")
        # A search that goes on does not draw again what it drew first, and no worker draws what others draw.
        seed = self.settings.seed + len(self._trials()) + zlib.crc32(self.worker.encode()) // 2
        self.study.sampler = make_sampler(self.settings.sampler, seed)
        self.study_id = self.storage.get_study_id_from_name(self.name)
        self.open: set[int] = set()  # the trials that this search has begun and that have not ended
        # Left by an ended search; what runs in a shared study may be another worker's.
        self.interrupted = [] if self.worker else self._trials(TrialState.RUNNING)

    def enqueue_first(self, default: Default, retried: Collection[RunState] = ()) -> None:
        """Enqueue the defaults, for a grid all of it, and what failed in a state of `retried`."""
        points = [first := self.space.defaults(default)]
        if self.settings.sampler == "grid":
            points = sorted(self.space.grid(), key=lambda point: point != first)
        for point in points:
            self.study.enqueue_trial(point, skip_if_exists=True)
        names = {state.value for state in retried}
        newest = {attempts(trial)[0]: trial for trial in self._trials()}
        for trial in newest.values():
            if trial.state is TrialState.FAIL and trial.user_attrs.get(STATE) in names:
                retry_trial(self.study, trial)

    def __iter__(self) -> "SearchStudy":
        return self

    def __next__(self) -> tuple[int, list[str]]:
        """The number and the overrides of the next trial; StopIteration where there is none now, but perhaps later."""
        if self.interrupted:
            return self._begin(self.interrupted.pop(0))
        while len(self._begun()) < self.settings.n_trials or self._retries():
            if trial := self.ask():
                return self._begin(trial)
        raise StopIteration

    def ask(self) -> optuna.Trial | None:
        """A new trial, or None where the one that was asked for is not to be run."""
        return self._suggest(self.study.ask())

    def tell(self, number: int, outcome: Outcome, values: list[float] | None) -> None:
        """Remember how a trial ended; `values` are its objectives."""
        self.open.remove(number)
        self._note(number, FOLDER, str(outcome.folder or ""))
        self._note(number, STATE, outcome.state.value)
        ended = TrialState.PRUNED if outcome.state is RunState.pruned else TrialState.FAIL
        self.study.tell(number, values, ended if values is None else None, skip_if_finished=True)

    def earlier_attempts(self, number: int) -> list[int]:
        return attempts(self._trials()[number])[:-1]

    def ranking(self) -> list[FrozenTrial]:
        """The complete trials that were run, the best on the first objective first."""
        complete = [trial for trial in self._trials(TrialState.COMPLETE) if SAME_AS not in trial.user_attrs]
        maximize = self.study.directions[0].name == "MAXIMIZE"
        return sorted(complete, key=lambda trial: trial.values[0], reverse=maximize)

    def pareto_front(self) -> list[FrozenTrial]:
        """The complete trials that no other beats in one objective without losing in another."""
        return [trial for trial in self.study.best_trials if SAME_AS not in trial.user_attrs]

    def describe_trials(self) -> str:
        """How many trials were run, by whomever, and how they ended."""
        counts = Counter(trial.state.name.lower() for trial in self._trials() if SAME_AS not in trial.user_attrs)
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    def remaining(self) -> int:
        """How many trials are still to run, those that an ended search left running included."""
        new = max(0, self.settings.n_trials - len(self._begun()))
        return new + len(self.interrupted) + len(self._retries())

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _suggest(self, trial: optuna.Trial) -> optuna.Trial | None:
        """The trial with its settings, or None where it duplicates an earlier one; it then ends as that one did."""
        self.space.point(partial(suggest_value, trial))
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

    def _begin(self, trial: optuna.Trial | FrozenTrial) -> tuple[int, list[str]]:
        self.open.add(trial.number)
        return trial.number, point_overrides(trial.params)

    def _begun(self) -> set[int]:
        """The numbers of the trials that were begun; a retry counts as the first attempt."""
        return {attempts(trial)[0] for trial in self._trials() if trial.state is not TrialState.WAITING}

    def _retries(self) -> list[FrozenTrial]:
        """The trials that wait to be run again."""
        return [trial for trial in self._trials(TrialState.WAITING) if attempts(trial) != [trial.number]]

    def _earlier_duplicate(self, number: int) -> FrozenTrial | None:
        """Another trial of the same settings that is complete or pruned, else one that another worker runs."""
        trials = self._trials()
        own, fixed = trials[number].params, trials[number].system_attrs.get(FIXED)
        same = [  # drawn or enqueued; one that has just begun has not drawn all yet
            trial
            for trial in trials
            if trial.number != number
            and (trial.params == own or (fixed is not None and trial.system_attrs.get(FIXED) == fixed))
        ]
        ended = [trial for trial in same if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        elsewhere = [trial for trial in same if trial.number < number and trial.number not in self.open]
        running = [trial for trial in elsewhere if trial.state is TrialState.RUNNING]
        return next(iter(ended + running), None)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _note(self, number: int, key: str, value: str) -> None:
        self.storage.set_trial_user_attr(self._trial_id(number), key, value)
