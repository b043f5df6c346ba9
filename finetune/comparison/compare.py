"""Which of these runs is best, what sets them apart, and at what cost? `python -m finetune compare RUN...`."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune.comparison.pairwise import compact_letters, compare_pairs, correct_holm, disagreements, setting_importance
from finetune.config.settings import varying_settings
from finetune.errors import UserError
from finetune.evaluation.metrics import HIGHER_IS_BETTER, METRICS, PER_PROMPT
from finetune.evaluation.statistics import MAX_P, Difference
from finetune.runs.read import CompletedRun

# Up to so many runs all pairs are tested, of more only those with the best: their number grows with the square, and
# a metric of the whole set, which is computed anew for every resample, takes a second for each.
MOST_PAIRED, MOST_PAIRED_CORPUS = 12, 5


@dataclass(frozen=True)
class Comparison:
    """Runs on the same prompts, the best first: the groups of those that cannot be told apart, the differences to the
    best with corrected p, the settings that differ, and the prompts whose scores do, with the largest difference.
    """

    metric: str
    runs: list[CompletedRun]
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
        told = f"Runs that {alike}: {tests}, p corrected by Holm's method and compared with {MAX_P}."
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
        return setting_importance(self.varying, self.scores) if self.varying else ({}, "The runs' settings are equal.")


def compare_runs(runs: Iterable[CompletedRun], metric: str | None = None) -> list[Comparison]:
    """One comparison for each set of test prompts, the one with the most runs first.

    Raises UserError where runs on the same prompts were not all scored by the metric (None: their first one).
    """
    by_prompts: dict[str, list[CompletedRun]] = {}
    for run in runs:
        by_prompts.setdefault(run.asked + run.measured(metric), []).append(run)
    return [_compare(group, metric) for group in sorted(by_prompts.values(), key=len, reverse=True)]


def _compare(runs: list[CompletedRun], metric: str | None) -> Comparison:
    metric = metric or _headline(runs)
    for run in runs:
        _require_metric(run, metric)
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    runs = sorted(runs, key=lambda run: (sign * run.tuned(metric)["mean"], run.name))
    rows = [run.predictions for run in runs]
    all_pairs = len(runs) <= (MOST_PAIRED if metric in PER_PROMPT else MOST_PAIRED_CORPUS)
    differences = compare_pairs(rows, metric, runs[0].result["config"]["data"]["seed"], only_best=not all_pairs)
    corrected = dict(zip(differences, correct_holm([found.p for found in differences.values()]), strict=True))
    apart = {pair: p <= MAX_P for pair, p in corrected.items()}
    groups = (
        compact_letters(len(runs), lambda i, j: apart[i, j])
        if all_pairs
        else ["a", *("" if apart[0, i] else "a" for i in range(1, len(runs)))]
    )
    return Comparison(
        metric=metric,
        runs=runs,
        all_pairs=all_pairs,
        groups=groups,
        to_best=[None, *(_to_best(differences[0, i], corrected[0, i]) for i in range(1, len(runs)))],
        settings=varying_settings(run.result["config"] for run in runs),
        disagreements=disagreements(rows, metric),
    )


def _to_best(found: Difference, p: float) -> Difference:
    """The run minus the best one, from the best one minus the run."""
    return Difference(0 - found.mean, 0 - found.high, 0 - found.low, p, found.test, found.prompts, found.draws)


def _headline(runs: list[CompletedRun]) -> str:
    names = {run.result["evaluation"]["metric"]: run.name for run in runs}
    if len(names) > 1:
        told = ", ".join(f"{metric} ({run})" for metric, run in names.items())
        raise UserError(f"The runs are ranked by different metrics: {told}. Choose one with --metric.")
    return next(iter(names))


def _require_metric(run: CompletedRun, metric: str) -> None:
    known = [name for name in run.result["evaluation"]["arms"]["tuned"] if name in METRICS]
    if metric not in known:
        raise UserError(f"--metric {metric}: {run.folder} was not scored by it, but by {', '.join(known)}.")
