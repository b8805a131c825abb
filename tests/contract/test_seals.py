"""Sealed requests, as mounts send them, to the fast lane and to the other routes of a real storage node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers.protocol.seal import SEAL_HEADER, is_answer_whole, seal_request
from tests.support.storage_node import AUTHORIZATION, RawConnection, StorageNode, header_of

BODY = b"a small extent"
REQUESTS = {
    "lane with sums": ("PUT", "/v1/extents/3-1", BODY, 201),
    "lane without a body": ("GET", "/v1/extents/3-77", b"", 404),
    "ASGI": ("GET", "/v1/inventory?limit=5", b"", 200),
    "ASGI with a body": ("POST", "/v1/extents/check", b'{"extents": ["3-1"]}', 200),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageNode]:
    made = StorageNode(tmp_path_factory.mktemp("seals"))
    made.start()
    yield made
    made.close()


def sealed(method: str, target: str, body: bytes, authorization: str = AUTHORIZATION) -> tuple[bytes, str]:
    headers = {"authorization": authorization, "content-length": str(len(body)), "content-type": "application/json"}
    if method == "PUT":
        headers["dcs-extent"] = header_of(body).pack()
    seal = seal_request(method, target, headers, [body])
    lines = [f"{method} {target} HTTP/1.1", "host: node", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, f"{SEAL_HEADER}: {seal}", "", ""]).encode() + body, seal


@pytest.mark.parametrize("what", REQUESTS)
def test_a_sealed_request_gets_a_sealed_answer(node: StorageNode, what: str) -> None:
    """Twice over one connection."""
    method, target, body, status = REQUESTS[what]
    request, seal = sealed(method, target, body)
    with RawConnection(node.address) as connection:
        for wanted in (status, 200 if status == 201 else status):
            connection.send(request)
            answer = connection.reply()
            assert answer.status == wanted
            assert is_answer_whole(seal, answer.status, answer.headers, answer.body)


@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.parametrize("part", ["target", "secret"])
def test_what_was_damaged_on_its_way_is_refused_without_a_seal(node: StorageNode, what: str, part: str) -> None:
    method, target, body, _ = REQUESTS[what]
    request, _ = sealed(method, target, body)
    if part == "target":
        request = request.replace(b" /v1/", b" /v2/") if "ASGI" in what else request.replace(b"/3-", b"/7-")
    else:
        request = request.replace(b"secret-of", b"secret-og")
    assert_is_refused(node, request)


def test_a_body_that_was_damaged_on_its_way_is_refused_without_a_seal(node: StorageNode) -> None:
    method, target, body, _ = REQUESTS["ASGI with a body"]
    request, _ = sealed(method, target, body)
    assert_is_refused(node, request.replace(b"3-1", b"3-2"))


def assert_is_refused(node: StorageNode, request: bytes) -> None:
    with RawConnection(node.address) as connection:
        connection.send(request)
        answer = connection.reply()
    assert answer.status == 400
    assert b"damaged on its way" in answer.body
    assert SEAL_HEADER not in answer.headers


@pytest.mark.parametrize("what", REQUESTS)
def test_a_refusal_of_a_request_that_came_whole_is_sealed(node: StorageNode, what: str) -> None:
    """A wrong secret is a wrong secret, and not to be tried again."""
    method, target, body, _ = REQUESTS[what]
    request, seal = sealed(method, target, body, "Bearer not-the-secret")
    with RawConnection(node.address) as connection:
        connection.send(request)
        answer = connection.reply()
    assert answer.status == 401
    assert is_answer_whole(seal, answer.status, answer.headers, answer.body)
