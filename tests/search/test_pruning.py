"""A trial reports its validation losses to the study, which may end it."""

from types import SimpleNamespace

import pytest
from support.searches import open_search, trial_section

from finetune.runs.outcome import Pruned
from finetune.search.pruning import PruningCallback, pruning_callbacks
from finetune.search.space import read_space

SPACE = read_space({"adapter.r": "4,8"}, [], {})


def report(folder, number, step, loss, steps=40):
    callback = PruningCallback(trial_section(folder, number, "median"), {})
    callback.on_evaluate(None, SimpleNamespace(global_step=step, max_steps=steps), None, metrics={"eval_loss": loss})


def test_trials_of_other_batches_are_compared_at_the_same_share_of_their_training(tmp_path):
    search = open_search(tmp_path, SPACE, pruner="median")
    for number, steps in enumerate((40, 80)):
        search.study.ask()
        for share in (1, 2):
            report(tmp_path, number, share * steps // 4, 1.0 / share, steps)
    assert [trial.intermediate_values for trial in search.study.trials] == [{25: -1.0, 50: -0.5}] * 2


def test_what_was_reported_before_a_crash_is_not_reported_again(tmp_path):
    search = open_search(tmp_path, SPACE, pruner="median")
    search.study.ask()
    for loss in (1.0, 3.0):
        report(tmp_path, 0, 10, loss)
    assert search.study.trials[0].intermediate_values == {25: -1.0}


def test_a_trial_that_others_outdo_ends_with_its_loss_as_the_reason(tmp_path):
    search = open_search(tmp_path, SPACE, pruner="median")
    for _ in range(3):
        trial = search.study.ask()
        trial.report(-0.1, 50)
        search.study.tell(trial, 1.0)
    search.study.ask()
    with pytest.raises(Pruned, match=r"validation loss 2\.000 at step 20: others do better"):
        report(tmp_path, 3, 20, 2.0)


def test_only_a_trial_of_a_search_that_prunes_reports(tmp_path):
    open_search(tmp_path, SPACE, pruner="median").study.ask()
    assert len(pruning_callbacks(trial_section(tmp_path, 0, "median"), {})) == 1
    assert pruning_callbacks(trial_section(tmp_path, 0, "none"), {}) == []
    assert pruning_callbacks(trial_section(tmp_path, None, "median"), {}) == []
