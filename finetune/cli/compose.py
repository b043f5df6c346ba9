"""How do the words of a command line become checked configurations?"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # private: hydra, no public way splits a grid
from hydra._internal.utils import get_args_parser  # private: hydra, it alone knows the options of its command line
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from finetune.cli.overrides import CONF, check_overrides
from finetune.cli.validate import read_config, validate_config
from finetune.config.schema import Config, register_schema


def compose_config(arguments: list[str]) -> Config:
    """The checked configuration of `python run.py ARGUMENTS`, for a program or a test that has no command line."""
    check_overrides(arguments)
    register_schema()
    hydra = GlobalHydra.instance()
    running, hydra.hydra = hydra.hydra, None  # the program may run inside Hydra's main
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return validate_config(read_config(hydra_compose("config", overrides=arguments)))
    finally:
        hydra.hydra = running


def compose_trial(context: HydraContext, sweep: DictConfig, arguments: list[str]) -> Config:
    """The checked configuration of one trial of a sweep that Hydra has begun."""
    composed = context.config_loader.load_sweep_config(sweep, arguments)
    with open_dict(composed):
        del composed["hydra"]
    return validate_config(read_config(composed))


@dataclass(frozen=True)
class Grid:
    """What a command line sweeps: each cell's overrides and checked configuration."""

    overrides: list[list[str]]
    configs: list[Config]
    common: DictConfig  # what Hydra composes of the settings that are not swept, with its own


def compose_grid(arguments: Sequence[str]) -> Grid | None:
    """All cells of the grid that `python run.py ARGUMENTS` sweeps, checked; None where it sweeps none."""
    flags, parser = get_args_parser().parse_args(arguments), OverridesParser.create()
    given = parser.parse_overrides(flags.overrides)
    sweeps = flags.multirun or any(override.key_or_group in ("sweep", "hydra.mode") for override in given)
    if not sweeps or flags.cfg or flags.info:
        return None
    register_schema()
    name, folder = flags.config_name or "config", CONF.parent / (flags.config_path or CONF)
    added = [f"hydra.searchpath=[file://{Path(flags.config_dir).absolute()}]"] if flags.config_dir else []
    with initialize_config_dir(str(folder), version_base="1.3"):
        fixed = [override.input_line for override in given if override.input_line and not override.is_sweep_override()]
        common = hydra_compose(name, overrides=[*added, *fixed], return_hydra_config=True)
        sweeper = common.hydra.sweeper
        if not str(sweeper.get("_target_")).endswith("BasicSweeper"):
            return None  # which runs there will be follows from their results
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        [cells] = BasicSweeper.split_arguments(parser.parse_overrides([*params, *flags.overrides]), None)
        configs = [read_config(hydra_compose(name, overrides=[*added, *cell])) for cell in cells]
    return Grid(cells, [validate_config(config) for config in configs], common)


def is_our_launcher(launcher: DictConfig) -> bool:
    """Whether this section of the configuration is that of hydra/launcher=process."""
    return str(launcher.get("_target_")).endswith(".ProcessLauncher")


def is_alone() -> bool:
    """Whether no launcher of several processes, such as `accelerate launch`, has started this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1
