"""The pages of the extents that files show: none follows another over a restart of Redis."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from servers.naming.routes.extents import extent_routes

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Store:
    """Two pages; Redis is another process when it is asked for `restarts_with`, once."""

    def __init__(self, restarts_with: str) -> None:
        self.restarts_with = restarts_with
        self.process = "a"

    async def command(self, name: str, *arguments: str) -> Any:
        if name == self.restarts_with:
            self.process = "b"
        return [b"0" if arguments[0] == "7" else b"7", [b"dcs:{v}:m:1"]] if name == "SCAN" else None


async def page(store: Store, after: str) -> httpx.Response:
    service: Any = SimpleNamespace(store=store, settings=SimpleNamespace(volume="v"))
    app = FastAPI()
    app.include_router(extent_routes(service, checks=None))  # type: ignore[arg-type]  # Nothing is reported damaged.
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://naming") as client:
        return await client.get("/v1/extents", params={"after": after})


@pytest.mark.parametrize("command", ["SCAN", "GET"])
@pytest.mark.parametrize("after", ["0", "7-a"])
async def test_a_page_that_redis_was_restarted_under_is_none(command: str, after: str) -> None:
    """Nobody knows which of the two gave what, nor whose the cursor is: 409, and all begins anew."""
    store = Store(command)
    assert (await page(store, after)).status_code == 409
    assert (await page(store, "7-a")).status_code == 409, "the page before was of the other one"
    assert (await page(store, "0")).json()["next"] == "7-b"
    assert (await page(store, "7-b")).json()["next"] is None
