"""Extent ids and their text; batches and attributes on the wire."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.protocol.ids import ExtentId, SessionNumber, extent_id, extent_session, extent_text, parse_extent_text
from servers.protocol.naming_api import (
    MUTATIONS,
    Operation,
    operation,
    pack_batch,
    pack_nodes,
    pack_time,
    unpack_batch,
    unpack_nodes,
)

WORDS = st.integers(0, 2**64 - 1)
JSONISH = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=8), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(WORDS, WORDS)
def test_an_extent_id_is_its_text(session: int, counter: int) -> None:
    extent = extent_id(SessionNumber(session), counter)
    assert parse_extent_text(extent_text(extent)) == extent
    assert extent_session(extent) == session
    assert extent_text(extent) == f"{session:x}-{counter:x}"


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_ids_sort_as_their_bytes(one: bytes, other: bytes) -> None:
    assert (extent_text(ExtentId(one)) == extent_text(ExtentId(other))) == (one == other)


@pytest.mark.parametrize(
    "text",
    ["", "-", "1", "1-", "-1", "01-1", "1-01", "A-1", "1-g", "1 -1", "1-1\n", "../1", "1" * 17 + "-1", "1-1-1"],
)
def test_only_the_canonical_text_is_an_id(text: str) -> None:
    """So that one extent has one file name."""
    with pytest.raises(ValueError, match="not an extent id"):
        parse_extent_text(text)


@given(st.lists(st.integers(0, 65535), max_size=16))
def test_nodes_come_back(numbers: list[int]) -> None:
    assert list(unpack_nodes(pack_nodes(numbers))) == numbers  # type: ignore[arg-type]


@given(st.integers(-(2**60), 2**62))
def test_times_come_back(nanoseconds: int) -> None:
    seconds, rest = pack_time(nanoseconds)
    assert 0 <= rest < 10**9
    assert seconds * 10**9 + rest == nanoseconds


def test_a_batch_comes_back() -> None:
    batch = [operation("mkdir", 7, parent=1, name=b"\xff"), operation("getattr", 0, ino=5)]
    assert unpack_batch(pack_batch(SessionNumber(3), batch)) == (3, batch)


@given(st.one_of(st.binary(max_size=40), JSONISH.map(msgpack.packb)))
def test_anything_else_is_refused_in_one_way(body: bytes) -> None:
    """ValueError and nothing else, whatever comes; what passes is a batch."""
    try:
        session, operations = unpack_batch(body)
    except ValueError:
        return
    assert isinstance(session, int)
    assert all(isinstance(o, Operation) for o in operations)


@pytest.mark.parametrize(
    "batch",
    [
        ["one", []], [-1, []], [2**60, []], [True, []], [1, [["nonsense", 0, b""]]], [1, [["mkdir", 0, b""]]],
        [1, [["getattr", 1, b""]]], [1, [["mkdir", -1, b""]]], [1, [["mkdir", 2**54, b""]]], [1, [["mkdir", 1, "t"]]],
        [1, [[["mkdir"], 1, b""]]], [1, [["mkdir", 1.0, b""]]], [1, [["mkdir", 1]]], [1, 5], [1], 7, None,
    ],
)  # fmt: skip
def test_a_batch_of_something_else_is_refused(batch: object) -> None:
    with pytest.raises(ValueError, match=r"not a|number"):
        unpack_batch(msgpack.packb(batch))


def test_verbs_have_one_kind() -> None:
    assert {"create", "commit", "rename"} <= MUTATIONS
