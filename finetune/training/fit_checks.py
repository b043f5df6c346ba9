"""Do the settings fit the machine, the model's shapes and the rows? Checked before any weight is loaded."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from finetune.config.schema import Adapter, Bias, Config
from finetune.config.spelling import spell
from finetune.errors import did_you_mean, raise_problems
from finetune.machine.device import Device
from finetune.model.adapter import linear_names
from finetune.training.tokenize import TokenizedRows


def check_machine(config: Config, machine: Device) -> None:
    """Raise one UserError that names every setting that the device makes impossible."""
    trainer, problems = config.trainer, []
    if trainer.get("fp16") and machine.kind == "cpu":
        problems.append("trainer.fp16=true: a CPU does not train in float16. Leave it out for the machine's best.")
    if trainer.get("bf16") and machine.kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        problems.append("trainer.bf16=true: this GPU has no native bfloat16. Leave it out for the machine's best.")
    if trainer.get("tf32") and machine.kind == "cpu":
        problems.append("trainer.tf32=true: it is for NVIDIA GPUs from Ampere on, and this is a CPU. Leave it out.")
    raise_problems(problems)


def check_fit(config: Config, machine: Device, meta_model: PreTrainedModel, rows: TokenizedRows) -> None:
    """Raise one UserError that names every setting that the model or the rows make impossible."""
    context = _context(config.trainer.get("max_length"), meta_model, rows)
    raise_problems([*context, *_modules(config.adapter, meta_model), *_amount(config.trainer, machine, rows)])


def bias_notes(config: Config) -> Iterator[str]:
    """What is legal but may surprise."""
    quantized = config.quantization.load_in_4bit or config.quantization.load_in_8bit
    if config.adapter.enabled and config.adapter.bias is not Bias.none:
        kept = " (biases are not quantised)" if quantized else ""
        yield (
            f"adapter.bias={config.adapter.bias.value}: biases of the base are trained too{kept}; "
            "with the adapter switched off the model is the base only once they are put back"
        )


def _context(max_length: int | None, meta_model: PreTrainedModel, rows: TokenizedRows) -> Iterator[str]:
    context = getattr(meta_model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(ids) for some in (rows.train, rows.validation) for ids in some["input_ids"]), default=0)
    setting, remedy = f"trainer.max_length={spell(max_length)}", f"Write trainer.max_length={context}."
    if context and max_length and max_length > context:
        yield f"{setting}: the model's context is {context} tokens. {remedy}"
    elif context and longest > context:
        yield f"{setting}: the longest row has {longest:,} tokens, and the model's context is {context:,}. {remedy}"


def _modules(adapter: Adapter, meta_model: PreTrainedModel) -> Iterator[str]:
    if not adapter.enabled:
        return
    names, linear = [f".{name}" for name, _ in meta_model.named_modules()], linear_names(meta_model)
    targets = [] if isinstance(adapter.target_modules, str) else adapter.target_modules
    for key, modules in (("target_modules", targets), ("modules_to_save", adapter.modules_to_save or [])):
        for module in modules:
            if not any(name.endswith(f".{module}") for name in names):
                hint = f"{did_you_mean(module, linear)} Linear layers here: {', '.join(linear)}"
                yield f"adapter.{key}: this model has no module {module}.{hint}."
    last = meta_model.config.get_text_config().num_hidden_layers - 1
    if max(adapter.layers_to_transform or [0]) > last:
        yield f"adapter.layers_to_transform={spell(adapter.layers_to_transform)}: the model has layers 0 to {last}."


def _amount(trainer: dict[str, Any], machine: Device, rows: TokenizedRows) -> Iterator[str]:
    batch, batches = trainer.get("per_device_train_batch_size", 8), trainer.get("gradient_accumulation_steps", 1)
    effective = batch * batches * machine.processes
    if effective > len(rows.train):
        yield (
            f"trainer.per_device_train_batch_size={batch} x trainer.gradient_accumulation_steps={batches} x "
            f"{machine.processes} processes: one step takes {effective} rows, and there are {len(rows.train)} to train "
            "on. Write a smaller one."
        )
        return
    steps = trainer.get("max_steps", -1)
    if steps <= 0:
        steps = round(trainer.get("num_train_epochs", 3) * -(-len(rows.train) // effective))
    warmup = trainer.get("warmup_steps", 0)
    if warmup >= 1 and warmup >= steps:
        yield (
            f"trainer.warmup_steps={spell(warmup)}: training has {steps} steps, so that the learning rate would never "
            "be reached. Write a share, such as trainer.warmup_steps=0.05."
        )
