import pytest
import torch

from finetune import batch, checkpoint, device, model, prepare, sft_settings, train
from finetune.command import compose


def trainer(tiny_run, *overrides):
    """The trainer that `python run.py OVERRIDES` would build, before its first step."""
    config = compose([*tiny_run, *overrides])
    machine = device.choose(config.model, config.quantization, config.adapter)
    prepared = prepare.prepare(config, machine, checkpoint.folder(config))
    base = model.load_base(config.model, config.quantization, machine)
    built = train.Trainer(model.add_adapter(base, config.adapter, config.seed), prepared, [])
    built.sizes = prepared.rows.sizes
    return built


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_adapters_stay_in_float32(tiny_run, quantization):
    trained = trainer(tiny_run, f"quantization={quantization}")
    kept = {p.dtype for p in trained.model.parameters() if p.requires_grad}
    assert kept == {torch.float32}


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_flat_batches_give_the_loss_and_gradients_of_padded_ones(tiny_run, adapter):
    settings = [f"adapter={adapter}", "quantization=nf4"]
    flat = trainer(tiny_run, *settings)
    padded = trainer(tiny_run, *settings, "model.attn_implementation=eager")
    assert flat.flat and not padded.flat
    losses, gradients = [], []
    for one in (flat, padded):
        with torch.no_grad():
            for name, parameter in one.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
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


def test_rows_are_cut_at_max_length_and_counted(tiny_run):
    trained = trainer(tiny_run, "trainer.max_length=200", "data.max_cut_share=1")
    size = trained.sizes["train"]
    assert size.truncated > 0
    assert size.truncated == sum(len(row["input_ids"]) == 200 for row in trained.train_dataset)
    assert size.tokens > sum(len(row["input_ids"]) for row in trained.train_dataset)


def test_sizes_count_what_the_labels_hold(tiny_run):
    trained = trainer(tiny_run)
    labels = [label for row in trained.train_dataset for label in row["labels"][1:]]
    assert trained.sizes["train"].loss_tokens == sum(label != batch.IGNORE for label in labels)
    assert trained.sizes["train"].tokens == sum(len(row["input_ids"]) for row in trained.train_dataset)


@pytest.mark.parametrize("setting", ["trainer.packing=true", "trainer.loss_type=dft"])
def test_what_flat_batches_cannot_do_is_left_to_trl(tiny_run, setting):
    trained = trainer(tiny_run, setting)
    assert not trained.flat
    assert ("packing" in trained.layout) == ("packing" in setting)


def test_large_models_recompute_activations_unless_told_otherwise(tiny_run, monkeypatch):
    assert not trainer(tiny_run).args.activation_checkpointing
    monkeypatch.setattr(sft_settings, "CHECKPOINTING_FROM", 1)
    assert trainer(tiny_run).args.activation_checkpointing
    assert not trainer(tiny_run, "trainer.activation_checkpointing=false").args.activation_checkpointing
