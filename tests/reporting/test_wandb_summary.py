"""What a run is called by in W&B stays as it is: saved charts and tables there depend on the names."""

from dataclasses import replace
from math import inf, nan

import pytest
from support.run_folders import made_arm, made_prompts, made_result

from finetune.cli.compose import compose_config
from finetune.evaluation.scores import describe_evaluation
from finetune.reporting.wandb_summary import prediction_table, summarise_result
from finetune.runs.predictions import Answered, Prediction
from finetune.runs.result import Difference, Forgetting, ForgettingPart, HarnessScore, Interval


@pytest.fixture
def result():
    """A run that forgot, with a task of the harness and rows left out."""
    config = compose_config([])
    scores = (
        Interval(20.0, 19.0, 21.0),
        Interval(30.0, 29.0, inf),
        Difference(10.0, 9.0, 11.0, 0.01, "permutation", 9),
    )
    forgetting = Forgetting(
        {"passages": ForgettingPart("perplexity", *scores, forgot=True, suspected=True)}, True, "It forgot"
    )
    harness = {"reading": {"acc": HarnessScore(0.5, 0.1, 0.75, None)}}
    arms = {"zero_shot": made_arm(["0", "no"]), "few_shot": made_arm(["0", "no"]), "tuned": made_arm(["0", "1"])}
    evaluation = describe_evaluation(made_prompts(config, 2, ["exact_match"]), arms, forgetting, harness)
    made = made_result(config, evaluation)
    data = replace(made.data, counts={"rows": 9, "bad": 2}, bad_rows=["mine.jsonl:1: wrong", "mine.jsonl:2: wrong"])
    return replace(made, data=data)


def test_scores_differences_verdict_forgetting_data_and_costs_keep_their_names(result):
    summary = summarise_result(result)
    assert summary["evaluation/zero_shot/exact_match"] == 0.5 and summary["evaluation/tuned/exact_match"] == 1
    tuned = result.evaluation.arms["tuned"].scores["exact_match"]
    ends = summary["evaluation/tuned/exact_match/low"], summary["evaluation/tuned/exact_match/high"]
    assert ends == (tuned.low, tuned.high)
    difference = result.evaluation.differences["few_shot"]["exact_match"]
    assert summary["evaluation/tuned - few_shot/exact_match"] == 0.5
    assert summary["evaluation/tuned - few_shot/exact_match/low"] == difference.low
    assert summary["verdict/kind"] == "cannot_tell" and summary["verdict/against"] == "zero_shot"
    assert summary["verdict/sentence"].startswith("Cannot tell with 2 prompts")
    assert summary["retention/base/perplexity"] == 20 and summary["retention/tuned/perplexity"] == 30
    assert summary["retention/forgot"] is True and summary["retention/sentence"] == "It forgot"
    assert summary["harness/reading/acc/tuned"] == 0.75 and "harness/reading/acc/tuned_stderr" not in summary
    assert [summary["data/rows"], summary["data/bad"]] == [9, 2]
    assert summary["data/bad_rows"] == "mine.jsonl:1: wrong\nmine.jsonl:2: wrong"
    assert summary["training/steps"] == 40 and summary["training/tokens_per_second"] == 100
    assert summary["seconds/train"] == 8


def test_a_trial_on_validation_prompts_has_scores_of_its_own_and_no_verdict(result):
    validation = replace(result.evaluation, split="validation", verdict=None, differences={}, retention=None)
    summary = summarise_result(replace(result, evaluation=validation))
    assert summary["validation/tuned/exact_match"] == 1
    assert not any(key.startswith(("evaluation/", "verdict/", "retention/")) for key in summary)


def test_a_number_that_json_does_not_have_is_none(result):
    evaluation = result.evaluation
    evaluation.arms["tuned"].scores["perplexity"] = Interval(nan, -inf, 3.0)
    summary = summarise_result(result)
    names = [f"evaluation/tuned/perplexity{end}" for end in ("", "/low", "/high")]
    assert [summary[name] for name in names] == [None, None, 3.0]


def test_a_row_of_the_table_holds_the_answers_and_scores_of_all_arms():
    zero_shot, few_shot = Answered({"field_f1": 0.5}, "{}", True), Answered({"field_f1": 0.75}, "5", True)
    arms = {"zero_shot": zero_shot, "few_shot": few_shot, "text": Answered({})}
    prompt = [{"role": "user", "content": "Parse: 5 Main St"}]
    columns, rows = prediction_table([Prediction("a:1", prompt, "{}", arms)])
    assert columns == [
        *("prompt", "reference", "zero_shot/answer", "few_shot/answer", "text/answer"),
        *("zero_shot/field_f1", "few_shot/field_f1"),
    ]
    assert rows == [["user: Parse: 5 Main St", "{}", "{}", "5", None, 0.5, 0.75]]
