"""How does a search go from its first trial to its last? `hydra/sweeper=optuna` calls it."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from finetune.cli.overrides import quoted
from finetune.config.schema import Config, UserError
from finetune.data import columns as recipe
from finetune.evaluation import metrics
from finetune.runs import folder as checkpoint
from finetune.runs import sweep_record as trials
from finetune.runs.sweep_record import Outcome, State
from finetune.search import space, storage, study
from finetune.search.space import Space
from finetune.search.study import Plan, Search
from finetune.sweeps import best as answer
from finetune.sweeps.best import Compose, Run

# Of a result, by the name of the objective; the score is the headline metric's.
COSTS: dict[str, Callable[[dict[str, Any]], float]] = {
    "validation_loss": lambda result: result["training"]["validation_loss"],
    "memory": lambda result: result["training"]["peak_memory_bytes"],
    "seconds": lambda result: result["training"]["seconds"],
}


def search(compose: Compose, run: Run, settings: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Try settings until there are `n_trials` in the study, then say what was found.

    Raises UserError, before the first trial, for a space or settings that cannot work.
    """
    given = OverridesParser.create().parse_overrides(list(arguments))
    fixed = [str(override.input_line) for override in given if not override.is_sweep_override()]
    searched = space.read(settings["params"], [one for one in given if one.is_sweep_override()], settings["conditions"])
    base = compose(fixed)
    plan = _plan(settings, base)
    if settings["storage"]:
        storage.check(settings["storage"], settings["heartbeat_seconds"])
    corners = _check(compose, fixed, searched, plan, base)
    record = trials.open_record(base.output_dir, base.sweep.name, sys.argv[1:])
    name = record.folder.name
    place = settings["storage"] or str(record.folder / "study.journal")
    own = [f"sweep.name={quoted(name)}", "sweep.on_validation=true"]
    asked = [f"sweep.study={quoted(place)}", f"sweep.pruner={plan.pruner}"]

    def frame(number: int, point: list[str]) -> list[str]:
        for silent in tried.taken_over(number):
            record.give_up(silent, f"its worker fell silent; it goes on as trial {number}")
        return [*fixed, *point, *own, *asked, f"sweep.trial={number}"]

    def tell(number: int, outcome: Outcome) -> None:
        values = None
        if outcome.state is State.complete and outcome.folder:
            values = _values(outcome.folder / checkpoint.SELECTION, plan)
        tried.tell(number, outcome, values)

    with _alone(record.folder, place):
        opened = study.open_study(place, name, plan, settings["heartbeat_seconds"])
        tried = Search(opened, searched, plan, storage.is_shared(place), frame)
        chosen = settings["options"]

        def default(key: str) -> Any:
            return chosen.get(key) or OmegaConf.select(OmegaConf.structured(base), key)

        for note in _notes(searched, plan, default):
            print(note, flush=True)
        tried.begin(
            default,
            [state for state in State if base.sweep.repeat_failures or state not in trials.FINAL],
        )
        record.write()
        with _beating(tried, settings["heartbeat_seconds"]):
            run(tried, tell, tried.remaining(), name, corners)
        answer.give(tried, compose, run, answer.Frame(fixed, own, base, record.folder))


def _plan(settings: Mapping[str, Any], base: Config) -> Plan:
    metric = (base.data.metrics or recipe.find_recipe(base.data).METRICS)[0]
    return Plan(
        settings["sampler"],
        settings["pruner"],
        settings["n_trials"],
        settings["seed"],
        tuple(settings["objectives"]),
        metrics.HIGHER_IS_BETTER[metric],
    )


def _check(compose: Compose, fixed: list[str], searched: Space, plan: Plan, base: Config) -> list[Config]:
    """The corners of the space. Raises UserError for a plan that cannot work and a value that no run may have."""
    study.check(plan)
    answer.repetitions(base.sweep.repeat_best)
    if not searched.dimensions:
        raise UserError(f"hydra/sweeper=optuna: nothing is searched. Write SETTING={space.GRAMMAR}.")
    if plan.pruner != "none" and base.trainer.get("eval_strategy", "no") == "no":
        raise UserError(
            f"hydra.sweeper.pruner={plan.pruner}: trials are judged at each validation, and trainer.eval_strategy=no "
            "has none. Set trainer.eval_strategy=steps, or hydra.sweeper.pruner=none."
        )
    if plan.sampler == "grid":
        list(searched.grid())
    return [compose([*fixed, *space.overrides(point)]) for point in searched.corners()]


def _notes(searched: Space, plan: Plan, default: Callable[[str], Any]) -> Iterator[str]:
    """What the search will not try, and somebody may think it does."""
    if outside := searched.outside(default):
        told = " ".join(f"{key}={value}" for key, value in outside.items())
        yield f"Outside of what is searched, and so not tried first: the default {told}."
    if plan.sampler == "grid" and (cells := len(list(searched.grid()))) > plan.n_trials:
        yield f"The grid has {cells:,} cells; hydra.sweeper.n_trials={plan.n_trials} of them are tried."


def _values(file: Path, plan: Plan) -> list[float]:
    """What a trial came to, by objective."""
    result = answer.read(file)
    score = trials.score_of(result)[0]
    return [score if name == "score" else float(COSTS[name](result)) for name in plan.objectives]


@contextmanager
def _alone(folder: Path, place: str) -> Iterator[None]:
    """Keep a study in a file for this search alone; a database may be shared."""
    if storage.is_shared(place):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".search", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        told = f"{folder}: another search is at this study. Wait for it, or choose another sweep.name."
        raise UserError(told) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _beating(tried: Search, seconds: int) -> Iterator[None]:
    """Tell others of the study, for the length of the block, that this worker is alive."""
    ended = Event()

    def beat() -> None:
        while not ended.wait(seconds / 2):
            with suppress(Exception):  # the database may be out of reach for a while
                tried.beat()

    thread = Thread(target=beat, daemon=True)
    if tried.shared:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if tried.shared:
            thread.join()
