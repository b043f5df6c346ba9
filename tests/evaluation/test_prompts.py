"""Which held-out prompts are answered, and what stands in front of them."""

import math

import pytest
from support import small_runs

from finetune.errors import UserError


def test_every_prompt_has_training_rows_of_its_own_as_demonstrations(tiny_run):
    prepared, prompts = small_runs.chosen([*tiny_run, "eval.shots=2"])
    few_shot = prompts.few_shot
    assert len({tuple(example.place for example in shown) for shown in few_shot.demonstrations}) == 4
    for prompted, plain, shown in zip(few_shot.examples, prompts.examples, few_shot.demonstrations, strict=True):
        assert all(example in prepared.splits.train for example in shown)
        system, *turns, last = prompted.prompt
        assert [system, last] == plain.prompt
        assert [turn["content"] for turn in turns[1::2]] == [row.completion for row in shown]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2


def test_the_demonstrations_of_a_prompt_do_not_depend_on_the_other_prompts(tiny_run):
    def shown(overrides):
        few_shot = small_runs.chosen([*tiny_run, *overrides])[1].few_shot
        return dict(zip((example.place for example in few_shot.examples), few_shot.demonstrations, strict=True))

    few, many = shown(["eval.max_prompts=4"]), shown(["eval.max_prompts=8"])
    common = few.keys() & many.keys()
    assert common and all(few[place] == many[place] for place in common)


@pytest.mark.parametrize(
    ("overrides", "arms"),
    [
        (["eval.shots=0"], ["zero_shot", "tuned"]),
        ([], ["zero_shot", "few_shot", "tuned"]),
        (["eval.tuned_few_shot=true"], ["zero_shot", "few_shot", "tuned", "tuned_few_shot"]),
        (["sweep.on_validation=true"], ["tuned"]),
    ],
)
def test_the_settings_decide_which_arms_answer(tiny_run, overrides, arms):
    prompts = small_runs.chosen([*tiny_run, *overrides])[1]
    assert list(prompts.arms()) == arms


def test_answers_may_be_longer_than_the_longest_training_answer(tiny_run):
    prepared, prompts = small_runs.chosen([*tiny_run, "eval.max_new_tokens=null"])
    longest = prepared.rows.sizes["train"].longest_answer
    assert prompts.max_new_tokens == max(math.ceil(1.25 * longest), longest + 32)


@pytest.mark.slow
def test_another_seed_trains_otherwise_on_the_same_splits_prompts_and_demonstrations(tiny_run):
    first, second = (small_runs.chosen([*tiny_run, f"seed={seed}"]) for seed in (1, 2))
    assert first[0].splits == second[0].splits
    assert first[1].examples == second[1].examples
    assert first[1].few_shot.demonstrations == second[1].few_shot.demonstrations


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
