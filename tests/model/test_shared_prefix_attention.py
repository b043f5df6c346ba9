import pytest
import torch
from support import tiny_models

from finetune.model.shared_prefix_attention import (
    ATTENTION,
    FAMILIES,
    causal_mask,
    common_prefix_length,
    shares_prefixes,
)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_that_shares_prefixes_says_so(family):
    assert shares_prefixes(tiny_models.model(family).config)
    assert not shares_prefixes(tiny_models.model(family, attention="eager").config)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_other_batches_go_through_transformers_own_attention(family):
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    ours, eager = (tiny_models.model(family, attention=name).eval() for name in (ATTENTION, "eager"))
    with torch.no_grad():
        expected, actual = (m(input_ids=ids, attention_mask=mask).logits[mask.bool()] for m in (eager, ours))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "length"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 3]], 2), ([[1], [2]], 0), ([[1, 2, 3]], 3), ([[1, 2], []], 0)],
)
def test_a_common_prefix_ends_where_rows_differ_or_end(rows, length):
    assert common_prefix_length(rows) == length


def test_a_query_sees_the_prefix_itself_and_what_is_before_it_within_the_window():
    assert causal_mask(2, 2)[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal_mask(2, 2, window=2)[0, 0].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
