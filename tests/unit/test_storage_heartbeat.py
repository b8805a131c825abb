"""Heartbeats: whom they go to, what address they tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from servers.client.http import Answer
from servers.protocol.checksum import Buffer
from servers.protocol.errors import AccessDenied, TryAgain
from servers.storage import heartbeat as subject
from servers.storage.heartbeat import naming_addresses, reachable_address

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_naming_urls_become_addresses() -> None:
    assert naming_addresses("http://a:8000, http://b:8001/,c:1") == ["a:8000", "b:8001", "c:1"]
    assert naming_addresses("http://naming") == ["naming:80"]
    assert naming_addresses(" , ") == []


@pytest.mark.parametrize("urls", ["https://a:1", "http://a:1/path", "http://"])
def test_what_is_no_naming_url_is_refused(urls: str) -> None:
    with pytest.raises(ValueError, match="NAMING_URL"):
        naming_addresses(urls)


def test_a_node_that_binds_every_address_tells_one_that_can_be_reached() -> None:
    assert reachable_address("127.0.0.1:5001", ["localhost:8000"]) == "127.0.0.1:5001"
    assert reachable_address("0.0.0.0:5001", ["127.0.0.1:8000"]) == "127.0.0.1:5001"
    assert reachable_address("0.0.0.0:5001", []).endswith(":5001")
    assert not reachable_address("0.0.0.0:5001", []).startswith("0.0.0.0")


class NamingServers:
    """Answers of several naming servers, in turn; what they are is a status and a body, or an exception."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []
        self.told: list[dict[str, Any]] = []
        self.done = asyncio.Event()

    async def request(self, address: str, *_: object, body: Sequence[Buffer] = (), **__: object) -> Answer:
        self.asked.append(address)
        self.told.append(json.loads(b"".join(body)))
        if not self._answers:
            self.done.set()
            raise TryAgain("no more answers")
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Nothing to close."""


async def test_heartbeats_go_on_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that answered is asked first; trouble is logged once, and its end once."""
    monkeypatch.setattr(subject, "HEARTBEAT_SECONDS", 0)
    good = Answer(200, {}, b'{"node": 3, "volume": "v", "seq": 1}')
    servers = NamingServers(
        TryAgain("away"), good,  # The second takes over.
        good,
        Answer(500, {}, b"oops"), AccessDenied("wrong secret"),
        Answer(200, {}, b"not json"), Answer(200, {}, b'{"no": "node"}'),
        TimeoutError(), OSError(5, "disk"),
        good,
    )  # fmt: skip
    heartbeat = subject.Heartbeat(servers, ["a:1", "b:1"], lambda: subject.Report("u", "x:1", 1, 2, 3, "s", ""))
    running = asyncio.create_task(heartbeat.run())
    with caplog.at_level("INFO"):
        await asyncio.wait_for(servers.done.wait(), 5)
    running.cancel()
    assert servers.asked[:6] == ["a:1", "b:1", "b:1", "b:1", "a:1", "b:1"]
    assert heartbeat.node_number == 3
    assert [record.levelname for record in caplog.records[:3]] == ["INFO", "WARNING", "INFO"]
    assert "takes heartbeats again" in caplog.records[2].message


async def test_the_last_word_says_that_it_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and not for ever where nobody listens."""
    monkeypatch.setattr(subject, "END_SECONDS", 0.01)
    servers = NamingServers(Answer(200, {}, b'{"node": 3, "volume": "v", "seq": 1}'), TryAgain("away"))
    heartbeat = subject.Heartbeat(servers, ["a:1"], lambda: subject.Report("u", "x:1", 1, 2, 3, "s", ""))
    await heartbeat.end()
    await heartbeat.end()
    assert [report["ended"] for report in servers.told] == [True, True]
    monkeypatch.setattr(servers, "request", lambda *_, **__: asyncio.sleep(60))
    await asyncio.wait_for(heartbeat.end(), 5)
    await subject.Heartbeat(servers, [], lambda: subject.Report("u", "x:1", 1, 2, 3, "s", "")).end()
