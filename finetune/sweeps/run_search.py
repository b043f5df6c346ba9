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

from finetune.config.schema import Config
from finetune.config.spelling import spell_quoted
from finetune.data.columns import find_recipe
from finetune.errors import UserError
from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.runs.folder import SELECTION
from finetune.runs.outcome import FINAL, Outcome, RunState, headline_score
from finetune.runs.sweep_record import open_sweep_record
from finetune.search.space import GRAMMAR, Space, point_overrides, read_space
from finetune.search.storage import check_storage, is_shared_storage
from finetune.search.study import SearchStudy, StudySettings, check_study, open_study
from finetune.sweeps.best import Compose, RunTrials, SearchContext, read, repetitions, report_best

# Of a result, by the name of the objective; the score is the headline metric's.
COSTS: dict[str, Callable[[dict[str, Any]], float]] = {
    "validation_loss": lambda result: result["training"]["validation_loss"],
    "memory": lambda result: result["training"]["peak_memory_bytes"],
    "seconds": lambda result: result["training"]["seconds"],
}


def run_search(compose: Compose, run: RunTrials, settings: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Try settings until there are `n_trials` in the study, then say what was found.

    Raises UserError, before the first trial, for a space or settings that cannot work.
    """
    given = OverridesParser.create().parse_overrides(list(arguments))
    fixed = [str(override.input_line) for override in given if not override.is_sweep_override()]
    searched = read_space(settings["params"], [one for one in given if one.is_sweep_override()], settings["conditions"])
    base = compose(fixed)
    plan = _plan(settings, base)
    if settings["storage"]:
        check_storage(settings["storage"], settings["heartbeat_seconds"])
    corners = _check(compose, fixed, searched, plan, base)
    record = open_sweep_record(base.output_dir, base.sweep.name, sys.argv[1:])
    name = record.folder.name
    place = settings["storage"] or str(record.folder / "study.journal")
    own = [f"sweep.name={spell_quoted(name)}", "sweep.on_validation=true"]
    asked = [f"sweep.study={spell_quoted(place)}", f"sweep.pruner={plan.pruner}"]

    def frame(number: int, point: list[str]) -> list[str]:
        for silent in tried.taken_over(number):
            record.give_up(silent, f"its worker fell silent; it goes on as trial {number}")
        return [*fixed, *point, *own, *asked, f"sweep.trial={number}"]

    def tell(number: int, outcome: Outcome) -> None:
        values = None
        if outcome.state is RunState.complete and outcome.folder:
            values = _values(outcome.folder / SELECTION, plan)
        tried.tell(number, outcome, values)

    with _alone(record.folder, place):
        opened = open_study(place, name, plan, settings["heartbeat_seconds"])
        tried = SearchStudy(opened, searched, plan, is_shared_storage(place), frame)
        chosen = settings["options"]

        def default(key: str) -> Any:
            return chosen.get(key) or OmegaConf.select(OmegaConf.structured(base), key)

        for note in _notes(searched, plan, default):
            print(note, flush=True)
        tried.begin(
            default,
            [state for state in RunState if base.sweep.repeat_failures or state not in FINAL],
        )
        record.write()
        with _beating(tried, settings["heartbeat_seconds"]):
            run(tried, tell, tried.remaining(), name, corners)
        report_best(tried, compose, run, SearchContext(fixed, own, base, record.folder))


def _plan(settings: Mapping[str, Any], base: Config) -> StudySettings:
    metric = (base.data.metrics or find_recipe(base.data).METRICS)[0]
    return StudySettings(
        settings["sampler"],
        settings["pruner"],
        settings["n_trials"],
        settings["seed"],
        tuple(settings["objectives"]),
        HIGHER_IS_BETTER[metric],
    )


def _check(compose: Compose, fixed: list[str], searched: Space, plan: StudySettings, base: Config) -> list[Config]:
    """The corners of the space. Raises UserError for a plan that cannot work and a value that no run may have."""
    check_study(plan)
    repetitions(base.sweep.repeat_best)
    if not searched.dimensions:
        raise UserError(f"hydra/sweeper=optuna: nothing is searched. Write SETTING={GRAMMAR}.")
    if plan.pruner != "none" and base.trainer.get("eval_strategy", "no") == "no":
        raise UserError(
            f"hydra.sweeper.pruner={plan.pruner}: trials are judged at each validation, and trainer.eval_strategy=no "
            "has none. Set trainer.eval_strategy=steps, or hydra.sweeper.pruner=none."
        )
    if plan.sampler == "grid":
        list(searched.grid())
    return [compose([*fixed, *point_overrides(point)]) for point in searched.corners()]


def _notes(searched: Space, plan: StudySettings, default: Callable[[str], Any]) -> Iterator[str]:
    """What the search will not try, and somebody may think it does."""
    if outside := searched.outside(default):
        told = " ".join(f"{key}={value}" for key, value in outside.items())
        yield f"Outside of what is searched, and so not tried first: the default {told}."
    if plan.sampler == "grid" and (cells := len(list(searched.grid()))) > plan.n_trials:
        yield f"The grid has {cells:,} cells; hydra.sweeper.n_trials={plan.n_trials} of them are tried."


def _values(file: Path, plan: StudySettings) -> list[float]:
    """What a trial came to, by objective."""
    result = read(file)
    score = headline_score(result)[0]
    return [score if name == "score" else float(COSTS[name](result)) for name in plan.objectives]


@contextmanager
def _alone(folder: Path, place: str) -> Iterator[None]:
    """Keep a study in a file for this search alone; a database may be shared."""
    if is_shared_storage(place):
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
def _beating(tried: SearchStudy, seconds: int) -> Iterator[None]:
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
