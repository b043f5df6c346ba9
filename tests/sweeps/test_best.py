"""The best of a sweep is found, repeated over seeds, and left as an experiment."""

import json

import pytest
from omegaconf import OmegaConf
from support.run_folders import answers, leave_run

from finetune.cli.compose import compose_config
from finetune.config.schema import Tracking
from finetune.runs.folder import run_folder
from finetune.runs.outcome import Outcome, RunState
from finetune.runs.sweep_record import open_sweep_record
from finetune.search.space import read_space
from finetune.search.study import SearchStudy, StudySettings, open_study
from finetune.sweeps.best import SearchContext, report_best, report_best_of_grid


def grid(tmp_path, *cells):
    """A sweep of whole runs, of each its overrides, how many of 60 answers are right, and its validation loss."""
    record = open_sweep_record(str(tmp_path), "grid", [])
    for number, (overrides, right, loss) in enumerate(cells):
        folder = leave_run(tmp_path / f"run{number}", *overrides, tuned=answers(range(right), 60))
        result = json.loads((folder / "result.json").read_text())
        result["training"]["validation_loss"] = loss
        (folder / "result.json").write_text(json.dumps(result))
        record.begin(number, overrides, folder, RunState.running)
        record.end(number, Outcome(RunState.complete, "", folder, 1.0, right / 60, "exact_match"))
    return record.folder


def test_a_grids_best_is_chosen_by_validation_loss_and_judged_by_the_test_prompts(tmp_path, capsys):
    folder = grid(tmp_path, (["adapter.r=4"], 50, 0.9), (["adapter.r=8", "sweep.name=g"], 40, 0.2))
    report_best_of_grid(folder, compose_config, Tracking(enabled=False))
    told = capsys.readouterr().out
    assert "Best by validation loss, 0.2: trial 1: adapter.r=8" in told
    assert "On the test prompts: Tuning beats zero-shot prompting by 0.67" in told
    assert "Again: python run.py adapter.r=8\n" in told and "r: 8" in (folder / "best.yaml").read_text()
    assert (folder / "report.html").exists()


def test_a_best_whose_text_reads_as_a_number_keeps_it_as_an_experiment(tmp_path):
    folder = grid(tmp_path, (["data.name='1e3'"], 50, 0.1), (["adapter.r=8"], 40, 0.2))
    report_best_of_grid(folder, compose_config, Tracking(enabled=False))
    assert OmegaConf.load(folder / "best.yaml").data.name == "1e3"


def test_a_grid_of_other_models_has_no_best(tmp_path, capsys):
    folder = grid(tmp_path, (["adapter.r=4"], 50, 0.9), (["model=qwen3_0_6b"], 40, 0.2))
    report_best_of_grid(folder, compose_config, Tracking(enabled=False))
    assert "No best is chosen" in capsys.readouterr().out and not (folder / "best.yaml").exists()


@pytest.mark.slow
def test_the_best_are_repeated_over_seeds_and_the_best_on_average_is_tested(tmp_path, capsys):
    """With the first seed rank 4 answers 12 of 20 prompts rightly and rank 8 only 11, with the others 6 and 10."""
    plan = StudySettings("grid", "none", 2, 0, ("score",), True)
    asked = read_space({"adapter.r": "4,8"}, [], {})
    tried = SearchStudy(open_study(str(tmp_path / "study.journal"), "mine", plan), asked, plan, shared=False)
    fixed = ["tracking=none", f"output_dir={tmp_path}", "sweep.repeat_best=2x2"]
    own = ["sweep.name=mine", "sweep.on_validation=true"]
    ran = []

    def train(jobs, *_):
        for _, overrides in jobs:
            config = compose_config(overrides)
            ran.append((config.adapter.r, config.seed, config.sweep.on_validation))
            right = {4: 6, 8: 10}[config.adapter.r] if config.seed > 42 else {4: 12, 8: 11}[config.adapter.r]
            split = "validation" if config.sweep.on_validation else "test"
            leave_run(run_folder(config), *overrides, tuned=answers(range(right), 20), split=split)

    tried.begin({"adapter.r": 4}.get)
    for number, overrides in tried:
        train([(number, [*fixed, *overrides, *own])])
        folder = run_folder(compose_config([*fixed, *overrides]))
        tried.tell(number, Outcome(RunState.complete, "", folder), [12 / 20 if "adapter.r=4" in overrides else 11 / 20])
    del ran[:]
    base = compose_config(fixed)
    report_best(tried, compose_config, train, SearchContext(fixed, own, base, tmp_path / "sweeps/mine"))
    assert ran == [(4, 43, True), (4, 44, True), (8, 43, True), (8, 44, True), (8, 42, False)]
    told = capsys.readouterr().out
    assert (
        "0.517" in told and "0.400" in told and "Best: trial 1: adapter.r=8" in told and "On the test prompts" in told
    )
    assert "r: 8" in (tmp_path / "sweeps/mine/best.yaml").read_text()
