"""How many runs does this machine bear at a time, on which device, with how many threads?"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.config.schema import UserError

# Above this share of the available memory a run is called tight: predictions may be off by as much.
TIGHT = 0.85


@dataclass(frozen=True)
class Share:
    """What of the machine the trials may use."""

    # Trials at a time. None: one on each device; without a GPU, one on each core, as far as there are trials.
    n_jobs: int | None = None
    # CUDA devices, each for one trial at a time; one that is named twice takes two. None: all of them, once.
    devices: Sequence[int] | None = None


def slots(
    share: Share, devices: int, trials: int | None = None, most: int | None = None
) -> tuple[list[int | None], int]:
    """The device of each of so many trials that may run at a time, and the threads that each of them may use.

    `trials` are to run in all; `most` have room in memory, as far as that is known, which a given number overrules.
    """
    cores = _cores()
    if share.n_jobs is not None and share.n_jobs < 1:
        raise UserError(f"hydra.launcher.n_jobs={share.n_jobs}: it must be at least 1, or null for the default.")
    if devices:
        chosen = list(range(devices) if share.devices is None else share.devices)
        if wrong := [device for device in chosen if device not in range(devices)]:
            raise UserError(f"hydra.launcher.devices={chosen}: there is no device {wrong[0]}; there are {devices}.")
        room: list[int | None] = [chosen[i % len(chosen)] for i in range(share.n_jobs or len(chosen))]
    else:
        if share.devices:
            raise UserError(
                f"hydra.launcher.devices={list(share.devices)}: there is no GPU. Set hydra.launcher.n_jobs."
            )
        room = [None] * (share.n_jobs or max(1, min(cores, trials or cores, most or cores)))
    return room, max(1, cores // len(room))


def fit(needed: int, available: int) -> str:
    """Whether so many bytes of memory have room in so many: `fits`, `tight` or `will not fit`."""
    share = needed / available
    return "will not fit" if share > 1 else "tight" if share > TIGHT else "fits"


def _cores() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else len(os.sched_getaffinity(0))
