"""How do several machines share one study? In a database: each trial is run once, that of a dead worker by another."""

import os
import socket
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Self

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from finetune.errors import UserError
from finetune.runs.outcome import Outcome, RunState
from finetune.search.settings import SearchSettings
from finetune.search.space import Default, Space
from finetune.search.storage import accept_experimental, connect_database, is_shared_storage, open_storage
from finetune.search.study import FIXED, HISTORY, SAME_AS, SearchStudy, attempts, retry_trial

WORKER = "worker"  # noted with a trial


@dataclass
class SharedSearchStudy(SearchStudy):
    """A search of which this process is one of several workers; `n_trials` are those of all."""

    storage: RDBStorage
    worker: str = f"{socket.gethostname()}:{os.getpid()}"
    first_seen: dict[int, float] = field(default_factory=dict)  # when a trial was first seen to run, in seconds

    def enqueue_first(self, default: Default, retried: Collection[RunState] = ()) -> None:
        """Enqueue the defaults, for a grid all of it, unless others have; what failed is not retried."""
        super().enqueue_first(default)
        first: dict[str, int] = {}
        for trial in self._trials():
            if FIXED not in trial.system_attrs or HISTORY in trial.system_attrs:
                continue
            original = first.setdefault(repr(sorted(trial.system_attrs[FIXED].items())), trial.number)
            if original == trial.number or trial.state is not TrialState.WAITING:
                continue
            with suppress(UpdateFinishedTrialError):  # the worker that enqueued it at the same moment was faster
                if self._set_state(trial.number, TrialState.RUNNING):  # only one worker can
                    self.storage.set_trial_user_attr(self._trial_id(trial.number), SAME_AS, original)
                    self._set_state(trial.number, TrialState.FAIL)

    def __next__(self) -> tuple[int, list[str]]:
        """The next trial; while other workers are at the last ones, wait, as one of those may become stale."""
        while True:
            self._retry_stale()
            with suppress(StopIteration):
                return super().__next__()
            if self.open or not self._trials(TrialState.RUNNING):
                raise StopIteration
            time.sleep(1)

    def ask(self) -> optuna.Trial | None:
        """A new trial, or None where it is a duplicate, or others began so many in the meantime that it is surplus."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # `keep_alive` sends them
            trial = self.study.ask()
        first = attempts(self._trials()[trial.number])[0]
        if sum(other < first for other in self._begun()) < self.settings.n_trials:
            return self._suggest(trial)
        self._set_state(trial.number, TrialState.WAITING)
        return None

    def tell(self, number: int, outcome: Outcome, values: list[float] | None) -> None:
        """Remember how a trial ended, unless others retried it; one whose folder another process holds waits again."""
        if outcome.state is RunState.busy:
            self.open.remove(number)
            self._set_state(number, TrialState.WAITING)
            return
        with suppress(UpdateFinishedTrialError):
            folder = outcome.folder and outcome.folder.absolute()
            super().tell(number, replace(outcome, folder=folder), values)

    @contextmanager
    def keep_alive(self) -> Iterator[Self]:
        """Send heartbeats to those who share the study, for the length of the block."""
        ended = Event()

        def beat() -> None:
            while not ended.wait(self.settings.heartbeat_seconds / 2):
                with suppress(Exception):  # the database may be out of reach for a while
                    self._send_heartbeats()

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()

    def _begin(self, trial: optuna.Trial | FrozenTrial) -> tuple[int, list[str]]:
        job = super()._begin(trial)
        self._send_heartbeats()
        self._note(trial.number, WORKER, self.worker)
        return job

    def _send_heartbeats(self) -> None:
        for number in list(self.open):
            self.storage.record_heartbeat(self._trial_id(number))

    def _set_state(self, number: int, state: TrialState) -> bool:
        return self.storage.set_trial_state_values(self._trial_id(number), state)

    def _begun(self) -> set[int]:
        """The numbers of the trials that were begun; what two workers enqueued at the same moment counts once."""
        duplicates = [trial for trial in self._trials() if SAME_AS in trial.user_attrs]
        return super()._begun() - {trial.number for trial in duplicates if FIXED in trial.system_attrs}

    def _retry_stale(self) -> None:
        """Fail the trials of workers that give no sign of life, and enqueue them again."""
        with accept_experimental():
            fail_stale_trials(self.study)
        now = time.monotonic()
        for trial in self._trials(TrialState.RUNNING):  # of a worker that died before its first heartbeat
            is_stale = now - self.first_seen.setdefault(trial.number, now) > 2 * self.settings.heartbeat_seconds
            if is_stale and WORKER not in trial.user_attrs and trial.number not in self.open:
                with suppress(UpdateFinishedTrialError):
                    self._set_state(trial.number, TrialState.FAIL)
                    retry_trial(self.study, trial)


@contextmanager
def open_search(
    storage_url: str, folder: Path, space: Space, settings: SearchSettings, higher_is_better: bool
) -> Iterator[SearchStudy]:
    """The search, for the length of the block: a study in a file is locked, those who share another get heartbeats."""
    rest = folder.name, space, settings, higher_is_better
    if is_shared_storage(storage_url):
        database = connect_database(storage_url, settings.heartbeat_seconds, retry_trial)
        with SharedSearchStudy(database, *rest).keep_alive() as search:
            yield search
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".search").acquire(timeout=0)
    except Timeout as error:
        message = f"{folder}: another search is at this study. Wait for it, or choose another sweep.name."
        raise UserError(message) from error
    with lock:
        yield SearchStudy(open_storage(storage_url), *rest)
