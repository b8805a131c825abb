"""The fast lane of the servers, over real sockets: what it must take, refuse and survive."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.lane_server import BLOB, BODY_BYTES_MAX
from tests.support.processes import Process, base_environment, wait_for
from tests.support.storage_node import RawConnection, chopped, raw_request

PATHS = {
    "sync": ("POST", "/echo"),
    "async": ("PUT", "/later/x"),
    "deferred": ("PUT", "/deferred/x"),
    "asgi": ("POST", "/asgi"),
}


class LaneServer(Process):
    def __init__(self, directory: Path) -> None:
        self.port_file = directory / "port"
        command = [sys.executable, "-m", "tests.support.lane_server", str(self.port_file)]
        super().__init__("lane", command, base_environment(), directory / "lane.log", self.port_file.exists)

    def connect(self) -> RawConnection:
        return RawConnection(f"127.0.0.1:{self.port_file.read_text().strip()}")

    def taken_bytes(self) -> int:
        with self.connect() as connection:
            connection.send(raw_request("GET", "/memory"))
            taken: int = json.loads(connection.reply().body)
            return taken


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaneServer]:
    made = LaneServer(tmp_path_factory.mktemp("lane"))
    made.start()
    yield made
    assert made.stop() == 0, made.log_tail()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[LaneServer]:
    made = LaneServer(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("size", [0, 1, 300, 70_000])
@pytest.mark.parametrize("kind", PATHS)
def test_a_request_may_come_in_any_pieces(server: LaneServer, kind: str, size: int) -> None:
    """Split at every byte of its head, and somewhere in its body, it is understood the same."""
    body = random.Random(size).randbytes(size)
    method, path = PATHS[kind]
    request = raw_request(method, path, body)
    head = len(request) - size
    with server.connect() as connection:
        for cut in range(1, head + 1):
            connection.send(*chopped(request, [cut, head + size // 2]))
            reply = connection.reply()
            assert (reply.status, reply.headers["x-lane"], reply.body) == (200, kind, body), cut


def test_a_request_may_come_byte_by_byte(server: LaneServer) -> None:
    request = raw_request("POST", "/echo", b"hello")
    with server.connect() as connection:
        connection.send(*chopped(request, range(len(request))))
        assert connection.reply().body == b"hello"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(PATHS)), st.sampled_from([0, 5, 5_000, 66_000, 300_000])),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**32),
)
def test_requests_of_both_kinds_follow_each_other(
    server: LaneServer, requests: list[tuple[str, int]], seed: int
) -> None:
    """Sent ahead in any pieces, they are all answered, in order, with their own bodies."""
    chance = random.Random(seed)
    bodies = [chance.randbytes(size) for _, size in requests]
    whole = b"".join(raw_request(*PATHS[kind], body) for (kind, _), body in zip(requests, bodies, strict=True))
    cuts = [chance.randrange(len(whole)) for _ in range(chance.randrange(6))]
    with server.connect() as connection:
        connection.send(*chopped(whole, cuts))
        for body in bodies:
            reply = connection.reply()
            assert (reply.status, reply.body) == (200, body)


def test_a_body_is_asked_for_when_the_sender_waits(server: LaneServer) -> None:
    """Expect: 100-continue, as curl sends it for an upload."""
    body = os.urandom(100_000)
    request = raw_request("POST", "/echo", body, "Expect: 100-continue")
    head = len(request) - len(body)
    with server.connect() as connection:
        connection.send(request[:head])
        assert connection.reply(head_only=True).status == 100
        connection.send(body)
        assert connection.reply().body == body


BIG = f"Content-Length: {BODY_BYTES_MAX + 1}"
REFUSED = {
    "no secret": (401, b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\n\r\n"),
    "a wrong secret": (401, raw_request("POST", "/echo", b"x", secret="other-secret")),
    "no length": (411, b"POST /echo HTTP/1.1\r\nAuthorization: Bearer secret-of-one-node\r\n\r\n"),
    "chunks": (411, raw_request("GET", "/blob", b"", "Transfer-Encoding: chunked")),
    "two lengths": (400, raw_request("POST", "/echo", b"", "Content-Length: 5")),
    "not a length": (400, raw_request("GET", "/blob", b"", "Content-Length: +5")),
    "a folded header": (400, raw_request("GET", "/blob", b"", "X-A: 1", " folded")),
    "a space before the colon": (400, raw_request("GET", "/blob", b"", "X-A : 1")),
    "too large": (413, raw_request("GET", "/blob", b"", "Content-Length: 1")),
    "a large head": (431, raw_request("GET", "/blob", b"", "X-A: " + "a" * 70_000)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_refused_and_the_connection_closed(server: LaneServer, what: str) -> None:
    status, request = REFUSED[what]
    with server.connect() as connection:
        connection.send(request)
        reply = connection.reply()
        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert json.loads(reply.body)["detail"]
        assert connection.is_closed()


def test_a_sender_of_too_much_gets_to_read_why(server: LaneServer) -> None:
    """The answer comes before the body is read, and is not lost in a reset while the body still comes."""
    request = b"POST /echo HTTP/1.1\r\nAuthorization: Bearer secret-of-one-node\r\nContent-Length: 20000000\r\n\r\n"
    with server.connect() as connection:
        connection.send(request, bytes(20_000_000))
        assert connection.reply().status == 413


def test_a_failing_handler_is_a_500_and_no_more(server: LaneServer) -> None:
    with server.connect() as connection:
        for path in ("/fail", "/fail_later", "/echo"):
            connection.send(raw_request("POST", path, b"x"))
        assert [connection.reply().status for _ in range(3)] == [500, 500, 200]
    assert "as the test wants it" in server.log_tail()


def test_head_and_old_and_closing_requests(server: LaneServer) -> None:
    with server.connect() as connection:
        connection.send(raw_request("GET", "/blob", b"", "Connection: close"))
        reply = connection.reply()
        assert (reply.body, reply.headers["connection"]) == (BLOB + BLOB, "close")
        assert connection.is_closed()
    with server.connect() as connection:
        connection.send(raw_request("GET", "/memory").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert connection.reply().headers["connection"] == "close"
        assert connection.is_closed()


def test_a_sender_that_leaves_in_the_middle_leaves_nothing(server: LaneServer) -> None:
    for _ in range(20):
        with server.connect() as connection:
            connection.send(raw_request("POST", "/echo", bytes(BODY_BYTES_MAX))[: BODY_BYTES_MAX // 2])
    wait_for(lambda: server.taken_bytes() == 0, "the memory of the bodies is free again")


@pytest.mark.parametrize("path", ["/later", "/deferred"])
def test_a_sender_that_does_not_wait_for_the_answer_leaves_nothing(server: LaneServer, path: str) -> None:
    for _ in range(20):
        with server.connect() as connection:
            connection.send(raw_request("PUT", f"{path}/x?s=0.1", bytes(BODY_BYTES_MAX // 4)))
    wait_for(lambda: server.taken_bytes() == 0, "the memory of the bodies is free again")
    assert "Traceback" not in server.log_tail().rpartition("as the test wants it")[2]


def test_a_stalled_body_is_cut_off(server: LaneServer) -> None:
    with server.connect() as connection:
        connection.send(raw_request("POST", "/echo", bytes(500_000))[:-1])
        wait_for(lambda: server.taken_bytes() > 0, "the body is being received")
        assert connection.is_closed()
    wait_for(lambda: server.taken_bytes() == 0, "the memory of the body is free again")


def test_a_head_that_never_ends_is_cut_off(server: LaneServer) -> None:
    with server.connect() as connection:
        connection.send(b"POST /echo HTTP/1.1\r\nAuth")
        assert connection.is_closed()


def test_a_reader_that_stalls_is_cut_off(server: LaneServer) -> None:
    with server.connect() as connection:
        connection.send(raw_request("GET", "/blob"))
        time.sleep(2.5)  # Twice the server's patience, as time passes for it.
        with pytest.raises(ConnectionError):
            connection.reply()


def test_bodies_wait_for_memory_and_then_are_refused(server: LaneServer) -> None:
    """Bodies together never hold more than the bound: one more waits until there is room, or is a 503."""
    request = raw_request("POST", "/echo", bytes(BODY_BYTES_MAX))
    with server.connect() as first, server.connect() as second, server.connect() as third:
        first.send(request[:-1])
        wait_for(lambda: server.taken_bytes() == BODY_BYTES_MAX, "the first body has all the memory")
        second.send(request)
        time.sleep(0.3)
        first.send(request[-1:])
        assert first.reply().status == 200
        assert second.reply().status == 200
        first.send(request[:-100])
        wait_for(lambda: server.taken_bytes() == BODY_BYTES_MAX, "the memory is taken again")
        third.send(request)
        for byte in chopped(request[-100:-50], range(50)):  # Slow, but never stalled, for longer than the third waits.
            time.sleep(0.04)
            first.send(byte)
        assert third.reply().status == 503


@pytest.mark.parametrize("path", ["/later", "/deferred"])
def test_stopping_finishes_what_is_under_way(own_server: LaneServer, path: str) -> None:
    """SIGTERM: a request under way is answered, idle connections are closed, the exit status is 0."""
    with own_server.connect() as busy, own_server.connect() as idle:
        idle.send(raw_request("POST", "/echo", b"x"))
        assert idle.reply().status == 200
        busy.send(raw_request("PUT", f"{path}/x?s=1", b"under way"))
        busy.send(raw_request("PUT", f"{path}/x?s=0", b"")[:10])
        time.sleep(0.2)
        started = time.monotonic()
        assert own_server.stop() == 0
        assert busy.reply().body == b"under way"
        assert time.monotonic() - started < 5
        assert idle.is_closed()


def test_a_taken_port_is_one_clear_line(server: LaneServer, tmp_path: Path) -> None:
    port = server.port_file.read_text().strip()
    environment = {**base_environment(), "PORT": port, "DCS_SECRET": "secretsecret", "DATA_DIR": str(tmp_path / "data")}
    second = Process("second", [sys.executable, "-m", "servers.storage"], environment, tmp_path / "log")
    second.start(wait=False)
    wait_for(lambda: not second.is_running, "the second server has ended")
    assert second.exit_status == 1
    assert second.log_tail() == f"storage node: cannot listen on 127.0.0.1:{port}: Address already in use\n"
