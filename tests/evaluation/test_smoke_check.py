"""A model that cannot answer, or be saved, is told before it is trained."""

import pytest
import torch
from support import builds

from finetune.errors import UserError
from finetune.evaluation.smoke_check import require_usable_model

PROMPT = [{"role": "user", "content": "Say 5"}]


def test_a_usable_model_passes_and_the_random_state_and_its_weights_stay(tiny_run):
    one = builds.trainer([*tiny_run, "quantization=nf4", "adapter.modules_to_save=[norm]"])
    before, state = {n: w.clone() for n, w in one.model.state_dict().items()}, torch.random.get_rng_state()
    require_usable_model(one.model, one.processing_class, PROMPT)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in one.model.state_dict().items())


def test_a_model_that_fails_in_its_first_answer_is_told_with_family_and_reason(tiny_run):
    one = builds.trainer(tiny_run)
    one.model.base_model.model.model.layers[0].self_attn.o_proj.base_layer.weight.data = torch.zeros(3, 3)
    with pytest.raises(UserError, match=r"family llama cannot be used here: .*RuntimeError: .*Nothing was trained"):
        require_usable_model(one.model, one.processing_class, PROMPT)


def test_an_adapter_that_cannot_be_read_back_is_told(tiny_run):
    one = builds.trainer(tiny_run)
    one.model.base_model.model.model.norm.weight.data = torch.full((1,), float("nan"))
    weights = next(p for p in one.model.parameters() if p.requires_grad)
    weights.data[0] = float("nan")  # equal to nothing, itself included
    with pytest.raises(UserError, match=r"is not what it was before its adapter was saved\)\. Nothing was trained"):
        require_usable_model(one.model, one.processing_class, [])
