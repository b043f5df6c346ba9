"""Which settings of a sweep are best, over several seeds if asked for, and what do they reach on test prompts?"""

import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console

from finetune.config.schema import Config, Tracking
from finetune.config.settings import flatten_settings, to_plain
from finetune.config.spelling import spell_quoted
from finetune.runs.files import write_text
from finetune.runs.folder import run_folder
from finetune.runs.lock import is_locked
from finetune.runs.outcome import Outcome, RunState
from finetune.runs.result import RESULT, SELECTION, RunResult, read_result
from finetune.runs.sweep_record import CONFIRMATION, REPETITIONS
from finetune.search.space import experiment_yaml, point_overrides

if TYPE_CHECKING:
    from finetune.search.study import SearchStudy
    from finetune.sweeps.sweep_result import SweepResult


Compose = Callable[[list[str]], Config]
Jobs = Iterable[tuple[int, list[str]]]  # trials, each a number and its overrides
# Runs trials, and calls a function for each that ended. Further arguments: how many there are, the sweep's name, and
# configurations by which the user is told first what the trials will cost.
RunTrials = Callable[[Jobs, Callable[[int, Outcome], None], int, str, Sequence[Config]], object]
OUTSIDE_EXPERIMENT = ("sweep", "hydra", "tracking", "output_dir", "name=")  # of the search, and not of its runs


@dataclass(frozen=True)
class SearchRuns:
    """How the runs of a search are composed and run, and how those of this process ended."""

    compose: Compose
    run: RunTrials
    fixed: list[str]  # the command's overrides without what is searched
    own: list[str]  # the overrides that make a run one of the search
    base: Config  # the configuration without what is searched
    folder: Path
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by number

    def run_all(self, jobs: dict[int, list[str]]) -> None:
        """Run jobs, by their numbers; those that another worker of the study is at are waited for."""
        while jobs:
            free = {number: job for number, job in jobs.items() if not is_locked(run_folder(self.compose(job)))}
            if free:
                self.run(free.items(), self.outcomes.__setitem__, len(free), self.folder.name, ())
            else:
                time.sleep(1)
            busy = {number for number, outcome in self.outcomes.items() if outcome.state is RunState.busy}
            jobs = {number: job for number, job in jobs.items() if number not in free or number in busy}


@dataclass
class Candidate:
    """Settings that were tried, and the folders of their runs: the trial's, and those of more seeds."""

    number: int
    overrides: list[str]
    folders: list[Path]
    value: float  # its first objective, as the study holds it
    scores: list[float] = field(default_factory=list)


def report_best(search: "SearchStudy", runs: SearchRuns) -> None:
    """Print the ranking, repeat the best if `sweep.repeat_best` is set, test the best, and write the search's page."""
    from finetune.search.study import FOLDER
    from finetune.sweeps.report import show_ranking, write_sweep_report  # imports what draws and tests

    shown = show_ranking(runs.folder)
    if search.worker:
        _print(f"Of all workers: {search.describe_trials()}")
    candidates = [
        Candidate(trial.number, point_overrides(trial.params), [Path(trial.user_attrs[FOLDER])], trial.values[0])
        for trial in search.ranking()
    ]
    if candidates:
        _choose_best(search, candidates, runs)
    else:
        _print("No trial is complete, so there is no best one.")
    write_sweep_report(shown, runs.base.tracking)


def report_best_of_grid(folder: Path, compose: Compose, tracking: Tracking) -> None:
    """Print the ranking of a grid's trials, which are whole runs, and the best of them, and write the grid's page."""
    from finetune.sweeps.report import show_ranking, write_sweep_report

    shown = show_ranking(folder)
    if shown and len(shown.trials) > 1:
        _choose_best_of_grid(shown, compose)
    write_sweep_report(shown, tracking)


def describe_front(search: "SearchStudy") -> str:
    """The trials on the Pareto front, with their objectives."""
    names = " and ".join(search.settings.objectives)
    values = {trial.number: ", ".join(f"{value:.4g}" for value in trial.values) for trial in search.pareto_front()}
    return f"Not beaten in {names} at once: " + "; ".join(f"trial {n} ({values[n]})" for n in sorted(values))


def _choose_best_of_grid(result: "SweepResult", compose: Compose) -> None:
    """Find the best by validation loss, as the test prompts are to judge and not to choose."""
    from finetune.comparison.table import format_settings

    runs = {run.trial: run for comparison in result.comparisons for run in comparison.runs if run.trial is not None}
    losses = {n: loss for n, run in runs.items() if (loss := run.result.training.validation_loss) is not None}
    if not runs:
        return
    validated = {repr([run.result.config["model"], run.result.data.splits.get("validation")]) for run in runs.values()}
    if len(losses) < len(runs) or len(validated) > 1:
        _print("No best is chosen, as the trials' validation losses are not of the same tokens or missing.")
        return
    best = min(losses, key=lambda number: losses[number])
    [overrides] = [trial.overrides for trial in result.trials if trial.number == best]
    commands = _write_experiment(result.folder, best, overrides, compose)
    swept = format_settings(result.settings[best])
    _print(f"Best by validation loss, {losses[best]:.4g}: trial {best}: {swept}", style="bold")
    _print(f"On the test prompts: {runs[best].verdict}")
    _print(commands)


