"""A client with several naming servers: one that answers is enough, and all happens within one deadline."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence

import pytest

from servers.client.http import Answer
from servers.client.naming import CONTROL_SECONDS, NamingClient, ServerRefused, parse_urls
from servers.protocol.checksum import Buffer
from servers.protocol.errors import TryAgain, Unavailable
from servers.protocol.ids import SessionNumber
from servers.protocol.naming_api import DEADLINE_HEADER, operation, pack_replies

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Servers:
    """Answers by address: a status, or the seconds after which nobody answered."""

    def __init__(self, **answers: float) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.deadlines_ms: list[int] = []
        self.first_bytes_seconds: list[float] = []

    async def request(
        self,
        address: str,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Sequence[Buffer] = (),
        first_byte_seconds: float = 2.0,
        deadline_seconds: float = 30.0,
    ) -> Answer:
        name = address.partition(":")[0]
        self.asked.append(name)
        self.first_bytes_seconds.append(first_byte_seconds)
        self.deadlines_ms.append(int((headers or {})[DEADLINE_HEADER]))
        answer = self.answers[name]
        if isinstance(answer, float):
            await asyncio.sleep(min(answer, deadline_seconds))
            raise TryAgain(f"{name} is away")
        return Answer(answer, {}, json.dumps({"detail": f"said {name}", "nodes": []}).encode())

    async def close(self) -> None: ...


async def test_the_next_server_is_asked_when_one_is_away_or_cannot() -> None:
    """And the one that answered is asked first from then on."""
    servers = Servers(a=0.0, b=503, c=200)
    client = NamingClient(servers, "http://a:1,http://b:1,http://c:1")
    await client.nodes()
    await client.nodes()
    assert servers.asked == ["a", "b", "c", "c"]


async def test_who_asks_is_told_when_a_server_that_did_not_answer_may_have_served_it_before() -> None:
    class Silent(Servers):
        async def request(self, address: str, *arguments: object, **more: object) -> Answer:
            if address.startswith("a"):
                raise TryAgain("a is away")
            return Answer(200, {}, pack_replies([b"reply"]))

    client = NamingClient(Silent(), "http://a:1,http://b:1")
    asked = [operation("getattr", 0, ino=1)]
    replies = [await client.batch(SessionNumber(1), asked, first_byte_seconds=2, deadline_seconds=30) for _ in range(2)]
    assert replies == [([b"reply"], True), ([b"reply"], False)]


async def test_when_none_can_the_last_answer_counts() -> None:
    client = NamingClient(Servers(a=0.0, b=503), "http://a:1,http://b:1")
    with pytest.raises(Unavailable, match="said b"):
        await client.nodes()
    client = NamingClient(Servers(a=503, b=0.0), "http://a:1,http://b:1")
    with pytest.raises(TryAgain, match="b is away"):
        await client.nodes()


async def test_a_refusal_is_an_answer() -> None:
    servers = Servers(a=409, b=200)
    with pytest.raises(ServerRefused, match="said a"):
        await NamingClient(servers, "http://a:1,http://b:1").nodes()
    assert servers.asked == ["a"]


async def test_calls_side_by_side_leave_a_dead_server_once() -> None:
    """They do not push each other back to it."""
    servers = Servers(a=0.01, b=200)
    client = NamingClient(servers, "http://a:1,http://b:1")
    await asyncio.gather(*(client.nodes() for _ in range(4)))
    assert client.address == "b:1"
    assert servers.asked == ["a"] * 4 + ["b"] * 4


async def test_all_servers_share_one_deadline() -> None:
    """And each is told less than what is left, so that its answer arrives in time."""
    servers = Servers(a=0.2, b=0.2)
    client = NamingClient(servers, "http://a:1,http://b:1")
    start = time.monotonic()
    with pytest.raises(TryAgain):
        await client.batch(1, [], first_byte_seconds=9, deadline_seconds=0.3)  # type: ignore[arg-type]
    assert time.monotonic() - start < 0.4
    assert servers.asked == ["a", "b"]
    assert servers.deadlines_ms[0] <= 270
    assert servers.deadlines_ms[1] <= 90


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://a:1", ["a:1"]),
        ("http://a, http://b:2/", ["a:80", "b:2"]),
        ("http://[::1]:8000", ["[::1]:8000"]),
        ("http://[::1]", ["[::1]:80"]),
    ],
)
async def test_urls(text: str, wanted: list[str]) -> None:
    assert parse_urls(text) == wanted


@pytest.mark.parametrize("text", ["", "a:1", "https://a", "http://", "http://a/b", "http://a,,http://b"])
async def test_urls_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a naming server"):
        parse_urls(text)


async def test_a_server_that_cannot_reach_redis_is_left_for_the_next() -> None:
    """It answers, in time and without a reply: its own way to Redis may be what is broken."""

    class WithoutRedis(Servers):
        async def request(self, address: str, *arguments: object, **more: object) -> Answer:
            self.asked.append(address.partition(":")[0])
            return Answer(200, {}, pack_replies([None] if self.asked[-1] == "a" else [b"reply"]))

    servers = WithoutRedis()
    client = NamingClient(servers, "http://a:1,http://b:1")
    asked = [operation("getattr", 0, ino=1)]
    replies = [await client.batch(SessionNumber(1), asked, first_byte_seconds=2, deadline_seconds=30) for _ in range(3)]
    assert replies == [([None], False), ([b"reply"], False), ([b"reply"], False)]
    assert servers.asked == ["a", "b", "b"]


async def test_a_server_that_hangs_leaves_the_next_its_part_of_the_time() -> None:
    servers = Servers(a=0.0, b=200)
    await NamingClient(servers, "http://a:1,http://b:1").nodes()
    assert servers.first_bytes_seconds == pytest.approx([CONTROL_SECONDS / 2, CONTROL_SECONDS], abs=0.2)
