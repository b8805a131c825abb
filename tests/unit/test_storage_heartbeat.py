"""Heartbeats: whom they go to, what address they tell."""

from __future__ import annotations

import pytest

from servers.storage.heartbeat import naming_addresses, reachable_address


def test_naming_urls_become_addresses() -> None:
    assert naming_addresses("http://a:8000, http://b:8001/,c:1") == ["a:8000", "b:8001", "c:1"]
    assert naming_addresses("http://naming") == ["naming:80"]
    assert naming_addresses(" , ") == []


@pytest.mark.parametrize("urls", ["https://a:1", "http://a:1/path", "http://"])
def test_what_is_no_naming_url_is_refused(urls: str) -> None:
    with pytest.raises(ValueError, match="NAMING_URL"):
        naming_addresses(urls)


def test_a_node_that_binds_every_address_tells_one_that_can_be_reached() -> None:
    assert reachable_address("127.0.0.1:5001", ["localhost:8000"]) == "127.0.0.1:5001"
    assert reachable_address("0.0.0.0:5001", ["127.0.0.1:8000"]) == "127.0.0.1:5001"
    assert reachable_address("0.0.0.0:5001", []).endswith(":5001")
    assert not reachable_address("0.0.0.0:5001", []).startswith("0.0.0.0")
