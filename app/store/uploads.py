"""Verbs over uploads: files that arrive in pieces until a model or a dataset takes them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from . import quotas
from .errors import Conflict, Gone, NotFound, ServiceError, TooLarge, TooMany, Unacceptable
from .ids import new
from .session import settings
from .status import UPLOAD_OPEN
from .tables import Upload

KEPT = timedelta(days=7)
"""How long the row of an upload that ended can still be read, at least."""


def create(
    session: Session,
    tenant_id: str,
    *,
    size_bytes: int,
    announced_digest: str | None,
    upload_metadata: str | None,
) -> Upload:
    """Announce a file.

    Raises:
        TooMany: ``upload_quota_exceeded`` if the tenant has too many uploads on their way already.
        TooLarge: ``quota_exceeded`` if they have too many bytes.
    """
    quotas.lock(session, tenant_id)
    _check_quota(session, tenant_id, size_bytes)
    upload = Upload(
        tenant_id=tenant_id,
        id=new("upl"),
        size_bytes=size_bytes,
        received_bytes=0,
        announced_digest=announced_digest,
        upload_metadata=upload_metadata,
    )
    session.add(upload)
    if size_bytes == 0:
        _receive(upload, hashlib.sha256().hexdigest())
    session.flush()
    return upload


def get(session: Session, tenant_id: str, upload_id: str, *, locked: bool = False) -> Upload:
    """Return the upload of that id; raise NotFound if the tenant has none."""
    upload = session.get(
        Upload, (tenant_id, upload_id), with_for_update=locked or None, populate_existing=locked
    )
    if upload is None:
        raise NotFound
    return upload


def get_open(session: Session, tenant_id: str, upload_id: str, *, locked: bool = False) -> Upload:
    """Return an upload that has bytes, or will.

    Raises:
        NotFound: if the tenant has none of that id.
        Gone: ``upload_failed``, ``upload_expired``, ``upload_aborted`` or ``upload_used``.
    """
    upload = get(session, tenant_id, upload_id, locked=locked)
    if upload.used_by is not None:
        raise Gone("upload_used", f"It became {upload.used_by}.")
    if upload.status not in UPLOAD_OPEN:
        raise Gone(f"upload_{upload.status}", "Its bytes are not here any more.")
    return upload


def advance(
    session: Session, tenant_id: str, upload_id: str, *, start: int, end: int, digest: str | None
) -> Upload:
    """Write down that the bytes from ``start`` to ``end`` are safe.

    Args:
        session: any transaction.
        tenant_id: owner.
        upload_id: of an open upload.
        start: what was written down before.
        end: how many bytes there are now.
        digest: SHA-256 in hex of all of them; needed with the last one.

    Returns:
        The upload; ``failed`` if its digest is not what was announced.
    """
    upload = get_open(session, tenant_id, upload_id, locked=True)
    if upload.received_bytes != start:
        raise Conflict("upload_offset_conflict", "Another writer was faster.")
    upload.received_bytes, upload.touched_at = end, datetime.now(UTC)
    if end:
        upload.status = "receiving"
    if end == upload.size_bytes:
        assert digest is not None
        _receive(upload, digest)
    session.flush()
    return upload


def complete(session: Session, tenant_id: str, upload_id: str, digest: str | None) -> Upload:
    """Call an upload verified; again changes nothing.

    Args:
        session: any transaction.
        tenant_id: owner.
        upload_id: of an open upload.
        digest: SHA-256 in hex that the bytes must have; None accepts what was announced before.

    Returns:
        The upload; ``failed`` if its digest is another one.

    Raises:
        Conflict: ``upload_incomplete`` while bytes are missing.
    """
    upload = usable(session, tenant_id, upload_id, locked=True)
    if digest is not None and digest != upload.digest:
        _mismatch(upload)
    else:
        upload.status, upload.touched_at = "verified", datetime.now(UTC)
    session.flush()
    return upload


def abort(session: Session, tenant_id: str, upload_id: str) -> None:
    """Give an upload up."""
    _end(get_open(session, tenant_id, upload_id, locked=True), "aborted")
    session.flush()


def fail(session: Session, tenant_id: str, upload_id: str, code: str, detail: str) -> None:
    """End an upload that cannot go on; one that ended already stays as it is."""
    upload = get(session, tenant_id, upload_id, locked=True)
    if upload.status in UPLOAD_OPEN and upload.used_by is None:
        _end(upload, "failed")
        upload.failure = {"code": code, "detail": detail}
        session.flush()


def failed(upload: Upload) -> ServiceError:
    """Return the refusal of a failed upload, with its cause."""
    cause = upload.failure or {}
    return Unacceptable(cause.get("code"), cause.get("detail", ""))


def usable(session: Session, tenant_id: str, upload_id: str, *, locked: bool = False) -> Upload:
    """Return an upload whose bytes are all there.

    Raises:
        NotFound: if the tenant has none of that id.
        Gone: if its bytes went, or something took them.
        Unacceptable: ``upload_rejected`` if it failed.
        Conflict: ``upload_incomplete`` while bytes are missing.
    """
    upload = get(session, tenant_id, upload_id, locked=locked)
    if upload.status == "failed":
        cause = upload.failure or {}
        detail = f"The upload failed: {cause.get('code')}: {cause.get('detail')}"
        raise Unacceptable("upload_rejected", detail, extra={"cause": cause})
    upload = get_open(session, tenant_id, upload_id)
    if upload.digest is None:
        raise Conflict(
            "upload_incomplete",
            f"{upload.received_bytes} of {upload.size_bytes} bytes are here.",
            extra={"received_bytes": upload.received_bytes, "size_bytes": upload.size_bytes},
        )
    return upload


def use(session: Session, tenant_id: str, upload_id: str, used_by: str) -> None:
    """Give the bytes of an upload to ``used_by``, which keeps them under a key of its own."""
    upload = usable(session, tenant_id, upload_id, locked=True)
    upload.used_by, upload.status, upload.upload_metadata = used_by, "verified", None
    session.flush()


def expires_at(upload: Upload) -> datetime:
    """Return when an open upload is removed unless somebody touches it before."""
    return upload.touched_at + timedelta(seconds=settings().upload_idle_seconds)


def expire(session: Session) -> int:
    """End uploads that nobody touched for too long; return how many."""
    oldest = datetime.now(UTC) - timedelta(seconds=settings().upload_idle_seconds)
    idle = (
        update(Upload)
        .where(Upload.status.in_(UPLOAD_OPEN), Upload.used_by.is_(None), Upload.touched_at < oldest)
        .values(status="expired", upload_metadata=None)
    )
    return len(session.execute(idle.returning(Upload.id)).all())


def purge(session: Session) -> int:
    """Remove the rows of uploads that ended long ago; return how many."""
    oldest = datetime.now(UTC) - timedelta(seconds=settings().upload_idle_seconds) - KEPT
    ended = or_(Upload.status.not_in(UPLOAD_OPEN), Upload.used_by.is_not(None))
    old = delete(Upload).where(ended, Upload.touched_at < oldest)
    return len(session.execute(old.returning(Upload.id)).all())


def with_bytes(session: Session) -> set[tuple[str, str]]:
    """Tenant and id of every upload whose bytes are still needed."""
    chosen = select(Upload.tenant_id, Upload.id).where(
        Upload.status.in_(UPLOAD_OPEN), Upload.used_by.is_(None)
    )
    return {(tenant_id, upload_id) for tenant_id, upload_id in session.execute(chosen)}


def _check_quota(session: Session, tenant_id: str, size_bytes: int) -> None:
    num, taken = session.execute(
        select(func.count(), func.coalesce(func.sum(Upload.size_bytes), 0)).where(
            Upload.tenant_id == tenant_id,
            Upload.status.in_(UPLOAD_OPEN),
            Upload.used_by.is_(None),
        )
    ).one()
    if num >= settings().max_open_uploads:
        raise TooMany(
            "upload_quota_exceeded",
            f"{num} uploads of this tenant are not used yet. Use or delete some.",
            headers={"Retry-After": "60"},
        )
    most = settings().max_bytes_in_flight
    if int(taken) + size_bytes > most:
        raise TooLarge(
            "quota_exceeded",
            f"Uploads that are not used yet are limited to {most} bytes together; {taken} are on "
            "their way. Use, finish or delete some.",
            extra={"limit_bytes": most, "used_bytes": int(taken)},
        )
    quotas.refuse_much_storage(session, tenant_id, size_bytes, on_their_way=int(taken))


def _receive(upload: Upload, digest: str) -> None:
    upload.digest, upload.status = digest, "received"
    if upload.announced_digest is None:
        return
    if upload.announced_digest == digest:
        upload.status = "verified"
    else:
        _mismatch(upload)


def _mismatch(upload: Upload) -> None:
    _end(upload, "failed")
    detail = "The bytes received have another SHA-256."
    upload.failure = {"code": "checksum_mismatch", "detail": detail}


def _end(upload: Upload, status: str) -> None:
    upload.status, upload.upload_metadata = status, None
