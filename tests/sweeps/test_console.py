"""A sweep shows each trial that ended, what they will cost, and a live table of how far it is."""

from dataclasses import replace

import pytest
from rich.console import Console

from finetune.machine.allowance import GIB, Fit
from finetune.runs.outcome import Outcome, RunState
from finetune.runs.sweep_record import open_sweep_record
from finetune.sweeps.console import SweepConsole
from finetune.sweeps.fork_client import TrialCost

COST = TrialCost(60.0, 2 * GIB, 8 * GIB, Fit.fits, measured=True)


@pytest.fixture
def console(tmp_path):
    """Of a sweep of four trials, two of which are begun."""
    record = open_sweep_record(str(tmp_path), "mine", ["tracking=none"])
    for number in (0, 1):
        record.begin(number, ["tracking=none", f"data.metrics=[m{number}]", "sweep.name=mine"], None, RunState.running)
    return SweepConsole(record, total=4)


def end(console, number, outcome):
    console.record.end(number, outcome)
    console.ended(number, outcome)


def live(console):
    terminal = Console(width=120)
    with terminal.capture() as capture:
        terminal.print(console.live.get_renderable())
    return capture.get()


def test_a_trial_that_ended_is_one_line_with_what_sets_it_apart_and_its_reason(console, capsys):
    end(console, 0, Outcome(RunState.complete, "", None, 150.0, 0.5, "field_f1"))
    end(console, 1, Outcome(RunState.diverged, "The loss is [nan].\n", None, 3.0, known=True))
    assert capsys.readouterr().out.splitlines() == [
        "trial 0 data.metrics=[m0]: complete field_f1 0.500 in 2 min",
        "trial 1 data.metrics=[m1]: diverged, as known from before (sweep.repeat_failures=true tries it again)",
        "The loss is [nan].",
    ]


def test_the_costs_are_those_of_all_trials_and_of_the_largest(console, capsys):
    console.show_costs([COST, replace(COST, peak_bytes=6 * GIB)], trials=4, at_a_time=2)
    assert capsys.readouterr().out == (
        "4 trials to run, 2 at a time: about 2 min. The largest needs 6.00 of 8.00 GiB: fits.\n"
    )
    console.show_costs([replace(COST, measured=False)], trials=4, at_a_time=1)
    assert "at least 4 min" in capsys.readouterr().out


@pytest.mark.parametrize(("metric", "best"), [("field_f1", "0.500 best"), ("perplexity", "0.200 best")])
def test_the_live_table_shows_progress_and_the_best_so_far(console, metric, best):
    end(console, 0, Outcome(RunState.complete, "", None, 30.0, 0.5, metric))
    end(console, 1, Outcome(RunState.complete, "", None, 90.0, 0.2, metric))
    console.record.begin(2, ["adapter.r=[4]"], None, RunState.running)
    console.began(2)
    console.show({2: (0.0, "step 3/9 [x]")})
    shown = live(console)
    assert "2 of 4 trials · about 2 min left" in shown and best in shown and shown.count("best") == 1
    assert "adapter.r=[4]" in shown and "running" in shown and "step 3/9 [x]" in shown


def test_failures_are_counted_and_shown_by_their_last_line(console):
    end(console, 0, Outcome(RunState.failed, "Traceback\nValueError: broken\n", None, 1.0))
    shown = live(console)
    assert "1 of 4 trials · 1 failed" in shown and "ValueError: broken" in shown and "Traceback" not in shown
