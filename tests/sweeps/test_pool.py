import signal
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.cli.compose import compose_config
from finetune.errors import UserError
from finetune.machine.allowance import GIB, Fit
from finetune.runs.outcome import RunState
from finetune.sweeps.fork_client import DeviceShare, TrialCost
from finetune.sweeps.pool import LauncherSettings, TrialProcess, divide_devices, limit_to_memory, share_memory


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")


@pytest.mark.parametrize(
    ("share", "devices", "trials", "room", "threads"),
    [
        (LauncherSettings(), 0, None, [None] * 8, 1),
        (LauncherSettings(), 0, 3, [None] * 3, 2),
        (LauncherSettings(), 0, 1, [None], 8),
        (LauncherSettings(), 0, 100, [None] * 8, 1),
        (LauncherSettings(n_jobs=2), 0, 100, [None] * 2, 4),
        (LauncherSettings(), 4, 100, [0, 1, 2, 3], 2),
        (LauncherSettings(devices=[1, 3]), 4, 100, [1, 3], 4),
        (LauncherSettings(devices=[1, 1]), 4, 100, [1, 1], 4),
        (LauncherSettings(n_jobs=4), 2, 100, [0, 1, 0, 1], 2),
        (LauncherSettings(n_jobs=1), 2, 100, [0], 8),
    ],
)
def test_the_machine_is_divided_among_the_trials(share, devices, trials, room, threads):
    shares = [DeviceShare(threads, device, room.count(device)) for device in room]
    assert divide_devices(share, devices, trials) == shares


@pytest.mark.parametrize(
    ("share", "devices", "told"),
    [
        (LauncherSettings(devices=[2]), 2, "there is no device 2; there are 2"),
        (LauncherSettings(devices=[0]), 0, "there is no GPU"),
    ],
)
def test_a_device_that_is_not_there_is_told(share, devices, told):
    with pytest.raises(UserError, match=told):
        divide_devices(share, devices)


def test_no_more_trials_run_at_a_time_than_memory_has_room_for():
    assert divide_devices(LauncherSettings(), 0, 100, most=3) == [DeviceShare(2, None, 3)] * 3
    assert divide_devices(LauncherSettings(n_jobs=4), 0, 100, most=3) == [DeviceShare(2, None, 4)] * 4


@pytest.mark.parametrize(
    ("settings", "devices", "gib", "most"),
    [
        (LauncherSettings(), 0, 3, 4),
        (LauncherSettings(), 0, 1, None),
        (LauncherSettings(n_jobs=8), 0, 3, None),
        (LauncherSettings(), 8, 3, None),
    ],
)
def test_cores_stay_idle_where_as_many_trials_would_not_fit(settings, devices, gib, most):
    cost = TrialCost(1.0, gib * GIB, 2 * GIB, Fit.will_not_fit, True)
    small = replace(cost, peak_bytes=GIB // 2)
    shares = divide_devices(settings, devices, 100)
    assert len(shares) == 8
    assert limit_to_memory({"a": cost, "b": small}, shares, settings) == most
    assert limit_to_memory({}, shares, settings) is None


def test_fewer_trials_at_a_time_have_more_memory_each():
    cost = TrialCost(1.0, 3 * GIB, 2 * GIB, Fit.will_not_fit, True)
    assert share_memory(cost, 8, 4) == TrialCost(1.0, 3 * GIB, 4 * GIB, Fit.fits, True)


@pytest.mark.parametrize("n_jobs", [0, -1])
def test_no_trials_at_a_time_are_refused(n_jobs):
    with pytest.raises(UserError, match=f"hydra.launcher.n_jobs={n_jobs}: it must be at least 1"):
        divide_devices(LauncherSettings(n_jobs=n_jobs), 0, 4)


STOPPED = RunState.preempted, "stopped by SIGTERM"


@pytest.mark.parametrize(
    ("changed", "status", "state", "reason"),
    [
        ({}, 3 << 8, RunState.exited, "its process ended itself with code 3"),
        ({}, signal.SIGSEGV, RunState.killed, "signal 11 (SIGSEGV) ended it"),
        ({"kills": -1}, signal.SIGKILL, RunState.out_of_memory, "the system killed it, because memory ran out"),
        ({"ending_since": 1.0}, signal.SIGTERM, RunState.timed_out, "it took longer than sweep.time_limit=9 seconds"),
        ({"conclusion": (RunState.failed, "why"), "ending_since": 1.0}, signal.SIGTERM, RunState.failed, "why"),
        (
            {"conclusion": STOPPED, "ending_since": 1.0},
            0,
            RunState.timed_out,
            "it took longer than sweep.time_limit=9 seconds",
        ),
        ({"conclusion": STOPPED, "ending_since": 1.0, "is_stopped": True}, 0, *STOPPED),
        ({"conclusion": STOPPED}, 0, *STOPPED),  # by a signal that was not the sweep's
        (
            {"ending_since": 1.0, "is_stopped": True},
            signal.SIGKILL,
            RunState.preempted,
            "the sweep was stopped; it had not ended its step in time",
        ),
    ],
)
def test_how_a_trial_ended_follows_from_what_it_said_and_what_was_done_to_it(changed, status, state, reason):
    config = compose_config(["sweep.time_limit=9"])
    trial = TrialProcess(0, config, Path(), DeviceShare(1, None, 1), started=0.0, kills=2**62)
    for name, value in changed.items():
        setattr(trial, name, value)
    assert trial.ending(status) == (state, reason)
