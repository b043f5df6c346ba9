"""What may this process use of the machine? Made once, where the process begins, and passed on."""

from dataclasses import dataclass
from enum import Enum

GIB = 2**30
TIGHT = 0.85  # above this share of the available memory a run is called tight: predictions may be off by as much


@dataclass(frozen=True)
class Allowance:
    """What a run may use; by default, all of the machine."""

    runs_at_a_time: int = 1  # that share the device, as the trials of a sweep do
    runs_to_begin: int = 1  # how many of them have yet to begin, this one included
    inherited_bytes: int = 0  # that this process was forked with
    known_to_fit: bool = False  # because its sweep was planned


WHOLE_MACHINE = Allowance()


class Fit(Enum):
    """Whether a run's memory has room in what is available."""

    fits = "fits"
    tight = "tight"
    will_not_fit = "will not fit"


def assess_fit(needed: int, available: int) -> Fit:
    """Whether so many bytes of memory have room in so many."""
    share = needed / available
    if share > 1:
        return Fit.will_not_fit
    return Fit.tight if share > TIGHT else Fit.fits
