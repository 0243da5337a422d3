"""The parts of an upload, pushed out of a multipart stream as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..store.errors import BadRequest, TooLarge, Unacceptable, Unsupported
from .strict_json import MAX_BYTES, is_json

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

Feed = Callable[[bytes], None]


class Parts:
    """Push parser of ``multipart/form-data`` with the parts ``file`` and ``metadata``, and others.

    Args:
        content_type: header of the request, with the boundary.
        file: called with the bytes of the file part.
        optional: called with the bytes of parts of these names, which may be left out.
    """

    def __init__(
        self, content_type: str, file: Feed, optional: Mapping[str, Feed] | None = None
    ) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise BadRequest("malformed_multipart", "The Content-Type names no boundary.")
        self.metadata = bytearray()
        self.headers: dict[str, dict[str, str]] = {}
        """Headers of the parts that were there, by name."""
        self.filename = ""
        """What the client calls the file; good for a look at its ending, never for a path."""
        self._feeds: Mapping[str, Feed] = {"file": file, **(optional or {})}
        self._part = ""
        self._headers: dict[str, str] = {}
        self._field = bytearray()
        self._value = bytearray()
        self._complete = False
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError as error:
            raise BadRequest("malformed_multipart", str(error)) from None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise BadRequest(
                "malformed_multipart", "The body is not multipart/form-data."
            ) from None

    def finish(self) -> None:
        """Refuse a body that ended early or lacks a part."""
        if not self._complete:
            raise BadRequest("malformed_multipart", "The body ends before its last boundary.")
        for name in ("file", "metadata"):
            if name not in self.headers:
                raise Unacceptable(
                    detail=f"The part {name!r} is missing.",
                    errors=[
                        {"pointer": f"/{name}", "message": "missing", "code": "validation_failed"}
                    ],
                )

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers = {}

    def _header(self) -> None:
        self._headers[self._field.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._field.clear()
        self._value.clear()

    def _open(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        self._part = options.get(b"name", b"").decode("latin-1")
        known = ("metadata", *self._feeds)
        if self._part not in known:
            raise Unacceptable(
                "unknown_field",
                f"The parts are {', '.join(map(repr, sorted(known)))}.",
                errors=[
                    {
                        "pointer": f"/{self._part[:64]}",
                        "message": "unknown part",
                        "code": "unknown_field",
                    }
                ],
            )
        if self._part in self.headers:
            raise BadRequest("duplicate_part", f"The part {self._part!r} is there twice.")
        self.headers[self._part] = self._headers
        if self._part == "file":
            self.filename = options.get(b"filename", b"").decode("latin-1")
        encoding = self._headers.get("content-transfer-encoding", "binary").strip().lower()
        if encoding not in ("binary", "8bit", "7bit") or "content-encoding" in self._headers:
            raise Unsupported("unsupported_content_encoding", "Send the parts without encoding.")
        is_metadata = self._part == "metadata"
        if is_metadata and not is_json(self._headers.get("content-type", "application/json")):
            raise Unsupported(detail="The part 'metadata' is application/json.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part != "metadata":
            self._feeds[self._part](data[start:end])
            return
        self.metadata += data[start:end]
        if len(self.metadata) > MAX_BYTES:
            raise TooLarge(detail=f"The part 'metadata' is limited to {MAX_BYTES} bytes.")

    def _end(self) -> None:
        self._complete = True
