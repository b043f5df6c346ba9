"""What does the user see while a sweep goes on?"""

import time
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.status import Status
from rich.table import Table

from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.reporting.console import format_duration
from finetune.runs.outcome import SUCCESSFUL, UNENDED, Outcome, RunState
from finetune.runs.sweep_record import SweepRecord
from finetune.sweeps.jobs import TrialCost

STYLES = {RunState.running: "cyan", RunState.complete: "green", RunState.pruned: "yellow"}
GIB = 2**30
# Trials in the live table, the newest.
SHOWN = 12


class SweepConsole:
    """A live table of the trials on a terminal; anywhere a line for each that ended, with its traceback if any."""

    def __init__(self, record: SweepRecord, total: int | None) -> None:
        self.terminal = Console(highlight=False)
        self.record, self.total = record, total
        self.running: dict[int, Any] = {}
        self.at_a_time = 1
        self.expected: float | None = None
        self.seen: list[Outcome] = []
        self.mine: list[int] = []
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
        self.expected = fmean(cost.seconds for cost in costs)
        measured = all(cost.measured for cost in costs)
        largest = max(costs, key=lambda cost: cost.peak_bytes / cost.available_bytes)
        self.terminal.print(
            f"{trials} trials to run, {at_a_time} at a time: {'about' if measured else 'at least'} "
            f"{format_duration(self.expected * trials / min(at_a_time, trials))}. The largest needs "
            f"{largest.peak_bytes / GIB:.2f} of {largest.available_bytes / GIB:.2f} GiB: {largest.fit.value}.",
            soft_wrap=True,
        )

    def not_planned(self, problem: str) -> None:
        """What the trials will cost could not be worked out."""
        self.terminal.print(f"The trials could not be planned: {problem}", style="yellow", markup=False)

    def began(self, number: int) -> None:
        """A trial has begun."""
        self.mine.append(number)

    def show(self, running: dict[int, Any]) -> None:
        """Show how far the running trials are."""
        self.running = running
        if running and self.terminal.is_terminal and not self.live.is_started:
            self.live.start()

    def ended(self, number: int, outcome: Outcome) -> None:
        """A trial has ended."""
        if number not in self.mine:
            self.mine.append(number)
        self.seen.append(outcome)
        score = "" if outcome.score is None else f" {outcome.metric} {outcome.score:.3f}"
        known = ", as known from before" if outcome.known else f" in {format_duration(outcome.seconds)}"
        if outcome.known and outcome.state not in SUCCESSFUL:
            known += " (sweep.repeat_failures=true tries it again)"
        told = f"trial {number} {self.record.swept(number)}: {outcome.state.value}{score}{known}"
        self.terminal.print(told, markup=False, soft_wrap=True)
        if outcome.reason and outcome.state is not RunState.complete:
            self.terminal.print(outcome.reason.rstrip(), markup=False, soft_wrap=True)

    def gave_up(self, failures: int) -> None:
        """No further trial is started, because too many failed."""
        told = f"{failures} trials failed, more than sweep.max_failures allows: the others are not started."
        self.terminal.print(told, style="red", soft_wrap=True)

    def _table(self) -> Table:
        table = Table(title=self._title(), title_justify="left", expand=True)
        for name in ("trial", "settings", "state", "score", "time", ""):
            table.add_column(name, ratio=2 if name in ("settings", "") else None, overflow="fold")
        best = self._best()
        for number in self.mine[-SHOWN:]:
            trial = self.record.trials[number]
            going = self.running.get(number)
            seconds = time.monotonic() - going.started if going else trial.seconds
            score = "" if trial.score is None else f"{trial.score:.3f}{' best' if number == best else ''}"
            note = going.note if going else trial.reason.rstrip().rpartition("\n")[2][:80]
            state = f"[{STYLES.get(trial.state, 'red')}]{trial.state.value}[/]"
            table.add_row(str(number), self.record.swept(number), state, score, format_duration(seconds), note)
        return table

    def _best(self) -> int | None:
        scored = {number: self.record.trials[number].score for number in self.mine}
        known = {number: score for number, score in scored.items() if score is not None}
        better = min if any(not HIGHER_IS_BETTER.get(outcome.metric, True) for outcome in self.seen) else max
        return better(known, key=lambda number: known[number]) if known else None

    def _title(self) -> str:
        done = sum(self.record.trials[number].state not in UNENDED for number in self.mine)
        failed = sum(outcome.state not in SUCCESSFUL for outcome in self.seen)
        parts = [f"{done} of {self.total} trials" if self.total else f"{done} trials"]
        parts += [f"{failed} failed"] if failed else []
        if self.total and (left := self.total - done):
            mine = [outcome.seconds for outcome in self.seen if not outcome.known]
            each = fmean(mine) if mine else self.expected
            parts += [f"about {format_duration(each * left / self.at_a_time)} left"] if each else []
        return " · ".join(parts)
