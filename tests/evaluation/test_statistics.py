import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation.metrics import macro_f1, perplexity
from finetune.evaluation.statistics import (
    RESAMPLES,
    corpus_difference,
    corpus_interval,
    expanded_level,
    mean_difference,
    mean_interval,
)
from finetune.evaluation.verdict import decide_verdict

LABELS = ["yes", "no", "perhaps"]
REPETITIONS = 1000


def field_scores(generator, n):
    """Two arms' scores of a shared difficulty: sixths, skewed, every second one of the better arm perfect."""
    easy = generator.beta(2, 4, n) - 0.33
    for quality in (0.8, 0.55):
        mean = np.clip(quality - easy, 0.02, 0.98)
        raw = generator.beta(4 * mean, 4 * (1 - mean))
        yield np.where(raw > 0.85, 1, np.where(raw < 0.1, 0, np.round(raw * 6) / 6))


def right_or_wrong(generator, n, first=0.8, second=0.6):
    """Two arms' 0/1 scores; half of the prompts are as hard for the one as for the other."""
    hard = generator.random(n)
    return hard < first, np.where(generator.random(n) < 0.5, hard, generator.random(n)) < second


def labels(generator, n, correct):
    """References of three labels, and answers of which a share is meant to be correct."""
    references = generator.choice(LABELS, n, p=[0.6, 0.3, 0.1])
    return references, np.where(generator.random(n) < correct, references, generator.choice(LABELS, n))


def bootstrap(data, statistic, n_resamples, **options):
    generator = np.random.default_rng(7)
    level = expanded_level(len(data[0]))
    options |= {"n_resamples": n_resamples, "confidence_level": level, "method": "BCa", "rng": generator}
    found = stats.bootstrap(data, statistic, **options)
    return pytest.approx(tuple(found.confidence_interval))


def test_an_interval_is_scipys():
    a, b = field_scores(np.random.default_rng(0), 100)
    found, apart = mean_interval(a.tolist(), 7), mean_difference(a.tolist(), b.tolist(), 7)
    assert found.mean == pytest.approx(sum(a) / 100)
    assert (found.low, found.high) == bootstrap((a,), np.mean, RESAMPLES)
    assert apart.mean == pytest.approx(sum(a) / 100 - sum(b) / 100)
    # SciPy's own paired bootstrap of two samples
    assert (apart.low, apart.high) == bootstrap((a, b), lambda x, y, axis: (x - y).mean(axis), RESAMPLES, paired=True)


def test_the_level_of_a_bootstrap_of_few_is_expanded_as_students_t_is():
    assert [round(expanded_level(n), 4) for n in (5, 40, 100, 100_000)] == [0.9981, 0.9595, 0.9539, 0.95]


def test_scores_of_fractions_are_tested_by_scipys_permutation_of_the_arms():
    a, b = field_scores(np.random.default_rng(0), 12)
    expected = stats.permutation_test((a, b), lambda x, y: (x - y).mean(), permutation_type="samples").pvalue
    found = mean_difference(a, b, 7)
    assert (found.test, found.prompts) == ("permutation", 12)
    assert found.p == pytest.approx(expected)  # all 4,096 permutations: no chance in either


def test_scores_of_right_and_wrong_are_tested_by_mcnemar():
    found = mean_difference([1] * 9 + [0] + [1] * 5 + [0] * 5, [0] * 9 + [1] + [1] * 5 + [0] * 5, 7)
    assert (found.mean, found.test) == (8 / 20, "McNemar")
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)  # 9 to 1, or further from 5 to 5


def test_a_difference_turns_with_the_arms():
    a, b = field_scores(np.random.default_rng(0), 50)
    there, back = mean_difference(a, b, 7), mean_difference(b, a, 7)
    assert (back.mean, back.p) == pytest.approx((-there.mean, there.p))
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.01)


def test_arms_of_different_prompts_have_no_difference():
    with pytest.raises(ValueError, match="answered 1 and 20 prompts"):
        mean_difference([1], [0] * 20, 7)


@pytest.mark.parametrize(("n", "right", "low", "high"), [(20, 1, 0.8316, 1), (20, 0, 0, 0.1684), (1, 1, 0.025, 1)])
def test_answers_that_are_all_right_or_all_wrong_have_the_exact_binomial_interval(n, right, low, high):
    found = mean_interval([right] * n, 7)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert (found.low, found.high) == pytest.approx(tuple(stats.binomtest(right * n, n).proportion_ci()))


def test_equal_scores_do_not_make_an_interval_of_no_width():
    half, same = mean_interval([0.5] * 20, 7), mean_difference([0.3] * 20, [0.3] * 20, 7)
    assert (half.low, half.mean, half.high) == pytest.approx((0.5 - 0.1684 / 2, 0.5, 0.5 + 0.1684 / 2), abs=1e-4)
    assert (same.low, same.mean, same.high, same.p) == pytest.approx((-0.1684, 0, 0.1684, 1), abs=1e-4)


def test_one_prompt_says_next_to_nothing():
    fractions, exact = mean_difference([0.9], [0.2], 7), mean_difference([1], [0], 7)
    assert fractions.p == exact.p == 1
    assert fractions.low < -0.9 and exact.low < -0.9
    assert corpus_difference("perplexity", [3.0], [6.0], [3], 7).high == math.inf


def test_the_interval_of_macro_f1_resamples_prompts():
    references, answers = labels(np.random.default_rng(0), 60, correct=0.7)
    found = corpus_interval("macro_f1", answers.tolist(), references.tolist(), 7, resamples=299)
    assert found.mean == macro_f1(answers, references)
    options = {"paired": True, "vectorized": False}
    assert (found.low, found.high) == bootstrap((answers, references), macro_f1, 299, **options)


