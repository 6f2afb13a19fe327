"""TLS on every port, with stock clients; plain callers; renewal; certificates of agents."""

import datetime
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from onnx import TensorProto, helper

import tapster
from tapster.contract.errors import TapsterError
from tapster.core import tls
from tapster.core.settings import load
from tests.conftest import Server

LIMIT = 30.0
DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """A certificate authority of the test's own."""

    folder: Path
    name: str = "ca"

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _name(f"Test {self.name}")
        self.path = self.folder / f"{self.name}.pem"
        made = self._builder(self._subject, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), True
        )
        self.path.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))

    def issue(self, name: str) -> tuple[str, str]:
        """A certificate for this machine, and its key; their files."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [tls._general(word) for word in ("127.0.0.1", "localhost")]
        made = self._builder(_name(name), key).add_extension(
            x509.SubjectAlternativeName(names), False
        )
        certificate, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        certificate.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))
        return str(certificate), str(private)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _ports(server: Server) -> dict[str, int]:
    found = {"control": server.url, "rest": server.rest_url, "grpc": f"//{server.grpc_url}"}
    return {name: urlsplit(url).port or 0 for name, url in found.items()}


def _handshake(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    line = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
    return context.wrap_socket(line, server_hostname="127.0.0.1")


def _shown(port: int) -> bytes:
    """The certificate that a port shows, whatever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with _handshake(port, context) as line:
        found = line.getpeercert(binary_form=True)
    assert found is not None
    return found


def _until(check: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + LIMIT
    while not (found := check()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.05)
    return found


def _deployed(server: Server, folder: Path) -> None:
    path = folder / "rows.csv"
    path.write_text("x,y\n" + "".join(f"{row},{row * 0.5 + row % 3}\n" for row in range(80)))
    with tapster.connect(home=server.home, start=False) as client:
        client.data_add("rows", path)
        client.wait(client.train("rows", "y", "line", algorithm="ridge", seed=1))
        client.deploy("line", "line")


def _imported(server: Server, folder: Path) -> None:
    """As `_deployed`, in less time: a graph that gives `x` back."""
    shape: list[str | int | None] = ["rows", 1]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "line",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "line.onnx"
    path.write_bytes(model.SerializeToString())
    with tapster.connect(home=server.home, start=False) as client:
        client.models_import("line", path)
        client.deploy("line", "line")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An installation with the certificate that it has made for itself."""
    folder = tmp_path_factory.mktemp("tls")
    running = Server(folder / "home", {"TAPSTER_TLS": "auto"}).start()
    _deployed(running, folder)
    yield running
    assert running.stop() == 0


def _certificate(server: Server) -> str:
    return str(json.loads((server.home / "run.json").read_bytes())["certificate"])


def test_clients_that_trust_the_certificate_are_served(server: Server) -> None:
    assert server.url.startswith("https://")
    assert server.rest_url.startswith("https://")
    trust = ssl.create_default_context(cafile=_certificate(server))
    key = {"Authorization": f"Bearer {server.key}"}
    body = {"rows": [{"x": 1.0}]}
    with httpx.Client(verify=trust, headers=key, timeout=LIMIT) as client:
        assert client.get(f"{server.url}/api/v1/info").json()["rest_url"] == server.rest_url
        assert client.get(f"{server.url.replace('127.0.0.1', 'localhost')}/health").is_success
        found = client.post(f"{server.rest_url}/v2/models/line/infer", json=_tensors())
        assert found.status_code == 200, (found.text, body)
        large = client.post(f"{server.rest_url}/v2/models/line/infer", content=b"x" * (70 << 20))
        assert large.status_code == 413


def _tensors() -> dict[str, Any]:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    return {"inputs": [tensor]}


def test_the_sdk_and_the_command_line_trust_it_by_the_run_file(server: Server) -> None:
    for named in ({}, {"TAPSTER_URL": server.url}):
        done = subprocess.run(
            [sys.executable, "-m", "tapster", "predict", "line", "--json", "--file", "-"],
            input=b'[{"x": 1.0}]',
            env={**_plain_environment(), "TAPSTER_HOME": str(server.home), **named},
            capture_output=True,
            check=False,
            timeout=LIMIT,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["predictions"]


def test_clients_elsewhere_are_told_what_to_trust(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPSTER_HOME", str(tmp_path))
    with (
        pytest.raises(TapsterError, match="is not trusted") as refusal,
        tapster.connect(server.url, key=server.key) as client,
    ):
        client.info()
    assert "TAPSTER_TLS_CA" in refusal.value.hint
    monkeypatch.setenv("TAPSTER_TLS_CA", _certificate(server))
    with tapster.connect(server.url, key=server.key) as client:
        assert client.info()["tenant"] == "default"


def _plain_environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("TAPSTER_")}


def test_grpc_speaks_it_too(server: Server) -> None:
    import grpc

    roots = Path(_certificate(server)).read_bytes()
    credentials = grpc.ssl_channel_credentials(root_certificates=roots)
    with closing(grpc.secure_channel(server.grpc_url, credentials)) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        assert ask(b"", timeout=LIMIT) == b"\x08\x01"
    with closing(grpc.insecure_channel(server.grpc_url)) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        with pytest.raises(grpc.RpcError) as refusal:
            ask(b"", timeout=LIMIT)
        assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("port", ["control", "rest", "grpc"])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_protocols_and_weak_ciphers_are_refused(server: Server, port: str) -> None:
    def agreed(version: ssl.TLSVersion, ciphers: str = "") -> tuple[str, str]:
        """The protocol and the cipher that both sides have settled on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers(ciphers or "DEFAULT")
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", _ports(server)[port]), LIMIT) as plain,
            context.wrap_socket(plain) as line,
        ):
            cipher = line.cipher()
            assert cipher is not None
            return str(line.version()), cipher[0]

    for version, ciphers in (
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA"),
    ):
        with pytest.raises((ssl.SSLError, ConnectionError)) as refusal:
            agreed(version, ciphers)
        assert "NO_CIPHERS_AVAILABLE" not in str(refusal.value), "refused by ourselves"
    protocol, cipher = agreed(ssl.TLSVersion.TLSv1_2)
    assert protocol == "TLSv1.2"
    assert cipher.startswith("ECDHE-")
    assert agreed(ssl.TLSVersion.TLSv1_3)[0] == "TLSv1.3"


