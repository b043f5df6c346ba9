"""The verdict says whether tuning was worth it, and how often it is wrong is known."""

import math

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation.statistics import mean_difference, mean_interval
from finetune.evaluation.verdict import decide_verdict
from finetune.runs.result import Difference, Interval

REPETITIONS = 1000


def judge(mean, low, high, *, p=0.001, prompts=100, metric="field_f1", zero=(0.2, 0.1, 0.3), few=None):
    """The verdict on one and the same difference from a zero-shot arm, and a 5-shot arm if there is one."""
    base = {"zero_shot": Interval(*zero)} | ({"few_shot": Interval(*few)} if few else {})
    found = Difference(mean, low, high, p, "permutation", prompts)
    return decide_verdict(metric, base, dict.fromkeys(base, found), shots=5)


def right_or_wrong(generator, n, first=0.8, second=0.6):
    """Two arms' 0/1 scores; half of the prompts are as hard for the one as for the other."""
    hard = generator.random(n)
    return hard < first, np.where(generator.random(n) < 0.5, hard, generator.random(n)) < second


def test_nothing_works_where_neither_prompting_nor_tuning_scores_anything():
    found = judge(0.0, -0.01, 0.01, p=1.0, zero=(0.02, 0.0, 0.06))
    assert found.kind == "nothing_works"
    assert found.sentence == (
        "Nothing works yet: tuned is not better than zero-shot (difference 0.00 [-0.01, 0.01]), "
        "which scores 0.02 [0.00, 0.06] on 100 prompts"
    )
    assert judge(0.0, -0.01, 0.01, p=1.0, zero=(0.2, 0.1, 0.3)).kind == "prompting_is_enough"


def test_each_verdict_is_a_sentence_with_its_evidence():
    sentences = [
        judge(0.42, 0.361, 0.467),
        judge(0.01, -0.03, 0.05, p=0.6, few=(0.7, 0.6, 0.8)),
        judge(-0.12, -0.2, -0.05),
        judge(0.05, -0.1, 0.2, p=0.4, prompts=20),
        judge(0.03, 0.01, 0.07, p=0.25, metric="exact_match"),
        judge(0.004, -0.004, 0.06, p=0.9, zero=(0.98, 0.953, 0.99)),
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
    better, worse = (Difference(mean, mean - 0.05, mean + 0.05, 0.001, "permutation", 100) for mean in (0.3, -0.2))
    base = {"zero_shot": Interval(0.4, 0.3, 0.5), "few_shot": Interval(0.9, 0.85, 0.94)}
    found = decide_verdict("chrf", base, {"zero_shot": better, "few_shot": worse}, shots=3)
    assert (found.kind, found.against) == ("tuning_hurts", "few_shot")
    assert found.sentence == (
        "Tuning hurts: tuned is worse than 3-shot prompting by 0.20 chrF [0.15, 0.25] on 100 prompts"
    )


def test_the_best_prompt_is_a_way_of_prompting_like_the_others():
    better, none = (
        Difference(mean, mean - 0.04, mean + 0.04, p, "permutation", 100) for mean, p in ((0.3, 0.001), (0, 1))
    )
    base = {"few_shot": Interval(0.4, 0.3, 0.5), "best_prompt": Interval(0.7, 0.6, 0.8)}
    found = decide_verdict("field_f1", base, {"few_shot": better, "best_prompt": none}, shots=3)
    assert (found.kind, found.against) == ("prompting_is_enough", "best_prompt")
    assert found.sentence == "Prompting is enough: tuned is not better than best-prompt (difference 0.00 [-0.04, 0.04])"


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
    reach = stats.t.ppf(0.975, n - 1) * error
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
