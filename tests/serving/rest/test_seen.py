"""A head seen before is not parsed again: nothing but the speed may differ."""

import socket
from collections.abc import Callable

from tests.serving import packages
from tests.serving.conftest import KEY, Plane, endpoint, grant, request
from tests.serving.rest.test_protocol import INFER, body_of, responses

OTHER = "another-key"


def plane_of(new_plane: Callable[..., Plane]) -> Plane:
    plane = new_plane(workers=1)
    package = packages.regressor(plane.home, 1.0)
    plane.plan(
        endpoint("sum", package), packages=(package,), keys=(grant(KEY), grant(OTHER, "predict"))
    )
    plane.start()
    plane.applied()
    return plane


def exchange(line: socket.socket, *pieces: bytes, answers: int = 1) -> list[tuple[int, bytes]]:
    """Send pieces, each once the last has certainly been read, and take the answers."""
    got = b""
    for piece in pieces:
        line.sendall(piece)
    while True:
        got += line.recv(65536)
        try:
            found = responses(got)
        except (IndexError, KeyError):
            continue
        if len(found) == answers and got.endswith(found[-1][1]) and found[-1][1].endswith(b"}"):
            return found


def test_the_same_head_again_is_answered_by_its_own_body(new_plane: Callable[..., Plane]) -> None:
    plane = plane_of(new_plane)
    with plane.connect() as line:
        for first in range(1, 9):
            ((status, body),) = exchange(line, request(INFER, body_of(first, 2, 3)))
            assert status == 200
            assert b"[%d.0]" % (first + 6) in body
        for odd in (b"[", b"{}", b'{"inputs":[]}', body_of(1, 2)):
            for _ in range(2):
                ((status, body),) = exchange(line, request(INFER, odd))
                assert (status, b"error" in body) == (400, True)
        ((status, _),) = exchange(line, request(INFER, body_of(1, 2, 3)))
        assert status == 200


def test_cut_and_joined_requests_keep_their_order(new_plane: Callable[..., Plane]) -> None:
    plane = plane_of(new_plane)
    whole = [request(INFER, body_of(first, 0, 0)) for first in range(1, 5)]
    with plane.connect() as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for data in whole:
            assert exchange(line, data)[0][0] == 200
        head, _, body = whole[0].partition(b"\r\n\r\n")
        for pieces in (
            (whole[0] + whole[1] + whole[2],),
            (head + b"\r\n\r\n", body + whole[1] + whole[2]),
            (whole[0][:-3], whole[0][-3:] + whole[1], whole[2]),
            (b"\r\n\r\n" + whole[0], whole[1], whole[2]),
        ):
            found = exchange(line, *pieces, answers=3)
            assert [status for status, _ in found] == [200] * 3
            assert all(b"[%d.0]" % (n + 1) in body for n, (_, body) in enumerate(found, 1))


def test_what_one_request_was_found_to_say_is_not_kept_for_another(
    new_plane: Callable[..., Plane],
) -> None:
    """The first of a connection is parsed in slices if it is long; the next is of its length."""
    plane = plane_of(new_plane)
    body = body_of(1, 2, 3).ljust(8000)
    for path, key, status in (
        (INFER, "wrong", 401),
        ("/v2/models/other/infer", KEY, 404),
        ("/v2/models/other/infer", OTHER, 404),
    ):
        with plane.connect() as line:
            assert exchange(line, request(INFER, body))[0][0] == 200
            for _ in range(2):
                assert exchange(line, request(path, body, key=key))[0][0] == status
        with plane.connect() as line:
            assert exchange(line, request(path, body, key=key))[0][0] == status


def test_a_plan_that_changes_is_obeyed_at_once(new_plane: Callable[..., Plane]) -> None:
    plane = plane_of(new_plane)
    two = packages.regressor(plane.home, 2.0)
    with plane.connect() as line, plane.connect() as other:
        mine = request(INFER, body_of(1, 2, 3))
        theirs = request(INFER, body_of(1, 2, 3), key=OTHER)
        for _ in range(3):
            assert b"[7.0]" in exchange(line, mine)[0][1]
            assert b"[7.0]" in exchange(other, theirs)[0][1]
        plane.plan(endpoint("sum", two), packages=(two,), keys=(grant(KEY),))
        plane.applied()
        for _ in range(2):
            assert b"[8.0]" in exchange(line, mine)[0][1]
            assert exchange(other, theirs)[0][0] == 401
        plane.plan(endpoint("renamed", two), packages=(two,), keys=(grant(KEY),))
        plane.applied()
        assert [exchange(line, mine)[0][0] for _ in range(2)] == [404, 404]
