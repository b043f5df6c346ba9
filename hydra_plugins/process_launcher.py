"""`hydra/launcher=process`, the default: how does Hydra hand the trials of a sweep to finetune/pool.py?"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals


@dataclass
class ProcessLauncherConf:
    """How many trials run at a time, and on what."""

    _target_: str = "hydra_plugins.process_launcher.ProcessLauncher"
    # Trials at a time. None: one on each device; without a GPU, one on each core.
    n_jobs: int | None = None
    # CUDA devices by index, each for one trial at a time; name one twice for two. None: all of them, once.
    devices: list[int] | None = None


ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf, provider="finetune")


class ProcessLauncher(BasicLauncher):  # type: ignore[misc]
    """Each trial in a fresh process; with nothing to train (stage=plan), one after the other in this one."""

    def __init__(self, n_jobs: int | None, devices: Sequence[int] | None) -> None:
        super().__init__()
        self.n_jobs, self.devices = n_jobs, devices
        self.server: Any = None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of trials; what each came to is its return value."""
        from finetune.config.schema import Stage

        setup_globals()
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if not alone or self.compose(list(job_overrides[0])).stage is not Stage.train:
            return super().launch(job_overrides, initial_job_idx)  # type: ignore[no-any-return]
        outcomes: dict[int, Any] = {}
        examples = [self.compose(list(overrides)) for overrides in job_overrides]
        jobs = enumerate(job_overrides, initial_job_idx)
        common = frozenset.intersection(*map(frozenset, job_overrides)) if len(job_overrides) > 1 else frozenset()
        try:
            folder = self.stream(jobs, outcomes.__setitem__, len(job_overrides), examples=examples, common=common)
        finally:
            self.close()
        from finetune.sweeps.best import report_best_of_grid

        report_best_of_grid(folder, self.compose, examples[0].tracking)
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=outcomes.get(number)) for number in numbers]

    def stream(
        self,
        jobs: Iterable[tuple[int, Sequence[str]]],
        on_end: Callable[[int, Any], None],
        total: int | None = None,
        name: str | None = None,
        examples: Sequence[Any] = (),
        common: frozenset[str] = frozenset(),
    ) -> Path:
        """Run trials, each a number and its overrides, drawn from `jobs` only when one can start.

        `on_end(number, outcome)` is told of each. By the configurations of `examples` the user is told what they will
        cost; the overrides of `common`, which all have, are not shown. The sweep's folder is returned. After the last
        call, `close`.
        """
        from finetune.runs.sweep_record import open_sweep_record
        from finetune.sweeps.fork_client import ForkServerClient
        from finetune.sweeps.pool import LauncherSettings, TrialPool

        setup_globals()
        assert self.config is not None
        self.server = self.server or ForkServerClient(Path(self.task_function.__code__.co_filename))
        record = open_sweep_record(self.config.output_dir, name or self.config.sweep.name, sys.argv[1:])
        record.common = common
        TrialPool(self.server, self.compose, record, LauncherSettings(self.n_jobs, self.devices), on_end).run(
            jobs, total, examples
        )
        return record.folder

    def close(self) -> None:
        """End the process that the trials of every `stream` were forked from."""
        if self.server:
            self.server.close()

    def compose(self, overrides: list[str]) -> Any:
        """The checked configuration of a trial."""
        from finetune.cli.compose import compose_trial

        assert self.hydra_context is not None
        return compose_trial(self.hydra_context, self.config, overrides)
