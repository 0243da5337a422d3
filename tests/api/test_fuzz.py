"""Calls made up from the OpenAPI document: a few every day, ``make fuzz`` for all of them."""

from __future__ import annotations

from fastapi import FastAPI

from app.settings import Settings

from .fuzz import furnish, fuzz


def test_a_few_made_up_calls(api: FastAPI, settings: Settings) -> None:
    report = fuzz(api, furnish(api, settings).key, 1, 1, ("fuzzing",))
    assert not report.failures, [*report.failures.values()]
    assert not report.errors, report
    assert report.num_calls >= 60
    assert max(report.calls) < 500
