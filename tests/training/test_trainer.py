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
    assert flat.step.tokens == padded.step.tokens and flat.step.loss_tokens == padded.step.loss_tokens
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


@pytest.mark.parametrize(
    "settings",
    [
        [],
        pytest.param(["trainer.loss_type=dft"], marks=pytest.mark.slow),
        pytest.param(["model.attn_implementation=eager"], marks=pytest.mark.slow),
    ],
)
def test_the_validation_loss_is_the_mean_over_all_tokens_however_they_are_batched_and_trained(tiny_run, settings):
    losses = []
    for size in (1, 3):
        one = trainer(tiny_run, *settings, f"trainer.per_device_eval_batch_size={size}")
        tiny_models.give_the_adapter_an_effect(one.model)
        losses.append(one.evaluate()["eval_loss"])
    nll, count = 0.0, 0
    with torch.no_grad():
        for row in one.eval_dataset:
            labels = torch.tensor(row["labels"][1:])
            logits = one.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            nll += torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100).item()
            count += int((labels != -100).sum())
    assert losses == pytest.approx([nll / count] * 2, rel=1e-5)


TRAINED = {
    "copied modules": ["adapter.modules_to_save=[norm]"],
    "biases": ["adapter.bias=all"],
    "DoRA": ["adapter=dora"],
    "all weights": ["adapter=full"],
}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("copied modules", "float16"),
        *(pytest.param(kind, "bfloat16", marks=pytest.mark.slow) for kind in TRAINED),
        *(pytest.param(kind, "float16", marks=pytest.mark.slow) for kind in TRAINED if kind != "copied modules"),
    ],
)
def test_whatever_is_trained_is_in_float32_and_takes_a_step_in_mixed_precision(tiny_run, kind, dtype):
    one = trainer(tiny_run, *TRAINED[kind], f"model.dtype={dtype}", "trainer.fp16=false", "trainer.bf16=false")
    trained = [parameter for parameter in one.model.parameters() if parameter.requires_grad]
    assert trained and {parameter.dtype for parameter in trained} == {torch.float32}
    optimizer, scaler = torch.optim.AdamW(trained, lr=1e-6), torch.amp.GradScaler("cpu", enabled=dtype == "float16")
    before = [parameter.detach().clone() for parameter in trained]
    inputs = one._prepare_inputs(one.data_collator([one.train_dataset[i] for i in range(2)]))
    one.model.train()
    with torch.autocast("cpu", getattr(torch, dtype)):
        loss = one.compute_loss(one.model, inputs)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    changed = [not torch.equal(parameter, old) for parameter, old in zip(trained, before, strict=True)]
    assert sum(changed) >= len(changed) / 2  # 16 bits would round so small an update away


@pytest.mark.slow
def test_training_holds_no_second_copy_of_all_weights(tiny_run):
    one = trainer(tiny_run, "adapter=full")
    addresses = {parameter.data_ptr() for parameter in one.model.parameters()}
    again = type(one)(one.model, builds.prepared([*tiny_run, "adapter=full"]), [])
    assert {parameter.data_ptr() for parameter in again.model.parameters()} == addresses
