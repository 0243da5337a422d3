"""The thirteenth migration on a database that holds something."""

from __future__ import annotations

from alembic import command
from alembic.config import Config

from app.store import tables
from app.store.session import MIGRATIONS, reading, transaction
from tests import factories
from tests.store.conftest import World


def test_rows_outlive_the_way_down_and_up(store: World) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with transaction() as session:
        model = factories.a_model(session, store.tenant, has_batchnorm=True)
    command.downgrade(config, "0013")
    command.upgrade(config, "head")
    with reading() as session:
        found = session.get_one(tables.Model, (store.tenant, model.id))
        version = session.get_one(tables.Version, (store.tenant, model.current_version_id))
        assert found.has_batchnorm is None
        assert version.importance_blob is not None
        assert version.importance is None
    command.check(config)
