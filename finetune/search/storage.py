"""Where is a study kept? In a file of one search, or in a database that the workers of several machines share."""

import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.errors import UserError, names_secret

EXAMPLE = "postgresql+psycopg://USER@HOST/DATABASE"
# Workers that begin at the same moment may both make the tables of a new database; one of them has to try again.
TRIES = 5
# Studies in files that are read already, by path: a trial that is forked reads on from there.
ready: dict[str, Any] = {}


def is_shared_storage(place: str) -> bool:
    """Whether other machines may work on the study, too: whether it is in a database."""
    return "://" in place


def check_storage(place: str, heartbeat_seconds: int) -> None:
    """Raise UserError for a URL that is none or holds a password, and for heartbeats that cannot be."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if heartbeat_seconds < 1:
        raise UserError(f"hydra.sweeper.heartbeat_seconds={heartbeat_seconds}: expected at least 1.")
    if not is_shared_storage(place):
        return
    try:
        url = make_url(place)
    except ArgumentError as error:
        raise UserError(f"hydra.sweeper.storage={place}: it is no URL of a database. Write {EXAMPLE}.") from error
    if url.password or any(names_secret(key) for key in url.query):
        raise UserError(
            "hydra.sweeper.storage: a password does not belong in a configuration. Leave it out of the URL, and set "
            "PGPASSWORD in the environment or write it to ~/.pgpass."
        )


def connect_storage(place: str, heartbeat_seconds: int, on_stale: Callable[..., None]) -> Any:
    """The storage at a path or URL; `on_stale(study, trial)` is called for the trial of a worker that fell silent.

    Raises UserError where the database cannot be reached.
    """
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        return open_storage(place, heartbeat_seconds, on_stale)
    except ImportError as error:
        told = "its driver is not installed. For PostgreSQL: pip install -c constraints.txt -e '.[postgresql]'."
        raise UserError(f"hydra.sweeper.storage={place}: {told}") from error
    except ArgumentError as error:
        raise UserError(f"hydra.sweeper.storage={place}: {error}. Write {EXAMPLE}.") from error
    except SQLAlchemyError as error:
        why = " ".join(str(getattr(error, "orig", error)).split())
        raise UserError(f"hydra.sweeper.storage={place}: the database cannot be used: {why}.") from error


def read_ahead(place: str) -> None:
    """Read a study in a file, as far as it is written by now, for the processes that are forked from this one."""
    import optuna.storages  # noqa: F401 (0.2 s)

    if place in ready:
        ready[place].get_all_studies()
    elif not is_shared_storage(place):
        ready.clear()
        ready[place] = open_storage(place)


def open_storage(place: str, heartbeat_seconds: int | None = None, on_stale: Callable[..., None] | None = None) -> Any:
    """The storage at a path or URL; without heartbeats, it tells nobody that its user is alive."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    if known := ready.pop(place, None):
        known._replay_result._worker_id_prefix = f"{uuid.uuid4()}-"  # else forked processes would seem to be one
        return known
    if not is_shared_storage(place):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(place))
    alive = {"pool_pre_ping": True}  # a trial may last longer than a connection that nobody uses
    left = TRIES
    while True:
        left -= 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return RDBStorage(
                    place, alive, heartbeat_interval=heartbeat_seconds, heartbeat_stale_trial_callback=on_stale
                )
        except SQLAlchemyError as error:
            if isinstance(error, ArgumentError) or not left:
                raise
            time.sleep(1)
