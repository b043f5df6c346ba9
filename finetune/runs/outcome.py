"""How did a run end?"""

import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from finetune.config.schema import Config
from finetune.config.settings import to_plain
from finetune.errors import UserError
from finetune.runs.files import DiskFullError, write_json
from finetune.runs.folder import complete_result, hold_run
from finetune.runs.lock import BusyError
from finetune.runs.result import RESULT, FailedResult, RunResult, read_result
from finetune.secrets import without_secrets


class RunState(Enum):
    """What a trial is doing, or how it ended."""

    waiting = "waiting"
    running = "running"
    complete = "complete"
    pruned = "pruned"  # ended early, because others do better
    failed = "failed"  # it raised an exception
    exited = "exited"  # it ended its own process, by sys.exit or the like
    killed = "killed"  # a signal ended it
    timed_out = "timed_out"
    diverged = "diverged"  # its loss is NaN or infinite
    out_of_memory = "out_of_memory"
    refused = "refused"  # the user's mistake: a setting or a row
    disk_full = "disk_full"
    busy = "busy"  # it was not begun: another process is at its folder
    preempted = "preempted"  # a signal asked it to stop, and the same command goes on


# How a trial would end again; the same command leaves those that ended so, and repeats all others. What was refused is
# cheap to ask again, and may be allowed by now: a file was mended, the network is back, or force=true was added.
FINAL = (RunState.complete, RunState.pruned, RunState.diverged, RunState.out_of_memory)
SUCCESSFUL = (RunState.complete, RunState.pruned)
UNENDED = (RunState.waiting, RunState.running)
OUT_OF_MEMORY = ("memory: you tried to allocate", "out of memory", "STATUS_ALLOC_FAILED")  # as PyTorch says it


class Pruned(Exception):  # noqa: N818 (it is no error)
    """Raised within a run to end it early; its message is the reason."""


class Preempted(KeyboardInterrupt):
    """Raised within a run that a signal asks to stop; its message is the signal's name, `at` when it came."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.at = time.monotonic()


class FailedTrialsError(Exception):
    """Raised at the end of a sweep in which trials failed, each of which was reported: the program ends with code 1."""


ENDS: dict[type[BaseException], RunState] = {
    Pruned: RunState.pruned,
    BusyError: RunState.busy,
    DiskFullError: RunState.disk_full,
    UserError: RunState.refused,
    FloatingPointError: RunState.diverged,
    SystemExit: RunState.exited,
    Preempted: RunState.preempted,
    KeyboardInterrupt: RunState.killed,
}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: RunState
    reason: str = ""
    folder: Path | None = None
    seconds: float = 0.0
    score: float | None = None  # of its headline metric, where it is complete
    metric: str = ""
    known: bool = False  # it ended so in an earlier sweep and was not run again


def settled_outcome(config: Config, folder: Path) -> Outcome | None:
    """How a trial ended earlier, if it would end so again; raises UserError where the folder holds another run."""
    if result := complete_result(config, folder):
        seconds, metric = sum(result.seconds.values()), result.evaluation.metric
        return Outcome(RunState.complete, "", folder, seconds, result.evaluation.tuned().mean, metric, known=True)
    earlier = read_result(folder / RESULT)
    if not isinstance(earlier, FailedResult) or config.sweep.repeat_failures:
        return None
    state = RunState(earlier.status)
    if state not in FINAL or (state is RunState.pruned and config.sweep.trial is None):
        return None  # that a search gave it up is no reason for others to
    return Outcome(state, earlier.reason, folder, earlier.seconds_in_all, known=True)


def state_after_error(error: BaseException) -> RunState:
    """How a run ended that raised this."""
    for kind, state in ENDS.items():
        if isinstance(error, kind):
            return state
    return RunState.out_of_memory if is_out_of_memory(error) else RunState.failed


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python raised this because memory ran out."""
    import torch

    said = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def conclude_run(config: Config, folder: Path, state: RunState, reason: str, seconds: float) -> Outcome:
    """How a trial ended, with its score; one that has none leaves a result.json that says why."""
    if state is RunState.complete:
        settled = settled_outcome(config, folder)
        assert settled
        return replace(settled, seconds=seconds, known=False)
    with suppress(UserError):  # the folder is in the hands of another process or run
        if state is not RunState.busy and not isinstance(read_result(folder / RESULT), RunResult):
            with hold_run(config, folder):
                settings = without_secrets(to_plain(config))
                write_json(folder / RESULT, FailedResult(folder.name, state.value, reason, round(seconds, 1), settings))
    return Outcome(state, reason, folder, seconds)


def run_to_outcome(run: Callable[[Config], object], config: Config) -> tuple[RunState, str]:
    """Run, and return how that ended and why, in words or as a stack; what is to end the whole process goes through."""
    try:
        run(config)
    except Exception as error:
        state = state_after_error(error)
        if state is RunState.refused:
            print(f"Error: {error}", file=sys.stderr)
        if isinstance(error, Pruned | UserError | FloatingPointError):
            return state, str(error)
        stack = "".join(traceback.format_exception(error))
        print(stack, file=sys.stderr)
        if state is RunState.out_of_memory:
            return state, " ".join(str(error).split()) or type(error).__name__
        return state, stack
    return RunState.complete, ""
