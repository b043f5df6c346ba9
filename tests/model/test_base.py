import hashlib

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from support import tiny_models

from finetune.cli.compose import compose_config
from finetune.machine.device import choose_device
from finetune.model.adapter import add_adapter
from finetune.model.base import base_key, load_base, model_provenance, weights_digest
from finetune.training.flat_batch import collate_shared_prefix, negative_log_likelihood

ROWS = [{"input_ids": list(range(5, 25)), "labels": [-100] * 8 + list(range(13, 25))}] * 2


def gradients(trained):
    trained.train()
    trained.zero_grad()
    nll, count = negative_log_likelihood(trained, collate_shared_prefix(ROWS))
    (nll / count).backward()
    return {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_gradients_are_the_same_before_and_after_an_evaluation(tiny_model, quantization):
    trained = tiny_models.adapted(tiny_model, f"quantization={quantization}")
    tiny_models.give_the_adapter_an_effect(trained)
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
    layer = (
        tiny_models.adapted(tiny_model, f"quantization={quantization}")
        .get_base_model()
        .model.layers[0]
        .mlp.up_proj.base_layer
    )
    assert type(layer) is kind
    assert quant_type is None or layer.weight.quant_type == quant_type


def test_the_provenance_of_a_local_model_is_its_files_with_their_checksums(tiny_model):
    provenance = model_provenance(
        compose_config(["model=local", f"model.path={tiny_model}"]).model, tiny_models.model("llama")
    )
    [file] = tiny_model.glob("*.safetensors")
    content = file.read_bytes()
    assert provenance["files"] == {file.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}


def test_weights_that_changed_by_one_number_have_another_digest_and_an_adapter_changes_none(tiny_model):
    config = compose_config(["model=local", f"model.path={tiny_model}", "quantization=none"])
    base = load_base(
        config.model, config.quantization, choose_device(config.model, config.quantization, config.adapter)
    )
    plain = weights_digest(base)
    assert weights_digest(add_adapter(base, config.adapter, seed=1)) == plain
    base.model.embed_tokens.weight.data[5, 5] += 1
    assert weights_digest(base) != plain


def test_a_base_that_was_loaded_for_all_trials_is_taken(tiny_model):
    config = compose_config(["model=local", f"model.path={tiny_model}"])
    machine = choose_device(config.model, config.quantization, config.adapter)
    loaded = tiny_models.model("llama")
    key = base_key(config.model, config.quantization, machine)
    assert load_base(config.model, config.quantization, machine, {key: loaded}) is loaded
    assert load_base(config.model, config.quantization, machine, {"another": loaded}) is not loaded
