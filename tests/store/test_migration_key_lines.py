"""The migration of keys on a database that holds some."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.config import Config

from app.store import keys, tables
from app.store.session import MIGRATIONS, reading, transaction
from tests.store.conftest import World


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def test_keys_outlive_the_way_down_and_up(store: World) -> None:
    with transaction() as session:
        key, secret = keys.create(session, store.tenant, "ci", keys.SCOPES, None)
    command.downgrade(_config(), "0006")
    command.upgrade(_config(), "head")
    with reading() as session:
        found = session.get_one(tables.ApiKey, (store.tenant, key.id))
        assert (found.principal_id, found.networks) == (key.id, [])
        assert keys.authenticate(session, secret).principal == key.id
    command.check(_config())


def test_no_way_down_with_a_bound_key(store: World) -> None:
    with transaction() as session:
        keys.create(session, store.tenant, "ci", keys.SCOPES, None, networks=["10.0.0.0/8"])
    with pytest.raises(RuntimeError, match="good everywhere"):
        command.downgrade(_config(), "0006")
