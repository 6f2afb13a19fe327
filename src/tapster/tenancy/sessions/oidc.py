"""Signing in by OpenID Connect: authorization code with PKCE, and what an ID token must prove.

OpenID Connect Core 1.0 (3.1, authorization code flow), RFC 7636 (PKCE), RFC 8252 (loopback
redirects of native applications). All of it talks to the provider, so never in a transaction.
"""

import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tapster.contract.errors import TapsterError
from tapster.core.settings import Settings
from tapster.core.telemetry import logger

log = logger(__name__)

SCOPE: Final = "openid email profile"
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "ES256", "ES384", "EdDSA")
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_TIMEOUT: Final = 10.0
_LARGEST: Final = 1 << 20
_FRESH: Final = 600.0
_LEEWAY: Final = 60
_LONGEST_SUBJECT: Final = 255  # OpenID Connect Core, section 2
_LONGEST_ISSUER: Final = 400


@dataclass(frozen=True)
class Pending:
    """A sign-in under way: where the browser goes, and what must come back."""

    url: str
    state: str
    nonce: str
    verifier: str
    redirect: str


@dataclass(frozen=True)
class Identity:
    """Whom a provider vouches for: `subject` is its own name for them, `email` may be empty."""

    subject: str
    email: str


class Provider:
    """The installation's OpenID provider, as its settings name it."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.oidc_issuer
        self._client = settings.oidc_client_id
        self._secret_file = settings.oidc_secret_file
        self._claim = settings.oidc_claim
        self._lock = threading.Lock()
        self._known: tuple[float, dict[str, Any]] = (0.0, {})

    def begin(self, redirect: str) -> Pending:
        """Begin a sign-in that returns to `redirect`, which was checked.

        Raises TapsterError(unavailable) without an answer of the provider.
        """
        from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        url = prepare_grant_uri(
            self._metadata()["authorization_endpoint"],
            client_id=self._client,
            response_type="code",
            redirect_uri=redirect,
            scope=SCOPE,
            state=state,
            nonce=nonce,
            code_challenge=create_s256_code_challenge(verifier),
            code_challenge_method="S256",
        )
        return Pending(url, state, nonce, verifier, redirect)

    def finish(self, code: str, redirect: str, nonce: str, verifier: str) -> Identity:
        """Exchange a code, and say whom the provider vouches for.

        Raises TapsterError(unauthenticated) when it does not, (unavailable) when it is silent.
        """
        metadata = self._metadata()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect,
            "code_verifier": verifier,
            "client_id": self._client,
        }
        token = _fetch("POST", metadata["token_endpoint"], form, self._credential())
        identity = token.get("id_token")
        if not isinstance(identity, str):
            raise refused("there is no ID token in its answer")
        return self._identity(self._claims(metadata, identity, nonce, token.get("access_token")))

    def _credential(self) -> tuple[str, str] | None:
        """The client's id and secret (client_secret_basic), if it has one."""
        if not self._secret_file:
            return None
        try:
            return self._client, Path(self._secret_file).read_text().strip()
        except OSError as error:
            log.error("the secret of OpenID Connect cannot be read", reason=str(error.strerror))
            raise silent() from None

    def _metadata(self) -> dict[str, Any]:
        """What the provider says of itself (OpenID Connect Discovery 1.0), of late."""
        if not self._issuer or not self._client or len(self._issuer) > _LONGEST_ISSUER:
            raise TapsterError(
                "unsupported",
                "this installation has no OpenID provider",
                hint="sign in with a password, or set TAPSTER_OIDC_ISSUER and _CLIENT_ID",
            )
        with self._lock:
            at, found = self._known
            if time.monotonic() - at < _FRESH and found:
                return found
        found = _fetch("GET", self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != self._issuer:
            raise refused("it names another issuer")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            _check_address(str(found.get(name, "")))
        with self._lock:
            self._known = (time.monotonic(), found)
        return found

    def _claims(
        self, metadata: Mapping[str, Any], token: str, nonce: str, access: Any
    ) -> Mapping[str, Any]:
        """The claims of an ID token that is the provider's, ours, this sign-in's and in force."""
        from authlib.oidc.core import CodeIDToken
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        try:
            keys = KeySet.import_key_set(_fetch("GET", metadata["jwks_uri"]))  # type: ignore[arg-type]
            read = jwt.decode(token, keys, algorithms=list(ALGORITHMS))
            claims = CodeIDToken(
                read.claims,
                read.header,
                options={
                    "iss": {"essential": True, "value": self._issuer},
                    "aud": {"essential": True, "value": self._client},
                },
                params={"nonce": nonce, "client_id": self._client, "access_token": access},
            )
            claims.validate(leeway=_LEEWAY)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise refused(f"{type(error).__name__}: {error}") from None
        return dict(claims)

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject, found = claims["sub"], claims.get(self._claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
            raise refused("its subject is no short text")
        trusted = self._claim != "email" or claims.get("email_verified") is True
        email = found if isinstance(found, str) and trusted else ""
        return Identity(f"{self._issuer} {subject}", email)


def check_redirect(redirect: str) -> None:
    """Raise TapsterError(invalid) unless this is a page on the caller's own machine (RFC 8252)."""
    try:
        parts = urlsplit(redirect)
        good = parts.scheme == "http" and parts.hostname in LOOPBACK and bool(parts.port)
    except ValueError:
        good = False
    if not good or parts.username or parts.fragment or len(redirect) > 300:
        raise TapsterError(
            "invalid",
            "a browser returns to this machine only",
            hint="such as http://127.0.0.1:PORT/",
            field="redirect",
        )


def refused(reason: str) -> TapsterError:
    """What to say when a provider does not vouch for anybody; the log says why."""
    log.warning("a sign-in by OpenID Connect is refused", reason=reason)
    return TapsterError("unauthenticated", "the identity provider does not vouch for a member")


def silent() -> TapsterError:
    """What to say when a provider cannot be asked."""
    return TapsterError("unavailable", "the identity provider does not answer", hint="try again")


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise refused("an address of its is not https")


def _fetch(
    method: str,
    url: str,
    form: dict[str, str] | None = None,
    credential: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """A JSON object from the provider; redirects are not followed, and much is not read."""
    import httpx

    _check_address(url)
    body = b""
    own = urlsplit(url).hostname in LOOPBACK
    try:
        with (
            httpx.Client(timeout=_TIMEOUT, auth=credential, trust_env=not own) as client,
            client.stream(method, url, data=form, headers={"Accept": "application/json"}) as answer,
        ):
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > _LARGEST:
                    raise refused("its answer is too long")
            status = answer.status_code
        found = json.loads(body)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        log.warning("the identity provider does not answer", reason=type(error).__name__)
        raise silent() from None
    if status >= 500:
        raise silent()
    if status != 200 or not isinstance(found, dict):
        raise refused(f"it answers with status {status}")
    return found
