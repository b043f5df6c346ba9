"""How does each trial of a sweep get a clean process of its own? One that has imported everything forks it.

fork_client.py starts it, and sends it jobs over a socket, each with a pipe for what the job's process has to tell. It
stays single-threaded and never touches CUDA, so that what is forked from it may do both. When the socket closes,
because the sweep ended or was killed, every trial is killed.
"""

import ctypes
import gc
import io
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from typing import NoReturn

from finetune.config.schema import Config
from finetune.machine.allowance import Allowance
from finetune.runs.folder import run_folder
from finetune.runs.outcome import Preempted, RunState, run_to_outcome
from finetune.runs.stop import SIGNALS
from finetune.secrets import mask_output
from finetune.sweeps.fork_client import CostSurvey, DeviceShare, News, TrialJob
from finetune.sweeps.preload import Loaded, import_libraries, load_shared

PR_SET_PDEATHSIG = 1  # prctl(2)
SECONDS_BETWEEN_NOTES = 1.0

Run = Callable[[Config, Allowance, Loaded, Callable[[str], None]], object]
"""The function `run` of run.py."""


def serve_forks() -> None:
    """Import what a run needs, send the number of GPUs, then fork a process for each job until the socket closes.

    The program's arguments are the socket's file descriptor and the path of run.py.
    """
    mask_output()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the sweep stops the trials, and then closes the socket
    client, run = Connection(int(sys.argv[1])), runpy.run_path(sys.argv[2], run_name="run")["run"]
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU must not initialise CUDA
    devices, loaded = import_libraries(), Loaded()
    child_ended, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, int] = {}  # numbers of jobs, by the process
    try:
        client.send(devices)
        while True:
            ready = wait([client, child_ended])
            if child_ended in ready:
                os.read(child_ended, 4096)
                _reap(children, client)
            if client in ready:
                try:
                    job, pipe = client.recv(), Connection(recv_handle(client), readable=False)
                except (EOFError, OSError):  # the client has ended, perhaps while it sent a job
                    break
                config = job.config if isinstance(job, TrialJob) else job.configs[0]
                load_shared(config, loaded, not devices, base_fits=isinstance(job, TrialJob) and job.base_fits)
                gc.freeze()
                with pipe:
                    if (pid := os.fork()) == 0:
                        client.close()
                        _do_job(job, run, loaded, pipe)
                with suppress(OSError):  # it may have ended
                    os.setpgid(pid, pid)  # so that it can be ended with all that it starts
                children[pid] = job.number
    except (BrokenPipeError, ConnectionResetError):  # the client has ended
        pass
    finally:
        for pid in children:
            _kill_group(pid)


def _reap(children: dict[int, int], client: Connection) -> None:
    """Send which children have ended, and kill what each of them left behind."""
    with suppress(ChildProcessError):  # there is no child
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            pid, status = ended
            _kill_group(pid)
            client.send(News(children.pop(pid), status=status))


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _do_job(job: TrialJob | CostSurvey, run: Run, loaded: Loaded, client: Connection) -> NoReturn:
    """The life of a forked process, a group of its own that dies when the parent does: a job, then how it ended."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *SIGNALS):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        client.send(News(job.number, pid=os.getpid()))
        client.send(_survey(job) if isinstance(job, CostSurvey) else _run_trial(job, run, loaded, client))
    finally:
        os._exit(0)


def _survey(survey: CostSurvey) -> News:
    try:
        allowance = replace(take_share(survey.share), runs_to_begin=survey.share.runs_at_a_time)
        from finetune.sweeps.cost import estimate_costs  # which asks for a GPU

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return News(survey.number, costs=estimate_costs(survey.configs, survey.trials, allowance))
    except Exception as error:
        return News(survey.number, conclusion=(RunState.failed, f"{type(error).__name__}: {error}"))


def _run_trial(job: TrialJob, run: Run, loaded: Loaded, client: Connection) -> News:
    sent_at = 0.0

    def report_progress(note: str) -> None:
        nonlocal sent_at
        if time.monotonic() > sent_at + SECONDS_BETWEEN_NOTES:
            sent_at = time.monotonic()
            client.send(News(job.number, note=note))

    def settle_and_run(config: Config) -> None:
        log = run_folder(config) / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the run itself writes to its log what it prints
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)  # libraries' messages
        os.environ["COLUMNS"] = "140"
        run(config, replace(take_share(job.share), known_to_fit=job.known_to_fit), loaded, report_progress)

    try:
        conclusion = run_to_outcome(settle_and_run, job.config)
    except SystemExit as error:
        conclusion = RunState.exited, f"it called sys.exit({error.code!r})"
    except Preempted as stop:
        conclusion = RunState.preempted, f"stopped by {stop}"
    sys.stderr.flush()
    return News(job.number, conclusion=conclusion)


def take_share(share: DeviceShare) -> Allowance:
    """Use no more threads and GPUs than the share has; what the run may use besides."""
    import torch

    from finetune.machine.device import hide_other_gpus
    from finetune.machine.process_memory import held_memory_bytes

    if share.device is not None:
        hide_other_gpus(share.device)
    torch.set_num_threads(share.threads)
    return Allowance(runs_at_a_time=share.runs_at_a_time, inherited_bytes=held_memory_bytes())
