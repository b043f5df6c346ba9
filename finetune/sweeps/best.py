"""What did a sweep find? The best settings, of a search repeated over seeds if asked to, and what they reach on test
prompts.
"""

import json
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table

from finetune.config.schema import Config, Tracking
from finetune.config.settings import flatten_settings, to_plain
from finetune.config.spelling import spell_quoted
from finetune.errors import UserError
from finetune.runs.files import write_text
from finetune.runs.folder import SELECTION, is_run_held, run_folder
from finetune.runs.outcome import Outcome, RunState
from finetune.runs.sweep_record import CONFIRMATION, REPETITIONS
from finetune.search.shared_study import FOLDER
from finetune.search.space import experiment_yaml, point_overrides
from finetune.search.study import SearchStudy

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from finetune.runs.read import CompletedRun
    from finetune.sweeps.sweep_result import SweepResult


Compose = Callable[[list[str]], Config]


class RunTrials(Protocol):
    """Runs trials, each a number and its overrides, and tells of each that ended."""

    def __call__(
        self,
        jobs: Iterable[tuple[int, list[str]]],
        on_end: Callable[[int, Outcome], None],
        total: int | None,
        name: str,
        examples: Sequence[Config] = (),
    ) -> None:
        """By `examples` it is told first what the trials will cost."""


# What a command says about the search and not about the runs.
NOT_THE_WINNERS = ("sweep", "hydra", "tracking", "output_dir", "name=")


@dataclass(frozen=True)
class SearchContext:
    """What all runs of a search share: the command's overrides, those that make a run one of it, and its folder."""

    fixed: list[str]
    own: list[str]
    base: Config
    folder: Path


@dataclass
class Candidate:
    """Settings that were tried, and the folders of their runs: the trial's, and those of more seeds."""

    number: int
    overrides: list[str]
    folders: list[Path]
    # Its first objective, as the study knows it.
    value: float
    scores: list[float] = field(default_factory=list)

    @property
    def is_here(self) -> bool:
        """Whether the trial's run can be read; it may be on another machine."""
        return (self.folders[0] / SELECTION).exists()


def report_best(tried: SearchStudy, compose: Compose, run: RunTrials, frame: SearchContext) -> None:
    """Print the ranking, repeat the best over more seeds if asked to, confirm the winner on the test prompts, and leave
    the search's page.
    """
    from finetune.sweeps.report import (
        show_ranking,
        write_sweep_report,  # and with it what draws and tests
    )

    console = Console(highlight=False)
    shown = show_ranking(frame.folder)
    if tried.shared:
        console.print(f"Of all workers: {tried.counted()}")
    if best := tried.best():
        _choose_best(console, tried, best, compose, run, frame)
    else:
        console.print("No trial is complete, so there is no best one.")
    write_sweep_report(shown, frame.base.tracking)


def report_best_of_grid(folder: Path, compose: Compose, given: Tracking) -> None:
    """Print the ranking of a grid's trials, which are whole runs, and the best of them, and leave the grid's page."""
    from finetune.sweeps.report import show_ranking, write_sweep_report

    shown = show_ranking(folder)
    if shown and len(shown.trials) > 1:
        _choose_best_of_grid(Console(highlight=False), shown, compose)
    write_sweep_report(shown, given)


def _choose_best_of_grid(console: Console, result: "SweepResult", compose: Compose) -> None:
    """Find the winner by validation loss, as the test prompts are to judge and not to choose."""
    from finetune.comparison.table import settings_of

    runs = [run for found in result.comparisons for run in found.runs if run.trial is not None]
    losses = {run.trial: run.result["training"]["validation_loss"] for run in runs}
    if not losses:
        return
    if len({_validated(run) for run in runs}) > 1 or None in losses.values():
        console.print("No best is chosen, as the trials' validation losses are not of the same tokens or missing.")
        return
    winner = min(runs, key=lambda run: losses[run.trial])
    [trial] = [trial for trial in result.trials if trial.number == winner.trial]
    again = _without_search(trial.overrides, compose)
    _write_experiment(result.folder, trial.number, again)
    swept = settings_of(result.settings[trial.number])
    told = f"Best by validation loss, {losses[trial.number]:.4g}: trial {trial.number}: {swept}"
    console.print(told, style="bold", markup=False, soft_wrap=True)
    console.print(f"On the test prompts: {winner.verdict}", markup=False, soft_wrap=True)
    _tell_how(console, result.folder, again)


