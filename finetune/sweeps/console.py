"""What does the user see while a sweep goes on?"""

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.status import Status
from rich.table import Table
from rich.text import Text

from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.machine.allowance import GIB
from finetune.reporting.tables import format_duration
from finetune.runs.outcome import SUCCESSFUL, UNENDED, Outcome, RunState
from finetune.runs.sweep_record import SweepRecord
from finetune.sweeps.jobs import TrialCost

STYLES = {RunState.running: "cyan", RunState.complete: "green", RunState.pruned: "yellow"}
SHOWN = 12  # trials in the live table, the newest
NOTE_LENGTH = 80  # characters of a reason in the live table


class RunningTrial(Protocol):
    """A trial that runs: since when, by the monotonic clock, and what it is doing."""

    started: float
    note: str


class SweepConsole:
    """A live table of the trials on a terminal; anywhere a line for each that ended, with its traceback if any."""

    def __init__(self, record: SweepRecord, total: int | None) -> None:
        self.terminal = Console(highlight=False)
        self.record, self.total = record, total
        self.running: Mapping[int, RunningTrial] = {}
        self.at_a_time = 1
        self.expected_seconds: float | None = None
        # What ended here, and the numbers of all trials that began here.
        self.outcomes: list[Outcome] = []
        self.numbers: list[int] = []
        self.live = Live(get_renderable=self._table, console=self.terminal, refresh_per_second=2, transient=True)

    def __enter__(self) -> "SweepConsole":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self.live.stop()

    def waiting(self, what: str) -> Status:
        """A sign that something goes on, for the length of a `with` block."""
        return self.terminal.status(what)

    def show_costs(self, costs: Sequence[TrialCost], trials: int, at_a_time: int) -> None:
        """Show what the trials that are still to run will cost."""
        self.at_a_time = at_a_time
        if not costs:
            return
        self.expected_seconds = fmean(cost.seconds for cost in costs)
        measured = all(cost.measured for cost in costs)
        largest = max(costs, key=lambda cost: cost.peak_bytes / cost.available_bytes)
        self.terminal.print(
            f"{trials} trials to run, {at_a_time} at a time: {'about' if measured else 'at least'} "
            f"{format_duration(self.expected_seconds * trials / min(at_a_time, trials))}. The largest needs "
            f"{largest.peak_bytes / GIB:.2f} of {largest.available_bytes / GIB:.2f} GiB: {largest.fit.value}.",
            soft_wrap=True,
        )

    def not_planned(self, problem: str) -> None:
        """What the trials will cost could not be worked out."""
        self.terminal.print(f"The trials could not be planned: {problem}", style="yellow", markup=False)

    def began(self, number: int) -> None:
        """A trial has begun."""
        self.numbers.append(number)

    def show(self, running: Mapping[int, RunningTrial]) -> None:
        """Show how far the running trials are."""
        self.running = running
        if running and self.terminal.is_terminal and not self.live.is_started:
            self.live.start()

    def ended(self, number: int, outcome: Outcome) -> None:
        """A trial has ended."""
        if number not in self.numbers:
            self.numbers.append(number)
        self.outcomes.append(outcome)
        score = "" if outcome.score is None else f" {outcome.metric} {outcome.score:.3f}"
        when = ", as known from before" if outcome.known else f" in {format_duration(outcome.seconds)}"
        if outcome.known and outcome.state not in SUCCESSFUL:
            when += " (sweep.repeat_failures=true tries it again)"
        line = f"trial {number} {self.record.swept(number)}: {outcome.state.value}{score}{when}"
        self.terminal.print(line, markup=False, soft_wrap=True)
        if outcome.reason and outcome.state is not RunState.complete:
            self.terminal.print(outcome.reason.rstrip(), markup=False, soft_wrap=True)

    def gave_up(self, failures: int) -> None:
        """No further trial is started, because too many failed."""
        line = f"{failures} trials failed, more than sweep.max_failures allows: the others are not started."
        self.terminal.print(line, style="red", soft_wrap=True)

    def _table(self) -> Table:
        table = Table(title=self._title(), title_justify="left", expand=True)
        for name in ("trial", "settings", "state", "score", "time", ""):
            table.add_column(name, ratio=2 if name in ("settings", "") else None, overflow="fold")
        best = self._best()
        for number in self.numbers[-SHOWN:]:
            trial, running = self.record.trials[number], self.running.get(number)
            seconds = time.monotonic() - running.started if running else trial.seconds
            score = "" if trial.score is None else f"{trial.score:.3f}{' best' if number == best else ''}"
            note = running.note if running else trial.reason.rstrip().rpartition("\n")[2][:NOTE_LENGTH]
            state = Text(trial.state.value, style=STYLES.get(trial.state, "red"))
            settings = Text(self.record.swept(number))
            table.add_row(str(number), settings, state, score, format_duration(seconds), Text(note))
        return table

    def _best(self) -> int | None:
        trials = (self.record.trials[number] for number in self.numbers)
        scores = {trial.number: trial.score for trial in trials if trial.score is not None}
        better = min if any(not HIGHER_IS_BETTER.get(outcome.metric, True) for outcome in self.outcomes) else max
        return better(scores, key=scores.__getitem__, default=None)

    def _title(self) -> str:
        done = sum(self.record.trials[number].state not in UNENDED for number in self.numbers)
        failed = sum(outcome.state not in SUCCESSFUL for outcome in self.outcomes)
        parts = [f"{done} of {self.total} trials" if self.total else f"{done} trials"]
        parts += [f"{failed} failed"] if failed else []
        if self.total and (left := self.total - done):
            seconds = [outcome.seconds for outcome in self.outcomes if not outcome.known]
            each = fmean(seconds) if seconds else self.expected_seconds
            parts += [f"about {format_duration(each * left / self.at_a_time)} left"] if each else []
        return " · ".join(parts)
