"""Which of these runs is best, what sets them apart, and at what cost? `python -m finetune compare RUN...`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from finetune.comparison.pairwise import compact_letters, compare_pairs, correct_holm, disagreements, setting_importance
from finetune.config.settings import varying_settings
from finetune.errors import UserError
from finetune.evaluation.metrics import HIGHER_IS_BETTER, MEANS, METRICS
from finetune.evaluation.statistics import MAX_P
from finetune.runs.read import CompletedRun
from finetune.runs.result import Difference

# Up to so many runs all pairs are tested, of more only those with the best: their number grows with the square, and
# a metric of the whole set, which is computed anew for every resample, takes a second for each.
MOST_PAIRED, MOST_PAIRED_CORPUS = 12, 5


@dataclass(frozen=True)
class Comparison:
    """Runs on the same prompts, the best first; groups, differences and settings are in the order of the runs."""

    metric: str
    runs: list[CompletedRun]
    all_pairs: bool  # whether all pairs of runs were tested, and not only the best one with each other
    groups: list[str]  # letters; a run cannot be told apart from those that share one
    to_best: list[Difference | None]  # the run minus the best one, with corrected p
    settings: list[dict[str, object]]  # those that differ between the runs
    disagreements: list[tuple[int, float]]  # the prompts whose scores differ, and by how much

    @property
    def split(self) -> str:
        return self.runs[0].result.evaluation.split

    @property
    def correction(self) -> str:
        """How the groups were found, in a sentence."""
        others, prompts = len(self.runs) - 1, len(self.runs[0].predictions)
        count = len(self.runs) * others // 2 if self.all_pairs else others
        tests = f"{count} paired test{'s' if count > 1 else ''} on the same {prompts:,} prompts"
        best = "have the letter a cannot be told from the best"
        groups = "share a letter cannot be told apart" if self.all_pairs else best
        method = f"Runs that {groups}: {tests}, p corrected by Holm's method and compared with {MAX_P}."
        flattered = " The best is chosen on the test prompts themselves, which flatters it; a search's is not."
        return method + (flattered if self.split == "test" and len(self.runs) > 2 else "")

    @property
    def scores(self) -> list[float]:
        return [run.tuned(self.metric).mean for run in self.runs]

    @property
    def varying(self) -> dict[str, list[float] | list[str]]:
        """The settings that differ, each with its value in every run; as texts, unless all are numbers."""
        varying: dict[str, list[float] | list[str]] = {}
        for key in self.settings[0]:
            values = [settings[key] for settings in self.settings]
            numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
            varying[key] = numbers if len(numbers) == len(values) else [str(value) for value in values]
        return varying

    @cached_property
    def importance(self) -> tuple[dict[str, float], str]:
        """The share of the scores' variance that each setting explains, or why that cannot be known."""
        return setting_importance(self.varying, self.scores) if self.varying else ({}, "The runs' settings are equal.")


def compare_runs(runs: Iterable[CompletedRun], metric: str | None = None) -> list[Comparison]:
    """One comparison for each set of prompts, most runs first; UserError where its runs lack the metric."""
    by_prompts: dict[str, list[CompletedRun]] = {}
    for run in runs:
        by_prompts.setdefault(run.pairing_key(metric), []).append(run)
    return [_compare(group, metric) for group in sorted(by_prompts.values(), key=len, reverse=True)]


def _compare(runs: list[CompletedRun], metric: str | None) -> Comparison:
    metric = _common_metric(runs, metric)
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    runs = sorted(runs, key=lambda run: (sign * run.tuned(metric).mean, run.name))
    predictions, others = [run.predictions for run in runs], range(1, len(runs))
    all_pairs = len(runs) <= (MOST_PAIRED if metric in MEANS else MOST_PAIRED_CORPUS)
    differences = compare_pairs(predictions, metric, runs[0].result.config["data"]["seed"], only_best=not all_pairs)
    corrected = dict(zip(differences, correct_holm([pair.p for pair in differences.values()]), strict=True))
    if all_pairs:
        groups = compact_letters(len(runs), lambda i, j: corrected[i, j] <= MAX_P)
    else:
        groups = ["a", *("" if corrected[0, i] <= MAX_P else "a" for i in others)]
    to_best: list[Difference | None] = [None]
    for i in others:
        pair = differences[0, i]
        to_best.append(replace(pair, mean=0 - pair.mean, low=0 - pair.high, high=0 - pair.low, p=corrected[0, i]))
    settings = varying_settings(run.result.config for run in runs)
    return Comparison(metric, runs, all_pairs, groups, to_best, settings, disagreements(predictions, metric))


def _common_metric(runs: list[CompletedRun], metric: str | None) -> str:
    """The metric, or the runs' headline one where none is given."""
    names = {run.result.evaluation.metric: run.name for run in runs}
    if not metric and len(names) > 1:
        metrics = ", ".join(f"{metric} ({run})" for metric, run in names.items())
        raise UserError(f"The runs are ranked by different metrics: {metrics}. Choose one with --metric.")
    metric = metric or next(iter(names))
    for run in runs:
        scored = [name for name in run.result.evaluation.arms["tuned"].scores if name in METRICS]
        if metric not in scored:
            raise UserError(f"--metric {metric}: {run.folder} was not scored by it, but by {', '.join(scored)}.")
    return metric
