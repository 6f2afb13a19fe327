"""URLs that data may come from. No polars here: the control process checks URLs too."""

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from tapster.contract.errors import TapsterError

DATABASES: Final = ("sqlite", "postgresql", "postgres")
# Of a PostgreSQL URL: the credentials end at the only "@", before any "/", "?" and "#".
_PLAIN: Final = re.compile(r"([^@/?#]*@)?[^@/?#]*(/[^@?#]*)?(\?[^@#]*)?")
# One with a user, a password and one host, which is no socket; and its options.
_NAMED: Final = re.compile(
    r"[^@/?#:]+:[^@/?#]+@(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?/[^@/?#]+(?:\?([^@#]*))?"
)
# Options of a PostgreSQL URL that say neither where to read nor as whom.
_HARMLESS: Final = frozenset({"", "sslmode", "connect_timeout", "application_name"})
_MAGIC: Final = b"SQLite format 3\x00"


def check_url(url: str, table: str, query: str) -> None:
    """Raise TapsterError(invalid) unless a URL's scheme and its companions fit together."""
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in {*DATABASES, "s3"}:
        raise TapsterError(
            "invalid",
            f"{masked(url)!r} is not a URL that data can come from",
            hint="give sqlite:///FILE, postgresql://..., s3://BUCKET/KEY, or send a file",
            field="url",
        )
    if scheme == "s3" and (table or query):
        raise TapsterError(
            "invalid", "table and query are for databases", hint="drop them", field="table"
        )
    if scheme in DATABASES and bool(table) == bool(query):
        raise TapsterError(
            "invalid",
            "a database needs either a table or a query",
            hint="give the one you mean",
            field="table",
        )


def check_stranger(url: str) -> None:
    """Raise TapsterError(forbidden) for a checked URL that is read with what the server may read.

    Its files, its `AWS_*` keys and its name at a database (peer, a password file) are the
    installation's: another tenant names a host, a user and a password of its own.
    """
    scheme, _, rest = url.partition("://")
    named = _NAMED.fullmatch(rest)
    asked = {each.partition("=")[0] for each in (named[1] or "").split("&")} if named else set()
    if scheme.lower() not in DATABASES[1:] or named is None or not asked <= _HARMLESS:
        raise TapsterError(
            "forbidden",
            "that is read as the server itself, which only the installation's own tenant may ask",
            hint="send a file, or give postgresql://USER:PASSWORD@HOST/DATABASE",
            field="url",
        )


def masked(url: str) -> str:
    """A URL as it may be shown: the password hidden, options (which may hold one) dropped."""
    scheme, _, rest = url.partition("://")
    if scheme in DATABASES[1:] and not _PLAIN.fullmatch(rest):
        return f"{scheme}://***"  # where its password ends is anybody's guess
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the URL"
    place = parts.netloc
    if "@" in place:
        user, _, host = place.rpartition("@")
        place = f"{user.partition(':')[0]}:***@{host}" if ":" in user else place
    return f"{parts.scheme}://{place}{parts.path}" if parts.scheme else url.partition("?")[0]


def sqlite_path(url: str, home: Path | None = None) -> Path:
    """The file of `sqlite:///relative` or `sqlite:////absolute`, known to be an SQLite database.

    Raises TapsterError: not_found, invalid if it is something else, forbidden if it lies in
    Tapster's own `home` (the one of this process when not given).
    """
    text = unquote(url.partition("://")[2].partition("?")[0])
    path = _resolved(text.removeprefix("/"), url)
    own = home or Path(os.environ.get("TAPSTER_HOME", "~/.tapster"))
    if path.is_relative_to(own.expanduser().resolve()):
        raise TapsterError(
            "forbidden",
            "that database is Tapster's own",
            hint="name another file",
            field="url",
        )
    try:
        if not path.is_file():  # a pipe would never answer
            raise _unreadable(url)
        with path.open("rb") as stream:
            start = stream.read(len(_MAGIC))
    except OSError:
        raise _unreadable(url) from None
    if start != _MAGIC:
        raise TapsterError(
            "invalid",
            f"the file at {masked(url)} is not an SQLite database",
            hint="send other files with `tapster data add NAME PATH`",
            field="url",
        )
    return path


def _resolved(text: str, url: str) -> Path:
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        raise _unreadable(url) from None


def _unreadable(url: str) -> TapsterError:
    return TapsterError(
        "not_found",
        f"there is no readable file at {masked(url)[:300]!r}",
        hint="the path is one of the server's: sqlite:///relative or sqlite:////absolute",
        field="url",
    )
