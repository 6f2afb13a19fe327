"""KServe's clients: REST in protocols v1 and v2, and gRPC."""

from typing import Any

import numpy as np
import pytest

from tests.clients.conftest import Client, Served

Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(client: Client) -> Found:
    return client("kserve", "kserve_clients")


def test_protocol_v2(found: Found, served: Served) -> None:
    said = found["v2"]
    assert [said["live"], said["ready"], said["model ready"], said["id"]] == [True] * 3 + ["42"]
    served.check(said["scores"])
    assert [said["refused"][name][0] for name in ("ghost", "key")] == ["404", "401"]
    assert "ghost" in said["refused"]["ghost"][1].partition("'404")[0]  # the error's own words


def test_protocol_v1(found: Found, served: Served) -> None:
    said = found["v1"]
    assert said["live"] is True
    assert said["model ready"] is True
    assert [one["prediction"] for one in said["predictions"]] == served.labels
    shares = [one["probabilities"] for one in said["predictions"]]
    assert np.allclose(shares, served.shares, atol=1e-5)
    assert said["refused"]["ghost"][0] == "404"


def test_grpc(found: Found, served: Served) -> None:
    said = found["gRPC"]
    assert [said["live"], said["ready"], said["model ready"], said["id"]] == [True] * 3 + ["42"]
    served.check(said["scores"])
    assert said["refused"]["ghost"][0] == "NOT_FOUND"
    assert said["refused"]["key"][0] == "UNAUTHENTICATED"
