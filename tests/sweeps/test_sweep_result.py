"""What a sweep has come to is read from its files, at any time."""

import pytest
from support.comparisons import compare, confirm_best, write_search
from support.run_folders import answers, write_run

from finetune.runs.outcome import Outcome, RunState
from finetune.runs.read import find_runs, run_folders
from finetune.runs.sweep_record import open_sweep_record
from finetune.sweeps.sweep_result import read_sweep


@pytest.fixture
def searched(tmp_path):
    return write_search(tmp_path)


def test_a_searchs_trials_are_ranked_on_validation_prompts_and_in_groups(searched):
    [found] = read_sweep(searched).comparisons
    assert found.split == "validation" and [run.trial for run in found.runs] == [0, 6, 1, 5, 3]
    assert found.groups == ["a", "a", "a", "b", "b"]
    assert found.settings[1] == {"adapter.r": 16, "trainer.learning_rate": 3e-4}
    assert found.varying["adapter.r"] == [16, 16, 4, 8, 4]


def test_a_winner_that_has_answered_the_test_prompts_is_named_and_its_trial_stays_among_the_others(searched):
    confirm_best(searched)
    result = read_sweep(searched)
    assert [run.trial for run in result.comparisons[0].runs] == [0, 6, 1, 5, 3] and len(result.comparisons) == 1
    assert result.verdict.startswith("On the test prompts, trial 0: Tuning beats zero-shot prompting by 0.71")


def test_a_grids_trials_are_ranked_on_the_test_prompts(tmp_path):
    record = open_sweep_record(str(tmp_path), "grid", [])
    for number, right in enumerate((10, 50)):
        folder = write_run(tmp_path / f"run{number}", f"seed={number}", tuned=answers(range(right), 60))
        record.begin(number, ["model=mine", f"seed={number}"], folder, RunState.running)
        record.end(number, Outcome(RunState.complete, "", folder, 1.0, right / 60, "exact_match"))
    told = compare(record.folder).stdout
    assert "2 runs on 60 test prompts" in told and told.index("trial 1") < told.index("trial 0")
    assert "seed=1" in told and "model=mine" not in told
    runs, _ = find_runs([str(tmp_path)])  # a folder of runs beside a sweep's
    assert [one.name for one in runs] == ["run0", "run1"]
    assert list(run_folders(str(record.folder))) == [record.folder, tmp_path / "run0", tmp_path / "run1"]
