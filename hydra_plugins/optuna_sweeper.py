"""`hydra/sweeper=optuna`: how does Hydra hand a search to finetune/sweeps/run_search.py?"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from finetune.cli.compose import compose_trial
from finetune.errors import UserError
from finetune.search.settings import SearchSettings

if TYPE_CHECKING:
    from hydra_plugins.process_launcher import ProcessLauncher


@dataclass
class OptunaSweeperConf(SearchSettings):
    """The settings of a search, and the class that Hydra gives them to."""

    _target_: str = "hydra_plugins.optuna_sweeper.OptunaSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="finetune")


class OptunaSweeper(Sweeper):
    """A search for the best settings."""

    def __init__(self, **settings: Any) -> None:
        plain: Any = OmegaConf.to_container(OmegaConf.create(settings))
        self.settings = SearchSettings(**plain)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives every sweeper. Raises UserError for a launcher that runs one trial at a time."""
        self.options = dict(config.hydra.runtime.choices)
        if not str(config.hydra.launcher.get("_target_")).endswith(".ProcessLauncher"):
            raise UserError(
                f"hydra/launcher={self.options['hydra/launcher']}: a search would run one trial at a time, as this "
                "launcher starts trials only in batches. Write hydra/launcher=process, or give this launcher a grid, "
                "such as adapter.r=8,16 without hydra/sweeper=optuna."
            )
        self.compose = partial(compose_trial, hydra_context, config)
        launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        self.process_launcher = cast("ProcessLauncher", launcher)

    def sweep(self, arguments: list[str]) -> None:
        from finetune.sweeps.run_search import run_search

        try:
            run_search(self.compose, self.process_launcher.stream, self.settings, self.options, arguments)
        finally:
            self.process_launcher.close()
