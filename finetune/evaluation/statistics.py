"""Is a difference real? Intervals, tests and the verdict, from the scores of answers (pure functions).

Everywhere, scores come as one number for each prompt, or, where a prompt was answered with several draws of few-shot
examples, as a matrix of prompts x draws. Intervals are BCa bootstrap intervals (Efron 1987) at 95 %, by SciPy.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from finetune.evaluation import metrics

RESAMPLES = 9999
CORPUS_RESAMPLES = 1999  # a corpus metric is computed anew for each; for BCa Efron advises 1,000 or more
# The smallest gain that is worth a tuned model's upkeep: of a score between 0 and 1, or of the base's perplexity.
SMALLEST_GAIN = 0.05
# Of a score between 0 and 1: answers that are known to score less are of no use.
USELESS = 0.1
MAX_P = 0.05
BATCH = 2**20  # numbers held at once, so that memory does not grow with the number of prompts

Kind = Literal["tuning_wins", "prompting_is_enough", "nothing_works", "tuning_hurts", "cannot_tell"]


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


@dataclass(frozen=True)
class Verdict:
    """Whether tuning was worth it, in a sentence with its evidence: `difference` is tuned minus the arm `against`."""

    kind: Kind
    sentence: str
    against: str
    difference: Difference


def interval(scores: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean of scores between 0 and 1 and its interval, for new prompts and, from two draws on, new draws.

    Prompts and draws are then resampled independently of each other (Owen 2007). Two or three draws show their spread
    only roughly: the interval is a little wide where the draws' means differ by less than the prompts' standard
    error, and too narrow (87 % with two draws, 92 % with three) where they differ by twice that.
    """
    return _mean(_matrix(scores, float), (0, 1), seed, resamples)


def difference(a: ArrayLike, b: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Difference:
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


def verdict(
    metric: str, base: Mapping[str, Interval], differences: Mapping[str, Difference], shots: int = 0
) -> Verdict:
    """Whether tuning beat the best way of prompting: `base` and `differences` (tuned minus base) by arm.

    Tuning wins, or hurts, if the interval of the difference leaves 0 out and p is at most 0.05. Otherwise prompting is
    enough if that interval leaves out every gain above `SMALLEST_GAIN`, or the base's own interval leaves no room for
    one, unless the base's answers are known to be of no use (`USELESS`): then nothing works. Else nobody can tell.
    `zero_shot` and `few_shot` (of `shots` examples) are named as such in the sentence.
    """
    better = 1 if metrics.HIGHER_IS_BETTER[metric] else -1
    # The best is chosen on the prompts it is judged on, so its score is a little flattered: a win is the more certain
    # for it. A wrong "hurts" or "enough" needs an arm's interval to miss (2.5 %), so two arms at most double that.
    against = max(base, key=lambda arm: better * base[arm].mean)
    rival, found = base[against], differences[against]
    gain, (least, most) = better * found.mean, sorted((better * found.low, better * found.high))
    matters = SMALLEST_GAIN if better > 0 else SMALLEST_GAIN * rival.mean
    full = better > 0 and rival.low >= 1 - SMALLEST_GAIN
    kind = _decide(least, most, found.p, matters, full)
    if kind == "prompting_is_enough" and better > 0 and rival.high <= USELESS:
        kind = "nothing_works"

    arm = {"zero_shot": "zero-shot", "few_shot": f"{shots}-shot"}.get(against, against.replace("_", " "))
    name, on = metrics.SPELLED[metric], f"on {_prompts(found)}"
    loss = f"{-gain:.2f} {name} {_range(-most, -least)}"
    apart = f"(difference {found.mean:z.2f} {_range(found.low, found.high)})"
    score = f"{rival.mean:.2f} {_range(rival.low, rival.high)}"
    reason = "" if most <= matters else f", which already scores {score}"
    sentences: dict[Kind, str] = {
        "tuning_wins": f"Tuning beats {arm} prompting by {gain:.2f} {name} {_range(least, most)} {on}",
        "nothing_works": f"Nothing works yet: tuned is not better than {arm} {apart}, which scores {score} {on}",
        "tuning_hurts": f"Tuning hurts: tuned is worse than {arm} prompting by {loss} {on}",
        "prompting_is_enough": f"Prompting is enough: tuned is not better than {arm} {apart}{reason}",
        "cannot_tell": f"Cannot tell with {_prompts(found)}: {_doubt(found)}",
    }
    return Verdict(kind, sentences[kind], against, found)


def _decide(least: float, most: float, p: float, matters: float, full: bool) -> Kind:
    # A BCa interval is too narrow where very few prompts differ (3 of 100, or 3 of 3); the exact tests know better.
    certain = p <= MAX_P
    if least > 0 and certain:
        return "tuning_wins"
    if most < 0 and certain:
        return "tuning_hurts"
    return "prompting_is_enough" if most <= matters or full else "cannot_tell"


def _doubt(found: Difference) -> str:
    """Why nobody can tell, and how many prompts, and draws if there were several, might."""
    more = f"about {4 * found.prompts:,} prompts"  # widths shrink with the square root of the number
    if found.draws > 1:
        more += f" and {4 * found.draws} draws of examples"
    if found.high - found.low == inf:
        return f"one has no interval; try {more}"
    if found.low > 0 or found.high < 0:
        without = f"the interval {_range(found.low, found.high)} leaves 0 out"
        return f"{without}, but the {found.test} test gives p = {found.p:.2f}; try {more}"
    return f"the interval is {found.high - found.low:.2f} wide; {more} would halve it"


def _range(low: float, high: float) -> str:
    return f"[{low:z.2f}, {high:z.2f}]"


def _prompts(found: Difference) -> str:
    return f"{found.prompts:,} prompt{'s' if found.prompts != 1 else ''}"


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
    judge: Callable[..., float] = metrics.CORPUS.get(metric, _perplexity)
    return fmean(judge(draw, references.tolist()) for draw in given.T.tolist())


def _perplexity(nlls: Sequence[float], tokens: Sequence[int]) -> float:
    return metrics.perplexity(sum(nlls), sum(tokens))


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
