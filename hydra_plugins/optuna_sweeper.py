"""`hydra/sweeper=optuna`: how does Hydra hand a search to finetune/search.py?"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class OptunaSweeperConf:
    """What is searched, and how."""

    _target_: str = "hydra_plugins.optuna_sweeper.OptunaSweeper"
    # Trials of the whole study, those of earlier sweeps of this name included.
    n_trials: int = 20
    # tpe, random, grid, cmaes or nsga2.
    sampler: str = "tpe"
    seed: int = 0
    # none, median, asha or hyperband: by the validation loss at each validation.
    pruner: str = "median"
    # What is to be best, each of score (on validation prompts), validation_loss, memory and seconds.
    objectives: list[str] = field(default_factory=lambda: ["score"])
    # A file or a database's URL. None: study.journal in the sweep's folder.
    storage: str | None = None
    # With a database: a worker that is silent for twice as long is taken to be dead.
    heartbeat_seconds: int = 60
    # Setting -> what is tried, in the grammar of Hydra's sweeps.
    params: dict[str, Any] = field(default_factory=dict)
    # Setting -> OTHER=VALUE: it is tried only where the other searched setting has that value.
    conditions: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="finetune")


class OptunaSweeper(Sweeper):  # type: ignore[misc]
    """A search for the best settings."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives every sweeper."""
        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search."""
        from finetune.sweeps.run_search import run_search

        settings = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in self.settings.items()
        }
        settings["options"] = dict(self.config.hydra.runtime.choices)
        try:
            run_search(self.compose, self.run, settings, arguments)
        finally:
            if hasattr(self.launcher, "close"):
                self.launcher.close()

    def compose(self, overrides: list[str]) -> Any:
        """The checked configuration of a trial."""
        from finetune.cli.compose import compose_trial

        return compose_trial(self.context, self.config, overrides)

    def run(
        self,
        jobs: Iterable[tuple[int, list[str]]],
        on_end: Callable[[int, Any], None],
        total: int | None,
        name: str,
        examples: Sequence[Any] = (),
    ) -> None:
        """Run trials, each a number and its overrides: as they are asked for, or in turn by other launchers."""
        from hydra_plugins.process_launcher import ProcessLauncher  # here: Hydra's search for plugins executes it anew

        if isinstance(self.launcher, ProcessLauncher):
            self.launcher.stream(jobs, on_end, total, name, examples)
            return
        from finetune.runs.sweep_record import open_sweep_record
        from finetune.sweeps.other_launchers import run_in_turn

        record = open_sweep_record(self.config.output_dir, name, sys.argv[1:])
        run_in_turn(self.launcher.launch, jobs, on_end, self.compose, record)
