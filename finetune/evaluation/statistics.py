"""Is a difference real? Intervals and tests from the scores of answers (pure functions).

Every prompt has one score, and prompts are what is resampled: a few-shot prompt has examples of its own, so that their
effect is part of its score. Intervals are BCa bootstrap intervals (Efron 1987) at 95 %, by SciPy, expanded for few
prompts (Hesterberg 2015).
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import inf, isnan
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from finetune.evaluation.metrics import CORPUS, perplexity
from finetune.runs.result import Difference, Interval

Array = NDArray[Any]
Estimate = tuple[float, float, float]  # the mean and the ends of its interval
RESAMPLES = 9999
CORPUS_RESAMPLES = 1999  # a corpus metric is computed anew for each; for BCa Efron advises 1,000 or more
LEVEL, MAX_P = 0.95, 0.05
BATCH = 2**20  # numbers held at once, so that memory does not grow with the number of prompts
SAME = 1e-12  # scores that differ by less are equal but for rounding


def mean_interval(scores: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean of scores between 0 and 1 and its interval, for new prompts with new examples."""
    return Interval(*_mean(np.asarray(scores, float), 0, seed, resamples))


def mean_difference(a: ArrayLike, b: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Difference:
    """The mean of `a - b`, two arms' scores between 0 and 1 on the same prompts, with its interval and a test.

    Scores that are 0 or 1 are tested by McNemar's exact test (1947), others by permuting the arms within prompts.
    """
    first, second = _paired(a, b, float)
    gains = first - second
    ends = _mean(gains, -1, seed, resamples)
    if np.isin([first, second], (0, 1)).all():
        better, worse = int((gains > 0).sum()), int((gains < 0).sum())
        p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
        return Difference(*ends, p, "McNemar", len(gains))
    return Difference(*ends, _permute(gains, np.mean, seed, resamples), "permutation", len(gains))


def corpus_interval(
    metric: str, given: ArrayLike, references: Sequence[Any], seed: int, resamples: int = CORPUS_RESAMPLES
) -> Interval:
    """A metric of the whole set and its interval, resampled as in `mean_interval`, labels of macro F1 included.

    For perplexity, `given` and `references` are each reference's summed negative log-likelihood (nats) and its tokens.
    """
    arm = np.asarray(given, object)
    return Interval(*_corpus(metric, [arm], np.asarray(references, object), seed, resamples))


def corpus_difference(
    metric: str, a: ArrayLike, b: ArrayLike, references: Sequence[Any], seed: int, resamples: int = CORPUS_RESAMPLES
) -> Difference:
    """A whole-set metric of `a` minus that of `b`, with its interval and a permutation test; see `corpus_interval`."""
    first, second = _paired(a, b, object)
    expected = np.asarray(references, object)

    def flipped(signs: Array) -> float:
        stays = signs > 0
        kept, swapped = np.where(stays, first, second), np.where(stays, second, first)
        return _value(metric, kept, expected) - _value(metric, swapped, expected)

    ends = _corpus(metric, [first, second], expected, seed, resamples)
    return Difference(*ends, _permute(np.ones(len(expected)), flipped, seed, resamples), "permutation", len(expected))


def corpus_value(metric: str, given: ArrayLike, references: Sequence[Any]) -> float:
    """A metric of the whole set; see `corpus_interval`."""
    return _value(metric, np.asarray(given, object), np.asarray(references, object))


def _paired(a: ArrayLike, b: ArrayLike, kind: Any) -> tuple[Array, Array]:
    """Both arms as arrays; ValueError if they answered different numbers of prompts."""
    first, second = np.asarray(a, kind), np.asarray(b, kind)
    if len(first) != len(second):  # numpy would repeat a single prompt
        raise ValueError(f"the arms answered {len(first)} and {len(second)} prompts")
    return first, second


def _mean(scores: Array, lowest: int, seed: int, resamples: int) -> Estimate:
    mean = float(scores.mean())
    if len(scores) == 1 or np.ptp(scores) < SAME:
        return _of_equal(mean, [len(scores)], lowest)
    return mean, *_bootstrap(scores, np.mean, seed, resamples)


def _corpus(metric: str, arms: list[Array], references: Array, seed: int, resamples: int) -> Estimate:
    """Of the arm's value, or of the first arm's minus the second's."""
    prompts = np.arange(len(references))

    def value(chosen: Array) -> float:
        first, *second = (_value(metric, arm[chosen], references[chosen]) for arm in arms)
        return first - second[0] if second else first

    mean = value(prompts)
    if len(prompts) > 1:
        low, high = _bootstrap(prompts, value, seed, resamples)
        if low < high:
            return mean, low, high
    if metric == "perplexity":  # without bounds; of several prompts only those of one and the same model are all equal
        return (mean, mean, mean) if len(prompts) > 1 else (mean, -inf, inf)
    counts = Counter(references.tolist()).values() if metric == "macro_f1" else [len(references)]
    return _of_equal(mean, counts, lowest=1 - len(arms))


def _of_equal(value: float, counts: Iterable[int], lowest: int) -> Estimate:
    """The interval where all scores are equal, and a bootstrap would lie that nothing else can be.

    What n equal scores leave possible at 95 % is that a share of all prompts scores otherwise (Clopper and Pearson
    1934), between the lowest score and 1. `counts` are the prompts, or those of each label, which macro F1 averages.
    """
    share = fmean(float(stats.binomtest(0, n).proportion_ci().high) for n in counts)
    return value, value - share * (value - lowest), value + share * (1 - value)


def _value(metric: str, given: Array, references: Array) -> float:
    if metric == "perplexity":
        return perplexity(given.sum(), references.sum())
    return CORPUS[metric](given.tolist(), references.tolist())


def _bootstrap(data: Array, statistic: Callable[..., Any], seed: int, resamples: int) -> tuple[float, float]:
    options: dict[str, Any] = {
        "confidence_level": expanded_level(len(data)),
        "rng": np.random.default_rng(seed),
        "batch": max(1, BATCH // len(data)),
    }
    with warnings.catch_warnings(action="ignore"):  # of what is handled below
        result = stats.bootstrap((data,), statistic, method="BCa", n_resamples=resamples, **options)
        if isnan(result.confidence_interval.low):  # BCa needs resamples on both sides of the estimate
            options |= {"method": "percentile", "n_resamples": 0, "bootstrap_result": result}
            result = stats.bootstrap((data,), statistic, **options)
    low, high = map(float, result.confidence_interval)
    return low, high


def expanded_level(n: int) -> float:
    """The level at which a bootstrap interval of n values covers as often as one of 95 % is meant to.

    A bootstrap takes the spread of n values for that of all, and is too narrow as a normal is against Student's t
    (Hesterberg 2015, "What teachers should know about the bootstrap").
    """
    width = np.sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1)
    return float(1 - 2 * stats.norm.cdf(-width))


def _permute(values: Array, statistic: Callable[..., Any], seed: int, resamples: int) -> float:
    """Two-sided p of the test that flips the signs of single values; exact where all sign flips can be tried."""
    if len(values) == 1:
        return 1.0
    options: dict[str, Any] = {"permutation_type": "samples", "batch": max(1, BATCH // len(values))}
    test = stats.permutation_test(
        (values,), statistic, n_resamples=resamples, rng=np.random.default_rng(seed), **options
    )
    return float(test.pvalue)
