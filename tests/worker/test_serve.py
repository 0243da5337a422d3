"""What the embedded service finds when it starts."""

from __future__ import annotations

import pytest

from app.settings import Settings
from app.store import keys
from app.store.session import reading
from worker.serve import _take_over


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
