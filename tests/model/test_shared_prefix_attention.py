import pytest
import torch
from support import tiny_models

from finetune.model.shared_prefix_attention import (
    ATTENTION,
    FAMILIES,
    BatchMasks,
    attend_causally,
    attend_shared_prefix,
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


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_attention_is_that_of_a_dense_mask_in_one_type(prefix, window, on_cpu):
    generator, rest, total = torch.Generator().manual_seed(0), 5, 5 + prefix
    query = torch.randn(2, 4, rest, 8, generator=generator)  # in float32, as rotation leaves it beside bfloat16 values
    key, value = torch.randn(2, 2, 2, total, 8, generator=generator)
    found = attend_causally(query, key, value.bfloat16(), BatchMasks(), None, 0.0, window, on_cpu)
    assert found.dtype == (torch.float32 if on_cpu else torch.bfloat16)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) / 8**0.5
    weights = scores.masked_fill(~causal_mask(prefix, rest, window), float("-inf")).softmax(-1)
    expected = weights @ value.bfloat16().float().repeat_interleave(2, 1)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=1e-5 if on_cpu else 0.05)


def test_a_mask_is_made_once_for_all_layers_of_a_batch():
    masks, device = BatchMasks(), torch.device("cpu")
    assert masks.causal(2, 3, None, device) is masks.causal(2, 3, None, device)
    assert torch.equal(masks.causal(2, 3, 2, device), causal_mask(2, 3, 2))


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_attention_with_what_is_not_known_here_is_refused(name):
    states = torch.ones(1, 1, 2, 4)
    with pytest.raises(TypeError, match=f"attention with {name} is not known"):
        attend_shared_prefix(torch.nn.Module(), states, states, states, None, **{name: 1.0})
