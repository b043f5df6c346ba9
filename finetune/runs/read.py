"""Which runs do these folders hold, and what do their files say?"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import UserError
from finetune.runs.files import read_jsonl, write_json, write_jsonl
from finetune.runs.predictions import HISTORY, PREDICTIONS, History, Prediction, read_predictions, write_predictions
from finetune.runs.result import RESULT, SELECTION, Interval, RunResult, read_result
from finetune.runs.sweep_record import REPETITIONS, TrialRecord, read_trials

ANSWERS = {RESULT: PREDICTIONS, SELECTION: "validation_predictions.jsonl"}  # those that each result scores
BEGUN = (RESULT, "log.txt", "checkpoints", "wandb")  # any of these shows that a run was begun in a folder


@dataclass(frozen=True)
class CompletedRun:
    """A complete run, as its files tell of it."""

    folder: Path
    result: RunResult
    predictions: list[Prediction]
    history: History
    trial: int | None = None  # its number, where it is looked at as a part of its sweep

    @property
    def name(self) -> str:
        return self.folder.name if self.trial is None else f"trial {self.trial}"

    def pairing_key(self, metric: str | None) -> str:
        """Equal for runs that can be paired by a metric (None: the first): prompts, references and tokens."""
        rows = [[row.prompt, row.reference, row.arms["tuned"].tokens] for row in self.predictions]
        has_tokens = (metric or self.result.evaluation.metric) == "perplexity"
        return json.dumps([self.result.evaluation.split, *(row if has_tokens else row[:2] for row in rows)])

    @property
    def verdict(self) -> str:
        verdict = self.result.evaluation.verdict
        return verdict.sentence if verdict else ""

    def tuned(self, metric: str) -> Interval:
        return self.result.evaluation.tuned(metric)


def find_runs(arguments: Iterable[str]) -> tuple[list[CompletedRun], list[Path]]:
    """The complete runs and the unfinished ones among folders of one or more, and globs; raises UserError for none."""
    files: dict[Path, None] = {}  # what says what each run came to, whether it is there or not
    for folder in (folder for argument in arguments for folder in _named_folders(argument)):
        trials = [trial for trial in _begun_trials(folder) if trial.number < REPETITIONS]
        own = [] if is_sweep(folder) else [folder / RESULT]
        files |= dict.fromkeys([*own, *(trial_folder(folder, trial) / trial.result for trial in trials)])
    runs = [(file.parent, read_run(file.parent, file.name)) for file in files]
    complete, unfinished = [run for _, run in runs if run], [folder for folder, run in runs if not run]
    if not complete:
        raise UserError(
            f"{', '.join(map(str, unfinished))}: no run is complete. The command that started one finishes it."
        )
    return complete, unfinished


def run_folders(argument: str) -> Iterator[Path]:
    """The folders of runs that an argument names; of a sweep its own and its trials'. Raises UserError for none."""
    for folder in _named_folders(argument):
        yield from (folder, *(trial_folder(folder, trial) for trial in _begun_trials(folder)))


def is_sweep(folder: Path) -> bool:
    """Whether it is the folder of a sweep, which names its trials' folders."""
    return (folder / "sweep.json").exists()


def trial_folder(sweep: Path, trial: TrialRecord) -> Path:
    """The folder of a sweep's trial, also where both were moved, or this program runs elsewhere."""
    own = Path(trial.folder)
    return own.resolve() if own.exists() else sweep.resolve().parent.parent / own.name


def _named_folders(argument: str) -> list[Path]:
    path = Path(argument)
    matches = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    folders = [match.resolve() for match in matches if match.is_dir()]
    inside = ([folder] if _is_begun(folder) else filter(_is_begun, sorted(folder.iterdir())) for folder in folders)
    if runs := [run for folder in inside for run in folder]:
        return runs
    why = "is no folder" if path.exists() else "does not exist"
    if folders:
        why = "holds no run"
    raise UserError(f"{argument}: {why}. Name folders of runs, such as outputs/NAME or outputs.")


def _is_begun(folder: Path) -> bool:
    return is_sweep(folder) or any((folder / name).exists() for name in BEGUN)


def _begun_trials(folder: Path) -> list[TrialRecord]:
    """Those of a sweep; a run has none."""
    return [trial for trial in read_trials(folder / "sweep.json").values() if trial.folder]


def read_run(folder: Path, file: str = RESULT) -> CompletedRun | None:
    """The run in a folder by the file that says what it came to; None if it is not complete."""
    result = read_result(folder / file)
    if not isinstance(result, RunResult):
        return None
    try:
        predictions, history = read_predictions(folder / ANSWERS[file]), read_jsonl(folder / HISTORY)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: a file of the run cannot be read: {error}") from error
    return CompletedRun(folder, result, predictions, history)


def write_answers(run: CompletedRun) -> None:
    """Write what a complete run answered, and its history."""
    write_predictions(run.folder / ANSWERS[_result_file(run)], run.predictions)
    write_jsonl(run.folder / HISTORY, run.history)


def write_result(run: CompletedRun) -> None:
    """Write what says that the run is complete, when everything else is; of a search's trial it is selection.json."""
    write_json(run.folder / _result_file(run), run.result)


def _result_file(run: CompletedRun) -> str:
    return RESULT if run.result.evaluation.split == "test" else SELECTION
