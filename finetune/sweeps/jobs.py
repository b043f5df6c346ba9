"""What is asked of the fork server?"""

from dataclasses import dataclass

from finetune.config.schema import Config
from finetune.machine.allowance import Fit


@dataclass(frozen=True)
class TrialJob:
    """A run to be forked, and what it may use."""

    number: int
    config: Config
    threads: int
    # Index of a CUDA device among those that are visible. None: no device is chosen.
    device: int | None
    runs_at_a_time: int
    known_to_fit: bool
    # Whether its base model does, so that it may be loaded for all.
    base_fits: bool


@dataclass(frozen=True)
class CostSurvey:
    """Runs whose costs are to be told, of as many as there will be in all."""

    configs: list[Config]
    trials: int
    threads: int
    device: int | None
    runs_at_a_time: int
    number: int = -1


@dataclass(frozen=True)
class TrialCost:
    """What a trial is expected to take. Its fit is that of `stage=plan`."""

    seconds: float
    peak_bytes: int
    available_bytes: int
    fit: Fit
    # False: the seconds are those of matrix products alone, so that the trial takes longer.
    measured: bool
