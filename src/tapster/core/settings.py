"""Settings: data, read once from `TAPSTER_*` variables and `tapster up` options."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tapster.contract.errors import TapsterError

MIB = 1 << 20
_LEVELS = ("debug", "info", "warning", "error")
_FORMATS = ("auto", "json", "text")


def _setting(
    default: Any,
    text: str,
    choices: tuple[str, ...] = (),
    *,
    share: bool = False,
    secret: bool = False,
) -> Any:
    known = {"help": text, "choices": choices, "share": share}
    return field(default=default, metadata=known, repr=not secret)


@dataclass(frozen=True)
class Settings:
    """Every setting. Each has a variable `TAPSTER_<NAME>`; `docs/reference` is made from this."""

    home: Path = _setting(Path("~/.tapster"), "folder of the embedded state")
    host: str = _setting("127.0.0.1", "address that every port binds to")
    port: int = _setting(8000, "port of the control API")
    rest_port: int = _setting(8501, "port of REST inference")
    grpc_port: int = _setting(8500, "port of gRPC inference")
    workers: int = _setting(1, "data-plane processes")
    no_auth: bool = _setting(False, "let everybody in; refused on any address but loopback")
    database_url: str = _setting("", "postgresql://... instead of SQLite in the home")
    blob_store: str = _setting("file", "plug-in that keeps datasets and packages")
    executor: str = _setting("local", "plug-in that starts job processes")
    job_slots: int = _setting(2, "jobs that run at once on this machine")
    job_memory: int = _setting(0, "bytes a job may use; 0 is 80 % of the machine's memory")
    job_time_limit: float = _setting(24 * 3600.0, "seconds a job may run unless it says otherwise")
    conversion_timeout: float = _setting(120.0, "seconds an ONNX conversion may take")
    max_body: int = _setting(64 * MIB, "bytes of a request's body on the inference port")
    body_memory: int = _setting(
        256 * MIB, "bytes of bodies under way that a worker may hold, and of answers not taken"
    )
    max_headers: int = _setting(64 * 1024, "bytes of a request's headers")
    receive_timeout: float = _setting(10.0, "seconds a client has for headers, and for a body")
    keep_alive: float = _setting(75.0, "seconds an idle connection is kept")
    stop_grace: float = _setting(30.0, "seconds that a stop lets requests in flight finish")
    resident_memory: int = _setting(0, "bytes of a worker's models in memory; 0 is no limit")
    cache_memory: int = _setting(64 * MIB, "bytes of answers that a worker keeps for endpoints")
    run_threads: int = _setting(1, "threads that one run of a model may use")
    inline_budget: float = _setting(0.0005, "seconds of model work a turn of the event loop")
    model_memory: int = _setting(2048 * MIB, "bytes a model in a process of its own may use")
    model_start_timeout: float = _setting(60.0, "seconds such a model may take to load")
    model_instances: int = _setting(1, "processes of such a model in each worker")
    python_models: bool = _setting(False, "run models that are Python code; they can do anything")
    skops_trusted: str = _setting("", "types that skops files may hold, besides its own list")
    payload_bytes: int = _setting(
        1024 * MIB, "bytes of logged payloads that a tenant keeps; the oldest go first"
    )
    currency: str = _setting("EUR", "name of the one currency of prices and bills")
    log_level: str = _setting("info", "debug, info, warning or error", _LEVELS)
    log_format: str = _setting("auto", "json, text, or auto: text on a terminal", _FORMATS)
    access_log: float = _setting(0.0, "share of requests that get a log line", share=True)
    slow_request: float = _setting(5.0, "seconds from which a request is logged as slow; 0: never")
    otel_endpoint: str = _setting("", "base URL of an OTLP/HTTP collector that traces are sent to")
    otel_sample: float = _setting(
        0.01, "share of requests traced when their caller does not say", share=True
    )
    audit_heads: str = _setting("", "second folder that heads of the audit record are kept in")
    trusted_proxies: str = _setting(
        "", "addresses of proxies whose X-Forwarded-For is believed, commas between"
    )
    session_seconds: float = _setting(12 * 3600.0, "seconds that a member stays signed in")
    oidc_issuer: str = _setting("", "issuer of the OpenID provider that members sign in with")
    oidc_client_id: str = _setting("", "what that provider calls this installation")
    oidc_secret_file: str = _setting("", "file of its secret there; none for a public client")
    oidc_claim: str = _setting("email", "claim that a member is told by at the first sign-in")
    master_key_file: str = _setting("", "file of the master key: switches encryption at rest on")
    master_key: str = _setting("", "the master key itself, in hex or base64", secret=True)
    master_key_command: str = _setting("", "command that prints the master key")
    master_key_previous_file: str = _setting("", "file of the master key that was set before")
    master_key_previous: str = _setting("", "that key itself, in hex or base64", secret=True)
    master_key_previous_command: str = _setting("", "command that prints that key")
    memory_folder: str = _setting("/dev/shm", "memory file system for what is decrypted")  # noqa: S108
    tls: str = _setting("off", "off, or auto: a certificate made at first start", ("off", "auto"))
    tls_cert: str = _setting("", "file of a certificate, and its chain: TLS on every port")
    tls_key: str = _setting("", "file of its private key")
    tls_client_ca: str = _setting("", "file of the authorities whose agents control lets in")
    tls_ca: str = _setting("", "file of the authorities that clients and agents trust")
    tls_agent_cert: str = _setting("", "file of the certificate that the agent shows to control")
    tls_agent_key: str = _setting("", "file of its private key")
    control_url: str = _setting("", "control on another host: only a data plane is started here")

    @property
    def url(self) -> str:
        """Base URL of the control API, as a client on this machine reaches it."""
        return f"{self._scheme}://{_reachable(self.host)}:{self.port}"

    @property
    def rest_url(self) -> str:
        """Base URL of REST inference, as a client on this machine reaches it."""
        return f"{self._scheme}://{_reachable(self.host)}:{self.rest_port}"

    @property
    def grpc_url(self) -> str:
        """Where gRPC inference answers, as clients of gRPC want it: host and port."""
        return f"{_reachable(self.host)}:{self.grpc_port}"

    @property
    def encrypted(self) -> bool:
        """Whether every port speaks TLS."""
        return bool(self.tls_cert) or self.tls == "auto"

    @property
    def _scheme(self) -> str:
        return "https" if self.encrypted else "http"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in {"127.0.0.1", "localhost", "::1"}

    def environment(self) -> dict[str, str]:
        """The variables that make `load` give these settings in a child process."""
        return {f"TAPSTER_{f.name.upper()}": _spell(getattr(self, f.name)) for f in fields(self)}


def load(environment: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Read settings: defaults, then `TAPSTER_*`, then `overrides` that are not None.

    Raises TapsterError(invalid) naming the variable whose value cannot be read.
    """
    values: dict[str, Any] = {}
    for item in fields(Settings):
        variable = f"TAPSTER_{item.name.upper()}"
        given = overrides.get(item.name)
        if given is not None:
            values[item.name] = given
        elif environment.get(variable, "") != "":
            values[item.name] = _parse(variable, environment[variable], item.default)
        _check(variable, values.get(item.name, item.default), item.metadata)
    settings = Settings(**values)
    object.__setattr__(settings, "home", Path(settings.home).expanduser().absolute())
    where = urlsplit(settings.control_url)
    if settings.control_url and not (where.scheme in {"http", "https"} and where.hostname):
        raise TapsterError(
            "invalid",
            f"TAPSTER_CONTROL_URL={settings.control_url!r} is not a server's URL",
            hint="it looks like https://10.0.0.5:8000",
            field="control_url",
        )
    if settings.no_auth and not settings.loopback:
        raise TapsterError(
            "invalid",
            f"--no-auth is refused on {settings.host}: everybody on the network would be admin",
            hint="bind to 127.0.0.1, or drop --no-auth and use keys",
            field="no_auth",
        )
    return settings


def _parse(variable: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.strip().lower()
            ]
        return type(default)(text)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default))
        raise TapsterError(
            "invalid", f"{variable}={text!r} is not {kind or 'usable'}", field=variable
        ) from None


def _check(variable: str, value: Any, known: Mapping[str, Any]) -> None:
    if known["choices"] and value not in known["choices"]:
        words = ", ".join(known["choices"])
        raise TapsterError("invalid", f"{variable}={value!r} is not one of {words}", field=variable)
    if known["share"] and not 0 <= value <= 1:
        raise TapsterError("invalid", f"{variable}={value!r} is not from 0 to 1", field=variable)


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reachable(host: str) -> str:
    if host in {"0.0.0.0", ""}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
