"""Alive, suspect or dead: from times alone."""

from __future__ import annotations

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from servers.naming.membership import (
    DEAD_AFTER_SECONDS,
    PROBATION_SECONDS,
    PROBATION_SECONDS_MAX,
    RETURNS_TOLERATED,
    SUSPECT_AFTER_SECONDS,
    Patience,
    judge,
    probation_seconds,
    read_members,
)

ORDER = ["alive", "suspect", "dead"]
SECONDS = st.floats(0, 10_000)


def test_silence_makes_suspect_and_then_dead() -> None:
    silences = (0, SUSPECT_AFTER_SECONDS - 0.1, SUSPECT_AFTER_SECONDS, DEAD_AFTER_SECONDS - 0.1, DEAD_AFTER_SECONDS)
    verdicts = [judge(silent, 1000, 0, Patience()) for silent in silences]
    assert verdicts == ["alive", "alive", "suspect", "suspect", "dead"]


def test_a_node_that_returns_too_often_is_trusted_only_after_a_while() -> None:
    again = RETURNS_TOLERATED + 1
    assert judge(0, 0, RETURNS_TOLERATED, Patience()) == "alive"
    assert judge(0, PROBATION_SECONDS - 1, again, Patience()) == "suspect"
    assert judge(0, PROBATION_SECONDS, again, Patience()) == "alive"
    assert judge(0, PROBATION_SECONDS, again + 1, Patience()) == "suspect"


@given(SECONDS, SECONDS, SECONDS, st.integers(0, 10**6))
def test_more_silence_and_more_returns_never_make_it_better(
    one: float, two: float, steady: float, returns: int
) -> None:
    less, more = sorted((one, two))
    verdict = judge(less, steady, returns, Patience())
    assert ORDER.index(judge(more, steady, returns, Patience())) >= ORDER.index(verdict)
    assert ORDER.index(judge(less, steady, returns + 1, Patience())) >= ORDER.index(verdict)
    assert 0 <= probation_seconds(returns, Patience()) <= PROBATION_SECONDS_MAX


def record(address: str, seen_ms: int, *life: int) -> bytes:
    packed: bytes = msgpack.packb([f"uuid-{seen_ms}", address, "", "fs", 1, 2, 3, seen_ms, *life])
    return packed


def test_an_emptied_disk_under_an_old_address_makes_the_old_node_dead_at_once() -> None:
    """Its uuid went with what it had: whoever answers there now is another, and has nothing of it."""
    rows = [100_000, b"2", record("a:1", 99_000, 0, 0), 0, b"1", record("a:1", 97_000, 0, 0), 0]
    members = read_members(rows, Patience())
    assert [(m.view.number, m.view.state) for m in members] == [(1, "dead"), (2, "alive")]


def test_records_of_before_and_drained_nodes_are_read() -> None:
    rows = [100_000, b"1", record("a:1", 99_000), 0, b"2", record("b:1", 93_000, 0, 1), 40_000]
    one, two = read_members(rows, Patience())
    assert (one.view.state, one.silent_seconds, one.view.takes_copies) == ("alive", 1.0, True)
    assert (two.view.state, two.draining_seconds, two.view.takes_copies) == ("suspect", 60.0, False)
    assert (one.draining_since_ms, two.draining_since_ms) == (0, 40_000)
