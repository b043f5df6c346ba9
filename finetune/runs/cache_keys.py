"""Which runs have the same rows, the same base model, or the same cost? What they share is computed once."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from finetune.config.schema import Config, Model, Quantization
from finetune.config.settings import OUTSIDE_TRAINER_IDENTITY, to_plain
from finetune.data.splits import data_digest

if TYPE_CHECKING:
    from finetune.machine.device import Device


# Settings of the trainer that change neither its rows nor the memory it needs.
RATES = {
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    *OUTSIDE_TRAINER_IDENTITY,
}
# Further ones that do not change its rows.
AMOUNTS = {
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "optim",
}


def rows_key(config: Config) -> str:
    """The same for runs with the same tokens."""
    settings = to_plain(config)
    return _hash([settings["data"], settings["model"], _without(settings, RATES | AMOUNTS), data_digest(config.data)])


def base_key(model: Model, quantization: Quantization, device: "Device") -> str:
    """The same for runs that load the same base model in the same way, with however many threads."""
    return _hash([str(part) for part in (model, quantization, device.kind, device.compute_dtype, device.weight_dtype)])


def cost_key(config: Config) -> str:
    """The same for runs that need the same memory and take the same time."""
    settings = to_plain(config)
    sections = [settings[name] for name in ("data", "model", "quantization", "adapter", "eval", "plan")]
    return _hash([*sections, _without(settings, RATES), data_digest(config.data)])


def _without(settings: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in settings["trainer"].items() if name not in names}


def _hash(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
