"""A door before an S3 server that lets only well signed calls pass, and does as bad ones do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ACCESS_KEY = "AKIATESTS"
SECRET = "the-secret-of-the-connection"

Answer = tuple[int, dict[str, str], bytes]
ODD: dict[str, Answer] = {
    "forbidden": (403, {}, b"<Error><Code>AccessDenied</Code></Error>"),
    "moved": (307, {"Location": "http://169.254.169.254/latest"}, b""),
    "broken": (500, {}, b"<Error><Code>InternalError</Code></Error>"),
    "short": (200, {"Content-Length": "9999"}, b"PAR1"),
    "away": (404, {}, b"<Error><Code>NoSuchBucket</Code></Error>"),
}
"""What is answered for keys that end like this."""


class Front:
    """What the door was asked for, and where it stands."""

    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.url = ""
        self.asked: list[str] = []

    def answer(self, host: str, target: str) -> Answer:
        """Answer one call."""
        self.asked.append(target)
        if not _is_signed(f"http://{host}{target}"):
            return 403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>"
        path = urlsplit(target).path
        odd = ODD.get(path.rpartition("/")[2])
        if odd is not None:
            return odd
        found = httpx.get(f"{self.behind}{target}")
        return found.status_code, {}, found.content


def _is_signed(url: str) -> bool:
    """Compute the signature of AWS's own library and compare."""
    bare, _, query = url.partition("?")
    given = {name: values[0] for name, values in parse_qs(query).items()}
    if given.get("X-Amz-Credential", "").partition("/")[0] != ACCESS_KEY:
        return False
    if "X-Amz-Security-Token" in given:
        return False
    region = given["X-Amz-Credential"].split("/")[2]
    made = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if not 0 <= (datetime.now(UTC) - made).total_seconds() <= int(given["X-Amz-Expires"]) <= 60:
        return False
    auth = S3SigV4QueryAuth(Credentials(ACCESS_KEY, SECRET), "s3", region)
    unsigned = {name: value for name, value in given.items() if name != "X-Amz-Signature"}
    request = AWSRequest(method="GET", url=bare, params=unsigned)
    request.context["timestamp"] = given["X-Amz-Date"]
    request.headers["host"] = urlsplit(bare).netloc
    request.url = request.prepare().url
    request.params = {}
    text = auth.string_to_sign(request, auth.canonical_request(request))
    return auth.signature(text, request) == given["X-Amz-Signature"]


@contextmanager
def fronted(behind: str) -> Iterator[Front]:
    """Run the door on a free port."""
    front = Front(behind)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = front.answer(self.headers["Host"], self.path)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    front.url = f"http://127.0.0.1:{server.server_port}"
    yield front
    server.shutdown()
    thread.join()
    server.server_close()
