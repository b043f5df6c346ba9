from types import SimpleNamespace

import pytest

from finetune.errors import UserError
from finetune.sweeps.jobs import TrialCost
from finetune.sweeps.pool import LauncherSettings, TrialPool, divide_devices

GIB = 2**30


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
    assert divide_devices(share, devices, trials) == (room, threads)


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
    assert divide_devices(LauncherSettings(), 0, 100, most=3) == ([None] * 3, 2)
    assert divide_devices(LauncherSettings(n_jobs=4), 0, 100, most=3) == ([None] * 4, 2)


@pytest.mark.parametrize(
    ("share", "at_a_time", "verdict"),
    [(LauncherSettings(), 4, "fits"), (LauncherSettings(n_jobs=8), 8, "will not fit")],
)
def test_cores_stay_idle_where_as_many_trials_would_not_fit(share, at_a_time, verdict):
    pool = TrialPool(SimpleNamespace(start=lambda: 0), None, None, share)
    pool._divide()
    assert len(pool.slots) == 8
    pool.costs = {"a": TrialCost(1.0, 3 * GIB, 2 * GIB, "will not fit", True)}
    pool._leave_room()
    assert len(pool.slots) == at_a_time and pool.costs["a"].verdict == verdict


@pytest.mark.parametrize("n_jobs", [0, -1])
def test_no_trials_at_a_time_are_refused(n_jobs):
    with pytest.raises(UserError, match=f"hydra.launcher.n_jobs={n_jobs}: it must be at least 1"):
        divide_devices(LauncherSettings(n_jobs=n_jobs), 0, 4)
