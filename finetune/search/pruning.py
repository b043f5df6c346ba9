"""When does a trial of a search end early? Where the study says so, asked at each validation."""

from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from finetune.config.schema import Sweep
from finetune.runs.outcome import Pruned
from finetune.search.storage import Studies


class PruningCallback(TrainerCallback):
    """Reports the validation loss to the study of the search, and ends the run where the study says so."""

    def __init__(self, sweep: Sweep, studies: Studies) -> None:
        from finetune.search.study import load_trial

        self.trial = load_trial(sweep, studies)
        self.sign = -1 if self.trial.study.direction.name == "MAXIMIZE" else 1
        self.reported = set(self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: object, **given: Any) -> None:
        """Raise Pruned to end the run; what was reported before a crash is not reported again."""
        loss: float | None = given["metrics"].get("eval_loss")
        if loss is None or state.global_step >= state.max_steps:
            return
        percent = round(100 * state.global_step / state.max_steps)  # as the trials' steps may be of other batch sizes
        if percent not in self.reported:
            self.trial.report(self.sign * loss, percent)
        if self.trial.should_prune():
            raise Pruned(f"validation loss {loss:.3f} at step {state.global_step}: others do better")


def pruning_callbacks(sweep: Sweep, studies: Studies) -> list[TrainerCallback]:
    """The callback, in a trial of a search that prunes; `studies` were read ahead, by path."""
    return [PruningCallback(sweep, studies)] if sweep.trial is not None and sweep.pruner != "none" else []
