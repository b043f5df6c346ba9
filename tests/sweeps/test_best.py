"""A sweep says what it has come to, at any time and at its end: on the screen, in a page, and in W&B."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.pages import drawn
from support.run_folders import answers, leave_run
from support.wandb_files import read, read_records, values

import run
from finetune.cli.compose import compose_config
from finetune.comparison.compare import compare_runs
from finetune.config.schema import Tracking
from finetune.runs.folder import run_folder
from finetune.runs.outcome import Outcome, Pruned, RunState
from finetune.runs.read import find_runs, run_folders
from finetune.runs.sweep_record import CONFIRMATION, open_sweep_record, read_trials
from finetune.search.space import read_space
from finetune.search.study import SearchStudy, StudySettings, open_study
from finetune.sweeps.best import SearchContext, report_best, report_best_of_grid
from finetune.sweeps.report import show_ranking, write_sweep_report
from finetune.sweeps.sweep_result import read_sweep

ROOT = Path(__file__).parents[2]
# Trial -> rank, learning rate, and how many of 60 prompts it answers rightly.
COMPLETE = {0: (16, 1e-3, 40), 1: (4, 1e-3, 38), 3: (4, 1e-4, 12), 5: (8, 1e-4, 15), 6: (16, 3e-4, 39)}
PRUNED = "validation loss 2.000 at step 20: others do better"


@pytest.fixture
def searched(tmp_path):
    """The folder of a search that has five complete trials, a pruned one, one that failed, and one that runs."""
    record = open_sweep_record(str(tmp_path), "mine", ["sweep=lora_basics"])
    known = ["data.metrics=[exact_match]", "sweep.name=mine", "sweep.on_validation=true"]
    for number in range(8):
        rank, rate, right = COMPLETE.get(number, (2, 1e-5, 0))
        point = [f"adapter.r={rank}", f"trainer.learning_rate={rate}"]
        folder = tmp_path / f"run{number}"
        record.begin(number, [*known, *point, f"sweep.trial={number}"], folder, RunState.running)
        if number in COMPLETE:
            leave_run(folder, *point, tuned=answers(range(right), 60), split="validation")
            record.end(number, Outcome(RunState.complete, "", folder, 10.0, right / 60, "exact_match"))
    record.end(2, Outcome(RunState.pruned, PRUNED, tmp_path / "run2", 5.0))
    record.end(4, Outcome(RunState.failed, "Traceback\n  ...\nValueError: something broke", tmp_path / "run4", 2.0))
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2/history.jsonl").write_text('{"step": 20, "eval_loss": 2.0, "tokens": 5, "train_seconds": 1.0}\n')
    return record.folder


def confirmed(folder):
    """The winner's answers to the test prompts, as a search asks for at its end."""
    record = open_sweep_record(str(folder.parent.parent), "mine", [])
    winner = folder.parent.parent / "run0"
    record.begin(CONFIRMATION, ["adapter.r=16"], winner, RunState.running)
    leave_run(winner, "adapter.r=16", tuned=answers(range(50), 70), system="Test.")
    record.end(CONFIRMATION, Outcome(RunState.complete, "", winner, 20.0, 50 / 70, "exact_match"))


