"""What does a sweep leave at its end? Its ranking on the screen, its page, and a summary run in Weights & Biases."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from finetune.comparison.page import BROWSE, comparison_parts, learning_parts, settings_figures
from finetune.comparison.table import BEST_SHOWN, last_line, ranking_tables, settings_of, show_comparisons
from finetune.config.schema import Tracking
from finetune.errors import UserError
from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.reporting.console import format_duration
from finetune.reporting.figures import by_trial
from finetune.reporting.html import heading, html_figure, html_page, html_table, paragraph
from finetune.reporting.wandb import start_tracking
from finetune.runs.files import write_text
from finetune.sweeps.sweep_result import SweepResult, format_state, read_sweep, with_test_result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


COLUMNS = ["trial", "state", "score", "low", "high", "seconds", "reason"]


def show_ranking(folder: Path) -> SweepResult | None:
    """Print the best of the ranking, or why there is none; nothing where no trial ran here."""
    try:
        result = read_sweep(folder)
    except UserError as error:
        _say(str(error))
        return None
    if not result.trials:  # all of them ran on other machines
        return None
    show_sweep_end(result)
    return result


def write_sweep_report(shown: SweepResult | None, given: Tracking) -> None:
    """Write report.html into the sweep's folder, and send what it holds to W&B; again is the same run there."""
    if shown is None:
        return
    result = with_test_result(shown)
    page = result.folder / "report.html"
    write_sweep_page(page, result)
    _say(f"The sweep's page: {page}. At any time: python -m finetune compare {result.folder}")
    _send(result, page, given)


def _say(line: str) -> None:
    Console(highlight=False).print(line, markup=False, soft_wrap=True)


def _send(result: SweepResult, page: Path, given: Tracking) -> None:
    name = result.folder.name
    config = {"sweep": name, "trials": len(result.trials), "settings": list(_swept(result))}
    with start_tracking(
        given,
        name=f"sweep-{name}",
        folder=result.folder,
        config=config,
        tags=[],
        group=name,
        job_type="sweep",
        say=_say,
    ) as run:
        if not run.wandb_run:
            return
        run.table("trials", [*COLUMNS, *_swept(result)], _rows(result))
        if result.comparisons:
            first = result.comparisons[0]
            run.plot("history", history_figure(result))
            for key, figure in settings_figures(first).items():
                run.plot(key, figure)
            found, _ = first.importance
            best = {"best/trial": first.runs[0].trial, f"best/{first.metric}": first.scores[0]}
            run.summarise(best | {f"importance/{key}": float(share) for key, share in found.items()})
        run.summarise({"verdict": result.verdict} if result.verdict else {})
        run.artifact("report", page)


def _swept(result: SweepResult) -> list[str]:
    return list(dict.fromkeys(key for one in result.settings.values() for key in one))


def _rows(result: SweepResult) -> list[list[Any]]:
    """A row of the table for each trial."""
    scored = {run.trial: run.tuned(found.metric) for found in result.comparisons for run in found.runs}
    rows = []
    for trial in result.trials:
        own = scored.get(trial.number, {})
        found = [own.get(key) for key in ("mean", "low", "high")]
        settings = [result.settings[trial.number].get(key) for key in _swept(result)]
        rows.append([trial.number, trial.state.value, *found, trial.seconds, trial.reason, *settings])
    return rows


def write_sweep_page(file: Path, result: SweepResult) -> None:
    """Write the page of a sweep: how it went, its trials compared, what they learnt, and which are not complete."""
    parts = [
        *([paragraph(result.verdict, "verdict")] if result.verdict else []),
        paragraph(result.counted),
        *([html_figure(history_figure(result))] if result.comparisons else []),
        *_others_table(result),
        *(comparison_parts(result.comparisons, result.histories) or learning_parts(result.histories)),
    ]
    write_text(file, html_page(f"Sweep {result.folder.name}", *parts, script=BROWSE))


def history_figure(result: SweepResult) -> "Figure":
    """The score of each trial by its number, and those that have none."""
    metric = result.comparisons[0].metric
    others: dict[str, list[int]] = {}
    for trial in result.others:
        others.setdefault(format_state(trial.state), []).append(trial.number)
    return by_trial(result.scores, others, metric, HIGHER_IS_BETTER[metric])


def _others_table(result: SweepResult) -> list[str]:
    rows = [
        [
            trial.number,
            format_state(trial.state),
            format_duration(trial.seconds) if trial.seconds else "",
            settings_of(result.settings[trial.number]),
            last_line(trial.reason),
        ]
        for trial in result.others
    ]
    table = html_table(["trial", "state", "time", "settings", "reason"], rows, texts=[3, 4])
    return [heading("Not complete"), table] if rows else []


def show_sweep(result: SweepResult, prompts: int) -> None:
    """Print what a sweep has come to: its ranking as that of other runs, and the trials that are not complete."""
    console = Console(highlight=False)
    console.print(f"Sweep {result.folder.name}, {result.counted}", style="bold", markup=False, soft_wrap=True)
    show_comparisons(result.comparisons, [], prompts)
    if result.others:
        console.print(_others_rich(result))
    if result.verdict:
        console.print(result.verdict, style="bold", markup=False, soft_wrap=True)


def show_sweep_end(result: SweepResult) -> None:
    """Print, at the end of a sweep, the best of its ranking and what mattered."""
    console = Console(highlight=False)
    console.print(result.counted, style="bold", markup=False)
    for comparison in result.comparisons:
        console.print(Group(*ranking_tables(comparison, BEST_SHOWN)))


def _others_rich(result: SweepResult) -> Table:
    """The trials that are not complete, and why."""
    table = Table(title="Not complete", title_justify="left")
    for name in ("trial", "state", "time", "settings", "reason"):
        table.add_column(name, overflow="fold")
    for trial in result.others:
        why, given = Text(last_line(trial.reason)), Text(settings_of(result.settings[trial.number]))
        table.add_row(
            str(trial.number),
            format_state(trial.state),
            format_duration(trial.seconds) if trial.seconds else "",
            given,
            why,
        )
    return table
