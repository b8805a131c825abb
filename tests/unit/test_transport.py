"""The mount's transport against peers that behave, and against those that do not."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from fusefs.transport import BODY_BYTES_MAX, TrioTransport
from servers.protocol.errors import AccessDenied, TryAgain
from tests.support.scripted_server import Peer, ScriptedServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@asynccontextmanager
async def transport_to(
    script: Callable[[Peer], None], **options: int
) -> AsyncIterator[tuple[TrioTransport, ScriptedServer]]:
    with ScriptedServer(script) as server:
        transport = TrioTransport("s3cret", **options)
        try:
            yield transport, server
        finally:
            await transport.close()


def echo(peer: Peer) -> None:
    while (request := peer.read_request()) is not None:
        peer.answer(request.body, x_method=request.method, x_target=request.target)


async def test_a_request_arrives_whole_and_its_answer_comes_back() -> None:
    """Method, target, headers, secret and body arrive as given; status, headers and body come back."""
    seen = []

    def script(peer: Peer) -> None:
        while (request := peer.read_request()) is not None:
            seen.append(request)
            peer.answer(b"created", 201, **{"X-Thing": "a: b"})

    async with transport_to(script) as (transport, server):
        answer = await transport.request(
            server.address, "PUT", "/v1/x?sync=1", headers={"dcs-extent": "abc="}, body=[b"one", memoryview(b"two")]
        )
    assert (answer.status, bytes(answer.body), answer.headers["x-thing"]) == (201, b"created", "a: b")
    (request,) = seen
    assert (request.method, request.target, request.body) == ("PUT", "/v1/x?sync=1", b"onetwo")
    assert request.headers["authorization"] == "Bearer s3cret"
    assert request.headers["host"] == server.address
    assert request.headers["dcs-extent"] == "abc="


async def test_a_connection_is_used_again() -> None:
    async with transport_to(echo) as (transport, server):
        for n in range(5):
            assert (await transport.request(server.address, "POST", "/", body=[b"%d" % n])).body == b"%d" % n
        assert server.connections == 1
        assert transport.statistics() == {"requests": 5, "connects": 1, "sent_again": 0, "idle_connections": 1}


@pytest.mark.parametrize(("quiet_seconds", "sent_again"), [(0.0, 0), (3600.0, 2)])
async def test_an_idle_connection_that_the_server_closed_is_replaced_unnoticed(
    quiet_seconds: float, sent_again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at it finds out, or, where it was used just now, sending."""
    monkeypatch.setattr("fusefs.transport.QUIET_SECONDS", quiet_seconds)
    closed = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.answer(b"ok")
        peer.sock.shutdown(socket.SHUT_RDWR)
        closed.release()

    async with transport_to(script) as (transport, server):
        for _ in range(3):
            assert (await transport.request(server.address, "GET", "/")).body == b"ok"
            await trio.to_thread.run_sync(closed.acquire)
        statistics = transport.statistics()
        assert (statistics["connects"], statistics["sent_again"]) == (3, sent_again)


async def test_a_request_that_meets_the_closing_of_a_kept_connection_is_sent_again_once() -> None:
    """The first connection answers once and then resets at the next request; the second one answers."""

    def script(peer: Peer) -> None:
        if peer.number == 0:
            peer.read_request()
            peer.answer(b"first")
            peer.read_request()
            peer.reset()
        else:
            echo(peer)

    async with transport_to(script) as (transport, server):
        assert (await transport.request(server.address, "GET", "/")).body == b"first"
        assert (await transport.request(server.address, "POST", "/", body=[b"second"])).body == b"second"
        assert transport.statistics()["sent_again"] == 1


async def test_a_reset_on_a_new_connection_is_try_again_and_names_the_address() -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.reset()

    async with transport_to(script) as (transport, server):
        with pytest.raises(TryAgain, match=server.address):
            await transport.request(server.address, "GET", "/")
        assert server.connections == 1


async def test_a_refused_connection_is_try_again_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(TryAgain, match=f"{address}: connecting: .*refused"):
        await TrioTransport("x").request(address, "GET", "/")
    assert time.monotonic() - began < 0.9


async def test_an_unknown_host_is_try_again() -> None:
    with pytest.raises(TryAgain, match="no-such-host"):
        await TrioTransport("x").request("no-such-host.invalid:80", "GET", "/")


