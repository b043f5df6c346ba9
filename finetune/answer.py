"""What did a search find? The best settings, how sure that is, what mattered, and what they reach on test prompts."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import yaml
from rich.console import Console
from rich.table import Table

from finetune import checkpoint, importance, ranking, significance, space
from finetune.schema import Config, UserError
from finetune.screen import with_interval
from finetune.study import FOLDER, Search
from finetune.trials import Outcome

Compose = Callable[[list[str]], Config]


class Run(Protocol):
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


SHOWN = 10
# What a command says about the search and not about the runs.
NOT_THE_WINNERS = ("sweep", "hydra", "tracking", "output_dir", "name=")


@dataclass(frozen=True)
class Frame:
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
    scores: list[float] = field(default_factory=list)


def give(tried: Search, compose: Compose, run: Run, frame: Frame) -> None:
    """Print the ranking, repeat the best over more seeds if asked to, and confirm the winner on the test prompts."""
    console = Console(highlight=False)
    best = tried.best()
    if not best:
        console.print("No trial is complete, so there is no best one; see sweep.json in the sweep's folder.")
        return
    better = -1 if tried.plan.higher_is_better else 1
    candidates = [Candidate(t.number, space.overrides(t.params), [Path(t.user_attrs[FOLDER])]) for t in best]
    console.print(_ranked(tried, candidates[:SHOWN], len(best)))
    _print_importance(console, tried)
    count, seeds = repetitions(frame.base.sweep.repeat_best)
    finalists = candidates[: max(count, 1)]
    if count:
        _repeat(finalists, seeds, compose, run, frame)
        finalists.sort(key=lambda one: better * fmean(one.scores))
        console.print(_repeated(finalists))
    winner = finalists[0]
    _write_experiment(frame, winner)
    settings = " ".join([*frame.fixed, *winner.overrides])
    console.print(f"Best: trial {winner.number}: {' '.join(winner.overrides)}", style="bold", markup=False)
    _confirm(console, winner, compose, run, frame)
    console.print(f"Again: python run.py {_without_sweep(settings)}", markup=False, soft_wrap=True)
    console.print(
        f"As an experiment: cp {frame.folder}/best.yaml conf/experiment/NAME.yaml", markup=False, soft_wrap=True
    )


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


def _ranked(tried: Search, candidates: list[Candidate], count: int) -> Table:
    """The best trials with their intervals, and which cannot be told from the best one."""
    results = [read(one.folders[0] / checkpoint.SELECTION) for one in candidates]
    metric = results[0]["evaluation"]["metric"]
    prompts = results[0]["evaluation"]["prompts"]
    apart = _apart(candidates, metric, tried.plan.seed)
    known = tried.study.get_trials(deepcopy=False)
    title = f"{count} of {len(known)} trials complete, scored on {prompts} validation prompts"
    table = Table(title=title, title_justify="left")
    for name in ("trial", metric, "validation loss", "seconds", "from the best (Holm)", "settings"):
        table.add_column(name, overflow="fold")
    for one, result, p in zip(candidates, results, apart, strict=True):
        found, loss = result["evaluation"]["arms"]["tuned"][metric], result["training"]["validation_loss"]
        told = (
            "the best"
            if p is None
            else f"apart, p {p:.2g}"
            if p <= significance.MAX_P
            else f"not told apart, p {p:.2g}"
        )
        seconds = f"{sum(result['seconds'].values()):.0f}"
        shown = "" if loss is None else f"{loss:.4f}"
        table.add_row(str(one.number), with_interval(found), shown, seconds, told, _short(one.overrides))
    return table


def _short(overrides: list[str]) -> str:
    """Overrides without their sections, numbers with four digits."""
    told = []
    for text in overrides:
        key, _, value = text.partition("=")
        number = f"{float(value):.4g}" if "." in value and value.replace(".", "").replace("e-", "").isdigit() else value
        told.append(f"{key.rpartition('.')[2]}={number}")
    return " ".join(told)


def _apart(candidates: list[Candidate], metric: str, seed: int) -> list[float | None]:
    """For each candidate p that it is as good as the first, corrected for their number."""
    rows = [_predictions(one.folders[0]) for one in candidates]
    values = [ranking.compare(rows[0], other, metric, seed).p for other in rows[1:]]
    return [None, *ranking.holm(values)]


def _predictions(folder: Path) -> list[dict[str, Any]]:
    with (folder / "validation_predictions.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _print_importance(console: Console, tried: Search) -> None:
    best = tried.best()
    common = [key for key in best[0].params if all(key in trial.params for trial in best)]
    varying = {key: [trial.params[key] for trial in best] for key in common}
    found, why_not = importance.measure(varying, [trial.values[0] for trial in best])
    told = why_not or ", ".join(f"{key} {share:.0%}" for key, share in found.items())
    console.print(f"What mattered ({importance.METHOD}): {told}" if found else told, markup=False)


def _repeat(finalists: list[Candidate], seeds: int, compose: Compose, run: Run, frame: Frame) -> None:
    """Run the finalists over more seeds; each is scored on the same validation prompts."""
    jobs = [
        (one, [*frame.fixed, *one.overrides, f"seed={frame.base.seed + number}", *frame.own])
        for one in finalists
        for number in range(1, seeds + 1)
    ]
    first = 10_000  # beyond the study's numbers in the sweep's record
    run(
        [(first + i, overrides) for i, (_, overrides) in enumerate(jobs)], lambda *_: None, len(jobs), frame.folder.name
    )
    for one, overrides in jobs:
        one.folders.append(checkpoint.folder(compose(overrides)))
    for one in finalists:
        files = [folder / checkpoint.SELECTION for folder in one.folders]
        one.scores = [_score(read(file)) for file in files if file.exists()]


def _score(result: dict[str, Any]) -> float:
    outcome = result["evaluation"]
    return float(outcome["arms"]["tuned"][outcome["metric"]]["mean"])


def _repeated(finalists: list[Candidate]) -> Table:
    table = Table(title="The best, repeated over seeds", title_justify="left")
    for name in ("trial", "mean", "by seed", "settings"):
        table.add_column(name, overflow="fold")
    for one in finalists:
        by_seed = " ".join(f"{score:.3f}" for score in one.scores)
        table.add_row(str(one.number), f"{fmean(one.scores):.3f}", by_seed, _short(one.overrides))
    return table


def _confirm(console: Console, winner: Candidate, compose: Compose, run: Run, frame: Frame) -> None:
    """Answer the test prompts with the winner, which is trained already, and say whether it was worth it."""
    overrides = [*frame.fixed, *winner.overrides, f"sweep.name={frame.folder.name}"]
    folder = checkpoint.folder(compose(overrides))
    run([(20_000, overrides)], lambda *_: None, 1, frame.folder.name)
    file = folder / "result.json"
    result = read(file) if file.exists() else {}
    if result.get("status") == "complete":
        console.print(f"On the test prompts, once: {result['evaluation']['verdict']['sentence']}", markup=False)
        console.print(f"See {folder}/report.html", markup=False, soft_wrap=True)


def _write_experiment(frame: Frame, winner: Candidate) -> None:
    """Leave the winner as an experiment: `best.yaml` for conf/experiment/."""
    given = [text for text in [*frame.fixed, *winner.overrides] if not text.startswith(NOT_THE_WINNERS)]
    groups, settings = space.as_experiment(given)
    comment = f"# The best of the search {frame.folder.name}: trial {winner.number}.\n"
    parts = [yaml.safe_dump(part, sort_keys=False, allow_unicode=True) for part in (groups, settings) if part]
    checkpoint.write(frame.folder / "best.yaml", "# @package _global_\n" + comment + "".join(parts))


def _without_sweep(settings: str) -> str:
    return " ".join(text for text in settings.split(" ") if not text.startswith(("sweep", "hydra")))
