"""What became of each trial of a sweep? Kept in `<output_dir>/sweeps/<name>/sweep.json`, up to date at any time."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock

from finetune.runs.files import replace_file
from finetune.runs.outcome import UNENDED, Outcome, RunState
from finetune.runs.result import RESULT, SELECTION
from finetune.secrets import without_secrets

# Numbers in a sweep's record from which on they are a search's repetitions over seeds, and its test of the winner.
REPETITIONS, CONFIRMATION = 10_000, 20_000
# Settings of the command that do not make it another sweep.
OUTSIDE_NAME = ("sweep.", "hydra.launcher", "hydra/launcher", "hydra.sweeper.n_", "tracking", "force", "plan.")


@dataclass(frozen=True)
class TrialRecord:
    """One line of sweep.json."""

    number: int
    overrides: list[str]
    folder: str
    state: RunState = RunState.waiting
    reason: str = ""
    seconds: float = 0.0
    score: float | None = None

    @property
    def result(self) -> str:
        """The file in its folder that says what it came to; a search's trials are scored on validation prompts."""
        return SELECTION if "sweep.on_validation=true" in self.overrides else RESULT


@dataclass
class SweepRecord:
    """The sweep's sweep.json. Several processes may write to it, each the lines of its own trials."""

    folder: Path
    command: list[str]
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    common: frozenset[str] = frozenset()  # overrides that all trials have

    @property
    def file(self) -> Path:
        return self.folder / "sweep.json"

    def begin(self, number: int, overrides: Sequence[str], folder: Path | None, state: RunState) -> None:
        self.write(TrialRecord(number, list(overrides), str(folder or ""), state))

    def end(self, number: int, outcome: Outcome) -> None:
        seconds, ended = round(outcome.seconds, 1), self.trials[number]
        self.write(replace(ended, state=outcome.state, reason=outcome.reason, score=outcome.score, seconds=seconds))

    def give_up(self, number: int, reason: str) -> None:
        """Write that a trial, perhaps of another process, was killed, where its line says that it runs."""
        trial = read_trials(self.file).get(number)
        if trial and trial.state in UNENDED:
            self.write(replace(trial, state=RunState.killed, reason=reason))

    def swept(self, number: int) -> str:
        """What sets a trial apart from the others."""
        shared, own = without_secrets([*self.command, *self.common]), self.trials[number].overrides
        return " ".join(text for text in own if text not in shared and not text.startswith("sweep."))

    def write(self, *changed: TrialRecord) -> None:
        """Write lines, in the place of those of the same numbers, without secrets."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shown = [
            replace(trial, overrides=without_secrets(trial.overrides), reason=without_secrets(trial.reason))
            for trial in changed
        ]
        with FileLock(self.folder / ".lock"):
            self.trials = read_trials(self.file) | {trial.number: trial for trial in shown}
            plain = [vars(trial) | {"state": trial.state.value} for _, trial in sorted(self.trials.items())]
            lines = [json.dumps(trial, ensure_ascii=False) for trial in plain]
            command = without_secrets(self.command)
            head = json.dumps({"name": self.folder.name, "command": command}, ensure_ascii=False)[:-1]
            replace_file(self.file, f'{head}, "trials": [\n' + ",\n".join(lines) + "\n]}\n")


def read_trials(file: Path) -> dict[int, TrialRecord]:
    """The trials of a sweep.json by number; none where there is no such file."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"trials": []}
    return {line["number"]: TrialRecord(**(line | {"state": RunState(line["state"])})) for line in content["trials"]}


def open_sweep_record(output_dir: str, name: str | None, command: Iterable[str]) -> SweepRecord:
    """The record of the sweep that a command line starts or continues."""
    command = list(command)
    return SweepRecord(Path(output_dir) / "sweeps" / (name or sweep_name(command)), command)


def sweep_name(command: Iterable[str]) -> str:
    """Eight hexadecimal digits that follow from what a command line sweeps, behind the name of its preset if any."""
    swept = sorted(text for text in command if not text.lstrip("+").startswith(OUTSIDE_NAME))
    presets = [text.partition("=")[2] for text in swept if text.startswith("sweep=")]
    return "-".join([*presets, hashlib.sha256(json.dumps(swept).encode()).hexdigest()[:8]])
