"""HTTP to one server: addresses, keys, and answers turned into nouns or TapsterErrors."""

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from tapster.client import remembered
from tapster.contract.errors import HTTP_STATUS, Code, TapsterError

T = TypeVar("T")
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
# Two threads that work out a type at once, at its first use, crash msgspec (0.22).
_making: Final = threading.Lock()
# What a data plane says of the control API's paths, and what `failure` says of a stranger.
_NO_CONTROL: Final = ("there is nothing at this path", "the server answered with status 404")
_CODE_OF: Final[dict[int, Code]] = {status: code for code, status in HTTP_STATUS.items()}


@dataclass(frozen=True)
class Address:
    """Where a server is. `rest_url` is empty when only the server itself knows it.

    `certificate` is the file of the one that it shows, of a server on this machine.
    """

    url: str
    key: str
    rest_url: str = ""
    certificate: str = ""


def home_folder(home: str | Path | None = None) -> Path:
    """The folder of the embedded state: as given, else `$TAPSTER_HOME`, else `~/.tapster`."""
    return Path(home or os.environ.get("TAPSTER_HOME") or "~/.tapster").expanduser().absolute()


def locate(url: str | None, key: str | None, home: Path) -> Address | None:
    """The server that was named, or that runs on `home`; None when there is neither.

    A name is `url`, else `$TAPSTER_URL`; the key is `key`, else `$TAPSTER_KEY`, else the session of
    `tapster login` there, else the home's admin key, which is never sent to another machine.
    """
    url = url or os.environ.get("TAPSTER_URL") or ""
    key = key or os.environ.get("TAPSTER_KEY") or ""
    if not url:
        return on_home(home, key)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise TapsterError(
            "invalid", f"{url!r} is not a server's URL", hint="it looks like http://127.0.0.1:8000"
        )
    url = url.rstrip("/")
    key = key or remembered.token(home, url)
    if not key and parts.hostname in LOOPBACK:
        key = _admin_key(home)
    running = read_run(home)
    known = running if running is not None and running["url"] == url else {}
    return Address(url, key, certificate=known.get("certificate", ""))


def on_home(home: Path, key: str = "") -> Address | None:
    """The server that runs on `home`; None if none. See `locate` for the key, if none is given."""
    running = read_run(home)
    if running is None:
        return None
    key = key or remembered.token(home, running["url"]) or _admin_key(home)
    certificate = running.get("certificate", "")
    return Address(running["url"], key, running.get("rest_url", ""), certificate)


def read_run(home: Path) -> dict[str, Any] | None:
    """What the server on `home` says of itself (`pid`, `url`, `rest_url`); None if none runs."""
    try:
        running = json.loads((home / "run.json").read_bytes())
        return running if running["url"] and _alive(int(running["pid"])) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:  # it exists and belongs to somebody else
        return True
    except OSError:
        return False
    return True


def _admin_key(home: Path) -> str:
    try:
        return (home / "admin.key").read_text().strip()
    except OSError:
        return ""


def spell(part: str) -> str:
    """A name or reference as one segment of a URL's path."""
    return quote(part, safe="@:")


def _trust(address: Address) -> Any:
    """What a server's certificate is checked against.

    Of a server on this machine, the certificate that it shows; else `$TAPSTER_TLS_CA`, else the
    system's authorities.
    """
    if not address.url.startswith("https:"):
        return True
    from tapster.core import tls

    if address.certificate:
        return tls.trusting_only(address.certificate)
    authorities = os.environ.get("TAPSTER_TLS_CA", "")
    return tls.trusting(authorities) if authorities else True


