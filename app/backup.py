"""``python -m app.backup``: back up, verify, restore, and write down what was deleted.

A backup is a folder: the database, every blob that a row names, and ``manifest.json`` with their
digests, which is written last. ``restore`` needs an empty database and replays the tombstones
before it ends, so that nothing that was deleted since is served again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError
from sqlalchemy import URL, func, inspect, make_url, select

from app import __version__
from app.store import jobs, keyed, tombstones, trash
from app.store.blobs import BlobMissing, blobs, digest
from app.store.errors import ServiceError
from app.store.homes import Home
from app.store.session import (
    at_head,
    configure,
    engine,
    reading,
    revision,
    settings,
    transaction,
    upgrade,
)
from app.store.tables import Request

MANIFEST = "manifest.json"
FORMAT = 1


class Entry(BaseModel):
    """One file of a backup."""

    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """What a backup holds."""

    format: int = FORMAT
    made_at: datetime
    service: str = __version__
    schema_revision: str | None
    database: Entry
    blobs: list[Entry]
    missing: list[str]
    """Blobs that a row of the dump may name and that were not there, or were damaged."""


class Refused(Exception):
    """The command cannot be carried out; its words are for people."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    given = _parser().parse_args(arguments)
    try:
        status: int = given.run(given)
    except (Refused, OSError, ServiceError, subprocess.SubprocessError) as error:
        detail = getattr(error, "detail", "") or str(error)
        sys.stderr.write(f"{detail}\n")
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.backup", description=__doc__)
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create", help="make a backup; the service may run meanwhile")
    create.add_argument("folder", type=Path, help="made by this command")
    create.set_defaults(run=_create)
    verify = commands.add_parser("verify", help="compare a backup with its manifest")
    verify.add_argument("folder", type=Path)
    verify.set_defaults(run=_verify)
    export = commands.add_parser("tombstones", help="write down all deletions, outside the backup")
    export.add_argument("file", type=Path, help="replaced; keep it on another disk")
    export.set_defaults(run=_export)
    restore = commands.add_parser("restore", help="fill an empty database and replay tombstones")
    restore.add_argument("folder", type=Path)
    restore.add_argument(
        "--tombstones",
        type=Path,
        required=True,
        help="the newest file of 'tombstones'; 'none' only if nothing was ever deleted since",
    )
    restore.set_defaults(run=_restore)
    pending = commands.add_parser("pending", help="exit with 1 while requests are open")
    pending.set_defaults(run=_pending)
    return parser


def _create(given: argparse.Namespace) -> int:
    folder: Path = given.folder
    if not at_head():
        raise Refused("the database is not migrated, or belongs to another release")
    folder.mkdir(mode=0o700, parents=True)
    entries: dict[str, Entry | None] = {}
    # First the bytes: what is thrown away before the dump, the dump does not name.
    _copy_all(_named(), entries, folder)
    before = _named()
    database = _dump(folder)
    counted_on = before | _named()
    _copy_all(counted_on - {key for key, entry in entries.items() if entry}, entries, folder)
    missing = sorted(key for key in counted_on if entries[key] is None)
    manifest = Manifest(
        made_at=datetime.now(UTC),
        schema_revision=revision(),
        database=_entry(database, folder),
        blobs=[entry for _, entry in sorted(entries.items()) if entry is not None],
        missing=missing,
    )
    _write(folder / MANIFEST, manifest.model_dump_json(indent=1))
    sys.stdout.write(f"{len(manifest.blobs)} blobs and the database, in {folder}\n")
    for key in missing:
        sys.stderr.write(f"missing in the storage, or damaged there: {key}\n")
    return 1 if missing else 0


def _verify(given: argparse.Namespace) -> int:
    manifest = _checked(given.folder)
    sys.stdout.write(f"{len(manifest.blobs)} blobs and the database are whole\n")
    return 0


def _export(given: argparse.Namespace) -> int:
    with reading() as session:
        lines = [stone.model_dump_json() for stone in tombstones.export(session)]
    _write(given.file, "".join(f"{line}\n" for line in lines))
    sys.stdout.write(f"{len(lines)} tombstones\n")
    return 0


def _restore(given: argparse.Namespace) -> int:
    stones = list(_stones(given.tombstones))
    manifest = _checked(given.folder)
    file = given.folder / manifest.database.path
    _refuse_full(file)
    # Before the database: where this fails, it can be done again.
    for entry in manifest.blobs:
        _copy_in(given.folder / entry.path, entry.path.removeprefix("blobs/"))
    with _restored(file):
        upgrade()
        if fault := keyed.pepper_fault():
            raise Refused(fault)
        with transaction() as session:
            jobs.free_all(session)
        changed, left = _replay(stones)
    sys.stdout.write(f"{len(manifest.blobs)} blobs restored, {changed} deletions replayed\n")
    return 1 if left else 0


def _replay(stones: list[tombstones.Tombstone]) -> tuple[int, int]:
    """Return how many deletions changed something, and how many could not be replayed."""
    changed, left = 0, 0
    for stone in stones:
        try:
            with transaction() as session:
                changed += tombstones.replay(session, stone)
        except ServiceError as error:
            left += 1
            sys.stderr.write(f"not replayed: {stone.kind} {stone.id}: {error.code}\n")
    return changed, left


