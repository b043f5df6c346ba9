"""How does a search draw settings, and when does it give a trial up? Optuna's samplers and pruners."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SAMPLERS = ("tpe", "random", "grid", "cmaes", "nsga2")
PRUNERS = ("none", "median", "asha", "hyperband")


def make_sampler(name: str, seed: int) -> Any:
    """The sampler; a grid is lined up beforehand, and what comes after it is random."""
    from optuna import samplers

    with _experiments():
        if name == "tpe":
            return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        if name == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if name == "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        return samplers.RandomSampler(seed=seed)


def make_pruner(name: str) -> Any:
    """The pruner for few evaluations a trial, which is told the step of each."""
    from optuna import pruners

    with _experiments():
        if name == "median":
            return pruners.MedianPruner(n_startup_trials=3, n_min_trials=2)
        if name == "asha":
            return pruners.SuccessiveHalvingPruner(min_resource="auto", reduction_factor=3)
        if name == "hyperband":
            return pruners.HyperbandPruner(min_resource=1, reduction_factor=3)
        return pruners.NopPruner()


@contextmanager
def _experiments() -> Iterator[None]:
    """Let Optuna keep to itself what it calls experimental."""
    from optuna import exceptions

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ExperimentalWarning)
        yield
