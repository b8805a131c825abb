"""Requests that were counted, and how they are told in words."""

from __future__ import annotations

from math import inf

from servers.admin.figures import errors_in_words, requests_in_words, share_in_words
from servers.protocol.requests import Requests


def test_a_share_of_the_requests_took_a_bound_at_most() -> None:
    requests = Requests()
    for seconds, count in ((0.0005, 50), (0.002, 48), (0.2, 1), (60.0, 1)):
        for _ in range(count):
            requests.observe("put", seconds, failed=seconds > 10)
    put = requests.verbs["put"]
    assert (put.count, put.failures) == (100, 1)
    assert [put.seconds_of(share) for share in (0.5, 0.51, 0.98, 0.99, 1.0)] == [0.001, 0.003, 0.003, 0.3, inf]


def test_the_slowest_requests_and_the_errors_are_told_in_words() -> None:
    slow = {"verb": "GET /v1/status", "count": 3, "failures": 1, "half_ms": 10, "most_ms": None}
    quick = {"verb": "ops_batch", "count": 40, "failures": 0, "half_ms": 1, "most_ms": 3}
    assert requests_in_words([]) == errors_in_words({"redis_full": 0}) == "none"
    assert requests_in_words([slow, quick]) == (
        "3 GET /v1/status, half within 10 ms, 99 % without any bound, 1 failed; "
        "40 ops_batch, half within 1 ms, 99 % within 3 ms"
    )
    assert requests_in_words([quick] * 9).count("ops_batch") == 4
    assert errors_in_words({"redis_full": 2, "overload": 1, "redis_away": 0}) == "1 overload, 2 redis_full"
    assert (share_in_words(3, 1), share_in_words(0, 0)) == ("75%", "-")
