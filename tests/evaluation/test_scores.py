"""What is concluded from the arms of a run follows from what they answered."""

from dataclasses import replace

import pytest
import sacrebleu
from scipy import stats
from support import small_runs
from support.run_folders import made_arm

from finetune.cli.compose import compose_config
from finetune.data.splits import Example
from finetune.evaluation.metrics import corpus_chrf
from finetune.evaluation.prompts import Prompts, PromptSet
from finetune.evaluation.scores import describe_evaluation
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
            if name != "chrf":
                assert arms[arm].scores[name].mean == pytest.approx(sum(scores) / len(scores))
        corpus = sacrebleu.corpus_chrf([row.arms[arm].answer for row in rows], [[row.reference for row in rows]])
        assert arms[arm].scores["chrf"].mean == pytest.approx(corpus.score / 100)

    def value(chosen):
        taken = [rows[i] for i in chosen]
        return corpus_chrf([row.arms["tuned"].answer for row in taken], [row.reference for row in taken])

    options = {"method": "BCa", "rng": 42, "n_resamples": 1999, "confidence_level": expanded_level(12)}
    ends = stats.bootstrap((range(12),), value, vectorized=False, **options)
    interval = arms["tuned"].scores["chrf"]
    assert [interval.low, interval.high] == pytest.approx(list(ends.confidence_interval))
    assert differences["zero_shot"]["chrf"].mean == pytest.approx(interval.mean - arms["zero_shot"].scores["chrf"].mean)


@pytest.mark.slow
def test_the_verdict_is_on_the_best_way_of_prompting(tiny_run):
    evaluation = small_runs.finished([*tiny_run, "data.metrics=[chrf]", "eval.max_prompts=12"])[0].evaluation
    base = {arm: evaluation.arms[arm].scores["chrf"].mean for arm in ("zero_shot", "few_shot")}
    against = evaluation.verdict.against
    assert base[against] == max(base.values())
    difference = evaluation.differences[against]["chrf"]
    assert difference.mean == pytest.approx(evaluation.tuned("chrf").mean - base[against])
    assert difference.low <= difference.mean <= difference.high and 0 <= difference.p <= 1


def test_the_verdict_says_where_form_alone_decides_and_how_many_answers_were_cut(tmp_path):
    config = compose_config(["data.metrics=[field_f1]"])
    examples = [Example([{"role": "user", "content": str(i)}], f'{{"a": {i}}}', f"a:{i}") for i in range(30)]
    prompts = Prompts(PromptSet(examples, None, []), None, ["field_f1", "field_f1_lenient"], config.eval, 16, 42)
    right = [example.completion for example in examples]
    fenced = made_arm([f"```json\n{text}\n```" for text in right])
    fenced.replies[0] = replace(fenced.replies[0], answer=replace(fenced.replies[0].answer, finished=False))
    result = describe_evaluation(prompts, {"zero_shot": fenced, "tuned": made_arm(right)}, None, {})
    assert result.verdict.kind == "tuning_wins"
    assert "The form alone decides: by field F1, lenient the difference is 0.00" in result.verdict.sentence
    assert "1 of 30 zero-shot answers was cut off at eval.max_new_tokens=16" in result.verdict.sentence
