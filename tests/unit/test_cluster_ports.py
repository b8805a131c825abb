"""Which ports a local cluster takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from servers.admin.cluster import ports
from servers.admin.cluster.errors import ClusterProblem
from servers.admin.cluster.ports import Choice, Ports
from servers.admin.cluster.settings import ClusterSettings, read_settings

KEPT = Ports(7000, 7001, (7002, 7003, 7004))


def choose(settings: ClusterSettings, kept: Ports | None = None, *, taken: set[int] | None = None) -> Choice:
    numbers = itertools.count(40_000)
    return ports.choose(settings, kept, lambda port: port not in (taken or ()), lambda: next(numbers))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ClusterSettings]:
    for name in ("DCS_REDIS_PORT", "DCS_NAMING_PORT", "DCS_STORAGE_PORTS"):
        monkeypatch.delenv(name, raising=False)
    return ClusterSettings


def test_the_first_start_takes_the_defaults(settings: Callable[..., ClusterSettings]) -> None:
    assert choose(settings()) == Choice(Ports(6390, 8000, (5001, 5002, 5003)), ())


def test_a_default_that_is_taken_is_replaced_and_said(settings: Callable[..., ClusterSettings]) -> None:
    choice = choose(settings(), taken={8000, 5002})
    assert choice.ports == Ports(6390, 40_000, (5001, 40_001, 5003))
    assert [note.split(";")[0] for note in choice.notes] == [
        "Port 8000 (naming) is in use",
        "Port 5002 (storage) is in use",
    ]


def test_kept_ports_are_used_again(settings: Callable[..., ClusterSettings]) -> None:
    assert choose(settings(), KEPT) == Choice(KEPT, ())


def test_what_is_named_wins_over_what_was_kept(settings: Callable[..., ClusterSettings]) -> None:
    choice = choose(settings(naming_port=9000, storage_ports="1,2,3,4"), KEPT)
    assert choice.ports == Ports(7000, 9000, (1, 2, 3, 4))


def test_a_single_storage_port_is_a_list_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCS_STORAGE_PORTS", "5001")
    assert read_settings().storage_ports == (5001,)


@pytest.mark.parametrize("taken", [7000, 7001, 7003])
def test_a_kept_port_that_is_taken_is_an_error(settings: Callable[..., ClusterSettings], taken: int) -> None:
    """Addresses that people have written down do not change behind their back."""
    with pytest.raises(ClusterProblem, match=rf"Port {taken} .* in use"):
        choose(settings(), KEPT, taken={taken})


def test_a_named_port_that_is_taken_is_an_error(settings: Callable[..., ClusterSettings]) -> None:
    with pytest.raises(ClusterProblem, match=r"Port 9000 .* DCS_REDIS_PORT"):
        choose(settings(redis_port=9000), taken={9000})


def test_one_port_cannot_serve_two(settings: Callable[..., ClusterSettings]) -> None:
    with pytest.raises(ClusterProblem, match="9000"):
        choose(settings(redis_port=9000, naming_port=9000))


def test_no_node_with_data_is_left_out(settings: Callable[..., ClusterSettings]) -> None:
    with pytest.raises(ClusterProblem, match="3 hold data"):
        choose(settings(storage_ports="1,2"), KEPT)


def test_ports_are_kept_as_lines_of_shell(settings: Callable[..., ClusterSettings]) -> None:
    assert KEPT.dump() == "DCS_REDIS_PORT=7000\nDCS_NAMING_PORT=7001\nDCS_STORAGE_PORTS=7002,7003,7004\n"
    assert ports.load(KEPT.dump()) == KEPT
    with pytest.raises(ClusterProblem, match="cannot be read"):
        ports.load("DCS_REDIS_PORT=x\n")
