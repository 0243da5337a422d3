"""What the embedded service finds when it starts, and what no process starts with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import select

import app.main as api
from app import keys as command
from app.settings import Settings
from app.store import keyed, keys
from app.store import session as sessions
from app.store.session import reading
from app.store.tables import ApiKey
from worker import main
from worker.serve import _take_over

SOLO = SimpleNamespace(pool_cls=SimpleNamespace(__module__="celery.concurrency.solo"))


def test_the_first_key_is_made_again_if_its_file_could_not_be_written(settings: Settings) -> None:
    path = settings.data_dir / "bootstrap.key"
    path.mkdir()
    with pytest.raises(OSError, match=r"bootstrap\.key"):
        _take_over(settings)
    path.rmdir()
    _take_over(settings)
    with reading() as session:
        caller = keys.authenticate(session, path.read_text().strip())
    assert caller is not None


@pytest.mark.parametrize(
    "start",
    [
        _take_over,
        lambda _: api._refuse_other_pepper(),
        lambda _: main.refuse_to_start(sender=SOLO),
        lambda _: sys.exit(command.main(["create", "--tenant", "t", "--scopes", "all"])),
    ],
    ids=["embedded", "api", "worker", "keys"],
)
def test_nothing_starts_with_another_pepper(
    settings: Settings, start: Callable[[Settings], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "station", lambda: None)
    assert keyed.pepper_fault() is None
    other = Settings.model_validate(settings.model_dump() | {"pepper": "q" * 40})
    sessions.configure(other)
    with pytest.raises(SystemExit) as ended:
        start(other)
    assert ended.value.code
    with reading() as session:
        assert session.scalar(select(ApiKey.id)) is None


def test_the_api_starts_while_the_database_is_away(tmp_path: Path) -> None:
    url = "postgresql://postgres@127.0.0.1:1/none"
    sessions.configure(Settings(data_dir=tmp_path, database_url=url, pepper="p" * 40))
    try:
        api._refuse_other_pepper()
    finally:
        sessions.configure(None)
