"""How does a sweep speak to the process that its trials are forked from (fork_server.py)?"""

import os
import signal
import subprocess
import sys
from collections import deque
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

from finetune.sweeps.jobs import Began, CostSurvey, Ended, News, TrialJob

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 2.0


class ForkServerClient:
    """That process. It is started when it is first needed, and serves until `close`, which ends its trials, too."""

    def __init__(self, script: Path) -> None:
        self.script = script
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Connection | None = None
        # What each process that was forked sends is read from a pipe of its own.
        self.pipes: dict[int, Connection] = {}
        self.unread: deque[News] = deque()
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
        """Send a job."""
        assert self.channel
        self.channel.send(job)

    def receive(self, seconds: float | None = None) -> News | None:
        """The next news of a job; None where none came in so many seconds. Raises RuntimeError if the process ended."""
        if not self.unread:
            assert self.channel
            ready = wait([self.channel, *self.pipes.values()], seconds)
            for number in [number for number, pipe in self.pipes.items() if pipe in ready]:
                self._read_pipe(number)
            if self.channel in ready:
                self._read_channel()
        return self.unread.popleft() if self.unread else None

    def _read_channel(self) -> None:
        assert self.channel
        news: News = self._receive_from_server()
        if isinstance(news, Began):
            self.pipes[news.number] = Connection(recv_handle(self.channel), writable=False)
        elif isinstance(news, Ended) and news.number in self.pipes:
            self._read_pipe(news.number)  # what it sent comes before its end
        self.unread.append(news)

    def _read_pipe(self, number: int) -> None:
        """Read what a process has sent; a message that it was killed in the midst of is dropped."""
        pipe = self.pipes[number]
        try:
            while pipe.poll():
                self.unread.append(pipe.recv())
        except (EOFError, OSError):  # it has ended
            self.pipes.pop(number).close()

    def _receive_from_server(self) -> Any:
        assert self.channel
        try:
            return self.channel.recv()
        except (EOFError, ConnectionResetError) as error:
            told = "the process that trials are forked from ended; see above. The same command goes on."
            raise RuntimeError(told) from error

    def close(self) -> None:
        """End it and all that it has forked."""
        for connection in (self.channel, *self.pipes.values()):
            if connection:
                connection.close()
        if self.process:
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:  # it is importing or loading, and does not listen
                os.killpg(self.process.pid, signal.SIGKILL)  # trials die with it, see fork_server.py
                self.process.wait()
        self.process = self.channel = None
        self.pipes.clear()
        self.unread.clear()
