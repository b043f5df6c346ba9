import pytest
import torch
from support import tiny_models

from finetune.model.shared_prefix_attention import FAMILIES
from finetune.training.flat_batch import collate_shared_prefix, negative_log_likelihood

PREFIX = [5, 6, 7, 8, 9, 10, 11, 12]
ROWS = [
    {"input_ids": [*PREFIX, 20, 21, 22, 23], "labels": [-100] * 9 + [21, 22, 23]},
    {"input_ids": [*PREFIX, 30, 31], "labels": [-100] * 9 + [31]},
    {"input_ids": [*PREFIX, 20, 41, 42, 43, 44, 45, 46, 47], "labels": [-100] * 10 + [42, -100, 44, 45, 46, 47]},
]
UNLIKE = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}, {"input_ids": [6, 7, 8, 9], "labels": [-100, 7, 8, 9]}]


def padded_loss(model, rows):
    """Transformers' own loss of the padded batch."""
    longest = max(len(row["input_ids"]) for row in rows)
    pad = lambda row, key, value: row[key] + [value] * (longest - len(row[key]))  # noqa: E731
    return model(
        input_ids=torch.tensor([pad(row, "input_ids", 0) for row in rows]),
        labels=torch.tensor([pad(row, "labels", -100) for row in rows]),
        attention_mask=torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]),
    ).loss


def flat_loss(model, rows):
    nll, count = negative_log_likelihood(model, collate_shared_prefix(rows))
    return nll / count


def loss_and_gradients(model, loss):
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], UNLIKE], ids=["shared prefix", "one row", "no shared prefix"])
def test_a_flat_batch_has_the_loss_and_gradients_of_the_padded_one(family, rows):
    flat, padded = tiny_models.model(family), tiny_models.model(family, attention="eager")
    flat_value, flat_gradients = loss_and_gradients(flat, flat_loss(flat, rows))
    padded_value, padded_gradients = loss_and_gradients(padded, padded_loss(padded, rows))
    assert flat_value == pytest.approx(padded_value, rel=1e-5)
    assert flat_gradients.keys() == padded_gradients.keys()
    for name, gradient in flat_gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_flat_batch_holds_the_shared_prefix_once_and_no_padding():
    flat = collate_shared_prefix(ROWS)
    assert flat["prefix_length"] == len(PREFIX)
    assert flat["input_ids"].numel() == len(PREFIX) + sum(len(row["input_ids"]) - len(PREFIX) for row in ROWS)
    assert flat["real_tokens"] == sum(len(row["input_ids"]) for row in ROWS)


def test_the_prefix_ends_before_the_first_token_that_predicts_a_label():
    same = [{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}] * 2
    assert collate_shared_prefix(same)["prefix_length"] == 1