def _choose_best(search: "SearchStudy", candidates: list[Candidate], runs: SearchRuns) -> None:
    """Find the best among the complete trials, and test it."""
    objectives, sweep = search.settings.objectives, runs.base.sweep
    elsewhere = [trial for trial in candidates if not (trial.folders[0] / SELECTION).exists()]
    for trial in elsewhere:
        _print(f"Trial {trial.number}, {objectives[0]} {trial.value:.3f}, ran elsewhere: {trial.folders[0]}")
    if len(objectives) > 1:
        _print(describe_front(search))
    finalists = candidates[: sweep.repeat_best or 1]
    if sweep.repeat_best:
        _repeat(finalists, runs, search.higher_is_better)
    best = finalists[0]
    overrides = [*runs.fixed, *best.overrides]
    commands = _write_experiment(runs.folder, best.number, overrides, runs.compose)
    by = "" if objectives[0] == "score" else f" by {objectives[0]}"
    _print(f"Best{by}: trial {best.number}: {' '.join(best.overrides)}", style="bold")
    own_folder = run_folder(runs.compose(overrides)).absolute()
    if search.worker and (best in elsewhere or own_folder != best.folders[0]):
        _print(f"Its run is {best.folders[0]}: the worker there answers the test prompts.")
    else:
        _test(overrides, runs)
    _print(commands)


def _repeat(finalists: list[Candidate], runs: SearchRuns, higher_is_better: bool) -> None:
    """Run the finalists over more seeds, each scored on the same validation prompts; sort and print them."""
    from finetune.reporting.tables import Table, to_rich

    jobs = [
        (trial, [*runs.fixed, *trial.overrides, f"seed={runs.base.seed + number}", *runs.own])
        for trial in finalists
        for number in range(1, runs.base.sweep.repeat_seeds + 1)
    ]
    runs.run_all({REPETITIONS + i: overrides for i, (_, overrides) in enumerate(jobs)})
    for trial, overrides in jobs:
        trial.folders.append(run_folder(runs.compose(overrides)))
    for trial in finalists:
        results = [read_result(folder / SELECTION) for folder in trial.folders]
        trial.scores = [r.evaluation.tuned().mean for r in results if isinstance(r, RunResult)] or [trial.value]
    finalists.sort(key=lambda trial: fmean(trial.scores), reverse=higher_is_better)
    rows = []
    for trial in finalists:
        by_seed = " ".join(f"{score:.3f}" for score in trial.scores)
        rows.append([trial.number, f"{fmean(trial.scores):.3f}", by_seed, " ".join(trial.overrides)])
    header = ["trial", "mean", "by seed", "settings"]
    table = Table("The best, repeated over seeds", header, rows, prose=["by seed", "settings"])
    Console(highlight=False).print(to_rich(table))


def _test(overrides: list[str], runs: SearchRuns) -> None:
    """Answer the test prompts with the best, which is trained already, and print whether it was worth it."""
    tested = [*overrides, f"sweep.name={spell_quoted(runs.folder.name)}"]
    folder = run_folder(runs.compose(tested))
    runs.run_all({CONFIRMATION: tested})
    result = read_result(folder / RESULT)
    if isinstance(result, RunResult) and result.evaluation.verdict:
        _print(f"On the test prompts, once: {result.evaluation.verdict.sentence}")
        _print(f"See {folder}/report.html")


def _print(line: str, style: str = "") -> None:
    Console(highlight=False).print(line, markup=False, soft_wrap=True, style=style)


def _write_experiment(folder: Path, number: int, overrides: list[str], compose: Compose) -> str:
    """Write the best trial as an experiment, `best.yaml`; return the commands that run it again and that keep it."""
    given = [text for text in overrides if not text.startswith(OUTSIDE_EXPERIMENT)]
    plain = [*given, "hydra/sweeper=optuna"]  # whose settings, on the command line, are composed again
    wanted, known = (flatten_settings(to_plain(compose(texts))) for texts in (overrides, plain))
    preset = {key: value for key, value in wanted.items() if key not in known or known[key] != value}
    again = [*given, *(f"{key}={spell_quoted(value)}" for key, value in preset.items())]
    comment = f"# The best of the sweep {folder.name}: trial {number}.\n"
    file = folder / "best.yaml"
    write_text(file, "# @package _global_\n" + comment + experiment_yaml(again))
    return f"Again: python run.py {shlex.join(again)}\nAs an experiment: cp {file} conf/experiment/NAME.yaml"
