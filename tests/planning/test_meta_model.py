"""A deep model is measured at two depths, and what is added up is what the whole model would hold."""

import pytest
import torch
from support import tiny_models
from support.plans import planned_run, without_weights
from trl.kernels import chunked_logprob

from finetune.planning.memory import estimate_memory
from finetune.planning.meta_model import build_meta_model, peak_tensor_bytes


def measured_at(trainer, batch, **depths):
    """The bytes of a training step, measured at these depths, by default at those of every plan."""

    def step():
        trainer.compute_loss(trainer.model, dict(batch)).backward()

    trainer.model.train()
    parts = peak_tensor_bytes(trainer.model, step, **depths)
    trainer.model.zero_grad(set_to_none=True)
    return parts


@pytest.mark.slow
def test_a_deep_model_is_measured_at_two_depths_only(tiny_run, tmp_path):
    shape = tiny_models.SHAPE | {"vocab_size": 49152, "num_hidden_layers": 9, "max_position_embeddings": 512}
    settings = [*tiny_run, *without_weights(tmp_path, **shape), "trainer.max_length=512"]
    trainer, workload, _ = estimate_memory(planned_run(*settings))
    batch = workload.largest[0]
    assert measured_at(trainer, batch) == measured_at(trainer, batch, depths=())


@pytest.mark.slow
def test_two_depths_whose_worst_moments_differ_are_not_compared():
    settings = ["quantization=none", "adapter=full", "eval.max_prompts=4", "tracking=none"]
    trainer, workload, _ = estimate_memory(planned_run(*settings))
    extrapolated, whole = (measured_at(trainer, workload.largest[0], **depths) for depths in ({}, {"depths": ()}))
    assert sum(extrapolated.values()) == pytest.approx(sum(whole.values()), rel=0.01)


def test_a_meta_model_has_the_shapes_and_ties_of_the_real_one_but_no_contents(tiny_run):
    planned = planned_run(*tiny_run, "adapter=full")
    model = build_meta_model(planned.prepared.meta_model, planned.config, planned.machine)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    shapes = {name: parameter.shape for name, parameter in planned.prepared.meta_model.named_parameters()}
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
    assert all(p.dtype is planned.machine.weight_dtype and p.device.type == "cpu" for p in model.parameters())


def test_tensors_count_while_they_are_alive(tiny_run):
    planned = planned_run(*tiny_run)
    model = build_meta_model(planned.prepared.meta_model, planned.config, planned.machine)
    compiled = chunked_logprob._TRITON_AVAILABLE
    weight = model.get_input_embeddings().weight
    hidden, vocabulary = weight.shape[1], weight.shape[0]

    def one_after_the_other():
        for _ in range(3):
            weight.new_empty(100, hidden)

    def together():
        kept = [weight.new_empty(100, hidden), weight.new_empty(7, vocabulary)]
        del kept

    size = weight.element_size()
    with torch.no_grad():
        assert peak_tensor_bytes(model, one_after_the_other) == {"activations": 100 * hidden * size}
        assert peak_tensor_bytes(model, together) == {
            "activations": 100 * hidden * size,
            "logits": 7 * vocabulary * size,
        }
    assert compiled is chunked_logprob._TRITON_AVAILABLE


def test_a_tensor_counts_that_has_the_address_of_one_that_is_gone(tiny_run):
    planned = planned_run(*tiny_run)
    model = build_meta_model(planned.prepared.meta_model, planned.config, planned.machine)
    before, kept = [torch.zeros(1000) for _ in range(100)], []

    def use_up():
        while before:
            kept.append(before.pop() + 1)

    assert peak_tensor_bytes(model, use_up) == {"activations": 100 * 4000}
