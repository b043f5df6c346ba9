"""What is counted before a run is what the run then does."""

import json

import pytest
from support.plans import asking, planned_run

import run
from finetune.cli.compose import compose_config
from finetune.evaluation.generate import generate_answers
from finetune.model.base import load_base
from finetune.planning.memory import estimate_memory
from finetune.runs.folder import run_folder

PACKED = ["trainer.packing=true", "trainer.max_length=512", "trainer.per_device_train_batch_size=1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.max_steps=3"],
        ["trainer.max_steps=-1", "trainer.num_train_epochs=2", "trainer.gradient_accumulation_steps=3"],
        [*PACKED, "trainer.max_steps=4"],
        ["trainer.max_length=200", "data.max_cut_share=1", "model.attn_implementation=eager"],
    ],
)
def test_steps_epochs_and_tokens_are_those_of_the_run(tiny_run, settings):
    settings = [*tiny_run, *settings, "trainer.eval_strategy=no", "trainer.save_strategy=no"]
    _, workload, _ = estimate_memory(planned_run(*settings))
    config = compose_config(settings)
    run.run(config)
    training = json.loads((run_folder(config) / "result.json").read_text())["training"]
    assert workload.steps == training["steps"]
    assert workload.epochs == pytest.approx(training["epochs"], abs=0.01)
    assert workload.tokens == training["tokens"]


def test_batches_of_answers_are_those_that_are_generated(tiny_run):
    planned = planned_run(*tiny_run, "eval.max_prompts=25", "eval.batch_size=10", "eval.max_new_tokens=2")
    batches = estimate_memory(planned)[1].answers.batches
    config, prompts = planned.config, planned.prompts
    model = load_base(config.model, config.quantization, planned.machine)
    shapes, advanced = [], []
    model.register_forward_pre_hook(lambda _, args, given: shapes.append(given["input_ids"].shape), with_kwargs=True)
    asked = [example.prompt for example in prompts.examples]
    generate_answers(model, planned.prepared.tokenizer, asked, prompts.decoding, 2, 0, advanced.append)
    read = [tuple(shape) for shape in shapes if shape[1] > 1]
    assert [batch.rows for batch in batches] == advanced == [10, 10, 5]
    assert [shape for b in batches for shape in ((1, b.prefix), (b.rows, b.longest - b.prefix))] == read


def test_nothing_is_answered_where_perplexity_is_all_that_is_measured(tiny_run):
    workload = estimate_memory(planned_run(*tiny_run, "data.metrics=[perplexity]"))[1]
    assert workload.answers is None and workload.few_shot is None


@pytest.mark.parametrize(
    ("settings", "validations"),
    [
        (["trainer.eval_strategy=no"], 0),
        (["trainer.eval_strategy=epoch", "trainer.num_train_epochs=3", "trainer.max_steps=-1"], 3),
        (["trainer.eval_strategy=steps", "trainer.eval_steps=3", "trainer.max_steps=10"], 4),
        (["trainer.eval_strategy=steps", "trainer.eval_steps=5", "trainer.max_steps=10"], 2),
        (["trainer.eval_strategy=steps", "trainer.eval_steps=0.25", "trainer.max_steps=10"], 4),
    ],
)
def test_validations_are_counted_in_epochs_steps_or_shares_of_training(tiny_run, settings, validations):
    workload = estimate_memory(planned_run(*tiny_run, *settings))[1]
    assert workload.validations == validations
    assert (workload.largest_validation is None) == (workload.validation_positions == 0) == (validations == 0)


def test_packs_are_validated_as_few_at_a_time_as_they_are_trained(tiny_run):
    packed = ["trainer.packing=true", "trainer.per_device_train_batch_size=1", "trainer.max_length=512"]
    packed += ["trainer.per_device_eval_batch_size=32", "trainer.eval_strategy=epoch"]
    workload = estimate_memory(planned_run(*tiny_run, *packed))[1]
    assert workload.largest_validation["input_ids"].numel() <= 512 < workload.validation_positions


def test_prompts_are_answered_from_the_shortest_to_the_longest(tiny_run):
    planned = asking(planned_run(*tiny_run, "eval.batch_size=2"), 30, 5, 20)
    answers = estimate_memory(planned)[1].answers
    assert sorted(map(len, answers.prompts)) == list(map(len, answers.prompts))
    assert answers.first_batch == answers.prompts[:2]
    assert [batch.longest for batch in answers.batches] == [len(answers.prompts[1]), len(answers.prompts[2])]
