"""TLS for every port: certificates, contexts that take a renewed certificate, plain callers.

Modern defaults: TLS 1.2 and later, forward secrecy only (Mozilla's "intermediate" profile), no
renegotiation, no compression. A caller who speaks plain HTTP to such a port is told so in plain
HTTP, once.
"""

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tapster.contract.errors import TapsterError
from tapster.core.blobs import write_atomically
from tapster.core.settings import Settings

HTTP: Final = "http/1.1"
HTTP2: Final = "h2"
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
_VALID_DAYS: Final = 825
_RENEW_DAYS: Final = 30
_PLAIN: Final = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER"})
_BODY: Final = b'{"error": "this port speaks TLS: use https"}\n'
_REFUSAL: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class _Handshake(ssl.SSLObject):
    """One connection's TLS. Of a stranger who speaks no TLS, it answers what it can."""

    outgoing: ssl.MemoryBIO
    _refused: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """See ssl.SSLObject."""
        if self._refused is not None:
            raise self._refused
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            if error.reason not in _PLAIN:
                raise
            self._refused = error
            # To whoever drives us there is something to send, and more to wait for: it is sent,
            # and the next word, or the end of the time for handshakes, ends the connection.
            self.outgoing.write(_REFUSAL)
            raise ssl.SSLWantReadError from None


class Context(ssl.SSLContext):
    """A server's context that tells strangers what they did wrong."""

    sslobject_class = _Handshake

    def wrap_bio(self, incoming: Any, outgoing: Any, *arguments: Any, **options: Any) -> Any:
        """See ssl.SSLContext."""
        made: Any = super().wrap_bio(incoming, outgoing, *arguments, **options)
        made.outgoing = outgoing
        return made


class Certificate:
    """The certificate of this machine's ports, by its files; contexts made of it follow them."""

    def __init__(self, settings: Settings) -> None:
        self._files = (settings.tls_cert, settings.tls_key or settings.tls_cert)
        self._client_ca = settings.tls_client_ca
        self._contexts: list[Context] = []
        self._stamp = self._look()

    def context(self, protocol: str, *, clients: bool = False) -> Context:
        """A context for a port that speaks `protocol`; `clients` asks callers for certificates.

        Those of callers are optional: a route decides whether it needs one. Raises
        TapsterError(invalid) for files that cannot be used.
        """
        made = Context(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        made.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        made.set_ciphers(CIPHERS)
        made.set_alpn_protocols([protocol])
        self._load(made)
        if clients and self._client_ca:
            try:
                made.load_verify_locations(self._client_ca)
            except (OSError, ssl.SSLError) as error:
                raise _unusable("tls_client_ca", error) from None
            made.verify_mode = ssl.CERT_OPTIONAL
        self._contexts.append(made)
        return made

    def factory(self, protocol: str, *, clients: bool = False) -> Callable[..., ssl.SSLContext]:
        """`context`, for uvicorn, which calls for it."""
        made = self.context(protocol, clients=clients)
        return lambda *_: made

    def refresh(self, *, force: bool = False) -> bool:
        """Take the files again if they have changed; whether that was so.

        Connections go on with what they began with. Raises TapsterError(invalid), and then the
        certificate stays as it was.
        """
        stamp = self._look()
        if stamp == self._stamp and not force:
            return False
        self._stamp = stamp
        if stamp is None:
            raise _unusable("tls_cert", FileNotFoundError())
        self._load(Context(ssl.PROTOCOL_TLS_SERVER))  # a half-written pair spoils no live context
        for context in self._contexts:
            self._load(context)
        return True

    def _load(self, context: Context) -> None:
        certificate, key = self._files
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise _unusable("tls_cert", error) from None

    def _look(self) -> object:
        with suppress(OSError):
            found = [os.stat(path) for path in self._files]
            return [(each.st_mtime_ns, each.st_ino, each.st_size) for each in found]
        return None


def prepared(settings: Settings) -> Settings:
    """Settings with a certificate, made at first use if they ask for one.

    Raises TapsterError(invalid) for settings that contradict each other.
    """
    if settings.tls_key and not settings.tls_cert:
        raise TapsterError("invalid", "tls_key is set, and tls_cert is not", field="tls_cert")
    if settings.tls_cert:
        Certificate(settings).context(HTTP, clients=True)
        return settings
    if settings.tls_client_ca and settings.tls != "auto":
        raise TapsterError(
            "invalid",
            "tls_client_ca asks for client certificates, and the ports speak no TLS",
            hint="set tls_cert and tls_key, or tls=auto",
            field="tls_client_ca",
        )
    if settings.tls != "auto":
        return settings
    folder = settings.home / "tls"
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = _names(settings.host)
    if not key.exists() or not _good(certificate, names):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made, private = self_signed(names)
        write_atomically(key, private)
        write_atomically(certificate, made)
    return replace(settings, tls_cert=str(certificate), tls_key=str(key))


def trusting(authorities: str) -> ssl.SSLContext:
    """A client's context that trusts the authorities in a file, or the system's for "".

    Raises TapsterError(invalid).
    """
    try:
        context = ssl.create_default_context(cafile=authorities or None)
    except (OSError, ssl.SSLError) as error:
        raise _unusable("tls_ca", error) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def trusting_only(certificate: str) -> ssl.SSLContext:
    """A client's context for the server on this machine that shows the certificate in a file.

    That very certificate is what is checked, so its names and who signed it do not matter.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        text = Path(certificate).read_text("ascii")
        end = "-----END CERTIFICATE-----"
        context.load_verify_locations(cadata=text[: text.index(end) + len(end)] + "\n")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise _unusable("tls_cert", error) from None
    return context


def self_signed(names: Iterable[str]) -> tuple[bytes, bytes]:
    """A new certificate for some host names and addresses, and its private key; both PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tapster on this machine")])
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "crl_sign", "encipher_only", "decipher_only"),
        False,
    )  # fmt: skip
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general(word) for word in names]), False)
        # Clients are given it as the authority that it is signed by: itself.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(identifier, False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False
        )
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    made = builder.sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM), private


def days_left(certificate: Path) -> int:
    """Whole days for which the (first) certificate in a file is still good."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    return (found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days


def _general(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(host: str) -> list[str]:
    """What this machine is called: loopback, its names, and the address that ports bind to."""
    found = ["localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()]
    if host not in {"", "0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        found.append(host)
    return [name for name in dict.fromkeys(found) if name.isascii() and name]


def _good(certificate: Path, names: Iterable[str]) -> bool:
    """Whether a certificate of ours has all these names and some time to live."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        known = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.days >= _RENEW_DAYS and all(_general(name) in known for name in names)


def _no_password() -> str:
    raise ValueError("the private key is encrypted, which nobody could type in here")


def _unusable(name: str, error: Exception) -> TapsterError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "not PEM"
    return TapsterError(
        "invalid",
        f"the file that {name} names cannot be used: {reason}",
        hint="give a PEM file that this user may read; of a certificate, the chain after it",
        field=name,
    )
