"""How do many runs share this machine? Each in a process of its own, some at a time; the others outlive it."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from finetune.config.schema import Config
from finetune.errors import UserError, raise_problems
from finetune.machine.allowance import TIGHT, Fit, assess_fit
from finetune.runs.folder import run_folder, run_identity
from finetune.runs.outcome import SUCCESSFUL, Outcome, RunState, conclude_run, settled_outcome
from finetune.runs.sweep_record import SweepRecord
from finetune.sweeps.console import SweepConsole
from finetune.sweeps.fork_client import CostSurvey, DeviceShare, ForkServerClient, TrialCost, TrialJob

GRACE_SECONDS = 10.0  # how long a trial that took too long may take to end, with a checkpoint, once it is told to
STOP_SECONDS = 25.0  # and how long all of them may where the sweep is stopped: Slurm waits 30 s before it kills
TICK_SECONDS = 0.5
KILL_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat")


@dataclass(frozen=True)
class LauncherSettings:
    """What of the machine the trials may use."""

    n_jobs: int | None = None  # at a time; None: one on each device or, without a GPU, on each core
    devices: Sequence[int] | None = None  # CUDA devices, each for one trial at a time, twice for two; None: all, once


def divide_devices(
    settings: LauncherSettings, devices: int, trials: int | None = None, most: int | None = None
) -> list[DeviceShare]:
    """The share of each trial that may run at a time, of so many; at `most`, unless the user set their number."""
    cores = int(given) if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() else len(os.sched_getaffinity(0))
    if settings.n_jobs is not None and settings.n_jobs < 1:
        raise UserError(f"hydra.launcher.n_jobs={settings.n_jobs}: it must be at least 1, or null for the default.")
    if devices:
        chosen = list(range(devices) if settings.devices is None else settings.devices)
        if wrong := [device for device in chosen if device not in range(devices)]:
            raise UserError(f"hydra.launcher.devices={chosen}: there is no device {wrong[0]}; there are {devices}.")
        used: list[int | None] = [chosen[i % len(chosen)] for i in range(settings.n_jobs or len(chosen))]
    else:
        if settings.devices:
            asked = f"hydra.launcher.devices={list(settings.devices)}"
            raise UserError(f"{asked}: there is no GPU. Set hydra.launcher.n_jobs.")
        used = [None] * (settings.n_jobs or max(1, min(cores, trials or cores, most or cores)))
    at_a_time = Counter(used)
    return [DeviceShare(max(1, cores // len(used)), device, at_a_time[device]) for device in used]


def limit_to_memory(costs: dict[str, TrialCost], shares: list[DeviceShare], settings: LauncherSettings) -> int | None:
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
    kills: int  # how many processes the kernel had killed for memory by then
    pid: int | None = None
    note: str = "starting"  # what it is doing
    conclusion: tuple[RunState, str] | None = None  # how it ended, in its own words or as it was ended
    ending_since: float | None = None  # when it was told to end
    is_stopped: bool = False  # with the sweep
    duplicates: list[int] = field(default_factory=list)  # the numbers of trials of the same settings, which end with it

    def ask_to_stop(self) -> None:
        """Have its process end behind a step, with a checkpoint; what it has started is left to it."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End its process and all that this has started."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def ending(self, status: int) -> tuple[RunState, str]:
        """How it ended, from what was done to it, from what it reported, and from how its process ended."""
        if self.conclusion and self.conclusion[0] is not RunState.preempted:
            return self.conclusion
        if self.is_stopped:
            return self.conclusion or (RunState.preempted, "the sweep was stopped; it had not ended its step in time")
        if self.ending_since is not None:
            limit = self.config.sweep.time_limit
            return RunState.timed_out, f"it took longer than sweep.time_limit={limit:g} seconds"
        if self.conclusion:
            return self.conclusion
        if not os.WIFSIGNALED(status):
            return RunState.exited, f"its process ended itself with code {os.waitstatus_to_exitcode(status)}"
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and _kills_for_memory() > self.kills:
            return RunState.out_of_memory, "the system killed it, because memory ran out"
        return RunState.killed, f"signal {number} ({signal.Signals(number).name}) ended it"


