"""How did a run end?"""

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from finetune.config.schema import Config
from finetune.config.settings import to_plain
from finetune.errors import UserError, without_secrets
from finetune.runs.files import write_text
from finetune.runs.folder import BusyError, complete_result, hold_run


class RunState(Enum):
    """What a trial is doing, or how it ended."""

    waiting = "waiting"
    running = "running"
    complete = "complete"
    # Ended early, because others do better.
    pruned = "pruned"
    # It raised an exception.
    failed = "failed"
    # It ended its own process, by sys.exit or the like.
    exited = "exited"
    # A signal ended it.
    killed = "killed"
    timed_out = "timed_out"
    # Its loss is NaN or infinite.
    diverged = "diverged"
    out_of_memory = "out_of_memory"
    # The user's mistake: a setting or a row.
    refused = "refused"
    # It was not begun: another process is at its folder.
    busy = "busy"


# How a trial would end again; the same command leaves those that ended so, and repeats all others. What was refused is
# cheap to ask again, and may be allowed by now: a file was mended, the network is back, or force=true was added.
FINAL = (RunState.complete, RunState.pruned, RunState.diverged, RunState.out_of_memory)
SUCCESSFUL = (RunState.complete, RunState.pruned)
UNENDED = (RunState.waiting, RunState.running)
# What PyTorch says without an exception class of its own.
OUT_OF_MEMORY = ("memory: you tried to allocate", "out of memory", "STATUS_ALLOC_FAILED")


class Pruned(Exception):  # noqa: N818 (it is no error)
    """Raised within a run to end it early; its message is the reason."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: RunState
    reason: str = ""
    folder: Path | None = None
    seconds: float = 0.0
    # Of its headline metric, where it is complete.
    score: float | None = None
    metric: str = ""
    # It ended so in an earlier sweep and was not run again.
    known: bool = False


def unheard(note: str) -> None:
    """Nobody listens to what this process's run is doing."""


# Within a trial, what it is doing goes to the sweep's screen.
tell: Callable[[str], None] = unheard


def settled_outcome(config: Config, folder: Path) -> Outcome | None:
    """How a trial ended earlier, if it would end so again.

    Raises UserError where the folder holds another run.
    """
    if result := complete_result(config, folder):
        score, metric = headline_score(result)
        return Outcome(RunState.complete, "", folder, sum(result["seconds"].values()), score, metric, known=True)
    file = folder / "result.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    state = RunState(earlier.get("status", "waiting"))
    if state is RunState.pruned and config.sweep.trial is None:
        return None  # a search gave it up, which is no reason for others to
    if state not in FINAL or config.sweep.repeat_failures:
        return None
    return Outcome(state, earlier["reason"], folder, earlier["seconds_in_all"], known=True)


def state_after_error(error: BaseException) -> RunState:
    """How a run ended that raised this."""
    kinds: dict[type[BaseException], RunState] = {
        Pruned: RunState.pruned,
        BusyError: RunState.busy,
        UserError: RunState.refused,
        FloatingPointError: RunState.diverged,
        SystemExit: RunState.exited,
        KeyboardInterrupt: RunState.killed,
    }
    known = next((state for kind, state in kinds.items() if isinstance(error, kind)), None)
    return known or (RunState.out_of_memory if _is_out_of_memory(error) else RunState.failed)


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    told = any(text in str(error) for text in OUT_OF_MEMORY)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and told)


def conclude_run(config: Config, folder: Path, state: RunState, reason: str, seconds: float) -> Outcome:
    """How a trial ended, with its score; one that has none leaves a result.json that says why."""
    outcome = Outcome(state, reason, folder, seconds)
    if state is RunState.complete:
        result = complete_result(config, folder)
        assert result
        score, metric = headline_score(result)
        return replace(outcome, score=score, metric=metric)
    if state is not RunState.busy:
        write_failure(config, folder, state.value, reason, seconds)
    return outcome


def headline_score(result: dict[str, Any]) -> tuple[float, str]:
    """The tuned model's mean on the headline metric, and that metric's name."""
    metric = result["evaluation"]["metric"]
    return result["evaluation"]["arms"]["tuned"][metric]["mean"], metric


def write_failure(config: Config, run: Path, status: str, reason: str, seconds: float) -> None:
    """Leave a result.json that says how the run ended, unless its folder is in another process's or run's hands."""
    file = run / "result.json"
    try:
        if complete_result(config, run) or (file.exists() and json.loads(file.read_text())["status"] == "complete"):
            return
        with hold_run(config, run, is_main_process=True):
            content = {"name": run.name, "status": status, "reason": reason, "seconds_in_all": round(seconds, 1)}
            content |= {"config": without_secrets(to_plain(config))}
            write_text(run / "result.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except UserError:
        return


def run_to_outcome(run: Callable[[Config], None], config: Config) -> tuple[RunState, str]:
    """Run, and tell how that ended; what is to end the whole process goes through."""
    try:
        run(config)
    except Exception as error:
        state = state_after_error(error)
        return state, _reason(error, state)
    return RunState.complete, ""


def _reason(error: Exception, state: RunState) -> str:
    """Why the run ended, in words; what no message tells goes into its log, too."""
    if isinstance(error, Pruned | UserError | FloatingPointError):
        if state is RunState.refused:
            print(f"Error: {error}", file=sys.stderr)
        return str(error)
    stack = "".join(traceback.format_exception(error))
    print(stack, file=sys.stderr)
    if state is RunState.out_of_memory:
        return " ".join(str(error).split()) or type(error).__name__
    return stack