class Transport:
    """One connection pool. Raises TapsterError for everything that is not an answer."""

    def __init__(self, address: Address) -> None:
        import httpx

        self.address = address
        headers = {"Authorization": f"Bearer {address.key}"} if address.key else {}
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(60.0, connect=5.0),
            trust_env=urlsplit(address.url).hostname not in LOOPBACK,
            verify=_trust(address),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def authorize(self, key: str) -> None:
        """Ask with another key or token from now on; "" for none."""
        self.address = replace(self.address, key=key)
        self._http.headers.pop("Authorization", None)
        if key:
            self._http.headers["Authorization"] = f"Bearer {key}"

    def call(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: Any = None,
        *,
        params: dict[str, Any] | None = None,
        content: Iterable[bytes] | bytes | None = None,
        timeout: float | None = None,
        at: str = "",
        tenant: str = "",
    ) -> T:
        """Ask, and decode the answer into `kind`. `path` is below /api/v1 unless `at` is given.

        With `tenant`, in the place of that one, for which the key may act.
        Raises TapsterError as the server gave it, or (unavailable) when none answers.
        """
        import msgspec

        url = at + path if at else f"{self.address.url}/api/v1{path}"
        headers = {"X-Tapster-Tenant": tenant} if tenant else {}
        extra: dict[str, Any] = {"params": params, "headers": headers}
        extra |= {} if timeout is None else {"timeout": timeout}
        if content is None and body is not None:
            content = encode(body)
            headers["Content-Type"] = "application/json"
        with self._errors(url):
            response = self._http.request(method, url, content=content, **extra)
        if response.status_code >= 300:
            error = failure(response.status_code, response.content)
            raise error if at else self._astray(error)
        try:
            with _making:
                decoder = msgspec.json.Decoder(kind)
            return decoder.decode(response.content)
        except msgspec.MsgspecError as error:
            raise TapsterError(
                "internal",
                f"the server answered {path} with something else than expected: {error}",
                hint="are client and server of the same version? see: tapster doctor",
            ) from None

    @contextmanager
    def stream(
        self, path: str, *, params: dict[str, Any] | None = None, timeout: float = 60.0
    ) -> Iterator[Any]:
        """A response whose body is read as it comes. `timeout` bounds the silence, in seconds."""
        url = f"{self.address.url}/api/v1{path}"
        with (
            self._errors(url),
            self._http.stream("GET", url, params=params, timeout=timeout) as response,
        ):
            if response.status_code >= 300:
                raise self._astray(failure(response.status_code, response.read()))
            yield response

    def _astray(self, error: TapsterError) -> TapsterError:
        """What control answered; where it does not answer at all, that."""
        if error.code == "not_found" and not error.hint and error.message in _NO_CONTROL:
            return TapsterError(
                "not_found",
                f"the control API is not at {self.address.url}",
                hint="is this the inference port? The control API's is 8000 by default",
            )
        return error

    @contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        import httpx

        server = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise TapsterError(
                    "unavailable",
                    f"the certificate of the server at {server} is not trusted",
                    hint="set TAPSTER_TLS_CA to the file of its authority's certificate",
                ) from None
            raise no_server(server) from None
        except httpx.TimeoutException:
            raise TapsterError(
                "deadline", f"the server at {server} did not answer in time", hint="try again"
            ) from None
        except (httpx.TransportError, httpx.StreamError):
            raise TapsterError(
                "unavailable",
                f"the connection to the server at {server} broke",
                hint="try again; if it stays so, see: tapster doctor",
            ) from None
        except httpx.InvalidURL:
            raise TapsterError("invalid", f"{url!r} is not a URL") from None


def encode(body: Any) -> bytes:
    """`body` as JSON. Raises TapsterError(invalid) for values that JSON does not have."""
    import msgspec

    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError) as error:
        raise TapsterError("invalid", f"this cannot be sent as JSON: {error}") from None


def no_server(url: str) -> TapsterError:
    """What to say when nothing listens at `url`."""
    return TapsterError(
        "unavailable", f"no Tapster server answers at {url}", hint="start one with: tapster up"
    )


def failure(status: int, body: bytes) -> TapsterError:
    """The error in a response, whichever wire's shape it has."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        error = f"the server answered with status {status}"
    if isinstance(error, dict):
        return TapsterError.from_dict(error)
    return TapsterError(_CODE_OF.get(status, "internal"), str(error))