def _validated(run: "CompletedRun") -> str:
    """What must be equal for validation losses to be compared: the model that reads, and the rows."""
    return json.dumps([run.result["config"]["model"], run.result["data"]["splits"].get("validation")])


def _choose_best(
    console: Console,
    tried: SearchStudy,
    best: "list[FrozenTrial]",
    compose: Compose,
    run: RunTrials,
    frame: SearchContext,
) -> None:
    """Find the winner among the best trials, and test it."""
    better = -1 if tried.plan.higher_is_better else 1
    candidates = [
        Candidate(trial.number, point_overrides(trial.params), [Path(trial.user_attrs[FOLDER])], trial.values[0])
        for trial in best
    ]
    for one in candidates:
        if not one.is_here:
            told = f"Trial {one.number}, {tried.plan.objectives[0]} {one.value:.3f}, ran elsewhere: {one.folders[0]}"
            console.print(told, markup=False, soft_wrap=True)
    if len(tried.plan.objectives) > 1:
        console.print(_front(tried), markup=False, soft_wrap=True)
    count, seeds = repetitions(frame.base.sweep.repeat_best)
    finalists = candidates[: max(count, 1)]
    if count:
        _repeat(finalists, seeds, compose, run, frame)
        finalists.sort(key=lambda one: better * fmean(one.scores))
        console.print(_repeated(finalists))
    winner = finalists[0]
    again = _without_search([*frame.fixed, *winner.overrides], compose)
    _write_experiment(frame.folder, winner.number, again)
    by = "" if tried.plan.objectives[0] == "score" else f" by {tried.plan.objectives[0]}"
    told = f"Best{by}: trial {winner.number}: {' '.join(winner.overrides)}"
    console.print(told, style="bold", markup=False, soft_wrap=True)
    mine = run_folder(compose([*frame.fixed, *winner.overrides]))
    if tried.shared and not (winner.is_here and mine.absolute() == winner.folders[0]):
        console.print(f"Its run is {winner.folders[0]}: the worker there answers the test prompts.", soft_wrap=True)
    else:
        _confirm(console, winner, compose, run, frame)
    _tell_how(console, frame.folder, again)


def _tell_how(console: Console, folder: Path, again: list[str]) -> None:
    console.print(f"Again: python run.py {shlex.join(again)}", markup=False, soft_wrap=True)
    console.print(f"As an experiment: cp {folder}/best.yaml conf/experiment/NAME.yaml", markup=False, soft_wrap=True)


def repetitions(text: str | None) -> tuple[int, int]:
    """`3x2` as the number of best trials and of further seeds for each. Raises UserError for anything else."""
    if text is None:
        return 0, 0
    count, _, seeds = text.partition("x")
    if not (count.isdigit() and seeds.isdigit() and int(count) and int(seeds)):
        raise UserError(f"sweep.repeat_best={text}: expected TRIALSxSEEDS, such as 3x2: the best 3 over 2 more seeds.")
    return int(count), int(seeds)


