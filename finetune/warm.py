"""What do all trials of a sweep pay for once? A process that has imported everything, and forks a clean one for each.

`python -m finetune.warm FD SCRIPT` serves pool.py over the socket FD. It stays single-threaded and never touches CUDA,
so that what is forked from it may do both. When the socket closes, because pool.py ended or was killed, so does every
trial.
"""

import ctypes
import gc
import importlib.util
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from finetune.checkpoint import BusyError, folder
from finetune.schema import Config, UserError
from finetune.trials import Pruned, State

# A message is one packet.
LARGEST_MESSAGE = 150_000
LONGEST_REASON = 20_000
# What PyTorch says without an exception class of its own.
OUT_OF_MEMORY = ("not enough memory: you tried to allocate", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """A run to be forked, and what it may use."""

    number: int
    config: Config
    threads: int
    # Index of a CUDA device among those that are visible. None: no device is chosen.
    device: int | None


def serve() -> None:
    """Import what a run needs, say hello, then fork a process for each job until the socket closes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    run = _load(sys.argv[2])
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU must not initialise CUDA
    hello = {"devices": _import_libraries()}
    bell, ringer = os.pipe()
    os.set_blocking(ringer, False)
    signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    send(channel, hello)
    children: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([channel.fileno(), bell], [], [])
        if bell in ready:
            os.read(bell, 4096)
            _reap(channel, children)
        if channel.fileno() in ready:
            packet = channel.recv(LARGEST_MESSAGE)
            if not packet:
                break
            job = pickle.loads(packet)
            gc.freeze()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                _live(job, run, channel)
            children[pid] = job.number
            send(channel, {"number": job.number, "pid": pid})
    for pid in children:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def send(channel: socket.socket, message: Any) -> None:
    """Send one message, which either side reads with `pickle.loads(channel.recv(LARGEST_MESSAGE))`."""
    channel.send(pickle.dumps(message))


def _load(script: str) -> Callable[[Config], None]:
    """The function `run` of run.py."""
    spec = importlib.util.spec_from_file_location("run", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    run: Callable[[Config], None] = module.run
    return run


def _import_libraries() -> int:
    """Import what every run imports; the number of CUDA devices."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401
    import trl  # noqa: F401

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    devices = torch.cuda.device_count()
    if not devices:  # on import, bitsandbytes asks a GPU what it can do, which initialises CUDA
        from finetune import plan, preview, progress, report, retention, train  # noqa: F401
    return devices


def _reap(channel: socket.socket, children: dict[int, int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        with suppress(ProcessLookupError):  # what it left behind
            os.killpg(pid, signal.SIGKILL)
        send(channel, {"number": children.pop(pid), "exit": status})


def _live(job: Job, run: Callable[[Config], None], channel: socket.socket) -> None:
    """The life of a forked process: the run, then the news of its end."""
    try:
        _settle(job)
        state, reason = _run(run, job.config)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        send(channel, {"number": job.number, "state": state.value, "reason": reason[-LONGEST_REASON:]})
    finally:
        os._exit(0)


def _settle(job: Job) -> None:
    """Become a process of one's own: group, signals, output, threads, device; die when the parent does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    place = folder(job.config)
    place.mkdir(parents=True, exist_ok=True)
    log = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ["COLUMNS"] = "140"
    if job.device is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(job.device)] * (job.device + 1)
        os.environ["CUDA_VISIBLE_DEVICES"] = names[job.device]
    import torch

    torch.set_num_threads(job.threads)


def _run(run: Callable[[Config], None], config: Config) -> tuple[State, str]:
    """Run, and tell how that ended."""
    try:
        run(config)
    except Pruned as reason:
        return State.pruned, str(reason)
    except BusyError as error:
        return State.failed, str(error)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return State.refused, str(error)
    except FloatingPointError as error:
        return State.diverged, str(error)
    except SystemExit as error:
        return State.exited, f"it called sys.exit({error.code!r})"
    except KeyboardInterrupt:
        return State.killed, "it was interrupted"
    except BaseException as error:
        stack = traceback.format_exc()
        print(stack, file=sys.stderr)
        if _is_out_of_memory(error):
            return State.out_of_memory, " ".join(str(error).split()) or type(error).__name__
        return State.failed, stack
    return State.complete, ""


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    told = any(text in str(error) for text in OUT_OF_MEMORY)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and told)


if __name__ == "__main__":
    serve()
