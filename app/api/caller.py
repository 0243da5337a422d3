"""Who calls, and from where: the key of a call, the address behind trusted proxies, and the log."""

from __future__ import annotations

import ipaddress

import structlog
from fastapi import Request
from fastapi.security import HTTPAuthorizationCredentials

from ..store import keys
from ..store.errors import Unauthenticated
from ..store.session import reading, settings
from .limits import limiter

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="lethe"'}
REFUSALS = {
    "unauthenticated": "Give a valid API key as a bearer token.",
    "invalid_api_key": "This API key is not usable any more, or not from here.",
}
log = structlog.get_logger("lethe.access")


def identified(
    http_request: Request, credentials: HTTPAuthorizationCredentials | None
) -> keys.Caller:
    """Return who calls, counted; why a key was refused is in the log alone.

    Raises:
        Unauthenticated: without a usable key.
        TooMany: ``rate_limited``.
    """
    address = address_of(http_request)
    guesser = _guesser(address)
    limiter().refuse_guessing(guesser)
    try:
        caller = _authenticated(credentials, address)
    except Unauthenticated as error:
        limiter().count_guess(guesser)
        log.warning(
            "access_refused",
            request_id=http_request.scope["lethe.request_id"],
            address=address,
            key_in_query=b"lth_" in http_request.scope["query_string"],
            **error.extra,
        )
        # One same answer for what is no key of ours: it must not tell which keys exist.
        raise Unauthenticated(error.code, REFUSALS[error.code], headers=CHALLENGE) from None
    http_request.scope["lethe.headers"].update(limiter().count_call(caller))
    http_request.scope["lethe.caller"].append(caller)
    return caller


def address_of(http_request: Request) -> str:
    """Return the address of the client: the last one that is not a proxy we trust."""
    client = http_request.client
    found = _plain(client.host) if client is not None else ""
    trusted = settings().trusted_proxies
    named = ",".join(http_request.headers.getlist("x-forwarded-for")).split(",")
    while named and any(_is_in(found, network) for network in trusted):
        before = named.pop().strip()
        if not before:
            break
        found = _plain(before)
    return found


def _plain(address: str) -> str:
    """The address as it is; a socket of both families shows IPv4 inside IPv6."""
    found = _parsed(address)
    return str(getattr(found, "ipv4_mapped", None) or found or address)


def _guesser(address: str) -> str:
    """What is counted: an address, of IPv6 the /64, for one host can take every address in that."""
    found = _parsed(address)
    if not isinstance(found, ipaddress.IPv6Address):
        return address
    return str(ipaddress.IPv6Network((int(found), 64), strict=False))


def _authenticated(credentials: HTTPAuthorizationCredentials | None, address: str) -> keys.Caller:
    if credentials is None or not credentials.credentials.isascii():
        raise Unauthenticated(extra={"reason": "no_key"})
    with reading() as session:
        return keys.authenticate(session, credentials.credentials, address)


def _is_in(address: str, network: keys.Network) -> bool:
    found = _parsed(address)
    return found is not None and found in network


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None
