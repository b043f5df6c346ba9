"""The best of a sweep is found, repeated over seeds, and left as an experiment."""

import json

import pytest
from omegaconf import OmegaConf
from support.run_folders import answers, write_run
from support.searches import open_search

from finetune.cli.compose import compose_config
from finetune.config.schema import Tracking
from finetune.runs.folder import run_folder
from finetune.runs.outcome import Outcome, RunState
from finetune.runs.sweep_record import open_sweep_record
from finetune.search.space import read_space
from finetune.sweeps.best import SearchRuns, describe_front, report_best, report_best_of_grid


def grid(tmp_path, *cells):
    """A sweep of whole runs, of each its overrides, how many of 60 answers are right, and its validation loss."""
    record = open_sweep_record(str(tmp_path), "grid", [])
    for number, (overrides, right, loss) in enumerate(cells):
        folder = write_run(tmp_path / f"run{number}", *overrides, tuned=answers(range(right), 60))
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
@pytest.mark.parametrize(
    ("seeds", "repeated", "mean"), [([], (43, 44), "0.517"), (["sweep.repeat_seeds=1"], (43,), "0.525")]
)
def test_the_best_are_repeated_over_seeds_and_the_best_on_average_is_tested(tmp_path, capsys, seeds, repeated, mean):
    """With the first seed rank 4 answers 12 of 20 prompts rightly and rank 8 only 11, with the others 6 and 10."""
    asked = read_space({"adapter.r": "4,8"}, [], {})
    search = open_search(tmp_path, asked, sampler="grid", n_trials=2)
    fixed = ["tracking=none", f"output_dir={tmp_path}", "sweep.repeat_best=2", *seeds]
    own = ["sweep.name=mine", "sweep.on_validation=true"]
    ran = []

    def train(jobs, *_):
        for _, overrides in jobs:
            config = compose_config(overrides)
            ran.append((config.adapter.r, config.seed, config.sweep.on_validation))
            right = {4: 6, 8: 10}[config.adapter.r] if config.seed > 42 else {4: 12, 8: 11}[config.adapter.r]
            split = "validation" if config.sweep.on_validation else "test"
            write_run(run_folder(config), *overrides, tuned=answers(range(right), 20), split=split)

    search.enqueue_first({"adapter.r": 4}.get)
    for number, overrides in search:
        train([(number, [*fixed, *overrides, *own])])
        folder = run_folder(compose_config([*fixed, *overrides]))
        value = 12 / 20 if "adapter.r=4" in overrides else 11 / 20
        search.tell(number, Outcome(RunState.complete, "", folder), [value])
    del ran[:]
    report_best(search, SearchRuns(compose_config, train, fixed, own, compose_config(fixed), tmp_path / "sweeps/mine"))
    assert ran == [*((rank, seed, True) for rank in (4, 8) for seed in repeated), (8, 42, False)]
    told = capsys.readouterr().out
    assert mean in told and "by seed" in told and "Best: trial 1: adapter.r=8" in told and "On the test prompts" in told
    assert "r: 8" in (tmp_path / "sweeps/mine/best.yaml").read_text()


def test_of_several_objectives_those_are_told_that_none_beats_in_all(tmp_path):
    search = open_search(tmp_path, objectives=["score", "memory"], sampler="nsga2", n_trials=3)
    for (number, _), values in zip(search, [[0.5, 2e9], [0.6, 3e9], [0.4, 2.5e9]], strict=False):
        search.tell(number, Outcome(RunState.complete), values)
    assert (
        describe_front(search) == "Not beaten in score and memory at once: trial 0 (0.5, 2e+09); trial 1 (0.6, 3e+09)"
    )
