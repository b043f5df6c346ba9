"""Which of these runs is best, what sets them apart, and at what cost? `python -m finetune compare RUN...`."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune import metrics, ranking, settings, significance
from finetune.schema import UserError
from finetune.significance import Difference

BEGUN = ("result.json", "log.txt", "checkpoints", "wandb")


@dataclass(frozen=True)
class Run:
    """A complete run, as its files tell of it."""

    folder: Path
    result: dict[str, Any]
    predictions: list[dict[str, Any]]
    history: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.name

    @cached_property
    def asked(self) -> str:
        """The prompts and their references: equal for runs that can be paired."""
        return json.dumps([self.split, *([row["prompt"], row["reference"]] for row in self.predictions)])

    @property
    def verdict(self) -> str:
        """Whether this run was worth it, in its own words."""
        return str(self.result["evaluation"]["verdict"]["sentence"])

    @property
    def split(self) -> str:
        """Whether the prompts are of the test or of the validation rows."""
        return str(self.result["evaluation"]["split"])

    def tuned(self, metric: str) -> dict[str, Any]:
        """The tuned model's score with its interval."""
        found: dict[str, Any] = self.result["evaluation"]["arms"]["tuned"][metric]
        return found


@dataclass(frozen=True)
class Comparison:
    """Runs on the same prompts, the best first: the groups of those that cannot be told apart, the differences to the
    best with corrected p, the settings that differ, and the prompts whose scores do, with the largest difference.
    """

    metric: str
    runs: list[Run]
    groups: list[str]
    to_best: list[Difference | None]
    settings: list[dict[str, Any]]
    disagreements: list[tuple[int, float]]

    @property
    def split(self) -> str:
        """Of which rows the prompts are."""
        return self.runs[0].split

    @property
    def correction(self) -> str:
        """How the groups were found, in a sentence."""
        count, prompts = len(self.runs) * (len(self.runs) - 1) // 2, len(self.runs[0].predictions)
        tests = f"{count} paired test{'s' if count > 1 else ''} on the same {prompts:,} prompts"
        return (
            f"Runs that share a letter cannot be told apart: {tests}, p corrected by Holm's method "
            f"and compared with {significance.MAX_P}."
        )


def find(arguments: Iterable[str]) -> tuple[list[Run], list[Path]]:
    """The complete runs and the unfinished ones among run folders, folders of runs, and globs of either.

    Raises UserError where there is no run.
    """
    complete, unfinished = [], []
    for folder in dict.fromkeys(path.resolve() for argument in arguments for path in folders(argument)):
        if run := _read(folder):
            complete.append(run)
        else:
            unfinished.append(folder)
    if not complete:
        names = ", ".join(str(folder) for folder in unfinished)
        raise UserError(f"{names}: no run is complete. The command that started one finishes it.")
    return complete, unfinished


def compare(runs: Iterable[Run], metric: str | None = None) -> list[Comparison]:
    """One comparison for each set of test prompts, the one with the most runs first.

    Raises UserError where runs on the same prompts were not all scored by the metric (None: their first one).
    """
    by_prompts: dict[str, list[Run]] = {}
    for run in runs:
        by_prompts.setdefault(run.asked, []).append(run)
    return [_compare(group, metric) for group in sorted(by_prompts.values(), key=len, reverse=True)]


def _compare(runs: list[Run], metric: str | None) -> Comparison:
    metric = metric or _headline(runs)
    for run in runs:
        _require_metric(run, metric)
    sign = -1 if metrics.HIGHER_IS_BETTER[metric] else 1
    runs = sorted(runs, key=lambda run: (sign * run.tuned(metric)["mean"], run.name))
    rows = [run.predictions for run in runs]
    differences = ranking.compare_all(rows, metric, runs[0].result["config"]["data"]["seed"])
    corrected = dict(zip(differences, ranking.holm([found.p for found in differences.values()]), strict=True))
    return Comparison(
        metric=metric,
        runs=runs,
        groups=ranking.letters(len(runs), lambda i, j: corrected[i, j] <= significance.MAX_P),
        to_best=[None, *(_to_best(differences[0, i], corrected[0, i]) for i in range(1, len(runs)))],
        settings=settings.varying(run.result["config"] for run in runs),
        disagreements=ranking.disagreements(rows, metric),
    )


def _to_best(found: Difference, p: float) -> Difference:
    """The run minus the best one, from the best one minus the run."""
    return Difference(-found.mean, -found.high, -found.low, p, found.test, found.prompts, found.draws)


def _headline(runs: list[Run]) -> str:
    names = {run.result["evaluation"]["metric"]: run.name for run in runs}
    if len(names) > 1:
        told = ", ".join(f"{metric} ({run})" for metric, run in names.items())
        raise UserError(f"The runs are ranked by different metrics: {told}. Choose one with --metric.")
    return next(iter(names))


def _require_metric(run: Run, metric: str) -> None:
    known = [name for name in run.result["evaluation"]["arms"]["tuned"] if name in metrics.NAMES]
    if metric not in known:
        raise UserError(f"--metric {metric}: {run.folder} was not scored by it, but by {', '.join(known)}.")


# -- files ------------------------------------------------------------------------------------------------------------


def folders(argument: str) -> Iterator[Path]:
    """The folders of runs that an argument names. Raises UserError where there is none."""
    path = Path(argument)
    matches = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    known = [match for match in matches if match.is_dir()]
    found = [run for folder in known for run in _runs(folder)]
    if not found:
        why = "holds no run" if known else "is no folder" if path.exists() else "does not exist"
        raise UserError(f"{argument}: {why}. Name folders of runs, such as outputs/NAME or outputs.")
    yield from found


def _runs(folder: Path) -> Iterable[Path]:
    """The folder itself, or the runs of a sweep, or all runs inside it."""
    if _begun(folder):
        return [folder]
    if (folder / "sweep.json").exists():
        trials = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["trials"]
        return [Path(trial["folder"]) for trial in trials if trial.get("folder")]
    return filter(_begun, sorted(path for path in folder.iterdir() if path.is_dir()))


def _begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in BEGUN)


def _read(folder: Path) -> Run | None:
    """The run in a folder, None if it is not complete."""
    try:
        file = folder / "result.json"
        result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if result.get("status") != "complete":
            return None
        run = Run(folder, result, _lines(folder / "predictions.jsonl"), _lines(folder / "history.jsonl"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: a file of the run cannot be read: {error}") from error
    known = result.get("evaluation", {})
    if not {"arms", "verdict", "metric"} <= known.keys() or not all("tuned" in row for row in run.predictions):
        raise UserError(f"{folder}: another version of this program wrote the run; start it again under a new name.")
    return run


def _lines(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
