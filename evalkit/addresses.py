"""Addresses such as `s3://bucket/folder`: told from paths, and shown without the secrets that can be in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_LOCAL: Final = ("file://", "local://")

# Where buckets are: no `@` is part of the way to a file but that of a revision, and no colon is before it.
_BUCKETS: Final = frozenset({"s3", "s3a", "gs", "gcs", "hf"})

# Where `NAME@HOST` says which container of the host is meant, or as whom to log in; that is no secret.
_NAMED_HOSTS: Final = frozenset(
    {"abfs", "abfss", "az", "adl", "wasb", "wasbs", "sftp", "ssh", "ftp", "ftps", "smb", "hdfs", "webhdfs"}
)

_NO_HOST: Final = frozenset({"file", "local", "memory"})

# Of bounded length each, so that long texts take no longer than they are.
# `user:password@` before the host; or before anything, when what follows the colon is no port: keys of S3 have slashes.
# A web address has nothing before an `@` that is for others. Whole addresses are judged by `has_password`.
_USER: Final = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,20}://)(?:"
    r"[^/\s'\"]{0,500}:[^/\s'\"]{0,500}@"
    r"|[^/\s:@'\"]{1,500}:(?!\d*(?:[/'\"\s]|$))[^\s'\"@]{0,500}@"
    r"|(?:(?<=s3://)|(?<=s3a://)|(?<=gs://)|(?<=gcs://))[^\s'\":%@]{0,500}(?::|%3[Aa])[^\s'\"]{0,500}@"
    r"|(?:(?<=http://)|(?<=https://))[^/\s'\"?#@]{1,500}@)"
)

# Everything after the `?` of a web address; file systems that list have wildcards there.
_QUERY: Final = re.compile(r"(https?://[^\s'\"?<>]+)\?[^\s'\"<>]*", re.IGNORECASE)

# What signs a request, wherever it stands: messages of libraries quote parts of addresses, too.
_SIGNATURE: Final = re.compile(
    r"([?&;]|\b)((?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig)=)[^&\s'\"<>]+",
    re.IGNORECASE,
)

_PLACES: Final[dict[str, str]] = {}


def is_address(text: str) -> bool:
    """Whether `text` names a file system (`s3://...`), and is not a path of this machine's."""
    return _ADDRESS.match(text) is not None


def local_part(text: str) -> str | None:
    """Return the path in an address of this machine's own files (`file:///data`), or None when it is no such."""
    text = with_plain_scheme(text)
    return next((text.removeprefix(prefix) for prefix in _LOCAL if text.startswith(prefix)), None)


def with_plain_scheme(address: str) -> str:
    """Return an address with its scheme in small letters, as file systems are called."""
    scheme, separator, rest = address.partition("://")
    return f"{scheme.lower()}{separator}{rest}" if separator else address


def has_password(address: str) -> bool:
    """Whether an address, which is all of the text, says what only its owner should know: a password, a token.

    In doubt it does: keys have slashes, quotes and blanks in them.
    """
    scheme, separator, rest = address.partition("://")
    scheme = scheme.rpartition("::")[2].lower()
    rest = re.sub("%3A", ":", re.sub(r"^([^/@]*@)?\[[0-9A-Fa-f:.]*\]", r"\1host", rest), flags=re.IGNORECASE)
    if not separator or scheme in _NO_HOST:
        return False
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if scheme in _BUCKETS:
        return "@" in rest.partition(":")[2] or "@" in host
    if "@" in host:
        return scheme not in _NAMED_HOSTS or ":" in host.rpartition("@")[0]
    # A password with a slash in it; not a port, and not an `@` in a query.
    return re.match(r"[^/?#:@]*:(?!\d*(?:[/?#]|$)).*@", rest, re.DOTALL) is not None


def without_query(address: str) -> str:
    """Return a web address without its query, which can hold a signature; other addresses as they are."""
    return address.partition("?")[0] if address.lower().startswith(("http://", "https://")) else address


def name_place(folder: str, address: str) -> None:
    """From now on call what lies in this folder, a copy for this machine, by its address."""
    _PLACES[folder] = address


def address_of(folder: Path) -> str | None:
    """Return the address that a folder stands for; None: it is no copy."""
    return _PLACES.get(str(folder.absolute()))


def named(text: str) -> str:
    """Return a text in which the copies of `name_place` go by their addresses."""
    for folder, address in _PLACES.items():
        text = text.replace(folder, address)
    return text


def redact(text: str) -> str:
    """Return a message without what must not be shown: passwords in addresses, queries of web addresses, signatures.

    Copies of results go by the addresses that they are copies of.

    >>> redact("https://host/f.jsonl?X-Amz-Signature=1f2e: 403")
    'https://host/f.jsonl?...'
    >>> redact("s3://user:password@bucket/f.jsonl is not there")
    's3://...@bucket/f.jsonl is not there'
    """
    text = named(text)
    if "://" not in text and "=" not in text:
        return text
    return _SIGNATURE.sub(r"\1\2...", _QUERY.sub(r"\1?...", _USER.sub(r"\1...@", text)))
