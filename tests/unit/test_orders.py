"""Delete orders: which a node obeys, and which it must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.protocol.ids import SessionNumber, extent_id
from servers.protocol.orders import DeleteOrder, Knowledge, objection
from servers.storage.known_volume import KnownVolume
from servers.storage.obedience import Obedience, OrderRefused

VOLUME, NODE, SECRET = "a" * 32, "n" * 32, "a secret of the cluster"
GOOD = DeleteOrder(VOLUME, NODE, 5, 100, 2_000, (extent_id(SessionNumber(3), 1),))
KNOWN = Knowledge(NODE, VOLUME, 100, 1_000, 4)


def test_a_good_order_is_obeyed() -> None:
    assert objection(GOOD, KNOWN) == ""


@pytest.mark.parametrize(
    ("order", "known", "why"),
    [
        (replace(GOOD, node="other"), KNOWN, "not node"),
        (replace(GOOD, volume="other"), KNOWN, "extents of volume"),
        (GOOD, replace(KNOWN, volume=""), "extents of volume"),
        (GOOD, replace(KNOWN, now_ms=None), "no naming server has answered"),
        (GOOD, replace(KNOWN, now_ms=2_001), "too late"),
        (GOOD, replace(KNOWN, last_number=5), "not newer"),
        (GOOD, replace(KNOWN, last_number=6), "not newer"),
        (GOOD, replace(KNOWN, seq=101), "metadata that ends at change 100"),
    ],
)
def test_what_must_not_be_obeyed(order: DeleteOrder, known: Knowledge, why: str) -> None:
    assert why in objection(order, known)


@given(
    number=st.integers(0, 9), seq=st.integers(0, 9), expires=st.integers(0, 9), last=st.integers(0, 9),
    known=st.integers(0, 9), now=st.integers(0, 9),
)  # fmt: skip
def test_only_newer_orders_in_time_from_metadata_that_is_all_there_are_obeyed(
    number: int, seq: int, expires: int, last: int, known: int, now: int
) -> None:
    order = DeleteOrder(VOLUME, NODE, number, seq, expires, ())
    allowed = objection(order, Knowledge(NODE, VOLUME, known, now, last)) == ""
    assert allowed == (number > last and seq >= known and now <= expires)


def test_a_signature_is_good_for_its_order_and_secret_alone() -> None:
    signature = GOOD.sign(SECRET)
    assert GOOD.is_signed(signature, SECRET)
    assert not GOOD.is_signed(signature, SECRET + "2")
    assert not GOOD.is_signed("é" + signature[1:], SECRET)
    changes: dict[str, Any] = {"volume": "b", "node": "b", "number": 6, "seq": 101, "expires_ms": 2_001, "extents": ()}
    for name, value in changes.items():
        assert not replace(GOOD, **{name: value}).is_signed(signature, SECRET), name


def test_an_order_is_obeyed_once_also_after_a_restart(tmp_path: Path) -> None:
    volume = KnownVolume([tmp_path])
    volume.learn(VOLUME, 100, 1_000)
    signature = GOOD.sign(SECRET)
    with pytest.raises(OrderRefused, match="not signed"):
        Obedience([tmp_path], NODE, volume, SECRET).accept(GOOD, "0" * 64)
    Obedience([tmp_path], NODE, volume, SECRET).accept(GOOD, signature)
    with pytest.raises(OrderRefused, match="not newer"):
        Obedience([tmp_path], NODE, volume, SECRET).accept(GOOD, signature)
