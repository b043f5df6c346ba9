"""How does each trial of a sweep get a clean process of its own? One that has imported everything forks it.

fork_client.py starts it, and sends it jobs over a socket. It stays single-threaded and never touches CUDA, so that what
is forked from it may do both. Each process that is forked has a pipe of its own to the client, so that one that is
killed in the midst of a message breaks no other's. When the socket closes, because the sweep ended or was killed,
every trial is killed.
"""

import ctypes
import gc
import importlib.util
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import send_handle
from pathlib import Path

from finetune.config.schema import Config
from finetune.machine.allowance import Allowance
from finetune.runs.folder import run_folder
from finetune.runs.outcome import RunState, run_to_outcome
from finetune.sweeps import preload
from finetune.sweeps.jobs import Began, Concluded, CostSurvey, DeviceShare, Ended, Progressed, Surveyed, TrialJob

PR_SET_PDEATHSIG = 1  # prctl(2)
SECONDS_BETWEEN_NOTES = 1.0

Run = Callable[[Config, Allowance, preload.Loaded, Callable[[str], None]], object]
"""The function `run` of run.py."""


def serve_forks() -> None:
    """Import what a run needs, send the number of GPUs, then fork a process for each job until the socket closes.

    The program's arguments are the socket's file descriptor and the path of run.py.
    """
    client, run = Connection(int(sys.argv[1])), _load_run(sys.argv[2])
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU must not initialise CUDA
    devices = preload.import_libraries()
    server = ForkServer(client, run, devices)
    try:
        client.send(devices)
        server.serve()
    except (BrokenPipeError, ConnectionResetError):  # the client has ended
        pass
    finally:
        for pid in server.children:
            _kill_group(pid)


def _load_run(script: str) -> Run:
    spec = importlib.util.spec_from_file_location("run", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    run: Run = module.run
    return run


class ForkServer:
    """The processes that were forked and still run, and what is loaded for the next."""

    def __init__(self, client: Connection, run: Run, devices: int) -> None:
        self.client, self.run, self.devices = client, run, devices
        # Numbers of jobs, by the process.
        self.children: dict[int, int] = {}
        self.loaded = preload.NOTHING_LOADED

    def serve(self) -> None:
        """Fork a process for each job, and send how each ended, until the client ends."""
        child_ended = _watch_children()
        while True:
            ready = wait([self.client, child_ended])
            if child_ended in ready:
                os.read(child_ended, 4096)
                self._reap()
            if self.client in ready:
                try:
                    job: TrialJob | CostSurvey = self.client.recv()
                except (EOFError, OSError):  # the client has ended, perhaps while it sent a job
                    return
                self._preload(job)
                self._fork(job)

    def _preload(self, job: TrialJob | CostSurvey) -> None:
        """Load what the job shares with others; with GPUs the study alone, as all else would initialise CUDA."""
        config = job.config if isinstance(job, TrialJob) else job.configs[0]
        with suppress(Exception):  # the run itself reports what is wrong
            if config.sweep.study and config.sweep.pruner != "none":
                self.loaded = preload.with_study(config.sweep.study, self.loaded)
        if self.devices:
            return
        if config.tracking.enabled:
            import wandb  # noqa: F401 (a second)
        with suppress(Exception):
            self.loaded = preload.with_rows(config, self.loaded)
            if isinstance(job, TrialJob) and job.base_fits:
                self.loaded = preload.without_other_bases(config, self.loaded)
                self.loaded = preload.with_base(config, self.loaded)

    def _fork(self, job: TrialJob | CostSurvey) -> None:
        """Fork a process for a job, and give the client the end of its pipe that is read."""
        reader, writer = Pipe(duplex=False)
        gc.freeze()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self.client.close()
            reader.close()
            if isinstance(job, TrialJob):
                _run_trial(job, self.run, self.loaded, writer)
            else:
                _survey(job, writer)
        with suppress(OSError):  # it may have ended
            os.setpgid(pid, pid)  # before the client knows of it, so that it can be ended with all that it starts
        self.children[pid] = job.number
        with reader, writer:
            self.client.send(Began(job.number, pid))
            send_handle(self.client, reader.fileno(), None)

    def _reap(self) -> None:
        """Send which children have ended, and kill what each of them left behind."""
        with suppress(ChildProcessError):  # there is no child
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = ended
                _kill_group(pid)
                self.client.send(Ended(self.children.pop(pid), status))


def _watch_children() -> int:
    """A file descriptor that can be read once a child has ended."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reader


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _survey(survey: CostSurvey, client: Connection) -> None:
    """The life of a process that estimates what runs will cost."""
    try:
        _stand_alone()
        allowance = replace(take_share(survey.share), runs_to_begin=survey.share.runs_at_a_time)
        from finetune.sweeps.cost import estimate_costs  # which asks for a GPU

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            costs = estimate_costs(survey.configs, survey.trials, allowance)
        client.send(Surveyed(costs))
    except Exception as error:
        client.send(Surveyed([], f"{type(error).__name__}: {error}"))
    finally:
        os._exit(0)


def _run_trial(job: TrialJob, run: Run, loaded: preload.Loaded, client: Connection) -> None:
    """The life of a trial's process: the run, then how it ended."""

    def settle_and_run(config: Config) -> None:
        _stand_alone()
        _write_to_log(run_folder(config))
        allowance = replace(take_share(job.share), known_to_fit=job.known_to_fit)
        run(config, allowance, loaded, _progress_sender(job.number, client))

    try:
        try:
            state, reason = run_to_outcome(settle_and_run, job.config)
        except SystemExit as error:
            state, reason = RunState.exited, f"it called sys.exit({error.code!r})"
        except KeyboardInterrupt:
            state, reason = RunState.killed, "it was interrupted"
        sys.stderr.flush()
        client.send(Concluded(job.number, state, reason))
    finally:
        os._exit(0)


def _stand_alone() -> None:
    """Be a group of processes that can be ended as one, and die when the parent does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _write_to_log(folder: Path) -> None:
    """Send what libraries print to the run's log.txt; the run itself writes there what it prints."""
    folder.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
    os.environ["COLUMNS"] = "140"


def take_share(share: DeviceShare) -> Allowance:
    """Use no more threads and GPUs than the share has; what the run may use besides."""
    import torch

    from finetune.machine.device import hide_other_gpus
    from finetune.machine.process_memory import held_memory_bytes

    if share.device is not None:
        hide_other_gpus(share.device)
    torch.set_num_threads(share.threads)
    return Allowance(runs_at_a_time=share.runs_at_a_time, inherited_bytes=held_memory_bytes())


def _progress_sender(number: int, client: Connection) -> Callable[[str], None]:
    """A function that sends what a trial is doing, at most once a second."""
    last = 0.0

    def send(note: str) -> None:
        nonlocal last
        if time.monotonic() > last + SECONDS_BETWEEN_NOTES:
            last = time.monotonic()
            client.send(Progressed(number, note))

    return send