def read(file: Path) -> dict[str, Any]:
    """A result.json or selection.json."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _repeat(finalists: list[Candidate], seeds: int, compose: Compose, run: RunTrials, frame: SearchContext) -> None:
    """Run the finalists over more seeds; each is scored on the same validation prompts."""
    jobs = [
        (one, [*frame.fixed, *one.overrides, f"seed={frame.base.seed + number}", *frame.own])
        for one in finalists
        for number in range(1, seeds + 1)
    ]
    _run_all({REPETITIONS + i: overrides for i, (_, overrides) in enumerate(jobs)}, compose, run, frame)
    for one, overrides in jobs:
        one.folders.append(run_folder(compose(overrides)))
    for one in finalists:
        files = [folder / SELECTION for folder in one.folders]
        one.scores = [_score(read(file)) for file in files if file.exists()] or [one.value]


def _run_all(jobs: dict[int, list[str]], compose: Compose, run: RunTrials, frame: SearchContext) -> None:
    """Run jobs, by their numbers; those that another worker of the study is at are waited for."""
    busy: list[int] = []

    def note(number: int, outcome: Outcome) -> None:
        busy.extend([number] if outcome.state is RunState.busy else [])

    while jobs:
        free = {key: job for key, job in jobs.items() if not is_run_held(run_folder(compose(job)))}
        if free:
            busy.clear()
            run(list(free.items()), note, len(free), frame.folder.name)
        else:
            time.sleep(1)
        jobs = {key: job for key, job in jobs.items() if key not in free or key in busy}


def _front(tried: SearchStudy) -> str:
    names = " and ".join(tried.plan.objectives)
    values = {trial.number: ", ".join(f"{value:.4g}" for value in trial.values) for trial in tried.front()}
    told = "; ".join(f"trial {number} ({values[number]})" for number in sorted(values))
    return f"Not beaten in {names} at once: {told}"


def _score(result: dict[str, Any]) -> float:
    outcome = result["evaluation"]
    return float(outcome["arms"]["tuned"][outcome["metric"]]["mean"])


def _repeated(finalists: list[Candidate]) -> Table:
    table = Table(title="The best, repeated over seeds", title_justify="left")
    for name in ("trial", "mean", "by seed", "settings"):
        table.add_column(name, overflow="fold")
    for one in finalists:
        by_seed = " ".join(f"{score:.3f}" for score in one.scores)
        table.add_row(str(one.number), f"{fmean(one.scores):.3f}", by_seed, " ".join(one.overrides))
    return table


def _confirm(console: Console, winner: Candidate, compose: Compose, run: RunTrials, frame: SearchContext) -> None:
    """Answer the test prompts with the winner, which is trained already, and say whether it was worth it."""
    overrides = [*frame.fixed, *winner.overrides, f"sweep.name={spell_quoted(frame.folder.name)}"]
    folder = run_folder(compose(overrides))
    _run_all({CONFIRMATION: overrides}, compose, run, frame)
    file = folder / "result.json"
    result = read(file) if file.exists() else {}
    if result.get("status") == "complete":
        console.print(f"On the test prompts, once: {result['evaluation']['verdict']['sentence']}", markup=False)
        console.print(f"See {folder}/report.html", markup=False, soft_wrap=True)


def _without_search(overrides: list[str], compose: Compose) -> list[str]:
    """The overrides of the same run outside the search; what its preset sets for all runs is added."""
    given = [text for text in overrides if not text.startswith(NOT_THE_WINNERS)]
    plain = [*given, "hydra/sweeper=optuna"]  # whose settings, on the command line, are composed again
    wanted, known = (flatten_settings(to_plain(compose(texts))) for texts in (overrides, plain))
    preset = {key: value for key, value in wanted.items() if key not in known or known[key] != value}
    return [*given, *(f"{key}={spell_quoted(value)}" for key, value in preset.items())]


def _write_experiment(folder: Path, number: int, again: list[str]) -> None:
    """Leave the winner, which the overrides `again` describe, as an experiment: `best.yaml` for conf/experiment/."""
    comment = f"# The best of the sweep {folder.name}: trial {number}.\n"
    write_text(folder / "best.yaml", "# @package _global_\n" + comment + experiment_yaml(again))
