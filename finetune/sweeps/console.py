"""What does the user see while a sweep goes on?"""

import time
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.machine.allowance import GIB
from finetune.reporting.tables import format_duration
from finetune.runs.outcome import SUCCESSFUL, UNENDED, Outcome, RunState
from finetune.runs.sweep_record import SweepRecord
from finetune.sweeps.fork_client import TrialCost

STYLES = {RunState.running: "cyan", RunState.complete: "green", RunState.pruned: "yellow"}
SHOWN = 12  # trials in the live table, the newest
NOTE_LENGTH = 80  # characters of a reason in the live table


class SweepConsole:
    """A live table of the trials on a terminal; anywhere a line for each that ended, with its traceback if any."""

    def __init__(self, record: SweepRecord, total: int | None) -> None:
        self.terminal = Console(highlight=False)
        self.record, self.total = record, total
        self.running: Mapping[int, tuple[float, str]] = {}  # since when, by the monotonic clock, and what it does
        self.at_a_time = 1
        self.expected_seconds: float | None = None
        self.outcomes: list[Outcome] = []  # of what ended here
        self.numbers: list[int] = []  # of all trials that began here
        self.live = Live(get_renderable=self._table, console=self.terminal, refresh_per_second=2, transient=True)

    def close(self) -> None:
        """Take the live table away."""
        self.live.stop()

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
        self.terminal.print(f"The trials could not be planned: {problem}", style="yellow", markup=False)

    def began(self, number: int) -> None:
        self.numbers.append(number)

    def show(self, running: Mapping[int, tuple[float, str]]) -> None:
        """Show how far the running trials are."""
        self.running = running
        if running and self.terminal.is_terminal and not self.live.is_started:
            self.live.start()

    def ended(self, number: int, outcome: Outcome) -> None:
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
        trials = [self.record.trials[number] for number in self.numbers]
        scores = {trial.number: trial.score for trial in trials if trial.score is not None}
        better = min if any(not HIGHER_IS_BETTER.get(outcome.metric, True) for outcome in self.outcomes) else max
        best = better(scores, key=scores.__getitem__, default=None)
        table = Table(title=self._title(), title_justify="left", expand=True)
        for name in ("trial", "settings", "state", "score", "time", ""):
            table.add_column(name, ratio=2 if name in ("settings", "") else None, overflow="fold")
        for trial in trials[-SHOWN:]:
            number, last_line = trial.number, trial.reason.rstrip().rpartition("\n")[2]
            started, note = self.running.get(number, (None, last_line[:NOTE_LENGTH]))
            seconds = trial.seconds if started is None else time.monotonic() - started
            score = "" if trial.score is None else f"{trial.score:.3f}{' best' if number == best else ''}"
            state = Text(trial.state.value, style=STYLES.get(trial.state, "red"))
            settings = Text(self.record.swept(number))
            table.add_row(str(number), settings, state, score, format_duration(seconds), Text(note))
        return table

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
