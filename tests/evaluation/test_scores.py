"""What is concluded from the arms of a run follows from what they answered."""

import pytest
import sacrebleu
from scipy import stats
from support import small_runs

from finetune.evaluation.statistics import expanded_level

# Independent of metrics.py.
BY_HAND = {
    "exact_match": lambda answer, reference: float(answer.strip() == reference.strip()),
    "chrf": lambda answer, reference: sacrebleu.sentence_chrf(answer, [reference]).score / 100,
}


@pytest.mark.slow
def test_scores_and_intervals_follow_from_the_predictions(tiny_run):
    learning = ["trainer.learning_rate=5e-2", "trainer.max_steps=6", "eval.max_new_tokens=40"]
    settings = [*tiny_run, *learning, "data.metrics=[chrf,exact_match]", "eval.max_prompts=12"]
    result, rows = small_runs.finished(settings)
    arms, differences = result.evaluation.arms, result.evaluation.differences
    for arm in ("zero_shot", "few_shot", "tuned"):
        for name, score in BY_HAND.items():
            scores = [score(row.arms[arm].answer, row.reference) for row in rows]
            assert [row.arms[arm].scores[name] for row in rows] == pytest.approx(scores)
            assert arms[arm].scores[name].mean == pytest.approx(sum(scores) / len(scores))
    tuned = [row.arms["tuned"].scores["chrf"] for row in rows]
    gains = [row.arms["tuned"].scores["chrf"] - row.arms["zero_shot"].scores["chrf"] for row in rows]
    for values, interval in ((tuned, arms["tuned"].scores["chrf"]), (gains, differences["zero_shot"]["chrf"])):
        options = {"method": "BCa", "rng": 42, "n_resamples": 9999, "confidence_level": expanded_level(12)}
        ends = stats.bootstrap((values,), lambda x, axis: x.mean(axis=axis), **options)
        assert [interval.low, interval.high] == pytest.approx(list(ends.confidence_interval))


@pytest.mark.slow
def test_the_verdict_is_on_the_best_way_of_prompting(tiny_run):
    evaluation = small_runs.finished([*tiny_run, "data.metrics=[chrf]", "eval.max_prompts=12"])[0].evaluation
    base = {arm: evaluation.arms[arm].scores["chrf"].mean for arm in ("zero_shot", "few_shot")}
    against = evaluation.verdict.against
    assert base[against] == max(base.values())
    difference = evaluation.differences[against]["chrf"]
    assert difference.mean == pytest.approx(evaluation.tuned("chrf").mean - base[against])
    assert difference.low <= difference.mean <= difference.high and 0 <= difference.p <= 1
