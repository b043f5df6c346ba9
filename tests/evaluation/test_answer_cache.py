"""The base's replies are computed once for all runs that would compute the same, and never taken for others."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import builds, small_runs

from finetune.cli.compose import compose_config
from finetune.data.splits import Example
from finetune.evaluation.answer_cache import AnswerCache, Reply
from finetune.evaluation.answers import answer_prompts
from finetune.evaluation.prompts import Prompts, PromptSet
from finetune.runs.result import read_result
from finetune.training.tokenize import tokenize_examples


def reused(arms):
    return {name: arm.reused for name, arm in arms.items()}


@pytest.mark.slow
def test_a_second_run_reuses_the_answers_of_the_same_base(tiny_run, answer_cache):
    first, rows = small_runs.finished(tiny_run)
    assert reused(first.evaluation.arms) == {"zero_shot": False, "few_shot": False, "tuned": False}
    second, again = small_runs.finished([*tiny_run, "trainer.learning_rate=1e-2", "adapter=dora", "seed=7"])
    assert reused(second.evaluation.arms) == {"zero_shot": True, "few_shot": True, "tuned": False}
    for name in ("zero_shot", "few_shot"):
        assert [row.arms[name] for row in again] == [row.arms[name] for row in rows]
        assert second.evaluation.arms[name].seconds < first.evaluation.arms[name].seconds / 3


@pytest.mark.slow
def test_two_runs_that_start_together_answer_for_the_base_once(tiny_run, answer_cache, tmp_path):
    script = Path(__file__).parents[2] / "run.py"
    commands = [[sys.executable, script, *tiny_run, f"trainer.learning_rate={rate}"] for rate in (1e-3, 1e-4)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    lines = [line for text in outputs for line in text.splitlines() if "zero-shot: 4 prompts" in line]
    assert sorted(line.split()[3] for line in lines) == ["answered", "as"]
    assert len(list(answer_cache.glob("*.json"))) == 2  # zero-shot and few-shot
    results = [read_result(file) for file in tmp_path.glob("outputs/*/result.json")]
    scores = [result.evaluation.arms["zero_shot"].scores["field_f1"] for result in results]
    assert scores[0] == scores[1]


def keys(overrides, answer_cache):
    """What the base's replies of a run are kept under."""
    for file in answer_cache.glob("*.json"):
        file.unlink()
    small_runs.answered([*overrides, "eval.max_prompts=2"])
    return {file.stem for file in answer_cache.glob("*.json")}


@pytest.mark.slow
def test_answers_to_other_prompts_decoded_otherwise_or_of_another_base_are_not_reused(tiny_run, answer_cache):
    before = keys(tiny_run, answer_cache)
    assert len(before) == 2
    assert before == keys([*tiny_run, "trainer.learning_rate=1e-2", "seed=3"], answer_cache)
    for change in (
        "data.system=Answer.",
        "eval.max_new_tokens=9",
        "eval.temperature=0.5",
        "eval.batch_size=3",
        "quantization=nf4",
        "data.seed=1",
        "model.dtype=bfloat16",
        "model.attn_implementation=eager",
        "data.metrics=[perplexity]",
    ):
        assert not before & keys([*tiny_run, change], answer_cache), change


def test_replies_to_other_references_are_not_reused_wherever_the_references_differ(tiny_run, answer_cache):
    overrides = [*tiny_run, "data.metrics=[perplexity]"]
    config, prepared, base = compose_config(overrides), builds.prepared(overrides), small_runs.base(overrides)
    arms = []
    for last in ("the end", "another end"):
        texts = [*(f"text number {number}" for number in range(9)), last]
        examples = [Example([], text, "") for text in texts]
        tokenized = tokenize_examples(examples, prepared.tokenizer, prepared.settings, "test")
        prompts = Prompts(PromptSet(examples, tokenized, []), None, ["perplexity"], config.eval, 8, seed=0)
        ignore = small_runs.ignore
        cache = AnswerCache.of(base)
        arms.append(answer_prompts(prompts, base, prepared.tokenizer, {}, cache, ignore, ignore)["zero_shot"])
    assert [arm.reused for arm in arms] == [False, False]
    one, other = (arm.replies for arm in arms)
    assert one[:-1] == other[:-1] and one[-1] != other[-1]


@pytest.mark.slow
def test_few_shot_prompts_with_other_examples_are_computed_and_those_in_the_cache_are_not(tiny_run, answer_cache):
    small_runs.answered(tiny_run)
    before = set(answer_cache.glob("*.json"))
    assert len(before) == 2
    arms = small_runs.answered([*tiny_run, "eval.shots=2"])
    assert len(set(answer_cache.glob("*.json")) - before) == 1
    assert reused(arms) == {"zero_shot": True, "few_shot": False, "tuned": False}


def test_of_several_that_request_the_same_at_once_one_computes_and_the_others_wait(answer_cache):
    cache = AnswerCache({"weights": "w"})
    computed, recalled = [], []

    def compute():
        computed.append(1)
        threading.Event().wait(0.3)
        return [Reply(None, (1.5, 3))]

    threads = [threading.Thread(target=lambda: recalled.append(cache.recall({"a": 1}, compute, True))) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1
    assert [replies for replies, _ in recalled] == [[Reply(None, (1.5, 3))]] * 4
    assert sorted(from_cache for _, from_cache in recalled) == [False, True, True, True]


def test_without_waiting_what_another_is_computing_is_left_to_it(answer_cache):
    cache = AnswerCache({"weights": "w"})
    begun, done = threading.Event(), threading.Event()

    def compute():
        begun.set()
        done.wait(10)
        return [Reply(None, (7.0, 1))]

    other = threading.Thread(target=cache.recall, args=({"a": 1}, compute, True))
    other.start()
    begun.wait(10)
    assert cache.recall({"a": 1}, compute, wait=False) is None
    done.set()
    other.join()
    assert cache.recall({"a": 1}, compute, wait=False) == ([Reply(None, (7.0, 1))], True)
