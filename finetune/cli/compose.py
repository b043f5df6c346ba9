"""How do the words of a command line become checked configurations?"""

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from finetune.cli.overrides import CONF, check_overrides
from finetune.cli.validate import read_config, validate_config
from finetune.config.schema import Config, register_schema


def compose_config(arguments: list[str]) -> Config:
    """The checked configuration of `python run.py ARGUMENTS`, for a program or a test that has no command line."""
    check_overrides(arguments)
    register_schema()
    running, GlobalHydra.instance().hydra = (
        GlobalHydra.instance().hydra,
        None,
    )  # the program may run inside Hydra's main
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            settings = read_config(hydra_compose("config", overrides=arguments))
    finally:
        GlobalHydra.instance().hydra = running
    validate_config(settings)
    return settings


def compose_trial(context: HydraContext, sweep: DictConfig, arguments: list[str]) -> Config:
    """The checked configuration of one trial of a sweep that Hydra has begun."""
    composed = context.config_loader.load_sweep_config(sweep, arguments)
    with open_dict(composed):
        del composed["hydra"]
    settings = read_config(composed)
    validate_config(settings)
    return settings
