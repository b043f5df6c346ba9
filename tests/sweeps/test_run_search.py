"""A search tries what it should, ends the hopeless early, and selects on validation rows."""

import json
import re
import shlex

import pytest
import yaml

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.runs.folder import run_folder
from finetune.search.settings import SearchSettings
from finetune.search.space import read_space
from finetune.sweeps.run_search import check_search, search_notes


def test_what_a_search_will_not_try_is_told():
    space = read_space({"adapter.r": "choice(4,8)", "trainer.seed": "choice(1,2,3)"}, [], {})
    defaults = {"adapter.r": 16, "trainer.seed": 2}.get
    assert list(search_notes(space, SearchSettings(sampler="grid", n_trials=5), defaults)) == [
        "Outside of what is searched, and so not tried first: the default adapter.r=16.",
        "The grid has 6 cells; hydra.sweeper.n_trials=5 of them are tried.",
    ]
    assert not list(search_notes(space, SearchSettings(n_trials=5), {"adapter.r": 8, "trainer.seed": 2}.get))


@pytest.mark.parametrize(
    ("params", "settings", "message"),
    [
        ({}, {}, "hydra/sweeper=optuna: nothing is searched"),
        ({"adapter.r": "4,8"}, {}, "hydra.sweeper.pruner=median: trials are judged at each validation"),
        (
            {"adapter.r": "4,8"},
            {"pruner": "none", "objectives": ["validation_loss"]},
            "hydra.sweeper.objectives=validation_loss: trials are judged at each validation",
        ),
        ({"adapter.r": "4,-8"}, {"pruner": "none"}, "adapter.r=-8"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_its_first_trial(params, settings, message):
    fixed = ["trainer.eval_strategy=no"]
    space, base = read_space(params, [], {}), compose_config(fixed)
    with pytest.raises(UserError, match=re.escape(message)):
        check_search(compose_config, fixed, space, SearchSettings(**settings), base)


def test_a_search_through_another_launcher_is_refused_before_anything_starts(program, tmp_path):
    asked = ["-m", "hydra/sweeper=optuna", "hydra/launcher=basic", "adapter.r=choice(4,8)", f"output_dir={tmp_path}"]
    done = program(*asked)
    assert done.returncode == 2 and "Write hydra/launcher=process" in done.stderr and "Traceback" not in done.stderr
    assert "hydra/launcher=basic: a search would run one trial at a time" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_search_selects_on_validation_rows_goes_on_and_tests_the_best_once(program, tiny_run, tmp_path):
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
