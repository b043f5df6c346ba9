"""What has a sweep come to so far? Its trials, complete or not, by its sweep.json and by the files of each of them."""

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.comparison.compare import Comparison, compare_runs
from finetune.config.settings import flatten_settings, varying_settings
from finetune.runs.files import read_jsonl
from finetune.runs.folder import list_checkpoints
from finetune.runs.outcome import RunState
from finetune.runs.predictions import HISTORY, History
from finetune.runs.read import CompletedRun, read_run, trial_folder
from finetune.runs.sweep_record import CONFIRMATION, REPETITIONS, TrialRecord, read_trials


@dataclass(frozen=True)
class SweepResult:
    """A sweep as its files show it at this moment."""

    folder: Path
    trials: list[TrialRecord]  # those of the command, without what a search does with the best afterwards
    settings: dict[int, dict[str, object]]  # for each trial what sets it apart from the others
    comparisons: list[Comparison]  # of the complete trials, one for each set of prompts
    histories: dict[str, History]  # what each trial learnt, also where it ended early or is still at it
    tested: CompletedRun | None = None  # the best trial of a search, once it has answered the test prompts

    @property
    def scores(self) -> dict[int, float]:
        """The score of each complete trial by its number."""
        pairs = (pair for ranked in self.comparisons for pair in zip(ranked.runs, ranked.scores, strict=True))
        return {run.trial: score for run, score in pairs if run.trial is not None}

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
        """Whether the best trial of a search was worth it."""
        return f"On the test prompts, {self.tested.name}: {self.tested.verdict}" if self.tested else ""


def read_sweep(folder: Path, metric: str | None = None) -> SweepResult:
    """The sweep in a folder, its trials ranked by the metric (None: their first one); UserError where they cannot."""
    trials = [trial for trial in read_trials(folder / "sweep.json").values() if trial.number < REPETITIONS]
    runs: dict[Path, CompletedRun] = {}
    histories: dict[str, History] = {}
    for trial in trials:
        own_folder = trial_folder(folder, trial)
        run = read_run(own_folder, trial.result) if trial.state is RunState.complete else None
        if run and own_folder not in runs:  # two trials of the same settings are one run
            runs[own_folder] = replace(run, trial=trial.number)
        name = f"trial {trial.number}" + ("" if run else f" ({format_state(trial.state)})")
        history = run.history if run else _unfinished_history(own_folder, trial)
        histories |= {name: history} if history else {}
    swept = _swept_settings(trials)
    compared = compare_runs(runs.values(), metric)
    comparisons = [replace(ranked, settings=_differing_settings(ranked.runs, swept)) for ranked in compared]
    return with_test_result(SweepResult(folder, trials, swept, comparisons, histories))


def with_test_result(result: SweepResult) -> SweepResult:
    """The same with what the best trial of a search has answered to the test prompts, if it has by now."""
    confirmation = read_trials(result.folder / "sweep.json").get(CONFIRMATION)
    if confirmation is None or confirmation.state is not RunState.complete:
        return result
    run = read_run(trial_folder(result.folder, confirmation))
    numbers = {run.folder: run.trial for comparison in result.comparisons for run in comparison.runs}
    return replace(result, tested=run and replace(run, trial=numbers.get(run.folder)))


def format_state(state: RunState) -> str:
    """A state in words."""
    return state.value.replace("_", " ")


def _swept_settings(trials: list[TrialRecord]) -> dict[int, dict[str, object]]:
    """For each trial the settings of its command that not all trials have."""
    counts = Counter(override for trial in trials for override in set(trial.overrides))
    swept: dict[int, dict[str, object]] = {}
    for trial in trials:
        own = [text for text in trial.overrides if counts[text] < len(trials) and not text.startswith("sweep.")]
        pairs = (text.lstrip("+").partition("=") for text in own if "=" in text)
        swept[trial.number] = {key: _read_value(text) for key, _, text in pairs}
    return swept


def _read_value(text: str) -> object:
    with suppress(ValueError):
        return json.loads(text)
    return text


def _differing_settings(runs: Iterable[CompletedRun], swept: dict[int, dict[str, object]]) -> list[dict[str, object]]:
    """For each run the swept settings that differ; one that its own command does not name is its configuration's."""
    keys = dict.fromkeys(key for own in swept.values() for key in own)
    settings = []
    for run in runs:
        known = flatten_settings(run.result.config) | (swept[run.trial] if run.trial is not None else {})
        settings.append({key: known.get(key) for key in keys})
    return varying_settings(settings)


def _unfinished_history(folder: Path, trial: TrialRecord) -> History:
    """What a trial that is not complete has logged: when it ended, else until its newest checkpoint."""
    if trial.folder:
        with suppress(OSError, ValueError):  # a checkpoint may be in the midst of being written
            if (folder / HISTORY).exists():
                return read_jsonl(folder / HISTORY)
            for newest in list_checkpoints(folder):
                history: History = json.loads((newest / "trainer_state.json").read_text())["log_history"]
                return history
    return []
