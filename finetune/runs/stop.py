"""How does a run stop when a signal asks it to? Behind a training step with a checkpoint; elsewhere at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from finetune.config.schema import Config
from finetune.machine.processes import is_main_process
from finetune.runs.outcome import Preempted, RunState, conclude_run, state_after_error

# Of schedulers before they kill, of Slurm's --signal=USR1, and of Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether a signal has asked the run to stop.

    It raises Preempted at once, but while a training step is not to be broken off; so does a second signal anywhere.
    """

    def __init__(self) -> None:
        self.stop: Preempted | None = None
        self.waits_for_step = False

    def receive(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        again, self.stop = self.stop is not None, self.stop or Preempted(signal.Signals(number).name)
        if again or not self.waits_for_step:
            raise self.stop
        note = f"\n{self.stop}: this step ends first, with a checkpoint. Once more: at once.\n"
        os.write(sys.stderr.fileno(), note.encode())  # print may be at work, and is not to be called within itself


def stop_at_once(number: int, _: FrameType | None) -> None:
    """Handle a signal where there is nothing to finish."""
    raise Preempted(signal.Signals(number).name)


def _note_stop(config: Config, folder: Path, stop: Preempted, started: float) -> None:
    if is_main_process():
        conclude_run(config, folder, RunState.preempted, f"stopped by {stop}", time.monotonic() - started)


@contextmanager
def catch_signals(config: Config, folder: Path) -> Iterator[StopRequest]:
    """Within the block signals stop the run, as the request that is yielded says, and result.json says so, too.

    A signal that a launcher handles itself, as submitit does with some, is left to it.
    """
    request, started, before = StopRequest(), time.monotonic(), {}
    if threading.current_thread() is threading.main_thread():  # no other may
        ours = (signal.SIG_DFL, signal.default_int_handler, stop_at_once)
        before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) in ours}
    for number in before:
        signal.signal(number, request.receive)
    try:
        yield request
    except Exception as error:
        if request.stop is None or state_after_error(error) is not RunState.failed:
            raise
        # the signal ended a process that this one needs, such as a data loader's, or was raised where it is not heard
        _note_stop(config, folder, request.stop, started)
        raise request.stop from error
    except Preempted as stop:
        _note_stop(config, folder, stop, started)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
