"""Where is a study kept? In a file of one search, or in a database that several machines share."""

import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from finetune.errors import UserError
from finetune.secrets import names_secret

if TYPE_CHECKING:
    from optuna.storages import JournalStorage, RDBStorage

Studies = Mapping[str, "JournalStorage"]  # those that were read ahead, by path
EXAMPLE = "postgresql+psycopg://USER@HOST/DATABASE"
# Workers that begin at the same moment may both create the tables of a new database; one of them has to try again.
TRIES = 5


def is_shared_storage(storage_url: str) -> bool:
    """Whether other machines may work on the study, too: whether it is in a database and not in a file."""
    return "://" in storage_url


def check_storage(storage_url: str, heartbeat_seconds: int) -> None:
    """Raise UserError for a URL that is not valid or holds a password, and for a heartbeat below one second."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if heartbeat_seconds < 1:
        raise UserError(f"hydra.sweeper.heartbeat_seconds={heartbeat_seconds}: expected at least 1.")
    if not is_shared_storage(storage_url):
        return
    try:
        url = make_url(storage_url)
    except ArgumentError as error:
        raise UserError(f"hydra.sweeper.storage={storage_url}: it is no URL of a database. Write {EXAMPLE}.") from error
    if url.password or any(names_secret(key) for key in url.query):
        raise UserError(
            "hydra.sweeper.storage: a password does not belong in a configuration. Leave it out of the URL, and set "
            "PGPASSWORD in the environment or write it to ~/.pgpass."
        )


def connect_database(
    url: str, heartbeat_seconds: int | None = None, on_stale: Callable[..., None] | None = None, tries: int = TRIES
) -> "RDBStorage":
    """The database at a URL, or UserError; `on_stale(study, trial)` is called for a trial whose worker died."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    engine = {"pool_pre_ping": True}  # a trial may last longer than an unused connection does
    while True:
        tries -= 1
        try:
            with accept_experimental():
                return RDBStorage(
                    url, engine, heartbeat_interval=heartbeat_seconds, heartbeat_stale_trial_callback=on_stale
                )
        except ImportError as error:
            reason = "its driver is not installed. For PostgreSQL: pip install -c constraints.txt -e '.[postgresql]'."
            raise UserError(f"hydra.sweeper.storage={url}: {reason}") from error
        except ArgumentError as error:
            raise UserError(f"hydra.sweeper.storage={url}: {error}. Write {EXAMPLE}.") from error
        except SQLAlchemyError as error:
            if not tries:
                reason = " ".join(str(getattr(error, "orig", error)).split())
                raise UserError(f"hydra.sweeper.storage={url}: the database cannot be used: {reason}.") from error
            time.sleep(1)


def open_storage(storage_url: str, studies: Studies = MappingProxyType({})) -> "JournalStorage | RDBStorage":
    """The storage at a path or URL, without heartbeats; a file of `studies`, by path, is not read from its start."""
    if is_shared_storage(storage_url):
        return connect_database(storage_url)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    Path(storage_url).parent.mkdir(parents=True, exist_ok=True)
    storage = studies.get(storage_url) or JournalStorage(JournalFileBackend(storage_url))
    # private: optuna, as processes that are forked with one journal would write under one name
    storage._replay_result._worker_id_prefix = f"{uuid.uuid4()}-"
    return storage


def read_ahead(storage_url: str, studies: Studies) -> Studies:
    """The study in a file, read as far as it is written by now, for the processes that are forked from this one."""
    from optuna.storages import JournalStorage  # 0.2 s, which no trial has to wait for

    if is_shared_storage(storage_url):
        return studies
    storage = open_storage(storage_url, studies)
    assert isinstance(storage, JournalStorage)
    storage.get_all_studies()
    return {storage_url: storage}


def accept_experimental() -> AbstractContextManager[object]:
    """Silence Optuna's warnings of what it calls experimental, for the length of the block."""
    from optuna.exceptions import ExperimentalWarning

    return warnings.catch_warnings(action="ignore", category=ExperimentalWarning)
