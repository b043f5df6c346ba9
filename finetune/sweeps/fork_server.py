"""How does each trial of a sweep get a clean process of its own? One that has imported everything forks it.

server.py starts it, and speaks to it over a socket. It stays single-threaded and never touches CUDA,
so that what is forked from it may do both. When the socket closes, because the sweep ended or was killed, so does
every trial.
"""

import ctypes
import gc
import importlib.util
import io
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

from finetune.config.schema import Config
from finetune.runs import outcome
from finetune.runs.folder import run_folder
from finetune.runs.outcome import RunState, run_to_outcome
from finetune.sweeps.jobs import CostSurvey, TrialJob
from finetune.sweeps.preload import import_libraries, preload_shared, preload_study

# A message is one packet.
LARGEST_MESSAGE = 150_000
LONGEST_REASON = 20_000
PR_SET_PDEATHSIG = 1


def serve_forks() -> None:
    """Import what a run needs, say hello, then fork a process for each job until the socket closes.

    The program's arguments are the socket's file descriptor and the path of run.py.
    """
    channel = socket.socket(fileno=int(sys.argv[1]))
    run = _load(sys.argv[2])
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU must not initialise CUDA
    hello = {"devices": import_libraries()}
    bell, ringer = os.pipe()
    os.set_blocking(ringer, False)
    signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, int] = {}
    try:
        send(channel, hello)
        while True:
            ready, _, _ = select.select([channel.fileno(), bell], [], [])
            if bell in ready:
                os.read(bell, 4096)
                _reap(channel, children)
            if channel.fileno() in ready:
                packet = channel.recv(LARGEST_MESSAGE)
                if not packet:
                    break
                _fork(pickle.loads(packet), run, channel, children, on_gpus=bool(hello["devices"]))
    except (BrokenPipeError, ConnectionResetError):  # nobody listens any more
        pass
    finally:
        for pid in children:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _fork(
    job: TrialJob | CostSurvey,
    run: Callable[[Config], None],
    channel: socket.socket,
    children: dict[int, int],
    on_gpus: bool,
) -> None:
    """Fork a process for a job, once what it shares with others is loaded; with GPUs, that would initialise CUDA."""
    config = job.config if isinstance(job, TrialJob) else job.configs[0]
    if config.sweep.study and config.sweep.pruner != "none":
        preload_study(config.sweep.study)
    if not on_gpus:
        preload_shared(config, with_base=isinstance(job, TrialJob) and job.base_fits)
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        _live(job, run, channel) if isinstance(job, TrialJob) else _survey(job, channel)
    with suppress(OSError):  # it may have ended
        os.setpgid(pid, pid)  # before anybody knows of it, so that it can be ended with all that it starts
    children[pid] = job.number
    send(channel, {"number": job.number, "pid": pid})


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


def _survey(survey: CostSurvey, channel: socket.socket) -> None:
    """The life of a process that works out what runs will cost."""
    try:
        _stand_alone()
        _share_machine(survey)
        from finetune.machine import process_memory
        from finetune.sweeps.cost import estimate_costs

        process_memory.runs_to_begin = survey.runs_at_a_time

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            costs = estimate_costs(survey.configs, survey.trials)
        send(channel, {"number": survey.number, "costs": costs})
    except Exception as error:
        send(channel, {"number": survey.number, "problem": f"{type(error).__name__}: {error}"[-LONGEST_REASON:]})
    finally:
        os._exit(0)


def _share_machine(work: TrialJob | CostSurvey) -> None:
    """Take no more threads, GPUs and memory than are its."""
    if work.device is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[work.device] if visible else str(work.device)
    import torch

    from finetune.machine import process_memory
    from finetune.machine.process_memory import held_memory_bytes

    torch.set_num_threads(work.threads)
    process_memory.runs_at_a_time, process_memory.inherited_bytes = work.runs_at_a_time, 0
    process_memory.inherited_bytes = held_memory_bytes()


def _live(job: TrialJob, run: Callable[[Config], None], channel: socket.socket) -> None:
    """The life of a forked process: the run, then the news of its end."""
    try:
        outcome.tell = _teller(job.number, channel)
        state, reason = _run(run, job)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        send(channel, {"number": job.number, "state": state.value, "reason": reason[-LONGEST_REASON:]})
    finally:
        os._exit(0)


def _stand_alone() -> None:
    """Be a group of processes that can be ended as one, and die when the parent does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _settle(job: TrialJob) -> None:
    """Become a process of one's own: group, output, threads, device."""
    _stand_alone()
    place = run_folder(job.config)
    place.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the run itself writes to log.txt what it prints
    os.dup2(os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
    os.environ["COLUMNS"] = "140"
    _share_machine(job)
    from finetune.planning import plan

    plan.known_to_fit = job.known_to_fit


def _teller(number: int, channel: socket.socket) -> Callable[[str], None]:
    """What a trial tells of its progress, at most once a second."""
    last = 0.0

    def tell(note: str) -> None:
        nonlocal last
        if time.monotonic() > last + 1:
            last = time.monotonic()
            send(channel, {"number": number, "note": note})

    return tell


def _run(run: Callable[[Config], None], job: TrialJob) -> tuple[RunState, str]:
    """Run, and tell how that ended."""

    def settle_and_run(config: Config) -> None:
        _settle(job)
        run(config)

    try:
        return run_to_outcome(settle_and_run, job.config)
    except SystemExit as error:
        return RunState.exited, f"it called sys.exit({error.code!r})"
    except KeyboardInterrupt:
        return RunState.killed, "it was interrupted"