def _pending(given: argparse.Namespace) -> int:  # noqa: ARG001  # every command takes them
    waiting = select(func.count()).select_from(Request)
    with reading() as session:
        count = session.scalar(waiting.where(Request.status.in_(("queued", "processing")))) or 0
    sys.stdout.write(f"{count} open requests\n")
    return 1 if count else 0


def _dump(folder: Path) -> Path:
    url = make_url(settings().database)
    if url.get_backend_name() == "sqlite":
        target = folder / "database.sqlite"
        with (
            closing(sqlite3.connect(str(url.database))) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
        return target
    target = folder / "database.pgdump"
    _postgres("pg_dump", url, "--format=custom", "--no-owner", "--no-acl", "--file", str(target))
    return target


def _refuse_full(file: Path) -> None:
    """Refuse a database that a dump cannot go into."""
    url = make_url(settings().database)
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite != (file.suffix == ".sqlite"):
        raise Refused("the backup is of another kind of database")
    # A journal that was left beside a database which was removed would be played into the new one.
    there = [each for each in _with_journals(Path(str(url.database))) if each.exists()]
    if is_sqlite and there:
        raise Refused(f"{there[0]} is there; restore into an empty place")
    if not is_sqlite and inspect(engine()).get_table_names():
        raise Refused("the database is not empty")


def _with_journals(file: Path) -> list[Path]:
    """Return a SQLite database and the files beside it that belong to it."""
    return [file, *(file.with_name(f"{file.name}-{end}") for end in ("wal", "shm", "journal"))]


@contextmanager
def _restored(file: Path) -> Iterator[None]:
    """Load a dump for the block; SQLite gets its name only once the block has ended well."""
    chosen = settings()
    url = make_url(chosen.database)
    if url.get_backend_name() == "sqlite":
        target = Path(str(url.database))
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = target.with_name(f"{target.name}.restoring")
        for left in _with_journals(draft):
            left.unlink(missing_ok=True)
        shutil.copyfile(file, draft)
        configure(chosen.model_copy(update={"database_url": f"sqlite+pysqlite:///{draft}"}))
        try:
            yield
        finally:
            configure(chosen)  # closes the draft
        draft.rename(target)
        return
    options = ("--no-owner", "--no-acl", "--exit-on-error", "--single-transaction")
    _postgres("pg_restore", url, *options, file)
    try:
        yield
    except BaseException:
        sys.stderr.write(
            "The database is restored, but not all deletions are replayed: serve nothing from it. "
            "Drop it, make it anew, and restore again.\n"
        )
        raise


def _postgres(program: str, url: URL, *arguments: str | Path) -> None:
    found = shutil.which(program)
    if found is None:
        raise Refused(f"{program} is not installed")
    plain = url.set(drivername="postgresql", password=None).render_as_string()
    subprocess.run(  # noqa: S603  # found on the PATH of whoever runs this command
        [found, "--no-password", *arguments, "--dbname", plain],
        env={"PATH": os.defpath, "PGPASSWORD": str(url.password or "")},
        check=True,
    )


def _named() -> set[str]:
    with reading() as session:
        return trash.named(session)


def _copy_all(keys: set[str], entries: dict[str, Entry | None], folder: Path) -> None:
    """Copy blobs, and enter what became of each: None if it is missing or damaged."""
    for key in sorted(keys):
        try:
            entries[key] = _copy_out(key, folder / "blobs" / key, folder)
        except BlobMissing:
            entries[key] = None


def _copy_out(key: str, target: Path, folder: Path) -> Entry:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hasher = hashlib.sha256()
    with blobs().open(key) as opened, target.open("xb") as file:
        for chunk in opened.chunks(0, opened.size):
            hasher.update(chunk)
            file.write(chunk)
    if opened.digest not in (None, hasher.hexdigest()):
        # A copy with a digest of its own would hide the damage for good.
        target.unlink()
        raise BlobMissing(key)
    path = target.relative_to(folder).as_posix()
    return Entry(path=path, size=opened.size, sha256=hasher.hexdigest())


def _copy_in(file: Path, key: str) -> None:
    with Home(blobs()) as folder:
        shutil.copyfile(file, folder / "blob")
        blobs().adopt(folder / "blob", key)


def _entry(file: Path, folder: Path) -> Entry:
    path = file.relative_to(folder).as_posix()
    return Entry(path=path, size=file.stat().st_size, sha256=digest(file))


def _checked(folder: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    except (FileNotFoundError, ValidationError):
        raise Refused(f"{folder} is no backup: {MANIFEST} is missing or unknown") from None
    if manifest.format != FORMAT:
        raise Refused("the backup has another format")
    for entry in (manifest.database, *manifest.blobs):
        file = folder / entry.path
        if not file.is_file() or digest(file) != entry.sha256:
            raise Refused(f"damaged: {entry.path}")
    return manifest


def _stones(file: Path) -> Iterator[tombstones.Tombstone]:
    if str(file) == "none":
        return
    for line in file.read_text().splitlines():
        try:
            yield tombstones.Tombstone.model_validate(json.loads(line))
        except ValueError:
            raise Refused(f"{file} holds something else than tombstones") from None


def _write(file: Path, text: str) -> None:
    """Replace a file by a whole and durable one."""
    draft = file.with_name(f".{file.name}.draft")
    with draft.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    draft.replace(file)


if __name__ == "__main__":
    sys.exit(main())
