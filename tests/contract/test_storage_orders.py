"""Delete orders on a real node: which it obeys, what it keeps, and how that comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.delete_orders import NOW_MS, SEQ, give, order_of
from tests.support.naming_stub import NamingStub
from tests.support.processes import wait_for
from tests.support.storage_node import SECRET, StorageNode


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageNode]:
    with NamingStub() as naming:
        made = StorageNode(Path(tmp_path_factory.mktemp("node")), NAMING_URL=naming.url)
        made.start()
        wait_for(lambda: made.http.get("/v1/space").json()["node"] == 42, "the node was told what time it is")
        yield made
        made.close()


def is_there(node: StorageNode, extent: str) -> bool:
    return node.get(extent).status_code == 200


def test_a_signed_order_deletes_what_it_names_and_counts_what_is_not_there(node: StorageNode) -> None:
    for number in (1, 2, 3):
        node.put(f"a1-{number}", bytes(number))
    used = node.http.get("/v1/space").json()["used_bytes"]
    file_bytes = node.http.get("/v1/extents/a1-1/description").json()["file_bytes"]
    answer = give(node, order_of(node, "a1-1", "a1-4"))
    assert (answer.status_code, answer.json()) == (200, {"failed": []})
    assert [is_there(node, f"a1-{number}") for number in (1, 2, 3)] == [False, True, True]
    space = node.http.get("/v1/space").json()
    assert space["used_bytes"] == used - file_bytes
    assert space["condemned_extents"] >= 1


@pytest.mark.fault("N8")
def test_a_recorded_order_that_comes_again_is_rejected(node: StorageNode) -> None:
    """Also when the extent was brought back or stored again meanwhile, and after a restart of the node."""
    node.put("a2-1", b"once")
    order = order_of(node, "a2-1")
    assert give(node, order).status_code == 200
    node.put("a2-1", b"once")
    assert give(node, order).status_code == 409
    node.restart()
    wait_for(lambda: node.http.get("/v1/space").json()["node"] == 42, "the node was told what time it is")
    assert give(node, order).status_code == 409
    assert is_there(node, "a2-1")


@pytest.mark.parametrize(
    "change",
    [{"expires_ms": NOW_MS - 1}, {"seq": SEQ - 1}, {"volume": "f" * 32}, {"node": "f" * 32}, {"number": 0}],
    ids=str,
)
@pytest.mark.fault("N8")
def test_late_old_and_misdirected_orders_are_rejected(node: StorageNode, change: dict[str, Any]) -> None:
    node.put("a3-1", b"x")
    assert give(node, replace(order_of(node, "a3-1"), **change)).status_code == 409
    assert is_there(node, "a3-1")


@pytest.mark.fault("N8")
def test_an_order_that_is_not_signed_is_rejected(node: StorageNode) -> None:
    node.put("a4-1", b"x")
    order = order_of(node, "a4-1")
    assert give(node, order, "0" * 64).status_code == 409
    assert give(node, order, order_of(node, "a4-2").sign(SECRET)).status_code == 409
    assert node.http.post("/v1/extents/delete", json={"extents": ["a4-1"]}).status_code == 422
    assert is_there(node, "a4-1")


def test_what_was_deleted_comes_back(node: StorageNode) -> None:
    node.put("a5-1", b"back")
    node.put("a5-2", b"gone")
    assert give(node, order_of(node, "a5-1", "a5-2")).status_code == 200
    undo = node.http.post("/v1/extents/undelete", json={"extents": ["a5-1"]})
    assert undo.json() == {"extents": ["a5-1"]}
    assert node.get("a5-1").content == b"back"
    assert not is_there(node, "a5-2")
    assert node.http.post("/v1/extents/undelete", json={"extents": ["a5-1"]}).json() == {"extents": []}
    assert "a5-2" in node.http.post("/v1/extents/undelete", json={"seconds": 3600}).json()["extents"]


def test_a_node_that_nobody_told_the_time_deletes_nothing(tmp_path: Path) -> None:
    alone = StorageNode(tmp_path)
    alone.start()
    alone.put("a6-1", b"x")
    assert give(alone, order_of(alone, "a6-1")).status_code == 409
    assert is_there(alone, "a6-1")
    alone.close()
