"""A search tries what it should, ends the hopeless early, and selects on validation rows."""

import json
import re
import shlex
import warnings
from types import SimpleNamespace

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState

from finetune.cli.compose import compose_config
from finetune.config.schema import Sweep
from finetune.errors import UserError
from finetune.runs.folder import run_folder
from finetune.runs.outcome import Outcome, RunState
from finetune.search.pruning import PruningCallback
from finetune.search.space import read_space
from finetune.search.study import SearchStudy, StudySettings, check_study, load_trial, open_study
from finetune.sweeps.best import _front, repetitions
from finetune.sweeps.run_search import _notes

PARAMS = {
    "trainer.learning_rate": "tag(log,interval(1e-5,1e-2))",
    "adapter.r": "choice(4,8,16)",
    "adapter": "choice(lora,rslora)",
    "adapter.lora_dropout": "interval(0.0,0.2)",
    "trainer.per_device_train_batch_size": "int(interval(1,8))",
}
CONDITIONS = {"adapter.lora_dropout": "adapter=lora"}
SPACE = read_space(PARAMS, [], CONDITIONS)
DEFAULTS = {"trainer.learning_rate": 1e-3, "adapter.r": 16, "adapter": "lora", "adapter.lora_dropout": 0.0}


def plan(**changes):
    known = {"sampler": "tpe", "pruner": "none", "n_trials": 12, "seed": 0, "objectives": ("score",)}
    return StudySettings(**(known | {"higher_is_better": True} | changes))


def run(folder, asked=SPACE, value=lambda point: point["trainer.learning_rate"], **changes):
    """The settings that a search has tried, in its order; `value` is what a run with them comes to."""
    settings = plan(**changes)
    search = SearchStudy(open_study(str(folder / "study.journal"), "s", settings), asked, settings, shared=False)
    search.begin(DEFAULTS.get)
    tried = []
    for number, overrides in search:
        tried.append(overrides)
        search.tell(number, Outcome(RunState.complete), [value(search.study.trials[number].params)])
    return tried, search


