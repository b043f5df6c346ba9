import math

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation.metrics import METRICS, SPELLED, macro_f1, perplexity
from finetune.evaluation.statistics import (
    RESAMPLES,
    Difference,
    Interval,
    corpus_difference,
    corpus_interval,
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


def judge(mean, low, high, *, p=0.001, prompts=100, draws=1, metric="field_f1", zero=(0.2, 0.1, 0.3), few=None):
    """The verdict on one and the same difference from a zero-shot arm, and a 5-shot arm if there is one."""
    base = {"zero_shot": Interval(*zero)} | ({"few_shot": Interval(*few)} if few else {})
    found = Difference(mean, low, high, p, "permutation", prompts, draws)
    return decide_verdict(metric, base, dict.fromkeys(base, found), shots=5)


def bootstrap(data, statistic, n_resamples, **options):
    generator = np.random.default_rng(7)
    found = stats.bootstrap(data, statistic, n_resamples=n_resamples, method="BCa", rng=generator, **options)
    return pytest.approx(tuple(found.confidence_interval))


def test_an_interval_is_scipys():
    a, b = field_scores(np.random.default_rng(0), 100)
    found, apart = mean_interval(a.tolist(), 7), mean_difference(a.tolist(), b.tolist(), 7)
    assert found.mean == pytest.approx(sum(a) / 100)
    assert (found.low, found.high) == bootstrap((a,), np.mean, RESAMPLES)
    assert apart.mean == pytest.approx(sum(a) / 100 - sum(b) / 100)
    # SciPy's own paired bootstrap of two samples
    assert (apart.low, apart.high) == bootstrap((a, b), lambda x, y, axis: (x - y).mean(axis), RESAMPLES, paired=True)


def test_nothing_works_where_neither_prompting_nor_tuning_scores_anything():
    found = judge(0.0, -0.01, 0.01, p=1.0, zero=(0.02, 0.0, 0.06))
    assert found.kind == "nothing_works"
    assert found.sentence == (
        "Nothing works yet: tuned is not better than zero-shot (difference 0.00 [-0.01, 0.01]), "
        "which scores 0.02 [0.00, 0.06] on 100 prompts"
    )
    assert judge(0.0, -0.01, 0.01, p=1.0, zero=(0.2, 0.1, 0.3)).kind == "prompting_is_enough"


def test_scores_of_fractions_are_tested_by_scipys_permutation_of_the_arms():
    a, b = field_scores(np.random.default_rng(0), 12)
    expected = stats.permutation_test((a, b), lambda x, y: (x - y).mean(), permutation_type="samples").pvalue
    found = mean_difference(a, b, 7)
    assert (found.test, found.prompts, found.draws) == ("permutation", 12, 1)
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


def test_draws_are_resampled_independently_of_prompts():
    generator = np.random.default_rng(0)
    draws = generator.random((40, 3)) * [0.5, 0.7, 0.9]
    expected = bootstrap((range(40), range(3)), lambda i, j: draws[i][:, j].mean(), RESAMPLES, vectorized=False)
    found = mean_interval(draws, 7)
    assert (found.low, found.high) == expected
    assert found.mean == pytest.approx(draws.mean())
    once = mean_interval(draws.mean(axis=1), 7)
    assert found.high - found.low > 1.3 * (once.high - once.low)  # there are other draws than these three


def test_an_arm_of_one_draw_is_compared_with_every_draw_of_the_other():
    tuned, *shots = np.random.default_rng(0).random((4, 30))
    draws = np.stack(shots, axis=1)
    found = mean_difference(tuned, draws, 7)
    assert found == mean_difference(np.stack([tuned] * 3, axis=1), draws, 7)
    assert found.mean == pytest.approx((tuned - draws.mean(axis=1)).mean())
    assert (found.test, found.draws) == ("permutation", 3)
    assert (
        mean_difference(tuned > 0.5, draws > 0.5, 7).test == "permutation"
    )  # a mean of three is neither right nor wrong


@pytest.mark.parametrize(("n", "right", "low", "high"), [(20, 1, 0.8316, 1), (20, 0, 0, 0.1684), (1, 1, 0.025, 1)])
def test_answers_that_are_all_right_or_all_wrong_have_the_exact_binomial_interval(n, right, low, high):
    found = mean_interval([right] * n, 7)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert (found.low, found.high) == pytest.approx(tuple(stats.binomtest(right * n, n).proportion_ci()))


def test_equal_scores_do_not_make_an_interval_of_no_width():
    half, same, draws = (
        mean_interval([0.5] * 20, 7),
        mean_difference([0.3] * 20, [0.3] * 20, 7),
        mean_interval(np.ones((20, 3)), 7),
    )
    assert (half.low, half.mean, half.high) == pytest.approx((0.5 - 0.1684 / 2, 0.5, 0.5 + 0.1684 / 2), abs=1e-4)
    assert (same.low, same.mean, same.high, same.p) == pytest.approx((-0.1684, 0, 0.1684, 1), abs=1e-4)
    assert draws == mean_interval([1] * 20, 7)


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


def test_the_mean_of_a_corpus_metric_over_draws_is_that_of_each_draw():
    generator = np.random.default_rng(0)
    references, first = labels(generator, 40, correct=0.9)
    second = np.where(generator.random(40) < 0.3, first, "yes")
    found = corpus_interval("macro_f1", np.stack([first, second], axis=1), references, 7, resamples=299)
    values = [macro_f1(draw, references) for draw in (first, second)]
    assert found.mean == pytest.approx(sum(values) / 2)
    assert found.low < min(values) + 0.05 and max(values) - 0.05 < found.high


def test_right_answers_of_rare_labels_prove_less():
    rare, common = ["a"] * 38 + ["b"] * 2, ["a"] * 20 + ["b"] * 20
    widths = [1 - corpus_interval("macro_f1", texts, texts, 7, resamples=99).low for texts in (rare, common)]
    assert widths[0] > 2 * widths[1] > 0.2


def test_each_verdict_is_a_sentence_with_its_evidence():
    sentences = [
        judge(0.42, 0.361, 0.467),
        judge(0.01, -0.03, 0.05, p=0.6, few=(0.7, 0.6, 0.8)),
        judge(-0.12, -0.2, -0.05),
        judge(0.05, -0.1, 0.2, p=0.4, prompts=20),
        judge(0.03, 0.01, 0.07, p=0.25, metric="exact_match"),
        judge(0.004, -0.004, 0.06, p=0.9, zero=(0.98, 0.953, 0.99)),
        judge(0.1, -0.1, 0.4, p=0.3, prompts=2000, draws=3, few=(0.7, 0.6, 0.8)),
    ]
    assert [(each.kind, each.sentence) for each in sentences] == [
        ("tuning_wins", "Tuning beats zero-shot prompting by 0.42 field F1 [0.36, 0.47] on 100 prompts"),
        ("prompting_is_enough", "Prompting is enough: tuned is not better than 5-shot (difference 0.01 [-0.03, 0.05])"),
        (
            "tuning_hurts",
            "Tuning hurts: tuned is worse than zero-shot prompting by 0.12 field F1 [0.05, 0.20] on 100 prompts",
        ),
        ("cannot_tell", "Cannot tell with 20 prompts: the interval is 0.30 wide; about 80 prompts would halve it"),
        (
            "cannot_tell",
            "Cannot tell with 100 prompts: the interval [0.01, 0.07] leaves 0 out, "
            "but the permutation test gives p = 0.25; try about 400 prompts",
        ),
        (
            "prompting_is_enough",
            "Prompting is enough: tuned is not better than zero-shot (difference 0.00 [0.00, 0.06]), "
            "which already scores 0.98 [0.95, 0.99]",
        ),
        (
            "cannot_tell",
            "Cannot tell with 2,000 prompts: the interval is 0.50 wide; "
            "about 8,000 prompts and 12 draws of examples would halve it",
        ),
    ]


def test_of_the_perplexity_less_is_better_and_a_share_of_it_matters():
    options = {"metric": "perplexity", "zero": (8.0, 7.0, 9.0), "few": (6.0, 5.0, 7.0)}
    won, lost = judge(-2.0, -3.0, -1.0, **options), judge(2.0, 1.0, 3.0, **options)
    assert won.sentence == "Tuning beats 5-shot prompting by 2.00 perplexity [1.00, 3.00] on 100 prompts"
    assert (
        lost.sentence
        == "Tuning hurts: tuned is worse than 5-shot prompting by 2.00 perplexity [1.00, 3.00] on 100 prompts"
    )
    assert judge(0.0, -0.29, 0.4, p=0.9, **options).kind == "prompting_is_enough"
    assert judge(0.0, -0.31, 0.4, p=0.9, **options).kind == "cannot_tell"
    one = judge(-2.0, -math.inf, math.inf, p=1.0, prompts=1, **options)
    assert one.sentence == "Cannot tell with 1 prompt: one has no interval; try about 4 prompts"


def test_the_verdict_is_against_the_best_way_of_prompting():
    better, worse = (Difference(mean, mean - 0.05, mean + 0.05, 0.001, "permutation", 100, 1) for mean in (0.3, -0.2))
    base = {"zero_shot": Interval(0.4, 0.3, 0.5), "few_shot": Interval(0.9, 0.85, 0.94)}
    found = decide_verdict("chrf", base, {"zero_shot": better, "few_shot": worse}, shots=3)
    assert (found.kind, found.against, found.difference) == ("tuning_hurts", "few_shot", worse)


def test_every_metric_has_a_name_for_sentences():
    assert set(SPELLED) == set(METRICS)
    assert not any("_" in name for name in SPELLED.values())


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


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "spread"), [(3, 0.0), (3, 0.035), (2, 0.035)])
def test_intervals_cover_the_truth_over_draws_that_differ_as_prompts_do(draws, spread):
    generator = np.random.default_rng(3)
    covered = 0
    for seed in range(REPETITIONS):
        effects = generator.normal(0, 0.35, (100, 1)) + generator.normal(0, spread, draws)
        found = mean_interval(effects + generator.normal(0, 0.25, (100, draws)), seed, resamples=399)
        covered += found.low <= 0 <= found.high
    assert 0.91 <= covered / REPETITIONS <= 0.98, covered


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
        mcnemar.append(mean_difference(*right_or_wrong(generator, 100, 0.7, 0.7), seed, resamples=99).p)
    assert stats.kstest(permuted, "uniform").pvalue > 0.01
    assert np.mean(np.array(mcnemar) <= 0.05) <= 0.06  # an exact test of counts errs to the safe side


