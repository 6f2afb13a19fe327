"""The way from a data plane to the control plane, on this machine or another."""

import http.client
import ssl
from urllib.parse import urlsplit

from tapster.contract.errors import TapsterError
from tapster.core import tls
from tapster.core.settings import Settings


def connect(settings: Settings, timeout: float) -> http.client.HTTPConnection:
    """A connection that is made at its first request. Raises OSError for unusable certificates."""
    where = urlsplit(settings.control_url or settings.url)
    host = where.hostname or "127.0.0.1"
    if where.scheme != "https":
        return http.client.HTTPConnection(host, where.port, timeout=timeout)
    context = _trust(settings)  # of the files as they are now: certificates are renewed
    return http.client.HTTPSConnection(host, where.port, timeout=timeout, context=context)


def _trust(settings: Settings) -> ssl.SSLContext:
    try:
        if settings.control_url:
            context = tls.trusting(settings.tls_ca)
        else:
            context = tls.trusting_only(settings.tls_cert)
    except TapsterError as error:
        raise OSError(error.message) from None
    if settings.tls_agent_cert:
        key = settings.tls_agent_key or settings.tls_agent_cert
        context.load_cert_chain(settings.tls_agent_cert, key)
    return context
