"""The memory that is predicted is that of the real model, of its phases and of its weights."""

from dataclasses import replace

import pytest
from support.plans import asking, planned_run, without_weights
from torch.autograd.graph import saved_tensors_hooks

from finetune.machine.allowance import Fit
from finetune.model.adapter import add_adapter
from finetune.model.base import load_base
from finetune.planning.memory import MemoryNeed, batch_bytes, estimate_memory, weight_bytes
from finetune.planning.meta_model import build_meta_model
from finetune.planning.plan import make_plan
from finetune.training.trainer import Trainer, recompute_activations


def saved_bytes(trainer, inputs):
    """Bytes of the distinct tensors that a forward pass keeps for the backward pass, weights aside."""
    weights = {parameter.untyped_storage()._cdata for parameter in trainer.model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    trainer.model.train()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.compute_loss(trainer.model, dict(inputs))
    return sum(storage.nbytes() for storage in kept.values()), loss


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("recomputed", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_meta_model_keeps_as_many_bytes_as_the_real_one(tiny_run, quantization, recomputed):
    settings = [f"quantization={quantization}", f"trainer.activation_checkpointing={recomputed}"]
    planned = planned_run(*tiny_run, *settings)
    trainer, workload, _ = estimate_memory(planned)
    predicted, _ = saved_bytes(trainer, workload.largest[0])
    config = planned.config
    base = load_base(config.model, config.quantization, planned.machine)
    real = Trainer(add_adapter(base, config.adapter, config.seed), planned.prepared, [])
    recompute_activations(real)
    measured, _ = saved_bytes(real, workload.largest[0])
    assert predicted == measured
    alive = sum(batch_bytes(trainer, workload.largest[0], train=True).values())
    assert alive >= predicted


@pytest.mark.slow
def test_weights_are_counted_as_they_are_stored(tiny_run):
    for quantization in ("nf4", "int8", "none"):
        planned = planned_run(*tiny_run, f"quantization={quantization}")
        config = planned.config
        base = load_base(config.model, config.quantization, planned.machine)
        model = build_meta_model(planned.prepared.meta_model, config, planned.machine)
        assert weight_bytes(model, config.quantization)["weights"] == pytest.approx(
            base.get_memory_footprint(return_buffers=False), rel=0.02
        )


def test_copies_are_kept_of_trained_weights_of_the_base_alone(tiny_run):
    settings = [*tiny_run, "adapter.bias=all", "adapter.modules_to_save=[norm]"]
    _, _, need = estimate_memory(planned_run(*settings))
    planned = planned_run(*tiny_run)
    biases = [p for name, p in planned.prepared.meta_model.named_parameters() if name.endswith("bias")]
    copied = sum(parameter.numel() * planned.machine.weight_dtype.itemsize for parameter in biases)
    assert need.phases["training step"]["copies"] == copied > 0
    assert need.phases["answers"]["copies"] == 2 * copied


def test_a_last_batch_of_one_long_prompt_is_not_counted_as_a_full_one(tiny_run):
    planned = planned_run(*tiny_run, "eval.batch_size=10")
    one_long = estimate_memory(asking(planned, *[20] * 10, 600), held=0)[2]
    ten_long = estimate_memory(asking(planned, *[20] * 10, *[600] * 10), held=0)[2]
    assert one_long.bytes_of("answers") < ten_long.bytes_of("answers")


def test_a_full_batch_counts_where_it_needs_more_than_the_smaller_last_one(tiny_run):
    planned = planned_run(*tiny_run, "eval.batch_size=10")
    full = estimate_memory(asking(planned, *[100] * 10), held=0)[2]
    followed = estimate_memory(asking(planned, *[100] * 10, *[101] * 5), held=0)[2]
    assert full.answered_at_a_time == followed.answered_at_a_time == 10
    assert full.phases["answers"] == followed.phases["answers"]


def test_memory_that_other_runs_share_is_not_available(tiny_run):
    planned = planned_run(*tiny_run)
    allowance = replace(planned.machine.allowance, runs_at_a_time=1000)
    shared = replace(planned, machine=replace(planned.machine, allowance=allowance))
    assert estimate_memory(shared)[2].available < estimate_memory(planned)[2].available


def test_the_phase_that_needs_most_decides_whether_a_run_fits():
    phases = {"training step": {"weights": 50, "activations": 30, "dequantisation": 0}, "answers": {"weights": 50}}
    need = MemoryNeed(phases, 100, 10, 4)
    assert (need.peak_phase, need.peak, need.fit) == ("training step", 80, Fit.fits)
    assert replace(need, available=90).fit is Fit.tight
    assert replace(need, available=79).fit is Fit.will_not_fit
    assert not need.dequantises
    assert replace(need, phases=phases | {"answers": {"dequantisation": 20}}).dequantises


@pytest.mark.slow
def test_an_8b_model_is_planned_without_its_weights(tmp_path):
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    shape |= {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}
    settings = [*without_weights(tmp_path, **shape), "quantization=nf4", "tracking=none"]
    planned = planned_run(*settings, "plan.memory_gib=200", "plan.tflops=100")
    plan = make_plan(planned, 0.0)
    embeddings = 2 * 128256 * 4096
    quantised = planned.prepared.meta_model.num_parameters() - embeddings
    expected = 0.516 * quantised + planned.machine.weight_dtype.itemsize * embeddings
    assert plan.need.phases["training step"]["weights"] == pytest.approx(expected, rel=0.01)
    assert plan.need.fit is Fit.fits and plan.seconds["train"] > 0
