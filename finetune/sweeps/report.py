"""What does a sweep leave at its end? Its ranking on the screen, its page, and a summary run in Weights & Biases."""

from pathlib import Path
from typing import Any

from rich.console import Console

from finetune.comparison import page as compare_page
from finetune.comparison import table as compare_table
from finetune.config.schema import Tracking, UserError
from finetune.reporting import wandb as tracking
from finetune.sweeps import sweep_result
from finetune.sweeps.sweep_result import SweepResult

COLUMNS = ["trial", "state", "score", "low", "high", "seconds", "reason"]


def show(folder: Path) -> SweepResult | None:
    """Print the best of the ranking, or why there is none; nothing where no trial ran here."""
    try:
        result = sweep_result.read(folder)
    except UserError as error:
        _say(str(error))
        return None
    if not result.trials:  # all of them ran on other machines
        return None
    compare_table.show_end(result)
    return result


def leave(shown: SweepResult | None, given: Tracking) -> None:
    """Write report.html into the sweep's folder, and send what it holds to W&B; again is the same run there."""
    if shown is None:
        return
    result = sweep_result.read_test(shown)
    page = result.folder / "report.html"
    compare_page.write_sweep(page, result)
    _say(f"The sweep's page: {page}. At any time: python -m finetune compare {result.folder}")
    _send(result, page, given)


def _say(line: str) -> None:
    Console(highlight=False).print(line, markup=False, soft_wrap=True)


def _send(result: SweepResult, page: Path, given: Tracking) -> None:
    name = result.folder.name
    config = {"sweep": name, "trials": len(result.trials), "settings": list(_swept(result))}
    with tracking.start(
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
            run.plot("history", compare_page.history(result))
            for key, figure in compare_page.settings_figures(first).items():
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
