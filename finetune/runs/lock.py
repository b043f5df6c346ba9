"""Who is at work in a run's folder? One process at a time, on whichever machine that sees the folder."""

import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from finetune.errors import UserError

LOCK = ".lock"  # in the run's folder: the process and the host, refreshed for as long as the process lives
LEASE_SECONDS = 20.0  # a process of another host that did not refresh it for so long is taken to be dead


class BusyError(UserError):
    """Another process is at the run, or was while this one began."""


@contextmanager
def lock_folder(folder: Path, lease_seconds: float = LEASE_SECONDS) -> Iterator[None]:
    """Keep a folder for this process for the length of the block; raises BusyError where another one is at it.

    What a process left that was killed on this machine does not block. Whether one on another machine lives is seen
    from whether it refreshes its lock, which takes up to `lease_seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(folder / LOCK, lease_duration=lease_seconds, on_compromise=_stop_this_process)
    try:
        try:
            lease.acquire(timeout=0)
        except Timeout:
            owner = lease.owner
            if owner is None or owner.hostname == platform.node():
                raise
            print(f"{folder}: {_describe(lease)} was at it. Waiting up to {lease_seconds:.0f} s for a sign of life.")
            lease.acquire(timeout=lease_seconds + 2)
    except Timeout as error:
        raise BusyError(
            f"{folder}: another process is at this run ({_describe(lease)}). Wait for it, or choose another name=NAME."
        ) from error
    try:
        yield
    finally:
        lease.release()


def is_locked(folder: Path) -> bool:
    """Whether another process is at work in a folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with SoftFileLease(folder / LOCK, lease_duration=LEASE_SECONDS).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _describe(lease: SoftFileLease) -> str:
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "it has just begun"


def _stop_this_process(_: object) -> None:
    """Another process, to which this one seemed dead, has taken the folder: stop as a scheduler would ask to."""
    os.kill(os.getpid(), signal.SIGTERM)
