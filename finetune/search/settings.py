"""How is a search set up? `hydra.sweeper`, with Optuna's samplers and pruners by name."""

from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.errors import UserError

OBJECTIVES = ("score", "validation_loss", "memory", "seconds")  # the score is that on validation prompts
# Optuna's class and its arguments, by our name. A grid is enqueued beforehand, and what comes after it is random.
SAMPLERS: dict[str, tuple[str, dict[str, object]]] = {
    "tpe": ("TPESampler", {"multivariate": True, "group": True, "constant_liar": True}),
    "random": ("RandomSampler", {}),
    "grid": ("RandomSampler", {}),
    "cmaes": ("CmaEsSampler", {"warn_independent_sampling": False}),
    "nsga2": ("NSGAIISampler", {}),
}
PRUNERS: dict[str, tuple[str, dict[str, object]]] = {  # set up for trials that report few times
    "none": ("NopPruner", {}),
    "median": ("MedianPruner", {"n_startup_trials": 3, "n_min_trials": 2}),
    "asha": ("SuccessiveHalvingPruner", {"min_resource": "auto", "reduction_factor": 3}),
    "hyperband": ("HyperbandPruner", {"min_resource": 1, "reduction_factor": 3}),
}


@dataclass
class SearchSettings:
    """What is searched, and how: `hydra.sweeper`."""

    n_trials: int = 20  # of the whole study, those of earlier sweeps of this name included
    sampler: str = "tpe"  # or random, grid, cmaes, nsga2
    seed: int = 0
    pruner: str = "median"  # or none, asha, hyperband: by the validation loss at each validation
    objectives: list[str] = field(default_factory=lambda: ["score"])  # or validation_loss, memory, seconds; or several
    storage: str | None = None  # a file or a database's URL; None: study.journal in the sweep's folder
    heartbeat_seconds: int = 60  # with a database: a worker without a sign of life for twice as long is dead
    params: dict[str, Any] = field(default_factory=dict)  # setting -> what is tried, in the grammar of Hydra's sweeps
    conditions: dict[str, str] = field(default_factory=dict)  # setting -> OTHER=VALUE, where alone it is tried

    def directions(self, higher_is_better: bool) -> list[Literal["maximize", "minimize"]]:
        """What is better, for each objective; the score's is the headline metric's."""
        return ["maximize" if name == "score" and higher_is_better else "minimize" for name in self.objectives]


def check_study(settings: SearchSettings) -> None:
    """Raise UserError for a name that does not exist, and for settings that do not go together."""
    chosen = [("sampler", settings.sampler, SAMPLERS), ("pruner", settings.pruner, PRUNERS)]
    for key, value, allowed in [*chosen, *(("objectives", name, OBJECTIVES) for name in settings.objectives)]:
        if value not in allowed:
            raise UserError(f"hydra.sweeper.{key}={value}: expected one of {', '.join(allowed)}.")
    if settings.n_trials < 1:
        raise UserError(f"hydra.sweeper.n_trials={settings.n_trials}: it must be at least 1.")
    if len(settings.objectives) > 1 and (settings.sampler == "cmaes" or settings.pruner != "none"):
        raise UserError("hydra.sweeper.objectives: with several, set sampler=nsga2 (or tpe, random) and pruner=none.")
