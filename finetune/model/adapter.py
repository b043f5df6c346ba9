"""What is trained on the base model, and how is the base model there without it?"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from finetune.config.schema import Adapter
from finetune.errors import UserError
from finetune.model.base import TRAINED_PARTS, TrainedModel, keep_gradients

Weights = dict[str, torch.Tensor]  # on the CPU, by name


def add_adapter(base: PreTrainedModel, adapter: Adapter, seed: int) -> TrainedModel:
    """The base with a fresh adapter, or itself; raises UserError for target modules that it lacks.

    Whatever is trained is in float32.
    """
    if not adapter.enabled:
        return base
    settings = {name: value for name, value in asdict(adapter).items() if name != "enabled"}
    config = LoraConfig(task_type="CAUSAL_LM", **settings | {"bias": adapter.bias.value})
    torch.manual_seed(seed)
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        linear = ", ".join(linear_names(base))
        problem = f"adapter.target_modules={adapter.target_modules}: {error}."
        raise UserError(f"{problem} Linear layers here: {linear}.") from error
    keep_gradients(model)
    keep_scales(model)
    _hold_trained_in_float32(model)
    return model


def trained_parameters(model: torch.nn.Module) -> Weights:
    """What training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _hold_trained_in_float32(model: torch.nn.Module) -> None:
    """PEFT does so for LoRA's own weights; small updates of copied modules and biases are lost in 16 bits, too."""
    for parameter in trained_parameters(model).values():
        parameter.data = parameter.data.float()


def keep_scales(model: torch.nn.Module) -> None:
    """Give int8 weights their scales back before each product, as DoRA on a CPU leaves copies without them."""

    def restore(layer: Any, _: object) -> None:  # PEFT 0.21 with bitsandbytes 0.50
        if layer.weight.SCB is None:
            layer.weight.SCB = layer.state.SCB

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.register_forward_pre_hook(restore)


def trained_base_weights(model: torch.nn.Module) -> Weights:
    """A copy of those weights of the base that training will change: biases (`adapter.bias`) or all of them."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in trained_parameters(model).items()
        if not any(part in name for part in TRAINED_PARTS)
    }


@contextmanager
def as_base_model(model: TrainedModel, originals: Weights) -> Iterator[None]:
    """Within the block the model is the base as it was loaded: adapter off, and `originals` in their places."""
    # PEFT's `disable_adapter` alone leaves trained biases in the base.
    tuned = trained_base_weights(model) if originals else {}
    _copy_into(model, originals)
    try:
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            yield
    finally:
        _copy_into(model, tuned)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """All parameters and the trainable ones; a 4-bit weight counts as the numbers that it holds, not its bytes."""
    total = trainable = 0
    for parameter in model.parameters():
        size = torch.Size(getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape)).numel()
        total, trainable = total + size, trainable + size * parameter.requires_grad
    return total, trainable


def linear_names(model: torch.nn.Module) -> list[str]:
    """The names of the linear layers, without those of the modules that they are in."""
    modules = model.named_modules()
    return sorted({name.rpartition(".")[2] for name, module in modules if isinstance(module, torch.nn.Linear)})


def _copy_into(model: torch.nn.Module, weights: Weights) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)