async def test_a_connection_that_nobody_accepts_takes_a_second() -> None:
    """A full backlog drops SYNs, as a cut cable does."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        began = time.monotonic()
        with pytest.raises(TryAgain, match="connecting: timed out"):
            await TrioTransport("x").request(f"127.0.0.1:{listener.getsockname()[1]}", "GET", "/")
        assert 0.9 < time.monotonic() - began < 2.5


async def test_a_silent_server_is_try_again_after_the_first_byte_time() -> None:
    async with transport_to(Peer.wait_for_end) as (transport, server):
        began = time.monotonic()
        with pytest.raises(TryAgain, match="waiting for the answer: timed out"):
            await transport.request(server.address, "GET", "/", first_byte_seconds=0.2)
        assert 0.2 <= time.monotonic() - began < 1.8
        assert transport.statistics()["idle_connections"] == 0


async def test_a_server_that_stops_reading_is_try_again_after_the_first_byte_time() -> None:
    leave = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_head()
        leave.wait(10)

    async with transport_to(script) as (transport, server):
        with pytest.raises(TryAgain, match="sending the request: timed out"):
            await transport.request(server.address, "PUT", "/", body=[bytes(64 << 20)], first_byte_seconds=0.3)
        leave.set()


async def test_a_body_that_drips_is_try_again_after_two_seconds() -> None:
    """A byte now and then is no progress, though no single wait is long."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            peer.raw(b"x")
            time.sleep(0.05)

    async with transport_to(script) as (transport, server):
        began = time.monotonic()
        with pytest.raises(TryAgain, match="receiving the answer: timed out"):
            await transport.request(server.address, "GET", "/")
        assert time.monotonic() - began < 4.0


async def test_a_slow_body_that_goes_on_is_received() -> None:
    """Three seconds are fine at 100 KB/s."""
    body = bytes(range(256)) * 1200

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 10240):
            peer.raw(body[at : at + 10240])
            time.sleep(0.1)

    async with transport_to(script) as (transport, server):
        assert (await transport.request(server.address, "GET", "/")).body == body


async def test_the_deadline_ends_even_a_request_that_goes_on() -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 70000000\r\n\r\n")
        while True:
            peer.raw(bytes(40000))
            time.sleep(0.02)

    async with transport_to(script) as (transport, server):
        began = time.monotonic()
        with pytest.raises(TryAgain, match="timed out"):
            await transport.request(server.address, "GET", "/", deadline_seconds=0.5)
        assert time.monotonic() - began < 1.8


