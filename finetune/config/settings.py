"""Which settings make a run what it is? Those that differ from the defaults, and those that differ between runs."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from enum import Enum
from typing import Any

from finetune.config.schema import Config

# Settings that change where a run's numbers go, but not the numbers.
OUTSIDE_IDENTITY = (
    *("tracking", "name", "output_dir", "stage", "plan", "sweep", "force"),
    *("checkpoint", "overwrite", "max_nonfinite_steps"),
)
OUTSIDE_TRAINER_IDENTITY = (
    *("report_to", "disable_tqdm", "log_level", "log_level_replica", "logging_dir", "logging_first_step"),
    *("logging_steps", "logging_strategy", "save_total_limit", "dataloader_num_workers", "dataset_num_proc"),
)


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists and scalars."""
    return asdict(config, dict_factory=lambda items: {k: v.name if isinstance(v, Enum) else v for k, v in items})


def flatten_all(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """All settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten_all(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def flatten_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that change a result, by their dotted names; those that do not are left out."""
    outside = {f"trainer.{name}" for name in OUTSIDE_TRAINER_IDENTITY}
    flat = flatten_all({section: value for section, value in config.items() if section not in OUTSIDE_IDENTITY})
    return {key: value for key, value in flat.items() if key not in outside}


def changed_settings(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each setting that is not the default's: its value and the default; None stands for a setting that is absent."""
    ours, theirs = flatten_settings(config), flatten_settings(defaults)
    return {key: (ours.get(key), theirs.get(key)) for key in ours | theirs if ours.get(key) != theirs.get(key)}


def varying_settings(configs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each configuration its values of the settings in which any two of them differ."""
    flat = [flatten_settings(config) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    varying = [key for key in keys if len({json.dumps(settings.get(key), sort_keys=True) for settings in flat}) > 1]
    return [{key: settings.get(key) for key in varying} for settings in flat]