def test_callers_who_speak_plain_http_are_told_and_left(server: Server) -> None:
    heads = (b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM")
    with ExitStack() as stack:
        lines = []
        for said, port in itertools.product(heads, _ports(server).values()):
            lines.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT)))
            lines[-1].sendall(said)
        for line in lines:
            got = _read(line, b'use https"}')
            assert got.startswith(b"HTTP/1.1 400 ")
            assert b"Connection: close" in got
        for line in lines:
            assert _read(line, b"never") == b"\n", "it hangs up by itself"


def _read(line: socket.socket, until: bytes) -> bytes:
    """What comes until some words, or the end."""
    got = b""
    while until not in got and (piece := line.recv(1)):
        got += piece
    return got


def test_its_key_is_its_owners_and_stays(server: Server) -> None:
    folder = server.home / "tls"
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    before = (folder / "cert.pem").read_bytes()
    settings = load({}, home=server.home, tls="auto")
    assert tls.prepared(settings).tls_cert == str(folder / "cert.pem")
    assert (folder / "cert.pem").read_bytes() == before


def test_a_host_that_the_certificate_does_not_name_makes_another(tmp_path: Path) -> None:
    first = tls.prepared(load({}, home=tmp_path, tls="auto"))
    known = Path(first.tls_cert).read_bytes()
    tls.prepared(load({}, home=tmp_path, tls="auto", host="192.0.2.7"))
    found = Path(first.tls_cert).read_bytes()
    assert found != known
    names = x509.load_pem_x509_certificate(found).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert tls._general("192.0.2.7") in names.value


