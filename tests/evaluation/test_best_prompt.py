"""The best way of prompting is chosen on validation prompts; the winner answers the test prompts."""

import re
from pathlib import Path

import pytest
from support import builds, small_runs

from finetune.cli.compose import compose_config
from finetune.data.splits import Example
from finetune.errors import UserError
from finetune.evaluation.answer_cache import AnswerCache
from finetune.evaluation.best_prompt import choose_best_prompt, list_candidates, nearest_demonstrations
from finetune.evaluation.prompts import choose_prompts


def searched(overrides):
    """A prepared run, its prompts, and the ways of prompting that are tried."""
    config, prepared = compose_config(overrides), builds.prepared(overrides)
    prompts = choose_prompts(config, prepared)
    return prepared, prompts, list_candidates(config, prepared, prompts)


def example(question):
    return Example([{"role": "system", "content": "Answer."}, {"role": "user", "content": question}], "yes", question)


def test_the_nearest_examples_are_those_with_the_words_of_the_prompt_the_nearest_last():
    train = [
        example(text) for text in ("apples and pears", "trains to Rome", "a train to Rome at noon", "東京への電車")
    ]
    found = nearest_demonstrations([example("a train to Rome at six"), example("東京の電車")], train, 2)
    assert [shown.place for shown in found[0]] == ["trains to Rome", "a train to Rome at noon"]
    assert found[1][-1].place == "東京への電車"


def test_system_prompts_that_nothing_tries_are_refused():
    with pytest.raises(UserError, match=re.escape("it has no effect here: nothing tries them. Add eval=best_prompt")):
        compose_config(['data.system_candidates=["Be brief."]'])


@pytest.mark.slow
def test_candidates_are_shots_examples_and_system_prompts_and_what_does_not_fit_is_left_out(tiny_run):
    systems = 'data.system_candidates=["Mark each part."]'
    prepared, prompts, search = searched([*tiny_run, "eval=best_prompt", "eval.max_new_tokens=500", systems])
    names = [*search.candidates, *search.left_out]
    assert len(names) == 2 + 2 * 2 * 3 and search.left_out == [name for name in names if name.startswith("8-shot")]
    same = search.candidates["3-shot, random"].test
    assert [row.prompt for row in same.examples] == [row.prompt for row in prompts.few_shot.examples]
    for name, candidate in search.candidates.items():
        system = candidate.test.examples[0].prompt[0]["content"]
        assert (system == "Mark each part.") == name.endswith("system prompt 1")
    assert {row.place for row in search.prompts.examples} <= {row.place for row in prepared.splits.validation}
    config = compose_config([*tiny_run, "eval=best_prompt", "sweep.on_validation=true"])
    assert list_candidates(config, prepared, choose_prompts(config, prepared)) is None


@pytest.mark.slow
def test_of_the_candidates_the_better_half_answers_twice_as_many_prompts(tiny_run):
    overrides = [*tiny_run, "eval=best_prompt", "data.metrics=[chrf]"]
    prepared, prompts, search = searched(overrides)
    model, lines = small_runs.base(overrides), []
    answering = model, prepared.tokenizer, {}, AnswerCache.of(model)
    chosen = choose_best_prompt(search, prompts, *answering, lines.append)
    best = chosen.choice
    assert [(each.prompts, len(each.scores)) for each in best.rounds] == [(1, 7), (2, 4), (4, 2)]
    assert best.validation_answers == 7 * 1 + 4 * 1 + 2 * 2 == search.answers and len(lines) == 3
    for earlier, later in zip(best.rounds, best.rounds[1:], strict=False):
        least = min(earlier.scores[name] for name in later.scores)
        assert all(score <= least for name, score in earlier.scores.items() if name not in later.scores)
    assert best.rounds[-1].scores[best.name] == max(best.rounds[-1].scores.values())
    assert chosen.best_prompt is search.candidates[best.name].test
    assert list(chosen.arms()) == ["zero_shot", "few_shot", "best_prompt", "tuned"]


@pytest.mark.slow
def test_the_best_prompt_is_an_arm_of_the_run_and_its_tokens_are_told(tiny_run, capsys):
    result, predictions = small_runs.finished([*tiny_run, "eval=best_prompt"])
    evaluation, best = result.evaluation, result.evaluation.best_prompt
    assert list(evaluation.arms) == ["zero_shot", "few_shot", "best_prompt", "tuned"]
    assert evaluation.verdict.against in ("zero_shot", "few_shot", "best_prompt")
    assert best.prompt_tokens >= best.tuned_prompt_tokens > 0
    told = f"Best prompt, chosen on validation prompts: {best.name}. A request has {best.prompt_tokens:,.0f} tokens"
    [page] = Path(compose_config(tiny_run).output_dir).glob("*/report.html")
    assert told in page.read_text() and told in " ".join(capsys.readouterr().out.split())
    assert all(row.arms.keys() == evaluation.arms.keys() for row in predictions)
