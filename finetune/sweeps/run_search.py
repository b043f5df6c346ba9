"""How does a search go from its first trial to its last? `hydra/sweeper=optuna` calls it."""

import sys
from collections.abc import Iterator, Mapping, Sequence

from finetune.config.schema import Config
from finetune.config.spelling import spell_quoted
from finetune.data.columns import find_recipe
from finetune.errors import UserError
from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.runs.outcome import FINAL, SUCCESSFUL, FailedTrialsError, Outcome, RunState
from finetune.runs.result import SELECTION, RunResult, read_result
from finetune.runs.sweep_record import open_sweep_record
from finetune.search import space as spaces
from finetune.search import storage as storages
from finetune.search.settings import SearchSettings, check_study
from finetune.sweeps.best import Compose, RunTrials, SearchRuns, report_best


def run_search(
    compose: Compose, run: RunTrials, settings: SearchSettings, options: Mapping[str, str], arguments: Sequence[str]
) -> None:
    """Try settings until there are `n_trials` in the study, then report the best; `options` are those of the groups.

    Raises UserError before the first trial, for what cannot work, and FailedTrialsError at the end, where one failed.
    """
    space = spaces.read_space(settings.params, arguments, settings.conditions)
    fixed = spaces.fixed_overrides(arguments)
    base = compose(fixed)
    default = spaces.default_values(base, options)
    boundary = check_search(compose, fixed, space, settings, base)
    from finetune.search.shared_study import open_search  # imports Optuna, which no mistake has to wait for

    record = open_sweep_record(base.output_dir, base.sweep.name, sys.argv[1:])
    storage_url = settings.storage or str(record.folder / "study.journal")
    own = [f"sweep.name={spell_quoted(record.folder.name)}", "sweep.on_validation=true"]
    runs = SearchRuns(compose, run, fixed, own, base, record.folder)
    of_trials = [*own, f"sweep.study={spell_quoted(storage_url)}", f"sweep.pruner={settings.pruner}"]

    def job(asked: tuple[int, list[str]]) -> tuple[int, list[str]]:
        number, point = asked
        for earlier in search.earlier_attempts(number):
            record.give_up(earlier, f"its worker gave no sign of life; it goes on as trial {number}")
        return number, [*fixed, *point, *of_trials, f"sweep.trial={number}"]

    def tell(number: int, outcome: Outcome) -> None:
        runs.outcomes[number] = outcome
        search.tell(number, outcome, _objective_values(outcome, settings.objectives))

    higher_is_better = HIGHER_IS_BETTER[(base.data.metrics or find_recipe(base.data).METRICS)[0]]
    with open_search(storage_url, record.folder, space, settings, higher_is_better) as search:
        for note in search_notes(space, settings, default):
            print(note, flush=True)
        retried = [state for state in RunState if base.sweep.repeat_failures or state not in FINAL]
        search.enqueue_first(default, retried)
        record.write()
        run(map(job, search), tell, search.remaining(), record.folder.name, boundary)
        report_best(search, runs)
    if any(outcome.state not in SUCCESSFUL for outcome in runs.outcomes.values()):
        raise FailedTrialsError


def check_search(
    compose: Compose, fixed: list[str], space: spaces.Space, settings: SearchSettings, base: Config
) -> list[Config]:
    """The boundary of the space, composed. Raises UserError for settings that cannot work, of the search or a run."""
    if settings.storage:
        storages.check_storage(settings.storage, settings.heartbeat_seconds)
    check_study(settings)
    if not space.dimensions:
        raise UserError(f"hydra/sweeper=optuna: nothing is searched. Write SETTING={spaces.GRAMMAR}.")
    setting = "objectives=validation_loss" if "validation_loss" in settings.objectives else ""
    if settings.pruner != "none":
        setting = f"pruner={settings.pruner}"
    if setting and base.trainer.get("eval_strategy", "no") == "no":
        raise UserError(
            f"hydra.sweeper.{setting}: trials are judged at each validation, and trainer.eval_strategy=no has none. "
            "Set trainer.eval_strategy=steps, or hydra.sweeper.pruner=none and hydra.sweeper.objectives=[score]."
        )
    if settings.sampler == "grid":
        space.grid()
    return [compose([*fixed, *spaces.point_overrides(point)]) for point in space.boundary_points()]


def search_notes(space: spaces.Space, settings: SearchSettings, default: spaces.Default) -> Iterator[str]:
    """What the search will not try, and somebody may think it does."""
    if outside := space.defaults_outside(default):
        listed = " ".join(f"{key}={value}" for key, value in outside.items())
        yield f"Outside of what is searched, and so not tried first: the default {listed}."
    if settings.sampler == "grid" and (cells := len(space.grid())) > settings.n_trials:
        yield f"The grid has {cells:,} cells; hydra.sweeper.n_trials={settings.n_trials} of them are tried."


def _objective_values(outcome: Outcome, objectives: Sequence[str]) -> list[float] | None:
    """What a trial reached, by objective; None where it is not complete."""
    result = read_result(outcome.folder / SELECTION) if outcome.folder else None
    if outcome.state is not RunState.complete or not isinstance(result, RunResult):
        return None
    reached = {
        "score": result.evaluation.tuned().mean,
        "validation_loss": result.training.validation_loss,
        "memory": result.training.peak_memory_bytes,
        "seconds": result.training.seconds,
    }
    return [value for name in objectives if (value := reached[name]) is not None]
