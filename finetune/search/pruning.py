"""When does a trial of a search end early? Where the study says so, asked at each validation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.config.schema import Sweep
from finetune.runs.outcome import Pruned
from finetune.search.study import load_trial

if TYPE_CHECKING:
    from optuna.storages import JournalStorage


class PruningCallback(TrainerCallback):
    """Reports the validation loss to the study of the search, and ends the run where the study says so."""

    def __init__(self, sweep: Sweep, studies: "Mapping[str, JournalStorage]") -> None:
        self.trial = load_trial(sweep, studies)
        self.sign = -1 if self.trial.study.direction.name == "MAXIMIZE" else 1
        self.reported = set(self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Raise Pruned to end the run; what was reported before a crash is not reported again.

        Trials are compared at the same percentage of their training, as their steps may be of different batch sizes.
        """
        if not metrics or "eval_loss" not in metrics or state.global_step >= state.max_steps:
            return
        percent = round(100 * state.global_step / state.max_steps)
        if percent not in self.reported:
            self.trial.report(self.sign * metrics["eval_loss"], percent)
        if self.trial.should_prune():
            raise Pruned(f"validation loss {metrics['eval_loss']:.3f} at step {state.global_step}: others do better")


def pruning_callbacks(sweep: Sweep, studies: "Mapping[str, JournalStorage]") -> list[TrainerCallback]:
    """The callback, in a trial of a search that prunes; `studies` were read ahead, by path."""
    return [PruningCallback(sweep, studies)] if sweep.trial is not None and sweep.pruner != "none" else []
