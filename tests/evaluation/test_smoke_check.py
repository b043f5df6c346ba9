"""A model that cannot answer, or be saved, is told before it is trained."""

import pytest
import torch
from support import builds
from support.causal_families import small_config, small_model
from support.tiny_models import give_the_adapter_an_effect
from transformers import AutoTokenizer

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.evaluation.smoke_check import require_faithful_reading, require_usable_model
from finetune.model.adapter import add_adapter
from finetune.model.base import attention_name
from finetune.model.shared_prefix_attention import ATTENTION
from finetune.training.tokenize import prompt_tokens

PROMPT = [{"role": "user", "content": "Say 5"}]
# PEFT looks for what it sets itself among modules, though the weights of experts are parameters.
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
# Latent attention, and experts.
SPECIAL = ["deepseek_v3", "minicpm3", "glm4_moe_lite", "mixtral", "gpt_oss"]


def adapted(family, tokenizer, attention, *overrides):
    config = small_config(family)
    config.vocab_size = len(tokenizer)
    model = small_model(config, attention(config))
    if hasattr(config, "output_router_logits"):  # on with trainer.router_aux_loss_coef
        model.config.output_router_logits = True
    return add_adapter(model, compose_config(["adapter.r=2", *overrides]).adapter, seed=0)


def test_a_usable_model_passes_and_the_random_state_and_its_weights_stay(tiny_run):
    one = builds.trainer([*tiny_run, "quantization=nf4", "adapter.modules_to_save=[norm]"])
    before, state = {n: w.clone() for n, w in one.model.state_dict().items()}, torch.random.get_rng_state()
    require_usable_model(one.model, one.processing_class, PROMPT)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in one.model.state_dict().items())


def test_a_model_that_fails_in_its_first_answer_is_told_with_family_and_reason(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = adapted("llama", tokenizer, lambda _: ATTENTION)
    model.base_model.model.model.layers[0].self_attn.o_proj.base_layer.weight.data = torch.zeros(3, 3)
    with pytest.raises(UserError, match=r"family llama cannot be used here: .*RuntimeError: .*Nothing was trained"):
        require_usable_model(model, tokenizer, PROMPT)


def test_an_adapter_that_cannot_be_read_back_is_told(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = adapted("llama", tokenizer, lambda _: ATTENTION)
    weights = next(p for p in model.parameters() if p.requires_grad)
    weights.data[0] = float("nan")  # equal to nothing, itself included
    with pytest.raises(UserError, match=r"is not what it was before its adapter was saved\)\. Nothing was trained"):
        require_usable_model(model, tokenizer, [])


@pytest.mark.slow
@pytest.mark.parametrize("family", SPECIAL)
def test_families_with_latent_attention_or_experts_are_usable(tiny_model, family):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    settings = compose_config([]).model
    model = adapted(
        family, tokenizer, lambda config: attention_name(settings, config), "adapter.modules_to_save=[norm]"
    )
    give_the_adapter_an_effect(model)
    require_usable_model(model, tokenizer, PROMPT)


def test_an_attention_that_does_not_suit_the_family_is_told(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = adapted("deepseek_v3", tokenizer, lambda _: ATTENTION)
    with pytest.raises(UserError, match=r"family deepseek_v3 cannot be used here: .*Nothing was trained"):
        require_usable_model(model, tokenizer, PROMPT)


@pytest.mark.slow
def test_rounding_to_eight_bits_is_not_taken_for_a_fault_of_the_family(tiny_run):
    one = builds.trainer([*tiny_run, "quantization=int8"])
    require_usable_model(one.model, one.processing_class, PROMPT)
    with torch.no_grad():
        require_faithful_reading(one.model, prompt_tokens(PROMPT, one.processing_class))