@dataclass
class TrialPool:
    """Runs trials until there are none left; `on_end` is told of each that ended, with its number and its outcome."""

    server: ForkServerClient
    compose: Callable[[list[str]], Config]
    record: SweepRecord
    settings: LauncherSettings
    on_end: Callable[[int, Outcome], None]
    total: int | None  # how many trials there are to run, where that is known
    running: dict[int, TrialProcess] = field(default_factory=dict)
    shares: list[DeviceShare] = field(default_factory=list)  # of the machine, once the first trial is to begin
    costs: dict[str, TrialCost] = field(default_factory=dict)
    failures: int = 0
    limit: float = inf  # of failures
    is_stopping: bool = False

    def run(self, trials: Iterable[tuple[int, Sequence[str]]], examples: Sequence[Config]) -> None:
        """Show the costs, estimated from `examples`; run trials, number and overrides, drawn when one can start."""
        numbered = iter(trials)
        with closing(SweepConsole(self.record, self.total)) as self.screen:
            try:
                if self.total != 0:
                    self._survey(examples, self.total or len(examples))
                while self._fill(numbered) or self.running:
                    self._listen()
                    self._end_late()
                if self.failures > self.limit:
                    self.screen.gave_up(self.failures)
            except KeyboardInterrupt:
                self._stop_all()
                raise
            finally:
                if self.running:
                    self.server.close()

    def _fill(self, trials: Iterator[tuple[int, Sequence[str]]]) -> bool:
        """Start trials while there is room; False once there are no more, or more failed than may."""
        while len(self.running) < max(1, len(self.shares)):
            if self.failures > self.limit or (trial := next(trials, None)) is None:
                return False
            self._begin(*trial)
        return True

    def _begin(self, number: int, overrides: Sequence[str]) -> None:
        folder = None
        try:
            config = self.compose(list(overrides))
            config.sweep.name = self.record.folder.name
            folder = run_folder(config)
            settled = settled_outcome(config, folder)
        except UserError as error:
            self.record.begin(number, overrides, folder, RunState.waiting)
            self._end([number], Outcome(RunState.refused, str(error)))
            return
        self.limit = inf if config.sweep.max_failures is None else config.sweep.max_failures
        same = next((trial for trial in self.running.values() if trial.folder == folder), None)
        self.record.begin(number, overrides, folder, RunState.waiting if settled or same else RunState.running)
        if settled:
            self._end([number], settled)
        elif same:
            same.duplicates.append(number)
        else:
            self._start(number, config, folder)

    def _start(self, number: int, config: Config, folder: Path) -> None:
        """Have a process forked for a trial, on a share that is free; one that no plan says to fit looks for itself."""
        free = self._divide().copy()
        for trial in self.running.values():
            free.remove(trial.share)
        self.running[number] = TrialProcess(number, config, folder, free[0], time.monotonic(), _kills_for_memory())
        self.screen.began(number)
        costs = self.costs.values()
        known_to_fit = bool(costs) and all(cost.peak_bytes < cost.available_bytes / 2 for cost in costs)
        if cost := self.costs.get(run_identity(config)):
            known_to_fit = cost.fit is not Fit.will_not_fit
        base_fits = known_to_fit or any(cost.fit is not Fit.will_not_fit for cost in costs)
        self.server.send(TrialJob(number, config, free[0], known_to_fit, base_fits))

    def _divide(self) -> list[DeviceShare]:
        self.shares = self.shares or divide_devices(self.settings, self.server.start(), self.total)
        return self.shares

    def _survey(self, examples: Sequence[Config], total: int) -> None:
        """Ask what the trials will cost, and show it. Raises UserError for wrong rows or tokens of any."""
        new = [config for config in examples if not settled_outcome(config, run_folder(config))]
        if not new:
            return
        largest = max(self._divide(), key=lambda share: share.runs_at_a_time)
        with self.screen.terminal.status("planning the trials"):
            self.server.send(CostSurvey(new, total, largest))
            while (news := self.server.receive()) and news.status is None:
                raise_problems(list(dict.fromkeys(cost for cost in news.costs if isinstance(cost, str))))
                pairs = zip(map(run_identity, new), news.costs, strict=False)
                self.costs |= {key: cost for key, cost in pairs if isinstance(cost, TrialCost)}
                if news.conclusion:
                    self.screen.not_planned(news.conclusion[1])
        if most := limit_to_memory(self.costs, self.shares, self.settings):
            before = len(self.shares)
            self.shares = divide_devices(self.settings, self.server.devices, self.total, most)
            self.costs = {key: share_memory(cost, before, len(self.shares)) for key, cost in self.costs.items()}
        self.screen.show_costs(list(self.costs.values()), total - len(examples) + len(new), len(self.shares))

    def _listen(self) -> None:
        """Wait for news of the trials, but not long."""
        self.screen.show({number: (trial.started, trial.note) for number, trial in self.running.items()})
        if not self.running or not (news := self.server.receive(TICK_SECONDS)):
            return
        trial = self.running[news.number]
        trial.pid, trial.note = news.pid or trial.pid, news.note or trial.note
        trial.conclusion = news.conclusion or trial.conclusion
        if news.status is not None:
            del self.running[news.number]
            seconds = time.monotonic() - trial.started
            outcome = conclude_run(trial.config, trial.folder, *trial.ending(news.status), seconds)
            self._end([trial.number, *trial.duplicates], outcome)

    def _end(self, numbers: Sequence[int], outcome: Outcome) -> None:
        for number in numbers:
            self.record.end(number, outcome)
            self.failures += outcome.state not in (*SUCCESSFUL, RunState.busy) and not outcome.known
            self.screen.ended(number, outcome)
            if not self.is_stopping:  # else a search goes on with it under the same number
                self.on_end(number, outcome)

    def _end_late(self) -> None:
        """Tell trials that take too long to end, and end those that do not."""
        now = time.monotonic()
        for trial in self.running.values():
            limit = trial.config.sweep.time_limit
            if trial.ending_since is None and limit and now > trial.started + limit:
                trial.ending_since = now
                trial.ask_to_stop()
            elif trial.ending_since is not None and now > trial.ending_since + GRACE_SECONDS:
                trial.kill()

    def _stop_all(self) -> None:
        """End every trial with a checkpoint, as after a signal to the sweep."""
        self.is_stopping = True
        given_up = time.monotonic() + STOP_SECONDS
        while any(trial.pid for trial in self.running.values()) and (now := time.monotonic()) < given_up:
            for trial in self.running.values():
                if trial.pid and not trial.is_stopped:
                    trial.ending_since, trial.is_stopped = now, True
                    trial.ask_to_stop()
            self._listen()
        for trial in self.running.values():  # what does not end, and what has not begun
            trial.kill()
            reason = "the sweep was stopped; it had not ended its step in time"
            outcome = Outcome(RunState.preempted, reason, trial.folder, time.monotonic() - trial.started)
            for number in (trial.number, *trial.duplicates):
                self.record.end(number, outcome)


def _kills_for_memory() -> int:
    """How many processes the kernel has killed because memory ran out."""
    counted = 0
    for file in KILL_COUNTERS:
        with suppress(OSError):
            lines = map(str.split, Path(file).read_text().splitlines())
            counted += sum(int(value) for name, value, *_ in lines if name == "oom_kill")
    return counted
