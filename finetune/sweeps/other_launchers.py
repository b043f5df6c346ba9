"""What becomes of the trials of a sweep that another launcher than ours runs, such as jobs of Slurm?"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

from finetune.config.schema import Config, Sweep
from finetune.errors import UserError
from finetune.runs.folder import run_folder
from finetune.runs.outcome import UNENDED, Outcome, Preempted, RunState, conclude_run, run_to_outcome, settled_outcome
from finetune.runs.sweep_record import SweepRecord, TrialRecord, open_sweep_record, read_trials
from finetune.sweeps.console import SweepConsole

POLL_SECONDS = 2.0
# What limits the trials of our own launcher, and what to write instead.
OUR_LIMITS = {
    "time_limit": "Slurm ends jobs that take too long by hydra.launcher.timeout_min.",
    "max_failures": "Leave it out: all trials are tried.",
}


def refuse_limits(sweep: Sweep) -> None:
    """Raise UserError for what only our own launcher heeds."""
    for name, instead in OUR_LIMITS.items():
        if (value := getattr(sweep, name)) is not None:
            raise UserError(f"sweep.{name}={value}: only hydra/launcher=process heeds it. {instead}")


def announce_sweep(record: SweepRecord, overrides: list[list[str]], configs: list[Config], launcher: str) -> None:
    """Write the trials of a grid, each its overrides and its configuration, to sweep.json before they are jobs."""
    record.common = frozenset.intersection(*map(frozenset, overrides)) if overrides[1:] else frozenset()
    trials = zip(overrides, map(run_folder, configs), strict=True)
    record.write(*(TrialRecord(number, given, str(folder)) for number, (given, folder) in enumerate(trials)))
    print(f"{len(configs)} trials for hydra/launcher={launcher}; {record.file} tells what each is doing.", flush=True)


@contextmanager
def follow_sweep(record: SweepRecord, configs: Sequence[Config]) -> Iterator[None]:
    """Show, for the length of the block, how trials that run elsewhere end; each writes its own line of sweep.json."""
    console, over, shown = SweepConsole(record, len(configs)), Event(), set[int]()

    def show_ends() -> None:
        record.trials = read_trials(record.file)
        for number, config in enumerate(configs):
            trial = record.trials[number]
            if trial.state not in UNENDED and number not in shown:
                shown.add(number)
                folder = Path(trial.folder)
                outcome = Outcome(trial.state, trial.reason, folder, trial.seconds)
                if settled := settled_outcome(config, folder):
                    outcome = replace(outcome, score=settled.score, metric=settled.metric)
                console.ended(number, outcome)

    def poll() -> None:
        while not over.wait(POLL_SECONDS):
            show_ends()

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
        show_ends()


def run_submitted_trial(run: Callable[[Config], object], config: Config, number: int, overrides: list[str]) -> Outcome:
    """Run one trial in this process, and write to sweep.json what becomes of it; raise only what ends the process."""
    record = open_sweep_record(config.output_dir, config.sweep.name, [])
    if record.file.exists():
        record.command = json.loads(record.file.read_text(encoding="utf-8"))["command"]
    folder = run_folder(config)
    record.begin(number, overrides, folder, RunState.running)
    started = time.monotonic()
    if (outcome := settled_outcome(config, folder)) is None:
        try:
            state, reason = run_to_outcome(run, config)
        except Preempted as stop:
            record.end(number, Outcome(RunState.preempted, f"stopped by {stop}", folder, time.monotonic() - started))
            raise
        outcome = conclude_run(config, folder, state, reason, time.monotonic() - started)
    record.end(number, outcome)
    return outcome
