"""What do a sweep and its fork server tell each other?"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.config.schema import Config
from finetune.machine.allowance import Fit
from finetune.runs.outcome import RunState


@dataclass(frozen=True)
class DeviceShare:
    """What one of the processes that run at the same time may use."""

    threads: int
    # Index of a CUDA device among those that are visible. None: no device is chosen.
    device: int | None
    # How many processes share the device.
    runs_at_a_time: int


@dataclass(frozen=True)
class TrialJob:
    """A run to be forked, and what it may use."""

    number: int
    config: Config
    share: DeviceShare
    known_to_fit: bool
    # Whether its base model fits, so that it may be loaded for all trials.
    base_fits: bool


@dataclass(frozen=True)
class CostSurvey:
    """Runs whose costs are to be estimated, and how many such runs there will be in all."""

    configs: Sequence[Config]
    trials: int
    share: DeviceShare
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


@dataclass(frozen=True)
class Began:
    """The process of a job was forked."""

    number: int
    pid: int


@dataclass(frozen=True)
class Progressed:
    """What a trial is doing."""

    number: int
    note: str


@dataclass(frozen=True)
class Concluded:
    """How a trial ended, in its own words."""

    number: int
    state: RunState
    reason: str


@dataclass(frozen=True)
class Surveyed:
    """For each configuration its cost, or what is wrong with it; None where planning took too long."""

    costs: list[TrialCost | str | None]
    # Why there are none.
    problem: str = ""


@dataclass(frozen=True)
class Ended:
    """The process of a job has ended; the status is that of os.waitpid."""

    number: int
    status: int


News = Began | Progressed | Concluded | Surveyed | Ended
