"""A model that got its task and lost its language is told so."""

import json
import math
from dataclasses import asdict

import pytest
import yaml
from support import builds

from finetune.cli.compose import compose_config
from finetune.evaluation.answer_cache import AnswerCache, Reply
from finetune.evaluation.answers import Arm
from finetune.evaluation.forgetting import FILE, answer_general_prompts, choose_general_prompts, describe_forgetting
from finetune.evaluation.generate import Answer


def asked(tiny_run, *overrides):
    overrides = [*tiny_run, "eval.retention=true", *overrides]
    return choose_general_prompts(compose_config(overrides), builds.prepared(overrides))


def arms(prompts, nll, right):
    """Base and tuned replies with these negative log-likelihoods per token and shares of right answers."""

    def arm(nll, right):
        examples = prompts.examples
        replies = [
            Reply(
                Answer(example.completion.split("|")[0] if number < right * len(examples) else "?", 1, True),
                ((nll + 0.01 * (number % 5)) * 50, 50),
            )
            for number, example in enumerate(examples)
        ]
        return Arm(replies, 1.0, False, "float32")

    return {"zero_shot": arm(nll[0], right[0]), "tuned": arm(nll[1], right[1])}


@pytest.mark.parametrize(
    ("nll", "right", "opinion"),
    [
        ((3.0, 3.0), (0.6, 0.6), "It forgot little"),
        pytest.param((3.0, 2.8), (0.6, 0.7), "It forgot little", marks=pytest.mark.slow),
        pytest.param((3.0, 3.04), (0.6, 0.58), "It forgot little", marks=pytest.mark.slow),
        ((3.0, 3.0), (0.6, 0.48), "It may have forgotten, not beyond doubt"),
        pytest.param((3.0, 3.5), (0.6, 0.6), "It forgot", marks=pytest.mark.slow),
        ((3.0, 3.0), (0.6, 0.1), "It forgot"),
    ],
)
def test_forgetting_is_told_where_it_is_beyond_doubt(tiny_run, nll, right, opinion):
    prompts = asked(tiny_run)
    found = describe_forgetting(prompts, {name: arms(p, nll, right) for name, p in prompts.items()})
    assert found.forgot is (opinion == "It forgot")
    assert found.sentence.startswith(f"{opinion}: ")
    assert "questions answered went from 0.62 to" in found.sentence
    assert json.dumps(asdict(found), allow_nan=False)


def test_general_prompts_carry_neither_the_tasks_system_prompt_nor_its_rows(tiny_run):
    content = yaml.safe_load(FILE.read_text())
    prompts = asked(tiny_run, "data.system=Task.")
    assert [len(prompts[name].examples) for name in ("passages", "questions")] == [
        len(content["passages"]),
        len(content["questions"]),
    ]
    assert all(example.prompt == [] for example in prompts["passages"].examples)
    assert all([message["role"] for message in e.prompt] == ["user"] for e in prompts["questions"].examples)


@pytest.mark.slow
def test_the_perplexity_of_the_passages_is_transformers_own(tiny_run, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    prepared = builds.prepared(tiny_run)
    prompts = asked(tiny_run)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    arms = answer_general_prompts(prompts, base, prepared.tokenizer, {}, AnswerCache.of(base))
    found = describe_forgetting(prompts, arms)
    losses, counts = [], []
    for example in prompts["passages"].examples:
        ids = prepared.tokenizer(example.completion + prepared.tokenizer.eos_token, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            counts.append(ids.shape[1] - 1)
            losses.append(base(input_ids=ids, labels=ids).loss.item() * counts[-1])
    passages = found.parts["passages"]
    assert passages.base.mean == pytest.approx(math.exp(sum(losses) / sum(counts)), rel=1e-4)
    assert passages.tuned == passages.base and not found.forgot


@pytest.mark.slow
def test_a_learning_rate_that_ruins_the_model_is_told(program, tmp_path):
    few = [
        "trainer.max_steps=8",
        "trainer.per_device_train_batch_size=2",
        "eval.max_prompts=4",
        "eval.shots=0",
        "tracking=none",
        f"output_dir={tmp_path}",
    ]
    ruined = program("trainer.learning_rate=3e-2", *few)
    assert ruined.returncode == 0, ruined.stderr
    assert "It forgot: perplexity on general text went from" in " ".join(ruined.stdout.split())
