"""How uvicorn serves the API: what it refuses by itself is a problem document, too."""

from __future__ import annotations

import json
import sys
from typing import Any

import h11
from ulid import ULID
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..store.errors import BadRequest, ServiceError
from .door import MAX_HEADER_BYTES, MAX_TARGET_BYTES, HeadersTooLarge, TargetTooLong
from .problems import MEDIA_TYPE, document


class Protocol(H11Protocol):
    """HTTP/1.1 whose own refusals read like all others."""

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 could not parse, then close the connection."""
        error = _refusal(sys.exception(), msg, bytes(self.conn.trailing_data[0]))
        request_id = f"rid_{ULID()}"
        body = json.dumps(document(error, instance="", request_id=request_id)).encode()
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "X-Request-Id": request_id,
            "Connection": "close",
        }
        start = h11.Response(status_code=error.status, headers=list(headers.items()))
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _refusal(error: BaseException | None, message: str, unread: bytes) -> ServiceError:
    if getattr(error, "error_status_hint", 400) != 431:
        return BadRequest(detail=message)
    if b"\n" not in unread[: 2 * MAX_TARGET_BYTES]:
        return TargetTooLong(detail=f"Path and query are limited to {MAX_TARGET_BYTES} bytes.")
    return HeadersTooLarge(detail=f"Headers are limited to {MAX_HEADER_BYTES} bytes.")


OPTIONS: dict[str, Any] = {
    "http": Protocol,
    "h11_max_incomplete_event_size": MAX_HEADER_BYTES + MAX_TARGET_BYTES,
    "server_header": False,
    "log_config": None,
    # Its lines hold the query, and so the key of whoever puts one there.
    "access_log": False,
    "proxy_headers": False,
    "timeout_graceful_shutdown": 10,
}
"""Arguments for ``uvicorn.Config`` beside the application, host and port."""
