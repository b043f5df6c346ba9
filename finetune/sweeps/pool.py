"""How do many runs share this machine? Each in a process of its own, some at a time; the others outlive it."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.config.schema import Config
from finetune.errors import UserError, raise_problems
from finetune.machine.allowance import TIGHT, Fit, assess_fit
from finetune.runs.folder import run_folder, run_identity
from finetune.runs.outcome import SUCCESSFUL, Outcome, RunState, conclude_run, settled_outcome
from finetune.runs.sweep_record import SweepRecord
from finetune.sweeps import jobs
from finetune.sweeps.console import SweepConsole
from finetune.sweeps.fork_client import ForkServerClient
from finetune.sweeps.jobs import DeviceShare, TrialCost

# How long a process may take to end once it is told to.
GRACE_SECONDS = 10.0
TICK_SECONDS = 0.5
# Where the kernel counts the processes that it has killed because memory ran out.
KILL_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat")


@dataclass(frozen=True)
class LauncherSettings:
    """What of the machine the trials may use."""

    # Trials at a time. None: one on each device; without a GPU, one on each core, as far as there are trials.
    n_jobs: int | None = None
    # CUDA devices, each for one trial at a time; one that is named twice takes two. None: all of them, once.
    devices: Sequence[int] | None = None


def divide_devices(
    settings: LauncherSettings, devices: int, trials: int | None = None, most: int | None = None
) -> list[DeviceShare]:
    """The share of each trial that may run at a time.

    `trials` are to run in all; `most` have room in memory, as far as that is known, which a given number overrules.
    """
    cores = _cores()
    if settings.n_jobs is not None and settings.n_jobs < 1:
        raise UserError(f"hydra.launcher.n_jobs={settings.n_jobs}: it must be at least 1, or null for the default.")
    if devices:
        chosen = list(range(devices) if settings.devices is None else settings.devices)
        if wrong := [device for device in chosen if device not in range(devices)]:
            raise UserError(f"hydra.launcher.devices={chosen}: there is no device {wrong[0]}; there are {devices}.")
        used: list[int | None] = [chosen[i % len(chosen)] for i in range(settings.n_jobs or len(chosen))]
    else:
        if settings.devices:
            raise UserError(
                f"hydra.launcher.devices={list(settings.devices)}: there is no GPU. Set hydra.launcher.n_jobs."
            )
        used = [None] * (settings.n_jobs or max(1, min(cores, trials or cores, most or cores)))
    at_a_time = Counter(used)
    return [DeviceShare(max(1, cores // len(used)), device, at_a_time[device]) for device in used]


def _cores() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else len(os.sched_getaffinity(0))


def limit_to_memory(
    costs: dict[str, TrialCost], shares: Sequence[DeviceShare], settings: LauncherSettings
) -> int | None:
    """On a CPU, how many trials have room in memory at a time; None where all do, or the user chose their number."""
    if not costs or shares[0].device is not None or settings.n_jobs is not None:
        return None
    largest = max(costs.values(), key=lambda cost: cost.peak_bytes / cost.available_bytes)
    most = max(1, int(TIGHT * largest.available_bytes * len(shares) / largest.peak_bytes))
    return most if most < len(shares) else None


def share_memory(cost: TrialCost, before: int, now: int) -> TrialCost:
    """A cost where so many trials share the memory now, and not as many as `before`."""
    available = cost.available_bytes * before // now
    return replace(cost, available_bytes=available, fit=assess_fit(cost.peak_bytes, available))


@dataclass
class TrialProcess:
    """A trial that has a process."""

    number: int
    config: Config
    folder: Path
    share: DeviceShare
    started: float
    # How many processes the kernel had killed for memory by then.
    kills: int
    pid: int | None = None
    # What it is doing.
    note: str = "starting"
    # How it ended, in its own words or as it was ended.
    conclusion: tuple[RunState, str] | None = None
    # When it was told to end.
    ending_since: float | None = None
    # The numbers of trials of the same settings, which end as it does.
    duplicates: list[int] = field(default_factory=list)

    @property
    def numbers(self) -> list[int]:
        """Its own number, and those of its duplicates."""
        return [self.number, *self.duplicates]

    def signal(self, number: int) -> None:
        """Send a signal to its process and all that this has started."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def ending(self, status: int) -> tuple[RunState, str]:
        """How it ended, from what was done to it, from what it reported, and from how its process ended."""
        if self.conclusion:
            return self.conclusion
        if self.ending_since is not None:
            limit = self.config.sweep.time_limit
            return RunState.timed_out, f"it took longer than sweep.time_limit={limit:g} seconds"
        if not os.WIFSIGNALED(status):
            return RunState.exited, f"its process ended itself with code {os.waitstatus_to_exitcode(status)}"
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and _kills_for_memory() > self.kills:
            return RunState.out_of_memory, "the system killed it, because memory ran out"
        return RunState.killed, f"signal {number} ({signal.Signals(number).name}) ended it"


