"""What becomes of the trials of a sweep that another launcher than ours runs, such as jobs of Slurm?"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from finetune.config.schema import Config, Sweep
from finetune.errors import UserError
from finetune.runs.folder import run_folder
from finetune.runs.outcome import UNENDED, Outcome, RunState, conclude_run, run_to_outcome, settled_outcome
from finetune.runs.sweep_record import SweepRecord, TrialRecord, ended, open_sweep_record, read_trials
from finetune.sweeps.console import SweepConsole

POLL_SECONDS = 2.0
OUR_LAUNCHERS = {
    "time_limit": "Slurm ends jobs that take too long by hydra.launcher.timeout_min.",
    "max_failures": "Leave it out: all trials are tried.",
}


@dataclass
class SubmittedSweep:
    """Trials that run elsewhere; each writes its own line of sweep.json."""

    record: SweepRecord
    configs: list[Config]
    # The numbers of those whose ends the user has seen.
    shown: set[int] = field(default_factory=set)

    def show_ends(self, screen: SweepConsole) -> None:
        """Show what has ended since."""
        self.record.trials = read_trials(self.record.file)
        for number, config in enumerate(self.configs):
            line = self.record.trials[number]
            if line.state in UNENDED or number in self.shown:
                continue
            self.shown.add(number)
            outcome = Outcome(line.state, line.reason, Path(line.folder), line.seconds)
            known = settled_outcome(config, Path(line.folder))
            screen.ended(number, replace(outcome, score=known.score, metric=known.metric) if known else outcome)


def announce_sweep(command: Sequence[str], cells: Sequence[tuple[list[str], Config]], launcher: str) -> SubmittedSweep:
    """Write the trials of a grid, each its overrides and its configuration, to sweep.json before they are jobs."""
    first = cells[0][1]
    record = open_sweep_record(first.output_dir, first.sweep.name, command)
    record.common = frozenset.intersection(*(frozenset(given) for given, _ in cells)) if cells[1:] else frozenset()
    folders = [run_folder(config) for _, config in cells]
    record.write(*(TrialRecord(number, cells[number][0], str(folder)) for number, folder in enumerate(folders)))
    print(f"{len(cells)} trials for hydra/launcher={launcher}; {record.file} tells what each is doing.", flush=True)
    return SubmittedSweep(record, [config for _, config in cells])


def refuse_limits(sweep: Sweep) -> None:
    """Raise UserError for what only our own launcher heeds."""
    for name, instead in OUR_LAUNCHERS.items():
        if (value := getattr(sweep, name)) is not None:
            raise UserError(f"sweep.{name}={value}: only hydra/launcher=process heeds it. {instead}")


@contextmanager
def follow_sweep(sweep: SubmittedSweep | None) -> Iterator[None]:
    """Show how the trials end, for the length of the block; the exit code follows from what they have come to by then.

    Without a sweep, do nothing.
    """
    if sweep is None:
        yield
        return
    over = Event()
    screen = SweepConsole(sweep.record, len(sweep.configs))

    def poll() -> None:
        while not over.wait(POLL_SECONDS):
            sweep.show_ends(screen)

    thread = Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        print("The jobs that were begun go on without this command.")
        raise
    finally:
        over.set()
        thread.join()
        sweep.show_ends(screen)
        ended.update({number: trial.state for number, trial in sweep.record.trials.items()})


def run_in_turn(
    launch: Callable[[list[list[str]], int], Sequence[Any]],
    jobs: Iterable[tuple[int, list[str]]],
    on_end: Callable[[int, Outcome], None],
    compose: Callable[[list[str]], Config],
    record: SweepRecord,
) -> None:
    """Have Hydra's launcher run trials, each a number and its overrides, one after the other as they are drawn."""
    screen = SweepConsole(record, None)
    for number, overrides in jobs:
        refuse_limits(compose(overrides).sweep)
        try:
            [done] = launch([overrides], number)
            outcome = done.return_value
        except Exception as error:
            line = read_trials(record.file).get(number)
            if line is None or line.state is not RunState.running:
                raise  # it was not begun
            outcome = Outcome(RunState.killed, str(error), run_folder(compose(overrides)))
            record.give_up(number, outcome.reason)
        record.trials = read_trials(record.file)
        ended[number] = outcome.state
        screen.ended(number, outcome)
        on_end(number, outcome)


def run_submitted_trial(go: Callable[[Config], None], config: Config, number: int, overrides: Sequence[str]) -> Outcome:
    """Run one trial in this process, and write to sweep.json what becomes of it; raise only what ends the process."""
    record = open_sweep_record(config.output_dir, config.sweep.name, [])
    if record.file.exists():
        record.command = json.loads(record.file.read_text(encoding="utf-8"))["command"]
    folder = run_folder(config)
    record.begin(number, overrides, folder, RunState.running)
    started = time.monotonic()
    outcome = settled_outcome(config, folder)
    if outcome is None:
        state, reason = run_to_outcome(go, config)
        outcome = conclude_run(config, folder, state, reason, time.monotonic() - started)
    record.end(number, outcome)
    return outcome
