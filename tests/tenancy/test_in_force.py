"""A change is answered as what it is, whatever becomes of the waiting for its being in force."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from tapster.app import build
from tapster.contract.errors import TapsterError
from tapster.core.settings import load
from tapster.tenancy import in_force


@pytest.mark.parametrize(
    "failure",
    [
        TapsterError("unavailable", "the database did not answer"),
        OperationalError("select", {}, Exception("database is locked")),
    ],
)
def test_a_new_key_is_shown_though_the_database_goes_away_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """Its secret is in that answer and nowhere else."""

    def gone(_: Any) -> int:
        raise failure

    app = build(load({}, home=tmp_path / "home"))
    app.state.followed = lambda: [0]
    monkeypatch.setattr(in_force, "_newest", gone)
    key = (tmp_path / "home" / "admin.key").read_text().strip()

    async def ask() -> httpx.Response:
        there = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=there, base_url="http://localhost") as client:
            headers = {"Authorization": f"Bearer {key}"}
            return await client.post("/api/v1/keys", json={"role": "consumer"}, headers=headers)

    answer = asyncio.run(ask())
    assert answer.status_code == 201, answer.text
    assert answer.json()["key"]
    app.state.parts.db.close()