class TrialPool:
    """Runs trials until there are none left; `on_end` is told of each that ended, with its number and its outcome."""

    def __init__(
        self,
        server: ForkServerClient,
        compose: Callable[[list[str]], Config],
        record: SweepRecord,
        settings: LauncherSettings,
        on_end: Callable[[int, Outcome], None] = lambda number, outcome: None,
    ) -> None:
        self.server, self.compose, self.record, self.settings, self.on_end = server, compose, record, settings, on_end
        self.running: dict[int, TrialProcess] = {}
        # One for each trial that may run at a time; empty until the first trial is to begin.
        self.shares: list[DeviceShare] = []
        self.failures = 0
        self.limit: int | None = None
        self.costs: dict[str, TrialCost] = {}
        # How many trials there are to run, where that is known.
        self.total: int | None = None

    def run(
        self, trials: Iterable[tuple[int, Sequence[str]]], total: int | None = None, examples: Sequence[Config] = ()
    ) -> None:
        """Run each trial, a number and overrides each, which are drawn only when one can start.

        From `examples` the cost of all of them is estimated and shown before the first.
        """
        numbered, self.total = iter(trials), total
        with SweepConsole(self.record, total) as self.screen:
            try:
                if total != 0:
                    self._survey(examples, total or len(examples))
                while self._fill(numbered) or self.running:
                    self._listen()
                    self._end_late()
                if self.given_up:
                    self.screen.gave_up(self.failures)
            except KeyboardInterrupt:
                self._end_all()
                raise
            finally:
                if self.running:
                    self.server.close()

    def _fill(self, trials: Iterator[tuple[int, Sequence[str]]]) -> bool:
        """Start trials while there is room; False once there are no more."""
        while len(self.running) < max(1, len(self.shares)):
            trial = None if self.given_up else next(trials, None)
            if trial is None:
                return False
            self._begin(*trial)
        return True

    @property
    def given_up(self) -> bool:
        """Whether more trials failed than may."""
        return self.limit is not None and self.failures > self.limit

    def _begin(self, number: int, overrides: Sequence[str]) -> None:
        folder = None
        try:
            config = self.compose(list(overrides))
            config.sweep.name = self.record.folder.name
            folder = run_folder(config)
            settled = settled_outcome(config, folder)
        except UserError as error:
            self.record.begin(number, overrides, folder, RunState.waiting)
            self._end(number, Outcome(RunState.refused, str(error)))
            return
        self.limit = config.sweep.max_failures
        same = next((trial for trial in self.running.values() if trial.folder == folder), None)
        self.record.begin(number, overrides, folder, RunState.waiting if settled or same else RunState.running)
        if settled:
            self._end(number, settled)
        elif same:
            same.duplicates.append(number)
        else:
            self._start(number, config, folder)

    def _start(self, number: int, config: Config, folder: Path) -> None:
        """Have a process forked for a trial, on a share that is free."""
        free = list(self._divide())
        for trial in self.running.values():
            free.remove(trial.share)
        self.running[number] = TrialProcess(number, config, folder, free[0], time.monotonic(), _kills_for_memory())
        self.screen.began(number)
        fits = self._is_known_to_fit(config)
        base_fits = fits or any(cost.fit is not Fit.will_not_fit for cost in self.costs.values())
        self.server.send(jobs.TrialJob(number, config, free[0], fits, base_fits))

    def _divide(self) -> list[DeviceShare]:
        """The shares of the machine, divided once it is known what there is."""
        self.shares = self.shares or divide_devices(self.settings, self.server.start(), self.total)
        return self.shares

    def _survey(self, examples: Sequence[Config], total: int) -> None:
        """Ask what the trials will cost, and show it.

        Raises UserError, before the first trial, for what is wrong with the rows or the tokens of any.
        """
        new = [config for config in examples if not settled_outcome(config, run_folder(config))]
        if not new:
            return
        largest = max(self._divide(), key=lambda share: share.runs_at_a_time)
        with self.screen.waiting("planning the trials"):
            self.server.send(jobs.CostSurvey(new, total, largest))
            while not isinstance(news := self.server.receive(), jobs.Ended):
                if isinstance(news, jobs.Surveyed):
                    raise_problems(list(dict.fromkeys(cost for cost in news.costs if isinstance(cost, str))))
                    pairs = zip(map(run_identity, new), news.costs, strict=False)
                    self.costs = {key: cost for key, cost in pairs if isinstance(cost, TrialCost)}
                    if news.problem:
                        self.screen.not_planned(news.problem)
        if most := limit_to_memory(self.costs, self.shares, self.settings):
            before = len(self.shares)
            self.shares = divide_devices(self.settings, self.server.devices, self.total, most)
            self.costs = {key: share_memory(cost, before, len(self.shares)) for key, cost in self.costs.items()}
        self.screen.show_costs(list(self.costs.values()), total - len(examples) + len(new), len(self.shares))

    def _is_known_to_fit(self, config: Config) -> bool:
        """Whether the plan said so, of this trial or of all with room to spare; else the trial looks for itself."""
        if cost := self.costs.get(run_identity(config)):
            return cost.fit is not Fit.will_not_fit
        return bool(self.costs) and all(cost.peak_bytes < cost.available_bytes / 2 for cost in self.costs.values())

    def _listen(self) -> None:
        """Wait for news of the trials, but not long."""
        self.screen.show(self.running)
        if not self.running:
            return
        match self.server.receive(TICK_SECONDS):
            case jobs.Began(number, pid):
                self.running[number].pid = pid
            case jobs.Progressed(number, note):
                self.running[number].note = note
            case jobs.Concluded(number, state, reason):
                self.running[number].conclusion = state, reason
            case jobs.Ended(number, status):
                self._finish(self.running.pop(number), status)

    def _finish(self, trial: TrialProcess, status: int) -> None:
        state, reason = trial.ending(status)
        outcome = conclude_run(trial.config, trial.folder, state, reason, time.monotonic() - trial.started)
        for number in trial.numbers:
            self._end(number, outcome)

    def _end(self, number: int, outcome: Outcome) -> None:
        self.record.end(number, outcome)
        self.failures += outcome.state not in (*SUCCESSFUL, RunState.busy) and not outcome.known
        self.screen.ended(number, outcome)
        self.on_end(number, outcome)

    def _end_late(self) -> None:
        """Tell trials that take too long to end, and end those that do not."""
        now = time.monotonic()
        for trial in self.running.values():
            limit = trial.config.sweep.time_limit
            if trial.ending_since is None and limit and now > trial.started + limit:
                trial.ending_since = now
                trial.signal(signal.SIGTERM)
            elif trial.ending_since is not None and now > trial.ending_since + GRACE_SECONDS:
                trial.signal(signal.SIGKILL)

    def _end_all(self) -> None:
        """End every trial, as after Ctrl-C."""
        stopped = RunState.killed, "the sweep was stopped"
        given_up = time.monotonic() + GRACE_SECONDS
        while any(trial.pid for trial in self.running.values()) and (now := time.monotonic()) < given_up:
            for trial in self.running.values():
                if trial.pid and trial.ending_since is None:
                    trial.ending_since, trial.conclusion = now, stopped
                    trial.signal(signal.SIGTERM)
            self._listen()
        for trial in self.running.values():  # what does not end, and what has not begun
            trial.signal(signal.SIGKILL)
            outcome = Outcome(*stopped, trial.folder, time.monotonic() - trial.started)
            for number in trial.numbers:
                self.record.end(number, outcome)


def _kills_for_memory() -> int:
    """How many processes the kernel has killed because memory ran out."""
    counted = 0
    for file in KILL_COUNTERS:
        with suppress(OSError):
            lines = map(str.split, Path(file).read_text().splitlines())
            counted += sum(int(value) for name, value, *_ in lines if name == "oom_kill")
    return counted
