"""Is this trial of a search hopeless? Asked of the study at each validation."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.config.schema import Sweep
from finetune.runs.outcome import Pruned
from finetune.search.study import load_trial


class PruningCallback(TrainerCallback):
    """Reports the validation loss to the study of the search, and ends the run where the study says so."""

    def __init__(self, sweep: Sweep) -> None:
        assert sweep.study and sweep.name and sweep.trial is not None
        self.trial = load_trial(sweep.study, sweep.name, sweep.trial, sweep.pruner)
        self.sign = -1 if self.trial.study.direction.name == "MAXIMIZE" else 1
        self.known = set(self.trial.study.get_trials(deepcopy=False)[sweep.trial].intermediate_values)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Pruned is raised to end the run; what was reported before a crash is not reported again.

        Trials are compared at the same share of their training, in percent: their steps may be of other batches.
        """
        if not metrics or "eval_loss" not in metrics or state.global_step >= state.max_steps:
            return
        share = round(100 * state.global_step / state.max_steps)
        if share not in self.known:
            self.trial.report(self.sign * metrics["eval_loss"], share)
        if self.trial.should_prune():
            raise Pruned(f"validation loss {metrics['eval_loss']:.3f} at step {state.global_step}: others do better")


def pruning_callbacks(sweep: Sweep) -> list[TrainerCallback]:
    """The callback, in a trial of a search that prunes."""
    return [PruningCallback(sweep)] if sweep.trial is not None and sweep.pruner != "none" else []
