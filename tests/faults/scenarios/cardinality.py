"""Names, paths and keys that nobody knows, a hundred thousand of them."""

import random
import string
import time
from dataclasses import dataclass, field
from typing import Final

import psutil

from tests.faults.scenarios import models
from tests.serving.conftest import KEY, Plane, endpoint

PIPELINE: Final = 50
LETTERS: Final = string.ascii_letters + string.digits + "-_.~%"


@dataclass
class Flood:
    """Series of `/metrics` and bytes of memory, before and after; seconds of a scrape after."""

    requests: int
    statuses: set[int] = field(default_factory=set)
    series: tuple[int, int] = (0, 0)
    memory: tuple[int, int] = (0, 0)
    scrapes: list[float] = field(default_factory=list)
    page: int = 0


def flood(plane: Plane, count: int) -> Flood:
    """Ask for so many random names, versions, labels and paths, with random keys and without."""
    package = models.seal(plane.home, models.total(0.0))
    plane.plan(endpoint("total", package), packages=(package,))
    process = psutil.Process(plane.start().pid)
    plane.applied()
    draw, seen = random.Random(7), Flood(count)
    _send(plane, [_request(draw) for _ in range(2000)], seen)  # caches are full now
    series, memory = len(_samples(plane)), process.memory_info().rss
    for _ in range(0, count, 1000):
        _send(plane, [_request(draw) for _ in range(1000)], seen)
    seen.memory = (memory, process.memory_info().rss)
    for _ in range(20):
        began = time.monotonic()
        samples = _samples(plane)
        seen.scrapes.append(time.monotonic() - began)
    seen.series = (series, len(samples))
    seen.page = sum(len(sample) + 1 for sample in samples)
    return seen


def _samples(plane: Plane) -> list[str]:
    text = plane.call("GET", "/metrics").body.decode()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _request(draw: random.Random) -> bytes:
    name, other = ("".join(draw.choices(LETTERS, k=draw.randint(1, 40))) for _ in range(2))
    method, path = draw.choice(
        [
            ("POST", f"/v2/models/{name}/infer"),
            ("POST", f"/v2/models/total/versions/{name}/infer"),
            ("GET", f"/v2/models/{name}/ready"),
            ("POST", f"/v1/models/{name}:predict"),
            ("POST", f"/v1/models/total/labels/{name}:predict"),
            ("POST", f"/v1/endpoints/{name}/predict"),
            ("GET", f"/{name}/{other}?{other}={name}"),
            (other.replace("%", "").replace("~", "")[:9].upper() or "GET", f"/{name}"),
        ]
    )
    key = KEY if draw.random() < 0.7 else other
    head = f"{method} {path} HTTP/1.1\r\nHost: {name}\r\nAuthorization: Bearer {key}\r\n"
    return (head + f"X-Request-Id: {other}\r\nContent-Length: 2\r\n\r\n{{}}").encode()


def _send(plane: Plane, requests: list[bytes], seen: Flood) -> None:
    """Send requests over as many connections as it takes; what was refused as HTTP closes one."""
    waiting = list(reversed(requests))
    while waiting:
        with plane.connect() as line, line.makefile("rb") as answers:
            batch = [waiting.pop() for _ in range(min(PIPELINE, len(waiting)))]
            line.sendall(b"".join(batch))
            for number in range(len(batch)):
                head = answers.readline()
                if not head:
                    waiting += reversed(batch[number:])
                    break
                seen.statuses.add(int(head.split()[1]))
                length = 0
                while (header := answers.readline().lower()) not in {b"\r\n", b""}:
                    if header.startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                answers.read(length)