@pytest.mark.parametrize(
    "given",
    [
        {"tls_key": "key.pem"},
        {"tls_client_ca": "ca.pem"},
        {"tls_cert": "/nonexistent/cert.pem"},
        {"tls_cert": "/etc/hostname"},
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(TapsterError):
        tls.prepared(load({}, home=tmp_path, **given))


def test_a_renewed_certificate_is_shown_without_a_restart(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    server = new_server(tls_cert=certificate, tls_key=key)
    before = {name: _shown(port) for name, port in _ports(server).items()}
    assert len(set(before.values())) == 1
    Path(certificate).write_bytes(b"nonsense")
    time.sleep(1.5)
    assert {name: _shown(port) for name, port in _ports(server).items()} == before

    other, other_key = authority.issue("renewed")
    shutil.copy(other_key, key)
    shutil.copy(other, certificate)
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wanted = x509.load_pem_x509_certificate(Path(other).read_bytes()).public_bytes(
        serialization.Encoding.DER
    )
    for port in _ports(server).values():
        _until(lambda port=port: _shown(port) == wanted, "the renewed certificate")  # type: ignore[misc]
    with tapster.connect(home=server.home, start=False) as client:
        assert client.info()["tenant"] == "default"
    _until(
        lambda: (
            httpx.get(
                f"{server.rest_url}/v2/health/ready", verify=tls.trusting(str(authority.path))
            ).is_success
        ),
        "ready",
    )


def test_agents_show_a_certificate_where_control_asks_for_one(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    authority, rogue = Authority(tmp_path), Authority(tmp_path, "rogue")
    certificate, key = authority.issue("server")
    agent, agent_key = authority.issue("agent")
    server = new_server(
        tls_cert=certificate,
        tls_key=key,
        tls_client_ca=authority.path,
        tls_agent_cert=agent,
        tls_agent_key=agent_key,
    )
    _imported(server, tmp_path)  # the agent has got its plan
    bearer = (server.home / "agent.key").read_text().strip()
    asked = f"{server.url}/internal/plan?after=-1"

    def ask(shown: tuple[str, str] | None, key: str = bearer, url: str = asked) -> httpx.Response:
        context = tls.trusting(str(authority.path))
        if shown:
            context.load_cert_chain(*shown)
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(url, verify=context, headers=headers, timeout=LIMIT)

    assert ask((agent, agent_key)).status_code == 200
    assert ask(None).status_code == 401
    assert ask((agent, agent_key), "tap_wrong").status_code == 401
    assert ask(None, server.key, f"{server.url}/api/v1/info").status_code == 200
    with pytest.raises(httpx.TransportError):
        ask(rogue.issue("intruder"))


def test_a_data_plane_alone_serves_by_a_control_plane_elsewhere(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    agent, agent_key = authority.issue("agent")
    control = new_server(
        tls_cert=certificate,
        tls_key=key,
        tls_client_ca=authority.path,
        tls_agent_cert=agent,
        tls_agent_key=agent_key,
    )
    _imported(control, tmp_path)
    certificate, key = authority.issue("plane")
    home = tmp_path / "elsewhere"
    home.mkdir()
    shutil.copy(control.home / "agent.key", home)
    shutil.copytree(control.home / "blobs", home / "blobs")
    plane = Server(
        home,
        {
            "TAPSTER_CONTROL_URL": f"{control.url}/",
            "TAPSTER_TLS_CA": str(authority.path),
            "TAPSTER_TLS_AGENT_CERT": agent,
            "TAPSTER_TLS_AGENT_KEY": agent_key,
            "TAPSTER_TLS_CERT": certificate,
            "TAPSTER_TLS_KEY": key,
        },
    )
    (home / "admin.key").write_text(control.key)
    plane.start()
    try:
        assert not plane.children("tapster.app"), "there is no control process"
        trust = tls.trusting(str(authority.path))
        headers = {"Authorization": f"Bearer {control.key}"}
        found = httpx.post(
            f"{plane.rest_url}/v2/models/line/infer", json=_tensors(), headers=headers, verify=trust
        )
        assert found.status_code == 200, found.text
        where = {"TAPSTER_HOME": str(home), "TAPSTER_TLS_CA": str(authority.path)}
        done = subprocess.run(
            [sys.executable, "-m", "tapster", "endpoints", "list"],
            env={**_plain_environment(), **where},
            capture_output=True,
            check=False,
            timeout=LIMIT,
        )
        assert done.returncode == 0, done.stderr
    finally:
        assert plane.stop() == 0
