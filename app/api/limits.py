"""How often one may call: an address without a usable key, a key, a tenant; and uploads at once.

Counts lie in this process, or in the Redis of ``LETHE_LIMITS_URL`` for all of them. While that is
away each process counts for itself, with a tenth of every limit: never without one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter

from ..settings import Settings
from ..store import session
from ..store.errors import TooMany
from ..store.keys import Caller

TIMEOUT_SECONDS = 0.25
PAUSE_SECONDS = 5.0
"""How long a storage that failed is left alone."""
SHARE_ALONE = 10

log = structlog.get_logger("lethe.access")
_uploads: Counter[str] = Counter()
_lock = threading.Lock()


@dataclass
class Limiter:
    """The buckets of one service."""

    settings: Settings
    _shared: Storage = field(init=False)
    _alone: Storage = field(init=False, default_factory=MemoryStorage)
    _away_until: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        url = self.settings.limits_url
        timeouts: dict[str, float | str | bool] = {
            "socket_timeout": TIMEOUT_SECONDS,
            "socket_connect_timeout": TIMEOUT_SECONDS,
        }
        options = {} if url.startswith("memory:") else timeouts
        made = storage_from_string(url, wrap_exceptions=True, **options)
        assert isinstance(made, Storage), "the settings allow only schemes of synchronous storages"
        self._shared = made

    def refuse_guessing(self, address: str) -> None:
        """Refuse an address that has shown too many useless keys, before anything is looked up.

        Raises:
            TooMany: ``rate_limited``.
        """
        per_minute = self.settings.failed_keys_per_minute
        if not self._ask("test", per_minute, "address", address):
            raise self._refused("address", per_minute, address, "Too many calls without a key.")

    def count_guess(self, address: str) -> None:
        """Note that an address has shown a useless key, or none."""
        self._ask("hit", self.settings.failed_keys_per_minute, "address", address)

    def count_call(self, caller: Caller) -> dict[str, str]:
        """Count a call; return the headers that say how many are left.

        Raises:
            TooMany: ``rate_limited``.
        """
        headers: dict[str, str] = {}
        # The key first: what its limit refuses takes nothing from the tenant's other keys.
        for name, per_minute, who in (
            ("key", self.settings.calls_per_minute_per_key, caller.key_id),
            ("tenant", self.settings.calls_per_minute_per_tenant, caller.tenant_id),
        ):
            if per_minute:
                if not self._ask("hit", per_minute, name, who):
                    raise self._refused(name, per_minute, who, f"Too many calls of this {name}.")
                headers = headers or self._headers(name, per_minute, who)
        return headers

    def count_lookup(self, caller: Caller) -> None:
        """Count a question whose answer tells whether somebody is in the data.

        Raises:
            TooMany: ``rate_limited``.
        """
        per_minute, who = self.settings.subject_lookups_per_minute, caller.key_id
        if per_minute and not self._ask("hit", per_minute, "lookup", who):
            raise self._refused("lookup", per_minute, who, "Too many lookups of subjects.")

    def _ask(self, verb: str, per_minute: int, *who: str) -> bool:
        rates, item = self._rates(per_minute)
        try:
            return bool(getattr(rates, verb)(item, *who))
        except StorageError:
            self._leave()
            rates, item = self._rates(per_minute)
            return bool(getattr(rates, verb)(item, *who))

    def _rates(self, per_minute: int) -> tuple[SlidingWindowCounterRateLimiter, RateLimitItem]:
        if time.monotonic() < self._away_until:
            alone = RateLimitItemPerMinute(max(1, per_minute // SHARE_ALONE))
            return SlidingWindowCounterRateLimiter(self._alone), alone
        return SlidingWindowCounterRateLimiter(self._shared), RateLimitItemPerMinute(per_minute)

    def _leave(self) -> None:
        self._away_until = time.monotonic() + PAUSE_SECONDS
        log.warning("limits_storage_away", share=f"1/{SHARE_ALONE}")

    def _headers(self, name: str, per_minute: int, *who: str) -> dict[str, str]:
        """Headers of the IETF's draft on rate limits."""
        rates, item = self._rates(per_minute)
        try:
            stats = rates.get_window_stats(item, name, *who)
        except StorageError:
            self._leave()
            return {}
        reset = max(1, math.ceil(stats.reset_time - time.time()))
        return {
            "RateLimit-Policy": f'"{name}";q={item.amount};w={item.get_expiry()}',
            "RateLimit": f'"{name}";r={max(0, stats.remaining)};t={reset}',
        }

    def _refused(self, name: str, per_minute: int, who: str, detail: str) -> TooMany:
        headers = self._headers(name, per_minute, who)
        reset = headers.get("RateLimit", ";t=60").rpartition("t=")[2]
        return TooMany(detail=detail, headers={**headers, "Retry-After": reset})


_kept: Limiter | None = None


def limiter() -> Limiter:
    """The limiter of the settings in force."""
    global _kept
    settings = session.settings()
    with _lock:
        if _kept is None or _kept.settings is not settings:
            _kept = Limiter(settings)
        return _kept


@contextmanager
def upload(caller: Caller) -> Iterator[None]:
    """Hold one of the tenant's places for uploads to this process.

    Raises:
        TooMany: ``uploads_in_flight`` if all are taken.
    """
    most = session.settings().max_uploads_in_flight
    with _lock:
        if _uploads[caller.tenant_id] >= most:
            raise TooMany(
                "uploads_in_flight",
                f"{most} uploads of this tenant are on their way already.",
                headers={"Retry-After": "5"},
            )
        _uploads[caller.tenant_id] += 1
    try:
        yield
    finally:
        with _lock:
            _uploads[caller.tenant_id] -= 1
            if not _uploads[caller.tenant_id]:
                del _uploads[caller.tenant_id]
