"""A search asks for what it should, and remembers what each trial reached."""

import pytest
from optuna.trial import TrialState
from support.searches import open_search, run_search, trial_section

from finetune.errors import UserError
from finetune.runs.outcome import Outcome, RunState
from finetune.search.space import read_space
from finetune.search.study import load_trial

SMALL = read_space({"adapter.r": "4,8"}, [], {})


def test_the_same_seed_proposes_the_same_trials_and_another_seed_others(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    first, again, other = (run_search(folder, seed=seed)[0] for folder, seed in zip(folders, (0, 0, 1), strict=True))
    assert len(first) == 12 and first == again != other


def test_the_defaults_are_the_first_trial_so_that_no_search_ends_below_them(tmp_path):
    tried, search = run_search(tmp_path, n_trials=5)
    assert "trainer.learning_rate=0.001" in tried[0] and "adapter.r=16" in tried[0] and "adapter=lora" in tried[0]
    assert search.ranking()[0].values[0] >= 1e-3


def test_a_setting_with_a_condition_is_searched_only_where_it_holds(tmp_path):
    tried, _ = run_search(tmp_path, n_trials=20)
    having = {"adapter=lora" in point: any("lora_dropout" in text for text in point) for point in tried}
    assert having == {True: True, False: False}


def test_n_trials_is_the_total_of_a_study_that_goes_on(tmp_path):
    first, _ = run_search(tmp_path, n_trials=12)
    more, search = run_search(tmp_path, n_trials=20)
    assert (len(first), len(more), len(search.study.trials)) == (12, 8, 20)
    assert not set(map(tuple, first)) & set(map(tuple, more))


def test_a_trial_that_repeats_another_is_not_run_again(tmp_path):
    tried, search = run_search(tmp_path, SMALL, lambda point: float(point["adapter.r"]), n_trials=10, sampler="random")
    assert sorted(tried) == [["adapter.r=4"], ["adapter.r=8"]]
    assert len(search.study.trials) == 10 and len(search.ranking()) == 2


def test_a_trial_that_repeats_a_pruned_one_is_pruned_at_once(tmp_path):
    search = open_search(tmp_path, SMALL, n_trials=10, sampler="random")
    for number, overrides in search:
        if overrides == ["adapter.r=4"]:
            load_trial(trial_section(tmp_path, number, "none"), {}).report(0.5, 2)
            search.tell(number, Outcome(RunState.pruned), None)
        else:
            search.tell(number, Outcome(RunState.complete), [1.0])
    pruned = search.study.get_trials(states=[TrialState.PRUNED])
    assert len(search.study.trials) == 10 and len(pruned) > 1
    assert all(trial.intermediate_values == {2: 0.5} for trial in pruned)


def test_a_grid_tries_every_combination_once(tmp_path):
    space = read_space({"adapter.r": "4,8", "adapter": "lora,rslora", "seed": "range(1,3)"}, [], {})
    tried, _ = run_search(tmp_path, space, lambda point: 0.0, n_trials=8, sampler="grid")
    assert len(set(map(tuple, tried))) == len(tried) == 8


def test_a_trial_that_a_killed_search_left_is_run_again_with_its_number(tmp_path):
    killed = open_search(tmp_path)
    killed.enqueue_first({}.get)
    left = next(killed)
    again = open_search(tmp_path)
    assert again.remaining() == 12 and next(again) == left


def test_a_trial_that_failed_is_retried_under_another_number_where_its_state_is_to_be(tmp_path):
    search = open_search(tmp_path, SMALL, sampler="grid", n_trials=2)
    search.enqueue_first({}.get)
    for (number, _), state in zip(search, (RunState.failed, RunState.diverged), strict=False):
        search.tell(number, Outcome(state), None)
    again = open_search(tmp_path, SMALL, sampler="grid", n_trials=2)
    again.enqueue_first({}.get, [RunState.failed])
    assert again.remaining() == 1 and list(again) == [(2, ["adapter.r=4"])]
    assert again.earlier_attempts(2) == [0]


def test_a_study_of_other_objectives_is_not_continued(tmp_path):
    open_search(tmp_path)
    with pytest.raises(UserError, match=r"sweep.name=s: the study of this name has other objectives"):
        open_search(tmp_path, objectives=["memory"])
