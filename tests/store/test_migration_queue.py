"""Jobs that were there before priorities and due days get theirs from their requests."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from app.store import jobs, session, tables
from app.store.session import transaction
from tests import factories
from tests.store.conftest import World


def test_rows_outlive_the_way_down_and_up(store: World) -> None:
    with transaction() as made:
        model = factories.a_model(made, store.tenant)
        request = factories.a_request(made, store.tenant, model.id)
    config = Config()
    config.set_main_option("script_location", str(session.MIGRATIONS))
    command.downgrade(config, "0004")
    with transaction() as old:
        columns = old.execute(text("select * from jobs")).keys()
        assert not {"due_at", "priority", "checkpoint_blob", "held_for"} & {*columns}
    session.upgrade()
    with transaction() as found:
        job = jobs.get(found, store.tenant, request.job_id)
        again = found.get_one(tables.Request, (store.tenant, request.id))
        assert (job.priority, job.due_at, job.retry_of_id) == (0, again.due_at, None)
