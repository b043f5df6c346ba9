import pytest
import torch
from support import builds, tiny_models


def trainer(tiny_run, *overrides):
    return builds.trainer([*tiny_run, *overrides])


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_adapters_stay_in_float32(tiny_run, quantization):
    trained = trainer(tiny_run, f"quantization={quantization}")
    kept = {p.dtype for p in trained.model.parameters() if p.requires_grad}
    assert kept == {torch.float32}


@pytest.mark.parametrize("adapter", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
def test_flat_batches_give_the_loss_and_gradients_of_padded_ones(tiny_run, adapter):
    settings = [f"adapter={adapter}", "quantization=nf4"]
    flat = trainer(tiny_run, *settings)
    padded = trainer(tiny_run, *settings, "model.attn_implementation=eager")
    assert flat.flat and not padded.flat
    losses, gradients = [], []
    for one in (flat, padded):
        tiny_models.give_the_adapter_an_effect(one.model)
        inputs = one._prepare_inputs(one.data_collator([one.train_dataset[i] for i in range(4)]))
        one.model.train()
        loss = one.compute_loss(one.model, inputs)
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad for n, p in one.model.named_parameters() if p.requires_grad})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert flat.tokens == padded.tokens and flat.loss_tokens == padded.loss_tokens
    for name, gradient in gradients[0].items():
        assert gradient.norm() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "setting", ["trainer.packing=true trainer.per_device_train_batch_size=1", "trainer.loss_type=dft"]
)
def test_what_flat_batches_cannot_do_is_left_to_trl(tiny_run, setting):
    trained = trainer(tiny_run, *setting.split())
    assert not trained.flat
    assert ("packing" in trained.layout) == ("packing" in setting)


@pytest.mark.slow
def test_micro_batches_weigh_every_token_alike(tiny_run):
    """Four micro-batches of one row give the gradient step of one batch of four, though rows differ in length."""
    trained = []
    for rows, grown in ((4, 1), (1, 4)):
        few = [f"trainer.per_device_train_batch_size={rows}", f"trainer.gradient_accumulation_steps={grown}"]
        one = trainer(tiny_run, *few, "trainer.max_steps=2", "trainer.learning_rate=1e-2", "trainer.eval_strategy=no")
        assert one.flat
        one.train()
        trained.append({n: p.detach().clone() for n, p in one.model.named_parameters() if p.requires_grad})
    for name, weights in trained[0].items():
        torch.testing.assert_close(weights, trained[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("setting", ["trainer.neftune_noise_alpha=5", "trainer.pad_to_multiple_of=8"])
def test_what_is_defined_on_padded_batches_runs_on_these(tiny_run, setting):
    assert not trainer(tiny_run, setting).flat
