"""Payloads: both wires, what is taken out of them, who is asked, and that callers never notice."""

import errno
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tapster.contract.plan import PackageRef, PayloadRules
from tapster.core.envelope import DataKey, Master, new_data_key
from tapster.serving.slots import PAYLOADS_DROPPED, PAYLOADS_KEPT
from tapster.serving.spool import Spool
from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, grant, request, wait_for
from tests.serving.rpc.calling import INFER, call, infer_request, tensor
from tests.serving.rpc.test_tf_serving import PREDICT, proto
from tests.serving.rpc.test_tf_serving import request as tf_request
from tests.serving.spooled import at_least, payloads, raw, rules, segments
from tests.serving.talking import ask, counters, infer, output

ODD = '<b>"quoted"\'; 😀'
ROW = {"size": 2.5, "city": "Turin", "member": True, "since": "2020-01-01", ODD: "x"}
MASTER = "5eed" * 16
_MADE: dict[tuple[Path, Any], PackageRef] = {}


def _serve(
    plane: Plane,
    given: PayloadRules | None,
    made: Callable[[Any], PackageRef] = packages.classifier,
    **more: Any,
) -> None:
    package = _MADE.get((plane.home, made)) or made(plane.home)
    _MADE[plane.home, made] = package
    plane.plan(
        endpoint("mixed", package, payloads=given, **more),
        packages=(package,),
        keys=(grant(KEY), grant("theirs", "predict", tenant="other")),
    )
    if not plane.workers:
        plane.start()
    plane.applied()


def _kept(plane: Plane, version: str = "1") -> tuple[int, int]:
    place = counters(plane, "mixed", version)
    return place[PAYLOADS_KEPT], place[PAYLOADS_DROPPED]


