"""What may this process use of the machine?"""

# Above this share of the available memory a run is called tight: predictions may be off by as much.
TIGHT = 0.85


def fit_verdict(needed: int, available: int) -> str:
    """Whether so many bytes of memory have room in so many: `fits`, `tight` or `will not fit`."""
    share = needed / available
    return "will not fit" if share > 1 else "tight" if share > TIGHT else "fits"
