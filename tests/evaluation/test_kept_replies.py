"""What was replied before a run died is not computed again, and only what is as it was written counts."""

import pytest
import torch
from support import small_runs, tiny_models

from finetune.config.schema import Eval
from finetune.evaluation.answer_cache import AnswerCache
from finetune.evaluation.answers import answer_prompts
from finetune.evaluation.generate import generate_answers
from finetune.evaluation.kept_replies import KeptReplies


def recall(kept, rows, computed):
    """Replies that say which row they are of; `computed` is told of the rows that are computed."""

    def compute():
        computed.append(rows)
        return [{"text": f"reply {row} \u2028 \n", "nll": row / 3} for row in rows]

    return kept.recall("answers", rows, compute)


def test_replies_are_kept_and_other_rows_are_computed(tmp_path):
    file, computed = tmp_path / "replies" / "a.jsonl", []
    first = recall(KeptReplies(file), [2, 0], computed)
    again = KeptReplies(file)
    assert recall(again, [2, 0], computed) == first
    recall(again, [1, 3], computed)
    recall(KeptReplies(file), [1, 3], computed)
    assert computed == [[2, 0], [1, 3]]
    recall(KeptReplies(None), [1, 3], computed)  # keeps nothing
    assert len(computed) == 3


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda content: content[:-1], [[1]]),  # killed while the last line was written
        (lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:], [[1]]),
        (lambda content: bytes([content[0] ^ 1]) + content[1:], [[0], [1]]),
        (lambda content: content + b"0000", []),
    ],
)
def test_what_is_not_as_it_was_written_is_computed_again(tmp_path, damage, again):
    file = tmp_path / "a.jsonl"
    for rows in ([0], [1]):
        recall(KeptReplies(file), rows, [])
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    computed = []
    recall(KeptReplies(file), [0], computed)
    recall(KeptReplies(file), [1], computed)
    assert computed == again
    assert file.read_bytes() == whole


class DiedError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("sampling", [[], ["eval.temperature=1"]])
def test_a_run_that_dies_while_it_answers_gives_only_the_other_answers_and_the_same(tiny_run, tmp_path, sampling):
    overrides = [*tiny_run, "eval.max_prompts=6", "eval.batch_size=2", "data.metrics=[chrf,perplexity]", *sampling]
    expected = small_runs.answered(overrides)
    prepared, prompts = small_runs.chosen(overrides)
    base, counted = small_runs.base(overrides), []
    cache = AnswerCache(AnswerCache.of(base).base | {"run": "another"}, tmp_path / "replies")

    def answer(until):
        def advance(arm, count):
            counted.append((arm, count))
            if len(counted) == until:
                raise DiedError

        return answer_prompts(prompts, base, prepared.tokenizer, {}, cache, advance, small_runs.ignore)

    with pytest.raises(DiedError):
        answer(until=8)  # two batches of the tuned model, behind six of the base
    generated, forwards = base.generate, []
    base.generate = lambda *args, **kwargs: forwards.append(len(kwargs["input_ids"])) or generated(*args, **kwargs)
    arms = answer(until=-1)
    assert {name: arm.replies for name, arm in arms.items()} == {n: arm.replies for n, arm in expected.items()}
    assert forwards == [2]  # but what was being told when it died, and had been kept


def test_prompts_for_which_memory_runs_out_are_answered_fewer_at_a_time(tokenizer, monkeypatch):
    model, told = tiny_models.model("llama"), []
    generate = type(model).generate

    def with_room_for_two(self, *args, **kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return generate(self, *args, **kwargs)

    prompts = [[{"role": "user", "content": f"w{i} w7"}] for i in range(5, 10)]
    expected = generate_answers(model, tokenizer, prompts, Eval(), 6, 0, lambda _: None)
    monkeypatch.setattr(type(model), "generate", with_room_for_two)
    answers = generate_answers(model, tokenizer, prompts, Eval(batch_size=4), 6, 0, lambda _: None, tell=told.append)
    assert answers == expected
    assert told == ["  out of memory: 2 prompts are answered at a time instead of 4"]
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: with_room_for_two(model, input_ids=[0] * 9))
    with pytest.raises(torch.OutOfMemoryError):
        generate_answers(model, tokenizer, prompts, Eval(batch_size=4), 6, 0, lambda _: None, tell=told.append)
