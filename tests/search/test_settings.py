"""Samplers draw by their seed, pruners end the worse trials, and settings that cannot work are refused."""

import warnings

import optuna
import pytest
from support.searches import open_search, run_search, trial_section

from finetune.errors import UserError
from finetune.runs.outcome import Outcome, RunState
from finetune.search.settings import PRUNERS, SAMPLERS, SearchSettings, check_study
from finetune.search.space import read_space
from finetune.search.study import load_trial, make_pruner, make_sampler


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_draws_the_same_for_the_same_seed(name):
    def drawn(seed):
        study = optuna.create_study(sampler=make_sampler(name, seed))
        return [study.ask().suggest_float("rate", 0.0, 1.0) for _ in range(3)]

    assert drawn(0) == drawn(0) != drawn(1)


def test_each_name_is_an_optuna_class_of_its_own():
    assert len({type(make_pruner(name)) for name in PRUNERS}) == len(PRUNERS)
    # grid: what comes after the cells is random
    assert len({type(make_sampler(name, 0)) for name in SAMPLERS}) == len(SAMPLERS) - 1


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2", "random"])
def test_other_samplers_search_too(tmp_path, sampler):
    tried, _ = run_search(tmp_path, sampler=sampler, n_trials=4)
    assert len(tried) == 4


@pytest.mark.parametrize(("pruner", "most"), [("median", 0.6), ("asha", 0.7), ("hyperband", 0.6)])
def test_each_pruner_ends_the_worse_and_spares_the_best(tmp_path, pruner, most):
    """Losses that fall at their own rates: reported at each step, the study ends the slow ones."""
    warnings.simplefilter("ignore", UserWarning)
    space = read_space({"trainer.learning_rate": "interval(0.0,1.0)"}, [], {})
    search = open_search(tmp_path, space, pruner=pruner, sampler="random", seed=1)
    search.enqueue_first({}.get)
    steps = {}
    for number, _ in search:
        trial = load_trial(trial_section(tmp_path, number, pruner), {})
        rate = trial.params["trainer.learning_rate"]
        for step in range(10):
            steps[number] = step + 1
            trial.report(-((1 - rate / 2) ** step), 20 * (step + 1))
            if step < 9 and trial.should_prune():
                search.tell(number, Outcome(RunState.pruned), None)
                break
        else:
            search.tell(number, Outcome(RunState.complete), [rate])
    rates = {trial.number: trial.params["trainer.learning_rate"] for trial in search.study.trials}
    assert steps[max(rates, key=rates.get)] == 10 and sum(steps.values()) <= most * 10 * 12
    assert search.ranking()[0].params["trainer.learning_rate"] == max(rates.values())


def test_several_objectives_have_their_directions():
    both = SearchSettings(objectives=["score", "memory"], sampler="nsga2", pruner="none")
    assert both.directions(higher_is_better=True) == ["maximize", "minimize"]
    assert SearchSettings().directions(higher_is_better=False) == ["minimize"]
    check_study(both)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "bayes"}, "hydra.sweeper.sampler=bayes: expected one of tpe, random"),
        ({"pruner": "fast"}, "hydra.sweeper.pruner=fast"),
        ({"objectives": ["loss"]}, "hydra.sweeper.objectives=loss"),
        ({"n_trials": 0}, "it must be at least 1"),
        ({"objectives": ["score", "memory"], "pruner": "median"}, "pruner=none"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError) as told:
        check_study(SearchSettings(**changes))
    assert message in str(told.value)
