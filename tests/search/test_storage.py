"""A storage is checked before it is opened, and one that was read ahead is read on."""

import optuna
import pytest

from finetune.errors import UserError
from finetune.search.storage import check_storage, connect_database, open_storage, read_ahead


def test_a_study_in_a_file_that_was_read_ahead_is_read_on_under_a_name_of_its_own(tmp_path):
    path = str(tmp_path / "study.journal")
    study = optuna.create_study(storage=open_storage(path), study_name="s")
    first = read_ahead(path, {})
    study.ask()
    assert read_ahead(path, first)[path] is first[path] is open_storage(path, first)
    again = optuna.load_study(storage=open_storage(path, first), study_name="s")
    assert len(again.trials) == 1 and again.ask().number == 1 and study.ask().number == 2


def test_of_several_studies_the_last_is_held_and_a_database_is_not(tmp_path):
    one, other = (str(tmp_path / name) for name in ("one.journal", "other.journal"))
    assert list(read_ahead(other, read_ahead(one, {}))) == [other]
    assert read_ahead("sqlite:///study.db", {}) == {}


@pytest.mark.parametrize(
    ("place", "seconds", "message"),
    [
        ("postgresql+psycopg://me:secret@host/db", 60, "a password does not belong in a configuration"),
        ("postgresql+psycopg://me@host/db?password=secret", 60, "PGPASSWORD"),
        ("://", 60, "it is no URL of a database. Write postgresql+psycopg://"),
        ("study.journal", 0, "hydra.sweeper.heartbeat_seconds=0: expected at least 1"),
    ],
)
def test_a_database_that_cannot_be_meant_is_refused(place, seconds, message):
    with pytest.raises(UserError, match=message.replace("+", r"\+")) as told:
        check_storage(place, seconds)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("postgresql+psycopg://me@127.0.0.1:1/db", "the database cannot be used: .*onnection refused"),
        ("postgres://me@host/db", "postgresql"),
        ("mysql+pymysql://me@host/db", "its driver is not installed"),
    ],
)
def test_a_database_that_cannot_be_reached_is_told(place, message):
    with pytest.raises(UserError, match=message):
        connect_database(place, 60, print, tries=1)
