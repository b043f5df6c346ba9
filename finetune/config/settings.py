"""Which settings make a run what it is? Those that differ from the defaults, and those that differ between runs."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from enum import Enum
from typing import Any

from finetune.config.schema import Config

# Settings that change where a run's numbers go, but not the numbers.
OUTSIDE_IDENTITY = ("tracking", "name", "output_dir", "stage", "plan", "sweep", "force")
OUTSIDE_TRAINER_IDENTITY = (
    "report_to",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "logging_dir",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "save_total_limit",
    "dataloader_num_workers",
    "dataset_num_proc",
)


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists and scalars."""
    return {key: _plain_value(value) for key, value in asdict(config).items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def flatten_all(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """All settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flatten_all(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


OUTSIDE = {*OUTSIDE_IDENTITY, *(f"trainer.{name}" for name in OUTSIDE_TRAINER_IDENTITY)}


def flatten_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that change a result, by their dotted names; those that do not are left out."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in OUTSIDE:
            continue
        inner = (
            flatten_settings({f"{key}.{name}": item for name, item in value.items()})
            if isinstance(value, dict)
            else None
        )
        flat |= inner if inner is not None else {key: value}
    return flat


def changed_settings(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each setting that is not the default's: its value and the default; None stands for a setting that is absent."""
    mine, theirs = flatten_settings(config), flatten_settings(defaults)
    return {
        key: (mine.get(key), theirs.get(key))
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    }


def varying_settings(configs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each configuration its values of the settings in which any two of them differ."""
    flat = [flatten_settings(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    differ = [key for key in keys if len({json.dumps(one.get(key), sort_keys=True) for one in flat}) > 1]
    return [{key: one.get(key) for key in differ} for one in flat]
