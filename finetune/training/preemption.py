"""How does training stop when a signal asks it to? Behind the step that it is in, with a checkpoint."""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.runs.outcome import Preempted
from finetune.runs.stop import StopRequest


class StopCallback(TrainerCallback):
    """Ends training with a checkpoint behind the step in which a signal came, by raising Preempted."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.request.waits_for_step = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._any_process_is_asked():
            control.should_save = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.request.stop:  # which came during validation, behind the same step
            control.should_save = True

    def on_save(self, *_: Any, **__: Any) -> None:
        if self.request.stop:
            raise self.request.stop

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.request.waits_for_step = False
        if self.request.stop:
            raise self.request.stop

    def _any_process_is_asked(self) -> bool:
        """Whether to stop, which all processes must do behind the same step."""
        request, state = self.request, PartialState()
        if state.num_processes > 1:
            asked = torch.tensor(float(request.stop is not None), device=state.device)
            if reduce(asked, "sum") > 0 and request.stop is None:
                request.stop = Preempted("a signal to another process")
        return request.stop is not None
