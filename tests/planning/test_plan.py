"""How long a run will take is added up from its parts; a run that will not fit is refused."""

import json
from dataclasses import replace

import pytest
from support.plans import answers, planned_run, workload

import run
from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.machine.allowance import Allowance
from finetune.planning.plan import decoding_seconds, estimate_seconds, require_memory
from finetune.planning.throughput import Throughput

SPEED = Throughput(load=5.0, train_position=0.01, forward_position=0.001, update=0.1)


def test_answers_that_have_ended_leave_every_sixteen_tokens():
    assert decoding_seconds([], 1.0, 1.0) == 0.0
    assert decoding_seconds([16], step=1.0, row=0.1) == pytest.approx(16 * 1.1)
    # two rows for 16 tokens, and the longer one for another 16, of which it needs one
    assert decoding_seconds([16, 17], step=1.0, row=0.1) == pytest.approx(16 * 1.2 + 16 * 1.1)


def test_training_takes_the_time_of_its_positions_updates_and_validations():
    seconds = estimate_seconds(workload(validations=2, validation_positions=500), SPEED)
    assert seconds == {"load": 5.0, "train": pytest.approx(10 + 1 + 1), "evaluate": 0.0}


def test_the_base_answers_as_long_as_it_may_and_the_tuned_model_as_long_as_its_references():
    speed = replace(SPEED, prefill=3.0, decode_step=0.5, decode_row=0.05, untuned=0.8)
    seconds = estimate_seconds(workload(answers=answers(20, 10, 32, [10] * 20)), speed)["evaluate"]
    base, tuned, reading = 32 * 1.5 * 0.8, 16 * 1.5, 2 * 3.0 * 2
    assert seconds == pytest.approx(base + tuned + reading)


def test_few_shot_prompts_are_answered_by_the_base_alone():
    speed = replace(SPEED, few_shot_prefill=3.0, few_shot_step=0.5, few_shot_row=0.05, untuned=0.8)
    seconds = estimate_seconds(workload(few_shot=answers(20, 20, 32, [10] * 20)), speed)["evaluate"]
    assert seconds == pytest.approx(16 * 1.5 * 0.8 + 3.0)


def test_each_answer_to_find_the_best_prompt_takes_what_one_takes_in_the_mean_of_the_candidates():
    asked = answers(20, 20, 32, [10] * 20)
    speed = replace(SPEED, few_shot_prefill=3.0, few_shot_step=0.5, few_shot_row=0.05, untuned=0.8)
    plain = workload(answers=asked, few_shot=asked)
    more = replace(plain, candidates=[asked, asked], candidate_answers=60)
    seconds, longer = (estimate_seconds(each, speed)["evaluate"] for each in (plain, more))
    assert longer - seconds == pytest.approx((16 * 1.5 * 0.8 + 3.0) * 60 / 20)


def test_what_shows_forgetting_is_read_and_answered_before_and_after():
    speed = replace(SPEED, decode_step=0.5, decode_row=0.05)
    seconds = estimate_seconds(workload(passages=1000, questions=10), speed)["evaluate"]
    assert seconds == pytest.approx(2 * (16 * 1.0 + 1.0))


@pytest.mark.slow
def test_a_run_that_will_not_fit_is_refused_unless_forced_or_known_to_fit(tiny_run):
    planned = planned_run(*tiny_run, "plan.memory_gib=0.01", "force=false")
    with pytest.raises(UserError, match=r"This run will not fit: it needs about .* force=true runs it all the same"):
        require_memory(planned)
    require_memory(planned_run(*tiny_run, "plan.memory_gib=0.01", "force=true"))
    require_memory(replace(planned, machine=replace(planned.machine, allowance=Allowance(known_to_fit=True))))


@pytest.mark.slow
def test_the_refusal_ends_the_program_with_code_2_before_the_model_loads_unless_forced(program, tiny_run):
    refused = program(*tiny_run, "plan.memory_gib=0.1", "force=false")
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: This run will not fit") and "Traceback" not in refused.stderr
    assert "attention:" not in refused.stdout
    run.run(compose_config([*tiny_run, "plan.memory_gib=0.1"]))


@pytest.mark.slow
def test_a_plan_is_printed_and_written(tiny_run, tmp_path, capsys):
    run.run(compose_config(["stage=plan", "plan.tflops=1", *tiny_run]))
    printed = capsys.readouterr().out
    assert printed.count("fits: ") == 1 and "(1 TFLOP/s, as stated)" in printed
    [plan] = [json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("*/plan.json")]
    assert plan["steps"] == 3 and plan["verdict"] == "fits"
