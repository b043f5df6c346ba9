"""What became of each trial of a sweep? Kept in `<output_dir>/sweeps/<name>/sweep.json`, up to date at any time."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock

from finetune.config.schema import Config, UserError
from finetune.runs import folder as checkpoint


class State(Enum):
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


# Numbers in a sweep's record from which on they are a search's repetitions over seeds, and its test of the winner.
REPETITIONS, CONFIRMATION = 10_000, 20_000
# How a trial would end again; the same command leaves those that ended so, and repeats all others. What was refused is
# cheap to ask again, and may be allowed by now: a file was mended, the network is back, or force=true was added.
FINAL = (State.complete, State.pruned, State.diverged, State.out_of_memory)
SUCCESSFUL = (State.complete, State.pruned)
UNENDED = (State.waiting, State.running)
# Settings of the command that do not make it another sweep.
OUTSIDE_NAME = ("sweep.", "hydra.launcher", "hydra/launcher", "hydra.sweeper.n_", "tracking", "force", "plan.")
# What PyTorch says without an exception class of its own.
OUT_OF_MEMORY = ("memory: you tried to allocate", "out of memory", "STATUS_ALLOC_FAILED")


class Pruned(Exception):  # noqa: N818 (it is no error)
    """Raised within a run to end it early; its message is the reason."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: State
    reason: str = ""
    folder: Path | None = None
    seconds: float = 0.0
    # Of its headline metric, where it is complete.
    score: float | None = None
    metric: str = ""
    # It ended so in an earlier sweep and was not run again.
    known: bool = False


@dataclass(frozen=True)
class Trial:
    """One line of sweep.json."""

    number: int
    overrides: list[str]
    folder: str
    state: State = State.waiting
    reason: str = ""
    seconds: float = 0.0
    score: float | None = None

    @property
    def result(self) -> str:
        """The file in its folder that says what it came to; a search's trials are scored on validation prompts."""
        return checkpoint.SELECTION if "sweep.on_validation=true" in self.overrides else "result.json"


@dataclass(frozen=True)
class Cost:
    """What a trial is expected to take. Its verdict is that of `stage=plan`."""

    seconds: float
    peak_bytes: int
    available_bytes: int
    verdict: str
    # False: the seconds are those of matrix products alone, so that the trial takes longer.
    measured: bool


# What the trials of this process came to, by number; the exit code follows from it.
ended: dict[int, State] = {}


def unheard(note: str) -> None:
    """Nobody listens to what this process's run is doing."""


# Within a trial, what it is doing goes to the sweep's screen.
tell: Callable[[str], None] = unheard


@dataclass
class Record:
    """The sweep's sweep.json. Several processes may write to it, each the lines of its own trials."""

    folder: Path
    command: list[str]
    trials: dict[int, Trial] = field(default_factory=dict)
    # Overrides that all trials have.
    common: frozenset[str] = frozenset()

    @property
    def file(self) -> Path:
        """`<output_dir>/sweeps/<name>/sweep.json`."""
        return self.folder / "sweep.json"

    def begin(self, number: int, overrides: Sequence[str], folder: Path | None, state: State) -> None:
        """Write that a trial waits or runs."""
        self.write(Trial(number, list(overrides), str(folder or ""), state))

    def end(self, number: int, outcome: Outcome) -> None:
        """Write how a trial that was begun ended."""
        found = replace(self.trials[number], state=outcome.state, reason=outcome.reason, score=outcome.score)
        self.write(replace(found, seconds=round(outcome.seconds, 1)))

    def give_up(self, number: int, reason: str) -> None:
        """Write that a trial, perhaps of another process, was killed, where its line says that it runs."""
        trial = read(self.file).get(number)
        if trial and trial.state in UNENDED:
            self.write(replace(trial, state=State.killed, reason=reason))

    def swept(self, number: int) -> str:
        """What sets a trial apart from the others."""
        known = {*self.command, *self.common}
        given = self.trials[number].overrides
        return " ".join(text for text in given if text not in known and not text.startswith("sweep."))

    def write(self, *changed: Trial) -> None:
        """Write lines, in the place of those of the same numbers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self.trials = read(self.file) | {trial.number: trial for trial in changed}
            lines = [json.dumps(_plain(self.trials[number]), ensure_ascii=False) for number in sorted(self.trials)]
            head = json.dumps({"name": self.folder.name, "command": self.command}, ensure_ascii=False)[:-1]
            checkpoint.write(self.file, f'{head}, "trials": [\n' + ",\n".join(lines) + "\n]}\n")


def read(file: Path) -> dict[int, Trial]:
    """The trials of a sweep.json by number; none where there is no such file."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"trials": []}
    return {line["number"]: Trial(**(line | {"state": State(line["state"])})) for line in content["trials"]}


def open_record(output_dir: str, name: str | None, command: Iterable[str]) -> Record:
    """The record of the sweep that a command line starts or continues."""
    command = list(command)
    return Record(Path(output_dir) / "sweeps" / (name or name_of(command)), command)


def name_of(command: Iterable[str]) -> str:
    """Eight hexadecimal digits that follow from what a command line sweeps, behind the name of its preset if any."""
    swept = sorted(text for text in command if not text.lstrip("+").startswith(OUTSIDE_NAME))
    presets = [text.partition("=")[2] for text in swept if text.startswith("sweep=")]
    return "-".join([*presets, hashlib.sha256(json.dumps(swept).encode()).hexdigest()[:8]])


def settled(config: Config, folder: Path) -> Outcome | None:
    """How a trial ended earlier, if it would end so again.

    Raises UserError where the folder holds another run.
    """
    if result := checkpoint.result(config, folder):
        score, metric = score_of(result)
        return Outcome(State.complete, "", folder, sum(result["seconds"].values()), score, metric, known=True)
    file = folder / "result.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    state = State(earlier.get("status", "waiting"))
    if state is State.pruned and config.sweep.trial is None:
        return None  # a search gave it up, which is no reason for others to
    if state not in FINAL or config.sweep.repeat_failures:
        return None
    return Outcome(state, earlier["reason"], folder, earlier["seconds_in_all"], known=True)


def state_after(error: BaseException) -> State:
    """How a run ended that raised this."""
    kinds: dict[type[BaseException], State] = {
        Pruned: State.pruned,
        checkpoint.BusyError: State.busy,
        UserError: State.refused,
        FloatingPointError: State.diverged,
        SystemExit: State.exited,
        KeyboardInterrupt: State.killed,
    }
    known = next((state for kind, state in kinds.items() if isinstance(error, kind)), None)
    return known or (State.out_of_memory if _is_out_of_memory(error) else State.failed)


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    told = any(text in str(error) for text in OUT_OF_MEMORY)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and told)


def conclude(config: Config, folder: Path, state: State, reason: str, seconds: float) -> Outcome:
    """How a trial ended, with its score; one that has none leaves a result.json that says why."""
    outcome = Outcome(state, reason, folder, seconds)
    if state is State.complete:
        result = checkpoint.result(config, folder)
        assert result
        score, metric = score_of(result)
        return replace(outcome, score=score, metric=metric)
    if state is not State.busy:
        checkpoint.write_failure(config, folder, state.value, reason, seconds)
    return outcome


def score_of(result: dict[str, Any]) -> tuple[float, str]:
    """The tuned model's mean on the headline metric, and that metric's name."""
    metric = result["evaluation"]["metric"]
    return result["evaluation"]["arms"]["tuned"][metric]["mean"], metric


def _plain(trial: Trial) -> dict[str, Any]:
    return vars(trial) | {"state": trial.state.value}
