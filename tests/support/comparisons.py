"""Runs and sweeps to compare, and the command that compares them."""

import subprocess
import sys
from pathlib import Path

from finetune.runs.outcome import Outcome, RunState
from finetune.runs.sweep_record import CONFIRMATION, open_sweep_record
from support.run_folders import answers, write_run

ROOT = Path(__file__).parents[2]
# Of the search below: trial -> rank, learning rate, and how many of 60 prompts it answers rightly.
COMPLETE = {0: (16, 1e-3, 40), 1: (4, 1e-3, 38), 3: (4, 1e-4, 12), 5: (8, 1e-4, 15), 6: (16, 3e-4, 39)}
PRUNED = "validation loss 2.000 at step 20: others do better"


def write_three_runs(folder):
    """Two seeds of a setting and a setting that is clearly worse, on the same 60 prompts."""
    write_run(folder / "first", "seed=1", tuned=answers(range(45), 60))
    write_run(folder / "second", "seed=2", tuned=answers(range(3, 46), 60))
    write_run(folder / "worse", "adapter.r=2", tuned=answers(range(15), 60))
    return folder


def write_search(folder):
    """A search that has five complete trials, a pruned one, one that failed, and one that runs; its folder."""
    record = open_sweep_record(str(folder), "mine", ["sweep=lora_basics"])
    common = ["data.metrics=[exact_match]", "sweep.name=mine", "sweep.on_validation=true"]
    for number in range(8):
        rank, rate, right = COMPLETE.get(number, (2, 1e-5, 0))
        point = [f"adapter.r={rank}", f"trainer.learning_rate={rate}"]
        trial = folder / f"run{number}"
        record.begin(number, [*common, *point, f"sweep.trial={number}"], trial, RunState.running)
        if number in COMPLETE:
            write_run(trial, *point, tuned=answers(range(right), 60), split="validation")
            record.end(number, Outcome(RunState.complete, "", trial, 10.0, right / 60, "exact_match"))
    record.end(2, Outcome(RunState.pruned, PRUNED, folder / "run2", 5.0))
    record.end(4, Outcome(RunState.failed, "Traceback\n  ...\nValueError: something broke", folder / "run4", 2.0))
    (folder / "run2").mkdir()
    (folder / "run2/history.jsonl").write_text('{"step": 20, "eval_loss": 2.0, "tokens": 5, "train_seconds": 1.0}\n')
    return record.folder


def confirm_best(search):
    """Let the best trial of the search answer the test prompts, as a search does at its end."""
    outputs = search.parent.parent
    record = open_sweep_record(str(outputs), "mine", [])
    record.begin(CONFIRMATION, ["adapter.r=16"], outputs / "run0", RunState.running)
    write_run(outputs / "run0", "adapter.r=16", tuned=answers(range(50), 70), system="Test.")
    record.end(CONFIRMATION, Outcome(RunState.complete, "", outputs / "run0", 20.0, 50 / 70, "exact_match"))


def compare(*arguments, cwd=ROOT):
    """What `python -m finetune compare ARGUMENTS` answers on a wide terminal."""
    command = [sys.executable, "-m", "finetune", "compare", *map(str, arguments)]
    environment = {"COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
