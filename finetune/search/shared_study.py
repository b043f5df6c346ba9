"""Which trials of a study are tries of the same settings? What is noted with a trial tells."""

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


FOLDER, SAME_AS, WHY, WORKER = "folder", "same_as", "state", "worker"  # what is noted with a trial
HISTORY = "retry_history"  # Optuna's own name for the numbers of the trials that one repeats
FIXED = "fixed_params"  # and for the settings of a trial that was lined up


def retry_trial(study: "optuna.Study", trial: "FrozenTrial") -> None:
    """Have the settings of a trial that ended tried again, under another number; its run goes on where it stopped."""
    from optuna.trial import TrialState, create_trial

    kept = {FIXED: trial.system_attrs[FIXED]} if FIXED in trial.system_attrs else {}
    again = create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        system_attrs=kept | {HISTORY: [*trial.system_attrs.get(HISTORY, []), trial.number]},
    )
    study.add_trial(again)


def fail_duplicates(study: "optuna.Study") -> None:
    """End what waits to be tried and was lined up before by another worker, too, at the same moment."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    known, store = study.get_trials(deepcopy=False), study._storage
    lined_up = [trial for trial in known if FIXED in trial.system_attrs and HISTORY not in trial.system_attrs]
    for trial in lined_up:
        first = next(one for one in lined_up if one.system_attrs[FIXED] == trial.system_attrs[FIXED])
        if first is trial or trial.state is not TrialState.WAITING:
            continue
        with suppress(UpdateFinishedTrialError):  # the other worker was faster
            if store.set_trial_state_values(trial._trial_id, TrialState.RUNNING):  # only one worker can
                store.set_trial_user_attr(trial._trial_id, SAME_AS, first.number)
                store.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def first_attempt(trial: "FrozenTrial") -> int:
    """The number of the trial that this one takes over, else its own."""
    history = trial.system_attrs.get(HISTORY) or [trial.number]
    return int(history[0])


def is_duplicate(trial: "FrozenTrial") -> bool:
    """Whether it was not run because it and another were lined up at the same moment, with the same settings."""
    return SAME_AS in trial.user_attrs and FIXED in trial.system_attrs


def have_same_settings(one: "FrozenTrial", other: "FrozenTrial") -> bool:
    """Whether two trials have the same settings, drawn or lined up; who has just begun one has not drawn all yet."""
    lined_up = one.system_attrs.get(FIXED)
    return one.params == other.params or (lined_up is not None and lined_up == other.system_attrs.get(FIXED))
