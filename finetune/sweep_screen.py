"""What does the user see while a sweep goes on?"""

from types import TracebackType
from typing import Any

from rich.console import Console

from finetune.trials import Outcome, Record, State


class SweepScreen:
    """A line for each trial that begins and ends."""

    def __init__(self, record: Record, total: int | None) -> None:
        self.terminal = Console(highlight=False)
        self.record, self.total = record, total

    def __enter__(self) -> "SweepScreen":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        return None

    def began(self, number: int) -> None:
        """A trial has begun."""

    def show(self, running: dict[int, Any]) -> None:
        """Show how far the running trials are."""

    def ended(self, number: int, outcome: Outcome) -> None:
        """A trial has ended."""
        score = "" if outcome.score is None else f" {outcome.metric} {outcome.score:.3f}"
        settings = " ".join(self.record.trials[number].overrides)
        self.terminal.print(f"trial {number} {settings}: {outcome.state.value}{score}", markup=False)
        if outcome.reason and outcome.state is not State.complete:
            self.terminal.print(outcome.reason, markup=False)
