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
    return _config_key(config, ("data", "model"), RATES | AMOUNTS)


def base_key(model: Model, quantization: Quantization, device: "Device") -> str:
    """The same for runs that load the same base model in the same way, with however many threads."""
    return _hash([str(part) for part in (model, quantization, device.kind, device.compute_dtype, device.weight_dtype)])


def cost_key(config: Config) -> str:
    """The same for runs that need the same memory and take the same time."""
    return _config_key(config, ("data", "model", "quantization", "adapter", "eval", "plan"), RATES)


def _config_key(config: Config, sections: tuple[str, ...], without: set[str]) -> str:
    """Of these sections, and of the trainer's settings but those in `without`."""
    settings = to_plain(config)
    trainer = {name: value for name, value in settings["trainer"].items() if name not in without}
    return _hash([*(settings[name] for name in sections), trainer, data_digest(config.data)])


def _hash(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