@pytest.mark.slow
@pytest.mark.parametrize("gain", [-0.06, 0.0, 0.03, 0.06, 0.12])
def test_every_verdict_appears_at_the_rate_that_it_should(gain):
    generator, n, deviation = np.random.default_rng(8), 60, 0.16
    counts = dict.fromkeys(("tuning_wins", "tuning_hurts", "prompting_is_enough", "cannot_tell"), 0)
    for seed in range(REPETITIONS):
        base = generator.uniform(0.4, 0.5, n)
        tuned = base + generator.normal(gain, deviation, n)
        against = {"zero_shot": mean_interval(base, seed, resamples=99)}
        found = decide_verdict("field_f1", against, {"zero_shot": mean_difference(tuned, base, seed, resamples=499)})
        counts[found.kind] += 1
    # The mean of n differences is normal; its 95 % interval is this far to either side.
    error = deviation / math.sqrt(n)
    reach = 1.96 * error
    below = stats.norm(gain, error).cdf
    enough = min(0.05 - reach, reach)
    rates = {
        "tuning_hurts": below(-reach),
        "prompting_is_enough": below(enough) - below(-reach),
        "cannot_tell": below(reach) - below(enough),
        "tuning_wins": 1 - below(reach),
    }
    assert {kind: count / REPETITIONS for kind, count in counts.items()} == pytest.approx(rates, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "right"), [(100, 0.97), (100, 0.7), (8, 0.5)])
def test_equal_arms_are_rarely_told_apart_though_few_prompts_differ(n, right):
    generator = np.random.default_rng(9)
    wrong = 0
    for seed in range(REPETITIONS):
        a, b = right_or_wrong(generator, n, right, right)
        found = decide_verdict(
            "exact_match", {"zero_shot": mean_interval(b, seed, 99)}, {"zero_shot": mean_difference(a, b, seed, 999)}
        )
        wrong += found.kind in ("tuning_wins", "tuning_hurts")
    assert wrong / REPETITIONS <= 0.06
