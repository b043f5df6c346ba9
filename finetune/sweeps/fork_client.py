"""What do a sweep and the process that its trials are forked from (fork_server.py) tell each other, and how?"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

from finetune.config.schema import Config
from finetune.machine.allowance import Fit
from finetune.runs.outcome import RunState

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 2.0


@dataclass(frozen=True)
class DeviceShare:
    """What one of the processes that run at the same time may use."""

    threads: int
    device: int | None  # index of a CUDA device among those that are visible; None: no device is chosen
    runs_at_a_time: int  # processes that share the device


@dataclass(frozen=True)
class TrialJob:
    """A run to be forked, and what it may use."""

    number: int
    config: Config
    share: DeviceShare
    known_to_fit: bool
    base_fits: bool  # so that its base model may be loaded for all trials


@dataclass(frozen=True)
class CostSurvey:
    """Runs whose costs are to be estimated, and how many such runs there will be in all."""

    configs: Sequence[Config]
    trials: int
    share: DeviceShare
    number: int = -1


@dataclass(frozen=True)
class TrialCost:
    """What a trial is expected to take."""

    seconds: float
    peak_bytes: int
    available_bytes: int
    fit: Fit  # that of `stage=plan`
    measured: bool  # False: the seconds are those of matrix products alone, so that the trial takes longer


@dataclass(frozen=True)
class News:
    """What is new of a job; the rest is left out."""

    number: int
    pid: int | None = None  # its process has begun
    note: str = ""  # what it is doing
    conclusion: tuple[RunState, str] | None = None  # how it ended, in its own words
    costs: Sequence[TrialCost | str | None] = ()  # of a survey: for each configuration the cost, or what is wrong
    status: int | None = None  # its process has ended; the status is that of os.waitpid


class ForkServerClient:
    """That process. It is started when it is first needed, and serves until `close`, which ends its trials, too."""

    def __init__(self, script: Path) -> None:
        self.script = script
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Connection  # which it has once it was started
        self.pipes: list[Connection] = []  # what each process that was forked sends is read from its own
        self.devices = 0

    def start(self) -> int:
        """Start it unless it runs; the number of CUDA devices that it sees."""
        if self.process is not None:
            return self.devices
        self.channel, theirs = Pipe()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        program = "from finetune.sweeps.fork_server import serve_forks; serve_forks()"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, str(theirs.fileno()), str(self.script)],
                env=os.environ | single | {"PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which ends the others
            )
        self.devices = self._receive_from_server()
        return self.devices

    def send(self, job: TrialJob | CostSurvey) -> None:
        """Have a process forked for a job, with a pipe of its own: killed in mid-message, it breaks no other's."""
        reader, writer = Pipe(duplex=False)
        self.pipes.append(reader)
        with writer:
            self.channel.send(job)
            send_handle(self.channel, writer.fileno(), None)

    def receive(self, seconds: float | None = None) -> News | None:
        """The next news of a job; None where none came in so many seconds. Raises RuntimeError if the process ended."""
        news: News
        while ready := wait([self.channel, *self.pipes], seconds):
            for pipe in self.pipes.copy():  # before the channel: what a process sent comes before its end
                try:
                    if pipe.poll():
                        news = pipe.recv()
                        return news
                except (EOFError, OSError):  # it has ended, perhaps in mid-message
                    self.pipes.remove(pipe)
                    pipe.close()
            if self.channel in ready:
                news = self._receive_from_server()
                return news
        return None

    def _receive_from_server(self) -> Any:
        try:
            return self.channel.recv()
        except (EOFError, ConnectionResetError) as error:
            told = "the process that trials are forked from ended; see above. The same command goes on."
            raise RuntimeError(told) from error

    def close(self) -> None:
        """End it and all that it has forked."""
        if self.process:
            for connection in (self.channel, *self.pipes):
                connection.close()
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:  # it is importing or loading, and does not listen
                os.killpg(self.process.pid, signal.SIGKILL)  # trials die with it, see fork_server.py
                self.process.wait()
        self.process = None
        self.pipes.clear()
