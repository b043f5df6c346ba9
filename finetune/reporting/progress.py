"""How far is training, how fast does it go, and what has it cost so far?"""

import math
import time
from collections.abc import Callable
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.evaluation.prompts import Prompts
from finetune.machine.device import finish_queued_work
from finetune.machine.process_memory import peak_memory_bytes
from finetune.reporting.console import RunConsole
from finetune.reporting.wandb import TrackedRun
from finetune.runs.result import TrainingResult
from finetune.training.counters import Counters
from finetune.training.trainer import diverged

QUIET_SECONDS = 30.0  # where no bar can be drawn, a line tells the step after so long
Report = Callable[[str], None]  # what is called with a note of how far the run is
TRAINING_CHARTS = ("loss", "grad_norm", "learning_rate", "epoch", "tokens_per_second", "train_seconds")
CHARTS = {name: f"train/{name}" for name in TRAINING_CHARTS}  # by the key in the log history
CHARTS |= {"eval_loss": "validation/loss", "tokens": "tokens", "loss_tokens": "loss_tokens"}


def progress_bar(console: RunConsole) -> Progress:
    """A progress bar with a free text at its end, on the terminal only."""
    times = TimeElapsedColumn(), "left", TimeRemainingColumn()
    columns = "{task.description}", BarColumn(bar_width=30), MofNCompleteColumn(), *times, "{task.fields[note]}"
    return Progress(*columns, console=console.terminal, transient=True)


def answer_counter(progress: Progress, prompts: Prompts, report: Report) -> Callable[[str, int], None]:
    """A function that counts answered prompts on a bar for each arm; `counter(arm, n)` adds n."""
    totals = {arm: len(prompt_set.examples) for arm, prompt_set in prompts.arms().items()}

    def advance(arm: str, done: int) -> None:
        name = f"answering: {arm.replace('_', ' ')}"
        if all(task.description != name for task in progress.tasks):
            progress.add_task(name, total=totals[arm], note="")
        [task] = [task for task in progress.tasks if task.description == name]
        progress.update(task.id, advance=done)
        report(f"{name} {task.completed:.0f}/{totals[arm]}")

    return advance


class TrainingProgress(TrainerCallback):
    """Draws the bar, times the training steps (not validation, not saving) and sends every log to W&B.

    What was logged and counted lies in the checkpoint, so that a run that continues counts on from there.
    """

    def __init__(self, console: RunConsole, run: TrackedRun, report: Report) -> None:
        self.console, self.run, self.report, self.counters = console, run, report, Counters()
        self.bar = progress_bar(console)
        self.resumed_from_step = self.micro_batch = 0
        self.printed_at = time.monotonic()
        self.train_loss: float | None = None
        self.validation_loss: float | None = None
        self.last: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []  # what was logged, by step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.history, self.resumed_from_step = state.log_history, state.global_step
        self.micro_batch = args.per_device_train_batch_size
        for entry in state.log_history:
            self._remember(entry)
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, note="")
        self.bar.start()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_log |= state.global_step == state.max_steps  # the last loss is part of the result
        if control.should_log or control.should_evaluate:
            finish_queued_work()
        self.counters.seconds += time.perf_counter() - self.started
        self.bar.update(self.task, completed=state.global_step)
        self.report(f"step {state.global_step}/{state.max_steps} {self._note() if self.last else ''}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        entry: dict[str, Any] = state.log_history[-1]
        entry["train_seconds"] = self.counters.seconds
        entry["tokens_per_second"] = entry["tokens"] / max(self.counters.seconds, 1e-9)
        self._remember(entry)
        if not math.isfinite(loss := entry.get("eval_loss", 0.0)):
            raise FloatingPointError(diverged(f"The validation loss is {loss}", state.global_step))
        self.run.log({CHARTS[key]: value for key, value in entry.items() if key in CHARTS}, step=state.global_step)
        self.bar.update(self.task, note=self._note())
        due = not self.console.terminal.is_terminal and time.monotonic() > self.printed_at + QUIET_SECONDS
        if "eval_loss" in entry or due:
            self.printed_at = time.monotonic()
            self.console.print(f"  step {state.global_step}/{state.max_steps}: {self._note()}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.stop()
        if args.load_best_model_at_end and state.best_metric is not None:  # the model is that of another step
            self.validation_loss = state.best_metric
        self.peak_memory_bytes = peak_memory_bytes()

    def result(self) -> TrainingResult:
        """What training did."""
        return TrainingResult(
            steps=self.last["step"],
            epochs=self.last["epoch"],
            tokens=self.last["tokens"],
            loss_tokens=self.last["loss_tokens"],
            seconds=round(self.counters.seconds, 2),
            tokens_per_second=round(self.last["tokens_per_second"], 1),
            train_loss=self.train_loss,
            validation_loss=self.validation_loss,
            peak_memory_bytes=self.peak_memory_bytes,
            resumed_from_step=self.resumed_from_step,
            skipped_updates=self.counters.skipped_updates,
            rows_at_a_time=-(-self.micro_batch // self.counters.parts),
            checkpoints=self.counters.checkpoints,
            checkpoint_seconds=round(self.counters.checkpoint_seconds, 2),
        )

    def _remember(self, entry: dict[str, Any]) -> None:
        self.last = entry
        self.train_loss = entry.get("loss", self.train_loss)
        self.validation_loss = entry.get("eval_loss", self.validation_loss)

    def _note(self) -> str:
        losses = {"loss": self.train_loss, "validation loss": self.validation_loss}
        parts = [f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None]
        return " · ".join([*parts, f"{self.last['tokens_per_second']:,.0f} tokens/s"])
