"""How does a run stop when it is asked to? Behind the step that it is in, with a checkpoint to continue from."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.config.schema import Config
from finetune.runs.outcome import Preempted, RunState, conclude_run

# Of schedulers before they kill, of Slurm's --signal=USR1, and of Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopCallback(TrainerCallback):
    """Ends training with a checkpoint behind the step in which a signal came; elsewhere a signal ends the run at once.

    So does a second signal. The run ends by raising Preempted.
    """

    def __init__(self) -> None:
        self.asked, self.training = "", False

    def receive(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        name = signal.Signals(number).name
        if self.asked or not self.training:
            raise Preempted(name)
        self.asked = name
        note = f"\n{name}: this step ends first, with a checkpoint. Once more: at once.\n"
        os.write(sys.stderr.fileno(), note.encode())  # print may be at work, and is not to be called within itself

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.training = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._any_process_is_asked():
            control.should_save = True

    def on_save(self, *_: Any, **__: Any) -> None:
        if self.asked:
            raise Preempted(self.asked)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.training = False
        if self.asked:
            raise Preempted(self.asked)

    def _any_process_is_asked(self) -> bool:
        """Whether to stop, which all processes must do behind the same step."""
        state = PartialState()
        if state.num_processes > 1 and reduce(torch.tensor(float(bool(self.asked)), device=state.device), "sum") > 0:
            self.asked = self.asked or "a signal to another process"
        return bool(self.asked)


@contextmanager
def catch_signals(config: Config, folder: Path) -> Iterator[list[TrainerCallback]]:
    """Within the block signals stop the run as StopCallback says, which leaves a result.json that says so.

    A trial of a sweep is stopped by its sweep.
    """
    if config.sweep.name:
        yield []
        return
    callback, started = StopCallback(), time.monotonic()
    before = {number: signal.signal(number, callback.receive) for number in SIGNALS}
    try:
        yield [callback]
    except Preempted as stop:
        if PartialState().is_main_process:
            conclude_run(config, folder, RunState.preempted, f"stopped by {stop}", time.monotonic() - started)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
