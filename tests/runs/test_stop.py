"""What a signal asks of a run, and what it does not hide."""

import os
import signal

import pytest

from finetune.cli.compose import compose_config
from finetune.runs.files import DiskFullError
from finetune.runs.outcome import Preempted
from finetune.runs.result import read_result
from finetune.runs.stop import catch_signals


def stop_within(tmp_path, error):
    """A run that is asked to stop behind its step, in which an error is raised."""
    with catch_signals(compose_config(["name=one"]), tmp_path / "one") as request:
        request.waits_for_step = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert str(request.stop) == "SIGTERM"
        raise error


def test_an_error_behind_a_signal_is_taken_for_its_effect_unless_it_has_a_reason_of_its_own(tmp_path):
    with pytest.raises(Preempted):  # as where the signal ended a data loader's process, too
        stop_within(tmp_path, RuntimeError("DataLoader worker was killed"))
    assert read_result(tmp_path / "one" / "result.json").status == "preempted"
    for error in (DiskFullError("no room for the checkpoint"), FloatingPointError("it diverged")):
        with pytest.raises(type(error)):
            stop_within(tmp_path, error)


def test_a_second_signal_ends_the_run_at_once(tmp_path):
    def stop_twice():
        with catch_signals(compose_config(["name=one"]), tmp_path / "one") as request:
            request.waits_for_step = True
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.raises(Preempted, match="SIGUSR1"):
        stop_twice()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
