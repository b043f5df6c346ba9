"""Which runs can be told apart, and which settings mattered? Corrected tests of pairs of runs (pure functions)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from string import ascii_lowercase

import numpy as np

from finetune.evaluation.metrics import MEANS, accuracy
from finetune.evaluation.statistics import CORPUS_RESAMPLES, MAX_P, RESAMPLES, corpus_difference, mean_difference
from finetune.runs.predictions import Prediction
from finetune.runs.result import Difference

FEWEST_FOR_IMPORTANCE = 5
IMPORTANCE_METHOD = "fANOVA, Hutter et al. 2014, by Optuna"
LOG_RATIO = 10  # from which on a setting's range is read as logarithmic


def compare_pairs(
    runs: Sequence[list[Prediction]], metric: str, seed: int, only_best: bool = False
) -> dict[tuple[int, int], Difference]:
    """First minus second for every pair of runs, or `only_best`: the first run with every other; p is uncorrected."""
    pairs = [pair for pair in combinations(range(len(runs)), 2) if pair[0] == 0 or not only_best]
    # The smallest p that n permutations can give is 2 / (n + 1); corrected for all pairs, it has to stay below 5 %.
    permutations = int(2 * 2 * len(pairs) / MAX_P)
    if metric in MEANS:
        scores, count = [prompt_scores(run, metric) for run in runs], max(permutations, RESAMPLES)
        return {(i, j): mean_difference(scores[i], scores[j], seed, count) for i, j in pairs}
    replies, count = [[row.arms["tuned"] for row in run] for run in runs], max(permutations, CORPUS_RESAMPLES)
    references: list[object]
    if metric == "perplexity":
        values = [np.array([reply.nll for reply in run], object) for run in replies]
        references = [reply.tokens for reply in replies[0]]
    else:
        values = [np.array([reply.answer for reply in run], object) for run in replies]
        references = [row.reference for row in runs[0]]
    return {(i, j): corpus_difference(metric, values[i], values[j], references, seed, count) for i, j in pairs}


def correct_holm(values: Sequence[float]) -> list[float]:
    """Each p corrected for the number of tests, so that any false discovery is as rare as one test's (Holm 1979)."""
    corrected, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected


def compact_letters(count: int, differ: Callable[[int, int], bool]) -> list[str]:
    """Each run's groups as letters, two sharing one unless they `differ` (insert-and-absorb algorithm, Piepho 2004)."""
    groups = [frozenset(range(count))]
    for i, j in combinations(range(count), 2):
        if differ(i, j):
            halves = {group - {member} for group in groups if {i, j} <= group for member in (i, j)}
            candidates = halves | {group for group in groups if not {i, j} <= group}
            groups = [group for group in candidates if not any(group < other for other in candidates)]
    groups.sort(key=sorted)
    letters = [*ascii_lowercase, *(f"({n + 1})" for n in range(len(ascii_lowercase), len(groups)))]
    return ["".join(letters[n] for n, group in enumerate(groups) if i in group) for i in range(count)]


def disagreements(runs: Sequence[list[Prediction]], metric: str) -> list[tuple[int, float]]:
    """The prompts on which the runs' scores are not all equal, and the largest difference; the largest first."""
    by_prompt = zip(*(prompt_scores(predictions, metric) for predictions in runs), strict=True)
    spreads = [max(scores) - min(scores) for scores in by_prompt]
    return sorted(((i, spread) for i, spread in enumerate(spreads) if spread > 0), key=lambda pair: -pair[1])


def prompt_score(prediction: Prediction, metric: str) -> float:
    """The score of the tuned model's answer to one prompt; of macro F1, whether the label is right."""
    reply = prediction.arms["tuned"]
    return reply.scores[metric] if metric in reply.scores else accuracy(reply.text, prediction.reference)


def prompt_scores(predictions: list[Prediction], metric: str) -> list[float]:
    """The tuned model's score of every prompt."""
    return [prompt_score(prediction, metric) for prediction in predictions]


def setting_importance(
    varying: Mapping[str, Sequence[float] | Sequence[str]], scores: Sequence[float]
) -> tuple[dict[str, float], str]:
    """The share of the scores' variance that each setting explains, or why that cannot be known."""
    if len(scores) < FEWEST_FOR_IMPORTANCE:
        return {}, f"The settings' importance needs {FEWEST_FOR_IMPORTANCE} runs or more; these are {len(scores)}."
    if min(scores) == max(scores):
        return {}, "All scores are equal, so no setting mattered."
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, BaseDistribution] = {}
    for name, values in varying.items():
        if isinstance(values[0], str):
            distributions[name] = CategoricalDistribution(sorted(set(map(str, values))))
        else:
            low, high = float(min(values)), float(max(values))
            distributions[name] = FloatDistribution(low, high, log=low > 0 and high / low >= LOG_RATIO)
    study = optuna.create_study(direction="maximize")
    for number, score in enumerate(scores):
        parameters = {name: values[number] for name, values in varying.items()}
        study.add_trial(optuna.trial.create_trial(params=parameters, distributions=distributions, value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator)), ""
