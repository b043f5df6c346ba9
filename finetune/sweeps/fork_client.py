"""How does a sweep speak to the process that its trials are forked from (warm.py)?"""

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune.sweeps.fork_server import LARGEST_MESSAGE, send

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 2.0


class ForkServerClient:
    """That process. It is started when it is first needed, and serves until `close`, which ends its trials, too."""

    def __init__(self, script: Path) -> None:
        self.script = script
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.devices = 0

    def start(self) -> int:
        """Start it unless it runs; the number of CUDA devices that it sees."""
        if self.process is not None:
            return self.devices
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
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
        self.devices = self.receive()["devices"]
        return self.devices

    def send(self, message: Any) -> None:
        """Send a job."""
        assert self.channel
        send(self.channel, message)

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """The next news of it; none if there is none for so many seconds. Raises RuntimeError if it has ended."""
        assert self.channel
        if not select.select([self.channel], [], [], seconds)[0]:
            return {}
        packet = self.channel.recv(LARGEST_MESSAGE)
        if not packet:
            raise RuntimeError("the process that trials are forked from ended; see above. The same command goes on.")
        news: dict[str, Any] = pickle.loads(packet)
        return news

    def close(self) -> None:
        """End it and all that it has forked."""
        if self.channel:
            self.channel.close()
        if self.process:
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:  # it is importing or loading, and does not listen
                os.killpg(self.process.pid, signal.SIGKILL)  # trials die with it, see warm.py
                self.process.wait()
        self.process = self.channel = None
