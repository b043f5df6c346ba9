import math

import pytest
import torch
from peft import PeftModel
from support import tiny_models

from finetune.errors import UserError
from finetune.model.adapter import as_base_model, count_parameters, linear_names, trained_base_weights


def trainable(trained):
    return {name for name, parameter in trained.named_parameters() if parameter.requires_grad}


def test_the_bias_setting_decides_which_biases_train(tiny_model):
    settings = ["quantization=none", "adapter.target_modules=[q_proj]"]
    names = {
        bias: trainable(tiny_models.adapted(tiny_model, *settings, f"adapter.bias={bias}"))
        for bias in ("none", "lora_only", "all")
    }
    assert all("lora_" in name for name in names["none"])
    added = {name.rpartition("self_attn.")[2] for name in names["lora_only"] - names["none"]}
    assert added == {"q_proj.base_layer.bias"}
    assert len(names["all"] - names["none"]) == 2 * 4  # the biases of q, k, v and o in both layers


def test_full_trains_every_weight_and_has_no_adapter(tiny_model):
    trained = tiny_models.adapted(tiny_model, "quantization=none", "adapter=full")
    assert not isinstance(trained, PeftModel)
    total, trained_count = count_parameters(trained)
    assert total == trained_count


@pytest.mark.parametrize("overrides", [["adapter.bias=all"], ["adapter.modules_to_save=[norm]"], ["adapter=full"]])
def test_the_untouched_model_answers_as_it_did_before_training(tiny_model, overrides):
    trained = tiny_models.adapted(tiny_model, "quantization=none", *overrides)
    originals = trained_base_weights(trained)
    ids = torch.tensor([[5, 6, 7, 8]])
    trained.eval()
    with torch.no_grad():
        before = trained(input_ids=ids).logits
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                parameter.add_(0.05)
        tuned = trained(input_ids=ids).logits
        with as_base_model(trained, originals):
            torch.testing.assert_close(trained(input_ids=ids).logits, before, rtol=0, atol=0)
        torch.testing.assert_close(trained(input_ids=ids).logits, tuned, rtol=0, atol=0)
    assert not torch.allclose(tuned, before)


def test_a_target_module_that_is_not_there_names_those_that_are(tiny_model):
    with pytest.raises(UserError, match=r"c_attn.*down_proj, gate_proj"):
        tiny_models.adapted(tiny_model, "quantization=none", "adapter.target_modules=[c_attn]")


def test_four_bit_parameters_are_counted_as_the_numbers_that_they_hold(tiny_model):
    counts = [
        count_parameters(tiny_models.adapted(tiny_model, f"quantization={name}"))[0] for name in ("nf4", "int8", "none")
    ]
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(("setting", "expected"), [("adapter=lora", 2.0), ("adapter=rslora", 32 / math.sqrt(16))])
def test_the_adapters_scale_follows_r_alpha_and_rslora(tiny_model, setting, expected):
    layer = tiny_models.adapted(tiny_model, "quantization=none", setting).get_base_model().model.layers[0].mlp.up_proj
    assert layer.scaling["default"] == pytest.approx(expected)


def test_linear_layers_are_named_once_and_without_the_modules_that_they_are_in():
    names = ["down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert linear_names(tiny_models.model("llama")) == names
