"""The arms of a run: in which order they are answered, by whom, and in how much memory."""

import json
import threading

import pytest
from bitsandbytes.nn import Linear4bit
from filelock import FileLock
from support import small_runs

from finetune.evaluation.answer_cache import AnswerCache
from finetune.evaluation.answers import answer_prompts
from finetune.evaluation.generate import cache_bytes


@pytest.mark.parametrize("has_room", [True, False])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_weights_are_dequantised_once_where_there_is_room(tiny_run, quantization, has_room):
    overrides = [*tiny_run, f"quantization={quantization}"]
    prepared, prompts = small_runs.chosen(overrides)
    base = small_runs.base(overrides)
    weights = [
        vars(layer.weight)["quant_state"].shape.numel() for layer in base.modules() if isinstance(layer, Linear4bit)
    ]
    sizes, dequantised = [], []

    def advance(arm, count):
        dequantised.append(sum("forward" in vars(layer) for layer in base.modules()))

    def room(size):
        sizes.append(size)
        return has_room

    cache = AnswerCache.of(base)
    answer_prompts(prompts, base, prepared.tokenizer, {}, cache, advance, small_runs.ignore, room)
    assert set(dequantised) == {len(weights) if has_room else 0}
    assert bool(sizes) == bool(weights) == (quantization == "nf4")
    tokens = max(map(len, prompts.few_shot.tokenized["input_ids"])) + prompts.max_new_tokens
    cache = len(prompts.examples) * cache_bytes(base, tokens)
    assert all(4 * sum(weights) + cache < size < 4 * sum(weights) + 6 * cache for size in sizes)


def test_what_another_run_is_answering_is_left_to_it_and_read_from_the_cache_at_the_end(tiny_run, answer_cache):
    small_runs.answered([*tiny_run, "eval.shots=0"])
    [file] = answer_cache.glob("*.json")
    replies = [[answer | {"text": "of another run"}, likelihood] for answer, likelihood in json.loads(file.read_text())]
    file.unlink()
    begun, done, order = threading.Event(), threading.Event(), []

    def answer_slowly():
        with FileLock(file.with_suffix(".lock")):
            begun.set()
            done.wait(60)
            file.write_text(json.dumps(replies))

    def show(name, arm):
        order.append(name)
        if name == "few_shot":
            done.set()

    other = threading.Thread(target=answer_slowly)
    other.start()
    begun.wait(60)
    arms = small_runs.answered(tiny_run, show=show)
    other.join()
    assert order == ["few_shot", "zero_shot", "tuned"]
    assert list(arms) == ["zero_shot", "few_shot", "tuned"]
    assert {name: arm.reused for name, arm in arms.items()} == {"zero_shot": True, "few_shot": False, "tuned": False}
    assert [reply.answer.text for reply in arms["zero_shot"].replies] == ["of another run"] * 4


def test_every_answered_prompt_is_counted_once_in_its_arm(tiny_run):
    counts = dict.fromkeys(("zero_shot", "few_shot", "tuned"), 0)

    def advance(arm, count):
        counts[arm] += count

    arms = small_runs.answered(tiny_run, advance=advance)
    assert counts == {"zero_shot": 4, "few_shot": 4, "tuned": 4}
    assert {name: len(arm.replies) for name, arm in arms.items()} == counts


@pytest.mark.slow
def test_the_tuned_model_can_be_prompted_with_demonstrations_too(tiny_run):
    result, rows = small_runs.finished([*tiny_run, "eval.tuned_few_shot=true"])
    assert list(result.evaluation.arms) == ["zero_shot", "few_shot", "tuned", "tuned_few_shot"]
    assert rows[0].arms["tuned_few_shot"].demonstrations == rows[0].arms["few_shot"].demonstrations
    assert result.evaluation.verdict.against in ("zero_shot", "few_shot")
