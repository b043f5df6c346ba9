import hashlib
import math

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.evaluation.generate import dequantised
from finetune.machine.device import choose_device
from finetune.model.adapter import add_adapter, as_base_model, count_parameters, trained_base_weights
from finetune.model.base import load_base, model_provenance
from finetune.training.flat_batch import SharedPrefixCollator, negative_log_likelihood

ROWS = [{"input_ids": list(range(5, 25)), "labels": [-100] * 8 + list(range(13, 25))}] * 2


def load(tiny_model, *overrides):
    """The tiny model as `python run.py` would train it with these overrides, in float32."""
    config = compose_config(["model=local", f"model.path={tiny_model}", "model.dtype=float32", *overrides])
    machine = choose_device(config.model, config.quantization, config.adapter)
    return add_adapter(load_base(config.model, config.quantization, machine), config.adapter, config.seed)


def gradients(trained):
    trained.train()
    trained.zero_grad()
    nll, count = negative_log_likelihood(trained, SharedPrefixCollator()(ROWS))
    (nll / count).backward()
    return {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}


def trainable(trained):
    return {name for name, parameter in trained.named_parameters() if parameter.requires_grad}


def give_the_adapter_an_effect(trained):
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_dequantised_once_give_the_same_logits(tiny_model, quantization, dtype):
    trained = load(tiny_model, f"quantization={quantization}", f"quantization.bnb_4bit_compute_dtype={dtype}")
    give_the_adapter_an_effect(trained)
    trained.eval()
    ids = torch.arange(5, 35)[None]
    with torch.no_grad():
        before = trained(input_ids=ids).logits
        with dequantised(trained):
            layers = [module for module in trained.modules() if isinstance(module, Linear4bit)]
            assert ["forward" in vars(layer) for layer in layers] == [True] * 2 * 7
            within = trained(input_ids=ids).logits
    assert not any("forward" in vars(layer) for layer in layers)
    torch.testing.assert_close(within, before, rtol=0, atol=0)


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_gradients_are_the_same_before_and_after_an_evaluation(tiny_model, quantization):
    trained = load(tiny_model, f"quantization={quantization}")
    give_the_adapter_an_effect(trained)
    before = gradients(trained)
    trained.eval()
    with torch.no_grad():
        trained(input_ids=torch.tensor([[5, 6, 7]]))
        trained.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4)
    after = gradients(trained)
    assert before.keys() == after.keys()
    assert len(before) == 2 * 2 * 7
    for name, gradient in before.items():
        assert gradient.norm() > 0
        torch.testing.assert_close(after[name], gradient, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("quantization", "kind", "quant_type"),
    [
        ("nf4", Linear4bit, "nf4"),
        ("fp4", Linear4bit, "fp4"),
        ("int8", Linear8bitLt, None),
        ("none", torch.nn.Linear, None),
    ],
)
def test_each_quantization_gives_its_kind_of_layer(tiny_model, quantization, kind, quant_type):
    layer = load(tiny_model, f"quantization={quantization}").get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert type(layer) is kind
    assert quant_type is None or layer.weight.quant_type == quant_type


def test_the_bias_setting_decides_which_biases_train(tiny_model):
    settings = ["quantization=none", "adapter.target_modules=[q_proj]"]
    names = {
        bias: trainable(load(tiny_model, *settings, f"adapter.bias={bias}")) for bias in ("none", "lora_only", "all")
    }
    assert all("lora_" in name for name in names["none"])
    added = {name.rpartition("self_attn.")[2] for name in names["lora_only"] - names["none"]}
    assert added == {"q_proj.base_layer.bias"}
    assert len(names["all"] - names["none"]) == 2 * 4  # the biases of q, k, v and o in both layers


def test_full_trains_every_weight_and_has_no_adapter(tiny_model):
    trained = load(tiny_model, "quantization=none", "adapter=full")
    assert not isinstance(trained, PeftModel)
    total, trained_count = count_parameters(trained)
    assert total == trained_count


@pytest.mark.parametrize("overrides", [["adapter.bias=all"], ["adapter.modules_to_save=[norm]"], ["adapter=full"]])
def test_the_untouched_model_answers_as_it_did_before_training(tiny_model, overrides):
    trained = load(tiny_model, "quantization=none", *overrides)
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
        load(tiny_model, "quantization=none", "adapter.target_modules=[c_attn]")


def test_four_bit_parameters_are_counted_as_the_numbers_that_they_hold(tiny_model):
    counts = [count_parameters(load(tiny_model, f"quantization={name}"))[0] for name in ("nf4", "int8", "none")]
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(("setting", "expected"), [("adapter=lora", 2.0), ("adapter=rslora", 32 / math.sqrt(16))])
def test_the_adapters_scale_follows_r_alpha_and_rslora(tiny_model, setting, expected):
    layer = load(tiny_model, "quantization=none", setting).get_base_model().model.layers[0].mlp.up_proj
    assert layer.scaling["default"] == pytest.approx(expected)


def test_a_local_models_files_are_told_with_their_checksums(tiny_model):
    found = model_provenance(compose_config(["model=local", f"model.path={tiny_model}"]).model, None)
    [file] = tiny_model.glob("*.safetensors")
    content = file.read_bytes()
    assert found["files"] == {file.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
