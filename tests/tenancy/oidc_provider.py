"""An OpenID provider in a process of its own: `python -m tests.tenancy.oidc_provider FOLDER`.

Its grants, PKCE and token endpoint are Authlib's server parts; ID tokens are signed with RS256.
Whoever comes is signed in at once, as `person.json` in the folder says: {"sub", "email", ...};
`faults` there spoils its answers. The file `url` says where it answers.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = "tapster-tests"
SECRET = "the client's secret"


class Provider(ThreadingHTTPServer):
    """Keys, codes that were given out, and the person who signs in."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.issuer = f"http://127.0.0.1:{self.server_address[1]}"
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.other = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.codes: dict[str, dict[str, str]] = {}

    def person(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "person.json").read_text())
        return found


class Handler(BaseHTTPRequestHandler):
    server: Provider

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/.well-known/openid-configuration":
            issuer = self.server.issuer
            self._json(200, {
                "issuer": issuer, "authorization_endpoint": f"{issuer}/authorize",
                "token_endpoint": f"{issuer}/token", "jwks_uri": f"{issuer}/keys",
            })  # fmt: skip
        elif parts.path == "/keys":
            self._json(200, {"keys": [self.server.key.as_dict(private=False)]})
        elif parts.path == "/authorize":
            self._authorize(dict(parse_qsl(parts.query)))
        else:
            self._json(404, {})

    def _authorize(self, asked: dict[str, str]) -> None:
        good = (
            asked["client_id"] == CLIENT
            and asked["response_type"] == "code"
            and asked["code_challenge_method"] == "S256"
            and "openid" in asked["scope"].split()
        )
        code = f"code-{len(self.server.codes)}-{time.time_ns()}"
        self.server.codes[code] = asked
        back = {"code": code} if good else {"error": "invalid_request"}
        self.send_response(302)
        state = {"state": asked["state"]}
        self.send_header("Location", f"{asked['redirect_uri']}?{urlencode({**back, **state})}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        form = dict(parse_qsl(self.rfile.read(length).decode()))
        begun = self.server.codes.pop(form.get("code", ""), None)
        challenge = create_s256_code_challenge(form.get("code_verifier", ""))
        basic = httpx_basic(CLIENT, SECRET)
        if (
            begun is None
            or begun["redirect_uri"] != form["redirect_uri"]
            or begun["code_challenge"] != challenge
            or self.headers.get("Authorization") != basic
        ):
            self._json(400, {"error": "invalid_grant"})
            return
        self._json(200, {"access_token": "access", "token_type": "Bearer",
                         "id_token": self._identity(begun)})  # fmt: skip

    def _identity(self, begun: dict[str, str]) -> str:
        person, now = self.server.person(), int(time.time())
        spoiled = person.pop("faults", {})
        claims = {
            "iss": self.server.issuer, "aud": CLIENT, "exp": now + 300, "iat": now,
            "nonce": begun["nonce"], **person, **spoiled.get("claims", {}),
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        if spoiled.get("alg") == "none":
            return unsigned(claims)
        key = self.server.other if spoiled.get("key") == "other" else self.server.key
        return str(jwt.encode({"alg": "RS256", "kid": "one"}, claims, key))

    def _json(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def httpx_basic(client: str, secret: str) -> str:
    """RFC 7617."""
    import base64

    return "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()


def unsigned(claims: dict[str, Any]) -> str:
    """An ID token that anybody can make."""
    import base64

    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."


if __name__ == "__main__":
    home = Path(sys.argv[1])
    provider = Provider(home)
    (home / "url.part").write_text(provider.issuer)
    (home / "url.part").rename(home / "url")
    provider.serve_forever()
