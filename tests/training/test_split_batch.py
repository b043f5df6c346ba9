"""A batch in parts has the same rows, in their order, and the same loss and gradient."""

import pytest
import torch
from support import builds

from finetune.training.flat_batch import collate_shared_prefix, uncollate
from finetune.training.split_batch import split_batch
from finetune.training.tokenize import IGNORE_INDEX

ROWS = [
    {"input_ids": [1, 2, 3, 10 + i, *range(20, 20 + i)], "labels": [IGNORE_INDEX] * 4 + list(range(20, 20 + i))}
    for i in range(1, 6)
]


def test_a_flat_batch_gives_its_rows_back():
    assert uncollate(collate_shared_prefix(ROWS)) == ROWS
    assert uncollate(collate_shared_prefix(ROWS[:1])) == ROWS[:1]
    apart = [{"input_ids": [i, 7], "labels": [IGNORE_INDEX, 7]} for i in range(3)]  # that share no prefix
    assert uncollate(collate_shared_prefix(apart)) == apart


@pytest.mark.parametrize(("parts", "sizes"), [(1, [5]), (2, [2, 3]), (3, [2, 1, 2]), (4, [1, 1, 2, 1]), (9, [1] * 5)])
def test_parts_of_a_flat_batch_are_of_about_the_same_size(parts, sizes):
    split = [uncollate(part) for part in split_batch(collate_shared_prefix(ROWS), parts)]
    assert [row for rows in split for row in rows] == ROWS
    assert sorted(map(len, split)) == sorted(sizes)


@pytest.mark.parametrize("settings", [[], ["model.attn_implementation=eager"], ["trainer.pad_to_multiple_of=8"]])
def test_parts_have_the_gradient_of_the_whole(tiny_run, settings):
    gradients = []
    for parts in (1, 3):
        one = builds.trainer([*tiny_run, *settings])
        batch = one.data_collator([one.train_dataset[i] for i in range(4)])
        one.step.batches = [batch]
        one.counters.parts = parts
        one.current_gradient_accumulation_steps = 1
        count = one._get_num_items_in_batch([batch], one.args.device)
        loss = one._train_on(one.model, batch, count)
        gradients.append([loss, *(p.grad for p in one.model.parameters() if p.requires_grad)])
    assert any(gradient.abs().max() > 0 for gradient in gradients[0][1:])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


def test_rows_that_lie_end_to_end_are_cut_between_rows():
    batch = {
        "input_ids": torch.arange(6)[None],
        "position_ids": torch.tensor([[0, 1, 0, 0, 1, 2]]),
        "labels": torch.arange(6)[None],
        "cu_seq_lens_q": torch.tensor([0, 2, 3, 6]),
        "max_length_q": 3,
    }
    first, second = split_batch(batch, 2)
    assert [part["input_ids"].tolist() for part in (first, second)] in (
        [[[0, 1]], [[2, 3, 4, 5]]],
        [[[0, 1, 2]], [[3, 4, 5]]],
    )
    assert set(first) == {"input_ids", "position_ids", "labels"}  # flash attention finds the rest from the positions
