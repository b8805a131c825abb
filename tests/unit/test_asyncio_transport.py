"""The commands' transport against peers that behave, and against those that do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from servers.client.asyncio_transport import AsyncioTransport
from servers.client.http import Answer
from servers.protocol.errors import AccessDenied, TryAgain
from tests.support.scripted_server import Peer, ScriptedServer

T = TypeVar("T")
MIB = 1 << 20


def against(script: Callable[[Peer], None], work: Callable[[AsyncioTransport, str], Awaitable[T]]) -> T:
    async def run(address: str) -> T:
        transport = AsyncioTransport("s3cret")
        try:
            return await work(transport, address)
        finally:
            await transport.close()

    with ScriptedServer(script) as server:
        return asyncio.run(run(server.address))


def echo(peer: Peer) -> None:
    while request := peer.read_request():
        peer.answer(request.body, seen=request.headers["authorization"], number=str(peer.number))


async def post(
    transport: AsyncioTransport, address: str, *body: bytes, first_byte: float = 2, deadline: float = 30
) -> Answer:
    return await transport.request(
        address, "POST", "/", body=body, first_byte_seconds=first_byte, deadline_seconds=deadline
    )


@pytest.mark.parametrize("size", [0, 1, 65_536, 9 * MIB])
def test_bodies_of_any_size_go_there_and_back(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)

    async def work(transport: AsyncioTransport, address: str) -> Answer:
        return await post(transport, address, data[: size // 3], data[size // 3 : size])

    answer = against(echo, work)
    assert (answer.status, bytes(answer.body)) == (200, data[:size])
    assert answer.headers["seen"] == "Bearer s3cret"


def test_a_connection_is_used_again() -> None:
    async def work(transport: AsyncioTransport, address: str) -> set[str]:
        return {(await post(transport, address, b"x")).headers["number"] for _ in range(5)}

    assert against(echo, work) == {"0"}


def test_a_request_that_meets_a_closing_connection_is_sent_again() -> None:
    """The server closes after each answer without having said so."""

    def once(peer: Peer) -> None:
        if request := peer.read_request():
            peer.answer(request.body, number=str(peer.number))

    async def work(transport: AsyncioTransport, address: str) -> list[str]:
        return [(await post(transport, address, b"x")).headers["number"] for _ in range(3)]

    assert against(once, work) == ["0", "1", "2"]


def test_silence_ends_with_the_first_bytes_time() -> None:
    async def work(transport: AsyncioTransport, address: str) -> float:
        began = time.monotonic()
        with pytest.raises(TryAgain):
            await post(transport, address, b"x", first_byte=0.2)
        return time.monotonic() - began

    assert 0.2 <= against(lambda peer: peer.wait_for_end(), work) < 2


def test_a_trickle_ends_with_the_deadline() -> None:
    """However lively it is: the whole answer must come in time."""

    def trickle(peer: Peer) -> None:
        peer.read_request()
        peer.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(100):
            peer.raw(b"x")
            time.sleep(0.05)

    async def work(transport: AsyncioTransport, address: str) -> float:
        began = time.monotonic()
        with pytest.raises(TryAgain):
            await post(transport, address, deadline=0.5)
        return time.monotonic() - began

    assert 0.5 <= against(trickle, work) < 2


def test_a_refusal_before_the_end_of_the_body_is_heard() -> None:
    """A server that does not want a body answers and closes; the answer says more than the broken pipe."""

    def refuse(peer: Peer) -> None:
        peer.read_head()
        peer.answer(b"too large", status=413)

    async def work(transport: AsyncioTransport, address: str) -> Answer | TryAgain:
        try:
            return await post(transport, address, *[bytes(MIB)] * 32)
        except TryAgain as error:  # The reset may overtake the answer.
            return error

    answer = against(refuse, work)
    assert isinstance(answer, TryAgain) or answer.status == 413


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
    ],
)
def test_what_is_no_answer_is_try_again(answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.raw(answer)

    async def work(transport: AsyncioTransport, address: str) -> None:
        with pytest.raises(TryAgain):
            await post(transport, address)

    against(script, work)


def test_nobody_there_is_try_again() -> None:
    async def work(transport: AsyncioTransport, address: str) -> None:
        with pytest.raises(TryAgain):
            await post(transport, "127.0.0.1:1")

    against(echo, work)


def test_a_wrong_secret_is_access_denied() -> None:
    def deny(peer: Peer) -> None:
        peer.read_request()
        peer.answer(b"{}", status=401)

    async def work(transport: AsyncioTransport, address: str) -> None:
        with pytest.raises(AccessDenied):
            await post(transport, address)

    against(deny, work)


def test_many_requests_at_once_share_a_bounded_number_of_connections() -> None:
    async def work(transport: AsyncioTransport, address: str) -> set[str]:
        answers = await asyncio.gather(*(post(transport, address, b"x") for _ in range(200)))
        return {answer.headers["number"] for answer in answers}

    assert len(against(echo, work)) <= 16
