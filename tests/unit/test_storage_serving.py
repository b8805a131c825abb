"""The parts of the servers' lane that need no socket: heads, matching, the memory budget, the secret."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.serving.access import Secret, SecretError, load_secret
from servers.serving.lane import Lane, LaneReply, parse_query
from servers.serving.memory import BufferPool, MemoryBudget, buffer_bytes
from servers.serving.request_head import Refusal, parse_head, parse_sealed_head

pytestmark = pytest.mark.anyio
KIB = 1024


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_a_head_is_read() -> None:
    head = parse_head(b"PUT /a/b?x=1 HTTP/1.1\r\nHost: h\r\nContent-LENGTH:  12 \r\nX:\r\nX: y\r\n\r\n")
    assert (head.method, head.path, head.query, head.keep_alive) == ("PUT", "/a/b", "x=1", True)
    assert head.headers == {"host": "h", "content-length": "12", "x": ", y"}
    assert head.content_length(needed=True) == 12


@given(st.binary(max_size=200))
def test_a_head_of_any_bytes_is_read_or_refused(line: bytes) -> None:
    with contextlib.suppress(Refusal):
        parse_head(b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("lines", "seal"),
    [
        (b"dcs-seal: 0123456789abcdef\r\n", "0123456789abcdef"),
        (b"dcs-seal: 0123456789abcdef\r\nx: y\r\n", "0123456789abcdef"),
        (b"dcs-seal: 01\r\n", "01"),
        (b"x-dcs-seal: 0123456789abcdef\r\n", ""),
        (b"dcs-seal: first\r\ndcs-seal: 0123456789abcdef\r\n", "first, 0123456789abcdef"),
    ],
)
def test_a_head_that_comes_again_is_read_as_at_first(lines: bytes, seal: str) -> None:
    """Whether it is kept or not; a second seal is not taken for the only one."""
    head = b"POST /v1/ops HTTP/1.1\r\ncontent-length: 5\r\n" + lines + b"\r\n"
    plain, found = parse_sealed_head(head, known=False)
    assert found == seal
    for _ in range(2):
        known, found = parse_sealed_head(head, known=True)
        assert found == seal
        assert (known.method, known.path, known.sum) == (plain.method, plain.path, plain.sum)
        assert known.headers.get("content-length") == "5"


@pytest.mark.parametrize(
    ("start", "takes"),
    [
        (b"", None), (b"GET /v", None), (b"GET /v1/x/", None), (b"GET /v1/x/ab", None), (b"GET /v1/x/ab ", True),
        (b"GET /v1/x/ab?q=/ HTTP", True), (b"GET /v1/x/ab/c ", False), (b"GET /v1/x/ ", False), (b"GET /v1/y", False),
        (b"PUT /v1/x/ab ", False),
    ],
)  # fmt: skip
def test_a_lane_takes_one_segment_below_its_path(start: bytes, takes: bool | None) -> None:
    assert Lane("GET", "/v1/x/", lambda _: LaneReply(200)).takes(start) is takes


@pytest.mark.parametrize(
    ("start", "takes"),
    [(b"POST /v1/ops", None), (b"POST /v1/ops HTTP", True), (b"POST /v1/ops?a", True), (b"POST /v1/opsx ", False)],
)
def test_a_lane_without_a_slash_takes_its_path_alone(start: bytes, takes: bool | None) -> None:
    assert Lane("POST", "/v1/ops", lambda _: LaneReply(200)).takes(start) is takes


def test_a_query_is_split() -> None:
    assert parse_query("") == {}
    assert parse_query("sync=1&b") == {"sync": "1", "b": ""}


async def test_memory_is_given_first_come_first_served() -> None:
    """A small taker does not overtake a big one that waits."""
    budget = MemoryBudget(10)
    order: list[str] = []

    async def take(name: str, size: int) -> None:
        await budget.take(size, 5)
        order.append(name)

    await budget.take(8, 5)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(take("big", 9))
        await asyncio.sleep(0)
        tasks.create_task(take("small", 1))
        await asyncio.sleep(0)
        assert not budget.try_take(1)
        assert order == []
        budget.give(8)
    assert order == ["big", "small"]
    assert budget.taken_bytes == 10


async def test_who_gives_up_waiting_has_taken_nothing() -> None:
    """By deadline or by cancellation, also in the very moment that it was served."""
    budget = MemoryBudget(10)
    await budget.take(10, 5)
    with pytest.raises(TimeoutError):
        await budget.take(5, 0.01)
    waiting = asyncio.create_task(budget.take(5, 5))
    behind = asyncio.create_task(budget.take(5, 5))
    await asyncio.sleep(0)
    budget.give(10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await behind
    assert budget.taken_bytes == 5


@given(st.integers(1, 100_000_000))
def test_a_buffer_is_large_enough_and_at_most_twice_that(length: int) -> None:
    assert length <= buffer_bytes(length) < 2 * length or length == buffer_bytes(length) == 1


def test_buffers_are_used_again_up_to_a_bound() -> None:
    pool = BufferPool(192 * KIB)
    first, second = pool.get(128 * KIB), pool.get(128 * KIB)
    pool.put(first)
    pool.put(second)
    assert pool.get(128 * KIB) is first
    assert pool.get(128 * KIB) is not second


def test_the_secret_is_loaded_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("  the-cluster-secret\n")
    secret = load_secret(file, "ignored-when-there-is-a-file")
    assert secret.accepts("Bearer the-cluster-secret")
    assert not secret.accepts("bearer the-cluster-secret")
    assert not secret.accepts("Bearer the-cluster-secre")
    assert not secret.accepts("Bearer the-cluster-secret\xff")
    assert "the-cluster-secret" not in repr(secret)
    assert load_secret(None, "given-as-text").accepts("Bearer given-as-text")
    assert isinstance(secret, Secret)


@pytest.mark.parametrize("text", ["", "short", "schlüssel-wort", "two\nlines-of-it", None])
def test_a_secret_that_cannot_work_is_refused(text: str | None) -> None:
    with pytest.raises(SecretError):
        load_secret(None, text)
    with pytest.raises(SecretError):
        load_secret(Path("/nowhere"), text)
