"""Which settings mattered? Their importance for the score, over the runs of a sweep."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

FEWEST_RUNS = 5
METHOD = "fANOVA, Hutter et al. 2014, by Optuna"


def measure(varying: Mapping[str, Sequence[Any]], scores: Sequence[float]) -> tuple[dict[str, float], str]:
    """The share of the scores' variance that each setting explains, or why that cannot be known."""
    if len(scores) < FEWEST_RUNS:
        return {}, f"The settings' importance is told from {FEWEST_RUNS} runs on; these are {len(scores)}."
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
