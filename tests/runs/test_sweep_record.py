"""sweep.json says what became of each trial, whoever wrote its line."""

import json

from finetune.runs.outcome import Outcome, RunState
from finetune.runs.result import RESULT, SELECTION
from finetune.runs.sweep_record import TrialRecord, open_sweep_record, read_trials, sweep_name


def test_each_process_writes_the_lines_of_its_own_trials(tmp_path):
    mine, other = (open_sweep_record(str(tmp_path), "ranks", ["adapter.r=4,8"]) for _ in range(2))
    mine.begin(0, ["adapter.r=4"], tmp_path / "a", RunState.running)
    other.begin(1, ["adapter.r=8"], tmp_path / "b", RunState.running)
    mine.end(0, Outcome(RunState.complete, seconds=2.345, score=0.5))
    trials = read_trials(tmp_path / "sweeps" / "ranks" / "sweep.json")
    assert trials == other.trials | {
        0: TrialRecord(0, ["adapter.r=4"], str(tmp_path / "a"), RunState.complete, "", 2.3, 0.5)
    }
    content = json.loads(mine.file.read_text())
    assert content["name"] == "ranks" and content["command"] == ["adapter.r=4,8"]
    assert mine.file.read_text().count("\n") == 1 + 2 + 1  # a line for each trial


def test_a_trial_that_runs_is_given_up_and_one_that_ended_is_not(tmp_path):
    record = open_sweep_record(str(tmp_path), "ranks", [])
    for number in (0, 1):
        record.begin(number, [], None, RunState.running)
    record.end(0, Outcome(RunState.complete))
    for number in (0, 1, 2):
        record.give_up(number, "no sign of life")
    assert {number: trial.state.value for number, trial in read_trials(record.file).items()} == {
        0: "complete",
        1: "killed",
    }


def test_a_trial_is_named_by_what_the_others_do_not_share(tmp_path):
    record = open_sweep_record(str(tmp_path), "ranks", ["seed=3"])
    record.common = frozenset(["data=usaddress"])
    record.begin(0, ["seed=3", "adapter.r=4", "data=usaddress", "sweep.trial=0"], None, RunState.waiting)
    assert record.swept(0) == "adapter.r=4"


def test_a_searchs_trial_is_scored_on_validation_prompts():
    assert TrialRecord(0, ["sweep.on_validation=true"], "").result == SELECTION
    assert TrialRecord(0, ["seed=1"], "").result == RESULT


def test_a_sweep_is_named_by_what_it_sweeps():
    swept = ["sweep=lora_rank", "adapter.r=4,8"]
    assert sweep_name(swept) == sweep_name(
        ["adapter.r=4,8", "sweep=lora_rank", "tracking=none", "hydra.launcher.n_jobs=2"]
    )
    assert sweep_name(swept).startswith("lora_rank-") and sweep_name(swept) != sweep_name(["sweep=lora_rank"])
