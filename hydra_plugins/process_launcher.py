"""`hydra/launcher=process`, the default: how does Hydra hand the trials of a sweep to finetune/sweeps/pool.py?"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_launcher import BasicLauncher  # private: hydra, it runs jobs in this process
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals

from finetune.config.schema import Config, Stage
from finetune.runs.files import HYDRAS_RECORD, hide_secrets

if TYPE_CHECKING:
    from finetune.planning.plan import RunPlan
    from finetune.runs.outcome import Outcome
    from finetune.sweeps.fork_client import ForkServerClient


@dataclass
class ProcessLauncherConf:
    """How many trials run at a time, and on what."""

    _target_: str = "hydra_plugins.process_launcher.ProcessLauncher"
    n_jobs: int | None = None  # at a time; None: one on each device or, without a GPU, on each core
    devices: list[int] | None = None  # CUDA devices, each for one trial at a time, twice for two; None: all, once


ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf, provider="finetune")


class ProcessLauncher(BasicLauncher):
    """Each trial in a fresh process; with nothing to train (stage=plan), one after the other in this one."""

    def __init__(self, n_jobs: int | None, devices: Sequence[int] | None) -> None:
        super().__init__()
        self.n_jobs, self.devices = n_jobs, devices
        self.server: ForkServerClient | None = None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of trials; what each came to is its return value."""
        from finetune.cli.compose import is_alone

        setup_globals()
        assert self.config is not None
        hide_secrets(Path(self.config.hydra.sweep.dir) / HYDRAS_RECORD)
        configs = [self.compose(list(overrides)) for overrides in job_overrides]
        if configs[0].stage is not Stage.train or not is_alone():
            returns: Sequence[JobReturn] = super().launch(job_overrides, initial_job_idx)
            if configs[0].stage is Stage.plan:
                _print_total(returns)
            return returns
        from finetune.sweeps.best import report_best_of_grid

        outcomes: dict[int, Outcome] = {}
        trials = enumerate(job_overrides, initial_job_idx)
        common = frozenset.intersection(*map(frozenset, job_overrides)) if len(job_overrides) > 1 else frozenset()
        try:
            folder = self.stream(trials, outcomes.__setitem__, len(configs), examples=configs, common=common)
        finally:
            self.close()
        report_best_of_grid(folder, self.compose, configs[0].tracking)
        numbers = range(initial_job_idx, initial_job_idx + len(configs))
        # private: hydra, a JobReturn has no public name to set what it returns
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=outcomes.get(number)) for number in numbers]

    def stream(
        self,
        jobs: Iterable[tuple[int, Sequence[str]]],
        on_end: Callable[[int, "Outcome"], None],
        total: int | None = None,
        name: str | None = None,
        examples: Sequence[Config] = (),
        common: frozenset[str] = frozenset(),
    ) -> Path:
        """Run trials, each a number and its overrides, drawn from `jobs` only when one can start.

        `on_end(number, outcome)` is called for each. What they will cost is estimated from the configurations of
        `examples` and shown; the overrides of `common`, which all have, are not shown. Returns the sweep's folder.
        Call `close` after the last `stream`.
        """
        from finetune.runs.sweep_record import open_sweep_record
        from finetune.sweeps.fork_client import ForkServerClient
        from finetune.sweeps.pool import LauncherSettings, TrialPool

        setup_globals()
        assert self.config is not None and self.task_function is not None
        self.server = self.server or ForkServerClient(Path(self.task_function.__code__.co_filename))
        record = open_sweep_record(self.config.output_dir, name or self.config.sweep.name, sys.argv[1:])
        record.common = common
        settings = LauncherSettings(self.n_jobs, self.devices)
        TrialPool(self.server, self.compose, record, settings, on_end, total).run(jobs, examples)
        return record.folder

    def close(self) -> None:
        """End the process that the trials of every `stream` were forked from."""
        if self.server:
            self.server.close()

    def compose(self, overrides: list[str]) -> Config:
        """The checked configuration of a trial."""
        from finetune.cli.compose import compose_trial

        assert self.hydra_context is not None and self.config is not None
        return compose_trial(self.hydra_context, self.config, overrides)


def _print_total(returns: Sequence[JobReturn]) -> None:
    """Print how long all runs that were planned will take together, one after the other."""
    plans: list[RunPlan] = [done.return_value for done in returns if done.status is JobStatus.COMPLETED]
    if len(plans) > 1:
        from finetune.reporting.tables import format_duration

        print(f"{len(plans)} trials: {format_duration(sum(sum(plan.seconds.values()) for plan in plans))} in all")
