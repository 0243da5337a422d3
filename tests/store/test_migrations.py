"""The migrations make exactly the tables that the code expects."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from app.store import isolation, workers
from app.store import session as sessions
from app.store.session import MIGRATIONS, reading, transaction
from tests.store.conftest import World, settings_of


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def test_nothing_is_left_to_generate(store: World) -> None:
    """Raises if a table, a column, a type, an index or a constraint differs."""
    command.check(_config())


def test_at_head_only_after_the_upgrade(tmp_path: Path) -> None:
    sessions.configure(settings_of(tmp_path))
    try:
        assert not sessions.at_head()
        sessions.upgrade()
        assert sessions.at_head()
    finally:
        sessions.configure(None)


def test_the_schema_of_the_next_release_is_served(sqlite_store: World) -> None:
    for revision, served in (("of_the_next_release", True), ("0001", False)):
        with sessions.engine().begin() as connection:
            connection.exec_driver_sql(f"update alembic_version set version_num = '{revision}'")
        assert sessions.at_head() is served


def test_down_and_up_again(store: World) -> None:
    command.downgrade(_config(), "base")
    assert inspect(sessions.engine()).get_table_names() == ["alembic_version"]
    sessions.upgrade()
    assert sessions.at_head()


def test_a_living_worker_outlives_the_way_down_and_up(store: World) -> None:
    """Nothing was seen by a worker of the release before; it is live all the same."""
    with transaction() as session:
        workers.seen(session, "w", "celery", 1, scratch_free_share=0.5, missing_blobs=3)
    command.downgrade(_config(), "0012")
    command.upgrade(_config(), "head")
    with reading() as session:
        (worker,) = workers.live(session)
    assert (worker.id, worker.scratch_free_share, worker.missing_blobs) == ("w", None, None)


@pytest.mark.postgres
@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_step_may_take_longer_than_a_statement(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def protect(connection: Connection) -> None:
        connection.execute(text("select pg_sleep(1)"))

    monkeypatch.setattr(sessions, "POSTGRES_OPTIONS", "-c statement_timeout=500ms")
    monkeypatch.setattr(isolation, "protect", protect)
    sessions.configure(store.settings)
    sessions.upgrade()
