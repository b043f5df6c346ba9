"""What has a sweep come to so far? Its trials, complete or not, by its sweep.json and by what each of them left."""

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.comparison.compare import Comparison, compare_runs
from finetune.config.settings import flatten_settings
from finetune.runs.folder import newest_checkpoint
from finetune.runs.outcome import RunState
from finetune.runs.read import CompletedRun, read_run, trial_folder
from finetune.runs.sweep_record import CONFIRMATION, REPETITIONS, TrialRecord, read_trials


@dataclass(frozen=True)
class SweepResult:
    """A sweep as its files tell of it at this moment."""

    folder: Path
    # Those that were asked for, without what a search does with the best afterwards.
    trials: list[TrialRecord]
    # For each trial what sets it apart from the others.
    settings: dict[int, dict[str, Any]]
    # Of the complete trials, one for each set of prompts; none where none is complete.
    comparisons: list[Comparison]
    # What each trial learnt, also where it ended early or is still at it.
    histories: dict[str, list[dict[str, Any]]]
    # The winner of a search, once it has answered the test prompts.
    tested: CompletedRun | None = None

    @property
    def scores(self) -> dict[int, float]:
        """The score of each complete trial by its number."""
        pairs = (zip(found.runs, found.scores, strict=True) for found in self.comparisons)
        return {run.trial: score for found in pairs for run, score in found if run.trial is not None}

    @property
    def others(self) -> list[TrialRecord]:
        """The trials that are not complete."""
        return [trial for trial in self.trials if trial.state is not RunState.complete]

    @property
    def counted(self) -> str:
        """How many trials there are, and how many are in each state."""
        counts = Counter(trial.state for trial in self.trials)
        states = ", ".join(f"{counts[state]} {format_state(state)}" for state in RunState if counts[state])
        return f"{len(self.trials)} trial{'s' if len(self.trials) != 1 else ''}: {states}"

    @property
    def verdict(self) -> str:
        """Whether the winner of a search was worth it."""
        return f"On the test prompts, {self.tested.name}: {self.tested.verdict}" if self.tested else ""


def read_sweep(folder: Path, metric: str | None = None) -> SweepResult:
    """The sweep in a folder, its trials ranked by the metric (None: their first one).

    Raises UserError where they cannot be ranked by one.
    """
    known = read_trials(folder / "sweep.json").values()
    own = [trial for trial in known if trial.number < REPETITIONS]
    swept = _swept(own)
    runs: dict[Path, CompletedRun] = {}
    histories = {}
    for trial in own:
        place = trial_folder(folder, trial)
        run = read_run(place, trial.result) if trial.state is RunState.complete else None
        if run and place not in runs:  # two trials of the same settings are one run
            runs[place] = replace(run, trial=trial.number)
        name = f"trial {trial.number}" + ("" if run else f" ({format_state(trial.state)})")
        histories[name] = run.history if run else _history(place) if trial.folder else []
    comparisons = compare_runs(runs.values(), metric)
    comparisons = [replace(found, settings=_settings(found.runs, swept)) for found in comparisons]
    histories = {name: history for name, history in histories.items() if history}
    return with_test_result(SweepResult(folder, own, swept, comparisons, histories))


def with_test_result(result: SweepResult) -> SweepResult:
    """The same with what the winner of a search has answered to the test prompts, if it has by now."""
    confirmation = read_trials(result.folder / "sweep.json").get(CONFIRMATION)
    if confirmation is None or confirmation.state is not RunState.complete:
        return result
    place = trial_folder(result.folder, confirmation)
    numbers = {run.folder: run.trial for found in result.comparisons for run in found.runs}
    run = read_run(place)
    return replace(result, tested=run and replace(run, trial=numbers.get(place)))


def format_state(state: RunState) -> str:
    """A state in words."""
    return state.value.replace("_", " ")


def _swept(known: list[TrialRecord]) -> dict[int, dict[str, Any]]:
    """For each trial the settings of its command that not all trials have."""
    common = set.intersection(*(set(trial.overrides) for trial in known)) if known else set()
    return {
        trial.number: dict(_setting(text) for text in trial.overrides if text not in common and _is_setting(text))
        for trial in known
    }


def _is_setting(override: str) -> bool:
    return "=" in override and not override.startswith("sweep.")


def _setting(override: str) -> tuple[str, Any]:
    key, _, text = override.lstrip("+").partition("=")
    with suppress(ValueError):
        return key, json.loads(text)
    return key, text


def _settings(runs: Iterable[CompletedRun], swept: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """For each run the swept settings that differ; one that its own command does not name is its configuration's."""
    keys = list(dict.fromkeys(key for one in swept.values() for key in one))
    found = []
    for run in runs:
        own = swept[run.trial] if run.trial is not None else {}
        flat = flatten_settings(run.result["config"])
        found.append({key: own.get(key, flat.get(key)) for key in keys})
    differ = [key for key in keys if len({json.dumps(one[key]) for one in found}) > 1]
    return [{key: one[key] for key in differ} for one in found]


def _history(folder: Path) -> list[dict[str, Any]]:
    """What a trial that is not complete has logged: when it ended, else until its newest checkpoint."""
    with suppress(OSError, ValueError):  # a checkpoint may be in the midst of being written
        file = folder / "history.jsonl"
        if file.exists():
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if newest := newest_checkpoint(folder):
            found: list[dict[str, Any]] = json.loads((newest / "trainer_state.json").read_text())["log_history"]
            return found
    return []
