"""Which of these runs is best, what sets them apart, and at what cost? `python -m finetune compare RUN...`."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.comparison import importance
from finetune.comparison import pairwise as ranking
from finetune.config import settings
from finetune.config.schema import UserError
from finetune.evaluation import metrics
from finetune.evaluation import statistics as significance
from finetune.evaluation.statistics import Difference
from finetune.runs import sweep_record as trials
from finetune.runs.sweep_record import Trial

BEGUN = ("result.json", "log.txt", "checkpoints", "wandb")
# Up to so many runs all pairs are tested, of more only those with the best: their number grows with the square, and
# a metric of the whole set, which is computed anew for every resample, takes a second for each.
MOST_PAIRED, MOST_PAIRED_CORPUS = 12, 5


@dataclass(frozen=True)
class Run:
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


@dataclass(frozen=True)
class Comparison:
    """Runs on the same prompts, the best first: the groups of those that cannot be told apart, the differences to the
    best with corrected p, the settings that differ, and the prompts whose scores do, with the largest difference.
    """

    metric: str
    runs: list[Run]
    # Whether all pairs of runs were tested, and not only the best one with each other.
    all_pairs: bool
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
        others, prompts = len(self.runs) - 1, len(self.runs[0].predictions)
        count = len(self.runs) * others // 2 if self.all_pairs else others
        tests = f"{count} paired test{'s' if count > 1 else ''} on the same {prompts:,} prompts"
        alike = (
            "share a letter cannot be told apart"
            if self.all_pairs
            else "have the letter a cannot be told from the best"
        )
        told = f"Runs that {alike}: {tests}, p corrected by Holm's method and compared with {significance.MAX_P}."
        flattered = " The best is chosen on the test prompts themselves, which flatters it; a search's is not."
        return told + (flattered if self.split == "test" and len(self.runs) > 2 else "")

    @property
    def scores(self) -> list[float]:
        """The score of each run."""
        return [run.tuned(self.metric)["mean"] for run in self.runs]

    @property
    def varying(self) -> dict[str, list[Any]]:
        """The settings that differ, each with the value that it has in every run."""
        return {key: [one[key] for one in self.settings] for key in self.settings[0]}

    @cached_property
    def importance(self) -> tuple[dict[str, float], str]:
        """The share of the scores' variance that each setting explains, or why that cannot be known."""
        return importance.measure(self.varying, self.scores) if self.varying else ({}, "The runs' settings are equal.")


def find(arguments: Iterable[str]) -> tuple[list[Run], list[Path]]:
    """The complete runs and the unfinished ones among run folders, folders of runs, and globs of either.

    Raises UserError where there is no run.
    """
    places = dict.fromkeys(place for argument in arguments for place in _places(argument))
    found = [(folder, read(folder, file)) for folder, file in places]
    complete, unfinished = [run for _, run in found if run], [folder for folder, run in found if not run]
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
        by_prompts.setdefault(run.asked + run.measured(metric), []).append(run)
    return [_compare(group, metric) for group in sorted(by_prompts.values(), key=len, reverse=True)]


def _compare(runs: list[Run], metric: str | None) -> Comparison:
    metric = metric or _headline(runs)
    for run in runs:
        _require_metric(run, metric)
    sign = -1 if metrics.HIGHER_IS_BETTER[metric] else 1
    runs = sorted(runs, key=lambda run: (sign * run.tuned(metric)["mean"], run.name))
    rows = [run.predictions for run in runs]
    all_pairs = len(runs) <= (MOST_PAIRED if metric in metrics.PER_PROMPT else MOST_PAIRED_CORPUS)
    differences = ranking.compare_all(rows, metric, runs[0].result["config"]["data"]["seed"], only_best=not all_pairs)
    corrected = dict(zip(differences, ranking.holm([found.p for found in differences.values()]), strict=True))
    apart = {pair: p <= significance.MAX_P for pair, p in corrected.items()}
    groups = (
        ranking.letters(len(runs), lambda i, j: apart[i, j])
        if all_pairs
        else ["a", *("" if apart[0, i] else "a" for i in range(1, len(runs)))]
    )
    return Comparison(
        metric=metric,
        runs=runs,
        all_pairs=all_pairs,
        groups=groups,
        to_best=[None, *(_to_best(differences[0, i], corrected[0, i]) for i in range(1, len(runs)))],
        settings=settings.varying(run.result["config"] for run in runs),
        disagreements=ranking.disagreements(rows, metric),
    )


def _to_best(found: Difference, p: float) -> Difference:
    """The run minus the best one, from the best one minus the run."""
    return Difference(0 - found.mean, 0 - found.high, 0 - found.low, p, found.test, found.prompts, found.draws)


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
    """The folders of runs that an argument names; of a sweep its own and its trials'. Raises UserError for none."""
    for folder in _named(argument):
        yield folder
        if is_sweep(folder):
            yield from (place(folder, trial) for trial in _trials(folder))


def is_sweep(folder: Path) -> bool:
    """Whether it is the folder of a sweep, which names its trials' folders."""
    return (folder / "sweep.json").exists()


def place(sweep: Path, trial: Trial) -> Path:
    """The folder of a sweep's trial, also where both were moved, or this program runs elsewhere."""
    own = Path(trial.folder)
    return own.resolve() if own.exists() else sweep.resolve().parent.parent / own.name


def _named(argument: str) -> list[Path]:
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
    for folder in _named(argument):
        if is_sweep(folder):
            known = (trial for trial in _trials(folder) if trial.number < trials.REPETITIONS)
            yield from ((place(folder, trial), trial.result) for trial in known)
        else:
            yield folder, "result.json"


def _trials(sweep: Path) -> list[Trial]:
    return [trial for trial in trials.read(sweep / "sweep.json").values() if trial.folder]


def read(folder: Path, file: str = "result.json") -> Run | None:
    """The run in a folder by the file that says what it came to; None if it is not complete."""
    answered = "predictions.jsonl" if file == "result.json" else "validation_predictions.jsonl"
    try:
        found = folder / file
        result = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
        if result.get("status") != "complete":
            return None
        run = Run(folder, result, _lines(folder / answered), _lines(folder / "history.jsonl"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: a file of the run cannot be read: {error}") from error
    known = result.get("evaluation", {})
    if not {"arms", "verdict", "metric"} <= known.keys() or not all("tuned" in row for row in run.predictions):
        raise UserError(f"{folder}: another version of this program wrote the run; start it again under a new name.")
    return run


def _lines(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