def test_the_interval_of_the_perplexity_weighs_prompts_by_their_tokens():
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 50, 60)
    nll = tokens * generator.gamma(5, 0.2, 60)
    found = corpus_interval("perplexity", nll.tolist(), tokens.tolist(), 7)
    assert found.mean == pytest.approx(perplexity(nll.sum(), tokens.sum()))
    value = lambda x, y: np.exp(x.sum() / y.sum())  # noqa: E731
    assert (found.low, found.high) == bootstrap((nll, tokens), value, 1999, paired=True, vectorized=False)


def test_a_corpus_difference_is_of_the_same_resampled_prompts():
    generator = np.random.default_rng(0)
    references, good = labels(generator, 80, correct=0.9)
    poor = np.where(generator.random(80) < 0.5, good, "yes")
    found = corpus_difference("macro_f1", good, poor, references, 7, resamples=299)
    assert found.mean == pytest.approx(macro_f1(good, references) - macro_f1(poor, references))
    assert found.low > 0 and found.p < 0.01
    alone = [corpus_interval("macro_f1", arm, references, 7, resamples=299) for arm in (good, poor)]
    assert found.high - found.low < sum(each.high - each.low for each in alone)
    same = corpus_difference("macro_f1", poor, poor, references, 7, resamples=99)
    assert same.low < 0 < same.high and same.p == 1


def test_right_answers_of_rare_labels_prove_less():
    rare, common = ["a"] * 38 + ["b"] * 2, ["a"] * 20 + ["b"] * 20
    widths = [1 - corpus_interval("macro_f1", texts, texts, 7, resamples=99).low for texts in (rare, common)]
    assert widths[0] > 2 * widths[1] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("scores", [field_scores, right_or_wrong])
def test_intervals_cover_the_truth_as_often_as_they_say(scores):
    large, small = (array.mean() for array in scores(np.random.default_rng(1), 4_000_000))
    generator = np.random.default_rng(2)
    covered = np.zeros(2)
    for seed in range(REPETITIONS):
        a, b = scores(generator, 100)
        apart, alone = mean_difference(a, b, seed, resamples=999), mean_interval(a, seed, resamples=999)
        covered += apart.low <= large - small <= apart.high, alone.low <= large <= alone.high
    assert np.all((covered / REPETITIONS >= 0.93) & (covered / REPETITIONS <= 0.97)), covered


def scores_with_examples(generator, n, spread, zero_shot_loss):
    """Scores between 0 and 1 of three arms; the tuned model is as good as few-shot prompts.

    The examples of a few-shot prompt change its score by `spread` (a standard deviation).
    """
    ease = generator.beta(2, 3, n)
    means = {"tuned": ease, "few_shot": ease + generator.normal(0, spread, n), "zero_shot": ease - zero_shot_loss}
    return {arm: np.clip(mean + generator.normal(0, 0.18, n), 0, 1) for arm, mean in means.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "spread", "zero_shot_loss"), [(40, 0.126, 0.0), (40, 0.028, 0.3), (100, 0.126, 0.3), (100, 0.028, 0.0)]
)
def test_with_examples_of_its_own_for_each_prompt_intervals_cover_and_verdicts_are_rarely_wrong(
    n, spread, zero_shot_loss
):
    truth = scores_with_examples(np.random.default_rng(7), 2_000_000, spread, zero_shot_loss)
    apart = truth["tuned"].mean() - truth["few_shot"].mean()
    repetitions = 600
    generator, covered, verdicts = np.random.default_rng(8), np.zeros(2), Counter()
    for seed in range(repetitions):
        arms = scores_with_examples(generator, n, spread, zero_shot_loss)
        tuned = arms.pop("tuned")
        base = {arm: mean_interval(scores, seed, resamples=599) for arm, scores in arms.items()}
        gains = {arm: mean_difference(tuned, scores, seed, resamples=599) for arm, scores in arms.items()}
        few_shot, gain = base["few_shot"], gains["few_shot"]
        covered += few_shot.low <= truth["few_shot"].mean() <= few_shot.high, gain.low <= apart <= gain.high
        verdicts[decide_verdict("field_f1", base, gains, shots=3).kind] += 1
    assert np.all((covered / repetitions >= 0.93) & (covered / repetitions <= 0.97)), covered
    assert max(verdicts["tuning_wins"], verdicts["tuning_hurts"]) < 0.03 * repetitions, verdicts


@pytest.mark.slow
def test_the_interval_of_macro_f1_covers_the_truth():
    truth = macro_f1(*reversed(labels(np.random.default_rng(4), 1_000_000, correct=0.6)))
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(REPETITIONS):
        references, answers = labels(generator, 100, correct=0.6)
        found = corpus_interval("macro_f1", answers, references, seed, resamples=199)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / REPETITIONS <= 0.97, covered


@pytest.mark.slow
def test_without_a_difference_p_is_below_any_level_as_often_as_the_level():
    generator = np.random.default_rng(6)
    permuted, mcnemar = [], []
    for seed in range(REPETITIONS):
        a, b = generator.beta(0.6, 0.4, (2, 40))
        permuted.append(mean_difference(a, b, seed, resamples=999).p)
        a, b = right_or_wrong(generator, 100, 0.7, 0.7)
        mcnemar.append(mean_difference(a, b, seed, resamples=99).p)
    assert stats.kstest(permuted, "uniform").pvalue > 0.01
    assert np.mean(np.array(mcnemar) <= 0.05) <= 0.06  # an exact test of counts errs to the safe side
