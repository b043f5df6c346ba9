"""How do several machines share one study? In a database: each trial is run once, that of a dead worker by another."""

import os
import socket
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event, Thread
from typing import TYPE_CHECKING

from finetune.runs.outcome import Outcome, RunState
from finetune.search.space import Default, Space
from finetune.search.storage import accept_experimental
from finetune.search.study import FIXED, HISTORY, SAME_AS, SearchSettings, SearchStudy, first_attempt, retry_trial

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial


WORKER = "worker"  # noted with a trial
WORKER_NAME = f"{socket.gethostname()}:{os.getpid()}"


class SharedSearchStudy(SearchStudy):
    """A search of which this process is one of several workers; `n_trials` are those of all."""

    storage: "RDBStorage"

    def __init__(
        self,
        storage: "RDBStorage",
        name: str,
        space: Space,
        settings: SearchSettings,
        higher_is_better: bool,
        worker: str = WORKER_NAME,
        patience_seconds: float | None = None,
    ) -> None:
        """`patience_seconds`: a trial without a sign of its worker is stale after so long (None: two heartbeats)."""
        seed_offset = zlib.crc32(worker.encode()) // 2  # no worker draws what others draw
        super().__init__(storage, name, space, settings, higher_is_better, seed_offset)
        self.interrupted = []  # what runs may be another worker's
        self.worker = worker
        self.patience = 2.0 * settings.heartbeat_seconds if patience_seconds is None else patience_seconds
        self.first_seen: dict[int, float] = {}  # when a trial was first seen to run

    def enqueue_first(self, default: Default, retried: Collection[RunState] = ()) -> None:
        """Enqueue the defaults, for a grid all of it, unless others have; what failed is not retried."""
        super().enqueue_first(default)
        self._fail_duplicates()

    def __next__(self) -> tuple[int, list[str]]:
        """The next trial; while other workers are at the last ones, wait, as one of those may become stale."""
        while True:
            self._retry_stale()
            with suppress(StopIteration):
                return super().__next__()
            if self.open or not self._trials("RUNNING"):
                raise StopIteration
            time.sleep(1)

    def ask(self) -> "optuna.Trial | None":
        """A new trial, or None where it is a duplicate, or others began so many in the meantime that it is surplus."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # `keep_alive` sends them
            trial = self.study.ask()
        if self._is_surplus(trial.number):
            self._enqueue_again(trial.number)
            return None
        return self._suggest(trial)

    def tell(self, number: int, outcome: Outcome, values: list[float] | None) -> None:
        """Remember how a trial ended, unless others retried it; one whose folder another process holds waits again."""
        from optuna.exceptions import UpdateFinishedTrialError

        if outcome.state is RunState.busy:
            self.open.remove(number)
            self._enqueue_again(number)
            return
        with suppress(UpdateFinishedTrialError):
            folder = outcome.folder and outcome.folder.absolute()
            super().tell(number, replace(outcome, folder=folder), values)

    def describe_trials(self) -> str:
        """How many trials were run, by whomever, and how they ended."""
        trials = [trial for trial in self._trials() if SAME_AS not in trial.user_attrs]
        counts = Counter(trial.state.name.lower() for trial in trials)
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    @contextmanager
    def keep_alive(self) -> Iterator[None]:
        """Send heartbeats to those who share the study, for the length of the block."""
        ended = Event()

        def beat() -> None:
            while not ended.wait(self.settings.heartbeat_seconds / 2):
                with suppress(Exception):  # the database may be out of reach for a while
                    self._send_heartbeats()

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _begin(self, trial: "optuna.Trial | FrozenTrial") -> tuple[int, list[str]]:
        job = super()._begin(trial)
        self._send_heartbeats()
        self._note(trial.number, WORKER, self.worker)
        return job

    def _send_heartbeats(self) -> None:
        for number in list(self.open):
            self.storage.record_heartbeat(self._trial_id(number))

    def _enqueue_again(self, number: int) -> None:
        from optuna.trial import TrialState

        self.storage.set_trial_state_values(self._trial_id(number), TrialState.WAITING)

    def _begun(self) -> set[int]:
        """The numbers of the trials that were begun; what two workers enqueued at the same moment counts once."""
        duplicates = [trial for trial in self._trials() if SAME_AS in trial.user_attrs]
        return super()._begun() - {trial.number for trial in duplicates if FIXED in trial.system_attrs}

    def _is_surplus(self, number: int) -> bool:
        """Whether others began so many trials in the meantime that this one is not needed."""
        first = first_attempt(self._trials()[number])
        return sum(other < first for other in self._begun()) >= self.settings.n_trials

    def _earlier_duplicate(self, number: int) -> "FrozenTrial | None":
        """Another trial of the same settings that is complete or pruned, or that another worker runs."""
        running = (
            trial
            for trial in self._duplicates(number)
            if trial.state.name == "RUNNING" and trial.number < number and trial.number not in self.open
        )
        return super()._earlier_duplicate(number) or next(running, None)

    def _fail_duplicates(self) -> None:
        """End the trials that wait and were enqueued by another worker at the same moment, too."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        first: dict[str, int] = {}
        for trial in self._trials():
            if FIXED not in trial.system_attrs or HISTORY in trial.system_attrs:
                continue
            original = first.setdefault(repr(sorted(trial.system_attrs[FIXED].items())), trial.number)
            if original == trial.number or trial.state is not TrialState.WAITING:
                continue
            with suppress(UpdateFinishedTrialError):  # the other worker was faster
                trial_id = self._trial_id(trial.number)
                if self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):  # only one worker can
                    self.storage.set_trial_user_attr(trial_id, SAME_AS, original)
                    self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _retry_stale(self) -> None:
        """Fail the trials of workers that give no sign of life, and enqueue them again."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.storages import fail_stale_trials
        from optuna.trial import TrialState

        with accept_experimental():
            fail_stale_trials(self.study)
        now = time.monotonic()
        for trial in self._trials("RUNNING"):  # of a worker that died before its first heartbeat
            seconds = now - self.first_seen.setdefault(trial.number, now)
            if WORKER not in trial.user_attrs and trial.number not in self.open and seconds > self.patience:
                with suppress(UpdateFinishedTrialError):
                    self.storage.set_trial_state_values(self._trial_id(trial.number), TrialState.FAIL)
                    retry_trial(self.study, trial)