def test_every_wire_is_written_down_by_column(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    _serve(plane, rules())
    numeric, texts = [[2.5, 1.0, 18262.0]], [["Turin", "x"]]
    tensors = [
        {"name": "numeric", "shape": [1, 3], "datatype": "FP32", "data": numeric[0]},
        {"name": "text", "shape": [1, 2], "datatype": "BYTES", "data": texts[0]},
    ]
    answers = [
        plane.call("POST", "/v1/endpoints/mixed/predict", {"rows": [ROW]}),
        plane.call("POST", "/v2/models/mixed/infer", {"inputs": tensors}),
        plane.call("POST", "/v1/models/mixed:predict", {"instances": [ROW]}),
    ]
    assert [each.status for each in answers] == [200] * 3
    given = [tensor("numeric", numeric), tensor("text", texts, "BYTES")]
    assert call(plane, INFER, infer_request("mixed", *given)).answer is not None
    inputs = {"numeric": proto(numeric), "text": proto(texts, "BYTES")}
    assert call(plane, PREDICT, tf_request("mixed", inputs)).answer is not None
    found = at_least(plane.home, 5)
    assert [each["wire"] for each in found] == ["rest"] * 3 + ["grpc"] * 2
    for each in found:
        assert each["inputs"] == {
            "size": [2.5], "member": [1.0], "since": [18262.0], "city": ["Turin"], ODD: ["x"],
        }  # fmt: skip
        assert each["outputs"]["prediction"] == {
            "datatype": "BYTES", "shape": [1], "data": ["yes"],
        }  # fmt: skip
        assert len(each["outputs"]["probabilities"]["data"]) == 2
        assert (each["status"], each["rows"], each["version"]) == ("ok", 1, "1")
        assert (each["tenant"], each["endpoint"]) == ("default", "mixed")
    assert len({each["id"] for each in found}) == len({each["record"] for each in found}) == 5
    for each, answer in zip(found, answers, strict=False):
        assert answer.headers["x-request-id"] == each["id"]
    assert wait_for(lambda: _kept(plane) == (5, 0), "the counters")
    page = plane.call("GET", "/metrics").body.decode()
    assert "tapster_payloads_total" in page


def test_nothing_is_written_down_unless_asked_for(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    _serve(plane, None)
    row = {**ROW, "city": "jo@example.com"}
    assert plane.call("POST", "/v1/endpoints/mixed/predict", {"rows": [row]}).status == 200
    assert plane.call("POST", "/v1/endpoints/mixed/predict", {"rows": [{}]}).status == 400
    _serve(plane, rules())
    assert plane.call("POST", "/v1/endpoints/mixed/predict", {"rows": [ROW]}).status == 200
    assert len(at_least(plane.home, 1)) == 1, "from then on"
    _serve(plane, None)
    assert plane.call("POST", "/v1/endpoints/mixed/predict", {"rows": [ROW]}).status == 200
    assert _kept(plane) == (1, 0)
    assert len(payloads(plane.home)) == 1, "until then"


def test_columns_and_texts_are_redacted(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    given = rules(drop=("since",), mask=("size",), hash=("city",), expressions=(r"emp-\d+",))
    _serve(plane, given)
    secret = "tap_" + "k" * 43
    rows = [
        {**ROW, "city": "Paris", ODD: f"jo@example.com 4111 1111 1111 1111 {secret}"},
        {**ROW, "city": "Paris", ODD: "emp-1234 at 10.0.0.1, call +49 30 1234567"},
        {**ROW, "city": "Rome", ODD: "Bearer abcdefghijk DE89370400440532013000"},
    ]
    body = {"rows": rows}
    assert plane.call("POST", "/v1/endpoints/mixed/predict", body).status == 200
    (found,) = at_least(plane.home, 1)
    inputs = found["inputs"]
    assert "since" not in inputs
    assert inputs["size"] == ["[masked]"] * 3
    first, second, third = inputs["city"]
    assert first == second != third
    assert first.startswith("hash:")
    assert inputs[ODD] == [
        "[email] [card] [secret]", "[redacted] at [ip], call [phone]", "[secret] [iban]",
    ]  # fmt: skip
    left = raw(plane.home)
    for gone in ("example", "4111", "emp-1", "Paris", "Rome", "10.0.0", "tap_", "DE89", "2.5"):
        assert gone.encode() not in left, gone


def test_errors_are_written_down_without_what_was_wrong(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    _serve(plane, rules())
    bad = {**ROW, "size": "jo@example.com"}
    assert plane.call("POST", "/v1/endpoints/mixed/predict", {"rows": [bad]}).status == 400
    assert plane.call("POST", "/v1/endpoints/mixed/predict", b"{'jo@example.com").status == 400
    found = at_least(plane.home, 2)
    assert [each["status"] for each in found] == ["invalid"] * 2
    assert found[0]["field"] == "rows[0].size"
    assert not any("inputs" in each or "message" in each for each in found)
    assert b"jo@" not in raw(plane.home)


def test_a_request_sent_again_is_of_the_share_again(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    _serve(plane, rules(sample=0.5))
    plane.start(1)
    plane.applied(index=1)
    for _ in range(3):
        for number in range(40):
            answer = plane.call(
                "POST", "/v1/endpoints/mixed/predict", {"rows": [ROW]}, x_request_id=f"n{number}"
            )
            assert answer.status == 200

    def thrice() -> set[str]:
        found = [each["id"] for each in payloads(plane.home)]
        return set(found) if {found.count(each) for each in found} == {3} else set()

    assert 3 <= len(wait_for(thrice, "each, three times or never")) <= 37
    assert _kept(plane)[1] == 0


def test_others_are_asked_first(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    _serve(plane, rules(), shared=("other",))
    asked: Any = {"rows": [ROW]}
    path = "/v1/endpoints/mixed/predict"
    assert plane.call("POST", path, asked, key="theirs").status == 200
    assert plane.call("POST", path, {"rows": []}, key="theirs").status == 400
    assert plane.call("POST", path, asked).status == 200
    assert [each["tenant"] for each in at_least(plane.home, 1)] == ["default"]
    _serve(plane, rules(consumers=("other",)), shared=("other",))
    assert plane.call("POST", path, asked, key="theirs").status == 200
    assert [each["tenant"] for each in at_least(plane.home, 2)] == ["default", "other"]
    assert len(payloads(plane.home)) == 2
    assert not segments(plane.home, "other"), "it is the owner's"


def test_large_and_binary_fields_are_left_out_whole(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()

    def every(home: Any) -> PackageRef:
        return packages.every(home, "UINT8", "INT64", "BYTES", width=2)

    _serve(plane, rules(size=1024), every)
    given = [
        tensor("x_UINT8", [[106, 111]], "UINT8"),
        tensor("x_INT64", [[4111111111111111, 7]], "INT64"),
        tensor("x_BYTES", [["y" * 2000, "z"]], "BYTES"),
    ]
    assert call(plane, INFER, infer_request("mixed", *given)).answer is not None
    (found,) = at_least(plane.home, 1)
    for side in ("inputs", "outputs"):
        each = {name[2:]: value for name, value in found[side].items()}
        assert each["UINT8"] == {"datatype": "UINT8", "shape": [1, 2], "omitted": True}
        assert each["INT64"]["data"] == ["[card]", 7]
        assert each["BYTES"] == {"datatype": "BYTES", "shape": [1, 2], "omitted": True}
    assert len(json.dumps(found)) < 2048


def test_with_a_master_key_nothing_lies_in_the_clear(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane(master_key=MASTER)
    master, key = Master(bytes.fromhex(MASTER)), new_data_key()
    _serve(plane, rules(secret=master.wrap("default", key)))
    path = "/v1/endpoints/mixed/predict"
    assert plane.call("POST", path, {"rows": [ROW]}).status == 200
    (found,) = at_least(plane.home, 1, find=lambda _: key)
    assert found["inputs"]["city"] == ["Turin"]
    assert b"Turin" not in raw(plane.home)
    assert b"mixed" not in raw(plane.home)
    _serve(plane, rules())  # no data key came with the plan
    assert plane.call("POST", path, {"rows": [ROW]}).status == 200
    assert wait_for(lambda: _kept(plane) == (1, 1), "the drop")
    assert len(payloads(plane.home, find=lambda _: key)) == 1


def test_after_a_kill_every_payload_is_whole(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    _serve(plane, rules(), packages_sum)
    for _ in range(3):
        ask(plane, [infer(name="mixed")] * 100)
    at_least(plane.home, 50)
    plane.workers[0].send_signal(signal.SIGKILL)
    plane.workers[0].wait()
    left = len(payloads(plane.home))
    assert left >= 50
    (path, *_) = [each for each in segments(plane.home) if each.suffix == ".open"]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    assert len(payloads(plane.home)) < left, "what is cut off goes, with nothing else"
    plane.start()
    plane.applied()
    ask(plane, [infer(name="mixed")])
    assert len(at_least(plane.home, 1)) >= 1


def packages_sum(home: Any) -> PackageRef:
    """Three numbers, summed."""
    return packages.regressor(home, 1.0)


def test_a_flood_drops_payloads_and_no_answers(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()

    def words(home: Any) -> PackageRef:
        return packages.every(home, "BYTES", width=1)

    _serve(plane, rules(expressions=(r"(a|aa)+b",)), words)

    def asked(*values: str) -> bytes:
        tensor = {"name": "x_BYTES", "shape": [len(values), 1], "datatype": "BYTES"}
        body = json.dumps({"inputs": [{**tensor, "data": list(values)}]}).encode()
        return request("/v2/models/mixed/infer", body)

    text, many = "a" * 1000 + "1 2 3 " * 20, ["b"] * 400_000  # more than may wait at all
    answers = ask(plane, [asked(text)] * 600, depth=100)
    assert [output(each, "y_BYTES") for each in answers] == [[text]] * 600
    assert output(ask(plane, [asked(*many)])[0], "y_BYTES") == many
    kept, dropped = wait_for(
        lambda: found if sum(found := _kept(plane)) == 601 else None, "all accounted for"
    )
    assert dropped >= 1
    assert len(payloads(plane.home)) == kept


def test_batches_are_told_apart(new_plane: Callable[..., Plane]) -> None:
    plane = new_plane()
    _serve(plane, rules(), packages_sum)
    asked = [infer([n, n + 1, n + 2], name="mixed") for n in range(200)]
    ask(plane, asked, depth=200)
    found = at_least(plane.home, 200)
    pairs = [
        (
            sum(values[0] for values in each["inputs"].values()),
            each["outputs"]["prediction"]["data"],
        )
        for each in found
    ]
    assert all(given + 1 == answer for given, (answer,) in pairs)
    assert len({given for given, _ in pairs}) == 200


@pytest.mark.parametrize("room", [0, 10])
def test_a_disk_that_is_full_for_a_moment_costs_what_was_written_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    key = DataKey("k", bytes(32))
    spool, write, left = Spool(tmp_path), os.write, [1 << 20, room]

    def writes(file: int, data: bytes) -> int:
        fits = min(left.pop(0), len(data)) if left else len(data)
        if not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:fits])

    monkeypatch.setattr(os, "write", writes)
    kept = []
    for number in range(4):
        with suppress(OSError):
            if spool.append("default", "e", [b'{"time":%d}' % number], key):
                kept.append(number)
    spool.close()
    assert kept == [0, 2, 3]
    assert [each["time"] for each in payloads(tmp_path, find=lambda _: key)] == kept
