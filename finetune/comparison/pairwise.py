"""Which runs can be told apart? Tests of all pairs on the same prompts, corrected for their number (pure functions).

A run's answers are the rows of its predictions.jsonl.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from finetune.evaluation.metrics import CORPUS, PER_PROMPT, accuracy
from finetune.evaluation.statistics import (
    CORPUS_RESAMPLES,
    MAX_P,
    RESAMPLES,
    Difference,
    corpus_difference,
    mean_difference,
)

Rows = list[dict[str, Any]]


def compare_pairs(
    runs: Sequence[Rows], metric: str, seed: int, only_best: bool = False
) -> dict[tuple[int, int], Difference]:
    """First minus second for every pair of runs on the same prompts, its p not yet corrected.

    With `only_best` of the first run with every other.
    """
    pairs = [pair for pair in combinations(range(len(runs)), 2) if pair[0] == 0 or not only_best]
    # The smallest p that n permutations can give is 2 / (n + 1); corrected for all pairs, it has to stay below 5 %.
    enough = 2 * 2 * len(pairs) / MAX_P
    return {(i, j): compare_pair(runs[i], runs[j], metric, seed, int(enough)) for i, j in pairs}


def compare_pair(first: Rows, second: Rows, metric: str, seed: int, permutations: int = 0) -> Difference:
    """The first tuned model's metric minus the second's, paired by prompt; at least so many permutations are tried."""
    if metric in PER_PROMPT:
        count = max(permutations, RESAMPLES)
        return mean_difference(prompt_scores(first, metric), prompt_scores(second, metric), seed, count)
    count = max(permutations, CORPUS_RESAMPLES)
    given = "nll" if metric == "perplexity" else "answer"
    known = [row["tuned"]["tokens"] if metric == "perplexity" else row["reference"] for row in first]
    a, b = ([row["tuned"][given] for row in rows] for rows in (first, second))
    return corpus_difference(metric, a, b, known, seed, count)


def correct_holm(values: Sequence[float]) -> list[float]:
    """Each p corrected for the number of tests, so that any false discovery is as rare as one test's (Holm 1979)."""
    corrected, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected


def compact_letters(count: int, apart: Callable[[int, int], bool]) -> list[str]:
    """For each of `count` runs, best first, its groups as letters: two runs share one unless they are `apart`.

    The compact letter display of Piepho (2004), by his insert-and-absorb algorithm.
    """
    groups = [frozenset(range(count))]
    for i, j in combinations(range(count), 2):
        if apart(i, j):
            split = {group - {one} for group in groups if {i, j} <= group for one in (i, j)}
            found = split | {group for group in groups if not {i, j} <= group}
            groups = [group for group in found if not any(group < other for other in found)]
    groups.sort(key=sorted)
    return ["".join(_letter(n) for n, group in enumerate(groups) if i in group) for i in range(count)]


def disagreements(runs: Sequence[Rows], metric: str) -> list[tuple[int, float]]:
    """The prompts on which the runs' scores are not all equal, and the largest difference; the largest first."""
    spreads = [max(one) - min(one) for one in zip(*(prompt_scores(rows, metric) for rows in runs), strict=True)]
    return sorted(((i, spread) for i, spread in enumerate(spreads) if spread > 0), key=lambda pair: -pair[1])


def prompt_score(row: dict[str, Any], arm: str, metric: str) -> float:
    """The score of an arm's answer to one prompt; of macro F1, whether the label is right."""
    if metric in CORPUS:
        draws = row[arm].get("draws", [row[arm]])
        return sum(accuracy(draw["answer"], row["reference"]) for draw in draws) / len(draws)
    return float(row[arm]["scores"][metric])


def prompt_scores(rows: Rows, metric: str) -> list[float]:
    """The tuned model's score of every prompt."""
    return [prompt_score(row, "tuned", metric) for row in rows]


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"({number + 1})"


FEWEST_FOR_IMPORTANCE = 5
IMPORTANCE_METHOD = "fANOVA, Hutter et al. 2014, by Optuna"


def setting_importance(varying: Mapping[str, Sequence[Any]], scores: Sequence[float]) -> tuple[dict[str, float], str]:
    """The share of the scores' variance that each setting explains, or why that cannot be known."""
    if len(scores) < FEWEST_FOR_IMPORTANCE:
        return {}, f"The settings' importance is told from {FEWEST_FOR_IMPORTANCE} runs on; these are {len(scores)}."
    if min(scores) == max(scores):
        return {}, "All scores are equal, so no setting mattered."
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known = {name: _distribution(values) for name, values in varying.items()}
    study = optuna.create_study(direction="maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a choice among lists is stored by its text
        for number, score in enumerate(scores):
            parameters = {name: _value(values, number) for name, values in varying.items()}
            study.add_trial(optuna.trial.create_trial(params=parameters, distributions=known, value=score))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator)), ""


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _value(values: Sequence[Any], number: int) -> Any:
    return float(values[number]) if _numeric(values) else str(values[number])


def _distribution(values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not _numeric(values):
        return CategoricalDistribution(sorted({str(value) for value in values}))
    low, high = float(min(values)), float(max(values))
    return FloatDistribution(low, high, log=low > 0 and high / low >= 10)
