"""A sweep shows what it has come to, at any time and at its end: in the terminal, in a page, and in W&B."""

import json
import os
import sys
from pathlib import Path

import pytest
from support.comparisons import PRUNED, compare, confirm_best, write_search
from support.pages import drawn
from support.wandb_files import read, read_records, values

import run
from finetune.cli.compose import compose_config
from finetune.config.schema import Tracking
from finetune.runs.outcome import Pruned, RunState
from finetune.runs.sweep_record import open_sweep_record, read_trials
from finetune.search.settings import SearchSettings
from finetune.search.space import read_space
from finetune.search.storage import open_storage
from finetune.search.study import SearchStudy
from finetune.sweeps.report import show_ranking, write_sweep_report


@pytest.fixture
def searched(tmp_path):
    return write_search(tmp_path)


def test_the_program_tells_ranking_what_mattered_and_what_became_of_the_others(searched, tmp_path):
    told = compare(searched, cwd=tmp_path).stdout
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


def test_a_sweep_is_compared_before_its_first_trial_is_complete(tmp_path):
    record = open_sweep_record(str(tmp_path), "new", [])
    record.begin(0, ["adapter.r=8"], tmp_path / "first", RunState.running)
    record.begin(1, ["adapter.r=4"], None, RunState.waiting)
    told = compare(record.folder).stdout
    assert "2 trials: 1 waiting, 1 running" in told and "adapter.r=8" in told
    write_sweep_report(show_ranking(record.folder), Tracking(enabled=False))
    assert "adapter.r=8" in (record.folder / "report.html").read_text()


@pytest.mark.slow
def test_the_page_of_a_search_shows_all_trials_and_draws_without_errors(searched, browser, tmp_path):
    confirm_best(searched)
    file = tmp_path / "page.html"
    assert compare(searched, "--html", file).returncode == 0
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


def figures_of(browser):
    from plotly import io

    texts = browser.evaluate("[...document.querySelectorAll('.figure > script')].map(one => one.textContent)")
    return [io.from_json(text, skip_invalid=True) for text in texts]


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_pruned_trial_leaves_its_curve_and_is_no_crash_in_wandb(tiny_run, tmp_path, wandb_of_its_own):
    """The others of its search did better at the step at which it is first validated."""
    journal, space = str(tmp_path / "study.journal"), read_space({"adapter.r": "4,8"}, [], {})
    study = SearchStudy(open_storage(journal), "mine", space, SearchSettings(), higher_is_better=True).study
    for _ in range(3):
        trial = study.ask()
        trial.report(0.0, 33)  # percent of its training
        study.tell(trial, 1.0)
    pruned = study.ask()
    overrides = [f"sweep.study={journal}", "sweep.name=mine", f"sweep.trial={pruned.number}", "sweep.pruner=median"]
    overrides += ["sweep.on_validation=true", "trainer.eval_steps=1", "trainer.logging_steps=1"]
    config = compose_config([*tiny_run, *overrides, "tracking=wandb", "tracking.mode=offline"])
    with pytest.raises(Pruned, match="at step 1: others do better"):
        run.run(config)
    [folder] = (tmp_path / "outputs").iterdir()
    started, _, history, summary, code = told_to_wandb(folder)
    assert (started.run_group, summary["state"], code) == ("mine", "pruned", 0)
    [validated] = [row for row in rows(folder / "history.jsonl") if "eval_loss" in row]
    assert validated["eval_loss"] == history[1]["validation/loss"] and validated["tokens"] > 0
