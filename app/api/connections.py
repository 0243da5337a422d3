"""Objects of the buckets that the operator has registered (``LETHE_CONNECTIONS``).

The library signs the address, and the answer is read here: its own client follows redirects to any
host, which no setting turns off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import S3Store

from ..connections import Connection
from ..store.errors import ServiceError, Unacceptable
from ..store.session import settings
from .outbound import Readable, get, missing, unavailable

SIGNED_FOR = timedelta(minutes=1)
"""How long the address is good for; a download that has begun goes on."""
_PATIENCE = timedelta(seconds=5)
"""How long the machine's own role may take to be found."""
_CODE = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_MISCONFIGURED = frozenset(
    {
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
        *("RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "NoSuchBucket"),
    }
)
"""What a store answers where the fault is the operator's, not the caller's."""
_log = structlog.get_logger("lethe.api")


@contextmanager
def opened(tenant_id: str, name: str, key: str) -> Iterator[Readable]:
    """Open an object.

    Args:
        tenant_id: who asks.
        name: of the connection.
        key: of the object, in full; its form was checked.

    Raises:
        Unacceptable: ``data_source_not_allowed``, ``source_not_found``, ``source_forbidden`` or
            ``source_redirected``.
        Unavailable: ``source_unavailable`` if the store is away, or refuses the operator.
    """
    found = next((each for each in settings().connections if each.name == name), None)
    if found is None or not found.admits(tenant_id):
        raise _not_allowed("No connection to this bucket is registered for you.")
    if not found.holds(key):
        raise _not_allowed("The connection does not reach this part of the bucket.")

    def refuse(status: int, body: bytes) -> ServiceError:
        said = _CODE.search(body)
        return _refused(found, status, said[1].decode() if said else "")

    with get(_signed(found, key), refuse) as source:
        yield source


def _signed(connection: Connection, key: str) -> str:
    """Return an address of the object that is good for a minute."""
    # Named even where it is the usual one: AWS_ENDPOINT_URL is meant for the service's own bucket.
    endpoint = connection.address
    more: dict[str, Any] = {}
    try:
        if connection.access_key:
            pair = {
                "access_key_id": connection.access_key,
                "secret_access_key": connection.secret(),
                "expires_at": None,
            }
            # As a provider: beside plain keys, the session token of the environment would count.
            more["credential_provider"] = lambda: pair
        store = S3Store(
            connection.bucket_name,
            endpoint=endpoint,
            region=connection.region,
            virtual_hosted_style_request=False,
            client_options={"allow_http": endpoint.startswith("http://"), "timeout": _PATIENCE},
            retry_config={"max_retries": 1, "retry_timeout": _PATIENCE},
            **more,
        )
        return obstore.sign(store, "GET", key, SIGNED_FOR)
    except (OSError, ValueError, BaseError) as error:
        cause = type(error).__name__
        _log.error("source_credentials_away", connection=connection.name, cause=cause)
        raise unavailable() from None


def _refused(connection: Connection, status: int, cause: str) -> ServiceError:
    _log.warning("source_refused", connection=connection.name, status=status, cause=cause)
    if cause in _MISCONFIGURED or status not in (401, 403, 404, 410):
        return unavailable()
    if status in (404, 410):
        return missing()
    detail = "The bucket does not let this service read the object, or hides that it is not there."
    return Unacceptable("source_forbidden", detail)


def _not_allowed(detail: str) -> Unacceptable:
    return Unacceptable("data_source_not_allowed", detail)
