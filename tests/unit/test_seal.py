"""Seals over requests and answers: what was changed on the way does not fit any more."""

from __future__ import annotations

import random

import pytest

from servers.protocol.seal import (
    SEAL_HEADER,
    is_answer_whole,
    is_request_body_whole,
    is_request_head_whole,
    request_sum,
    seal_answer,
    seal_request,
)
from servers.protocol.storage_api import EXTENT_HEADER, LENGTH_HEADER, SUMS_HEADER

BODY = b"operations"
HEADERS = {"authorization": "Bearer secret", "content-length": "10", "dcs-deadline-ms": "1800"}


def flipped(text: str, chance: random.Random) -> str:
    """One bit of it is another."""
    data = bytearray(text.encode("latin-1"))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data.decode("latin-1")


def test_a_request_that_came_as_it_was_sent_fits_its_seal() -> None:
    """Headers that do not count, as proxies add them, do no harm."""
    seal = seal_request("POST", "/v1/ops", HEADERS, [BODY[:3], BODY[3:]])
    assert is_request_head_whole(seal, request_sum("POST", "/v1/ops", {**HEADERS, "x-forwarded-for": "10.0.0.1"}))
    assert is_request_body_whole(seal, BODY)


@pytest.mark.parametrize("what", ["method", "target", *HEADERS, "seal"])
def test_a_bit_that_changed_in_the_head_is_noticed(what: str) -> None:
    chance = random.Random(7)
    for _ in range(100):
        seal = seal_request("PUT", "/v1/extents/1-1?sync=1", HEADERS, [BODY])
        fields = {"method": "PUT", "target": "/v1/extents/1-1?sync=1", "seal": seal, **HEADERS}
        fields[what] = flipped(fields[what], chance)
        headers = {name: fields[name] for name in HEADERS}
        assert not is_request_head_whole(fields["seal"], request_sum(fields["method"], fields["target"], headers))


def test_a_bit_that_changed_in_the_body_is_noticed_unless_the_body_has_sums_of_its_own() -> None:
    seal = seal_request("POST", "/v1/ops", HEADERS, [BODY])
    assert not is_request_body_whole(seal, b"operationz")
    extent = seal_request("PUT", "/v1/extents/1-1", {**HEADERS, EXTENT_HEADER: "sums"}, [BODY])
    assert is_request_body_whole(extent, b"operationz")
    assert not is_request_head_whole(extent, request_sum("PUT", "/v1/extents/1-1", {**HEADERS, EXTENT_HEADER: "sumz"}))


def test_an_answer_fits_the_request_that_it_was_given_to_and_no_other() -> None:
    seal = seal_request("POST", "/v1/ops", HEADERS, [BODY])
    other = seal_request("POST", "/v1/ops", HEADERS, [b"operationz"])
    sealed = {SEAL_HEADER: seal_answer(seal, 200, {}, [b"done"])}
    assert is_answer_whole(seal, 200, sealed, b"done")
    assert not is_answer_whole(other, 200, sealed, b"done")
    assert not is_answer_whole(seal, 204, sealed, b"done")
    assert not is_answer_whole(seal, 200, sealed, b"gone")
    assert not is_answer_whole(seal, 200, {}, b"done"), "without a seal there is nothing to fit"


def test_of_an_answer_with_sums_the_head_alone_is_sealed() -> None:
    """Whoever gets it compares the data with the sums anyway."""
    headers = {SUMS_HEADER: "sums", LENGTH_HEADER: "100"}
    seal = seal_answer("request", 200, headers, [b"data"])
    assert is_answer_whole("request", 200, {**headers, SEAL_HEADER: seal}, b"date")
    assert not is_answer_whole("request", 200, {**headers, LENGTH_HEADER: "101", SEAL_HEADER: seal}, b"data")
