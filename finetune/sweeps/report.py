"""What does a sweep leave at its end? Its ranking in the terminal, its page, and a summary run in Weights & Biases."""

from collections.abc import Iterator
from math import inf, isfinite
from pathlib import Path

from plotly.graph_objects import Figure
from rich.console import Console, Group

from finetune.comparison.page import BROWSE, render_comparisons, render_learning, settings_figures
from finetune.comparison.table import BEST_SHOWN, format_settings, ranking_parts, show_comparisons
from finetune.config.schema import Tracking
from finetune.errors import UserError
from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.reporting import html
from finetune.reporting.figures import trial_scores
from finetune.reporting.tables import Table, format_duration, to_html, to_rich
from finetune.reporting.wandb import start_tracking
from finetune.runs.files import write_text
from finetune.runs.folder import RunLabels
from finetune.runs.result import Interval
from finetune.sweeps.sweep_result import SweepResult, format_state, read_sweep, with_test_result


def show_ranking(folder: Path) -> SweepResult | None:
    """Print the best of the ranking, or why there is none; nothing where no trial ran here."""
    try:
        result = read_sweep(folder)
    except UserError as error:
        _print(str(error))
        return None
    if not result.trials:  # all of them ran on other machines
        return None
    _print(result.counted, style="bold")
    for comparison in result.comparisons:
        Console(highlight=False).print(Group(*ranking_parts(comparison, BEST_SHOWN)))
    return result


def show_sweep(result: SweepResult, prompts: int) -> None:
    """Print what a sweep has come to: its ranking as that of other runs, and the trials that are not complete."""
    _print(f"Sweep {result.folder.name}, {result.counted}", style="bold")
    show_comparisons(result.comparisons, [], prompts)
    if result.others:
        Console(highlight=False).print(to_rich(others_table(result)))
    if result.verdict:
        _print(result.verdict, style="bold")


def _print(line: str, style: str = "") -> None:
    Console(highlight=False).print(line, style=style, markup=False, soft_wrap=True)


def others_table(result: SweepResult) -> Table:
    """The trials that are not complete, and why: of a reason that is a stack, its last line."""
    rows = []
    for trial in result.others:
        seconds = format_duration(trial.seconds) if trial.seconds else ""
        settings, reason = format_settings(result.settings[trial.number]), trial.reason.rstrip().rpartition("\n")[2]
        rows.append([trial.number, format_state(trial.state), seconds, settings, reason])
    header = ["trial", "state", "time", "settings", "reason"]
    return Table("Not complete", header, rows, prose=["settings", "reason"])


def write_sweep_report(shown: SweepResult | None, tracking: Tracking) -> None:
    """Write report.html into the sweep's folder, and send what it holds to W&B; again is the same run there."""
    if shown is None:
        return
    result, page = with_test_result(shown), shown.folder / "report.html"
    write_sweep_page(page, result)
    _print(f"The sweep's page: {page}. At any time: python -m finetune compare {result.folder}")
    _track(result, page, tracking)


def write_sweep_page(file: Path, result: SweepResult) -> None:
    """Write the page of a sweep: how it went, its trials compared, what they learnt, and which are not complete."""
    page = html.page(
        f"Sweep {result.folder.name}",
        html.paragraph(result.verdict, "verdict") if result.verdict else "",
        html.paragraph(result.counted),
        html.figure(history_figure(result)) if result.comparisons else "",
        to_html(others_table(result)) if result.others else "",
        render_comparisons(result.comparisons, result.histories) or render_learning(result.histories),
        script=BROWSE,
    )
    write_text(file, page)


def history_figure(result: SweepResult) -> Figure:
    """The score of each trial by its number, and those that have none."""
    metric = result.comparisons[0].metric
    others: dict[str, list[int]] = {}
    for trial in result.others:
        others.setdefault(format_state(trial.state), []).append(trial.number)
    return trial_scores(result.scores, others, metric, HIGHER_IS_BETTER[metric])


def _track(result: SweepResult, page: Path, tracking: Tracking) -> None:
    """Send the trials, the figures, the best trial, the verdict and the page to W&B."""
    name, swept = result.folder.name, list(dict.fromkeys(key for own in result.settings.values() for key in own))
    config = {"sweep": name, "trials": len(result.trials), "settings": swept}
    labels = RunLabels(f"sweep-{name}", name, [], config, "sweep")
    with start_tracking(tracking, labels, result.folder, print_line=_print) as run:
        if not run.wandb_run:
            return
        columns = ["trial", "state", "score", "low", "high", "seconds", "reason", *swept]
        run.table("trials", columns, list(_trial_rows(result, swept)))
        if result.comparisons:
            first = result.comparisons[0]
            for key, figure in {"history": history_figure(result), **settings_figures(first)}.items():
                run.plot(key, figure)
            best = {"best/trial": first.runs[0].trial, f"best/{first.metric}": first.scores[0]}
            run.summarise(best | {f"importance/{key}": float(share) for key, share in first.importance[0].items()})
        run.summarise({"verdict": result.verdict} if result.verdict else {})
        run.artifact("report", page)


def _trial_rows(result: SweepResult, swept: list[str]) -> Iterator[list[object]]:
    """A row of the table of W&B for each trial."""
    scores = {run.trial: run.tuned(ranked.metric) for ranked in result.comparisons for run in ranked.runs}
    for trial in result.trials:
        score = scores.get(trial.number, Interval(inf, inf, inf))
        ends = [number if isfinite(number) else None for number in (score.mean, score.low, score.high)]
        settings = [result.settings[trial.number].get(key) for key in swept]
        yield [trial.number, trial.state.value, *ends, trial.seconds, trial.reason, *settings]
