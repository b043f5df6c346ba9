import pytest

from finetune.schema import UserError
from finetune.slots import Share, slots


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")


@pytest.mark.parametrize(
    ("share", "devices", "trials", "room", "threads"),
    [
        (Share(), 0, None, [None] * 8, 1),
        (Share(), 0, 3, [None] * 3, 2),
        (Share(), 0, 1, [None], 8),
        (Share(), 0, 100, [None] * 8, 1),
        (Share(n_jobs=2), 0, 100, [None] * 2, 4),
        (Share(), 4, 100, [0, 1, 2, 3], 2),
        (Share(devices=[1, 3]), 4, 100, [1, 3], 4),
        (Share(devices=[1, 1]), 4, 100, [1, 1], 4),
        (Share(n_jobs=4), 2, 100, [0, 1, 0, 1], 2),
        (Share(n_jobs=1), 2, 100, [0], 8),
    ],
)
def test_the_machine_is_divided_among_the_trials(share, devices, trials, room, threads):
    assert slots(share, devices, trials) == (room, threads)


@pytest.mark.parametrize(
    ("share", "devices", "told"),
    [(Share(devices=[2]), 2, "there is no device 2; there are 2"), (Share(devices=[0]), 0, "there is no GPU")],
)
def test_a_device_that_is_not_there_is_told(share, devices, told):
    with pytest.raises(UserError, match=told):
        slots(share, devices)
