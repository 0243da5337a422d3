"""API keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, select

from app import keys as command
from app.store import keys, tables
from app.store import session as sessions
from app.store.errors import Conflict, NotFound, Unauthenticated
from app.store.scopes import ROLES
from app.store.session import reading, transaction
from tests.store.conftest import World, settings_of


def made(store: World, expires_at: datetime | None = None, scopes=keys.SCOPES) -> tuple[str, str]:
    with transaction() as session:
        key, text = keys.create(session, store.tenant, "ci", scopes, expires_at)
    return key.id, text


def authenticate(text: str, address: str | None = None) -> keys.Caller:
    with reading() as session:
        return keys.authenticate(session, text, address)


def test_a_key_opens_its_tenant_with_its_scopes(store: World) -> None:
    key_id, text = made(store, scopes=["jobs:read"])
    assert authenticate(text) == keys.Caller(store.tenant, key_id, frozenset({"jobs:read"}), key_id)


def test_the_secret_is_stored_nowhere(sqlite_store: World) -> None:
    _, text = made(sqlite_store)
    with reading() as session:
        row = session.scalars(select(tables.ApiKey)).one()
    stored = " ".join(str(getattr(row, column.key)) for column in tables.ApiKey.__table__.columns)
    assert text.split("_")[2][:43] not in stored


def test_a_wrong_checksum_is_refused_without_a_query(sqlite_store: World) -> None:
    _, text = made(sqlite_store)
    statements: list[str] = []
    event.listen(
        sessions.engine(), "before_cursor_execute", lambda *each: statements.append(each[2])
    )
    last = "a" if text[-1] != "a" else "b"
    malformed = [
        "",
        "lth_",
        text[:-1],
        text + "a",
        text[:-1] + last,
        "x" * 66,
        "lth_" + "\xe9" * 62,
    ]
    for wrong in malformed:
        with pytest.raises(Unauthenticated):
            authenticate(wrong)
    assert not [each for each in statements if "api_keys" in each]


def test_a_right_id_with_a_wrong_secret_is_refused(sqlite_store: World) -> None:
    _, one = made(sqlite_store)
    _, other = made(sqlite_store)
    body = f"{one[:17]}{other[17:-6]}"
    forged = body + keys._checksum(body)
    assert len(forged) == len(one)
    with pytest.raises(Unauthenticated):
        authenticate(forged)


def test_only_who_holds_the_secret_learns_that_a_key_was_one(sqlite_store: World) -> None:
    _, expired = made(sqlite_store, datetime.now(UTC) - timedelta(seconds=1))
    key_id, revoked = made(sqlite_store)
    gone_id, unknown = made(sqlite_store)
    with transaction() as session:
        keys.revoke(session, sqlite_store.tenant, key_id, force=True)
        session.delete(keys.find(session, sqlite_store.tenant, gone_id))
    said = []
    for text in (expired, revoked, unknown):
        with pytest.raises(Unauthenticated) as caught:
            authenticate(text)
        said.append((caught.value.code, caught.value.detail))
    assert said == [("invalid_api_key", "")] * 2 + [("unauthenticated", "")]


def test_another_pepper_makes_keys_useless(sqlite_store: World) -> None:
    _, text = made(sqlite_store)
    changed = sqlite_store.settings.model_dump() | {"pepper": "q" * 40}
    sessions.configure(type(sqlite_store.settings).model_validate(changed))
    with pytest.raises(Unauthenticated):
        authenticate(text)


def test_the_last_key_that_manages_keys_stays(sqlite_store: World) -> None:
    first, _ = made(sqlite_store)
    made(sqlite_store, scopes=["jobs:read"])
    with pytest.raises(Conflict) as caught, transaction() as session:
        keys.revoke(session, sqlite_store.tenant, first)
    assert caught.value.code == "last_admin_key"
    made(sqlite_store)
    with transaction() as session:
        again = [keys.revoke(session, sqlite_store.tenant, first).revoked_at for _ in range(2)]
    assert again[0] == again[1] is not None


def test_unknown_scopes_are_refused(sqlite_store: World) -> None:
    for scopes in ([], ["models:fly"]):
        with pytest.raises(ValueError, match="scopes"):
            made(sqlite_store, scopes=scopes)


def test_the_last_use_is_written_beside_the_request(store: World) -> None:
    key_id, text = made(store)
    with transaction() as session:
        keys.write_uses(session)  # those of other tests of this process
    for expected in (1, 0):
        for _ in range(3):
            authenticate(text)
        with transaction() as session:
            assert keys.write_uses(session) == expected
    with reading() as session:
        assert keys.find(session, store.tenant, key_id).last_used_at is not None


def test_foreign_keys_are_not_found(sqlite_store: World) -> None:
    key_id, _ = made(sqlite_store)
    with pytest.raises(NotFound), reading() as session:
        keys.find(session, sqlite_store.stranger, key_id)


def test_there_is_one_bootstrap_key(sqlite_store: World) -> None:
    with transaction() as session:
        text = keys.bootstrap(session)
    assert text is not None
    caller = authenticate(text)
    assert caller.scopes == keys.SCOPES
    with reading() as session:
        end = keys.find(session, caller.tenant_id, caller.key_id).expires_at
    assert end is not None
    assert abs(end - datetime.now(UTC) - timedelta(days=365)) < timedelta(minutes=5)
    with transaction() as session:
        assert keys.bootstrap(session) is None


def test_the_command_makes_lists_and_revokes(
    sqlite_store: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["create", "--tenant", "new", "--scopes", "jobs:read,models:read"]) == 0
    text = capsys.readouterr().out.strip()
    caller = authenticate(text)
    assert caller.scopes == {"jobs:read", "models:read"}
    assert command.main(["list", "--tenant", "new"]) == 0
    shown = capsys.readouterr().out
    assert caller.key_id in shown
    assert text not in shown
    assert command.main(["revoke", caller.key_id]) == 0
    with pytest.raises(Unauthenticated):
        authenticate(text)
    assert command.main(["revoke", "key_none"]) == 1


def test_the_command_gives_roles_and_networks_and_rotates(
    sqlite_store: World, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["create", "--tenant", "new", "--role", "auditor", "--network", "10.0.0.0/8"]
    assert command.main(arguments) == 0
    old = authenticate(capsys.readouterr().out.strip(), "10.1.2.3")
    assert old.scopes == ROLES["auditor"]
    assert command.main(["rotate", old.key_id, "--overlap-hours", "0"]) == 0
    new = authenticate(capsys.readouterr().out.strip(), "10.1.2.3")
    assert (new.scopes, new.networks, new.principal) == (old.scopes, old.networks, old.key_id)
    assert command.main(["rotate", old.key_id]) == 1
    assert command.main(["rotate", "key_none"]) == 1


def test_a_bound_key_is_refused_where_nobody_knows_the_address(sqlite_store: World) -> None:
    with transaction() as session:
        _, text = keys.create(
            session, sqlite_store.tenant, "ci", keys.SCOPES, None, networks=["10.0.0.0/8"]
        )
    for address in (None, "", "testclient", "192.0.2.1"):
        with pytest.raises(Unauthenticated) as refused:
            authenticate(text, address)
        assert refused.value.extra["reason"] == "address"


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--tenant", "t", "--role", "king"],
        ["create", "--tenant", "t", "--role", "auditor", "--scopes", "models:read"],
        ["create", "--tenant", "t", "--role", "auditor", "--network", "10.0.0.1/8"],
        ["rotate", "key_1", "--overlap-hours", "169"],
        ["create", "--tenant", "t", "--scopes", "models:fly"],
        ["create", "--tenant", "t", "--scopes", "all", "--expires-days", "366"],
        ["create", "--tenant", "", "--scopes", "all"],
    ],
)
def test_the_command_refuses_nonsense(sqlite_store: World, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)


@pytest.mark.postgres
def test_the_command_does_not_migrate_a_shared_database(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "at_head", lambda: False)
    sessions.configure(settings_of(tmp_path, postgres_url))
    try:
        assert command.main(["list"]) == 1
    finally:
        sessions.configure(None)
