"""How do many runs share this machine? Each in a process of its own, some at a time; the others outlive it."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.config.schema import Config
from finetune.errors import UserError, raise_problems
from finetune.machine.allowance import TIGHT, Fit, assess_fit
from finetune.runs.folder import run_folder, run_identity
from finetune.runs.outcome import SUCCESSFUL, Outcome, RunState, conclude_run, settled_outcome
from finetune.runs.sweep_record import SweepRecord, ended
from finetune.sweeps.console import SweepConsole
from finetune.sweeps.fork_client import ForkServerClient
from finetune.sweeps.jobs import CostSurvey, TrialCost, TrialJob


@dataclass(frozen=True)
class LauncherSettings:
    """What of the machine the trials may use."""

    # Trials at a time. None: one on each device; without a GPU, one on each core, as far as there are trials.
    n_jobs: int | None = None
    # CUDA devices, each for one trial at a time; one that is named twice takes two. None: all of them, once.
    devices: Sequence[int] | None = None


def divide_devices(
    share: LauncherSettings, devices: int, trials: int | None = None, most: int | None = None
) -> tuple[list[int | None], int]:
    """The device of each of so many trials that may run at a time, and the threads that each of them may use.

    `trials` are to run in all; `most` have room in memory, as far as that is known, which a given number overrules.
    """
    cores = _cores()
    if share.n_jobs is not None and share.n_jobs < 1:
        raise UserError(f"hydra.launcher.n_jobs={share.n_jobs}: it must be at least 1, or null for the default.")
    if devices:
        chosen = list(range(devices) if share.devices is None else share.devices)
        if wrong := [device for device in chosen if device not in range(devices)]:
            raise UserError(f"hydra.launcher.devices={chosen}: there is no device {wrong[0]}; there are {devices}.")
        room: list[int | None] = [chosen[i % len(chosen)] for i in range(share.n_jobs or len(chosen))]
    else:
        if share.devices:
            raise UserError(
                f"hydra.launcher.devices={list(share.devices)}: there is no GPU. Set hydra.launcher.n_jobs."
            )
        room = [None] * (share.n_jobs or max(1, min(cores, trials or cores, most or cores)))
    return room, max(1, cores // len(room))


def _cores() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else len(os.sched_getaffinity(0))


# How long a process may take to end once it is told to.
GRACE_SECONDS = 10.0
TICK_SECONDS = 0.5
# A message has to hold their settings.
SURVEYED_AT_A_TIME = 20


@dataclass
class Running:
    """A trial that has a process."""

    number: int
    config: Config
    folder: Path
    device: int | None
    started: float
    kills: int
    pid: int | None = None
    # What it is doing.
    note: str = "starting"
    # What the process said about its end.
    said: tuple[RunState, str] | None = None
    told_to_end: float | None = None
    # Trials of the same settings, which end as it does.
    twins: list[int] = field(default_factory=list)


class TrialPool:
    """Runs trials until there are none left; `on_end` is told of each that ended, with its number and its outcome."""

    def __init__(
        self,
        server: ForkServerClient,
        compose: Callable[[list[str]], Config],
        record: SweepRecord,
        share: LauncherSettings,
        on_end: Callable[[int, Outcome], None] = lambda number, outcome: None,
    ) -> None:
        self.server, self.compose, self.record, self.share, self.on_end = server, compose, record, share, on_end
        self.running: dict[int, Running] = {}
        self.slots: list[int | None] = [None]
        self.threads = 1
        self.failures = 0
        self.limit: int | None = None
        self.costs: dict[str, TrialCost] = {}
        # How many trials there are to run, and how many have room in memory at a time, where that is known.
        self.total: int | None = None
        self.most: int | None = None

    def run(
        self, jobs: Iterable[tuple[int, Sequence[str]]], total: int | None = None, examples: Sequence[Config] = ()
    ) -> None:
        """Run each of `jobs`, a number and overrides each, which are drawn only when a trial can start.

        By `examples` the cost of all of them is told before the first.
        """
        numbered, self.total = iter(jobs), total
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

    def _fill(self, jobs: Iterator[tuple[int, Sequence[str]]]) -> bool:
        """Start trials while there is room; False once there are no more."""
        while len(self.running) < len(self.slots):
            job = None if self.given_up else next(jobs, None)
            if job is None:
                return False
            self._begin(*job)
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
            known = settled_outcome(config, folder)
        except UserError as error:
            self.record.begin(number, overrides, folder, RunState.waiting)
            self._end(number, Outcome(RunState.refused, str(error)))
            return
        self.limit = config.sweep.max_failures
        twin = next((other for other in self.running.values() if other.folder == folder), None)
        self.record.begin(number, overrides, folder, RunState.waiting if known or twin else RunState.running)
        if known:
            self._end(number, known)
            return
        if twin:
            twin.twins.append(number)
            return
        self._divide()
        free = list(self.slots)
        for other in self.running.values():
            free.remove(other.device)
        self.running[number] = Running(number, config, folder, free[0], time.monotonic(), _kills_for_memory())
        self.screen.began(number)
        share, fits = self.slots.count(free[0]), self._known_to_fit(config)
        base_fits = fits or any(cost.fit is not Fit.will_not_fit for cost in self.costs.values())
        self.server.send(TrialJob(number, config, self.threads, free[0], share, fits, base_fits))

    def _survey(self, examples: Sequence[Config], total: int) -> None:
        """Ask what the trials will cost, and show it.

        Raises UserError, before the first trial, for what is wrong with the rows or the tokens of any.
        """
        new = [config for config in examples if not settled_outcome(config, run_folder(config))]
        if not new:
            return
        self._divide()
        with self.screen.waiting("planning the trials"):
            for first in range(0, len(new), SURVEYED_AT_A_TIME):
                configs = new[first : first + SURVEYED_AT_A_TIME]
                share = max(map(self.slots.count, self.slots))
                self.server.send(CostSurvey(configs, total, self.threads, self.slots[0], share))
                while "exit" not in (news := self.server.receive()):
                    found = list(zip(configs, news.get("costs", []), strict=False))
                    self.costs |= {run_identity(one): cost for one, cost in found if isinstance(cost, TrialCost)}
                    raise_problems(list(dict.fromkeys(wrong for _, wrong in found if isinstance(wrong, str))))
                    if "problem" in news:
                        self.screen.not_planned(news["problem"])
        self._leave_room()
        self.screen.show_costs(list(self.costs.values()), total - len(examples) + len(new), len(self.slots))

    def _leave_room(self) -> None:
        """On a CPU, run fewer trials at a time than there are cores where memory has no room for as many."""
        if not self.costs or self.slots[0] is not None or self.share.n_jobs is not None:
            return
        largest = max(self.costs.values(), key=lambda cost: cost.peak_bytes / cost.available_bytes)
        together = largest.available_bytes * len(self.slots)
        self.most = max(1, int(TIGHT * together / largest.peak_bytes))
        if self.most < len(self.slots):
            self._divide()
            room = together // len(self.slots)
            self.costs = {
                key: replace(cost, available_bytes=room, fit=assess_fit(cost.peak_bytes, room))
                for key, cost in self.costs.items()
            }

    def _known_to_fit(self, config: Config) -> bool:
        """Whether the plan said so, of this trial or of all with room to spare; else the trial looks for itself."""
        cost = self.costs.get(run_identity(config))
        roomy = bool(self.costs) and all(one.peak_bytes < one.available_bytes / 2 for one in self.costs.values())
        return roomy or (cost is not None and cost.fit is not Fit.will_not_fit)

    def _divide(self) -> None:
        """Divide the machine among the trials."""
        self.slots, self.threads = divide_devices(self.share, self.server.start(), self.total, self.most)

    def _listen(self) -> None:
        """Wait for news of the trials, but not long."""
        self.screen.show(self.running)
        if not self.running:
            return
        news = self.server.receive(TICK_SECONDS)
        if not news:
            return
        trial = self.running[news["number"]]
        if "pid" in news:
            trial.pid = news["pid"]
        elif "note" in news:
            trial.note = news["note"]
        elif "state" in news:
            trial.said = RunState(news["state"]), news["reason"]
        else:
            del self.running[trial.number]
            self._finish(trial, news["exit"])

    def _finish(self, trial: Running, status: int) -> None:
        state, reason = _ending(trial, status)
        outcome = conclude_run(trial.config, trial.folder, state, reason, time.monotonic() - trial.started)
        for number in (trial.number, *trial.twins):
            self._end(number, outcome)

    def _end(self, number: int, outcome: Outcome) -> None:
        self.record.end(number, outcome)
        ended[number] = outcome.state
        self.failures += outcome.state not in (*SUCCESSFUL, RunState.busy) and not outcome.known
        self.screen.ended(number, outcome)
        self.on_end(number, outcome)

    def _end_late(self) -> None:
        """Tell trials that hang to end, and end those that do not."""
        now = time.monotonic()
        for trial in self.running.values():
            limit = trial.config.sweep.time_limit
            if trial.told_to_end is None and limit and now > trial.started + limit:
                trial.told_to_end = now
                _signal(trial, signal.SIGTERM)
            elif trial.told_to_end is not None and now > trial.told_to_end + GRACE_SECONDS:
                _signal(trial, signal.SIGKILL)

    def _end_all(self) -> None:
        """End every trial, as after Ctrl-C."""
        reason = "the sweep was stopped"
        given_up = time.monotonic() + GRACE_SECONDS
        while any(trial.pid for trial in self.running.values()) and (now := time.monotonic()) < given_up:
            for trial in self.running.values():
                if trial.pid and trial.told_to_end is None:
                    trial.told_to_end, trial.said = now, (RunState.killed, reason)
                    _signal(trial, signal.SIGTERM)
            self._listen()
        for trial in self.running.values():  # what does not end, and what has not begun
            _signal(trial, signal.SIGKILL)
            outcome = Outcome(RunState.killed, reason, trial.folder, time.monotonic() - trial.started)
            for number in (trial.number, *trial.twins):
                self.record.end(number, outcome)


def _ending(trial: Running, status: int) -> tuple[RunState, str]:
    """How a trial ended, from what was done to it, from what it said, and from how its process ended."""
    if trial.told_to_end is not None and not trial.said:
        limit = trial.config.sweep.time_limit
        return RunState.timed_out, f"it took longer than sweep.time_limit={limit:g} seconds"
    if trial.said:
        return trial.said
    if not os.WIFSIGNALED(status):
        return RunState.exited, f"its process ended itself with code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and _kills_for_memory() > trial.kills:
        return RunState.out_of_memory, "the system killed it, because memory ran out"
    return RunState.killed, f"signal {number} ({signal.Signals(number).name}) ended it"


def _kills_for_memory() -> int:
    """How many processes the kernel has killed because memory ran out."""
    counted = 0
    for file in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat"):
        with suppress(OSError):
            lines = map(str.split, Path(file).read_text().splitlines())
            counted += sum(int(value) for name, value, *_ in lines if name == "oom_kill")
    return counted


def _signal(trial: Running, number: int) -> None:
    if trial.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(trial.pid, number)