async def test_a_body_that_is_cut_off_is_try_again_and_not_sent_again() -> None:
    """An answer had begun, so this is not the stale connection that is forgiven."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.answer(b"fine")
        peer.read_request()
        peer.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")

    async with transport_to(script) as (transport, server):
        await transport.request(server.address, "GET", "/")
        with pytest.raises(TryAgain, match="closed after 9 of 100 bytes"):
            await transport.request(server.address, "GET", "/")
        assert server.connections == 1


async def test_a_wrong_secret_is_access_denied_and_the_connection_stays() -> None:
    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.answer(b'{"detail": "no"}', 401)

    async with transport_to(script) as (transport, server):
        for _ in range(2):
            with pytest.raises(AccessDenied, match=server.address):
                await transport.request(server.address, "GET", "/")
        assert server.connections == 1


async def test_a_cancelled_request_closes_its_connection() -> None:
    """What comes late must not be taken for the answer to the next request."""
    asked, ended = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def script(peer: Peer) -> None:
        if peer.number == 0:
            peer.read_request()
            token.run_sync_soon(asked.set)
            peer.wait_for_end()
            ended.set()
        else:
            echo(peer)

    async with transport_to(script) as (transport, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.request, server.address, "GET", "/")
            await asked.wait()
            nursery.cancel_scope.cancel()
        assert await trio.to_thread.run_sync(ended.wait, 5)
        assert transport.statistics()["idle_connections"] == 0
        assert (await transport.request(server.address, "POST", "/", body=[b"next"])).body == b"next"


async def test_large_bodies_of_many_pieces_are_exact_both_ways() -> None:
    """More pieces than one sendmsg takes, odd lengths, empty ones among them."""
    whole = b"".join(n.to_bytes(4, "big") for n in range(3_000_000))
    cuts = [0, 0, *range(1, len(whole), 4001), len(whole), len(whole)]
    pieces = [memoryview(whole)[a:b] for a, b in itertools.pairwise(cuts)]
    async with transport_to(echo) as (transport, server):
        answer = await transport.request(server.address, "PUT", "/", body=pieces)
    assert isinstance(answer.body, bytearray)
    assert answer.body == whole


async def test_no_more_connections_than_allowed_and_the_others_wait() -> None:
    gate = threading.Event()

    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            gate.wait(10)
            peer.answer(b"ok")

    async with transport_to(script, connections_max=2) as (transport, server):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(transport.request, server.address, "GET", "/")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(TryAgain, match="waiting for a free connection: timed out"):
                await transport.request(server.address, "GET", "/", deadline_seconds=0.1)
            gate.set()
        assert server.connections == 2
        assert transport.statistics()["idle_connections"] == 2


async def test_a_refusal_before_the_body_was_read_is_the_answer() -> None:
    """A full node says so and closes; the broken pipe behind it is not what the caller has to know."""

    def script(peer: Peer) -> None:
        peer.read_head()
        peer.answer(b'{"detail": "no room"}', 507, connection="close")
        peer.sock.shutdown(socket.SHUT_RD)

    async with transport_to(script) as (transport, server):
        answer = await transport.request(server.address, "PUT", "/", body=[bytes(32 << 20)])
        assert answer.status == 507
        assert transport.statistics()["idle_connections"] == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1),
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70000,
        b"HTTP/1.1 200 OK\r\nx: never ends",
    ],
)
async def test_what_is_not_an_answer_of_ours_is_try_again(answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.raw(answer)

    async with transport_to(script) as (transport, server):
        with pytest.raises(TryAgain):
            await transport.request(server.address, "GET", "/")
        assert transport.statistics()["idle_connections"] == 0


@pytest.mark.parametrize(
    "extra", [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokEXTRA", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"]
)
async def test_a_connection_that_says_too_much_or_will_close_is_not_kept(extra: bytes) -> None:
    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.raw(extra)

    async with transport_to(script) as (transport, server):
        assert (await transport.request(server.address, "GET", "/")).body == b"ok"
        assert transport.statistics()["idle_connections"] == 0


async def test_a_head_answer_has_no_body() -> None:
    def script(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n")

    async with transport_to(script) as (transport, server):
        for _ in range(2):
            answer = await transport.request(server.address, "HEAD", "/")
            assert (answer.body, answer.headers["content-length"]) == (b"", "12345")
        assert server.connections == 1


async def test_a_head_that_comes_in_crumbs_is_understood() -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc":
            peer.raw(bytes([byte]))
            time.sleep(0.001)

    async with transport_to(script) as (transport, server):
        assert (await transport.request(server.address, "GET", "/")).body == b"abc"


async def test_what_is_asked_at_once_goes_over_idle_connections_and_comes_back_per_address() -> None:
    async with transport_to(echo) as (transport, server), transport_to(echo) as (_, other):
        addresses = [server.address, other.address]
        assert await at_once(transport, addresses) == [None, None], "nothing is idle yet"
        await transport.request(server.address, "GET", "/")
        answers = await at_once(transport, addresses)
        assert [answer and answer.body for answer in answers] == [b"small", None]
        await transport.request(other.address, "GET", "/")
        answers = await at_once(transport, addresses)
        assert [answer and answer.body for answer in answers] == [b"small", b"small"]
        assert (server.connections, other.connections) == (1, 1)


async def test_a_server_that_hangs_among_several_is_told_from_those_that_answered() -> None:
    def hang(peer: Peer) -> None:
        peer.read_request()
        peer.answer()
        peer.wait_for_end()

    async with transport_to(echo) as (transport, server), transport_to(hang) as (_, hanging):
        for address in (server.address, hanging.address):
            await transport.request(address, "GET", "/")
        first, second = await at_once(transport, [hanging.address, server.address], seconds=0.3)
        assert isinstance(first, TryAgain)
        assert second is not None
        assert second.body == b"small"
        assert transport.statistics()["idle_connections"] == 1
        await transport.request(server.address, "GET", "/")
        assert await at_once(transport, [hanging.address], seconds=0.3) == [None], "its connection was closed"


async def test_a_connection_that_breaks_says_nothing_of_what_was_asked_at_once() -> None:
    def break_off(peer: Peer) -> None:
        peer.read_request()
        peer.answer()
        peer.read_request()
        peer.reset()

    async with transport_to(break_off) as (transport, server):
        await transport.request(server.address, "GET", "/")
        assert await at_once(transport, [server.address]) == [None]
        assert transport.statistics()["idle_connections"] == 0


async def at_once(transport: TrioTransport, addresses: list[str], seconds: float = 5.0) -> list[Any]:
    headers = [{"x": "y"}] * len(addresses)
    return await transport.request_at_once(addresses, "PUT", "/", headers=headers, body=[b"small"], seconds=seconds)
