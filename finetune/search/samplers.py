"""How are settings drawn, and when is a trial pruned? Optuna's samplers and pruners by name."""

from typing import TYPE_CHECKING

from finetune.search.storage import accept_experimental

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


SAMPLERS = ("tpe", "random", "grid", "cmaes", "nsga2")
PRUNERS = ("none", "median", "asha", "hyperband")


def make_sampler(name: str, seed: int) -> "BaseSampler":
    """The sampler of a name; a grid is enqueued beforehand, and what comes after it is random."""
    from optuna import samplers

    with accept_experimental():
        if name == "tpe":
            return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        if name == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if name == "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        return samplers.RandomSampler(seed=seed)


def make_pruner(name: str) -> "BasePruner":
    """The pruner of a name, set up for trials that report few times."""
    from optuna import pruners

    with accept_experimental():
        if name == "median":
            return pruners.MedianPruner(n_startup_trials=3, n_min_trials=2)
        if name == "asha":
            return pruners.SuccessiveHalvingPruner(min_resource="auto", reduction_factor=3)
        if name == "hyperband":
            return pruners.HyperbandPruner(min_resource=1, reduction_factor=3)
        return pruners.NopPruner()
