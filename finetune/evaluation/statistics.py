"""Is a difference real? Intervals and tests from the scores of answers (pure functions).

Everywhere, scores come as one number for each prompt, or, where a prompt was answered with several few-shot samples
(draws), as a matrix of prompts x draws. Intervals are BCa bootstrap intervals (Efron 1987) at 95 %, by SciPy.
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

RESAMPLES = 9999
CORPUS_RESAMPLES = 1999  # a corpus metric is computed anew for each; for BCa Efron advises 1,000 or more
MAX_P = 0.05
BATCH = 2**20  # numbers held at once, so that memory does not grow with the number of prompts
SAME = 1e-12  # scores that differ by less are equal but for rounding


def mean_interval(scores: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean of scores between 0 and 1 and its interval, for new prompts and, from two draws on, new draws.

    Prompts and draws are then resampled independently of each other (Owen 2007). Two or three draws show their spread
    only roughly: the interval is a little wide where the draws' means differ by less than the prompts' standard
    error, and too narrow (87 % with two draws, 92 % with three) where they differ by twice that.
    """
    return _mean(_matrix(scores, float), (0, 1), seed, resamples)


def mean_difference(a: ArrayLike, b: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Difference:
    """The mean of `a - b`, two arms' scores between 0 and 1 on the same prompts, with its interval and a test.

    Scores that are 0 or 1 are tested by McNemar's exact test (1947), others by permuting the arms within prompts, on
    each prompt's mean over draws. An arm of one draw is compared with every draw of the other; the interval, not p,
    allows for other draws.
    """
    first, second = _paired(a, b, float)
    gains = first - second
    interval = _mean(gains, (-1, 1), seed, resamples)
    ends = interval.mean, interval.low, interval.high
    if gains.shape[1] == 1 and np.isin([first, second], (0, 1)).all():
        better, worse = int((gains > 0).sum()), int((gains < 0).sum())
        p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
        return Difference(*ends, p, "McNemar", *gains.shape)
    p = _permute(gains.mean(axis=1), np.mean, seed, resamples, vectorized=True)
    return Difference(*ends, p, "permutation", *gains.shape)


def corpus_interval(
    metric: str, given: ArrayLike, references: Sequence[Any], seed: int, resamples: int = CORPUS_RESAMPLES
) -> Interval:
    """A metric of the whole set and its interval; prompts and draws are resampled as in `mean_interval`.

    `given` and `references` are answers and references, or for perplexity each reference's summed negative
    log-likelihood in nats and its number of tokens. A resample's macro F1 is over the labels of that resample.
    """
    return _corpus(metric, [_matrix(given, object)], np.asarray(references, object), (0, 1), seed, resamples)


def corpus_difference(
    metric: str, a: ArrayLike, b: ArrayLike, references: Sequence[Any], seed: int, resamples: int = CORPUS_RESAMPLES
) -> Difference:
    """A whole-set metric of `a` minus that of `b`, with its interval and a permutation test; see `corpus_interval`."""
    first, second = _paired(a, b, object)
    expected = np.asarray(references, object)

    def flipped(signs: NDArray[Any]) -> float:
        stays = signs[:, None] > 0
        kept, swapped = np.where(stays, first, second), np.where(stays, second, first)
        return _value(metric, kept, expected) - _value(metric, swapped, expected)

    interval = _corpus(metric, [first, second], expected, (-1, 1), seed, resamples)
    p = _permute(np.ones(len(expected)), flipped, seed, resamples, vectorized=False)
    return Difference(interval.mean, interval.low, interval.high, p, "permutation", *first.shape)


def _matrix(scores: ArrayLike, kind: type) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(scores, kind)
    return array[:, None] if array.ndim == 1 else array


def _paired(a: ArrayLike, b: ArrayLike, kind: type) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both arms with the same number of draws; ValueError if they answered different numbers of prompts."""
    first, second = _matrix(a, kind), _matrix(b, kind)
    if len(first) != len(second):  # numpy would repeat a single prompt
        raise ValueError(f"the arms answered {len(first)} and {len(second)} prompts")
    first, second = np.broadcast_arrays(first, second)
    return first, second


def _mean(scores: NDArray[Any], bounds: tuple[float, float], seed: int, resamples: int) -> Interval:
    prompts, draws = scores.shape
    mean = float(scores.mean())
    if prompts == 1 or np.ptp(scores) < SAME:
        return _of_equal(mean, [prompts], bounds)
    if draws == 1:
        ends = _bootstrap((scores[:, 0],), np.mean, seed, resamples, vectorized=True)
    else:
        indices = np.arange(prompts), np.arange(draws)
        ends = _bootstrap(indices, lambda i, j: scores[np.ix_(i, j)].mean(), seed, resamples, vectorized=False)
    return Interval(mean, *ends)


def _corpus(
    metric: str,
    arms: list[NDArray[Any]],
    references: NDArray[Any],
    bounds: tuple[float, float],
    seed: int,
    resamples: int,
) -> Interval:
    """Of the arm's value, or of the first arm's minus the second's."""
    prompts, draws = map(np.arange, arms[0].shape)

    def value(chosen: NDArray[Any], drawn: NDArray[Any] = draws) -> float:
        first, *second = (_value(metric, arm[np.ix_(chosen, drawn)], references[chosen]) for arm in arms)
        return first - second[0] if second else first

    mean = value(prompts)
    if len(prompts) > 1:
        data = (prompts, draws) if len(draws) > 1 else (prompts,)
        low, high = _bootstrap(data, value, seed, resamples, vectorized=False)
        if low < high:
            return Interval(mean, low, high)
    if metric == "perplexity":  # without bounds; of several prompts only those of one and the same model are all equal
        return Interval(mean, mean, mean) if len(prompts) > 1 else Interval(mean, -inf, inf)
    return _of_equal(mean, Counter(references.tolist()).values(), bounds)


def _of_equal(value: float, counts: Iterable[int], bounds: tuple[float, float]) -> Interval:
    """The interval where all scores are equal, and a bootstrap would lie that nothing else can be.

    What n equal scores leave possible at 95 % is that a share of all prompts scores otherwise (Clopper and Pearson
    1934), anywhere between the bounds. For 0 and 1 that is the exact binomial interval. `counts` are the prompts, or
    those of each label, whose shares macro F1 averages.
    """
    share = fmean(float(stats.binomtest(0, n).proportion_ci().high) for n in counts)
    return Interval(value, value - share * (value - bounds[0]), value + share * (bounds[1] - value))


def _value(metric: str, given: NDArray[Any], references: NDArray[Any]) -> float:
    """The metric's mean over the draws."""
    if metric == "perplexity":
        return fmean(perplexity(sum(nlls), sum(references.tolist())) for nlls in given.T.tolist())
    return fmean(CORPUS[metric](answers, references.tolist()) for answers in given.T.tolist())


def _bootstrap(
    data: tuple[NDArray[Any], ...], statistic: Callable[..., Any], seed: int, resamples: int, vectorized: bool
) -> tuple[float, float]:
    options: dict[str, Any] = {"vectorized": vectorized, "batch": max(1, BATCH // len(data[0]))}
    generator = np.random.default_rng(seed)
    with warnings.catch_warnings(action="ignore"):  # of what is handled below
        result = stats.bootstrap(data, statistic, method="BCa", n_resamples=resamples, rng=generator, **options)
        if isnan(result.confidence_interval.low):  # BCa needs resamples on both sides of the estimate
            options |= {"method": "percentile", "n_resamples": 0, "bootstrap_result": result}
            result = stats.bootstrap(data, statistic, **options)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _permute(values: NDArray[Any], statistic: Callable[..., Any], seed: int, resamples: int, vectorized: bool) -> float:
    """Two-sided p of the test that flips the signs of single values; exact where all sign flips can be tried."""
    if len(values) == 1:
        return 1.0
    options: dict[str, Any] = {"vectorized": vectorized, "batch": max(1, BATCH // len(values))}
    options |= {"permutation_type": "samples", "n_resamples": resamples, "rng": np.random.default_rng(seed)}
    return float(stats.permutation_test((values,), statistic, **options).pvalue)
