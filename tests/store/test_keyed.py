"""The pepper belongs to the database that it was first used with."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import select

from app.settings import Settings
from app.store import keyed, tables
from app.store import session as sessions
from app.store.session import reading, transaction
from tests import factories
from tests.store.conftest import PEPPER, World


def use_pepper(store: World, pepper: str) -> None:
    changed = store.settings.model_dump() | {"pepper": pepper}
    sessions.configure(Settings.model_validate(changed))


def test_the_first_pepper_is_the_only_one(store: World) -> None:
    assert [keyed.pepper_fault() for _ in range(2)] == [None, None]
    use_pepper(store, "q" * 40)
    assert "is not the one" in str(keyed.pepper_fault())
    use_pepper(store, PEPPER)
    assert keyed.pepper_fault() is None


def test_of_racing_processes_one_is_first(store: World) -> None:
    kept: list[str] = []
    race = threading.Barrier(4)

    def note(mine: str) -> None:
        race.wait()
        kept.append(keyed._noted(mine))

    threads = [threading.Thread(target=note, args=(each * 64,)) for each in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading() as session:
        assert kept == [session.scalars(select(tables.PepperCheck.digest)).one()] * 4


def test_a_database_from_before_gets_it(store: World) -> None:
    config = Config()
    config.set_main_option("script_location", str(sessions.MIGRATIONS))
    command.downgrade(config, "0010")
    sessions.upgrade()
    assert keyed.pepper_fault() is None
    use_pepper(store, "q" * 40)
    assert keyed.pepper_fault() is not None


@pytest.mark.parametrize("is_noted", [True, False])
def test_a_lost_pepper_is_not_made_anew(tmp_path: Path, migrated: Path, is_noted: bool) -> None:
    shutil.copy(migrated, tmp_path / "lethe.db")
    sessions.configure(Settings(data_dir=tmp_path, database_url=""))
    try:
        file = tmp_path / "pepper"
        assert keyed.pepper_fault() is None
        assert file.exists()
        with transaction() as session:
            factories.a_tenant(session)
            if not is_noted:
                session.execute(tables.PepperCheck.__table__.delete())
        file.unlink()
        assert "is missing" in str(keyed.pepper_fault())
        assert not file.exists()
    finally:
        sessions.configure(None)
