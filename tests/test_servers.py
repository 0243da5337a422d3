"""The servers that other tests stand on are real, empty and our own."""

from __future__ import annotations

import pytest
import redis
import sqlalchemy

from tests import servers


@pytest.mark.postgres
def test_the_database_is_a_fresh_postgresql_of_our_own(postgres_url: str) -> None:
    engine = sqlalchemy.create_engine(postgres_url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        (version,) = connection.execute(sqlalchemy.text("SHOW server_version_num")).one()
        assert int(version) >= 150000
        assert (
            connection.execute(
                sqlalchemy.text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            ).scalar()
            == 0
        )
        assert str(engine.url.database).startswith("lethe_")


@pytest.mark.redis
def test_the_broker_is_a_redis_of_our_own(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("key", "value")
        assert client.get("key") == b"value"
        client.delete("key")


def test_a_missing_server_is_a_skip_that_can_be_made_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(servers.REQUIRE_SERVERS, raising=False)
    with pytest.raises(pytest.skip.Exception, match="Redis"):
        servers.do_without("Redis", OSError("refused"))
    monkeypatch.setenv(servers.REQUIRE_SERVERS, "1")
    with pytest.raises(pytest.fail.Exception, match="Redis"):
        servers.do_without("Redis", OSError("refused"))