def compared(*arguments, **options):
    command = [sys.executable, "-m", "finetune", "compare", *map(str, arguments)]
    environment = {"COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_a_searchs_trials_are_ranked_on_validation_prompts_and_in_groups(searched):
    [found] = read_sweep(searched).comparisons
    assert found.split == "validation" and [run.trial for run in found.runs] == [0, 6, 1, 5, 3]
    assert found.groups == ["a", "a", "a", "b", "b"]
    assert found.settings[1] == {"adapter.r": 16, "trainer.learning_rate": 3e-4}
    assert found.varying["adapter.r"] == [16, 16, 4, 8, 4]


def test_the_program_tells_ranking_what_mattered_and_what_became_of_the_others(searched, tmp_path):
    told = compared(searched, cwd=tmp_path)
    words = " ".join(told.split())
    assert "Sweep mine, 8 trials: 1 running, 5 complete, 1 pruned, 1 failed" in words
    ranking, others = told.split("Not complete")
    places = [ranking.index(f"trial {number} ") for number in (0, 6, 1, 5, 3)]
    assert places == sorted(places) and "0.667 [" in ranking and "10 paired tests" in ranking
    assert "adapter.r=16 trainer.learning_rate=0.0003" in words and "What mattered (fANOVA" in words
    lines = {line.split()[1]: line for line in others.splitlines() if len(line.split()) > 4}
    assert "pruned" in lines["2"] and PRUNED in lines["2"] and "adapter.r=2" in lines["2"]
    assert "failed" in lines["4"] and "ValueError: something broke" in lines["4"] and "Traceback" not in others
    assert "running" in lines["7"] and "On the test prompts" not in told


def test_a_winner_that_has_answered_the_test_prompts_is_named_and_its_trial_stays_among_the_others(searched):
    confirmed(searched)
    result = read_sweep(searched)
    assert [run.trial for run in result.comparisons[0].runs] == [0, 6, 1, 5, 3] and len(result.comparisons) == 1
    assert result.verdict.startswith("On the test prompts, trial 0: Tuning beats zero-shot prompting by 0.71")


def test_a_sweep_is_compared_before_its_first_trial_is_complete(tmp_path):
    record = open_sweep_record(str(tmp_path), "new", [])
    record.begin(0, ["adapter.r=8"], tmp_path / "first", RunState.running)
    record.begin(1, ["adapter.r=4"], None, RunState.waiting)
    told = compared(record.folder)
    assert "2 trials: 1 waiting, 1 running" in told and "adapter.r=8" in told
    write_sweep_report(show_ranking(record.folder), Tracking(enabled=False))
    assert "adapter.r=8" in (record.folder / "report.html").read_text()


def test_a_grids_trials_are_ranked_on_the_test_prompts(tmp_path):
    record = open_sweep_record(str(tmp_path), "grid", [])
    for number, right in enumerate((10, 50)):
        folder = leave_run(tmp_path / f"run{number}", f"seed={number}", tuned=answers(range(right), 60))
        record.begin(number, ["model=mine", f"seed={number}"], folder, RunState.running)
        record.end(number, Outcome(RunState.complete, "", folder, 1.0, right / 60, "exact_match"))
    told = compared(record.folder)
    assert "2 runs on 60 test prompts" in told and told.index("trial 1") < told.index("trial 0")
    assert "seed=1" in told and "model=mine" not in told
    runs, _ = find_runs([str(tmp_path)])  # a folder of runs beside a sweep's
    assert [one.name for one in runs] == ["run0", "run1"]
    assert list(run_folders(str(record.folder))) == [record.folder, tmp_path / "run0", tmp_path / "run1"]


def test_with_many_runs_only_the_best_is_tested_against_the_others(tmp_path):
    for number in range(14):
        right = range(number, 60) if number < 3 else range(10)
        leave_run(tmp_path / f"run{number:02}", f"seed={number}", tuned=answers(right, 60))
    [found] = compare_runs(find_runs([str(tmp_path)])[0])
    assert (
        found.groups == ["a"] * 3 + [""] * 11 and "the letter a" in found.correction and "13 paired" in found.correction
    )


def test_the_page_of_a_search_shows_all_trials_and_draws_without_errors(searched, browser, tmp_path):
    confirmed(searched)
    file = tmp_path / "page.html"
    compared(searched, "--html", file)
    assert drawn(browser, file) == []
    titles = browser.evaluate("[...document.querySelectorAll('.figure .gtitle')].map(one => one.textContent)")
    for title in ("Score by trial", "Settings and score", "Importance of the settings", "Loss by tokens"):
        assert any(one.startswith(title) for one in titles), titles
    assert browser.inner_text(".verdict").startswith("On the test prompts, trial 0: Tuning beats")
    figures = {one.layout.title.text: one for one in figures_of(browser)}
    by_trial = {trace["name"]: trace for trace in figures["Score by trial"].data}
    assert list(by_trial["complete"]["x"]) == [0, 1, 3, 5, 6] and list(by_trial["pruned"]["x"]) == [2]
    assert list(by_trial["best so far"]["y"]) == pytest.approx([40 / 60] * 5)
    assert "trial 2 (pruned) validation" in [trace["name"] for trace in figures["Loss by tokens"].data]
    assert PRUNED in browser.inner_text("body") and "ValueError: something broke" in browser.inner_text("body")


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


def figures_of(browser):
    from plotly import io

    texts = browser.evaluate("[...document.querySelectorAll('.figure > script')].map(one => one.textContent)")
    return [io.from_json(text, skip_invalid=True) for text in texts]


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


@pytest.fixture
def wandb_of_its_own(monkeypatch, tmp_path):
    """W&B offline, with no state but the test's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/cache"))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def told_to_wandb(folder):
    """What the one offline part of a run holds: run, config, rows by step, summary, exit code."""
    records = read_records(folder)
    [started], [end] = read(records, "run"), read(records, "exit")
    history = {}
    for row in read(records, "history"):
        history.setdefault(row.step.num, {}).update(values(row.item))
    summary = {key: value for update in read(records, "summary") for key, value in values(update.update).items()}
    return started, values(started.config.update), history, summary, end.exit_code


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_wandb_shows_a_sweep_as_one_group_with_every_trials_own_settings_and_curves_and_a_summary(
    program, tiny_run, tmp_path, wandb_of_its_own
):
    asked = [
        "-m",
        "adapter.r=2,4,8",
        "hydra.launcher.n_jobs=1",
        "sweep.name=ranks",
        "trainer.logging_steps=1",
        "eval.shots=0",
    ]
    done = program(*asked, *tiny_run, "tracking=wandb", "tracking.mode=offline")
    assert done.returncode == 0, done.stderr + done.stdout
    sweep = tmp_path / "outputs/sweeps/ranks"
    assert "3 runs on 4 test prompts" in done.stdout and "cannot be told apart" in done.stdout
    assert f"{sweep}/report.html" in done.stdout and (sweep / "report.html").exists()
    ranks, losses = [], []
    for trial in read_trials(sweep / "sweep.json").values():
        folder = Path(trial.folder)
        started, config, history, summary, code = told_to_wandb(folder)
        assert (started.run_id, started.run_group, started.job_type) == (folder.name, "ranks", "train")
        assert (summary["state"], code) == ("complete", 0)
        assert f"adapter.r={config['adapter']['r']}" in trial.overrides
        own = {row["step"]: row["loss"] for row in rows(folder / "history.jsonl") if "loss" in row}
        assert {step: row["train/loss"] for step, row in history.items() if "train/loss" in row} == own
        ranks.append(config["adapter"]["r"])
        losses.append(tuple(own.values()))
    assert sorted(ranks) == [2, 4, 8] and len(set(losses)) == 3 and len(losses[0]) == 3
    started, config, history, summary, code = told_to_wandb(sweep)
    assert (started.run_id, started.run_group, started.job_type, code) == ("sweep-ranks", "ranks", "sweep", 0)
    [table] = sweep.glob("wandb/offline-run-*/files/media/table/trials*.json")
    table = json.loads(table.read_text())
    known = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["trial"], row["state"], row["adapter.r"]) for row in known] == [
        (0, "complete", 2),
        (1, "complete", 4),
        (2, "complete", 8),
    ]
    assert all(row["low"] <= row["score"] <= row["high"] for row in known)
    plots = {file.name.split("_")[0]: json.loads(file.read_text()) for file in sweep.rglob("*.plotly.json")}
    assert plots["history"]["data"][0]["x"] == [0, 1, 2]
    assert [one["label"] for one in plots["parallel"]["data"][0]["dimensions"]] == ["adapter.r", "field_f1"]


def test_the_summary_of_a_sweep_that_goes_on_is_the_same_run_and_follows_the_users_group(
    searched, tmp_path, wandb_of_its_own
):
    for folder in ("first", "second"):
        tracking = Tracking(mode=compose_config(["tracking.mode=offline"]).tracking.mode, group="ours")
        write_sweep_report(show_ranking(searched), tracking)
        (searched / "wandb").rename(tmp_path / folder)
    ids = []
    for folder in ("first", "second"):
        (tmp_path / folder / "wandb").mkdir()
        for part in (tmp_path / folder).glob("offline-run-*"):
            part.rename(tmp_path / folder / "wandb" / part.name)
        started, _, _, summary, _ = told_to_wandb(tmp_path / folder)
        ids.append((started.run_id, started.run_group))
        assert summary["best/trial"] == 0 and summary["importance/trainer.learning_rate"] > 0.5
    assert ids == [("sweep-mine", "ours")] * 2


def test_a_pruned_trial_leaves_its_curve_and_is_no_crash_in_wandb(tiny_run, tmp_path, wandb_of_its_own):
    """The others of its search did better at the step at which it is first validated."""
    place = str(tmp_path / "study.journal")
    opened = open_study(place, "mine", StudySettings("random", "median", 9, 0, ("score",), True))
    for _ in range(3):
        trial = opened.ask()
        trial.report(0.0, 33)  # percent of its training
        opened.tell(trial, 1.0)
    doomed = opened.ask()
    asked = [f"sweep.study={place}", "sweep.name=mine", f"sweep.trial={doomed.number}", "sweep.pruner=median"]
    asked += ["sweep.on_validation=true", "trainer.eval_steps=1", "trainer.logging_steps=1"]
    config = compose_config([*tiny_run, *asked, "tracking=wandb", "tracking.mode=offline"])
    with pytest.raises(Pruned, match="at step 1: others do better"):
        run.run(config)
    [folder] = (tmp_path / "outputs").iterdir()
    started, _, history, summary, code = told_to_wandb(folder)
    assert (started.run_group, summary["state"], code) == ("mine", "pruned", 0)
    [validated] = [row for row in rows(folder / "history.jsonl") if "eval_loss" in row]
    assert validated["eval_loss"] == history[1]["validation/loss"] and validated["tokens"] > 0
