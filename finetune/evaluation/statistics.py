"""Is a difference real? Intervals, tests and the verdict, from the scores of answers (pure functions).

Everywhere, scores come as one number for each prompt, or, where a prompt was answered with several draws of few-shot
examples, as a matrix of prompts x draws. Intervals are BCa bootstrap intervals (Efron 1987) at 95 %, by SciPy.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isnan
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from finetune.evaluation.metrics import CORPUS, perplexity

RESAMPLES = 9999
CORPUS_RESAMPLES = 1999  # a corpus metric is computed anew for each; for BCa Efron advises 1,000 or more
MAX_P = 0.05
BATCH = 2**20  # numbers held at once, so that memory does not grow with the number of prompts


@dataclass(frozen=True)
class Interval:
    """An estimate (a mean, or a corpus metric's value) and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """First arm minus second on the same prompts; p is two-sided, by the named test."""

    p: float
    test: Literal["McNemar", "permutation"]
    prompts: int
    draws: int


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
    apart = first - second
    found = _mean(apart, (-1, 1), seed, resamples)
    if apart.shape[1] == 1 and np.isin([first, second], (0, 1)).all():
        better, worse = int((apart > 0).sum()), int((apart < 0).sum())
        p = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
        return Difference(found.mean, found.low, found.high, float(p), "McNemar", *apart.shape)
    p = _permute(apart.mean(axis=1), np.mean, seed, resamples, vectorized=True)
    return Difference(found.mean, found.low, found.high, p, "permutation", *apart.shape)


def corpus_interval(
    metric: str, given: ArrayLike, references: Sequence[Any], seed: int, resamples: int = CORPUS_RESAMPLES
) -> Interval:
    """A metric of the whole set and its interval; prompts and draws are resampled as in `interval`.

    `given` and `references` are answers and references, or for perplexity each reference's summed negative
    log-likelihood in nats and its number of tokens. A resample's macro F1 is over the labels of that resample.
    """
    answers, known = _matrix(given, object), np.asarray(references, object)

    def value(prompts: NDArray[Any], draws: NDArray[Any]) -> float:
        return _value(metric, answers[np.ix_(prompts, draws)], known[prompts])

    return _corpus(metric, value, answers.shape, known, (0, 1), seed, resamples)


def corpus_difference(
    metric: str, a: ArrayLike, b: ArrayLike, references: Sequence[Any], seed: int, resamples: int = CORPUS_RESAMPLES
) -> Difference:
    """A whole-set metric of `a` minus that of `b`, with its interval and a permutation test; see `corpus_interval`."""
    first, second = _paired(a, b, object)
    known = np.asarray(references, object)

    def value(prompts: NDArray[Any], draws: NDArray[Any]) -> float:
        chosen = np.ix_(prompts, draws)
        return _value(metric, first[chosen], known[prompts]) - _value(metric, second[chosen], known[prompts])

    def flipped(signs: NDArray[Any]) -> float:
        stays = signs[:, None] > 0
        kept, swapped = np.where(stays, first, second), np.where(stays, second, first)
        return _value(metric, kept, known) - _value(metric, swapped, known)

    found = _corpus(metric, value, first.shape, known, (-1, 1), seed, resamples)
    p = _permute(np.ones(len(known)), flipped, seed, resamples, vectorized=False)
    return Difference(found.mean, found.low, found.high, p, "permutation", *first.shape)


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
    if prompts == 1 or np.ptp(scores) < 1e-12:
        return _of_equal(mean, [prompts], bounds)
    if draws == 1:
        found = _bootstrap((scores[:, 0],), np.mean, seed, resamples, vectorized=True)
    else:
        indices = np.arange(prompts), np.arange(draws)
        found = _bootstrap(indices, lambda i, j: scores[np.ix_(i, j)].mean(), seed, resamples, vectorized=False)
    return Interval(mean, *found)


def _corpus(
    metric: str,
    value: Callable[[NDArray[Any], NDArray[Any]], float],
    shape: tuple[int, ...],
    references: NDArray[Any],
    bounds: tuple[float, float],
    seed: int,
    resamples: int,
) -> Interval:
    prompts, draws = (np.arange(size) for size in shape)
    mean = value(prompts, draws)
    data = (prompts, draws) if len(draws) > 1 else (prompts,)
    found = None
    if len(prompts) > 1:
        found = _bootstrap(data, lambda i, j=draws: value(i, j), seed, resamples, vectorized=False)
    if found and found[0] < found[1]:
        return Interval(mean, *found)
    if metric == "perplexity":  # without bounds; of several prompts only those of one and the same model are all equal
        return Interval(mean, mean, mean) if found else Interval(mean, -inf, inf)
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
    judge: Callable[..., float] = CORPUS.get(metric, _perplexity)
    return fmean(judge(draw, references.tolist()) for draw in given.T.tolist())


def _perplexity(nlls: Sequence[float], tokens: Sequence[int]) -> float:
    return perplexity(sum(nlls), sum(tokens))


def _bootstrap(
    data: tuple[NDArray[Any], ...], statistic: Callable[..., Any], seed: int, resamples: int, vectorized: bool
) -> tuple[float, float]:
    options: dict[str, Any] = {"vectorized": vectorized, "batch": max(1, BATCH // len(data[0]))}
    generator = np.random.default_rng(seed)
    with warnings.catch_warnings(action="ignore"):  # of what is handled below
        found = stats.bootstrap(data, statistic, method="BCa", n_resamples=resamples, rng=generator, **options)
        if isnan(found.confidence_interval.low):  # BCa needs resamples on both sides of the estimate
            found = stats.bootstrap(
                data, statistic, method="percentile", n_resamples=0, bootstrap_result=found, **options
            )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _permute(values: NDArray[Any], statistic: Callable[..., Any], seed: int, resamples: int, vectorized: bool) -> float:
    """Two-sided p of the test that flips the signs of single values; exact where all sign flips can be tried."""
    if len(values) == 1:
        return 1.0
    options: dict[str, Any] = {"vectorized": vectorized, "batch": max(1, BATCH // len(values))}
    generator = np.random.default_rng(seed)
    found = stats.permutation_test(
        (values,), statistic, permutation_type="samples", n_resamples=resamples, rng=generator, **options
    )
    return float(found.pvalue)
