"""What do the files of complete runs tell?"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.runs.sweep_record import REPETITIONS, TrialRecord, read_trials

BEGUN = ("result.json", "log.txt", "checkpoints", "wandb")


@dataclass(frozen=True)
class CompletedRun:
    """A complete run, as its files tell of it."""

    folder: Path
    result: dict[str, Any]
    predictions: list[dict[str, Any]]
    history: list[dict[str, Any]]
    # Its number, where it is looked at as a part of its sweep.
    trial: int | None = None

    @property
    def name(self) -> str:
        """The name of the run's folder, or the number of the trial."""
        return self.folder.name if self.trial is None else f"trial {self.trial}"

    @cached_property
    def asked(self) -> str:
        """The prompts and their references: equal for runs that can be paired."""
        return json.dumps([self.split, *([row["prompt"], row["reference"]] for row in self.predictions)])

    def measured(self, metric: str | None) -> str:
        """What else must be equal for the metric (None: the run's first one): perplexity's tokens, of one tokenizer."""
        if (metric or self.result["evaluation"]["metric"]) != "perplexity":
            return ""
        return json.dumps([row["tuned"].get("tokens") for row in self.predictions])

    @property
    def verdict(self) -> str:
        """Whether this run was worth it, in its own words; empty for a search's trial, which has no rival."""
        found = self.result["evaluation"]["verdict"]
        return str(found["sentence"]) if found else ""

    @property
    def split(self) -> str:
        """Whether the prompts are of the test or of the validation rows."""
        return str(self.result["evaluation"]["split"])

    def tuned(self, metric: str) -> dict[str, Any]:
        """The tuned model's score with its interval."""
        found: dict[str, Any] = self.result["evaluation"]["arms"]["tuned"][metric]
        return found


def find_runs(arguments: Iterable[str]) -> tuple[list[CompletedRun], list[Path]]:
    """The complete runs and the unfinished ones among run folders, folders of runs, and globs of either.

    Raises UserError where there is no run.
    """
    places = dict.fromkeys(place for argument in arguments for place in _places(argument))
    found = [(folder, read_run(folder, file)) for folder, file in places]
    complete, unfinished = [run for _, run in found if run], [folder for folder, run in found if not run]
    if not complete:
        names = ", ".join(str(folder) for folder in unfinished)
        raise UserError(f"{names}: no run is complete. The command that started one finishes it.")
    return complete, unfinished


def run_folders(argument: str) -> Iterator[Path]:
    """The folders of runs that an argument names; of a sweep its own and its trials'. Raises UserError for none."""
    for folder in _named_folders(argument):
        yield folder
        if is_sweep(folder):
            yield from (trial_folder(folder, trial) for trial in _trials(folder))


def is_sweep(folder: Path) -> bool:
    """Whether it is the folder of a sweep, which names its trials' folders."""
    return (folder / "sweep.json").exists()


def trial_folder(sweep: Path, trial: TrialRecord) -> Path:
    """The folder of a sweep's trial, also where both were moved, or this program runs elsewhere."""
    own = Path(trial.folder)
    return own.resolve() if own.exists() else sweep.resolve().parent.parent / own.name


def _named_folders(argument: str) -> list[Path]:
    """The folders of runs and of sweeps that an argument names."""
    path = Path(argument)
    matches = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    known = [match.resolve() for match in matches if match.is_dir()]
    found = [inner for folder in known for inner in ([folder] if _begun(folder) else _inside(folder))]
    if not found:
        why = "holds no run" if known else "is no folder" if path.exists() else "does not exist"
        raise UserError(f"{argument}: {why}. Name folders of runs, such as outputs/NAME or outputs.")
    return found


def _inside(folder: Path) -> Iterable[Path]:
    return filter(_begun, sorted(path for path in folder.iterdir() if path.is_dir()))


def _begun(folder: Path) -> bool:
    return is_sweep(folder) or any((folder / name).exists() for name in BEGUN)


def _places(argument: str) -> Iterator[tuple[Path, str]]:
    """The folders of the runs that an argument names, and the file in each that says what it came to."""
    for folder in _named_folders(argument):
        if is_sweep(folder):
            known = (trial for trial in _trials(folder) if trial.number < REPETITIONS)
            yield from ((trial_folder(folder, trial), trial.result) for trial in known)
        else:
            yield folder, "result.json"


def _trials(sweep: Path) -> list[TrialRecord]:
    return [trial for trial in read_trials(sweep / "sweep.json").values() if trial.folder]


def read_run(folder: Path, file: str = "result.json") -> CompletedRun | None:
    """The run in a folder by the file that says what it came to; None if it is not complete."""
    answered = "predictions.jsonl" if file == "result.json" else "validation_predictions.jsonl"
    try:
        found = folder / file
        result = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
        if result.get("status") != "complete":
            return None
        run = CompletedRun(folder, result, _lines(folder / answered), _lines(folder / "history.jsonl"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: a file of the run cannot be read: {error}") from error
    known = result.get("evaluation", {})
    if not {"arms", "verdict", "metric"} <= known.keys() or not all("tuned" in row for row in run.predictions):
        raise UserError(f"{folder}: another version of this program wrote the run; start it again under a new name.")
    return run


def _lines(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
