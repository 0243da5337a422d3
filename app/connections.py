"""Connections: buckets elsewhere that the operator lets tenants import from."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

_BUCKET = r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]"
_PREFIX = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*"
BLOBS_URL = re.compile(rf"s3://{_BUCKET}(/{_PREFIX})?")
EVERY_TENANT = "*"
_AWS = ".amazonaws.com"
_BROKER = re.compile(r"(memory|rediss?|redis\+socket)://")
_ENCRYPTED = {"require", "verify-ca", "verify-full"}
"""Values of libpq's ``sslmode`` with which nothing is sent unless it is encrypted."""
_PROOFS = {"password", "passfile", "sslcert"}
"""Parameters of libpq that say who comes."""

BucketName = Annotated[str, StringConstraints(pattern=rf"^{_BUCKET}$")]
Tenant = Annotated[str, StringConstraints(pattern=r"^(ten_[0-9A-Za-z]+|\*)$")]


class Connection(BaseModel):
    """A bucket, or a part of one, that some tenants may read; callers know it by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: BucketName
    """Stands for the bucket in ``s3://name/key``."""
    tenants: Annotated[tuple[Tenant, ...], Field(min_length=1)]
    """Ids of those who may read it; ``*`` is everyone."""
    bucket: BucketName | None = None
    """The bucket itself; called like the connection where left out."""
    prefix: str = Field("", pattern=rf"^({_PREFIX})?$")
    """Folder in which a key has to lie; empty is the whole bucket."""
    endpoint: str = ""
    """Address of the store, http(s)://host[:port]; empty is that of AWS in the region."""
    region: str = Field("us-east-1", pattern=r"^[a-z0-9\-]+$")
    access_key: str = ""
    """Without one the machine's own role is used, and the variables of AWS."""
    secret_key: SecretStr | None = None
    secret_key_file: Path | None = None
    """File that holds the secret; read anew for every import."""

    @model_validator(mode="after")
    def _refuse_odd(self) -> Connection:
        if self.endpoint and not is_endpoint(self.endpoint):
            raise ValueError("endpoint must be http(s)://host[:port] and no more")
        secrets = [each for each in (self.secret_key, self.secret_key_file) if each is not None]
        if len(secrets) != bool(self.access_key):
            raise ValueError("access_key goes together with secret_key or with secret_key_file")
        if is_in_the_clear(self.endpoint):
            raise ValueError("endpoint must be https://... on another machine")
        return self

    @property
    def address(self) -> str:
        """The endpoint in force."""
        return endpoint_of(self.endpoint, self.region)

    @property
    def bucket_name(self) -> str:
        """The bucket in force."""
        return self.bucket or self.name

    def admits(self, tenant_id: str) -> bool:
        """Whether this tenant may read it."""
        return EVERY_TENANT in self.tenants or tenant_id in self.tenants

    def holds(self, key: str) -> bool:
        """Whether this key lies in the folder."""
        return not self.prefix or key.startswith(f"{self.prefix}/")

    def secret(self) -> str:
        """Return the secret that belongs to the access key.

        Raises:
            OSError: if its file cannot be read.
        """
        if self.secret_key_file is not None:
            return self.secret_key_file.read_text().strip()
        assert self.secret_key is not None  # beside an access key
        return self.secret_key.get_secret_value()


def endpoint_of(endpoint: str, region: str) -> str:
    """Return the address of a store: that of AWS in the region where none is named."""
    return endpoint or f"https://s3.{region}.amazonaws.com"


def server_of(endpoint: str) -> tuple[str, int | None]:
    """Return host and port of a store, however its address is spelt; AWS is one for all regions.

    Example:
        >>> server_of("https://S3.example:443") == server_of("https://s3.example.")
        True
    """
    parts = urlsplit(endpoint)
    host = (parts.hostname or "").rstrip(".")
    if host.endswith(_AWS):
        return _AWS, None  # a bucket has one name in all its regions, and is behind either port
    return host, parts.port or {"http": 80, "https": 443}[parts.scheme]


def is_elsewhere(host: str) -> bool:
    """Whether what is sent to this host leaves the machine.

    A name without a dot does not: it is ``localhost``, or a service of the same container network.
    """
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return "." in host.rstrip(".")


def is_in_the_clear(address: str) -> bool:
    """Whether what is sent to this address, of HTTP or Redis, crosses a network readable."""
    parts = [urlsplit(each) for each in address.split(";")]
    return any(x.scheme in ("http", "redis") and is_elsewhere(x.hostname or "") for x in parts)


def is_open(redis: str) -> bool:
    """Whether this Redis of another machine asks nobody for a password or a certificate."""
    parts = [urlsplit(each) for each in redis.split(";")]
    return any(
        is_elsewhere(each.hostname or "")
        and not each.password
        and "ssl_certfile" not in parse_qs(each.query)
        for each in parts
    )


def is_broker(url: str) -> bool:
    """Whether this is a broker that jobs can be rung through, or several after each other."""
    return all(map(_BROKER.match, url.split(";")))


def is_open_database(url: str) -> bool:
    """Whether this database of another machine is reached readable, or asks nobody who comes.

    Raises:
        ValueError: if it is no URL of a database.
    """
    try:
        parts = make_url(url)
    except ArgumentError:
        raise ValueError("not a URL of a database") from None
    query = parts.normalized_query
    listed = [each for name in ("host", "hostaddr") for each in query.get(name, ())]
    hosts = [parts.host or "", *",".join(listed).split(",")]
    if not any(map(_is_server_elsewhere, hosts)):
        return False
    is_encrypted = {*query.get("sslmode", [""])} <= _ENCRYPTED
    return not (is_encrypted and (parts.password or query.keys() & _PROOFS))


def _is_server_elsewhere(host: str) -> bool:
    """Whether a host as libpq has it, with or without a port, or a socket, is another machine."""
    name = host.partition(":")[0] if host.count(":") == 1 else host
    return not host.startswith(("/", "@")) and is_elsewhere(name)


def is_endpoint(text: str) -> bool:
    """Whether this is the address of a server, and nothing more."""
    parts = urlsplit(text)
    try:
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        return False
    return known and text == f"{parts.scheme}://{parts.netloc}" and "@" not in parts.netloc