def test_the_same_seed_proposes_the_same_trials_and_another_seed_others(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    first, again, other = (run(folder, seed=seed)[0] for folder, seed in zip(folders, (0, 0, 1), strict=True))
    assert len(first) == 12 and first == again != other


def test_the_defaults_are_the_first_trial_so_that_no_search_ends_below_them(tmp_path):
    tried, search = run(tmp_path, n_trials=5)
    assert "trainer.learning_rate=0.001" in tried[0] and "adapter.r=16" in tried[0] and "adapter=lora" in tried[0]
    assert search.best()[0].values[0] >= 1e-3


def test_a_setting_with_a_condition_is_searched_only_where_it_holds(tmp_path):
    tried, _ = run(tmp_path, n_trials=20)
    having = {"adapter=lora" in point: any("lora_dropout" in text for text in point) for point in tried}
    assert having == {True: True, False: False}


def test_n_trials_is_the_total_of_a_study_that_goes_on(tmp_path):
    first, _ = run(tmp_path, n_trials=12)
    more, search = run(tmp_path, n_trials=20)
    assert (len(first), len(more), len(search.study.trials)) == (12, 8, 20)
    assert not set(map(tuple, first)) & set(map(tuple, more))


def test_a_trial_that_repeats_another_is_not_run_again(tmp_path):
    small = read_space({"adapter.r": "4,8"}, [], {})
    tried, search = run(tmp_path, small, lambda point: float(point["adapter.r"]), n_trials=10, sampler="random")
    assert sorted(tried) == [["adapter.r=4"], ["adapter.r=8"]]
    assert len(search.study.trials) == 10 and len(search.best()) == 2


def test_a_trial_that_repeats_a_pruned_one_is_pruned_at_once(tmp_path):
    settings = plan(n_trials=10, sampler="random")
    small = read_space({"adapter.r": "4,8"}, [], {})
    search = SearchStudy(open_study(str(tmp_path / "study.journal"), "s", settings), small, settings, shared=False)
    for number, overrides in search:
        if overrides == ["adapter.r=4"]:
            load_trial(str(tmp_path / "study.journal"), "s", number, "none").report(0.5, 2)
            search.tell(number, Outcome(RunState.pruned), None)
        else:
            search.tell(number, Outcome(RunState.complete), [1.0])
    pruned = search.study.get_trials(states=[TrialState.PRUNED])
    assert len(search.study.trials) == 10 and len(pruned) > 1
    assert all(trial.intermediate_values == {2: 0.5} for trial in pruned)


def test_a_grid_tries_every_combination_once(tmp_path):
    small = read_space({"adapter.r": "4,8", "adapter": "lora,rslora", "seed": "range(1,3)"}, [], {})
    tried, _ = run(tmp_path, small, lambda point: 0.0, n_trials=8, sampler="grid")
    assert len(set(map(tuple, tried))) == len(tried) == 8


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2", "random"])
def test_other_samplers_search_too(tmp_path, sampler):
    tried, _ = run(tmp_path, sampler=sampler, n_trials=4)
    assert len(tried) == 4


def test_a_trial_that_a_killed_search_left_is_run_again_with_its_number(tmp_path):
    settings = plan()
    opened = open_study(str(tmp_path / "study.journal"), "s", settings)
    killed = SearchStudy(opened, SPACE, settings, shared=False)
    killed.begin(DEFAULTS.get)
    left = next(killed)
    again = SearchStudy(open_study(str(tmp_path / "study.journal"), "s", settings), SPACE, settings, shared=False)
    assert next(again) == left


def test_several_objectives_have_their_directions(tmp_path):
    both = plan(objectives=("score", "memory"), sampler="nsga2")
    assert both.directions() == ["maximize", "minimize"]
    assert plan(objectives=("score",), higher_is_better=False).directions() == ["minimize"]
    check_study(both)


def test_of_several_objectives_those_are_told_that_none_beats_in_all(tmp_path):
    settings = plan(objectives=("score", "memory"), sampler="nsga2", n_trials=3)
    opened = open_study(str(tmp_path / "study.journal"), "s", settings)
    search = SearchStudy(opened, SPACE, settings, shared=False)
    for (number, _), values in zip(search, [[0.5, 2e9], [0.6, 3e9], [0.4, 2.5e9]], strict=False):
        search.tell(number, Outcome(RunState.complete), values)
    assert [trial.number for trial in search.front()] == [0, 1]
    assert _front(search) == "Not beaten in score and memory at once: trial 0 (0.5, 2e+09); trial 1 (0.6, 3e+09)"


def test_the_command_lines_range_replaces_the_presets():
    given = OverridesParser.create().parse_overrides(["adapter.r=choice(2,64)"])
    found = {one.key: one for one in read_space(PARAMS, given, CONDITIONS).dimensions}
    assert found["adapter.r"].choices == ("2", "64")
    rate, batch = found["trainer.learning_rate"], found["trainer.per_device_train_batch_size"]
    assert (rate.low, rate.high, rate.log, rate.whole) == (1e-5, 1e-2, True, False)
    assert (batch.low, batch.high, batch.whole) == (1, 8, True)


@pytest.mark.parametrize(
    ("params", "conditions", "message"),
    [
        ({"adapter.r": "8"}, {}, "adapter.r=8: it is no range to search. Write choice(4,8,16)"),
        ({"adapter.r": "interval(8,4)"}, {}, "expected a lower and a higher number"),
        ({"adapter.r": "tag(log,interval(0,4))"}, {}, "both above 0 for log"),
        ({"adapter.r": "4,8"}, {"adapter.r": "adapter=lora"}, "both settings are searched"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(params, conditions, message):
    with pytest.raises(UserError) as told:
        read_space(params, [], conditions)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "bayes"}, "hydra.sweeper.sampler=bayes: expected one of tpe, random"),
        ({"pruner": "fast"}, "hydra.sweeper.pruner=fast"),
        ({"objectives": ("loss",)}, "hydra.sweeper.objectives=loss"),
        ({"n_trials": 0}, "it must be at least 1"),
        ({"objectives": ("score", "memory"), "pruner": "median"}, "pruner=none"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(changes, message):
    with pytest.raises(UserError) as told:
        check_study(plan(**changes))
    assert message in str(told.value)


def test_repetitions_are_trials_times_seeds():
    assert repetitions("3x2") == (3, 2) and repetitions(None) == (0, 0)
    for wrong in ("3", "x2", "3x0", "threex2"):
        with pytest.raises(UserError, match="expected TRIALSxSEEDS"):
            repetitions(wrong)


@pytest.mark.parametrize(("pruner", "most"), [("median", 0.6), ("asha", 0.7), ("hyperband", 0.6)])
def test_each_pruner_ends_the_worse_and_spares_the_best(tmp_path, pruner, most):
    """Losses that fall at their own rates: told at each step, the study ends the slow ones."""
    warnings.simplefilter("ignore", UserWarning)
    settings = plan(pruner=pruner, n_trials=12, sampler="random", seed=1)
    small = read_space({"trainer.learning_rate": "interval(0.0,1.0)"}, [], {})
    search = SearchStudy(open_study(str(tmp_path / "study.journal"), "s", settings), small, settings, shared=False)
    search.begin({}.get)
    steps = {}
    for number, _ in search:
        trial = load_trial(str(tmp_path / "study.journal"), "s", number, pruner)
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
    assert search.best()[0].params["trainer.learning_rate"] == max(rates.values())


@pytest.mark.slow
def test_a_search_selects_on_validation_rows_goes_on_and_tests_the_winner_once(program, tiny_run, tmp_path):
    asked = ["sweep=lora_basics", "sweep.name=mine", *tiny_run, "hydra.launcher.n_jobs=1", "hydra.sweeper.pruner=none"]
    done = program(*asked, "hydra.sweeper.n_trials=2")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 trials to run, 1 at a time" in done.stdout
    assert "Best: trial" in done.stdout and "On the test prompts, once:" in done.stdout
    assert (tmp_path / "outputs/sweeps/mine/report.html").exists() and "2 runs on 4 validation prompts" in done.stdout
    folders = [file.parent for file in (tmp_path / "outputs").glob("*/selection.json")]
    assert len(folders) == 2
    [tested] = [folder for folder in folders if (folder / "result.json").exists()]
    selected, result = (json.loads((tested / name).read_text()) for name in ("selection.json", "result.json"))
    assert (selected["evaluation"]["split"], result["evaluation"]["split"]) == ("validation", "test")
    assert list(selected["evaluation"]["arms"]) == ["tuned"] and len(result["evaluation"]["arms"]) == 3
    assert result["training"]["resumed_from_step"] == result["training"]["steps"] == 3  # it was not trained again
    more = program(*asked, "hydra.sweeper.n_trials=3")
    assert more.returncode == 0, more.stderr
    assert "3 runs on 4 validation prompts" in more.stdout
    assert len(list((tmp_path / "outputs").glob("*/selection.json"))) == 3
    best = yaml.safe_load((tmp_path / "outputs/sweeps/mine/best.yaml").read_text())
    assert {"override /model": "local"} in best["defaults"] and best["trainer"]["learning_rate"] > 0
    [again] = re.findall(r"^Again: python run.py (.*)$", more.stdout, re.MULTILINE)
    same = run_folder(compose_config([*shlex.split(again), f"output_dir={tmp_path / 'outputs'}"]))
    assert (same / "selection.json").exists() and (same / "result.json").exists()


def proposed(folder):
    lines = json.loads((folder / "sweeps/mine/sweep.json").read_text())["trials"]
    swept = ("adapter.", "trainer.")
    return [[text for text in line["overrides"] if text.startswith(swept)] for line in lines if line["number"] < 10_000]


@pytest.mark.slow
def test_a_preset_proposes_the_same_twelve_trials_twice_and_eight_more_for_twenty(program, tiny_run, tmp_path):
    for place, trials in (("first", 12), ("second", 12), ("first", 20)):
        asked = ["sweep=lora_basics", "sweep.name=mine", *tiny_run, f"output_dir={tmp_path / place}"]
        done = program(*asked, "hydra.launcher.n_jobs=1", f"hydra.sweeper.n_trials={trials}")
        assert done.returncode == 0, done.stderr + done.stdout
        assert len(proposed(tmp_path / place)) == trials
    again = proposed(tmp_path / "second")
    assert proposed(tmp_path / "first")[:12] == again and len({str(one) for one in again}) == 12


@pytest.mark.slow
def test_a_search_may_weigh_the_score_against_memory(program, tiny_run, tmp_path):
    asked = ["-m", "hydra/sweeper=optuna", "adapter.r=choice(4,16,64)", "hydra.sweeper.objectives=[score,memory]"]
    done = program(
        *asked, *tiny_run, "hydra.sweeper.sampler=nsga2", "hydra.sweeper.pruner=none", "hydra.sweeper.n_trials=3"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Not beaten in score and memory at once: trial" in done.stdout


def test_what_a_search_will_not_try_is_told():
    searched = read_space({"adapter.r": "choice(4,8)", "trainer.seed": "choice(1,2,3)"}, [], {})
    defaults = {"adapter.r": 16, "trainer.seed": 2}.get
    told = list(_notes(searched, plan(sampler="grid", n_trials=5), defaults))
    assert told == [
        "Outside of what is searched, and so not tried first: the default adapter.r=16.",
        "The grid has 6 cells; hydra.sweeper.n_trials=5 of them are tried.",
    ]
    assert not list(_notes(searched, plan(n_trials=5), {"adapter.r": 8, "trainer.seed": 2}.get))


def test_trials_of_other_batches_are_compared_at_the_same_share_of_their_training(tmp_path):
    settings = plan(pruner="median")
    opened = open_study(str(tmp_path / "study.journal"), "s", settings)
    for number, steps in enumerate((40, 80)):
        opened.ask()
        pruned = PruningCallback(Sweep(name="s", study=str(tmp_path / "study.journal"), trial=number, pruner="median"))
        for share in (1, 2):
            state = SimpleNamespace(global_step=share * steps // 4, max_steps=steps)
            pruned.on_evaluate(None, state, None, {"eval_loss": 1.0 / share})
    assert [trial.intermediate_values for trial in opened.trials] == [{25: -1.0, 50: -0.5}] * 2


def test_a_value_that_no_run_may_have_is_told_before_the_first_trial(program, tmp_path):
    asked = ["-m", "hydra/sweeper=optuna", "adapter.r=choice(4,-8)", "tracking=none", f"output_dir={tmp_path}"]
    done = program(*asked)
    assert done.returncode == 2 and "adapter.r=-8" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
    told = program("sweep=lora_basics", "trainer.eval_strategy=no", f"output_dir={tmp_path}")
    assert told.returncode == 2 and "hydra.sweeper.pruner=median" in told.stderr


@pytest.mark.slow
def test_hopeless_trials_end_early_and_the_best_is_that_of_the_search_without_pruning(program, tiny_run, tmp_path):
    rates = "trainer.learning_rate=choice(1e-4,1e-6,1e-5,1e-7,3e-7,3e-3,3e-6,3e-8,1e-8,3e-5)"
    asked = [*tiny_run, "trainer.max_steps=16", "trainer.eval_steps=2", "data.metrics=[perplexity]", rates]
    asked += ["-m", "hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=10"]
    steps, best = {}, {}
    for pruner in ("none", "median"):
        place = tmp_path / pruner
        done = program(*asked, f"hydra.sweeper.pruner={pruner}", f"output_dir={place}", "hydra.launcher.n_jobs=1")
        assert done.returncode == 0, done.stderr + done.stdout
        checkpoints = [list(folder.glob("history.jsonl")) for folder in place.glob("*") if folder.name != "sweeps"]
        told = json.loads(next(place.glob("sweeps/*/sweep.json")).read_text())["trials"]
        steps[pruner] = sum(
            16 if trial["state"] == "complete" else _steps(trial["reason"])
            for trial in told
            if trial["number"] < 10_000
        )
        best[pruner] = next(line for line in done.stdout.splitlines() if line.startswith("Best: ")).partition(
            ": trainer"
        )[2]
        assert checkpoints
    assert best["median"] == best["none"] and steps["median"] <= 0.6 * steps["none"]


def _steps(reason):
    """At which step a trial was pruned, in its own words."""
    return int(reason.partition("at step ")[2].partition(":")[0])
