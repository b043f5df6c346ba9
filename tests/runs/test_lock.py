"""One process is at work in a folder; what a dead one has left there is in nobody's way."""

import os
import platform
import subprocess
import sys
import time

import pytest

from finetune.runs import lock
from finetune.runs.lock import BusyError, is_locked, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from finetune.runs import lock
with lock.lock_folder(Path(sys.argv[1]), float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    """`holder(folder, lease)` starts a process that holds a folder."""
    started = []

    def start(folder, lease=lock.LEASE_SECONDS):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(lease)], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def as_of_another_host(folder):
    """Make the lock look as if it was written by a process of another machine."""
    file = folder / ".lock"
    file.write_text(file.read_text().replace(f"host={platform.node()}", "host=elsewhere"))


def test_another_process_is_named_and_refused_and_one_that_was_killed_does_not_block(tmp_path, holder):
    process = holder(tmp_path)
    assert is_locked(tmp_path)
    message = rf"another process is at this run \(process {process.pid} on {platform.node()}\)"
    with pytest.raises(BusyError, match=message), lock_folder(tmp_path):
        pass
    process.kill()
    process.wait()
    assert not is_locked(tmp_path)
    with lock_folder(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert not (tmp_path / ".lock").exists()


def test_a_process_of_another_host_blocks_for_as_long_as_it_gives_signs_of_life(tmp_path, holder, capsys):
    process = holder(tmp_path, 2.0)
    as_of_another_host(tmp_path)
    started = time.monotonic()
    with pytest.raises(BusyError, match=f"process {process.pid} on elsewhere"), lock_folder(tmp_path, 2.0):
        pass
    assert time.monotonic() - started >= 2.0
    assert f"process {process.pid} on elsewhere was at it" in capsys.readouterr().out
    process.kill()
    process.wait()
    with lock_folder(tmp_path, 2.0):
        assert f"pid={os.getpid()}" in (tmp_path / ".lock").read_text()
