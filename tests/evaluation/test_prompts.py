"""Which held-out prompts are answered, and what stands in front of them."""

import pytest
from support import small_runs

from finetune.errors import UserError


def test_demonstrations_are_training_rows_and_the_same_for_every_prompt_of_a_sample(tiny_run):
    prepared, prompts = small_runs.chosen([*tiny_run, "eval.shots=2", "eval.draws=3"])
    assert len(prompts.few_shot) == 3
    assert len({tuple(example.place for example in sample.demonstrations) for sample in prompts.few_shot}) == 3
    for sample in prompts.few_shot:
        assert all(example in prepared.splits.train for example in sample.demonstrations)
        for prompted, plain in zip(sample.examples, prompts.examples, strict=True):
            system, *turns, last = prompted.prompt
            assert [system, last] == plain.prompt
            assert [turn["content"] for turn in turns[1::2]] == [row.completion for row in sample.demonstrations]
            assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("overrides", "arms"),
    [
        (["eval.shots=0"], {"zero_shot": 1, "tuned": 1}),
        ([], {"zero_shot": 1, "few_shot": 2, "tuned": 1}),
        (["eval.tuned_few_shot=true"], {"zero_shot": 1, "few_shot": 2, "tuned": 1, "tuned_few_shot": 2}),
        (["sweep.on_validation=true"], {"tuned": 1}),
    ],
)
def test_the_settings_decide_which_arms_answer_how_many_prompt_sets(tiny_run, overrides, arms):
    prompts = small_runs.chosen([*tiny_run, *overrides])[1]
    assert {name: len(prompt_sets) for name, prompt_sets in prompts.arms().items()} == arms


def test_answers_may_be_a_quarter_longer_than_the_longest_training_answer(tiny_run):
    prepared, prompts = small_runs.chosen([*tiny_run, "eval.max_new_tokens=null"])
    longest = prepared.rows.sizes["train"].longest_answer
    assert 1.25 * longest <= prompts.max_new_tokens < 1.25 * longest + 1


@pytest.mark.slow
def test_another_seed_trains_otherwise_on_the_same_splits_prompts_and_demonstrations(tiny_run):
    first, second = (small_runs.chosen([*tiny_run, f"seed={seed}"]) for seed in (1, 2))
    assert first[0].splits == second[0].splits
    assert first[1].examples == second[1].examples
    assert [s.demonstrations for s in first[1].few_shot] == [s.demonstrations for s in second[1].few_shot]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("eval.shots=33", "eval.shots=33: there are only 32 training rows"),
        ("eval.shots=20", "with its 20 examples; with answers of up to 8 it does not fit the model's context of 1,024"),
        ("eval.max_new_tokens=1000", "does not fit the model's context of 1,024. Lower eval.max_new_tokens"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused_before_the_model_loads(tiny_run, setting, expected):
    with pytest.raises(UserError) as error:
        small_runs.chosen([*tiny_run, setting])
    assert expected in str(error.value)
