"""Which settings make a run what it is? Those that differ from the defaults, and those that differ between runs."""

import json
from collections.abc import Iterable
from typing import Any

from finetune.cli import main as command
from finetune.runs import folder as checkpoint

OUTSIDE = {*checkpoint.OUTSIDE_IDENTITY, *(f"trainer.{name}" for name in checkpoint.OUTSIDE_TRAINER_IDENTITY)}


def flatten(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that change a result, by their dotted names; those that do not are left out."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in OUTSIDE:
            continue
        inner = flatten({f"{key}.{name}": item for name, item in value.items()}) if isinstance(value, dict) else None
        flat |= inner if inner is not None else {key: value}
    return flat


def changed(config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each setting that is not the default's: its value and the default; None stands for a setting that is absent."""
    mine, defaults = flatten(config), flatten(checkpoint.plain(command.compose([])))
    return {
        key: (mine.get(key), defaults.get(key))
        for key in dict.fromkeys([*mine, *defaults])
        if mine.get(key) != defaults.get(key)
    }


def varying(configs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each configuration its values of the settings in which any two of them differ."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    differ = [key for key in keys if len({json.dumps(one.get(key), sort_keys=True) for one in flat}) > 1]
    return [{key: one.get(key) for key in differ} for one in flat]


def written(value: Any) -> str:
    """A setting's value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
